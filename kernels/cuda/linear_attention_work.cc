#include "kernels/cuda/linear_attention_work.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/core/transfer.h"

namespace longhaul::kernels::cuda {

namespace {

// Two blocks for each multiprocessor of an H100, and some more, since pieces differ.
constexpr int64_t kBlocksWanted = 512;
// With heads of 128, a piece's states cost the traffic of some 150 rows.
constexpr int64_t kLeastPieceRows = 256;

int64_t rounded_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Which rows of [begin, begin + rows) are among the sorted `starts`.
uint64_t bits_of(std::span<const int64_t> starts, int64_t begin, int64_t rows) {
  uint64_t bits = 0;
  auto it = std::lower_bound(starts.begin(), starts.end(), begin);
  for (; it != starts.end() && *it < begin + rows; ++it) bits |= uint64_t{1} << (*it - begin);
  return bits;
}

template <class X>
constexpr int64_t words() {
  static_assert(sizeof(X) % sizeof(int64_t) == 0);
  return sizeof(X) / sizeof(int64_t);
}

int64_t most_chunks(int64_t rows, int64_t runs, int64_t chunk_rows) {
  return rows / chunk_rows + runs;
}

// Copies `list` to `at` and returns what follows it.
template <class List>
int64_t* append(const List& list, int64_t* at) {
  const size_t bytes = list.size() * sizeof(list[0]);
  if (bytes > 0) std::memcpy(at, list.data(), bytes);
  return at + bytes / sizeof(int64_t);
}

}  // namespace

LinearWorkList linear_work(const LinearTokens& tokens, int64_t chunk_rows, int64_t piece_rows) {
  LONGHAUL_CHECK(chunk_rows <= kMostChunkRows && piece_rows % chunk_rows == 0, "linear work");
  const std::span<const int64_t> starts = tokens.document_begins;
  LinearWorkList list;
  for (size_t r = 0; r < tokens.runs.size(); ++r) {
    const int64_t begin = tokens.runs[r].begin, end = begin + tokens.runs[r].length;
    list.run_begins.push_back(static_cast<int64_t>(list.pieces.size()));
    // The run's first and last rows where a document begins; its end and begin if there are none.
    const auto low = std::lower_bound(starts.begin(), starts.end(), begin);
    const auto high = std::lower_bound(low, starts.end(), end);
    const int64_t first_start = low != high ? *low : end;
    const int64_t last_start = low != high ? *(high - 1) : begin - 1;
    int64_t row = begin;
    do {
      LinearPiece piece{.begin = row,
                        .end = std::min(end, row + piece_rows),
                        .chunk_begin = static_cast<int64_t>(list.chunks.size()),
                        .run = static_cast<int64_t>(r),
                        .first = row == begin};
      for (; row < piece.end; row += chunk_rows) {
        const int64_t rows = std::min(chunk_rows, piece.end - row);
        const uint64_t bits = bits_of(starts, row, rows);
        list.chunks.push_back({.begin = row,
                               .rows = rows,
                               .starts = bits,
                               .first = bits == 0 ? rows : std::countr_zero(bits),
                               .last = bits == 0 ? 0 : 63 - std::countl_zero(bits),
                               .before = first_start < row ? -1 : row - begin,
                               .after = last_start >= row + rows ? -1 : end - row - rows});
        piece.resets = piece.resets || bits != 0;
      }
      row = piece.end;
      piece.chunk_end = static_cast<int64_t>(list.chunks.size());
      piece.last = row == end;
      list.pieces.push_back(piece);
    } while (row < end);
  }
  list.run_begins.push_back(static_cast<int64_t>(list.pieces.size()));
  return list;
}

int64_t linear_piece_rows(int64_t rows, int64_t blocks_per_piece) {
  const int64_t blocks = std::max<int64_t>(blocks_per_piece, 1);
  const int64_t pieces = (kBlocksWanted + blocks - 1) / blocks;
  return std::max(kLeastPieceRows, rounded_up((rows + pieces - 1) / pieces, kMostChunkRows));
}

TensorView linear_work_memory(const Context& ctx, const LinearTokens& tokens, int64_t rows,
                              int64_t chunk_rows, int64_t piece_rows) {
  const auto runs = static_cast<int64_t>(tokens.runs.size());
  const auto heads = static_cast<int64_t>(tokens.slopes.size());
  return ctx.scratch->allocate(
      DType::kI64, {most_chunks(rows, runs, chunk_rows) * words<LinearChunk>() +
                    most_pieces(rows, runs, piece_rows) * words<LinearPiece>() + runs + 1 + heads});
}

LinearWork place(const Context& ctx, const LinearTokens& tokens, const LinearWorkList& list,
                 const TensorView& memory) {
  const auto chunks = static_cast<int64_t>(list.chunks.size());
  const auto pieces = static_cast<int64_t>(list.pieces.size());
  const auto runs = static_cast<int64_t>(tokens.runs.size());
  const auto heads = static_cast<int64_t>(tokens.slopes.size());
  const int64_t size =
      chunks * words<LinearChunk>() + pieces * words<LinearPiece>() + runs + 1 + heads;
  const Tensor host(DType::kI64, {size});
  append(tokens.slopes,
         append(list.run_begins,
                append(list.pieces, append(list.chunks, host.span<int64_t>().data()))));
  upload(ctx.stream, host, memory.rows(0, size));
  const auto* at = memory.data<int64_t>();
  const int64_t* piece_at = at + chunks * words<LinearChunk>();
  const int64_t* run_at = piece_at + pieces * words<LinearPiece>();
  return {.chunks = reinterpret_cast<const LinearChunk*>(at),
          .pieces = reinterpret_cast<const LinearPiece*>(piece_at),
          .run_begins = run_at,
          .slopes = reinterpret_cast<const double*>(run_at + runs + 1),
          .piece_count = pieces,
          .run_count = runs,
          .heads = heads};
}

}  // namespace longhaul::kernels::cuda
