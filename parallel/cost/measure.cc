#include "parallel/cost/measure.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <string_view>

#include "kernels/attention.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/pointwise.h"

namespace longhaul::parallel {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::string_view kWhat = "measuring links";

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Seconds of work on the context's device, the best of so many tries that they take some
// milliseconds, after one to warm up: what disturbs a measurement only makes it longer.
double best_of(const Context& ctx, const std::function<void()>& work) {
  constexpr int kLeast = 3, kMost = 60;
  constexpr double kLongEnough = 5e-3;
  double best = 0, total = 0;
  for (int i = 0; i <= kLeast || (i <= kMost && total < kLongEnough); ++i) {
    wait_until_idle(ctx.stream);
    const auto begin = Clock::now();
    work();
    wait_until_idle(ctx.stream);
    const double seconds = seconds_since(begin);
    if (i == 0) continue;
    best = i == 1 ? seconds : std::min(best, seconds);
    total += seconds;
  }
  return best;
}

double agree_on_slowest(dist::Group& group, double seconds) {
  return 1e-9 * static_cast<double>(group.max(static_cast<int64_t>(seconds * 1e9), kWhat));
}

// Zeros beyond the first `rows` rows.
Tensor random_values(const Context& ctx, DType dtype, const Shape& shape, int64_t rows) {
  Tensor there(dtype, shape, ctx.device());
  const Tensor values(dtype, {rows, shape[1], shape[2]});
  visit_float(dtype, [&]<class T>() {
    uint64_t index = 0;
    for (T& value : values.span<T>()) {
      value = static_cast<T>(
          static_cast<float>(random_uniform({.seed = 1, .stream = 2}, index++ % 4096) - 0.5));
    }
  });
  upload(ctx.stream, values, there.view().slice(0, 0, rows));
  wait_until_idle(ctx.stream);
  return there;
}

// The heads that are computed: as many as the threads need to be busy, since more take longer.
HeadShape measured_heads(const Context& ctx, const HeadShape& heads) {
  HeadShape fewer = heads;
  if (ctx.device() == kCpu) {
    fewer.q_heads = std::min<int64_t>(heads.q_heads, ctx.pool->threads());
    const int64_t group = std::min(heads.group(), fewer.q_heads);
    fewer.kv_heads = fewer.q_heads / group;
    fewer.q_heads = fewer.kv_heads * group;
  }
  return fewer;
}

// Rows of tensors with `measured` heads that the kernel cuts into tiles as large as those of a
// rank's `rows` with `all` heads, or as what is visited: the CPU's backward kernel has so many
// tiles for each thread, also of rows that no segment visits (kernels/cpu/attention_schedule.cc),
// and pairs cost less in large ones.
int64_t tensor_rows(const Context& ctx, const HeadShape& all, const HeadShape& measured,
                    int64_t rows, int64_t visited) {
  if (ctx.device() != kCpu) return visited;
  constexpr int64_t kTilesPerThread = 8;
  const int64_t as_large = rows * all.kv_heads / measured.kv_heads;
  const int64_t enough = kTilesPerThread * ctx.pool->threads() * visited / measured.kv_heads;
  return std::max(visited, std::min(as_large, enough));
}

// Attention of the first `visited` of `rows` queries and keys, as segments of any size. The heads
// that are computed lie among all others, as they do in a model.
class KernelWork {
 public:
  KernelWork(const Context& ctx, const HeadShape& all, DType dtype, int64_t rows, int64_t visited)
      : visited_(visited),
        heads_(measured_heads(ctx, all)),
        q_(random_values(ctx, dtype, {rows, all.q_heads, all.head_dim}, visited)),
        k_(random_values(ctx, dtype, {rows, all.kv_heads, all.head_dim}, visited)),
        v_(random_values(ctx, dtype, {rows, all.kv_heads, all.value_dim}, visited)),
        dout_(random_values(ctx, dtype, {rows, all.q_heads, all.value_dim}, visited)),
        out_(accumulator(dtype), {rows, heads_.q_heads, all.value_dim}, ctx.device()),
        lse_(accumulator(dtype), {heads_.q_heads, rows}, ctx.device()),
        delta_(accumulator(dtype), {heads_.q_heads, rows}, ctx.device()),
        dq_(accumulator(dtype), {rows, heads_.q_heads, all.head_dim}, ctx.device()),
        dk_(accumulator(dtype), {rows, heads_.kv_heads, all.head_dim}, ctx.device()),
        dv_(accumulator(dtype), {rows, heads_.kv_heads, all.value_dim}, ctx.device()) {
    kernels::attention_init(ctx, out_, lse_);
  }

  int64_t q_heads() const { return heads_.q_heads; }

  // Segments of queries x keys, all pairs seen, so many that they visit every row that is visited.
  std::vector<Segment> segments(int64_t queries, int64_t keys) const {
    std::vector<Segment> result;
    const int64_t q_parts = visited_ / queries, k_parts = visited_ / keys;
    for (int64_t i = 0; i < std::max(q_parts, k_parts); ++i) {
      result.push_back({.q_row = i % q_parts * queries,
                        .q_len = queries,
                        .k_row = i % k_parts * keys,
                        .k_len = keys,
                        .band_lo = -kBandOpen,
                        .band_hi = kBandOpen,
                        .q_pos = 0,
                        .k_pos = 0});
    }
    return result;
  }

  void run(const Context& ctx, Direction direction, const std::vector<Segment>& segments) const {
    const kernels::HeadMap map{.q_begin = 0, .kv_begin = 0, .group = heads_.group()};
    const kernels::AttentionOptions options{.scale = 0.1};
    if (direction == Direction::kForward) {
      kernels::attention_forward(ctx, {.segments = segments,
                                       .heads = map,
                                       .q = computed(q_, heads_.q_heads),
                                       .k = computed(k_, heads_.kv_heads),
                                       .v = computed(v_, heads_.kv_heads),
                                       .options = options,
                                       .out_acc = out_,
                                       .lse = lse_});
    } else {
      kernels::attention_backward(ctx, {.segments = segments,
                                        .heads = map,
                                        .q = computed(q_, heads_.q_heads),
                                        .k = computed(k_, heads_.kv_heads),
                                        .v = computed(v_, heads_.kv_heads),
                                        .options = options,
                                        .dout = computed(dout_, heads_.q_heads),
                                        .lse = lse_,
                                        .delta = delta_,
                                        .dq_acc = dq_,
                                        .dk_acc = dk_,
                                        .dv_acc = dv_});
    }
  }

  double seconds(const Context& ctx, Direction direction,
                 const std::vector<Segment>& segments) const {
    Context own = ctx;
    Arena scratch = scratch_for(ctx, direction, segments);
    own.scratch = &scratch;
    return best_of(own, [&] { run(own, direction, segments); });
  }

  Arena scratch_for(const Context& ctx, Direction direction,
                    const std::vector<Segment>& segments) const {
    Arena measured = Arena::measure("measuring attention", ctx.device());
    Context own = ctx;
    own.scratch = &measured;
    run(own, direction, segments);
    return {"measuring attention", measured.peak(), ctx.device()};
  }

 private:
  static TensorView computed(const Tensor& tensor, int64_t heads) {
    return tensor.view().slice(1, 0, heads);
  }

  int64_t visited_;
  HeadShape heads_;
  Tensor q_, k_, v_, dout_, out_, lse_, delta_, dq_, dk_, dv_;
};

// A message on its way from each rank to the next, in the memory of the context's device.
struct ShiftBuffers {
  ShiftBuffers(const Context& ctx, int64_t bytes)
      : sent(DType::kF32, {(bytes + 3) / 4}, ctx.device()),
        received(DType::kF32, {(bytes + 3) / 4}, ctx.device()) {}
  dist::Request start(dist::Group& group, Stream& stream, const std::vector<int>& next) const {
    const auto me = static_cast<size_t>(group.rank());
    const auto previous = static_cast<int>(std::ranges::find(next, group.rank()) - next.begin());
    const std::array<dist::Send, 1> sends{{{next[me], sent}}};
    const std::array<dist::Recv, 1> receives{{{previous, received}}};
    return group.exchange(stream, sends, receives, kWhat);
  }
  Tensor sent, received;
};

// The part of a shift's time by which computing meanwhile takes longer.
double processor_share(dist::Group& group, const Context& ctx, const std::vector<int>& next,
                       int64_t bytes, double alone) {
  constexpr int64_t kRows = 256;
  const HeadShape heads{.q_heads = ctx.device() == kCpu ? ctx.pool->threads() : 32};
  const KernelWork work(ctx, heads, DType::kF32, kRows, kRows);
  const std::vector<Segment> segments = work.segments(kRows, kRows);
  Arena scratch = work.scratch_for(ctx, Direction::kForward, segments);
  Context computing = ctx;
  computing.scratch = &scratch;
  const double once = agree_on_slowest(group, work.seconds(ctx, Direction::kForward, segments));
  // Longer than the shift, so that all of it could be hidden.
  const auto calls = static_cast<int64_t>(std::clamp(2 * alone / std::max(once, 1e-7), 1.0, 1e4));
  const auto compute = [&] {
    for (int64_t i = 0; i < calls; ++i) work.run(computing, Direction::kForward, segments);
  };
  const ShiftBuffers buffers(ctx, bytes);
  Stream stream = ctx.stream;
  double without = 0, with = 0;
  constexpr int kTries = 3;
  for (int i = 0; i < kTries; ++i) {
    group.barrier(kWhat);
    const auto first = Clock::now();
    compute();
    wait_until_idle(stream);
    const double plain = agree_on_slowest(group, seconds_since(first));
    without = i == 0 ? plain : std::min(without, plain);
    group.barrier(kWhat);
    const auto begin = Clock::now();
    dist::Request request = buffers.start(group, stream, next);
    computing.poll = [&] { request.test(); };
    compute();
    wait_until_idle(stream);
    request.wait(stream);
    wait_until_idle(stream);
    const double both = agree_on_slowest(group, seconds_since(begin));
    with = i == 0 ? both : std::min(with, both);
    computing.poll = {};
  }
  return std::clamp((with - without) / alone, 0.0, 1.0);
}

// The first ranks a < b with the same node, or with different ones.
std::optional<std::pair<int, int>> first_pair(const std::vector<int>& node_of, bool same) {
  for (size_t a = 0; a < node_of.size(); ++a) {
    for (size_t b = a + 1; b < node_of.size(); ++b) {
      if ((node_of[a] == node_of[b]) == same) {
        return std::pair(static_cast<int>(a), static_cast<int>(b));
      }
    }
  }
  return std::nullopt;
}

Link measure_link(dist::Group& group, const Context& ctx, const std::vector<int>& node_of,
                  bool same, const std::pair<int, int>& pair) {
  constexpr int64_t kSmall = 8, kLarge = int64_t{2} << 20;
  const double latency = ping_pong_seconds(group, ctx, pair.first, pair.second, kSmall);
  const std::vector<int> next = next_ranks(node_of, same);
  const double seconds = shift_seconds(group, ctx, next, kLarge);
  return {
      .seconds_per_message = latency,
      .bytes_per_second = static_cast<double>(kLarge) / std::max(seconds - latency, 0.1 * seconds),
      .processor_share = processor_share(group, ctx, next, kLarge, seconds)};
}

// Messages of a rank to itself: no other processor makes them.
Link measure_within_rank(dist::Group& group, const Context& ctx) {
  constexpr int64_t kSmall = 8, kLarge = int64_t{1} << 20;
  std::vector<int> itself;
  for (int rank = 0; rank < group.size(); ++rank) itself.push_back(rank);
  const double latency = shift_seconds(group, ctx, itself, kSmall);
  const double seconds = shift_seconds(group, ctx, itself, kLarge);
  return {
      .seconds_per_message = latency,
      .bytes_per_second = static_cast<double>(kLarge) / std::max(seconds - latency, 0.1 * seconds),
      .processor_share = 1};
}

// Half of a round trip of publishing.
double publish_seconds(dist::Group& group, const std::pair<int, int>& pair) {
  constexpr uint64_t kRounds = 100;
  const std::unique_ptr<dist::Window> window = group.make_window(1, 64);
  if (window == nullptr) return 0;
  const int me = group.rank(), a = pair.first, b = pair.second;
  group.barrier(kWhat);
  const auto begin = Clock::now();
  if (me == a || me == b) {
    const int peer = me == a ? b : a;
    for (uint64_t epoch = 1; epoch <= kRounds; ++epoch) {
      const auto seen = [&] { return window->published(peer, 0, epoch); };
      if (me == a) window->publish(0, epoch, 1);
      group.wait_until(seen, kWhat);
      if (me == b) window->publish(0, epoch, 1);
      window->release(peer, 0);
      group.wait_until([&] { return window->free(0); }, kWhat);
    }
  }
  const double mine = me == a ? seconds_since(begin) / (2.0 * kRounds) : 0;
  return agree_on_slowest(group, mine);
}

}  // namespace

std::vector<int> nodes_of(dist::Group& group) {
  const auto ranks = static_cast<size_t>(group.size());
  const std::unique_ptr<dist::Window> window = group.make_window(1, 64);
  int64_t mine = group.rank();
  for (int peer = group.size() - 1; window != nullptr && peer >= 0; --peer) {
    if (window->reachable(peer)) mine = std::min<int64_t>(mine, peer);
  }
  const Tensor send(DType::kI64, {1}), all(DType::kI64, {group.size()});
  send.span<int64_t>()[0] = mine;
  Stream stream;
  group.all_gather(stream, send, all, "nodes").wait(stream);
  std::vector<int> nodes(ranks);
  for (size_t r = 0; r < ranks; ++r) nodes[r] = static_cast<int>(all.span<int64_t>()[r]);
  return nodes;
}

int ranks_per_node(const std::vector<int>& node_of) {
  const auto first = static_cast<size_t>(std::ranges::count(node_of, node_of.front()));
  if (node_of.size() % first != 0) return 1;
  for (size_t r = 0; r < node_of.size(); ++r) {
    if (node_of[r] != static_cast<int>(r / first * first)) return 1;
  }
  return static_cast<int>(first);
}

std::vector<int> next_ranks(const std::vector<int>& node_of, bool same) {
  const size_t ranks = node_of.size();
  std::vector<int> next(ranks);
  std::vector<int> place(ranks, 0);
  for (size_t r = 0; r < ranks; ++r) {
    for (size_t other = 0; other < r; ++other) place[r] += node_of[other] == node_of[r] ? 1 : 0;
  }
  for (size_t r = 0; r < ranks; ++r) {
    for (size_t distance = 1; distance <= ranks; ++distance) {
      const size_t other = (r + distance) % ranks;
      if (same ? node_of[other] == node_of[r] : place[other] == place[r]) {
        next[r] = static_cast<int>(other);
        break;
      }
    }
  }
  return next;
}

KernelCosts measure_kernel(const Context& ctx, const HeadShape& heads, DType dtype, int64_t rows) {
  // As long as takes some milliseconds a head.
  const int64_t most = ctx.device() == kCpu ? 1024 : 4096;
  KernelCosts costs;
  KernelProfile& profile = costs.profile;
  profile.dtype = dtype;
  profile.head_dim = heads.head_dim;
  const int64_t longest = std::clamp<int64_t>(rows, 1, most);
  for (int64_t length = 16; length < longest; length *= 4) profile.lengths.push_back(length);
  profile.lengths.push_back(longest);
  const int64_t tensors = tensor_rows(ctx, heads, measured_heads(ctx, heads), rows, longest);
  const KernelWork work(ctx, heads, dtype, tensors, longest);
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    std::vector<double>& seconds =
        direction == Direction::kForward ? profile.forward : profile.backward;
    const double call = work.seconds(ctx, direction, {work.segments(1, 1).front()});
    if (direction == Direction::kForward) costs.seconds_per_task = call;
    for (int64_t queries : profile.lengths) {
      for (int64_t keys : profile.lengths) {
        const std::vector<Segment> segments = work.segments(queries, keys);
        const double taken = work.seconds(ctx, direction, segments);
        const auto pairs = static_cast<double>(static_cast<int64_t>(segments.size()) * queries *
                                               keys * work.q_heads());
        seconds.push_back(std::max(taken - call, 0.1 * taken) / pairs);
      }
    }
    // A triangle takes as long as its pairs and those that its diagonal wastes.
    Segment triangle = work.segments(longest, longest).front();
    triangle.band_hi = 0;
    const double taken = work.seconds(ctx, direction, {triangle}) - call;
    const auto rows_longest = static_cast<double>(longest);
    const double rate = profile.seconds_per_pair(direction, rows_longest, 0.5 * rows_longest);
    const double computed = taken / (rate * static_cast<double>(work.q_heads()));
    const double wasted = (computed - static_cast<double>(area(triangle))) / rows_longest;
    (direction == Direction::kForward ? profile.forward_border : profile.backward_border) =
        std::clamp(wasted, 0.0, 0.5 * rows_longest);
  }
  return costs;
}

double measure_memory(const Context& ctx) {
  constexpr int64_t kElements = int64_t{1} << 20;
  const Tensor from(DType::kF32, {kElements}, ctx.device());
  const Tensor to(DType::kF32, {kElements}, ctx.device());
  const double seconds = best_of(ctx, [&] { kernels::copy(ctx, from, to); });
  return 2.0 * static_cast<double>(from.view().bytes()) / seconds;
}

double ping_pong_seconds(dist::Group& group, const Context& ctx, int a, int b, int64_t bytes) {
  const int me = group.rank();
  const int rounds = bytes <= 4096 ? 100 : bytes <= (int64_t{1} << 20) ? 10 : 3;
  constexpr int kTries = 3;
  const Tensor data(DType::kF32, {(bytes + 3) / 4}, ctx.device());
  Stream stream = ctx.stream;
  const auto pass = [&](bool sends, int peer) {
    const std::array<dist::Send, 1> send{{{peer, data}}};
    const std::array<dist::Recv, 1> receive{{{peer, data}}};
    const std::span<const dist::Send> sent(send.data(), sends ? 1 : 0);
    const std::span<const dist::Recv> received(receive.data(), sends ? 0 : 1);
    group.exchange(stream, sent, received, kWhat).wait(stream);
    wait_until_idle(stream);
  };
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    group.barrier(kWhat);
    const auto begin = Clock::now();
    for (int round = 0; round < rounds && (me == a || me == b); ++round) {
      pass(me == a, me == a ? b : a);
      pass(me == b, me == a ? b : a);
    }
    const double seconds = seconds_since(begin) / (2.0 * rounds);
    best = i == 0 ? seconds : std::min(best, seconds);
  }
  return agree_on_slowest(group, me == a ? best : 0);
}

double shift_seconds(dist::Group& group, const Context& ctx, const std::vector<int>& next,
                     int64_t bytes) {
  constexpr int kTries = 3;
  constexpr double kLongEnough = 0.02;
  const ShiftBuffers buffers(ctx, bytes);
  Stream stream = ctx.stream;
  const auto timed = [&](int64_t shifts) {
    group.barrier(kWhat);
    const auto begin = Clock::now();
    for (int64_t i = 0; i < shifts; ++i) buffers.start(group, stream, next).wait(stream);
    wait_until_idle(stream);
    return agree_on_slowest(group, seconds_since(begin)) / static_cast<double>(shifts);
  };
  double best = timed(1);
  const auto shifts = static_cast<int64_t>(std::clamp(kLongEnough / std::max(best, 1e-7), 1., 50.));
  for (int i = 0; i < kTries; ++i) best = std::min(best, timed(shifts));
  return best;
}

LinkCosts measure_links(dist::Group& group, const Context& ctx, const std::vector<int>& node_of) {
  LinkCosts costs;
  costs.within_rank = measure_within_rank(group, ctx);
  if (const auto pair = first_pair(node_of, true)) {
    costs.within_node = measure_link(group, ctx, node_of, true, *pair);
    costs.seconds_to_publish = publish_seconds(group, *pair);
  }
  if (const auto pair = first_pair(node_of, false)) {
    costs.between_nodes = measure_link(group, ctx, node_of, false, *pair);
  }
  return costs;
}

Cluster measure_links_and_memory(dist::Group& group, const Context& ctx,
                                 const std::vector<int>& node_of) {
  group.barrier("measuring memory");
  Cluster cluster;
  cluster.memory_bytes_per_second = measure_memory(ctx);
  const LinkCosts links = measure_links(group, ctx, node_of);
  cluster.within_rank = links.within_rank;
  cluster.within_node = links.within_node;
  cluster.between_nodes = links.between_nodes;
  cluster.seconds_to_publish = links.seconds_to_publish;
  return cluster;
}

Cluster measure_cluster(dist::Group& group, const Context& ctx, const std::vector<int>& node_of,
                        const HeadShape& heads, DType dtype, int64_t rows) {
  group.barrier("measuring kernels");
  KernelCosts kernel = measure_kernel(ctx, heads, dtype, rows);
  Cluster cluster = measure_links_and_memory(group, ctx, node_of);
  cluster.seconds_per_task = kernel.seconds_per_task;
  cluster.profiles.push_back(std::move(kernel.profile));
  return cluster;
}

}  // namespace longhaul::parallel
