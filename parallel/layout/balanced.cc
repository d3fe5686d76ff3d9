#include "parallel/layout/balanced.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/layout/necklace.h"

namespace longhaul::parallel {

namespace {

// Bounds that are tried, as far as they are within that of the options.
constexpr double kBounds[] = {1.02, 1.05, 1.1, 1.2, 1.5};

// Borders of `count` nearly equal chunks, moved to a border of a document if one is near.
std::vector<int64_t> cuts_of(const Documents& documents, int64_t count) {
  const int64_t tokens = documents.tokens();
  std::vector<int64_t> cuts{0};
  for (int64_t i = 1; i < count; ++i) {
    const int64_t even = tokens / count * i + tokens % count * i / count;
    if (even <= 0 || even >= tokens) continue;
    const int64_t document = documents.at(even);
    int64_t cut = even, nearest = tokens / count / 2 + 1;
    for (const int64_t border : {documents.begin(document), documents.end(document)}) {
      const int64_t distance = std::abs(border - even);
      if (distance >= nearest) continue;
      nearest = distance;
      cut = border;
    }
    if (cut > cuts.back() && cut < tokens) cuts.push_back(cut);
  }
  if (tokens > 0) cuts.push_back(tokens);
  return cuts;
}

// Which rank gets which window: those of equal size in order of position, so that neighbouring
// ranks, likely on one node, have neighbouring tokens. Runs are filled up to equally many.
TokenLayout placed(int64_t tokens, std::vector<RunList> windows, const std::vector<int>& ranks,
                   const TokenLayout& sizes) {
  const auto first = [&](size_t i) {
    return windows[i].empty() ? tokens : windows[i].front().global_begin;
  };
  size_t most = 1;
  for (const RunList& window : windows) most = std::max(most, window.size());
  std::vector<RunList> runs(windows.size());
  for (size_t begin = 0; begin < windows.size();) {
    size_t end = begin;
    while (end < windows.size() && sizes.rows(ranks[end]) == sizes.rows(ranks[begin])) ++end;
    std::vector<size_t> order(end - begin);
    std::iota(order.begin(), order.end(), begin);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return first(a) < first(b); });
    for (size_t i = begin; i < end; ++i) {
      RunList& list = runs[static_cast<size_t>(ranks[i])];
      list = std::move(windows[order[i - begin]]);
      const int64_t last = list.empty() ? 0 : list.back().position(list.back().length);
      list.resize(most, Run{last, 0, 1});
    }
    begin = end;
  }
  return TokenLayout(tokens, std::move(runs));
}

// Takes the necklace apart. most: the largest area for each token that a rank may have.
TokenLayout split(Necklace necklace, double most, const std::vector<int>& ranks,
                  const TokenLayout& sizes) {
  std::vector<RunList> windows;
  for (const int rank : ranks) {
    const int64_t rows = sizes.rows(rank);
    if (rows == 0) {
      windows.emplace_back();
      continue;
    }
    // As little as leaves the others no more than they may have: so the rest can be split, too.
    const double least =
        static_cast<double>(necklace.area()) - most * static_cast<double>(necklace.tokens() - rows);
    windows.push_back(necklace.take(rows, least, most * static_cast<double>(rows)));
  }
  return placed(sizes.tokens(), std::move(windows), ranks, sizes);
}

BalancedCandidate candidate(double bound, TokenLayout layout, const Documents& documents,
                            const Mask& mask, double row_price) {
  std::vector<Load> loads = loads_of(layout, documents, mask);
  double cost = 0;
  for (const Load& load : loads) {
    cost = std::max(
        cost, static_cast<double>(load.area) + row_price * static_cast<double>(load.remote_rows));
  }
  return {.bound = bound, .layout = std::move(layout), .loads = std::move(loads), .cost = cost};
}

// One run a rank, as many rows each as in `sizes`.
TokenLayout in_order(const TokenLayout& sizes) {
  std::vector<RunList> runs;
  int64_t begin = 0;
  for (int r = 0; r < sizes.ranks(); ++r) {
    runs.push_back({{begin, sizes.rows(r), 1}});
    begin += sizes.rows(r);
  }
  return TokenLayout(sizes.tokens(), std::move(runs));
}

}  // namespace

std::vector<BalancedCandidate> balanced_candidates(const Documents& documents, const Mask& mask,
                                                   int ranks, const BalancedOptions& options) {
  LONGHAUL_CHECK(ranks >= 1 && options.bound >= 1 && options.chunks_per_rank >= 1);
  const int64_t tokens = documents.tokens();
  if (tokens > kMostBalancedTokens) {
    fail(ErrorCode::kConfig,
         absl::StrCat("the balanced layout has samples of at most 2^31 tokens, not ", tokens,
                      "; choose zigzag"));
  }
  const TokenLayout sizes = TokenLayout::zigzag(tokens, ranks);
  BalancedCandidate plain = candidate(0, in_order(sizes), documents, mask, options.row_price);
  double area = 0;
  for (const Load& load : plain.loads) area += static_cast<double>(load.area);
  const double share = tokens > 0 ? area / static_cast<double>(tokens) : 0;  // of a token

  std::vector<int> order(static_cast<size_t>(ranks));
  std::iota(order.begin(), order.end(), 0);
  // Equal sizes follow each other: what is known about windows depends on their size.
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return sizes.rows(a) > sizes.rows(b); });
  Necklace necklace(documents, mask, cuts_of(documents, ranks * options.chunks_per_rank),
                    area / ranks);
  if (sizes.most_rows() > 0) necklace.look(sizes.most_rows());
  std::vector<BalancedCandidate> result;
  const auto add = [&](double bound) {
    result.push_back(candidate(bound, split(necklace, bound * share, order, sizes), documents, mask,
                               options.row_price));
  };
  if (options.row_price >= 0) {
    for (const double bound : kBounds) {
      if (bound < options.bound) add(bound);
    }
  }
  add(options.bound);
  bool within = options.row_price >= 0;
  for (int r = 0; r < ranks; ++r) {
    within &= static_cast<double>(plain.loads[static_cast<size_t>(r)].area) <=
              options.bound * share * static_cast<double>(sizes.rows(r));
  }
  if (within) result.push_back(std::move(plain));
  return result;
}

TokenLayout balanced(const Documents& documents, const Mask& mask, int ranks,
                     const BalancedOptions& options) {
  std::vector<BalancedCandidate> candidates = balanced_candidates(documents, mask, ranks, options);
  // The first of equals: the better balanced.
  return std::move(std::ranges::min_element(candidates, {}, &BalancedCandidate::cost)->layout);
}

}  // namespace longhaul::parallel
