#include "kernels/cpu/linear_attention_schedule.h"

#include <algorithm>

namespace longhaul::kernels::cpu {

namespace {

// Work of the busiest thread if `tasks` equal tasks are handed out.
int64_t rounds(int64_t tasks, int64_t threads) { return (tasks + threads - 1) / threads; }

// Pieces a run. More than one, where states pass through them, costs the maps of all pieces, about
// a third of forward, so only if threads would idle for longer.
int64_t pieces_a_run(std::span<const LinearRun> runs, int64_t heads, int threads, PieceUse use) {
  constexpr int64_t kTasksPerThread = 4, kFewestRows = 4 * kBlock;
  int64_t longest = 0;
  for (const LinearRun& run : runs) longest = std::max(longest, run.length);
  const int64_t units = static_cast<int64_t>(runs.size()) * heads;
  if (units == 0) return 1;
  if (use == PieceUse::kFollow && 3 * rounds(units, threads) * threads <= 4 * units) return 1;
  if (use == PieceUse::kFree && units >= kTasksPerThread * threads) return 1;
  return std::max<int64_t>(
      1, std::min(rounds(kTasksPerThread * threads, units), longest / kFewestRows));
}

// The fewest groups whose states stay in the cache and that keep the threads equally busy.
int64_t group_count(int64_t pieces, int64_t heads, int64_t most_heads, int64_t threads) {
  int64_t best = std::max<int64_t>(1, heads);
  const auto busiest = [&](int64_t groups) {
    return rounds(pieces * groups, threads) * rounds(heads, groups);
  };
  for (int64_t groups = heads - 1; groups >= rounds(heads, most_heads) && groups > 0; --groups) {
    if (busiest(groups) <= busiest(best)) best = groups;
  }
  return best;
}

}  // namespace

int64_t heads_in_cache(int64_t state_bytes) {
  constexpr int64_t kCacheBytes = 256 * 1024;
  return std::max<int64_t>(1, kCacheBytes / state_bytes);
}

LinearSchedule::LinearSchedule(std::span<const LinearRun> of_tokens,
                               std::span<const int64_t> documents, int64_t heads_,
                               int64_t state_bytes, int threads, PieceUse use)
    : runs(of_tokens.size()), heads(heads_) {
  const int64_t parts = pieces_a_run(of_tokens, heads, threads, use);
  for (const LinearRun& run : of_tokens) {
    const size_t first_piece = pieces.size();
    const int64_t units = rounded_up(run.length, kBlock) / kBlock;
    const int64_t run_parts = std::clamp<int64_t>(units, 1, parts);
    for (int64_t part = 0; part < run_parts; ++part) {
      const Range range = part_of(units, part, run_parts);
      LinearPiece piece{.run = &run - of_tokens.data(),
                        .begin = run.begin + range.begin * kBlock,
                        .end = run.begin + std::min(range.end * kBlock, run.length),
                        .first = part == 0,
                        .last = part == run_parts - 1,
                        .block_begin = blocks.size(),
                        .block_end = 0};
      auto document = std::lower_bound(documents.begin(), documents.end(), piece.begin);
      for (int64_t row = piece.begin; row < piece.end;) {
        const bool first = document != documents.end() && *document == row;
        if (first) ++document;
        const int64_t border = document == documents.end() ? piece.end : *document;
        const int64_t end = std::min({row + kBlock, border, piece.end});
        const int64_t run_end = run.begin + run.length;
        blocks.push_back(
            {.begin = row,
             .rows = end - row,
             .first_of_document = first,
             .last_of_document = document != documents.end() && end == border && end < run_end});
        piece.resets |= first;
        row = end;
      }
      piece.block_end = blocks.size();
      pieces.push_back(piece);
    }
    bool reset = false;
    for (size_t p = first_piece; p < pieces.size(); ++p) {
      pieces[p].after_reset = reset;
      reset |= pieces[p].resets;
    }
    reset = false;
    for (size_t p = pieces.size(); p-- > first_piece;) {
      pieces[p].before_reset = reset;
      reset |= pieces[p].resets;
    }
  }
  groups =
      group_count(static_cast<int64_t>(pieces.size()), heads, heads_in_cache(state_bytes), threads);
}

}  // namespace longhaul::kernels::cpu
