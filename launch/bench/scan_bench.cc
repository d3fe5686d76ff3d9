// `longhaul bench scan`: one layer of linear attention over all ranks, by every method of
// composing states, beside what the ranks need for the same rows when nothing has to be exchanged.
//
//   ratio = time of the kernels alone, one call a pass, on every rank at once / time of the method
//
// Bytes, and messages that wait for each other, are counted for any number of ranks. Times are
// printed where every thread of every rank has a core of its own. `softmax ring` is what a ring
// without the right-product trick does: keys and values travel, and every pair is computed.
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
#include "launch/bench/scan_timer.h"
#include "launch/cli/ranks.h"
#include "launch/train/metrics.h"
#include "parallel/plan/chain.h"
#include "parallel/plan/strategy.h"

namespace longhaul::launch {

namespace {

using parallel::Direction;

constexpr const char* kSoftmaxRing = "softmax ring";

struct Options {
  std::vector<std::string> methods;  // empty: all
  std::vector<std::string> layouts = {"contiguous", "zigzag"};
  std::vector<int64_t> lengths = {4096, 16384};
  std::vector<std::string> ops = {"forward", "both"};
  std::vector<std::string> dtypes = {"f32"};
  int64_t heads = 4;
  int64_t head_dim = 64;
  int64_t ranks = 0;    // as threads; 0: as launched
  int64_t threads = 0;  // of a rank; 0: its share of the cores
  double least_seconds = 0.4;
  bool softmax = false;
  bool json = false;
};

void check(const Options& o) {
  std::vector<std::string> methods;
  for (const auto& row : parallel::scan_methods()) methods.emplace_back(row.name);
  check_known("--method", o.methods, methods);
  check_known("--layout", o.layouts, {"contiguous", "zigzag"});
  check_known("--op", o.ops, {"forward", "backward", "both"});
  check_known("--dtype", o.dtypes, {"f32", "bf16"});
  check_positive("--n", o.lengths);
  check_positive("--heads", std::span(&o.heads, 1));
  check_positive("--d", std::span(&o.head_dim, 1));
  check_timing_over_ranks(o.ranks, o.threads, o.least_seconds);
}

SequencePass pass_of(const std::string& op) {
  if (op == "forward") return SequencePass::kForward;
  return op == "backward" ? SequencePass::kBackward : SequencePass::kBoth;
}

struct Entry {
  std::string method;
  std::unique_ptr<ScanTimer> scan;         // or
  std::unique_ptr<SequenceTimer> softmax;  // the ring
  std::vector<double> seconds, waited;
  int64_t moved_bytes = 0;

  GroupTiming time(SequencePass pass) const {
    return scan ? scan->time(pass) : softmax->time(pass);
  }
};

// Messages that wait for each other, of both directions together if it is both.
int64_t chain_of(const std::string& method, const parallel::TokenLayout& layout, int64_t heads,
                 SequencePass pass) {
  int64_t sum = 0;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const bool forward = direction == Direction::kForward;
    if (pass == (forward ? SequencePass::kBackward : SequencePass::kForward)) continue;
    std::vector<parallel::Plan> plans;
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      plans.push_back(method == kSoftmaxRing
                          ? parallel::strategy("ring").plan(
                                {.layout = layout,
                                 .documents = parallel::Documents::whole(layout.tokens()),
                                 .mask = {},
                                 .heads = {heads, heads, 1, 1}},
                                direction, rank)
                          : parallel::scan_method(method).plan(layout, heads, direction, rank));
    }
    sum += parallel::longest_chain(plans);
  }
  return sum;
}

struct Shared {
  std::string op, dtype, layout_name;
  const parallel::TokenLayout& layout;
};

class ScanBench {
 public:
  ScanBench(dist::Group& world, const Options& options)
      : world_(world),
        options_(options),
        pool_(options.threads > 0 ? static_cast<int>(options.threads)
                                  : threads_per_rank(static_cast<int>(options.ranks))),
        timed_(enough_cores(static_cast<int>(options.ranks), pool_.threads())) {}

  void run() {
    for (const std::string& dtype : options_.dtypes) {
      for (const std::string& layout : options_.layouts) {
        for (const int64_t tokens : options_.lengths) {
          const DType type = dtype == "bf16" ? DType::kBF16 : DType::kF32;
          const parallel::TokenLayout rows =
              parallel::layout_kind(layout).make(tokens, world_.size());
          ScanOperands operands(context(), rows, world_.rank(), type, options_.heads,
                                options_.head_dim);
          LoneScanTimer alone(world_, context(), operands);
          std::vector<Entry> entries = make_entries(rows, type, operands);
          for (const std::string& op : options_.ops) {
            measure(entries, alone, {op, dtype, layout, rows});
          }
        }
      }
    }
  }

 private:
  Context context() { return {.pool = &pool_}; }

  std::vector<Entry> make_entries(const parallel::TokenLayout& layout, DType dtype,
                                  ScanOperands& operands) {
    std::vector<Entry> entries;
    for (const parallel::ScanMethod& method : parallel::scan_methods()) {
      const std::string name(method.name);
      if (!options_.methods.empty() &&
          std::ranges::find(options_.methods, name) == options_.methods.end()) {
        continue;
      }
      const parallel::LinearAttentionOptions linear{.heads = options_.heads,
                                                    .head_dim = options_.head_dim,
                                                    .value_dim = options_.head_dim,
                                                    .dtype = dtype,
                                                    .method = name};
      entries.push_back(
          {.method = name,
           .scan = std::make_unique<ScanTimer>(world_, context(), layout, linear, operands),
           .softmax = {},
           .seconds = {},
           .waited = {}});
    }
    if (options_.softmax) {
      const int64_t heads = options_.heads, dim = options_.head_dim;
      const SequenceCase ring{.layout = layout,
                              .documents = parallel::Documents::whole(layout.tokens()),
                              .attention = {.heads = {heads, heads, dim, dim},
                                            .mask = {},
                                            .dtype = dtype,
                                            .scale = 1 / std::sqrt(static_cast<double>(dim)),
                                            .in_place = false}};
      entries.push_back({.method = kSoftmaxRing,
                         .scan = {},
                         .softmax = std::make_unique<SequenceTimer>(world_, context(), ring),
                         .seconds = {},
                         .waited = {}});
    }
    return entries;
  }

  // In turns, so that what disturbs one disturbs all; all ranks see the same times.
  void measure(std::vector<Entry>& entries, LoneScanTimer& alone, const Shared& shared) {
    const SequencePass pass = pass_of(shared.op);
    for (Entry& entry : entries) {
      entry.seconds.clear();
      entry.waited.clear();
    }
    std::vector<double> limit;
    double total = 0;
    while (limit.empty() || (timed_ && (limit.size() < 5 || total < options_.least_seconds))) {
      limit.push_back(alone.time(pass).seconds);
      total += limit.back();
      for (Entry& entry : entries) {
        const GroupTiming timing = entry.time(pass);
        entry.seconds.push_back(timing.seconds);
        entry.waited.push_back(timing.waited);
        entry.moved_bytes = timing.moved_bytes;
      }
    }
    if (world_.rank() != 0) return;
    for (const Entry& entry : entries) {
      const int64_t chain = chain_of(entry.method, shared.layout, options_.heads, pass);
      if (options_.json) {
        print_json(entry, median(limit), chain, shared);
      } else {
        print_row(entry, median(limit), chain, shared);
      }
    }
    std::fflush(stdout);
  }

  void print_json(const Entry& entry, double limit, int64_t chain, const Shared& shared) {
    nlohmann::ordered_json json = {{"bench", "scan"},
                                   {"case",
                                    {{"op", shared.op},
                                     {"dtype", shared.dtype},
                                     {"d", options_.head_dim},
                                     {"n", shared.layout.tokens()},
                                     {"heads", options_.heads},
                                     {"method", entry.method},
                                     {"layout", shared.layout_name},
                                     {"ranks", world_.size()},
                                     {"threads", pool_.threads()},
                                     {"isa", std::string(kernels::instruction_set())}}},
                                   {"received_bytes", entry.moved_bytes / world_.size()},
                                   {"longest_chain", chain}};
    if (timed_) {
      const double seconds = median(entry.seconds);
      json.update({{"value", seconds},
                   {"unit", "s"},
                   {"limit", limit},
                   {"limit_name", "the kernels alone, on every rank at once"},
                   {"ratio", limit / seconds},
                   {"repetitions", entry.seconds.size()},
                   {"waited_seconds", median(entry.waited)}});
    }
    std::printf("%s\n", json.dump().c_str());
  }

  void print_row(const Entry& entry, double limit, int64_t chain, const Shared& shared) {
    if (!header_printed_) {
      header_printed_ = true;
      std::printf("# %d ranks, %d threads each, %s; %s heads of %s%s\n", world_.size(),
                  pool_.threads(), std::string(kernels::instruction_set()).c_str(),
                  std::to_string(options_.heads).c_str(), std::to_string(options_.head_dim).c_str(),
                  timed_ ? "" : "; more threads than cores: no times");
      std::printf("%-8s %-5s %-10s %7s %-12s %10s %10s %10s %10s %7s %7s\n", "op", "dtype",
                  "layout", "n", "method", "received", "chain", "ms", "alone ms", "ratio",
                  "waited");
    }
    std::string times;
    if (timed_) {
      const double seconds = median(entry.seconds);
      times = absl::StrFormat(" %10.3f %10.3f %6.1f%% %6.1f%%", 1e3 * seconds, 1e3 * limit,
                              100 * limit / seconds, 100 * median(entry.waited) / seconds);
    }
    std::printf("%s\n",
                absl::StrFormat("%-8s %-5s %-10s %7d %-12s %10s %10d%s", shared.op, shared.dtype,
                                shared.layout_name, shared.layout.tokens(), entry.method,
                                human_bytes(static_cast<double>(entry.moved_bytes) / world_.size()),
                                chain, times)
                    .c_str());
  }

  dist::Group& world_;
  const Options options_;
  ThreadPool pool_;
  const bool timed_;
  bool header_printed_ = false;
};

int run(const Options& options) {
  check(options);
  return run_ranks(static_cast<int>(options.ranks), std::chrono::minutes(10),
                   [&](dist::Group& world) { ScanBench(world, options).run(); });
}

}  // namespace

Action add_scan_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  const auto number = [&](const char* option, int64_t& value, const char* help) {
    app.add_option(option, value, help)->capture_default_str()->type_name("N");
  };
  add_list(app, "--method", o->methods, "Methods; by default all");
  add_list(app, "--layout", o->layouts, "contiguous, zigzag");
  add_list(app, "--n", o->lengths, "Tokens of a sample");
  add_list(app, "--op", o->ops, "forward, backward, both");
  add_list(app, "--dtype", o->dtypes, "f32, bf16");
  number("--heads", o->heads, "Heads");
  number("--d", o->head_dim, "Size of a head");
  number("--ranks", o->ranks, "Ranks as threads; 0: those that mpirun or srun started");
  number("--threads", o->threads, "Threads of a rank; 0: its share of the cores");
  app.add_option("--seconds", o->least_seconds, "Time each case for so long, or longer")
      ->capture_default_str()
      ->type_name("S");
  app.add_flag("--softmax", o->softmax, "Also a ring of keys and values, without linear attention");
  app.add_flag("--json", o->json, "One JSON object a line instead of the table");
  return [o] { return run(*o); };
}

}  // namespace longhaul::launch
