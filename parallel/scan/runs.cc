#include "parallel/scan/runs.h"

#include <algorithm>
#include <utility>

namespace longhaul::parallel {

TokenLayout joined_runs(const TokenLayout& layout) {
  std::vector<RunList> runs(static_cast<size_t>(layout.ranks()));
  for (int r = 0; r < layout.ranks(); ++r) {
    RunList& list = runs[static_cast<size_t>(r)];
    for (const Run& run : layout.runs(r)) {
      if (run.length == 0) continue;
      const bool range = run.stride == 1 || run.length == 1;
      if (!list.empty() && range && list.back().stride == 1 &&
          list.back().position(list.back().length) == run.global_begin) {
        list.back().length += run.length;
      } else {
        list.push_back({run.global_begin, run.length, range ? 1 : run.stride});
      }
    }
  }
  return TokenLayout(layout.tokens(), std::move(runs));
}

bool has_stripes(const TokenLayout& layout) {
  for (int r = 0; r < layout.ranks(); ++r) {
    for (const Run& run : layout.runs(r)) {
      if (run.length > 1 && run.stride != 1) return true;
    }
  }
  return false;
}

TokenLayout scanned_runs(const TokenLayout& of_sample, int64_t most) {
  TokenLayout runs = joined_runs(of_sample);
  if (!has_stripes(runs) && (most == 0 || most_runs(runs) <= most)) return runs;
  return joined_runs(TokenLayout::contiguous(of_sample.tokens(), of_sample.ranks()));
}

int64_t most_runs(const TokenLayout& layout) {
  size_t most = 0;
  for (int r = 0; r < layout.ranks(); ++r) most = std::max(most, layout.runs(r).size());
  return static_cast<int64_t>(most);
}

TokenLayout runs_on_every_rank(int64_t runs, int ranks) {
  std::vector<RunList> lists(static_cast<size_t>(ranks));
  for (int64_t i = 0; i < runs * ranks; ++i) {
    const auto place = static_cast<size_t>(i % ranks);
    RunList& list = lists[i / ranks % 2 == 0 ? place : lists.size() - 1 - place];
    list.push_back({i, 1, 1});
  }
  return TokenLayout(runs * ranks, std::move(lists));
}

OwnRuns own_runs(const TokenLayout& layout, const Documents& documents, int rank) {
  OwnRuns own;
  const std::vector<int64_t>& begins = documents.begins();
  const auto continues = [&](int64_t position) {
    return position > 0 && position < documents.tokens() && documents.local_position(position) != 0;
  };
  int64_t row = 0;
  for (const Run& run : layout.runs(rank)) {
    const auto index = static_cast<int64_t>(own.rows.size());
    const int64_t begin = run.global_begin, end = begin + run.length;
    own.rows.push_back({.begin = row, .length = run.length});
    auto at = std::lower_bound(begins.begin(), begins.end(), std::max<int64_t>(begin, 1));
    for (; at != begins.end() && *at < end; ++at) own.document_begins.push_back(row + *at - begin);
    if (begin == 0) own.first = index;
    if (end == documents.tokens()) own.last = index;
    own.entered = own.entered || continues(begin);
    own.left = own.left || continues(end);
    row += run.length;
  }
  for (int r = 0; r < layout.ranks(); ++r) {
    own.maps += static_cast<int64_t>(layout.runs(r).size());
  }
  if (layout.tokens() > 0) own.last_owner = layout.locate(layout.tokens() - 1).rank;
  return own;
}

OwnRuns any_runs(int64_t rows, int64_t runs) {
  OwnRuns own{.rows = {},
              .document_begins = {},
              .maps = 2,
              .first = 0,
              .last = 0,
              .last_owner = 0,
              .entered = true,
              .left = true};
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t begin = rows * i / runs;
    own.rows.push_back({.begin = begin, .length = rows * (i + 1) / runs - begin});
  }
  return own;
}

}  // namespace longhaul::parallel
