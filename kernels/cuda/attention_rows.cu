#include "kernels/cuda/attention_rows.h"

#include <limits>

#include "kernels/cuda/device_code.h"
#include "kernels/segment.h"

namespace longhaul::kernels::cuda {

namespace {

// Rows [t, h] of a tensor [T, H, D] and of one [H, T], a warp each.
constexpr int kThreads = 256;
Grid grid_of_rows(int64_t rows) { return grid_for(rows * kWarp, kThreads); }
__device__ int64_t first_row() { return grid_first() / kWarp; }
__device__ int64_t row_stride() { return grid_stride() / kWarp; }

template <class A>
__global__ void fill_kernel(A* p, int64_t n, A value) {
  for (int64_t i = grid_first(); i < n; i += grid_stride()) p[i] = value;
}

template <class T>
struct Heads {
  const T* p;
  int64_t token, head;  // strides
  __device__ const T* row(int64_t t, int64_t h) const { return p + t * token + h * head; }
};
template <class T>
Heads<T> heads_of(const ConstTensorView& x) {
  return {x.data<T>(), x.stride(0), x.stride(1)};
}

template <class O, class T>
__global__ void delta_kernel(int64_t tokens, int64_t heads, int64_t dim, Heads<O> out,
                             Heads<T> dout, Accumulator<T>* delta) {
  using A = Accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t row = first_row(); row < tokens * heads; row += row_stride()) {
    const int64_t t = row / heads, h = row % heads;
    const O* o = out.row(t, h);
    const T* g = dout.row(t, h);
    A sum = 0;
    for (int64_t d = lane; d < dim; d += kWarp) sum += static_cast<A>(o[d]) * static_cast<A>(g[d]);
    sum = warp_sum(sum);
    if (lane == 0) delta[h * tokens + t] = sum;
  }
}

template <class A>
__global__ void merge_kernel(int64_t tokens, int64_t heads, int64_t dim, const A* part,
                             const A* part_lse, A* out, A* lse) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t row = first_row(); row < tokens * heads; row += row_stride()) {
    const int64_t t = row / heads, h = row % heads;
    const MergeFactors<A> f = merge_factors(lse[h * tokens + t], part_lse[h * tokens + t]);
    __syncwarp();  // all have read lse
    if (lane == 0) lse[h * tokens + t] = f.lse;
    for (int64_t d = row * dim + lane; d < (row + 1) * dim; d += kWarp) {
      out[d] = out[d] * f.first + part[d] * f.second;
    }
  }
}

template <class O, class T>
void delta_of(const Context& ctx, ConstTensorView out, ConstTensorView dout, TensorView delta) {
  launch(ctx, "attention delta", delta_kernel<O, T>, grid_of_rows(dout.dim(0) * dout.dim(1)),
         dout.dim(0), dout.dim(1), dout.dim(2), heads_of<O>(out), heads_of<T>(dout),
         delta.data<Accumulator<T>>());
}

template <class A>
void fill(const Context& ctx, TensorView x, A value) {
  launch(ctx, "attention init", fill_kernel<A>, grid_for(x.elements()), x.data<A>(), x.elements(),
         value);
}

}  // namespace

template <class A>
void attention_init(const Context& ctx, TensorView out_acc, TensorView lse) {
  if (ctx.measuring() || lse.empty()) return;
  fill(ctx, out_acc, A(0));
  fill(ctx, lse, -std::numeric_limits<A>::infinity());
}

template <class T>
void attention_delta(const Context& ctx, ConstTensorView out, ConstTensorView dout,
                     TensorView delta) {
  if (ctx.measuring() || dout.empty()) return;
  if (out.dtype() == dout.dtype()) return delta_of<T, T>(ctx, out, dout, delta);
  delta_of<Accumulator<T>, T>(ctx, out, dout, delta);
}

template <class A>
void attention_merge(const Context& ctx, ConstTensorView part, ConstTensorView part_lse,
                     TensorView out_acc, TensorView lse) {
  if (ctx.measuring() || lse.empty()) return;
  launch(ctx, "attention merge", merge_kernel<A>, grid_of_rows(lse.elements()), out_acc.dim(0),
         out_acc.dim(1), out_acc.dim(2), part.data<A>(), part_lse.data<A>(), out_acc.data<A>(),
         lse.data<A>());
}

template void attention_init<float>(const Context&, TensorView, TensorView);
template void attention_init<double>(const Context&, TensorView, TensorView);
template void attention_delta<bf16>(const Context&, ConstTensorView, ConstTensorView, TensorView);
template void attention_delta<float>(const Context&, ConstTensorView, ConstTensorView, TensorView);
template void attention_delta<double>(const Context&, ConstTensorView, ConstTensorView, TensorView);
template void attention_merge<float>(const Context&, ConstTensorView, ConstTensorView, TensorView,
                                     TensorView);
template void attention_merge<double>(const Context&, ConstTensorView, ConstTensorView, TensorView,
                                      TensorView);

}  // namespace longhaul::kernels::cuda
