// `longhaul bench sequence`: one layer of core attention over all ranks, beside what the kernel
// alone reaches on the same machine at the same time.
//
//   ratio = FLOPs a second of all ranks / (one thread's, while every thread of every rank runs the
//           kernel on a block of its own, x threads x ranks)
//
// A block is one causal triangle with a thread's share of the work, whatever the mask: what
// windows, documents, several segments, imbalance and communication cost shows in the ratio. The
// limit and all strategies are timed in turns, so that what disturbs one disturbs all; medians
// count.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/instruction_set.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/loaded_kernel.h"
#include "launch/bench/packed_documents.h"
#include "launch/bench/sequence_timer.h"
#include "launch/cli/ranks.h"
#include "launch/train/metrics.h"
#include "parallel/plan/strategy.h"

namespace longhaul::launch {

namespace {

constexpr double kDrift = 0.05;
constexpr size_t kLeastRepetitions = 5;

struct Options {
  std::vector<std::string> strategies;  // empty: all
  std::vector<std::string> layouts = {"zigzag"};
  std::vector<int64_t> lengths = {4096, 16384};
  std::vector<std::string> masks = {"causal", "window", "packed"};
  std::vector<std::string> ops = {"forward", "both"};
  std::vector<std::string> dtypes = {"f32"};
  int64_t heads = 4;
  int64_t kv_heads = 0;  // 0: as many as heads
  int64_t head_dim = 64;
  int64_t window = 1024;
  int64_t mean_document = 2048;
  int64_t ranks_per_node = 1;
  double row_price = 0;  // of layout balanced
  int64_t ranks = 0;     // as threads; 0: as launched
  int64_t threads = 0;   // of a rank; 0: its share of the cores
  double least_seconds = 0.4;
  bool moved = false;
  bool json = false;
};

template <class Table>
std::vector<std::string> names(const Table& table) {
  std::vector<std::string> result;
  for (const auto& row : table) result.emplace_back(row.name);
  return result;
}

void check(const Options& o) {
  check_known("--strategy", o.strategies, names(parallel::strategies()));
  check_known("--layout", o.layouts, names(parallel::layout_kinds()));
  check_known("--mask", o.masks, {"causal", "full", "window", "packed"});
  check_known("--op", o.ops, {"forward", "backward", "both"});
  check_known("--dtype", o.dtypes, {"f32", "bf16"});
  check_positive("--n", o.lengths);
  const std::pair<const char*, int64_t> positive[] = {{"--heads", o.heads},
                                                      {"--d", o.head_dim},
                                                      {"--window", o.window},
                                                      {"--mean-document", o.mean_document},
                                                      {"--ranks-per-node", o.ranks_per_node}};
  for (const auto& [option, value] : positive) check_positive(option, std::span(&value, 1));
  if (o.kv_heads < 0 || (o.kv_heads > 0 && o.heads % o.kv_heads != 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("--kv-heads ", o.kv_heads, " does not divide --heads ",
                                          o.heads, "; choose a divisor, or 0 for as many"));
  }
  if (!(o.row_price >= 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("--row-price ", o.row_price, ": 0 or more"));
  }
  check_timing_over_ranks(o.ranks, o.threads, o.least_seconds);
}

SequencePass pass_of(const std::string& op) {
  if (op == "forward") return SequencePass::kForward;
  return op == "backward" ? SequencePass::kBackward : SequencePass::kBoth;
}

// FLOPs of a pair and query head: two products forward, five backward.
double flops_per_pair(SequencePass pass, int64_t head_dim) {
  const int64_t forward = 4 * head_dim, backward = 10 * head_dim;
  return static_cast<double>(pass == SequencePass::kForward    ? forward
                             : pass == SequencePass::kBackward ? backward
                                                               : forward + backward);
}

// One strategy on one layout, of a group of cases that are timed in turns.
struct Entry {
  std::string strategy, layout;
  std::unique_ptr<SequenceTimer> timer;
  std::vector<double> seconds, waited;
  GroupTiming last;
};

struct Shared {  // what the entries of a group have in common
  std::string op, dtype, mask;
  int64_t tokens = 0;
};

class SequenceBench {
 public:
  SequenceBench(dist::Group& world, const Options& options)
      : world_(world),
        options_(options),
        pool_(options.threads > 0 ? static_cast<int>(options.threads)
                                  : threads_per_rank(static_cast<int>(options.ranks))) {}

  void run() {
    for (const std::string& dtype : options_.dtypes) {
      for (const std::string& mask : options_.masks) {
        for (const int64_t tokens : options_.lengths) {
          std::vector<Entry> entries = make_entries(dtype, mask, tokens);
          if (entries.empty()) continue;
          LoadedKernel kernel(world_, context(), attention_options(dtype, mask, ""),
                              entries.front().timer->pairs());
          for (const std::string& op : options_.ops) {
            measure_group(entries, kernel, {op, dtype, mask, tokens});
          }
        }
      }
    }
  }

 private:
  Context context() { return {.pool = &pool_}; }

  parallel::CoreAttentionOptions attention_options(const std::string& dtype,
                                                   const std::string& mask,
                                                   const std::string& strategy) const {
    const Options& o = options_;
    return {.heads = {.q_heads = o.heads,
                      .kv_heads = o.kv_heads > 0 ? o.kv_heads : o.heads,
                      .head_dim = o.head_dim,
                      .value_dim = o.head_dim},
            .mask = {.causal = mask != "full", .window = mask == "window" ? o.window : 0},
            .dtype = dtype == "bf16" ? DType::kBF16 : DType::kF32,
            .scale = 1 / std::sqrt(static_cast<double>(o.head_dim)),
            .strategy = strategy,
            .in_place = !o.moved,
            .ranks_per_node = static_cast<int>(o.ranks_per_node)};
  }

  // What a strategy refuses is said and left out.
  std::vector<Entry> make_entries(const std::string& dtype, const std::string& mask,
                                  int64_t tokens) {
    const parallel::Documents documents = mask == "packed"
                                              ? packed_documents(tokens, options_.mean_document)
                                              : parallel::Documents::whole(tokens);
    const std::vector<std::string> strategies =
        options_.strategies.empty() ? names(parallel::strategies()) : options_.strategies;
    std::vector<Entry> entries;
    for (const std::string& layout_name : options_.layouts) {
      for (const std::string& strategy : strategies) {
        const auto kinds = parallel::layout_kinds();
        const auto kind = std::ranges::find(kinds, layout_name, &parallel::LayoutKind::name);
        const parallel::CoreAttentionOptions attention = attention_options(dtype, mask, strategy);
        const SequenceCase one{.layout = kind->of_sample(documents, attention.mask, world_.size(),
                                                         {.row_price = options_.row_price}),
                               .documents = documents,
                               .attention = attention};
        const auto why =
            parallel::strategy(strategy).refusal({.layout = one.layout,
                                                  .documents = one.documents,
                                                  .mask = one.attention.mask,
                                                  .heads = one.attention.heads,
                                                  .ranks_per_node = one.attention.ranks_per_node});
        if (why) {
          if (world_.rank() == 0) std::fprintf(stderr, "# %s\n", why->c_str());
          continue;
        }
        entries.push_back({.strategy = strategy,
                           .layout = layout_name,
                           .timer = std::make_unique<SequenceTimer>(world_, context(), one),
                           .seconds = {},
                           .waited = {},
                           .last = {}});
      }
    }
    return entries;
  }

  // All ranks see the same times, so they stop after the same round.
  struct Limit {
    double rate = 0;  // pairs a second
    double drift = 0;
  };
  Limit measure_once(std::vector<Entry>& entries, LoadedKernel& kernel, SequencePass pass) const {
    for (Entry& entry : entries) {
      entry.seconds.clear();
      entry.waited.clear();
    }
    std::vector<double> rates{kernel.time(pass)};
    double fewest = 0;  // seconds that an entry was timed for
    while (rates.size() <= kLeastRepetitions || fewest < options_.least_seconds) {
      fewest = 1e300;
      for (Entry& entry : entries) {
        entry.last = entry.timer->time(pass);
        entry.seconds.push_back(entry.last.seconds);
        entry.waited.push_back(entry.last.waited);
        double total = 0;
        for (double seconds : entry.seconds) total += seconds;
        fewest = std::min(fewest, total);
      }
      rates.push_back(kernel.time(pass));
    }
    const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
    const double early = median(std::span(rates.begin(), middle)),
                 late = median(std::span(middle, rates.end()));
    return {median(rates), std::abs(late - early) / std::max(late, early)};
  }

  void measure_group(std::vector<Entry>& entries, LoadedKernel& kernel, const Shared& shared) {
    const SequencePass pass = pass_of(shared.op);
    Limit limit = measure_once(entries, kernel, pass);
    for (int again = 0; again < 2 && limit.drift > kDrift; ++again) {
      limit = measure_once(entries, kernel, pass);
    }
    if (world_.rank() != 0) return;
    for (const Entry& entry : entries) {
      if (options_.json) {
        print_json(entry, limit, shared);
      } else {
        print_row(entry, limit, shared);
      }
    }
    std::fflush(stdout);
  }

  void print_json(const Entry& entry, const Limit& limit, const Shared& shared) const {
    const Options& o = options_;
    const double flops = flops_per_pair(pass_of(shared.op), o.head_dim);
    const double seconds = median(entry.seconds);
    const double rate = static_cast<double>(entry.timer->pairs()) / seconds;
    const nlohmann::ordered_json json = {
        {"bench", "sequence"},
        {"case",
         {{"op", shared.op},
          {"dtype", shared.dtype},
          {"d", o.head_dim},
          {"n", shared.tokens},
          {"mask", shared.mask},
          {"heads", o.heads},
          {"kv_heads", o.kv_heads > 0 ? o.kv_heads : o.heads},
          {"strategy", entry.strategy},
          {"layout", entry.layout},
          {"in_place", !o.moved},
          {"ranks", world_.size()},
          {"threads", pool_.threads()},
          {"isa", std::string(kernels::instruction_set())}}},
        {"value", rate * flops / 1e9},
        {"unit", "GFLOP/s"},
        {"limit", limit.rate * flops / 1e9},
        {"limit_name", "the kernel alone on every thread of every rank"},
        {"ratio", rate / limit.rate},
        {"seconds", seconds},
        {"repetitions", entry.seconds.size()},
        {"limit_drift", limit.drift},
        {"waited_seconds", median(entry.waited)},
        {"moved_bytes", entry.last.moved_bytes},
        {"in_place_bytes", entry.last.in_place_bytes},
        {"imbalance", entry.timer->imbalance()}};
    std::printf("%s\n", json.dump().c_str());
  }

  void print_row(const Entry& entry, const Limit& limit, const Shared& shared) {
    const Options& o = options_;
    if (!header_printed_) {
      header_printed_ = true;
      std::printf("# %d ranks, %d threads each, %s; heads %s/%s of %s\n", world_.size(),
                  pool_.threads(), std::string(kernels::instruction_set()).c_str(),
                  std::to_string(o.heads).c_str(),
                  std::to_string(o.kv_heads > 0 ? o.kv_heads : o.heads).c_str(),
                  std::to_string(o.head_dim).c_str());
      std::printf("%-8s %-5s %-6s %7s %-12s %-10s %10s %8s %8s %6s %7s %9s %9s %9s\n", "op",
                  "dtype", "mask", "n", "strategy", "layout", "ms", "GFLOP/s", "limit", "ratio",
                  "waited", "moved", "in place", "imbalance");
    }
    const double flops = flops_per_pair(pass_of(shared.op), o.head_dim);
    const double seconds = median(entry.seconds);
    const double rate = static_cast<double>(entry.timer->pairs()) / seconds;
    std::printf(
        "%s\n",
        absl::StrFormat(
            "%-8s %-5s %-6s %7d %-12s %-10s %10.3f %8.1f %8.1f %5.1f%% %6.1f%% %9s %9s "
            "%9.3f%s",
            shared.op, shared.dtype, shared.mask, shared.tokens, entry.strategy, entry.layout,
            1e3 * seconds, rate * flops / 1e9, limit.rate * flops / 1e9, 100 * rate / limit.rate,
            100 * median(entry.waited) / seconds,
            human_bytes(static_cast<double>(entry.last.moved_bytes)),
            human_bytes(static_cast<double>(entry.last.in_place_bytes)), entry.timer->imbalance(),
            limit.drift > kDrift ? absl::StrFormat("  (limit moved %.0f%%)", 100 * limit.drift)
                                 : "")
            .c_str());
  }

  dist::Group& world_;
  const Options options_;
  ThreadPool pool_;
  bool header_printed_ = false;
};

int run(const Options& options) {
  check(options);
  return run_ranks(static_cast<int>(options.ranks), std::chrono::minutes(10),
                   [&](dist::Group& world) { SequenceBench(world, options).run(); });
}

}  // namespace

Action add_sequence_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  const auto number = [&](const char* option, int64_t& value, const char* help) {
    app.add_option(option, value, help)->capture_default_str()->type_name("N");
  };
  add_list(app, "--strategy", o->strategies, "Strategies; by default all");
  add_list(app, "--layout", o->layouts, "Layouts");
  add_list(app, "--n", o->lengths, "Tokens of a sample");
  add_list(app, "--mask", o->masks, "causal, full, window, packed (documents)");
  add_list(app, "--op", o->ops, "forward, backward, both");
  add_list(app, "--dtype", o->dtypes, "f32, bf16");
  number("--heads", o->heads, "Query heads");
  number("--kv-heads", o->kv_heads, "Key and value heads; 0: as many as query heads");
  number("--d", o->head_dim, "Size of a head");
  number("--window", o->window, "Keys that a query sees under the window mask");
  number("--mean-document", o->mean_document,
         "Mean length of packed documents, whose lengths are log-normal");
  number("--ranks-per-node", o->ranks_per_node, "For strategies with two levels");
  app.add_option(
         "--row-price", o->row_price,
         "Of layout balanced, see parallel.row_price; 0 is right where rows are read in place")
      ->capture_default_str()
      ->type_name("PAIRS");
  number("--ranks", o->ranks, "Ranks as threads; 0: those that mpirun or srun started");
  number("--threads", o->threads, "Threads of a rank; 0: its share of the cores");
  app.add_option("--seconds", o->least_seconds, "Time each case for so long, or longer")
      ->capture_default_str()
      ->type_name("S");
  app.add_flag("--moved", o->moved, "Send keys and values also where they could be read in place");
  app.add_flag("--json", o->json, "One JSON object a line instead of the table");
  return [o] { return run(*o); };
}

}  // namespace longhaul::launch
