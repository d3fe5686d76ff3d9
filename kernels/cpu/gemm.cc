#include "kernels/gemm.h"

#include <vector>

#include "dnnl.hpp"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

void scale_only(const Gemm& args) {
  if (args.beta != 0.0) return;
  const int64_t bytes = args.c.dim(1) * size_of(args.c.dtype());
  for (int64_t i = 0; i < args.c.dim(0); ++i) {
    std::byte* row = args.c.raw() + i * args.c.stride(0) * size_of(args.c.dtype());
    std::fill_n(row, bytes, std::byte{0});
  }
}

namespace {

void run_f32(const Context& ctx, const Gemm& args) {
  if (ctx.measuring() || args.c.empty()) return;
  const Product p(args);
  if (p.k == 0) return scale_only(args);
  const Tiling tiling(p, ctx.pool->threads());
  const float *a = args.a.data<float>(), *b = args.b.data<float>();
  float* c = args.c.data<float>();
  for (int64_t k0 = 0; k0 < p.k; k0 += Tiling::kChunk) {
    const int64_t depth = std::min(Tiling::kChunk, p.k - k0);
    const float beta = k0 == 0 ? static_cast<float>(args.beta) : 1.0f;
    ctx.pool->run(
        tiling.tiles(),
        [&](int64_t task, int) {
          const OneOpenMpThread guard;
          const Tiling::Tile t = tiling.tile(task);
          const auto status =
              dnnl::sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', t.rows, t.columns,
                          depth, 1.0f, a + p.a_at(t.i, k0), p.lda, b + p.b_at(k0, t.j), p.ldb, beta,
                          c + t.i * p.ldc + t.j, p.ldc);
          LONGHAUL_CHECK(status == dnnl::status::success, "dnnl_sgemm");
        },
        ctx.poll);
  }
}

// One row of c from a row of op(a) without gaps.
void row_f64(const Product& p, const double* a, const double* b, const Tiling::Tile& t, double* c) {
  if (p.transpose_b) {
    for (int64_t j = 0; j < t.columns; ++j) {
      const double* bj = b + p.b_at(0, t.j + j);
      double sum = 0;
      for (int64_t q = 0; q < p.k; ++q) sum += a[q] * bj[q];
      c[j] += sum;
    }
    return;
  }
  for (int64_t q = 0; q < p.k; ++q) {
    const double* bq = b + p.b_at(q, t.j);
    for (int64_t j = 0; j < t.columns; ++j) c[j] += a[q] * bq[j];
  }
}

// f64 is for proofs, not for speed: oneDNN has none.
void run_f64(const Context& ctx, const Gemm& args) {
  if (ctx.measuring() || args.c.empty()) return;
  const Product p(args);
  if (p.k == 0) return scale_only(args);
  const Tiling tiling(p, ctx.pool->threads());
  const double *a = args.a.data<double>(), *b = args.b.data<double>();
  double* c = args.c.data<double>();
  ctx.pool->run(
      tiling.tiles(),
      [&](int64_t task, int) {
        const Tiling::Tile t = tiling.tile(task);
        std::vector<double> row(static_cast<size_t>(p.k));
        for (int64_t i = t.i; i < t.i + t.rows; ++i) {
          for (int64_t q = 0; q < p.k; ++q) row[static_cast<size_t>(q)] = a[p.a_at(i, q)];
          double* out = c + i * p.ldc + t.j;
          if (args.beta == 0.0) std::fill_n(out, t.columns, 0.0);
          row_f64(p, row.data(), b, t, out);
        }
      },
      ctx.poll);
}

constexpr GemmKernel kTable[] = {
    {"onednn", DType::kBF16, has_onednn_bf16, gemm_bf16_onednn},
    {"onednn-by-f32", DType::kBF16, always_available, gemm_bf16_convert},
    {"onednn", DType::kF32, always_available, run_f32},
    {"plain", DType::kF64, always_available, run_f64}};

}  // namespace

std::span<const GemmKernel> gemm_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
