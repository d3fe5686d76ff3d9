// Stands in for kernels/cuda/gemm.cc, whose library has no emulator: the same table with a plain
// kernel, a thread a row of c.
#include "kernels/gemm.h"

#include <algorithm>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int64_t kColumns = 256;  // that are summed side by side

template <class T>
struct Operand {
  const T* p;
  int64_t down, right;  // distance to the next row and column of op(x)
};
template <class T>
Operand<T> operand(const ConstTensorView& x, Transpose transpose) {
  if (transpose == Transpose::kYes) return {x.data<T>(), 1, x.stride(0)};
  return {x.data<T>(), x.stride(0), 1};
}

template <class T, class C>
__global__ void product_kernel(int64_t m, int64_t n, int64_t k, Operand<T> a, Operand<T> b, C* c,
                               int64_t stride, bool add) {
  using A = Accumulator<T>;
  for (int64_t i = grid_first(); i < m; i += grid_stride()) {
    for (int64_t begin = 0; begin < n; begin += kColumns) {
      const int64_t count = std::min(kColumns, n - begin);
      A sums[kColumns] = {};
      for (int64_t p = 0; p < k; ++p) {
        const A left = static_cast<A>(a.p[i * a.down + p * a.right]);
        const T* right = b.p + p * b.down + begin * b.right;
        for (int64_t j = 0; j < count; ++j) sums[j] += left * static_cast<A>(right[j * b.right]);
      }
      C* row = c + i * stride + begin;
      for (int64_t j = 0; j < count; ++j) {
        row[j] = static_cast<C>(add ? sums[j] + static_cast<A>(row[j]) : sums[j]);
      }
    }
  }
}

template <class T>
void run(const Context& ctx, const Gemm& args) {
  // A workspace as the library's, so that callers who forget to measure are found.
  const Arena::Scope scope(*ctx.scratch);
  ctx.scratch->allocate(DType::kF32, {256});
  if (ctx.measuring() || args.c.empty()) return;
  const int64_t m = args.c.dim(0), n = args.c.dim(1);
  const int64_t k = args.a.dim(args.transpose_a == Transpose::kYes ? 0 : 1);
  const auto product = [&]<class C>() {
    launch(ctx, "gemm", product_kernel<T, C>, grid_for(m, kWarp), m, n, k,
           operand<T>(args.a, args.transpose_a), operand<T>(args.b, args.transpose_b),
           args.c.data<C>(), args.c.stride(0), args.beta != 0.0);
  };
  if (args.c.dtype() == dtype_of<T>) {
    product.template operator()<T>();
  } else {
    product.template operator()<Accumulator<T>>();
  }
}

constexpr GemmKernel kTable[] = {{"emulated", DType::kBF16, available, run<bf16>},
                                 {"emulated", DType::kF32, available, run<float>},
                                 {"emulated", DType::kF64, available, run<double>}};

}  // namespace

std::span<const GemmKernel> gemm_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
