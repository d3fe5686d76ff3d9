// A learnable sink: a warp for each query and head forward, a block for each head backward.
#include "kernels/attention_sink.h"

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/tables.h"
#include "kernels/segment.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void sink_forward_kernel(int64_t queries, int64_t heads, int64_t dim, const T* sink,
                                    Accumulator<T>* out, Accumulator<T>* lse) {
  using A = Accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t row = grid_first() / kWarp; row < queries * heads; row += grid_stride() / kWarp) {
    const int64_t t = row / heads, h = row % heads;
    const MergeFactors<A> f = merge_factors(lse[h * queries + t], static_cast<A>(sink[h]));
    __syncwarp();  // all have read lse
    if (lane == 0) lse[h * queries + t] = f.lse;
    for (int64_t d = row * dim + lane; d < (row + 1) * dim; d += kWarp) out[d] *= f.first;
  }
}

// A head's sum: of each thread in f64, then over the block, in an order that the number of queries
// alone decides.
template <class T>
__global__ void sink_backward_kernel(int64_t queries, const T* sink, const Accumulator<T>* lse,
                                     const Accumulator<T>* delta, Accumulator<T>* dsink) {
  using A = Accumulator<T>;
  __shared__ double of_warps[kThreads / kWarp];
  const int64_t h = blockIdx.x;
  const A of_head = static_cast<A>(sink[h]);
  double sum = 0;
  for (int64_t t = threadIdx.x; t < queries; t += blockDim.x) {
    const int64_t at = h * queries + t;
    sum += static_cast<double>(sink_probability(of_head, lse[at]) * delta[at]);
  }
  sum = block_sum(sum, of_warps);
  if (threadIdx.x == 0) dsink[h] -= static_cast<A>(sum);
}

template <class T>
void forward(const Context& ctx, const AttentionSinkForward& args) {
  using A = Accumulator<T>;
  if (ctx.measuring() || args.lse.empty()) return;
  launch(ctx, "attention sink", sink_forward_kernel<T>,
         grid_for(args.lse.elements() * kWarp, kThreads), args.out_acc.dim(0), args.out_acc.dim(1),
         args.out_acc.dim(2), args.sink.data<T>(), args.out_acc.data<A>(), args.lse.data<A>());
}

template <class T>
void backward(const Context& ctx, const AttentionSinkBackward& args) {
  using A = Accumulator<T>;
  if (ctx.measuring() || args.lse.empty()) return;
  launch(ctx, "attention sink: dsink", sink_backward_kernel<T>,
         {.blocks = dim3(static_cast<unsigned>(args.lse.dim(0))), .threads = dim3(kThreads)},
         args.lse.dim(1), args.sink.data<T>(), args.lse.data<A>(), args.delta.data<A>(),
         args.dsink.data<A>());
}

template <class T>
constexpr AttentionSinkKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr AttentionSinkKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const AttentionSinkKernel> attention_sink_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
