// A block per row, or per run of rows where dweight is summed: every block has the sums of its rows
// in memory of its own, which a second kernel adds up in order.
#include "kernels/rms_norm.h"

#include "kernels/cuda/hardware.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int kMostThreads = 256;
// Sums of dweight: constants, so that their order depends on the shape alone.
constexpr int64_t kRowsPerPart = 8;  // at least
constexpr int64_t kParts = 512;      // at most
constexpr int kGroups = 8;           // of parts, which are added up side by side
// What a block may keep its sums of dweight in; beyond, they lie in global memory.
constexpr size_t kMostSharedBytes = size_t{96} << 10;

template <int kN>
int threads_for(int64_t channels) {
  const int64_t warps = (channels + kN * kWarp - 1) / (kN * kWarp);
  return static_cast<int>(std::clamp<int64_t>(warps * kWarp, kWarp, kMostThreads));
}

// f(column, count) for this thread's pieces of a row.
template <int kN, class F>
__device__ __forceinline__ void for_columns(int64_t channels, F&& f) {
  for (int64_t c = int64_t{threadIdx.x} * kN; c < channels; c += int64_t{blockDim.x} * kN) {
    f(c, std::min<int64_t>(kN, channels - c));
  }
}

template <class T, int kN>
__global__ void forward_kernel(int64_t rows, int64_t channels, Rows<const T> x, const T* weight,
                               Accumulator<T> eps, Rows<T> y, Accumulator<T>* rstd) {
  using A = Accumulator<T>;
  __shared__ A of_warps[kMostThreads / kWarp];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    A squares = 0;
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      const Pack<T, kN> v = load<kN>(x.at(row, c), count);
#pragma unroll
      for (int i = 0; i < kN; ++i) squares += static_cast<A>(v.e[i]) * static_cast<A>(v.e[i]);
    });
    squares = block_sum(squares, of_warps);
    const A r = A(1) / sqrt(squares / static_cast<A>(channels) + eps);
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      const Pack<T, kN> v = load<kN>(x.at(row, c), count), w = load<kN>(weight + c, count);
      Pack<T, kN> result;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        result.e[i] = T(static_cast<A>(v.e[i]) * r * static_cast<A>(w.e[i]));
      }
      store(result, y.at(row, c), count);
    });
    if (threadIdx.x == 0) rstd[row] = r;
  }
}

// parts[blockIdx.x] = this block's share of dweight.
template <class T, int kN>
__global__ void backward_kernel(int64_t rows, int64_t channels, Rows<const T> dy, Rows<const T> x,
                                const T* weight, const Accumulator<T>* rstd, Rows<T> dx,
                                Accumulator<T>* parts, int64_t part_stride, bool in_shared) {
  using A = Accumulator<T>;
  __shared__ A of_warps[kMostThreads / kWarp];
  A* part = parts + blockIdx.x * part_stride;
  // A thread reads and writes the sums of its own columns only.
  A* sums = in_shared ? reinterpret_cast<A*>(dynamic_shared()) : part;
  for_columns<kN>(channels, [&](int64_t c, int64_t count) {
    for (int64_t i = 0; i < count; ++i) sums[c + i] = 0;
  });
  const int64_t begin = rows * blockIdx.x / gridDim.x, end = rows * (blockIdx.x + 1) / gridDim.x;
  for (int64_t row = begin; row < end; ++row) {
    const A r = rstd[row];
    A along = 0;
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      const Pack<T, kN> g = load<kN>(dy.at(row, c), count), v = load<kN>(x.at(row, c), count);
      const Pack<T, kN> w = load<kN>(weight + c, count);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        along += static_cast<A>(g.e[i]) * static_cast<A>(w.e[i]) * (static_cast<A>(v.e[i]) * r);
      }
    });
    const A mean = block_sum(along, of_warps) / static_cast<A>(channels);
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      const Pack<T, kN> g = load<kN>(dy.at(row, c), count), v = load<kN>(x.at(row, c), count);
      const Pack<T, kN> w = load<kN>(weight + c, count);
      Pack<T, kN> d = load<kN>(dx.at(row, c), count);
      Pack<A, kN> sum = load<kN>(sums + c, count);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const A grad = static_cast<A>(g.e[i]), normal = static_cast<A>(v.e[i]) * r;
        d.e[i] = T(static_cast<A>(d.e[i]) + r * (grad * static_cast<A>(w.e[i]) - normal * mean));
        sum.e[i] += grad * normal;
      }
      store(d, dx.at(row, c), count);
      store(sum, sums + c, count);
    });
  }
  if (!in_shared) return;
  for_columns<kN>(channels, [&](int64_t c, int64_t count) {
    store(load<kN>(sums + c, count), part + c, count);
  });
}

// dweight += all parts. A warp takes every kGroups-th part of 32 columns; then the warps' sums are
// added in order.
template <class A>
__global__ void add_parts_kernel(int64_t parts, int64_t channels, int64_t stride, const A* from,
                                 A* dweight) {
  __shared__ A sums[kGroups][kWarp];
  const int group = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t column = int64_t{blockIdx.x} * kWarp + lane;
  A sum = 0;
  if (column < channels) {
#pragma unroll 8
    for (int64_t part = group; part < parts; part += kGroups) sum += from[part * stride + column];
  }
  sums[group][lane] = sum;
  __syncthreads();
  if (group > 0 || column >= channels) return;
  A total = dweight[column];
  for (int g = 0; g < kGroups; ++g) total += sums[g][lane];
  dweight[column] = total;
}

template <class T, int kN>
void run_forward(const Context& ctx, const RmsNormForward& args) {
  using A = Accumulator<T>;
  const int64_t rows = args.x.dim(0), channels = args.x.dim(1);
  launch(ctx, "rms_norm forward", forward_kernel<T, kN>,
         grid_for(rows * threads_for<kN>(channels), threads_for<kN>(channels)), rows, channels,
         rows_of<T>(args.x), args.weight.data<T>(), static_cast<A>(args.eps), rows_to<T>(args.y),
         args.rstd.data<A>());
}

template <class T>
void forward(const Context& ctx, const RmsNormForward& args) {
  if (ctx.measuring() || args.x.dim(0) == 0) return;
  if (vectors_allowed({args.x, args.weight, args.y})) {
    run_forward<T, kPiece<T>>(ctx, args);
  } else {
    run_forward<T, 1>(ctx, args);
  }
}

template <class T, int kN>
void run_backward(const Context& ctx, const RmsNormBackward& args, const TensorView& parts) {
  using A = Accumulator<T>;
  const int64_t rows = args.x.dim(0), channels = args.x.dim(1);
  const size_t bytes = static_cast<size_t>(channels) * sizeof(A);
  const bool in_shared = bytes <= kMostSharedBytes;
  launch(ctx, "rms_norm backward", backward_kernel<T, kN>,
         {.blocks = dim3(static_cast<unsigned>(parts.dim(0))),
          .threads = dim3(static_cast<unsigned>(threads_for<kN>(channels))),
          .shared_bytes = in_shared ? bytes : 0},
         rows, channels, rows_of<T>(args.dy), rows_of<T>(args.x), args.weight.data<T>(),
         args.rstd.data<A>(), rows_to<T>(args.dx), parts.data<A>(), parts.dim(1), in_shared);
}

template <class T>
void backward(const Context& ctx, const RmsNormBackward& args) {
  using A = Accumulator<T>;
  const int64_t rows = args.x.dim(0), channels = args.x.dim(1);
  const int64_t count = std::clamp<int64_t>(rows / kRowsPerPart, 1, kParts);
  // Padded, so that vectors may be used in every part.
  const int64_t stride = (channels + kPiece<T> - 1) / kPiece<T> * kPiece<T>;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView parts = ctx.scratch->allocate(dtype_of<A>, {count, stride});
  if (ctx.measuring() || args.x.empty()) return;
  if (vectors_allowed({args.dy, args.x, args.weight, args.dx})) {
    run_backward<T, kPiece<T>>(ctx, args, parts);
  } else {
    run_backward<T, 1>(ctx, args, parts);
  }
  launch(ctx, "rms_norm backward: dweight", add_parts_kernel<A>,
         {.blocks = dim3(static_cast<unsigned>((channels + kWarp - 1) / kWarp)),
          .threads = dim3(kGroups * kWarp)},
         count, channels, stride, parts.data<A>(), args.dweight.data<A>());
}

template <class T>
constexpr RmsNormKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr RmsNormKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const RmsNormKernel> rms_norm_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
