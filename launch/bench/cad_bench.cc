// `longhaul bench cad`: what core attention disaggregation makes of packed documents, beside what
// others do with them.
//
// Planned: loads, bytes and memory are exact and the same on every machine; only planning times are
// measured, and `simulated` is the slowest rank's time on a cluster with the options' figures
// (parallel/cost/simulate.h). Real (--real, exactly two ranks): one layer, timed.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/instruction_set.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/layout_mixes.h"
#include "launch/bench/sequence_timer.h"
#include "launch/cli/ranks.h"
#include "parallel/cost/choose.h"
#include "parallel/cost/measure.h"
#include "parallel/cost/simulate.h"
#include "parallel/server/schedule.h"

namespace longhaul::launch {

namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Problem;
using parallel::RunList;
using parallel::Schedule;
using parallel::TokenLayout;
using Clock = std::chrono::steady_clock;

constexpr double kNoMoves = 1e18;  // an imbalance that everything keeps to
constexpr int kMostContextRanks = 8;

struct Options {
  std::vector<std::string> mixes;
  std::vector<int64_t> servers = {8, 64, 512};
  int64_t tokens_per_rank = 65536, samples = 2;
  int64_t heads = 32, kv_heads = 8, head_dim = 128;
  std::string dtype = "bf16";
  double imbalance = 0.05;
  double tflops = 400, gigabytes = 50;  // of a rank, to simulate with
  int64_t simulated = 64;               // up to so many servers
  bool real = false;
  double least_seconds = 1;
  int64_t threads = 1, nano_batches = 1;
  bool json = false;
};

parallel::HeadShape shape(const Options& o) {
  return {
      .q_heads = o.heads, .kv_heads = o.kv_heads, .head_dim = o.head_dim, .value_dim = o.head_dim};
}
DType dtype(const Options& o) { return o.dtype == "bf16" ? DType::kBF16 : DType::kF32; }

// Groups of up to eight ranks share their samples: each document in zigzag over all of a group, as
// per-document context parallelism does.
TokenLayout context_parallel(const Documents& documents, int ranks) {
  const int width = std::min(ranks, kMostContextRanks);
  const TokenLayout groups = TokenLayout::contiguous(documents.tokens(), ranks / width);
  std::vector<RunList> runs(static_cast<size_t>(ranks));
  for (int g = 0; g < groups.ranks(); ++g) {
    const parallel::Run& part = groups.runs(g).front();
    const int64_t end = part.global_begin + part.length;
    for (int64_t at = part.global_begin; at < end;) {
      const int64_t next = std::min(end, documents.end(documents.at(at)));
      const TokenLayout one = TokenLayout::zigzag(next - at, width);
      for (int r = 0; r < width; ++r) {
        for (parallel::Run run : one.runs(r)) {
          run.global_begin += at;
          if (run.length > 0) runs[static_cast<size_t>(g * width + r)].push_back(run);
        }
      }
      at = next;
    }
  }
  return TokenLayout(documents.tokens(), std::move(runs));
}

// Of one sample, or the mean over samples.
struct Figures {
  double balance = 0;                // largest load / mean
  double bytes = 0, most_bytes = 0;  // a token of a rank, there and back; of the rank with most
  double memory = 0;                 // of the rank with most
  double seconds = 0;                // to plan
  double moves = 0;
  double simulated = 0;  // seconds; 0: not
};

struct Row {
  std::string policy;
  Figures sum;
  int64_t samples = 0;
  double mean(double Figures::*field) const { return sum.*field / static_cast<double>(samples); }
};

class PlannedBench {
 public:
  explicit PlannedBench(const Options& options) : options_(options) {}

  void run() {
    for (const LengthMix& mix : length_mixes()) {
      if (!options_.mixes.empty() &&
          std::ranges::find(options_.mixes, mix.name) == options_.mixes.end()) {
        continue;
      }
      for (const int64_t servers : options_.servers) run_case(mix, static_cast<int>(servers));
    }
  }

 private:
  template <class Make>
  Figures add(const std::string& policy, const Problem& problem, const Make& make) {
    const auto begin = Clock::now();
    const Schedule schedule = make(problem);
    Figures f;
    f.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const auto ranks = static_cast<double>(problem.layout.ranks());
    double load = 0;
    for (double l : schedule.load) {
      load += l / ranks;
      f.balance = std::max(f.balance, l);
    }
    f.balance /= load;
    const auto own = static_cast<double>(options_.tokens_per_rank);
    for (int64_t bytes : schedule.bytes) {
      f.bytes += static_cast<double>(bytes) / own / ranks;
      f.most_bytes = std::max(f.most_bytes, static_cast<double>(bytes) / own);
    }
    f.memory = static_cast<double>(std::ranges::max(schedule.memory));
    f.moves = static_cast<double>(schedule.moves);
    if (problem.layout.ranks() <= options_.simulated) f.simulated = simulate(problem, schedule);
    auto row = std::ranges::find(rows_, policy, &Row::policy);
    if (row == rows_.end()) row = rows_.insert(row, Row{.policy = policy, .sum = {}});
    for (double Figures::*field :
         {&Figures::balance, &Figures::bytes, &Figures::most_bytes, &Figures::memory,
          &Figures::seconds, &Figures::moves, &Figures::simulated}) {
      row->sum.*field += f.*field;
    }
    ++row->samples;
    return f;
  }

  double simulate(const Problem& problem, const Schedule& schedule) const {
    const double pair = 4 * static_cast<double>(options_.head_dim) / (1e12 * options_.tflops);
    parallel::Cluster cluster;
    cluster.within_node =
        parallel::Link{.seconds_per_message = 5e-6, .bytes_per_second = 1e9 * options_.gigabytes};
    cluster.between_nodes = cluster.within_node;
    cluster.memory_bytes_per_second = 1e12;
    cluster.profiles.push_back({.dtype = dtype(options_),
                                .head_dim = options_.head_dim,
                                .lengths = {128},
                                .forward = {pair},
                                .backward = {2.5 * pair}});
    std::vector<parallel::Plan> plans;
    for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
      plans.push_back(plan_tasks(problem, Direction::kForward, schedule.tasks, rank));
    }
    const auto times =
        parallel::simulate(plans, cluster,
                           {.direction = Direction::kForward,
                            .heads = problem.heads,
                            .dtype = dtype(options_),
                            .node_of = parallel::nodes_in_order(problem.layout.ranks(), 1),
                            .in_place = false});
    return std::ranges::max(times, {}, &parallel::RankTime::seconds).seconds;
  }

  void run_case(const LengthMix& mix, int servers) {
    rows_.clear();
    double count = 0;
    const int64_t tokens = options_.tokens_per_rank * servers;
    const auto ours = [](const Problem& p) { return schedule_tasks(p, Direction::kForward); };
    for (int64_t s = 0; s < options_.samples; ++s) {
      const Documents documents = mixed_documents(mix, tokens, 1, static_cast<uint64_t>(s) + 1);
      count += static_cast<double>(documents.count()) / static_cast<double>(options_.samples);
      const TokenLayout packed = TokenLayout::contiguous(tokens, servers);
      Problem problem{.layout = packed,
                      .documents = documents,
                      .mask = {.causal = true},
                      .heads = shape(options_)};
      problem.servers.dtype = dtype(options_);
      problem.servers.imbalance = kNoMoves;
      add("fixed packing", problem, ours);
      if (servers % std::min(servers, kMostContextRanks) == 0) {
        const TokenLayout spread = context_parallel(documents, servers);
        Problem context{.layout = spread,
                        .documents = documents,
                        .mask = problem.mask,
                        .heads = problem.heads,
                        .servers = problem.servers};
        add("per-document context parallel", context, ours);
      }
      problem.servers.imbalance = options_.imbalance;
      const Figures greedy = add("published greedy", problem, [](const Problem& p) {
        return published_greedy(p, Direction::kForward);
      });
      add("ours", problem, ours);
      problem.servers.imbalance = greedy.balance - 1;
      add("ours, as balanced as greedy", problem, ours);
    }
    for (const Row& row : rows_) print(mix, servers, count, row);
    std::fflush(stdout);
  }

  void print(const LengthMix& mix, int servers, double documents, const Row& row) {
    const double balance = row.mean(&Figures::balance);
    const double idle = 100 * (1 - 1 / balance);
    const bool simulated = servers <= options_.simulated;
    if (options_.json) {
      const nlohmann::ordered_json json = {
          {"bench", "cad"},
          {"case",
           {{"op", "plan"},
            {"mix", std::string(mix.name)},
            {"servers", servers},
            {"n", options_.tokens_per_rank * servers},
            {"documents", documents},
            {"samples", row.samples},
            {"policy", row.policy},
            {"imbalance", options_.imbalance},
            {"heads", options_.heads},
            {"kv_heads", options_.kv_heads},
            {"d", options_.head_dim},
            {"dtype", options_.dtype}}},
          {"value", balance},
          {"unit", "largest load / mean"},
          {"limit", 1.0},
          {"limit_name", "perfect balance"},
          {"ratio", 1 / balance},
          {"idle_percent", idle},
          {"bytes_per_token_mean", row.mean(&Figures::bytes)},
          {"bytes_per_token_max", row.mean(&Figures::most_bytes)},
          {"buffer_bytes_max", row.mean(&Figures::memory)},
          {"planning_seconds", row.mean(&Figures::seconds)},
          {"moves", row.mean(&Figures::moves)},
          {"simulated_seconds", simulated ? nlohmann::ordered_json(row.mean(&Figures::simulated))
                                          : nlohmann::ordered_json(nullptr)}};
      std::printf("%s\n", json.dump().c_str());
      return;
    }
    if (!header_) {
      std::printf(
          "| mix | servers | documents | policy | max/mean | idle %% | KB/token | most | buffer MB "
          "| planning ms | moves | simulated ms |\n"
          "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
      header_ = true;
    }
    const std::string time =
        simulated ? absl::StrFormat("%.2f", 1e3 * row.mean(&Figures::simulated)) : "";
    std::printf("%s\n", absl::StrFormat(
                            "| %s | %d | %.0f | %s | %.3f | %.1f | %.2f | %.2f | %.0f | %.2f | "
                            "%.0f | %s |",
                            std::string(mix.name), servers, documents, row.policy, balance, idle,
                            1e-3 * row.mean(&Figures::bytes), 1e-3 * row.mean(&Figures::most_bytes),
                            1e-6 * row.mean(&Figures::memory), 1e3 * row.mean(&Figures::seconds),
                            row.mean(&Figures::moves), time)
                            .c_str());
  }

  const Options& options_;
  std::vector<Row> rows_;
  bool header_ = false;
};

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

class RealBench {
 public:
  RealBench(dist::Group& world, const Options& options)
      : world_(world), options_(options), pool_(static_cast<int>(options.threads)) {}

  void run() {
    if (world_.size() != 2) {
      fail(
          ErrorCode::kConfig,
          absl::StrCat("bench cad --real times exactly 2 ranks, each on cores of its own, but has ",
                       world_.size(), "; start it with mpirun -n 2 --bind-to core"));
    }
    Arena none("nothing", 0);  // kernels of the host need no workspace
    const Context ctx{.pool = &pool_, .scratch = &none};
    profile_ = agreed(world_, parallel::measure_kernel(ctx, shape(options_), dtype(options_),
                                                       options_.tokens_per_rank)
                                  .profile);
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
    std::vector<double> seconds, busy, most_busy;
    int64_t bytes = 0;
  };

  void run_case(const LengthMix& mix) {
    const int64_t tokens = 2 * options_.tokens_per_rank;
    const Documents documents = mixed_documents(mix, tokens, 1, 1);
    std::vector<Entry> entries;
    for (const bool moves : {false, true}) {
      parallel::CoreAttentionOptions attention{
          .heads = shape(options_),
          .mask = {.causal = true},
          .dtype = dtype(options_),
          .scale = 1 / std::sqrt(static_cast<double>(options_.head_dim)),
          .strategy = "disaggregated",
          .in_place = false};
      attention.servers.imbalance = moves ? options_.imbalance : kNoMoves;
      attention.servers.nano_batches = static_cast<int>(options_.nano_batches);
      // Enough that memory decides nothing here: some copies of all rows.
      constexpr int64_t kCopies = 8;
      attention.servers.buffer_bytes =
          kCopies * tokens * options_.heads * options_.head_dim * size_of(DType::kF32) +
          (int64_t{1} << 22);
      attention.profile = profile_;
      const SequenceCase one{.layout = TokenLayout::contiguous(tokens, 2),
                             .documents = documents,
                             .attention = attention};
      entries.push_back(
          {.policy = moves ? "ours" : "fixed packing",
           .timer = std::make_unique<SequenceTimer>(world_, Context{.pool = &pool_}, one),
           .seconds = {},
           .busy = {},
           .most_busy = {}});
    }
    for (const SequencePass pass : {SequencePass::kForward, SequencePass::kBoth}) {
      for (Entry& entry : entries) entry.seconds = entry.busy = entry.most_busy = {};
      double total = 0;
      while (total < options_.least_seconds || entries[0].seconds.size() < 5) {
        for (Entry& entry : entries) {  // in turns
          const GroupTiming time = entry.timer->time(pass);
          entry.seconds.push_back(time.seconds);
          entry.busy.push_back(time.busy);
          entry.most_busy.push_back(time.most_busy);
          entry.bytes = time.moved_bytes;
          total += time.seconds;
        }
      }
      if (world_.rank() != 0) continue;
      const double fixed = median(entries[0].seconds), perfect = median(entries[0].busy);
      for (const Entry& entry : entries) {
        print(mix, documents, pass == SequencePass::kForward ? "forward" : "both", entry, fixed,
              perfect);
      }
      std::fflush(stdout);
    }
  }

  void print(const LengthMix& mix, const Documents& documents, const std::string& op,
             const Entry& entry, double fixed, double perfect) {
    const double seconds = median(entry.seconds), busy = median(entry.busy);
    const double balance = median(entry.most_busy) / busy, idle = 100 * (1 - busy / seconds);
    const double gained = fixed > perfect ? (fixed - seconds) / (fixed - perfect) : 0;
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
            {"heads", options_.heads},
            {"kv_heads", options_.kv_heads},
            {"d", options_.head_dim},
            {"dtype", options_.dtype},
            {"threads", options_.threads},
            {"isa", std::string(kernels::instruction_set())}}},
          {"value", seconds},
          {"unit", "s"},
          {"limit", perfect},
          {"limit_name", "mean of the ranks' busy seconds with fixed packing"},
          {"ratio", perfect / seconds},
          {"busy_max_over_mean", balance},
          {"idle_percent", idle},
          {"gained_of_perfect", gained},
          {"bytes_per_token_mean", bytes},
          {"planned_max_over_mean", entry.timer->imbalance()}};
      std::printf("%s\n", json.dump().c_str());
      return;
    }
    if (!header_) {
      std::printf(
          "| mix | op | policy | wall ms | busy ms | max/mean busy | planned | idle %% | gained of "
          "perfect | KB/token |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|\n");
      header_ = true;
    }
    std::printf("%s\n",
                absl::StrFormat("| %s | %s | %s | %.2f | %.2f | %.3f | %.3f | %.1f | %.0f%% | "
                                "%.2f |",
                                std::string(mix.name), op, entry.policy, 1e3 * seconds, 1e3 * busy,
                                balance, entry.timer->imbalance(), idle, 100 * gained, 1e-3 * bytes)
                    .c_str());
  }

  dist::Group& world_;
  const Options options_;
  ThreadPool pool_;
  parallel::KernelProfile profile_;
  bool header_ = false;
};

int run(const Options& o) {
  std::vector<std::string> mixes;
  for (const LengthMix& mix : length_mixes()) mixes.emplace_back(mix.name);
  check_known("--mix", o.mixes, mixes);
  check_known("--dtype", std::span(&o.dtype, 1), {"f32", "bf16"});
  check_positive("--servers", o.servers);
  const std::pair<const char*, int64_t> positive[] = {
      {"--tokens", o.tokens_per_rank}, {"--samples", o.samples}, {"--heads", o.heads},
      {"--kv-heads", o.kv_heads},      {"--d", o.head_dim},      {"--threads", o.threads}};
  for (const auto& [option, value] : positive) check_positive(option, std::span(&value, 1));
  if (o.heads % o.kv_heads != 0) {
    fail(ErrorCode::kConfig, absl::StrCat("--kv-heads ", o.kv_heads, " does not divide --heads ",
                                          o.heads, "; choose a divisor"));
  }
  for (const auto& [option, value] :
       {std::pair("--imbalance", o.imbalance), std::pair("--seconds", o.least_seconds)}) {
    if (!(value >= 0)) fail(ErrorCode::kConfig, absl::StrCat(option, " ", value, ": 0 or more"));
  }
  for (const auto& [option, value] :
       {std::pair("--tflops", o.tflops), std::pair("--gigabytes", o.gigabytes)}) {
    if (!(value > 0)) fail(ErrorCode::kConfig, absl::StrCat(option, " ", value, ": above 0"));
  }
  if (o.nano_batches < 1 || o.nano_batches > 64) {
    fail(ErrorCode::kConfig, absl::StrCat("--nano-batches ", o.nano_batches, ": 1 to 64"));
  }
  for (const int64_t servers : o.servers) {
    if (servers > 4096 || o.tokens_per_rank > (int64_t{1} << 40) / servers) {
      fail(ErrorCode::kConfig,
           absl::StrCat("--servers ", servers, " x --tokens ", o.tokens_per_rank,
                        ": at most 4096 servers and 2^40 tokens"));
    }
  }
  if (o.real) {
    return run_ranks(0, std::chrono::minutes(10),
                     [&](dist::Group& world) { RealBench(world, o).run(); });
  }
  PlannedBench(o).run();
  return 0;
}

}  // namespace

Action add_cad_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  const auto number = [&](const char* option, auto& value, const char* help) {
    app.add_option(option, value, help)->capture_default_str()->type_name("N");
  };
  add_list(app, "--mix", o->mixes, "Mixes of document lengths: uniform, prolong, wlb, long");
  add_list(app, "--servers", o->servers, "Ranks that share their attention");
  number("--tokens", o->tokens_per_rank, "Tokens of a rank");
  number("--samples", o->samples, "Samples a case: means");
  number("--heads", o->heads, "Query heads");
  number("--kv-heads", o->kv_heads, "Key and value heads");
  number("--d", o->head_dim, "Head dimension");
  number("--dtype", o->dtype, "f32 or bf16");
  number("--imbalance", o->imbalance, "What the most loaded server may have above the mean");
  number("--tflops", o->tflops, "TFLOP/s of a rank, to simulate with");
  number("--gigabytes", o->gigabytes, "GB/s of a rank in each direction, to simulate with");
  number("--simulated", o->simulated, "Cases with up to so many servers are simulated");
  app.add_flag("--real", o->real, "Time one layer on exactly two ranks (mpirun -n 2)");
  number("--seconds", o->least_seconds, "Seconds to time a case for, with --real");
  number("--threads", o->threads, "Threads of a rank, with --real");
  number("--nano-batches", o->nano_batches, "Rounds of tasks, with --real");
  app.add_flag("--json", o->json, "One JSON object a line instead of the table");
  return [o] { return run(*o); };
}

}  // namespace longhaul::launch
