// One pass over memory: a warp for each row and head.
#include "kernels/linear_attention_diagonal.h"

#include "kernels/cuda/attention_arguments.h"
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int kThreadsOfBlock = 256;

template <class T>
__global__ void __launch_bounds__(kThreadsOfBlock)
    subtract_kernel(int64_t rows, int64_t heads, Operand<T> a, Operand<T> b, Operand<T> c,
                    Accumulator<T>* y) {
  using A = Accumulator<T>;
  const auto lane = static_cast<int>(threadIdx.x % kWarp);
  for (int64_t n = grid_first() / kWarp; n < rows * heads; n += grid_stride() / kWarp) {
    const int64_t t = n / heads, h = n - t * heads;
    const T *left = a.of_head(h).row(t), *right = b.of_head(h).row(t), *from = c.of_head(h).row(t);
    A product = 0;
    for (int d = lane; d < a.dim; d += kWarp) {
      product += static_cast<A>(left[d]) * static_cast<A>(right[d]);
    }
    product = warp_sum(product);
    for (int e = lane; e < c.dim; e += kWarp) {
      y[n * c.dim + e] -= product * static_cast<A>(from[e]);
    }
  }
}

template <class T>
void subtract(const Context& ctx, const LinearAttentionDiagonal& args) {
  if (ctx.measuring() || args.y.empty()) return;
  const int64_t rows = args.y.dim(0), heads = args.y.dim(1);
  launch(ctx, "linear attention: diagonal", subtract_kernel<T>,
         grid_for(rows * heads * kWarp, kThreadsOfBlock), rows, heads, operand<T>(args.a),
         operand<T>(args.b), operand<T>(args.c), args.y.data<Accumulator<T>>());
}

template <class T>
constexpr LinearAttentionDiagonalKernel row() {
  return {
      .name = "cuda-simt", .dtype = dtype_of<T>, .available = available, .subtract = subtract<T>};
}
constexpr LinearAttentionDiagonalKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const LinearAttentionDiagonalKernel> linear_attention_diagonal_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
