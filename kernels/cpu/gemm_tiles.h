// How a matrix product is split: into tasks for threads, and each task into blocks for caches.
#pragma once

#include <algorithm>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/gemm.h"

namespace longhaul::kernels::cpu {

// The sizes of a product op(a)[m, k] op(b)[k, n] and how its operands are stored.
struct Product {
  explicit Product(const Gemm& args)
      : transpose_a(args.transpose_a == Transpose::kYes),
        transpose_b(args.transpose_b == Transpose::kYes),
        m(args.c.dim(0)),
        n(args.c.dim(1)),
        k(args.a.dim(transpose_a ? 0 : 1)),
        lda(args.a.stride(0)),
        ldb(args.b.stride(0)),
        ldc(args.c.stride(0)) {}

  bool transpose_a, transpose_b;
  int64_t m, n, k;
  int64_t lda, ldb, ldc;

  // Where op(a)(i, p) and op(b)(p, j) are stored, in elements.
  int64_t a_at(int64_t i, int64_t p) const { return transpose_a ? p * lda + i : i * lda + p; }
  int64_t b_at(int64_t p, int64_t j) const { return transpose_b ? j * ldb + p : p * ldb + j; }
};

// Tiles of c, one a task, that depend on the sizes and the number of threads only.
class Tiling {
 public:
  // High, because each task packs its columns of b anew; wide, because it does so with its rows of
  // a. Smaller ones serve to give all threads equal work.
  static constexpr int64_t kRows = 1024;
  // A chunk of columns of b has at most 512 KiB, half of a common second cache. Where rows of a
  // must be packed, more columns make it worth while; else longer chunks, which visit c less often.
  static int64_t most_columns(const Product& p) { return p.transpose_a ? 512 : 256; }
  static int64_t chunk_words(const Product& p) { return p.transpose_a ? 256 : 512; }
  static constexpr int64_t kGoodRows = 256, kGoodColumns = 256;
  static constexpr int64_t kLeastRows = 24, kLeastColumns = 64;
  static constexpr int64_t kTilesPerThread = 2;

  Tiling(const Product& p, int threads)
      : m_(p.m), n_(p.n), rows_(std::min(p.m, kRows)), columns_(std::min(p.n, most_columns(p))) {
    even_out();
    while (tiles() < kTilesPerThread * threads && halve(kGoodRows, kGoodColumns)) {
    }
    while (tiles() < kTilesPerThread * threads && tiles() % threads != 0 &&
           halve(kLeastRows, kLeastColumns)) {
    }
  }

  struct Tile {
    int64_t i, j;  // first row and column of c
    int64_t rows, columns;
  };
  int64_t tiles() const { return count(m_, rows_) * count(n_, columns_); }
  // Neighbours share their columns of b.
  Tile tile(int64_t index) const {
    const int64_t down = count(m_, rows_);
    const int64_t i = index % down * rows_, j = index / down * columns_;
    return {i, j, std::min(rows_, m_ - i), std::min(columns_, n_ - j)};
  }
  // The largest.
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

 private:
  static int64_t count(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }
  // Tiles of equal size, but for what whole panels of columns leave over.
  static int64_t evened(int64_t n, int64_t tile, int64_t unit) {
    const int64_t even = count(n, count(n, tile));
    return std::min(n, count(even, unit) * unit);
  }
  // Halves the longer side, unless it would become shorter than the least.
  bool halve(int64_t least_rows, int64_t least_columns) {
    const bool high = rows_ >= 2 * least_rows, wide = columns_ >= 2 * least_columns;
    if (high && (rows_ >= columns_ || !wide)) {
      rows_ = (rows_ + 1) / 2;
    } else if (wide) {
      columns_ = (columns_ + 1) / 2;
    } else {
      return false;
    }
    even_out();
    return true;
  }
  void even_out() {
    rows_ = evened(m_, rows_, 2);
    columns_ = evened(n_, columns_, 64);
  }

  int64_t m_, n_;
  int64_t rows_, columns_;
};

// Rows of a register tile. Where a must be packed, words of one k lie kPackedStep apart, because
// they are stored in whole vectors.
inline constexpr int kGemmRows = 6;
inline constexpr int64_t kPackedStep = 8;
static_assert(kPackedStep >= kGemmRows);
// Rows of a that are packed together.
inline constexpr int64_t kPackedRows = 96;
// The widest panel: scratch memory does not depend on the instruction set.
inline constexpr int64_t kWidestPanel = 64;

// Elements of k in a chunk. Chunks are of equal length, to whole words of any format.
inline int64_t chunk_depth(const Product& p, int64_t per_word) {
  const int64_t most = Tiling::chunk_words(p);
  const int64_t words = (p.k + per_word - 1) / per_word;
  const int64_t chunks = (words + most - 1) / most;
  return (words + chunks - 1) / chunks * per_word;
}

struct GemmTask {
  const Gemm& args;
  const Product& product;
  Tiling::Tile tile;
  int64_t depth;        // of a chunk
  std::byte* a[2];      // this worker's scratch: packed rows of a, two blocks,
  std::byte *b, *sums;  // a packed chunk of b, sums of c
  Poller& poller;
};

}  // namespace longhaul::kernels::cpu
