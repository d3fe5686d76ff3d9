#include "dist/mpi/transport.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <thread>

#include "kernels/core/error.h"

namespace longhaul::dist::mpi {
namespace {

// How long a failed operation's messages may take to let go of their buffers.
constexpr std::chrono::milliseconds kLetGo{200};

std::string describe(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, static_cast<size_t>(length));
}

bool finalized() {
  int flag = 0;
  MPI_Finalized(&flag);
  return flag != 0;
}

struct Chunk {
  int peer = 0;
  bool receives = false;
  int bytes = 0;
};

class MpiMessages final : public Transport::Messages {
 public:
  MpiMessages(const Transport& transport, MPI_Comm communicator, int tag, int64_t chunk_bytes)
      : transport_(transport), communicator_(communicator), tag_(tag), chunk_bytes_(chunk_bytes) {}

  ~MpiMessages() override {
    if (pending_ == 0 || finalized()) return;
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] != MPI_REQUEST_NULL && chunks_[i].receives) MPI_Cancel(&requests_[i]);
    }
    const auto end = std::chrono::steady_clock::now() + kLetGo;
    int done = 0;
    while (done == 0 && std::chrono::steady_clock::now() < end) {
      MPI_Testall(count(), requests_.data(), &done, MPI_STATUSES_IGNORE);
      std::this_thread::yield();
    }
    for (MPI_Request& request : requests_) {
      if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
    }
  }

  void start_recv(int peer, std::byte* data, int64_t bytes) {
    for_each_chunk(peer, bytes, true, [&](int64_t begin, int n, MPI_Request* request) {
      check(MPI_Irecv(data + begin, n, MPI_BYTE, peer, tag_, communicator_, request), "MPI_Irecv");
    });
  }
  void start_send(int peer, const std::byte* data, int64_t bytes) {
    for_each_chunk(peer, bytes, false, [&](int64_t begin, int n, MPI_Request* request) {
      check(MPI_Isend(data + begin, n, MPI_BYTE, peer, tag_, communicator_, request), "MPI_Isend");
    });
  }

  bool test() override {
    if (pending_ == 0) return true;
    indices_.resize(requests_.size());
    statuses_.resize(requests_.size());
    int completed = 0;
    const int code =
        MPI_Testsome(count(), requests_.data(), &completed, indices_.data(), statuses_.data());
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check(code, "MPI_Testsome");
    if (completed == MPI_UNDEFINED) completed = 0;
    pending_ -= completed;
    for (int i = 0; i < completed; ++i) {
      const MPI_Status& status = statuses_[static_cast<size_t>(i)];
      const Chunk& chunk = chunks_[static_cast<size_t>(indices_[static_cast<size_t>(i)])];
      verify(chunk, status, code == MPI_ERR_IN_STATUS ? status.MPI_ERROR : MPI_SUCCESS);
    }
    return pending_ == 0;
  }

  std::vector<int> missing() const override {
    std::vector<int> peers;
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] != MPI_REQUEST_NULL) peers.push_back(chunks_[i].peer);
    }
    return peers;
  }

 private:
  template <class F>
  void for_each_chunk(int peer, int64_t bytes, bool receives, F&& start) {
    for (int64_t begin = 0;; begin += chunk_bytes_) {
      const int n = static_cast<int>(std::min(chunk_bytes_, bytes - begin));
      requests_.push_back(MPI_REQUEST_NULL);
      chunks_.push_back({peer, receives, n});
      start(begin, n, &requests_.back());
      ++pending_;
      if (n < chunk_bytes_) return;
    }
  }

  void verify(const Chunk& chunk, const MPI_Status& status, int code) const {
    const int peer = transport_.world_rank(chunk.peer);
    int kind = MPI_SUCCESS;
    if (code != MPI_SUCCESS) MPI_Error_class(code, &kind);
    int arrived = chunk.bytes;
    if (code == MPI_SUCCESS && chunk.receives) MPI_Get_count(&status, MPI_BYTE, &arrived);
    if (arrived != chunk.bytes || kind == MPI_ERR_TRUNCATE) {
      fail(ErrorCode::kCommunication,
           absl::StrCat("this rank expects ", chunk.bytes, " bytes from rank ", peer,
                        ", which sends ", kind == MPI_ERR_TRUNCATE ? "more" : absl::StrCat(arrived),
                        ": the ranks disagree about the operation"));
    }
    if (code != MPI_SUCCESS) {
      fail(ErrorCode::kCommunication,
           absl::StrCat(chunk.receives ? "receiving from rank " : "sending to rank ", peer, ": ",
                        describe(code)));
    }
  }

  int count() const { return static_cast<int>(requests_.size()); }

  const Transport& transport_;
  const MPI_Comm communicator_;
  const int tag_;
  const int64_t chunk_bytes_;
  std::vector<MPI_Request> requests_;  // null: completed
  std::vector<Chunk> chunks_;          // of the requests
  int pending_ = 0;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
};

class MpiTransport final : public Transport {
 public:
  // Owns the communicator.
  MpiTransport(MPI_Comm communicator, int64_t chunk_bytes)
      : communicator_(communicator), chunk_bytes_(chunk_bytes) {
    LONGHAUL_CHECK(chunk_bytes > 0 && chunk_bytes <= kChunkBytes);
    check(MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    int size = 0;
    check(MPI_Comm_rank(communicator_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(communicator_, &size), "MPI_Comm_size");
    // Collectives count on from 1; tags return only after more of them than can be in flight.
    void* limit = nullptr;
    int found = 0;
    check(MPI_Comm_get_attr(communicator_, MPI_TAG_UB, &limit, &found), "MPI_Comm_get_attr");
    if (found != 0) tags_ = std::min(*static_cast<const int*>(limit), int{1} << 20);

    std::vector<int> ranks(static_cast<size_t>(size));
    std::iota(ranks.begin(), ranks.end(), 0);
    world_ranks_.resize(ranks.size());
    MPI_Group mine, world;
    check(MPI_Comm_group(communicator_, &mine), "MPI_Comm_group");
    check(MPI_Comm_group(MPI_COMM_WORLD, &world), "MPI_Comm_group");
    check(MPI_Group_translate_ranks(mine, size, ranks.data(), world, world_ranks_.data()),
          "MPI_Group_translate_ranks");
    MPI_Group_free(&mine);
    MPI_Group_free(&world);
  }

  ~MpiTransport() override {
    if (!finalized()) MPI_Comm_free(&communicator_);
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }
  int world_rank(int rank) const override {
    LONGHAUL_CHECK(rank >= 0 && rank < size());
    return world_ranks_[static_cast<size_t>(rank)];
  }

  std::unique_ptr<Messages> start(Stream&, std::span<const Send> sends, std::span<const Recv> recvs,
                                  int64_t channel) override {
    const int tag = channel == 0 ? 0 : static_cast<int>(1 + (channel - 1) % (tags_ - 1));
    auto messages = std::make_unique<MpiMessages>(*this, communicator_, tag, chunk_bytes_);
    // Receives first: what arrives then has a place to go.
    for (const Recv& recv : recvs) {
      messages->start_recv(recv.peer, recv.data.raw(), recv.data.bytes());
    }
    for (const Send& send : sends) {
      messages->start_send(send.peer, send.data.raw(), send.data.bytes());
    }
    return messages;
  }

  void progress() override {
    int flag = 0;
    check(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, communicator_, &flag, MPI_STATUS_IGNORE),
          "MPI_Iprobe");
  }

  std::unique_ptr<Transport> split(int color, int key) override {
    // MPI takes no negative colors; its order of equal keys is ours.
    LONGHAUL_CHECK(color >= 0, absl::StrCat("color ", color));
    MPI_Comm part;
    check(MPI_Comm_split(communicator_, color, key, &part), "MPI_Comm_split");
    return std::make_unique<MpiTransport>(part, chunk_bytes_);
  }

  std::unique_ptr<Window> make_window(int slots, int64_t slot_bytes) override {
    const SlabLayout layout{slots, slot_bytes};
    std::vector<Slab> slabs = share_slabs(communicator_, layout);
    if (slabs.empty()) return nullptr;  // another rank has failed and says so
    return slab_window(layout, rank_, std::move(slabs));
  }

  void abort(int exit_status, const std::string& message) override {
    std::fprintf(stderr, "longhaul: error: %s\n", message.c_str());
    std::fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, exit_status);
  }

 private:
  MPI_Comm communicator_;
  const int64_t chunk_bytes_;
  int rank_ = 0;
  int tags_ = 32768;  // the standard's minimum
  std::vector<int> world_ranks_;
};

}  // namespace

void check(int code, const char* call) {
  if (code != MPI_SUCCESS) {
    fail(ErrorCode::kCommunication, absl::StrCat(call, ": ", describe(code)));
  }
}

std::unique_ptr<Transport> make_transport(MPI_Comm communicator, int64_t chunk_bytes) {
  MPI_Comm own;
  check(MPI_Comm_dup(communicator, &own), "MPI_Comm_dup");
  return std::make_unique<MpiTransport>(own, chunk_bytes);
}

}  // namespace longhaul::dist::mpi
