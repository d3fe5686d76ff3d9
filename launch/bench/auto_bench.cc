// `longhaul bench auto`: how much slower than the fastest strategy the one is that "auto" takes.
//
//   regret = median time of the chosen strategy / median time of the fastest - 1
//
// over a grid of lengths and masks, forward and backward. Costs are measured once, as `train` does;
// then every strategy that it may take and that does not refuse is timed on the same operands, all
// in turns, so that what disturbs one disturbs all. Strategies that make the same plans are timed
// once, as the first of them: the luckiest of many equals would be none to beat.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/layout_mixes.h"
#include "launch/bench/packed_documents.h"
#include "launch/bench/sequence_timer.h"
#include "launch/cli/ranks.h"
#include "launch/config/cluster.h"
#include "parallel/cost/measure.h"

namespace longhaul::launch {

namespace {

using Json = nlohmann::ordered_json;
using parallel::Direction;

struct Options {
  std::vector<int64_t> lengths = {1024, 4096, 16384};
  std::vector<std::string> masks = {"causal", "full", "window", "packed"};
  std::vector<std::string> dtypes = {"f32"};
  std::string layout = "zigzag";
  std::string cluster;  // path; empty: measured
  int64_t heads = 8;
  int64_t kv_heads = 2;
  int64_t head_dim = 64;
  int64_t window = 512;
  int64_t prefix = 512;
  int64_t mean_document = 512;
  std::string mix;      // of documents; empty: log-normal lengths of that mean
  int64_t ranks = 0;    // as threads; 0: as launched
  int64_t threads = 0;  // of a rank; 0: its share of the cores
  double least_seconds = 0.2;
  int64_t least_rounds = 5;
  bool moved = false;
  bool json = false;
};

const std::vector<std::string> kMasks = {"causal", "full",   "window",
                                         "prefix", "packed", "packed-window"};

void check(const Options& o) {
  check_known("--mask", o.masks, kMasks);
  std::vector<std::string> mixes;
  for (const LengthMix& mix : length_mixes()) mixes.emplace_back(mix.name);
  if (!o.mix.empty()) check_known("--mix", std::span(&o.mix, 1), mixes);
  check_known("--dtype", o.dtypes, {"f32", "bf16"});
  std::vector<std::string> layouts;
  for (const auto& kind : parallel::layout_kinds()) layouts.emplace_back(kind.name);
  check_known("--layout", std::span(&o.layout, 1), layouts);
  check_positive("--n", o.lengths);
  const std::pair<const char*, int64_t> positive[] = {{"--heads", o.heads},
                                                      {"--kv-heads", o.kv_heads},
                                                      {"--d", o.head_dim},
                                                      {"--window", o.window},
                                                      {"--prefix", o.prefix},
                                                      {"--rounds", o.least_rounds},
                                                      {"--mean-document", o.mean_document}};
  for (const auto& [option, value] : positive) check_positive(option, std::span(&value, 1));
  if (o.heads % o.kv_heads != 0) {
    fail(ErrorCode::kConfig, absl::StrCat("--kv-heads ", o.kv_heads, " does not divide --heads ",
                                          o.heads, "; choose a divisor"));
  }
  check_timing_over_ranks(o.ranks, o.threads, o.least_seconds);
}

struct Timed {
  std::string strategy;
  std::vector<std::string> same{};  // strategies that make the same plans
  SequenceTimer* timer = nullptr;
  double predicted = 0;
  std::vector<double> seconds{};
};

struct Case {
  std::string dtype, mask;
  int64_t tokens = 0;
};

class AutoBench {
 public:
  AutoBench(dist::Group& world, const Options& options)
      : world_(world),
        options_(options),
        pool_(options.threads > 0 ? static_cast<int>(options.threads)
                                  : threads_per_rank(static_cast<int>(options.ranks))),
        node_of_(parallel::nodes_of(world)) {}

  void run() {
    for (const std::string& dtype : options_.dtypes) {
      const parallel::Cluster cluster = costs(dtype);
      for (const std::string& mask : options_.masks) {
        for (int64_t tokens : options_.lengths) measure({dtype, mask, tokens}, cluster);
      }
    }
    summarise();
  }

 private:
  Context context() { return {.pool = &pool_, .scratch = &none_}; }

  parallel::CoreAttentionOptions attention(const Case& c, const std::string& strategy) const {
    const Options& o = options_;
    return {.heads = {.q_heads = o.heads,
                      .kv_heads = o.kv_heads,
                      .head_dim = o.head_dim,
                      .value_dim = o.head_dim},
            .mask = {.causal = c.mask != "full",
                     .window = c.mask.ends_with("window") ? o.window : 0,
                     .prefix = c.mask == "prefix" ? o.prefix : 0},
            .dtype = c.dtype == "bf16" ? DType::kBF16 : DType::kF32,
            .scale = 1 / std::sqrt(static_cast<double>(o.head_dim)),
            .strategy = strategy,
            .in_place = !o.moved,
            .ranks_per_node = parallel::ranks_per_node(node_of_)};
  }

  // Rank 0's, or as given; the same on all ranks.
  parallel::Cluster costs(const std::string& dtype) {
    const parallel::CoreAttentionOptions options = attention({dtype, "", 0}, "");
    const int64_t rows = *std::ranges::max_element(options_.lengths) / world_.size();
    parallel::Cluster mine;
    if (options_.cluster.empty()) {
      mine = parallel::measure_cluster(world_, context(), node_of_, options.heads, options.dtype,
                                       std::max<int64_t>(rows, 1));
    } else {
      world_.agree(attempt([&] {
                     mine = load_cluster(options_.cluster);
                     if (mine.profile(options.dtype, options.heads.head_dim) != nullptr) return;
                     fail(ErrorCode::kConfig,
                          absl::StrCat(options_.cluster, " has no kernels of ", dtype,
                                       " with head_dim ", options.heads.head_dim,
                                       "; add them by `longhaul bench comm --write`"));
                   }),
                   "reading the cluster description");
    }
    return parse_cluster(world_.broadcast(list_text(to_message(mine)), 0, "costs"), "rank 0's");
  }

  parallel::Documents documents_of(const Case& c) const {
    if (!c.mask.starts_with("packed")) return parallel::Documents::whole(c.tokens);
    if (options_.mix.empty()) return packed_documents(c.tokens, options_.mean_document);
    constexpr uint64_t kSeed = 1;
    return mixed_documents(*std::ranges::find(length_mixes(), options_.mix, &LengthMix::name),
                           c.tokens, 1, kSeed);
  }

  void measure(const Case& c, const parallel::Cluster& cluster) {
    const auto kinds = parallel::layout_kinds();
    const auto kind = std::ranges::find(kinds, options_.layout, &parallel::LayoutKind::name);
    const parallel::TokenLayout layout = kind->make(c.tokens, world_.size());
    const parallel::Documents documents = documents_of(c);
    const parallel::CoreAttentionOptions any = attention(c, "");
    const parallel::Problem problem{.layout = layout,
                                    .documents = documents,
                                    .mask = any.mask,
                                    .heads = any.heads,
                                    .ranks_per_node = any.ranks_per_node};
    std::map<std::string, SequenceTimer> timers;
    for (const auto& [direction, pass] :
         {std::pair(Direction::kForward, SequencePass::kForward),
          std::pair(Direction::kBackward, SequencePass::kBackward)}) {
      const parallel::Choice choice =
          parallel::choose(problem, direction, any.dtype, cluster, node_of_, any.in_place);
      std::vector<Timed> timed = contenders(problem, direction);
      for (Timed& one : timed) {
        one.predicted =
            std::ranges::find(choice.candidates, one.strategy, &parallel::Candidate::strategy)
                ->seconds;
        const SequenceCase sequence{
            .layout = layout, .documents = documents, .attention = attention(c, one.strategy)};
        one.timer = &timers.try_emplace(one.strategy, world_, context(), sequence).first->second;
      }
      time(timed, pass);
      print(c, direction, choice.winner().strategy, timed);
    }
  }

  // Those that auto may take and that do not refuse, without timers.
  static std::vector<Timed> contenders(const parallel::Problem& problem, Direction direction) {
    std::vector<Timed> timed;
    std::vector<std::vector<parallel::Plan>> plans;  // of all ranks
    for (const parallel::Strategy& strategy : parallel::strategies()) {
      if (!strategy.only_by_name.empty() || strategy.refusal(problem)) continue;
      std::vector<parallel::Plan> mine;
      for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
        mine.push_back(strategy.plan(problem, direction, rank));
      }
      const std::string name(strategy.name);
      if (const auto equal = std::ranges::find(plans, mine); equal != plans.end()) {
        timed[static_cast<size_t>(equal - plans.begin())].same.push_back(name);
        continue;
      }
      timed.push_back({.strategy = name});
      plans.push_back(std::move(mine));
    }
    return timed;
  }

  // All ranks see the same times, so they stop after the same round.
  void time(std::vector<Timed>& timed, SequencePass pass) const {
    const auto rounds = static_cast<size_t>(options_.least_rounds);
    for (Timed& one : timed) one.seconds.clear();
    double total = 0;
    for (size_t round = 0;
         round < rounds || total < options_.least_seconds * static_cast<double>(timed.size());
         ++round) {
      for (Timed& one : timed) {
        one.seconds.push_back(one.timer->time(pass).seconds);
        total += one.seconds.back();
      }
    }
  }

  void print(const Case& c, Direction direction, const std::string& chosen,
             const std::vector<Timed>& timed) {
    const auto seconds = [](const Timed& one) { return median(one.seconds); };
    const Timed& best = *std::ranges::min_element(timed, {}, seconds);
    const Timed& taken = *std::ranges::find_if(timed, [&](const Timed& one) {
      return one.strategy == chosen || std::ranges::find(one.same, chosen) != one.same.end();
    });
    const double regret = seconds(taken) / seconds(best) - 1;
    regrets_.push_back(regret);
    if (world_.rank() != 0) return;
    const std::string op = direction == Direction::kForward ? "forward" : "backward";
    if (!options_.json) {
      if (regrets_.size() == 1) {
        std::printf("# %d ranks, %d threads each, %s; heads %s of %s; keys %s\n", world_.size(),
                    pool_.threads(), options_.layout.c_str(),
                    absl::StrCat(options_.heads, "/", options_.kv_heads).c_str(),
                    absl::StrCat(options_.head_dim).c_str(),
                    options_.moved ? "moved" : "read in place");
        std::printf("%-8s %-5s %-13s %7s %-12s %9s %9s %-12s %9s %7s\n", "op", "dtype", "mask", "n",
                    "chosen", "predicted", "ms", "fastest", "ms", "regret");
      }
      std::printf(
          "%s\n",
          absl::StrFormat("%-8s %-5s %-13s %7d %-12s %9.3f %9.3f %-12s %9.3f %6.1f%%", op, c.dtype,
                          c.mask, c.tokens, chosen, 1e3 * taken.predicted, 1e3 * seconds(taken),
                          best.strategy, 1e3 * seconds(best), 100 * regret)
              .c_str());
      std::fflush(stdout);
      return;
    }
    Json all = Json::object();
    for (const Timed& one : timed) {
      all[one.strategy] = {
          {"seconds", seconds(one)}, {"predicted_seconds", one.predicted}, {"same", one.same}};
    }
    const Json json = {{"bench", "auto"},
                       {"case", description(op, c)},
                       {"value", 1e3 * seconds(taken)},
                       {"unit", "ms"},
                       {"limit", 1e3 * seconds(best)},
                       {"limit_name", "the fastest strategy"},
                       {"ratio", seconds(best) / seconds(taken)},
                       {"regret", regret},
                       {"chosen", chosen},
                       {"fastest", best.strategy},
                       {"repetitions", taken.seconds.size()},
                       {"strategies", all}};
    std::printf("%s\n", json.dump().c_str());
    std::fflush(stdout);
  }

  Json description(const std::string& op, const Case& c) const {
    const Options& o = options_;
    return {{"op", op},
            {"dtype", c.dtype},
            {"d", o.head_dim},
            {"n", c.tokens},
            {"mask", c.mask},
            {"heads", o.heads},
            {"kv_heads", o.kv_heads},
            {"window", o.window},
            {"prefix", o.prefix},
            {"documents", o.mix.empty() ? absl::StrCat("log-normal ", o.mean_document) : o.mix},
            {"layout", o.layout},
            {"in_place", !o.moved},
            {"ranks", world_.size()},
            {"threads", pool_.threads()}};
  }

  void summarise() {
    if (world_.rank() != 0) return;
    const double middle = median(regrets_);
    const double worst = *std::ranges::max_element(regrets_);
    if (options_.json) {
      const Json json = {
          {"bench", "auto"},         {"case", {{"op", "median_regret"}, {"ranks", world_.size()}}},
          {"value", middle},         {"unit", "regret"},
          {"limit", 0.03},           {"limit_name", "target"},
          {"ratio", middle / 0.03},  {"worst", worst},
          {"cases", regrets_.size()}};
      std::printf("%s\n", json.dump().c_str());
    } else {
      std::printf("regret over %d cases: median %.1f%% (target 3%%), worst %.1f%%\n",
                  static_cast<int>(regrets_.size()), 100 * middle, 100 * worst);
    }
    std::fflush(stdout);
  }

  dist::Group& world_;
  const Options options_;
  ThreadPool pool_;
  Arena none_{"nothing", 0, kCpu};
  std::vector<int> node_of_;
  std::vector<double> regrets_;
};

int run(const Options& options) {
  check(options);
  return run_ranks(static_cast<int>(options.ranks), std::chrono::minutes(10),
                   [&](dist::Group& world) { AutoBench(world, options).run(); });
}

}  // namespace

Action add_auto_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  const auto number = [&](const char* name, int64_t& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str()->type_name("N");
  };
  app.add_option("--ranks", o->ranks, "Ranks as threads of this process, without MPI")
      ->type_name("N");
  number("--threads", o->threads, "Threads of a rank; 0: its share of the cores");
  add_list(app, "--n", o->lengths, "Tokens of a sample");
  add_list(app, "--mask", o->masks, absl::StrJoin(kMasks, ", "));
  add_list(app, "--dtype", o->dtypes, "f32, bf16");
  app.add_option("--layout", o->layout, "A layout")->capture_default_str()->type_name("NAME");
  app.add_option("--cluster", o->cluster, "A cluster description, instead of measuring")
      ->type_name("FILE");
  number("--heads", o->heads, "Query heads");
  number("--kv-heads", o->kv_heads, "Key and value heads");
  number("--d", o->head_dim, "Head dimension");
  number("--window", o->window, "Keys that a query of the masks `window`, `packed-window` sees");
  number("--prefix", o->prefix, "First tokens that all see, of the mask `prefix`");
  number("--mean-document", o->mean_document, "Mean tokens of a document of the masks `packed`");
  app.add_option("--mix", o->mix, "Lengths of these documents, as of `bench layout`, instead")
      ->type_name("NAME");
  number("--rounds", o->least_rounds, "Time each strategy so often, or more often");
  app.add_option("--seconds", o->least_seconds, "Time each strategy for so long, or longer")
      ->capture_default_str()
      ->type_name("S");
  app.add_flag("--moved", o->moved, "Move keys and values also within a node");
  app.add_flag("--json", o->json, "One JSON object a line instead of the table");
  return [o] { return run(*o); };
}

}  // namespace longhaul::launch
