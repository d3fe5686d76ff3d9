#include "dist/collectives.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/thread_pool.h"

namespace longhaul::dist {
namespace {

// Up to here an all-reduce is one round of everything to everyone.
constexpr int64_t kSmallAllReduceBytes = int64_t{16} << 10;
constexpr int64_t kMaxSliceBytes = int64_t{1} << 20;
constexpr int64_t kMinSliceBytes = int64_t{4} << 10;
constexpr int kReduceDepth = 2;  // one slice travels while another is summed

// Elements [begin, begin + n) of a contiguous view, as a vector.
template <class View>
View part(const View& view, int64_t begin, int64_t n) {
  return view.reshape({view.elements()}).rows(begin, n);
}

// Peers in an order that differs by rank, so that not all of them send to the same one at first.
std::vector<int> peers(Place place) {
  std::vector<int> result;
  for (int i = 1; i < place.size; ++i) result.push_back((place.rank + i) % place.size);
  return result;
}

class ListedStages final : public Stages {
 public:
  explicit ListedStages(std::vector<Stage> stages) : stages_(std::move(stages)) {}
  bool next(Stage& stage) override {
    if (next_ == stages_.size()) return false;
    stage = std::move(stages_[next_++]);
    return true;
  }

 private:
  std::vector<Stage> stages_;
  size_t next_ = 0;
};

std::unique_ptr<Stages> list(Stage stage) {
  std::vector<Stage> stages;
  stages.push_back(std::move(stage));
  return std::make_unique<ListedStages>(std::move(stages));
}

// Everyone's piece to everyone: data's pieces are as equal as possible, own piece in place.
Stage gather_pieces(Place place, const TensorView& data) {
  const auto piece = [&](int rank) {
    const Range range = part_of(data.elements(), rank, place.size);
    return part(data, range.begin, range.size());
  };
  Stage stage;
  for (const int peer : peers(place)) {
    stage.sends.push_back({peer, piece(place.rank)});
    stage.recvs.push_back({peer, piece(peer)});
  }
  stage.after_all = true;
  return stage;
}

// Each rank receives the others' share of its piece, slice by slice, and sums in rank order.
class ReduceScatterStages final : public Stages {
 public:
  // `result` holds this rank's piece.
  ReduceScatterStages(Place place, const ConstTensorView& data, const TensorView& result,
                      ReduceOp op)
      : place_(place), data_(data), result_(result), op_(op) {
    const int64_t others = place.size - 1;
    const int64_t slice_bytes =
        std::clamp(kStagingBytes / (kReduceDepth * std::max<int64_t>(others, 1)), kMinSliceBytes,
                   kMaxSliceBytes);
    const int64_t largest = part_of(data.elements(), 0, place.size).size();
    slice_ = std::max<int64_t>(1, std::min(largest, slice_bytes / size_of(data.dtype())));
    slices_ = std::max<int64_t>(1, (largest + slice_ - 1) / slice_);
  }

  int depth() const override { return kReduceDepth; }

  bool next(Stage& stage) override {
    if (index_ == slices_) return false;
    const int64_t begin = index_ * slice_;
    const int64_t mine = slice_elements(place_.rank, begin);
    TensorView staging = this->staging(mine);

    std::vector<const std::byte*> inputs(static_cast<size_t>(place_.size));
    inputs[static_cast<size_t>(place_.rank)] = slice(place_.rank, begin).raw();
    int64_t row = 0;
    for (const int peer : peers(place_)) {
      stage.sends.push_back({peer, slice(peer, begin)});
      const TensorView arriving = part(staging, row++ * mine, mine);
      stage.recvs.push_back({peer, arriving});
      inputs[static_cast<size_t>(peer)] = arriving.raw();
    }
    // The last slices of an uneven division are empty on some ranks; both sides skip the message.
    if (index_ > 0) {
      std::erase_if(stage.sends, [](const Send& send) { return send.data.empty(); });
      std::erase_if(stage.recvs, [](const Recv& recv) { return recv.data.empty(); });
    }
    const TensorView target = part(result_, std::min(begin, result_.elements()), mine);
    stage.then = [inputs = std::move(inputs), target, op = op_] {
      reduce_in_order(op, target.dtype(), inputs, target.raw(), target.elements());
    };
    ++index_;
    return true;
  }

 private:
  int64_t slice_elements(int rank, int64_t begin) const {
    const int64_t piece = part_of(data_.elements(), rank, place_.size).size();
    return std::clamp<int64_t>(piece - begin, 0, slice_);
  }
  ConstTensorView slice(int rank, int64_t begin) const {
    const Range range = part_of(data_.elements(), rank, place_.size);
    return part(data_, range.begin + std::min(begin, range.size()), slice_elements(rank, begin));
  }
  // Room for `elements` of every other rank; none where the data itself has no memory.
  TensorView staging(int64_t elements) {
    const Shape shape{(place_.size - 1) * elements};
    if (data_.raw() == nullptr) return {nullptr, data_.dtype(), shape};
    Tensor& memory = memory_[static_cast<size_t>(index_ % kReduceDepth)];
    if (memory.shape().rank() == 0 || memory.shape().elements() < shape.elements())
      memory = Tensor(data_.dtype(), shape);
    return memory.view().rows(0, shape.elements());
  }

  const Place place_;
  const ConstTensorView data_;
  const TensorView result_;
  const ReduceOp op_;
  int64_t slice_ = 1;   // elements
  int64_t slices_ = 1;  // of the largest piece
  int64_t index_ = 0;
  Tensor memory_[kReduceDepth];
};

// The sum piece by piece, then the pieces to everyone.
class AllReduceStages final : public Stages {
 public:
  AllReduceStages(Place place, const TensorView& data, ReduceOp op)
      : reduce_(place, data, own_piece(place, data), op), gather_(gather_pieces(place, data)) {}

  int depth() const override { return reduce_.depth(); }
  bool next(Stage& stage) override {
    if (reduce_.next(stage)) return true;
    if (gathered_) return false;
    stage = std::move(gather_);
    gathered_ = true;
    return true;
  }

 private:
  static TensorView own_piece(Place place, const TensorView& data) {
    const Range range = part_of(data.elements(), place.rank, place.size);
    return part(data, range.begin, range.size());
  }

  ReduceScatterStages reduce_;
  Stage gather_;
  bool gathered_ = false;
};

// Everything to everyone; all ranks make the same sum.
std::unique_ptr<Stages> small_all_reduce(Place place, const TensorView& data, ReduceOp op) {
  const int64_t n = data.elements();
  auto memory = std::make_shared<Tensor>(data.dtype(),
                                         Shape{data.raw() == nullptr ? 0 : (place.size - 1) * n});
  std::vector<const std::byte*> inputs(static_cast<size_t>(place.size));
  inputs[static_cast<size_t>(place.rank)] = data.raw();
  Stage stage;
  int64_t row = 0;
  for (const int peer : peers(place)) {
    const TensorView arriving = data.raw() == nullptr ? TensorView(nullptr, data.dtype(), {n})
                                                      : memory->view().rows(row++ * n, n);
    stage.sends.push_back({peer, data});
    stage.recvs.push_back({peer, arriving});
    inputs[static_cast<size_t>(peer)] = arriving.raw();
  }
  stage.then = [memory, inputs = std::move(inputs), data, op] {
    reduce_in_order(op, data.dtype(), inputs, data.raw(), data.elements());
  };
  return list(std::move(stage));
}

}  // namespace

std::unique_ptr<Stages> exchange(std::span<const Send> sends, std::span<const Recv> recvs) {
  Stage stage;
  stage.sends.assign(sends.begin(), sends.end());
  stage.recvs.assign(recvs.begin(), recvs.end());
  return list(std::move(stage));
}

std::unique_ptr<Stages> all_gather(Place place, ConstTensorView send, TensorView recv) {
  LONGHAUL_CHECK(send.dtype() == recv.dtype());
  LONGHAUL_CHECK(recv.elements() == send.elements() * place.size,
                 send.shape().to_string() + " to " + recv.shape().to_string());
  const TensorView own = part(recv, place.rank * send.elements(), send.elements());
  Stage stage = gather_pieces(place, recv);
  // From where the caller has it, so that nothing has to be copied first.
  for (Send& message : stage.sends) message.data = send;
  if (own.raw() != send.raw()) {
    stage.then = [own, send] {
      if (!own.empty()) std::memcpy(own.raw(), send.raw(), static_cast<size_t>(own.bytes()));
    };
  }
  return list(std::move(stage));
}

std::unique_ptr<Stages> reduce_scatter(Place place, ConstTensorView send, TensorView recv) {
  LONGHAUL_CHECK(send.dtype() == recv.dtype());
  LONGHAUL_CHECK(send.elements() == recv.elements() * place.size,
                 send.shape().to_string() + " to " + recv.shape().to_string());
  return std::make_unique<ReduceScatterStages>(place, send, recv, ReduceOp::kSum);
}

std::unique_ptr<Stages> all_reduce(Place place, TensorView data, ReduceOp op) {
  if (data.bytes() <= kSmallAllReduceBytes) return small_all_reduce(place, data, op);
  return std::make_unique<AllReduceStages>(place, data, op);
}

std::unique_ptr<Stages> all_to_all(Place place, std::span<const ConstTensorView> send,
                                   std::span<const TensorView> recv) {
  const size_t size = static_cast<size_t>(place.size);
  LONGHAUL_CHECK(send.size() == size && recv.size() == size, "one tensor per rank");
  Stage stage;
  for (int i = 0; i < place.size; ++i) {
    const int to = (place.rank + i) % place.size;
    const int from = (place.rank - i + place.size) % place.size;
    stage.sends.push_back({to, send[static_cast<size_t>(to)]});
    stage.recvs.push_back({from, recv[static_cast<size_t>(from)]});
  }
  return list(std::move(stage));
}

std::unique_ptr<Stages> broadcast(Place place, TensorView data, int root) {
  LONGHAUL_CHECK(root >= 0 && root < place.size);
  // A binomial tree over ranks counted from the root: the parent of a node is the node without its
  // lowest bit, its children are it with one lower bit set.
  const int node = (place.rank - root + place.size) % place.size;
  const auto rank = [&](int other) { return (other + root) % place.size; };
  int bit = 1;
  while (bit < place.size && (node & bit) == 0) bit <<= 1;
  std::vector<Stage> stages(2);
  if (node != 0) stages[0].recvs.push_back({rank(node - bit), data});
  for (bit >>= 1; bit > 0; bit >>= 1) {
    if (node + bit < place.size) stages[1].sends.push_back({rank(node + bit), data});
  }
  return std::make_unique<ListedStages>(std::move(stages));
}

std::unique_ptr<Stages> barrier(Place place) {
  std::vector<Stage> stages;
  const TensorView nothing(nullptr, DType::kF32, {0});
  for (int distance = 1; distance < place.size; distance *= 2) {
    Stage stage;
    stage.sends.push_back({(place.rank + distance) % place.size, nothing});
    stage.recvs.push_back({(place.rank - distance + place.size) % place.size, nothing});
    stages.push_back(std::move(stage));
  }
  return std::make_unique<ListedStages>(std::move(stages));
}

}  // namespace longhaul::dist
