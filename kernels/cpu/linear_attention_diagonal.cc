// One pass over memory: plain loops in parallel over rows.
#include "kernels/linear_attention_diagonal.h"

#include <algorithm>

#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 16384;

template <class T>
void subtract(const Context& ctx, const LinearAttentionDiagonal& args) {
  using A = Accumulator<T>;
  if (ctx.measuring() || args.y.empty()) return;
  const int64_t heads = args.y.dim(1), products = args.a.dim(2), width = args.y.dim(2);
  const auto row = [](const ConstTensorView& view, int64_t t, int64_t h) {
    return view.data<T>() + t * view.stride(0) + h * view.stride(1);
  };
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (heads * (products + width)));
  ctx.parallel_for(args.y.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const T *a = row(args.a, t, h), *b = row(args.b, t, h), *c = row(args.c, t, h);
        A* y = args.y.data<A>() + (t * heads + h) * width;
        A product = 0;
        for (int64_t d = 0; d < products; ++d)
          product += static_cast<A>(a[d]) * static_cast<A>(b[d]);
        for (int64_t e = 0; e < width; ++e) y[e] -= product * static_cast<A>(c[e]);
      }
    }
  });
}

template <class T>
constexpr LinearAttentionDiagonalKernel row() {
  return {.name = "loops",
          .dtype = dtype_of<T>,
          .available = always_available,
          .subtract = subtract<T>};
}
constexpr LinearAttentionDiagonalKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const LinearAttentionDiagonalKernel> linear_attention_diagonal_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
