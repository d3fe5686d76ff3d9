// `longhaul bench cad`: what core attention disaggregation makes of packed documents, beside what
// others do with them.
//
// Planned: forward. Loads and bytes are exact, buffers an upper bound, all the same on every
// machine; backward, whose operands and results are larger, has a schedule of its own and needs
// larger buffers. Only planning times are measured, and `simulated` is the slowest rank's time on a
// cluster with the options' figures (parallel/cost/simulate.h). Real (--real, exactly two ranks):
// one layer, timed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/bench/cad_bench.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/layout_mixes.h"
#include "launch/cli/ranks.h"
#include "parallel/cost/choose.h"
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
using Options = CadOptions;
using Clock = std::chrono::steady_clock;

constexpr int kMostContextRanks = 8;

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
    cluster.profiles.push_back({.dtype = cad_dtype(options_),
                                .head_dim = options_.head_dim,
                                .lengths = {128},
                                .forward = {pair},
                                .backward = {}});
    std::vector<parallel::Plan> plans;
    for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
      plans.push_back(plan_tasks(problem, Direction::kForward, schedule.tasks, rank));
    }
    const auto times =
        parallel::simulate(plans, cluster,
                           {.direction = Direction::kForward,
                            .heads = problem.heads,
                            .dtype = cad_dtype(options_),
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
                      .heads = cad_heads(options_)};
      problem.servers.dtype = cad_dtype(options_);
      problem.servers.imbalance = kNoCadMoves;
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
           {{"op", "plan forward"},
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
          "| mix | servers | documents | policy | max/mean | idle %% | forward KB/token | most "
          "| forward buffer MB | planning ms | moves | simulated ms |\n"
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

int run(const Options& o) {
  std::vector<std::string> mixes;
  for (const LengthMix& mix : length_mixes()) mixes.emplace_back(mix.name);
  check_known("--mix", o.mixes, mixes);
  check_known("--op", o.ops, {"forward", "both"});
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
  if (!o.trace.empty() && !o.real) {
    fail(ErrorCode::kConfig, "--trace is of what ran: give --real, too");
  }
  if (o.real) {
    return run_ranks(0, std::chrono::minutes(10),
                     [&](dist::Group& world) { run_real_cad(world, o); });
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
  add_list(app, "--op", o->ops, "With --real: forward, both (forward and backward)");
  number("--seconds", o->least_seconds, "Seconds to time a case for, with --real");
  number("--threads", o->threads, "Threads of a rank, with --real");
  number("--nano-batches", o->nano_batches, "Rounds of tasks, with --real");
  app.add_option(
         "--trace", o->trace,
         "With --real: a trace of each rank's last pass, ours of the last --op, for Chrome or "
         "Perfetto, to PREFIX.MIX.rankN.json")
      ->type_name("PREFIX");
  app.add_flag("--json", o->json, "One JSON object a line instead of the table");
  return [o] { return run(*o); };
}

}  // namespace longhaul::launch
