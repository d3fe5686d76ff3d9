// `longhaul bench layout`: what layouts make of packed documents. Plans only: nothing is computed,
// and all figures but the planning time are exact and the same on every machine.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/layout_mixes.h"
#include "parallel/layout/balanced.h"

namespace longhaul::launch {

namespace {

using parallel::Documents;
using parallel::Load;
using parallel::Run;
using parallel::RunList;
using parallel::TokenLayout;
using Clock = std::chrono::steady_clock;

constexpr parallel::Mask kCausal{.causal = true};
constexpr double kBound = 1.05;

struct Options {
  std::vector<std::string> mixes;
  std::vector<int64_t> ranks = {8, 64}, scales = {1, 8};
  int64_t tokens_per_rank = 32768, samples = 4;
  double row_price = parallel::BalancedOptions{}.row_price;
  std::string detail = "table";
  bool json = false;
};

// Of one layout of one sample, or summed up over samples.
struct Figures {
  double balance = 0;    // largest area / mean
  double rows = 0;       // remote rows per own row, mean of ranks
  double most_rows = 0;  // of the rank with most
  double cost = 0;       // of the costliest rank, / mean area: 1 is work alone, balanced
  double runs = 0;       // a rank, not empty
  double seconds = 0;    // to plan
};

Figures figures_of(const TokenLayout& layout, const std::vector<Load>& loads, double row_price) {
  Figures f;
  double area = 0;
  const double own = static_cast<double>(layout.tokens()) / layout.ranks();
  for (int r = 0; r < layout.ranks(); ++r) {
    const auto load_area = static_cast<double>(loads[static_cast<size_t>(r)].area);
    const auto rows = static_cast<double>(loads[static_cast<size_t>(r)].remote_rows);
    area += load_area;
    f.balance = std::max(f.balance, load_area);
    f.rows += rows;
    f.most_rows = std::max(f.most_rows, rows / own);
    f.cost = std::max(f.cost, load_area + row_price * rows);
    f.runs += static_cast<double>(
        std::ranges::count_if(layout.runs(r), [](const Run& run) { return run.length > 0; }));
  }
  f.balance /= area / layout.ranks();
  f.cost /= area / layout.ranks();
  f.rows /= static_cast<double>(layout.tokens());
  f.runs /= layout.ranks();
  return f;
}

// Equal chunks, the heaviest first, each to the lightest rank that has room. As few chunks a rank
// (8, 16, 32 or 64) as bring the largest area to kBound; more cost more rows.
TokenLayout greedy(const Documents& documents, int ranks) {
  std::vector<RunList> runs;
  for (const int64_t per_rank : {8, 16, 32, 64}) {
    const int64_t tokens = documents.tokens(), chunks = per_rank * ranks;
    std::vector<std::pair<int64_t, Run>> heavy;
    for (int64_t i = 0; i < chunks; ++i) {
      const Run run{i * tokens / chunks, (i + 1) * tokens / chunks - i * tokens / chunks, 1};
      int64_t area = 0;
      for (const Segment& s : parallel::cut_segments({run}, {{0, tokens, 1}}, documents, kCausal)) {
        area += longhaul::area(s);
      }
      heavy.push_back({area, run});
    }
    std::ranges::stable_sort(heavy, std::greater<>(), &std::pair<int64_t, Run>::first);
    runs.assign(static_cast<size_t>(ranks), {});
    std::vector<int64_t> areas(runs.size(), 0);
    for (const auto& [area, run] : heavy) {
      size_t lightest = runs.size();
      for (size_t r = 0; r < runs.size(); ++r) {
        if (static_cast<int64_t>(runs[r].size()) == per_rank) continue;
        if (lightest == runs.size() || areas[r] < areas[lightest]) lightest = r;
      }
      runs[lightest].push_back(run);
      areas[lightest] += area;
    }
    double sum = 0;
    for (const int64_t area : areas) sum += static_cast<double>(area);
    if (static_cast<double>(std::ranges::max(areas)) <= kBound * sum / ranks) break;
  }
  return TokenLayout(documents.tokens(), std::move(runs));
}

// Each document alone in zigzag over all ranks: balanced whatever the documents are.
TokenLayout zigzag_per_document(const Documents& documents, int ranks) {
  std::vector<RunList> runs(static_cast<size_t>(ranks));
  for (int64_t d = 0; d < documents.count(); ++d) {
    const TokenLayout one = TokenLayout::zigzag(documents.end(d) - documents.begin(d), ranks);
    for (int r = 0; r < ranks; ++r) {
      for (Run run : one.runs(r)) {
        run.global_begin += documents.begin(d);
        runs[static_cast<size_t>(r)].push_back(run);
      }
    }
  }
  return TokenLayout(documents.tokens(), std::move(runs));
}

// No layout with this largest area needs fewer rows: a rank with a query at position x of a
// document needs the x keys before it, and the queries beyond x do not fit on fewer ranks than
// their area is times the largest area.
double least_rows(const Documents& documents, int ranks, double balance) {
  double area = 0, rows = 0;
  const auto length = [&](int64_t d) {
    return static_cast<double>(documents.end(d) - documents.begin(d));
  };
  for (int64_t d = 0; d < documents.count(); ++d) area += length(d) * (length(d) + 1) / 2;
  const double most = balance * area / ranks;
  for (int64_t d = 0; d < documents.count(); ++d) {
    for (double square = length(d) * length(d); square > 0; square -= 2 * most) {
      rows += std::sqrt(square);
    }
  }
  return std::max(0.0, rows / static_cast<double>(documents.tokens()) - 1);
}

// Mean over samples; the balance is that of the worst.
struct Row {
  std::string layout;
  Figures sum;
  int64_t samples = 0;

  void add(const Figures& f) {
    sum.balance = std::max(sum.balance, f.balance);
    for (double Figures::*field :
         {&Figures::rows, &Figures::most_rows, &Figures::cost, &Figures::runs, &Figures::seconds}) {
      sum.*field += f.*field;
    }
    ++samples;
  }
  double mean(double Figures::*field) const { return sum.*field / static_cast<double>(samples); }
};

class LayoutBench {
 public:
  explicit LayoutBench(const Options& options) : options_(options) {}

  void run() {
    for (const LengthMix& mix : length_mixes()) {
      if (!options_.mixes.empty() &&
          std::ranges::find(options_.mixes, mix.name) == options_.mixes.end()) {
        continue;
      }
      for (const int64_t scale : options_.scales) {
        for (const int64_t ranks : options_.ranks) {
          run_case(mix, scale, static_cast<int>(ranks));
        }
      }
    }
  }

 private:
  void add(const std::string& layout, const Figures& figures) {
    auto row = std::ranges::find(rows_, layout, &Row::layout);
    if (row == rows_.end()) row = rows_.insert(row, Row{.layout = layout, .sum = {}});
    row->add(figures);
  }

  template <class Make>
  void plan(const std::string& name, const Documents& documents, const Make& make) {
    const auto begin = Clock::now();
    const TokenLayout layout = make();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    Figures figures = figures_of(layout, loads_of(layout, documents, kCausal), options_.row_price);
    figures.seconds = seconds;
    add(name, figures);
  }

  void run_case(const LengthMix& mix, int64_t scale, int ranks) {
    rows_.clear();
    double least = 0, count = 0;
    const int64_t tokens = options_.tokens_per_rank * ranks;
    for (int64_t s = 0; s < options_.samples; ++s) {
      const Documents documents = mixed_documents(mix, tokens, scale, static_cast<uint64_t>(s) + 1);
      count += static_cast<double>(documents.count()) / static_cast<double>(options_.samples);
      least += least_rows(documents, ranks, kBound) / static_cast<double>(options_.samples);
      const parallel::BalancedOptions priced{.row_price = options_.row_price};
      if (options_.detail == "frontier") {
        for (const auto& c : balanced_candidates(documents, kCausal, ranks, priced)) {
          add(c.bound > 0 ? absl::StrFormat("balanced <= %.2f", c.bound) : "contiguous",
              figures_of(c.layout, c.loads, options_.row_price));
        }
      } else {
        plan("contiguous", documents, [&] { return TokenLayout::contiguous(tokens, ranks); });
        plan("zigzag", documents, [&] { return zigzag_per_document(documents, ranks); });
        plan("greedy", documents, [&] { return greedy(documents, ranks); });
        plan(absl::StrFormat("balanced <= %.2f", kBound), documents, [&] {
          return parallel::balanced(documents, kCausal, ranks, {.bound = kBound, .row_price = -1});
        });
      }
      plan("balanced", documents,
           [&] { return parallel::balanced(documents, kCausal, ranks, priced); });
    }
    for (const Row& row : rows_) print(mix, scale, ranks, count, least, row);
    std::fflush(stdout);
  }

  void print(const LengthMix& mix, int64_t scale, int ranks, double documents, double least,
             const Row& row) {
    if (options_.json) {
      const nlohmann::ordered_json json = {
          {"bench", "layout"},
          {"case",
           {{"op", "plan"},
            {"mix", std::string(mix.name)},
            {"scale", scale},
            {"ranks", ranks},
            {"n", options_.tokens_per_rank * ranks},
            {"documents", documents},
            {"samples", row.samples},
            {"layout", row.layout},
            {"row_price", options_.row_price}}},
          {"value", row.mean(&Figures::rows)},
          {"unit", "remote rows per own row"},
          {"limit", least},
          {"limit_name", absl::StrFormat("fewest possible at max/mean area %.2f", kBound)},
          {"max_over_mean_area", row.sum.balance},
          {"most_rows", row.mean(&Figures::most_rows)},
          {"cost", row.mean(&Figures::cost)},
          {"runs", row.mean(&Figures::runs)},
          {"seconds", row.mean(&Figures::seconds)}};
      std::printf("%s\n", json.dump().c_str());
      return;
    }
    if (!header_) {
      std::printf(
          "| mix | x | ranks | documents | layout | max/mean area | rows | most rows | "
          "fewest | cost | runs | ms |\n|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|\n");
      header_ = true;
    }
    std::printf("%s\n",
                absl::StrFormat("| %s | %d | %d | %.0f | %s | %.3f | %.2f | %.2f | %.2f | "
                                "%.2f | %.1f | %.1f |",
                                std::string(mix.name), scale, ranks, documents, row.layout,
                                row.sum.balance, row.mean(&Figures::rows),
                                row.mean(&Figures::most_rows), least, row.mean(&Figures::cost),
                                row.mean(&Figures::runs), 1e3 * row.mean(&Figures::seconds))
                    .c_str());
  }

  const Options& options_;
  std::vector<Row> rows_;
  bool header_ = false;
};

int run_layout_bench(const Options& options) {
  std::vector<std::string> mixes;
  for (const LengthMix& mix : length_mixes()) mixes.emplace_back(mix.name);
  check_known("--mix", options.mixes, mixes);
  const std::vector<std::string> details{"table", "frontier"};
  check_known("--detail", std::span(&options.detail, 1), details);
  check_positive("--ranks", options.ranks);
  check_positive("--scale", options.scales);
  check_positive("--tokens", std::span(&options.tokens_per_rank, 1));
  check_positive("--samples", std::span(&options.samples, 1));
  if (!(options.row_price >= 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("--row-price ", options.row_price, ": 0 or more"));
  }
  for (const int64_t ranks : options.ranks) {
    if (ranks > 4096 || options.tokens_per_rank > parallel::kMostBalancedTokens / ranks) {
      fail(ErrorCode::kConfig,
           absl::StrCat(ranks, " ranks x ", options.tokens_per_rank,
                        " tokens: at most 4096 ranks and 2^31 tokens can be planned"));
    }
  }
  LayoutBench(options).run();
  return 0;
}

}  // namespace

Action add_layout_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  add_list(app, "--mix", o->mixes, "Mixes of document lengths: uniform, prolong, wlb, long");
  add_list(app, "--ranks", o->ranks, "Ranks that share a sample");
  add_list(app, "--scale", o->scales, "Factors of all lengths");
  app.add_option("--tokens", o->tokens_per_rank, "Tokens of a rank")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--samples", o->samples, "Samples a case: means, and the worst max/mean area")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--row-price", o->row_price, "What a remote row costs, in pairs of attention")
      ->capture_default_str()
      ->type_name("X");
  app.add_option("--detail", o->detail,
                 "table: beside other layouts; frontier: what was chosen from")
      ->capture_default_str()
      ->type_name("WHAT");
  app.add_flag("--json", o->json, "One JSON object a line instead of the table");
  return [o] { return run_layout_bench(*o); };
}

}  // namespace longhaul::launch
