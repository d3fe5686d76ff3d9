// `longhaul bench cad --real`: one layer of attention on two ranks, timed. In turns:
//
//   perfect balance   what neither messages nor packing could beat: each rank computes half of the
//                     heads of all documents, alone but at the same time as the other; all heads,
//                     and half of the time counts, where kv heads are odd
//   fixed packing     each rank the queries that it owns
//   ours              tasks as the scheduler places them
//
// Wall is the time from a common start until both ranks are done. Busy is processor time
// (CLOCK_THREAD_CPUTIME_ID) of the thread that runs a rank's attention, in kernels (`kernels`), in
// packing and folding and in letting messages progress meanwhile, but not in waits for messages,
// which are `blocked` by the clock. With more threads the others compute beside it, uncounted. Idle
// is the share of the wall time in which the mean rank is not busy. Lost is the share of it in
// which a rank had work but no processor, as other programs had it (of the rank that lost most): of
// the passes timed, the figures are medians of the half that lost least.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/instruction_set.h"
#include "launch/bench/cad_bench.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/layout_mixes.h"
#include "launch/bench/sequence_timer.h"
#include "parallel/cost/measure.h"
#include "parallel/cost/simulate.h"
#include "parallel/plan/planners.h"

namespace longhaul::launch {

namespace {

using parallel::Activity;
using parallel::Direction;
using parallel::Documents;
using parallel::TokenLayout;
using Clock = std::chrono::steady_clock;

constexpr const char* kWhat = "bench cad";

// Rank 0's measured costs, on every rank.
parallel::KernelProfile agreed(dist::Group& group, parallel::KernelProfile profile) {
  std::vector<double*> values{&profile.forward_border, &profile.backward_border};
  for (double& value : profile.forward) values.push_back(&value);
  for (double& value : profile.backward) values.push_back(&value);
  const auto count = static_cast<int64_t>(values.size());
  Tensor mine(DType::kF64, {count}), all(DType::kF64, {group.size() * count});
  for (size_t i = 0; i < values.size(); ++i) mine.span<double>()[i] = *values[i];
  Stream stream;
  group.all_gather(stream, mine, all, "kernel costs").wait(stream);
  for (size_t i = 0; i < values.size(); ++i) *values[i] = all.span<double>()[i];
  return profile;
}

// Of one pass, the same on every rank; but for wall and the largest, means over the ranks.
struct PassFigures {
  double wall = 0, busy = 0, most_busy = 0, kernels = 0, blocked = 0, lost = 0;
};

// Medians of the half of the passes that lost least.
PassFigures typical(std::vector<PassFigures> passes) {
  std::ranges::stable_sort(passes, {}, [](const PassFigures& f) { return f.lost / f.wall; });
  passes.resize((passes.size() + 1) / 2);
  PassFigures result;
  for (double PassFigures::*field :
       {&PassFigures::wall, &PassFigures::busy, &PassFigures::most_busy, &PassFigures::kernels,
        &PassFigures::blocked, &PassFigures::lost}) {
    std::vector<double> values;
    for (const PassFigures& pass : passes) values.push_back(pass.*field);
    result.*field = median(values);
  }
  return result;
}

class RealCad {
 public:
  RealCad(dist::Group& world, const CadOptions& options)
      : world_(world),
        options_(options),
        pool_(static_cast<int>(options.threads)),
        alone_(world.split(world.rank(), 0)) {}

  void run() {
    Arena none("nothing", 0);  // kernels of the host need no workspace
    const Context ctx{.pool = &pool_, .scratch = &none};
    node_of_ = parallel::nodes_of(world_);
    cluster_ = parallel::measure_cluster(world_, ctx, node_of_, cad_heads(options_),
                                         cad_dtype(options_), options_.tokens_per_rank);
    cluster_.profiles.front() = agreed(world_, cluster_.profiles.front());
    for (const LengthMix& mix : length_mixes()) {
      if (!options_.mixes.empty() &&
          std::ranges::find(options_.mixes, mix.name) == options_.mixes.end()) {
        continue;
      }
      run_case(mix);
    }
  }

 private:
  struct Entry {
    std::string policy;
    std::unique_ptr<SequenceTimer> timer;
    dist::Group* group;
    double share = 1;      // of what is timed that counts
    double imbalance = 0;  // of the scheduler
    double planning = 0;   // seconds, both directions
    double simulated = 0;  // seconds of the pass; 0: not
    int64_t bytes = 0;
    std::vector<PassFigures> passes{};
  };

  parallel::CoreAttentionOptions attention(double imbalance) const {
    parallel::CoreAttentionOptions attention{
        .heads = cad_heads(options_),
        .mask = {.causal = true},
        .dtype = cad_dtype(options_),
        .scale = 1 / std::sqrt(static_cast<double>(options_.head_dim)),
        .strategy = "disaggregated",
        .in_place = false};
    attention.servers.imbalance = imbalance;
    attention.servers.nano_batches = static_cast<int>(options_.nano_batches);
    // Enough that memory decides nothing here: some copies of all rows.
    constexpr int64_t kCopies = 8;
    attention.servers.buffer_bytes = kCopies * 2 * options_.tokens_per_rank * options_.heads *
                                         options_.head_dim * size_of(DType::kF32) +
                                     (int64_t{1} << 26);
    attention.profile = cluster_.profiles.front();
    return attention;
  }

  Entry scheduled(const std::string& policy, const Documents& documents, double imbalance) {
    const SequenceCase one{.layout = TokenLayout::contiguous(documents.tokens(), 2),
                           .documents = documents,
                           .attention = attention(imbalance)};
    return {.policy = policy,
            .timer = std::make_unique<SequenceTimer>(world_, Context{.pool = &pool_}, one),
            .group = &world_,
            .imbalance = imbalance};
  }

  Entry perfect(const Documents& documents) {
    parallel::CoreAttentionOptions half = attention(kNoCadMoves);
    half.strategy = "ring";
    double share = 0.5;  // of all heads on both ranks
    if (half.heads.kv_heads % 2 == 0) {
      half.heads.kv_heads /= 2;
      half.heads.q_heads /= 2;
      share = 1;
    }
    const SequenceCase one{.layout = TokenLayout::contiguous(documents.tokens(), 1),
                           .documents = documents,
                           .attention = half};
    return {.policy = "perfect balance",
            .timer = std::make_unique<SequenceTimer>(*alone_, Context{.pool = &pool_}, one),
            .group = alone_.get(),
            .share = share};
  }

  PassFigures time(Entry& entry, SequencePass pass) {
    log_.forget();
    entry.timer->record(&log_);
    const GroupTiming time = entry.timer->time(pass, world_);
    entry.timer->record(nullptr);
    entry.bytes = time.moved_bytes;
    const double kernels = log_.processor(Activity::Kind::kCompute);
    const double busy = kernels + log_.processor(Activity::Kind::kCopy) + log_.polling();
    const double working =
        log_.seconds(Activity::Kind::kCompute) + log_.seconds(Activity::Kind::kCopy);
    const auto mean = [&](double mine) { return world_.sum(mine, kWhat) / world_.size(); };
    const auto most = [&](double mine) {
      return 1e-9 * static_cast<double>(world_.max(static_cast<int64_t>(1e9 * mine), kWhat));
    };
    return {.wall = entry.share * time.seconds,
            .busy = entry.share * mean(busy),
            .most_busy = entry.share * most(busy),
            .kernels = entry.share * mean(kernels),
            .blocked = entry.share * mean(log_.seconds(Activity::Kind::kWait)),
            .lost = entry.share * most(std::max(working - busy, 0.0))};
  }

  void run_case(const LengthMix& mix) {
    const Documents documents = mixed_documents(mix, 2 * options_.tokens_per_rank, 1, 1);
    std::vector<Entry> entries;
    entries.push_back(perfect(documents));
    entries.push_back(scheduled("fixed packing", documents, kNoCadMoves));
    entries.push_back(scheduled("ours", documents, options_.imbalance));
    for (const std::string& op : options_.ops) {
      const SequencePass pass = op == "forward" ? SequencePass::kForward : SequencePass::kBoth;
      for (Entry& entry : entries) {
        entry.passes.clear();
        if (entry.group == &world_) simulate(documents, pass, entry);
      }
      constexpr size_t kLeast = 5;
      double total = 0;
      while (total < options_.least_seconds || entries[0].passes.size() < kLeast) {
        for (Entry& entry : entries) {  // in turns
          entry.passes.push_back(time(entry, pass));
          total += entry.passes.back().wall;
        }
      }
      if (world_.rank() != 0) continue;
      for (const Entry& entry : entries) {
        print(mix, documents, op, entry, typical(entries[1].passes).wall,
              typical(entries[0].passes).wall);
      }
      std::fflush(stdout);
    }
    if (!options_.trace.empty()) write_trace(mix);
  }

  // The log is that of the last pass: ours, of the operation that --op names last.
  void write_trace(const LengthMix& mix) {
    const std::string path =
        absl::StrCat(options_.trace, ".", std::string(mix.name), ".rank", world_.rank(), ".json");
    std::optional<Error> error;
    std::ofstream out(path, std::ios::trunc);
    out << log_.chrome_trace(world_.rank());
    out.close();
    if (!out) {
      error = Error(ErrorCode::kEnvironment,
                    absl::StrCat("--trace: cannot write ", path, "; choose another PREFIX"));
    }
    world_.agree(error, kWhat);
  }

  // Also how long it takes to plan.
  void simulate(const Documents& documents, SequencePass pass, Entry& entry) {
    const parallel::CoreAttentionOptions options = attention(entry.imbalance);
    parallel::Problem problem{.layout = TokenLayout::contiguous(documents.tokens(), 2),
                              .documents = documents,
                              .mask = options.mask,
                              .heads = options.heads,
                              .servers = options.servers};
    problem.servers.dtype = options.dtype;
    problem.servers.profile = &cluster_.profiles.front();
    entry.simulated = 0;
    entry.planning = 0;
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      const auto begin = Clock::now();
      plan_disaggregated(problem, direction, world_.rank());
      entry.planning += std::chrono::duration<double>(Clock::now() - begin).count();
      if (direction == Direction::kBackward && pass == SequencePass::kForward) continue;
      const std::vector<parallel::Plan> plans = all_plans_disaggregated(problem, direction);
      const auto times = parallel::simulate(plans, cluster_,
                                            {.direction = direction,
                                             .heads = problem.heads,
                                             .dtype = options.dtype,
                                             .node_of = node_of_,
                                             .in_place = false});
      entry.simulated += std::ranges::max(times, {}, &parallel::RankTime::seconds).seconds;
    }
  }

  void print(const LengthMix& mix, const Documents& documents, const std::string& op,
             const Entry& entry, double fixed, double perfect) {
    const PassFigures figures = typical(entry.passes);
    const double wall = figures.wall, busy = figures.busy;
    const double balance = figures.most_busy / busy, idle = 100 * (1 - busy / wall);
    const double lost = 100 * figures.lost / wall;
    // Fixed packing may be balanced by chance: then there is nothing to gain.
    const double gained = fixed > perfect ? (fixed - wall) / (fixed - perfect) : 0;
    const double bytes = static_cast<double>(entry.bytes) / static_cast<double>(documents.tokens());
    if (options_.json) {
      const nlohmann::ordered_json json = {
          {"bench", "cad"},
          {"case",
           {{"op", op},
            {"mix", std::string(mix.name)},
            {"servers", 2},
            {"n", documents.tokens()},
            {"documents", documents.count()},
            {"policy", entry.policy},
            {"imbalance", options_.imbalance},
            {"nano_batches", options_.nano_batches},
            {"heads", options_.heads},
            {"kv_heads", options_.kv_heads},
            {"d", options_.head_dim},
            {"dtype", options_.dtype},
            {"threads", options_.threads},
            {"isa", std::string(kernels::instruction_set())}}},
          {"value", wall},
          {"unit", "s"},
          {"limit", perfect},
          {"limit_name", options_.kv_heads % 2 == 0
                             ? "both ranks with half of the heads each and no messages"
                             : "half the time of both ranks with all heads each and no messages"},
          {"ratio", perfect / wall},
          {"busy_seconds", busy},
          {"kernel_seconds", figures.kernels},
          {"blocked_seconds", figures.blocked},
          {"lost_percent", lost},
          {"busy_max_over_mean", balance},
          {"idle_percent", idle},
          {"gained_of_perfect", gained},
          {"simulated_seconds", entry.simulated},
          {"simulated_over_wall", entry.simulated / wall},
          {"planning_seconds", entry.planning},
          {"bytes_per_token_mean", bytes},
          {"planned_max_over_mean", entry.timer->imbalance()}};
      std::printf("%s\n", json.dump().c_str());
      return;
    }
    if (!header_) {
      std::printf(
          "| mix | op | policy | wall ms | busy ms | kernels ms | blocked ms | max/mean busy | "
          "idle "
          "%% | lost %% | gained of perfect | KB/token | simulated ms | simulated/wall | planning "
          "ms |\n"
          "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
      header_ = true;
    }
    const std::string simulated =
        entry.simulated > 0 ? absl::StrFormat("%.1f | %.3f | %.2f", 1e3 * entry.simulated,
                                              entry.simulated / wall, 1e3 * entry.planning)
                            : " | | ";
    std::printf(
        "%s\n",
        absl::StrFormat("| %s | %s | %s | %.1f | %.1f | %.1f | %.1f | %.3f | %.1f | %.1f | %.0f%% "
                        "| %.2f | %s |",
                        std::string(mix.name), op, entry.policy, 1e3 * wall, 1e3 * busy,
                        1e3 * figures.kernels, 1e3 * figures.blocked, balance, idle, lost,
                        100 * gained, 1e-3 * bytes, simulated)
            .c_str());
  }

  dist::Group& world_;
  const CadOptions options_;
  ThreadPool pool_;
  std::unique_ptr<dist::Group> alone_;
  std::vector<int> node_of_;
  parallel::Cluster cluster_;
  parallel::ActivityLog log_;
  bool header_ = false;
};

}  // namespace

void run_real_cad(dist::Group& world, const CadOptions& options) {
  if (world.size() != 2) {
    fail(ErrorCode::kConfig,
         absl::StrCat("bench cad --real times exactly 2 ranks, each on cores of its own, but has ",
                      world.size(), "; start it with mpirun -n 2 --bind-to core"));
  }
  RealCad(world, options).run();
}

}  // namespace longhaul::launch
