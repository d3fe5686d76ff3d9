#include "kernels/decay_gate.h"

#include "kernels/cuda/activations.h"
#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

// Sums over rows: constants, so that their order depends on the shape alone.
constexpr int64_t kRowsPerPart = 64;  // at least
constexpr int64_t kParts = 1024;      // at most
constexpr int kGroups = 8;            // rows of a part side by side, each with a warp for 32 heads

template <class T>
struct Forward {
  using A = Accumulator<T>;
  Rows<const T> x;
  const T *a_log, *bias;
  Rows<A> y;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<T, kN> from = load<kN>(x.at(row, column), count);
    const Pack<T, kN> log_rate = load<kN>(a_log + column, count),
                      b = load<kN>(bias + column, count);
    Pack<A, kN> to;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const A z = static_cast<A>(from.e[i]) + static_cast<A>(b.e[i]);
      to.e[i] = -exp(static_cast<A>(log_rate.e[i])) * softplus(z, sides(z));
    }
    store(to, y.at(row, column), count);
  }
};

// parts[blockIdx.y] = this block's share of da_log and, `heads` further on, of dbias.
template <class T>
__global__ void backward_kernel(int64_t rows, int64_t heads, Rows<const Accumulator<T>> dy,
                                Rows<const T> x, const T* a_log, const T* bias, Rows<T> dx,
                                Accumulator<T>* parts) {
  using A = Accumulator<T>;
  __shared__ A sums[2][kGroups][kWarp];
  const int group = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t head = int64_t{blockIdx.x} * kWarp + lane;
  A of_a = 0, of_bias = 0;
  if (head < heads) {
    const A rate = exp(static_cast<A>(a_log[head])), b = static_cast<A>(bias[head]);
    const int64_t begin = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + 1) / gridDim.y;
    for (int64_t row = begin + group; row < end; row += kGroups) {
      const A z = static_cast<A>(*x.at(row, head)) + b, grad = -*dy.at(row, head) * rate;
      const Sides<A> side = sides(z);
      const A slope = grad * (z < A(0) ? side.smaller : side.larger);
      *dx.at(row, head) = T(slope);
      of_bias += slope;
      of_a += grad * softplus(z, side);
    }
  }
  sums[0][group][lane] = of_a;
  sums[1][group][lane] = of_bias;
  __syncthreads();
  if (group > 1 || head >= heads) return;
  A total = 0;
  for (int g = 0; g < kGroups; ++g) total += sums[group][g][lane];
  parts[(int64_t{blockIdx.y} * 2 + group) * heads + head] = total;
}

template <class T>
void forward(const Context& ctx, const DecayGateForward& args) {
  if (ctx.measuring() || args.x.empty()) return;
  using A = Accumulator<T>;
  for_pieces<T>(ctx, "decay_gate forward", args.x.dim(0), args.x.dim(1),
                vectors_allowed({args.x, args.a_log, args.bias, args.y}),
                Forward<T>{rows_of<T>(args.x), args.a_log.data<T>(), args.bias.data<T>(),
                           rows_to<A>(args.y)});
}

template <class T>
void backward(const Context& ctx, const DecayGateBackward& args) {
  using A = Accumulator<T>;
  const int64_t rows = args.x.dim(0), heads = args.x.dim(1);
  const int64_t count = std::clamp<int64_t>(rows / kRowsPerPart, 1, kParts);
  const Arena::Scope scope(*ctx.scratch);
  const TensorView parts = ctx.scratch->allocate(dtype_of<A>, {count, 2, heads});
  if (ctx.measuring() || args.x.empty()) return;
  launch(ctx, "decay_gate backward", backward_kernel<T>,
         {.blocks = dim3(static_cast<unsigned>((heads + kWarp - 1) / kWarp),
                         static_cast<unsigned>(count)),
          .threads = dim3(kGroups * kWarp)},
         rows, heads, rows_of<A>(args.dy), rows_of<T>(args.x), args.a_log.data<T>(),
         args.bias.data<T>(), rows_to<T>(args.dx), parts.data<A>());
  add_parts(ctx, "decay_gate backward: da_log", count, heads, 2 * heads, parts.data<A>(),
            args.da_log.data<A>());
  add_parts(ctx, "decay_gate backward: dbias", count, heads, 2 * heads, parts.data<A>() + heads,
            args.dbias.data<A>());
}

template <class T>
constexpr DecayGateKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr DecayGateKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const DecayGateKernel> decay_gate_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
