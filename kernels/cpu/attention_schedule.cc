// Which task of the CPU's attention does what: blocks of queries for the forward pass, a grid of
// tiles in rounds for the backward pass. Both depend on shapes, segments and the number of threads
// only.
#include <algorithm>
#include <map>
#include <utility>

#include "kernels/cpu/attention_backward.h"
#include "kernels/cpu/attention_forward.h"

namespace longhaul::kernels::cpu {

namespace {

// Large blocks reuse keys best; smaller ones where the threads would otherwise have no work.
int64_t block_rows(int64_t queries, int64_t heads, int threads) {
  constexpr int64_t kTasksPerThread = 4;
  int64_t panels = kMostPanels;
  while (panels > 1 && heads * rounded_up(queries, panels * kPanel) / (panels * kPanel) <
                           kTasksPerThread * threads) {
    panels /= 2;
  }
  return panels * kPanel;
}

// Rows of a grid tile. Large tiles reuse packed keys best; a round of a causal mask has half as
// many tiles as the grid has rows, and every thread should find a few of them. The grid is bounded,
// so that listing its tiles costs nothing for long sequences.
int64_t grid_rows(int64_t rows, int64_t kv_heads, int threads) {
  constexpr int64_t kTilesPerThread = 4, kLargest = 2048, kMostRows = 256;
  const int64_t for_threads = rows * kv_heads / (2 * kTilesPerThread * threads);
  const int64_t wanted = std::clamp(rounded_up(for_threads, kPanel), kPanel, kLargest);
  return std::max(wanted, rounded_up((rows + kMostRows - 1) / kMostRows, kPanel));
}

using Grid = std::map<std::pair<int64_t, int64_t>, GridTile>;

void add_segment(const Segment& s, int64_t rows, const AttentionBackward& args, Grid& tiles) {
  if (s.q_len == 0) return;
  for (int64_t a = s.q_row / rows; a * rows < s.q_row + s.q_len; ++a) {
    const int64_t q_end = std::min(args.q.dim(0), (a + 1) * rows);
    const int64_t i0 = std::max(a * rows - s.q_row, int64_t{0});
    const int64_t i1 = std::min(q_end - s.q_row, s.q_len);
    const IndexRange seen = keys_seen(s, i0, i1);
    if (seen.begin >= seen.end) continue;
    for (int64_t b = (s.k_row + seen.begin) / rows; b * rows < s.k_row + seen.end; ++b) {
      GridTile& tile = tiles[{a, b}];
      tile.q_begin = a * rows;
      tile.q_end = q_end;
      tile.k_begin = b * rows;
      tile.k_end = std::min(args.k.dim(0), (b + 1) * rows);
      const int64_t j0 = std::max(tile.k_begin - s.k_row, seen.begin);
      const int64_t j1 = std::min(tile.k_end - s.k_row, seen.end);
      tile.work += (i1 - i0) * (j1 - j0);
      tile.segments.push_back(&s);
    }
  }
}

// Gives each tile the first round that its row and column have not used: on a full grid round
// a XOR b, so a causal mask takes as many rounds as the grid has rows, with equal work in each; the
// tiles of short documents, which share no rows, all go into the first.
void assign_rounds(Grid& grid) {
  std::map<int64_t, std::vector<bool>> by_row, by_column;
  for (auto& [position, tile] : grid) {
    std::vector<bool>&row = by_row[position.first], &column = by_column[position.second];
    size_t round = 0;
    while ((round < row.size() && row[round]) || (round < column.size() && column[round])) ++round;
    for (std::vector<bool>* used : {&row, &column}) {
      if (used->size() <= round) used->resize(round + 1);
      (*used)[round] = true;
    }
    tile.round = static_cast<int64_t>(round);
  }
}

}  // namespace

std::vector<QueryBlock> query_blocks(const AttentionForward& args, int threads) {
  const int64_t queries = args.q.dim(0);
  const int64_t rows = block_rows(queries, args.q.dim(1), threads);
  std::vector<QueryBlock> blocks(static_cast<size_t>(rounded_up(queries, rows) / rows));
  for (size_t b = 0; b < blocks.size(); ++b) {
    blocks[b].begin = static_cast<int64_t>(b) * rows;
    blocks[b].end = std::min(queries, blocks[b].begin + rows);
  }
  for (const Segment& s : args.segments) {
    if (s.q_len == 0) continue;
    for (int64_t b = s.q_row / rows; b * rows < s.q_row + s.q_len; ++b) {
      QueryBlock& block = blocks[static_cast<size_t>(b)];
      const int64_t i0 = std::max(block.begin - s.q_row, int64_t{0});
      const int64_t i1 = std::min(block.end - s.q_row, s.q_len);
      const IndexRange keys = keys_seen(s, i0, i1);
      if (keys.begin >= keys.end) continue;
      block.segments.push_back(&s);
      block.work += (i1 - i0) * (keys.end - keys.begin);
    }
  }
  std::erase_if(blocks, [](const QueryBlock& block) { return block.segments.empty(); });
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const QueryBlock& a, const QueryBlock& b) { return a.work > b.work; });
  return blocks;
}

std::vector<GridTile> grid_tiles(const AttentionBackward& args, int threads) {
  const int64_t rows = grid_rows(std::max(args.q.dim(0), args.k.dim(0)), args.k.dim(1), threads);
  Grid grid;
  for (const Segment& segment : args.segments) add_segment(segment, rows, args, grid);
  assign_rounds(grid);
  std::vector<GridTile> tiles;
  tiles.reserve(grid.size());
  for (auto& [position, tile] : grid) tiles.push_back(std::move(tile));
  std::stable_sort(tiles.begin(), tiles.end(), [](const GridTile& a, const GridTile& b) {
    return a.round != b.round ? a.round < b.round : a.work > b.work;
  });
  return tiles;
}

}  // namespace longhaul::kernels::cpu
