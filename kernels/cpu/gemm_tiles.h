// How a product is split into tasks; shared by the rows of the gemm table.
#pragma once

#include <omp.h>

#include <algorithm>
#include <functional>

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

// Tiles of c, about a millisecond of work each, that depend on the sizes and the number of threads
// only. Long sums are cut into chunks of k, done one after the other in ascending order.
struct Tiling {
  static constexpr int64_t kTile = 512;
  static constexpr int64_t kLeastTile = 32;
  static constexpr int64_t kChunk = 1024;
  static constexpr int64_t kTilesPerThread = 3;

  Tiling(const Product& p, int threads) : m(p.m), n(p.n), tile_m(start(p.m)), tile_n(start(p.n)) {
    while (tiles() < kTilesPerThread * threads && std::max(tile_m, tile_n) > kLeastTile) {
      int64_t& longer = tile_m > tile_n ? tile_m : tile_n;
      longer = halved(longer);
    }
  }

  int64_t rows() const { return (m + tile_m - 1) / tile_m; }
  int64_t columns() const { return (n + tile_n - 1) / tile_n; }
  int64_t tiles() const { return rows() * columns(); }

  int64_t m, n;
  int64_t tile_m, tile_n;

  struct Tile {
    int64_t i, j;  // first row and column of c
    int64_t rows, columns;
  };
  Tile tile(int64_t index) const {
    const int64_t i = index / columns() * tile_m, j = index % columns() * tile_n;
    return {i, j, std::min(tile_m, m - i), std::min(tile_n, n - j)};
  }

 private:
  static int64_t rounded(int64_t size) { return (size + kLeastTile - 1) / kLeastTile * kLeastTile; }
  static int64_t start(int64_t size) { return std::clamp(rounded(size), kLeastTile, kTile); }
  static int64_t halved(int64_t tile) { return rounded(tile / 2); }
};

// While it lives, libraries that the calling thread calls use one OpenMP thread: our pool is the
// only source of parallelism, and OpenMP's threads are the process's, not the rank's.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(before_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  int before_;
};

// c = beta c, for k = 0.
void scale_only(const Gemm& args);

// The bf16 rows (gemm_bf16.cc): matrix products of oneDNN where the machine has AVX-512, and
// conversion to f32 elsewhere.
bool has_onednn_bf16();
void gemm_bf16_onednn(const Context&, const Gemm&);
void gemm_bf16_convert(const Context&, const Gemm&);

}  // namespace longhaul::kernels::cpu
