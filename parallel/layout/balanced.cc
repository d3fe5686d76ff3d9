#include "parallel/layout/balanced.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

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

// Windows of equal size in order of position, so that neighbouring ranks, likely on one node, have
// neighbouring tokens; each with equally many runs.
TokenLayout placed(int64_t tokens, std::vector<RunList> windows) {
  const auto first = [tokens](const RunList& window) {
    return window.empty() ? tokens : window.front().global_begin;
  };
  std::stable_sort(windows.begin(), windows.end(), [&](const RunList& a, const RunList& b) {
    return std::pair(-rows_of(a), first(a)) < std::pair(-rows_of(b), first(b));
  });
  size_t most = 1;
  for (const RunList& window : windows) most = std::max(most, window.size());
  for (RunList& window : windows) {
    const int64_t end = window.empty() ? tokens : window.back().position(window.back().length);
    window.resize(most, Run{end, 0, 1});
  }
  return TokenLayout(tokens, std::move(windows));
}

// Takes the necklace apart. most: the largest area for each token that a rank may have. Sizes fall
// from rank to rank.
TokenLayout split(Necklace necklace, double most, const TokenLayout& sizes) {
  std::vector<RunList> windows;
  for (int rank = 0; rank < sizes.ranks(); ++rank) {
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
  return placed(sizes.tokens(), std::move(windows));
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
  BalancedCandidate plain =
      candidate(0, TokenLayout::contiguous(tokens, ranks), documents, mask, options.row_price);
  const TokenLayout sizes = plain.layout;
  double area = 0;
  for (const Load& load : plain.loads) area += static_cast<double>(load.area);
  const double share = tokens > 0 ? area / static_cast<double>(tokens) : 0;  // of a token

  Necklace necklace(documents, mask, cuts_of(documents, ranks * options.chunks_per_rank),
                    area / ranks);
  if (sizes.most_rows() > 0) necklace.look(sizes.most_rows());
  std::vector<BalancedCandidate> result;
  const auto add = [&](double bound) {
    result.push_back(candidate(bound, split(necklace, bound * share, sizes), documents, mask,
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
