// Linear attention as lists of work for blocks of threads. A run is cut into chunks, whose rows are
// multiplied with each other, and into pieces of many chunks, whose states a block passes on from
// chunk to chunk. Documents begin anywhere in a chunk: that is a bit, no border between chunks.
#pragma once

#include <span>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/host_device.h"
#include "kernels/linear_attention.h"

namespace longhaul::kernels::cuda {

inline constexpr int kMostChunkRows = 64;

struct LinearChunk {
  int64_t begin = 0;
  int64_t rows = 0;
  uint64_t starts = 0;  // bit r: a document begins at row begin + r
  // Rows [0, first) belong to the document before, rows from `last` on to the one that goes on.
  int64_t first = 0, last = 0;
  // Rows of its run before and after it; -1 if a document begins among those before it or,
  // respectively, after it: no state comes from there.
  int64_t before = 0, after = 0;
};

// Whether rows i and j >= i of a chunk belong to one document.
LONGHAUL_HOST_DEVICE inline bool same_document(uint64_t starts, int i, int j) {
  const uint64_t up_to_i = (uint64_t{2} << i) - 1, up_to_j = (uint64_t{2} << j) - 1;
  return (starts & up_to_j & ~up_to_i) == 0;
}

struct LinearPiece {
  int64_t begin = 0, end = 0;              // rows
  int64_t chunk_begin = 0, chunk_end = 0;  // none if its run is empty
  int64_t run = 0;
  bool first = true, last = true;  // of its run
  bool resets = false;             // a document begins in it
};

struct LinearWorkList {
  std::vector<LinearChunk> chunks;
  std::vector<LinearPiece> pieces;  // by run, in order; an empty run has one
  std::vector<int64_t> run_begins;  // R + 1: pieces of run r are [run_begins[r], run_begins[r + 1])
};

// piece_rows is a multiple of chunk_rows.
LinearWorkList linear_work(const LinearTokens&, int64_t chunk_rows, int64_t piece_rows);

// Rows of a piece, so that all pieces keep a GPU's multiprocessors busy when each is computed by as
// many blocks, and not less than its states are worth. Depends on the shape alone, not on the GPU:
// so do the results.
int64_t linear_piece_rows(int64_t rows, int64_t blocks_per_piece);

// There are never more pieces, whatever the runs' lengths are: samples differ in them, and memory
// was measured before.
inline int64_t most_pieces(int64_t rows, int64_t runs, int64_t piece_rows) {
  return rows / piece_rows + runs;
}

// A list in the device's memory.
struct LinearWork {
  const LinearChunk* chunks = nullptr;
  const LinearPiece* pieces = nullptr;
  const int64_t* run_begins = nullptr;
  const double* slopes = nullptr;
  int64_t piece_count = 0, run_count = 0, heads = 0;
};

// Scratch for it, of a size that depends on the numbers of rows, runs and heads alone.
TensorView linear_work_memory(const Context&, const LinearTokens&, int64_t rows, int64_t chunk_rows,
                              int64_t piece_rows);
LinearWork place(const Context&, const LinearTokens&, const LinearWorkList&,
                 const TensorView& memory);

}  // namespace longhaul::kernels::cuda
