// A block per row, or per run of rows where dweight is summed: every block has the sums of its rows
// in memory of its own, which a second kernel adds up in order. Narrow rows: rms_norm_narrow.h.
#include "kernels/rms_norm.h"

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/hardware.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/rms_norm_narrow.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int kMostThreads = 256;
// Sums of dweight: constants, so that their order depends on the shape alone. A part has at least
// so many rows, or so many times the narrow rows that a block has at once.
constexpr int64_t kRowsPerPart = 8;
constexpr int64_t kParts = 512;       // at most
constexpr int64_t kBlocks = 1 << 16;  // at most, where nothing is summed
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

template <class T, int kN, bool kWeight>
__global__ void forward_kernel(int64_t rows, int64_t channels, Rows<const T> x, const T* weight,
                               Accumulator<T> eps, Accumulator<T> scale, Rows<T> y,
                               Accumulator<T>* rstd) {
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
    const A factor = r * scale;
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      const Pack<T, kN> v = load<kN>(x.at(row, c), count);
      const Pack<A, kN> w = weights<kN, kWeight>(weight, c, count);
      Pack<T, kN> result;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        result.e[i] = T(static_cast<A>(v.e[i]) * factor * w.e[i]);
      }
      store(result, y.at(row, c), count);
    });
    if (threadIdx.x == 0) rstd[row] = r;
  }
}

// parts[blockIdx.x] = this block's share of dweight, if there is a weight.
template <class T, int kN, bool kWeight>
__global__ void backward_kernel(int64_t rows, int64_t channels, Rows<const T> dy, Rows<const T> x,
                                const T* weight, const Accumulator<T>* rstd, Accumulator<T> scale,
                                Rows<T> dx, Accumulator<T>* parts, int64_t part_stride,
                                bool in_shared) {
  using A = Accumulator<T>;
  __shared__ A of_warps[kMostThreads / kWarp];
  A* part = parts + blockIdx.x * part_stride;
  // A thread reads and writes the sums of its own columns only.
  A* sums = in_shared ? reinterpret_cast<A*>(dynamic_shared()) : part;
  if constexpr (kWeight) {
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      for (int64_t i = 0; i < count; ++i) sums[c + i] = 0;
    });
  }
  const int64_t begin = rows * blockIdx.x / gridDim.x, end = rows * (blockIdx.x + 1) / gridDim.x;
  for (int64_t row = begin; row < end; ++row) {
    const A r = rstd[row];
    A along = 0;
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      const Pack<T, kN> g = load<kN>(dy.at(row, c), count), v = load<kN>(x.at(row, c), count);
      const Pack<A, kN> w = weights<kN, kWeight>(weight, c, count);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        along += static_cast<A>(g.e[i]) * w.e[i] * (static_cast<A>(v.e[i]) * r);
      }
    });
    const A mean = block_sum(along, of_warps) / static_cast<A>(channels), factor = r * scale;
    for_columns<kN>(channels, [&](int64_t c, int64_t count) {
      const Pack<T, kN> g = load<kN>(dy.at(row, c), count), v = load<kN>(x.at(row, c), count);
      const Pack<A, kN> w = weights<kN, kWeight>(weight, c, count);
      Pack<T, kN> d = load<kN>(dx.at(row, c), count);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const A normal = static_cast<A>(v.e[i]) * r;
        d.e[i] =
            T(static_cast<A>(d.e[i]) + factor * (static_cast<A>(g.e[i]) * w.e[i] - normal * mean));
      }
      store(d, dx.at(row, c), count);
      if constexpr (kWeight) {
        Pack<A, kN> sum = load<kN>(sums + c, count);
#pragma unroll
        for (int i = 0; i < kN; ++i) {
          sum.e[i] += scale * static_cast<A>(g.e[i]) * (static_cast<A>(v.e[i]) * r);
        }
        store(sum, sums + c, count);
      }
    });
  }
  if (!kWeight || !in_shared) return;
  for_columns<kN>(channels, [&](int64_t c, int64_t count) {
    store(load<kN>(sums + c, count), part + c, count);
  });
}

// f.operator()<kN, kWeight>()
template <class T, class F>
void visit(bool vectors, bool weight, F&& f) {
  const auto with = [&]<int kN>() {
    if (weight) {
      f.template operator()<kN, true>();
    } else {
      f.template operator()<kN, false>();
    }
  };
  if (vectors) {
    with.template operator()<kPiece<T>>();
  } else {
    with.template operator()<1>();
  }
}

template <class T>
const T* weight_of(const ConstTensorView& weight) {
  return weight.rank() > 0 ? weight.data<T>() : nullptr;
}

template <class T>
void forward(const Context& ctx, const RmsNormForward& args) {
  if (ctx.measuring() || args.x.dim(0) == 0) return;
  using A = Accumulator<T>;
  const int64_t rows = args.x.dim(0), channels = args.x.dim(1);
  const T* weight = weight_of<T>(args.weight);
  const bool vectors = vectors_allowed({args.x, args.weight, args.y});
  visit<T>(vectors, weight != nullptr, [&]<int kN, bool kWeight>() {
    if (const int lanes = lanes_of_row<kN>(channels); lanes > 0) {
      launch(ctx, "rms_norm forward", narrow_forward_kernel<T, kN, kWeight>,
             grid_for(rows * lanes, kNarrowThreads), rows, channels, lanes, rows_of<T>(args.x),
             weight, static_cast<A>(args.eps), static_cast<A>(args.scale), rows_to<T>(args.y),
             args.rstd.data<A>());
      return;
    }
    launch(ctx, "rms_norm forward", forward_kernel<T, kN, kWeight>,
           grid_for(rows * threads_for<kN>(channels), threads_for<kN>(channels)), rows, channels,
           rows_of<T>(args.x), weight, static_cast<A>(args.eps), static_cast<A>(args.scale),
           rows_to<T>(args.y), args.rstd.data<A>());
  });
}

// By the shape alone, as scratch is.
template <class T>
int64_t blocks_of_backward(int64_t rows, int64_t channels, bool weighted) {
  const int lanes = lanes_of_row<kPiece<T>>(channels);
  const int64_t at_once = lanes > 0 ? kNarrowThreads / lanes : 1;
  // Without sums, a block needs no more rows than it has at once.
  if (!weighted) return std::min((rows + at_once - 1) / at_once, kBlocks);
  return std::clamp<int64_t>(rows / (kRowsPerPart * at_once), 1, kParts);
}

template <class T>
void backward(const Context& ctx, const RmsNormBackward& args) {
  using A = Accumulator<T>;
  const int64_t rows = args.x.dim(0), channels = args.x.dim(1);
  const bool weighted = args.weight.rank() > 0;
  const int64_t count = blocks_of_backward<T>(rows, channels, weighted);
  // Padded, so that vectors may be used in every part.
  const int64_t stride = (channels + kPiece<T> - 1) / kPiece<T> * kPiece<T>;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView parts =
      weighted ? ctx.scratch->allocate(dtype_of<A>, {count, stride}) : TensorView();
  if (ctx.measuring() || args.x.empty()) return;
  const T* weight = weight_of<T>(args.weight);
  A* sums = weighted ? parts.data<A>() : nullptr;
  const size_t bytes = static_cast<size_t>(channels) * sizeof(A);
  const bool in_shared = weighted && bytes <= kMostSharedBytes;
  const bool vectors = vectors_allowed({args.dy, args.x, args.weight, args.dx});
  visit<T>(vectors, weighted, [&]<int kN, bool kWeight>() {
    if (const int lanes = lanes_of_row<kN>(channels); lanes > 0) {
      const auto at_once = static_cast<size_t>(kNarrowThreads / lanes);
      launch(ctx, "rms_norm backward", narrow_backward_kernel<T, kN, kWeight>,
             {.blocks = dim3(static_cast<unsigned>(count)),
              .threads = dim3(kNarrowThreads),
              .shared_bytes = kWeight ? at_once * bytes : 0},
             rows, channels, lanes, rows_of<T>(args.dy), rows_of<T>(args.x), weight,
             args.rstd.data<A>(), static_cast<A>(args.scale), rows_to<T>(args.dx), sums, stride);
      return;
    }
    launch(ctx, "rms_norm backward", backward_kernel<T, kN, kWeight>,
           {.blocks = dim3(static_cast<unsigned>(count)),
            .threads = dim3(static_cast<unsigned>(threads_for<kN>(channels))),
            .shared_bytes = in_shared ? bytes : 0},
           rows, channels, rows_of<T>(args.dy), rows_of<T>(args.x), weight, args.rstd.data<A>(),
           static_cast<A>(args.scale), rows_to<T>(args.dx), sums, stride, in_shared);
  });
  if (!weighted) return;
  add_parts(ctx, "rms_norm backward: dweight", count, channels, stride, sums,
            args.dweight.data<A>());
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
