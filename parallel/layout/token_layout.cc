#include "parallel/layout/token_layout.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"
#include "parallel/layout/balanced.h"

namespace longhaul::parallel {

namespace {

// Chunk `index` of `chunks` nearly equal ones: the first tokens % chunks have one token more.
Run chunk(int64_t tokens, int64_t chunks, int64_t index) {
  const int64_t base = tokens / chunks, larger = tokens % chunks;
  return {index * base + std::min(index, larger), base + (index < larger ? 1 : 0), 1};
}

void check_sizes(int64_t tokens, int ranks) {
  LONGHAUL_CHECK(tokens >= 0 && ranks >= 1, absl::StrCat(tokens, " tokens on ", ranks, " ranks"));
}

}  // namespace

int64_t rows_of(const RunList& runs) {
  int64_t rows = 0;
  for (const Run& run : runs) rows += run.length;
  return rows;
}

RunList slice(const RunList& runs, int64_t row, int64_t length) {
  LONGHAUL_CHECK(row >= 0 && length >= 0 && row + length <= rows_of(runs),
                 absl::StrCat("rows ", row, " + ", length, " of ", rows_of(runs)));
  RunList result;
  int64_t begin = 0;
  for (const Run& run : runs) {
    const int64_t from = std::max(row, begin), to = std::min(row + length, begin + run.length);
    if (from < to) result.push_back({run.position(from - begin), to - from, run.stride});
    begin += run.length;
  }
  return result;
}

TokenLayout TokenLayout::contiguous(int64_t tokens, int ranks) {
  check_sizes(tokens, ranks);
  std::vector<RunList> runs;
  for (int r = 0; r < ranks; ++r) runs.push_back({chunk(tokens, ranks, r)});
  return TokenLayout(tokens, std::move(runs));
}

TokenLayout TokenLayout::zigzag(int64_t tokens, int ranks) {
  check_sizes(tokens, ranks);
  const int64_t chunks = 2 * int64_t{ranks};
  std::vector<RunList> runs;
  for (int r = 0; r < ranks; ++r) {
    runs.push_back({chunk(tokens, chunks, r), chunk(tokens, chunks, chunks - 1 - r)});
  }
  return TokenLayout(tokens, std::move(runs));
}

TokenLayout TokenLayout::striped(int64_t tokens, int ranks) {
  check_sizes(tokens, ranks);
  std::vector<RunList> runs;
  for (int r = 0; r < ranks; ++r) {
    runs.push_back({{std::min<int64_t>(r, tokens), (tokens - r + ranks - 1) / ranks, ranks}});
    if (r >= tokens) runs.back().front().length = 0;
  }
  return TokenLayout(tokens, std::move(runs));
}

TokenLayout::TokenLayout(int64_t tokens, std::vector<RunList> runs_of_ranks)
    : tokens_(tokens), runs_(std::move(runs_of_ranks)) {
  check_sizes(tokens_, ranks());
  int64_t shared = 0;
  for (const RunList& list : runs_) {
    for (const Run& run : list) {
      LONGHAUL_CHECK(run.length >= 0 && run.stride >= 1, "a run has a negative length or stride");
      if (run.length <= 1) continue;
      LONGHAUL_CHECK(shared == 0 || shared == run.stride,
                     absl::StrCat("runs of strides ", shared, " and ", run.stride));
      shared = run.stride;
    }
  }
  stride_ = std::max<int64_t>(shared, 1);

  int64_t covered = 0;
  for (int r = 0; r < ranks(); ++r) {
    int64_t row = 0;
    for (const Run& run : runs(r)) {
      if (run.length == 0) continue;
      LONGHAUL_CHECK(run.global_begin >= 0 && run.position(run.length - 1) < tokens_,
                     absl::StrCat("a run of rank ", r, " leaves the ", tokens_, " tokens"));
      pieces_.push_back({run.global_begin % stride_, run, {r, row}});
      row += run.length;
    }
    covered += row;
  }
  LONGHAUL_CHECK(covered == tokens_, absl::StrCat("runs hold ", covered, " of ", tokens_));
  // Equally many positions as tokens and none twice: a bijection.
  std::sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) {
    return std::pair(a.residue, a.run.global_begin) < std::pair(b.residue, b.run.global_begin);
  });
  for (size_t i = 1; i < pieces_.size(); ++i) {
    const Piece &before = pieces_[i - 1], &piece = pieces_[i];
    LONGHAUL_CHECK(
        before.residue != piece.residue ||
            before.run.global_begin + (before.run.length - 1) * stride_ < piece.run.global_begin,
        absl::StrCat("ranks ", before.first.rank, " and ", piece.first.rank, " both own token ",
                     piece.run.global_begin));
  }
}

int64_t TokenLayout::most_rows() const {
  int64_t most = 0;
  for (int r = 0; r < ranks(); ++r) most = std::max(most, rows(r));
  return most;
}

TokenLayout::Place TokenLayout::locate(int64_t position) const {
  LONGHAUL_CHECK(position >= 0 && position < tokens_,
                 absl::StrCat("position ", position, " of ", tokens_));
  const std::pair<int64_t, int64_t> key(position % stride_, position);
  auto after = std::upper_bound(pieces_.begin(), pieces_.end(), key,
                                [](const std::pair<int64_t, int64_t>& value, const Piece& piece) {
                                  return value < std::pair(piece.residue, piece.run.global_begin);
                                });
  const Piece& piece = *--after;
  return {piece.first.rank, piece.first.row + (position - piece.run.global_begin) / stride_};
}

int64_t TokenLayout::position(int rank, int64_t row) const {
  LONGHAUL_CHECK(row >= 0, absl::StrCat("row ", row));
  int64_t i = row;
  for (const Run& run : runs(rank)) {
    if (i < run.length) return run.position(i);
    i -= run.length;
  }
  check_failed(__FILE__, __LINE__, "row < rows(rank)",
               absl::StrCat("row ", row, " of rank ", rank, " with ", rows(rank)));
}

std::vector<int64_t> TokenLayout::positions(int rank) const {
  std::vector<int64_t> result;
  result.reserve(static_cast<size_t>(rows(rank)));
  for (const Run& run : runs(rank)) {
    for (int64_t i = 0; i < run.length; ++i) result.push_back(run.position(i));
  }
  return result;
}

std::span<const LayoutKind> layout_kinds() {
  static constexpr std::array<LayoutKind, 4> kKinds{
      {{"contiguous", TokenLayout::contiguous},
       {"zigzag", TokenLayout::zigzag},
       {"striped", TokenLayout::striped},
       {"balanced", TokenLayout::contiguous, balanced}}};
  return kKinds;
}

const LayoutKind& layout_kind(std::string_view name) {
  std::vector<std::string> known;
  for (const LayoutKind& kind : layout_kinds()) {
    if (kind.name == name) return kind;
    known.emplace_back(kind.name);
  }
  fail(ErrorCode::kConfig, absl::StrCat("unknown layout \"", std::string(name),
                                        "\"; choose one of ", absl::StrJoin(known, ", ")));
}

TokenLayout LayoutKind::of_sample(const Documents& documents, const Mask& mask, int ranks,
                                  const BalancedOptions& options) const {
  return make_for != nullptr ? make_for(documents, mask, ranks, options)
                             : make(documents.tokens(), ranks);
}

}  // namespace longhaul::parallel
