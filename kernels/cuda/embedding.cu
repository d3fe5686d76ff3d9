// A token outside the vocabulary, which check_tokens() would have named on the host, makes a row of
// NaN and gets no gradient: nothing outside the table is touched.
#include "kernels/embedding.h"

#include <limits>

#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <class T>
struct Gather {
  const int32_t* tokens;
  int64_t vocabulary;
  Rows<const T> table;
  Rows<T> out;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const int32_t token = tokens[row];
    Pack<T, kN> x;
    if (token >= 0 && token < vocabulary) {
      x = load<kN>(table.at(token, column), count);
    } else {
#pragma unroll
      for (T& e : x.e) e = T(std::numeric_limits<Accumulator<T>>::quiet_NaN());
    }
    store(x, out.at(row, column), count);
  }
};

// Backward: a block owns columns of every n-th row of the table, as frequent tokens often have
// neighbouring numbers. It goes through all tokens in order, notes its own, and adds up their rows.
// All blocks read all tokens, which are few bytes beside the rows, and mostly in the cache.
constexpr int kThreads = 128;
constexpr int64_t kOwners = 256;              // of the table's rows, at most
constexpr int kLooks = 4;                     // tokens that a thread looks at, at a time
constexpr int kLookedAt = kLooks * kThreads;  // by the block
constexpr int kNotes = 2 * kLookedAt;         // tokens that are noted at a time
constexpr int kAhead = 8;                     // rows that are under way at a time

template <class T, int kN>
__device__ void add_rows(const int64_t* notes, int count, const int32_t* tokens, Rows<const T> dout,
                         Rows<Accumulator<T>> dtable, int64_t column, int64_t columns) {
  using A = Accumulator<T>;
  int64_t current = -1;
  Pack<A, kN> sum{};
  for (int first = 0; first < count; first += kAhead) {
    Pack<T, kN> rows[kAhead];
    int64_t of[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= count) continue;
      const int64_t t = notes[first + i];
      of[i] = tokens[t];
      rows[i] = load<kN>(dout.at(t, column), columns);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= count) continue;
      if (of[i] != current) {
        if (current >= 0) store(sum, dtable.at(current, column), columns);
        current = of[i];
        sum = load<kN>(static_cast<const A*>(dtable.at(current, column)), columns);
      }
#pragma unroll
      for (int k = 0; k < kN; ++k) sum.e[k] += static_cast<A>(rows[i].e[k]);
    }
  }
  if (current >= 0) store(sum, dtable.at(current, column), columns);
}

template <class T, int kN>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(int64_t count, int64_t channels, int64_t vocabulary, const int32_t* tokens,
                    Rows<const T> dout, Rows<Accumulator<T>> dtable) {
  __shared__ int64_t notes[kNotes];
  __shared__ int of_warps[kThreads / kWarp];
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kN;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int noted = 0;  // the same in all threads
  for (int64_t begin = 0; begin < count; begin += kLookedAt) {
    const int64_t first = begin + int64_t{threadIdx.x} * kLooks;
    bool own[kLooks];
    int owned = 0;
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      const int token = first + i < count ? tokens[first + i] : -1;
      own[i] = token >= 0 && token < vocabulary &&
               static_cast<unsigned>(token) % gridDim.x == blockIdx.x;
      owned += own[i];
    }
    int up_to_here = owned;  // of the warp's
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, up_to_here, distance);
      if (lane >= distance) up_to_here += before;
    }
    if (lane == kWarp - 1) of_warps[warp] = up_to_here;
    __syncthreads();
    int at = noted + up_to_here - owned;
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w < warp) at += of_warps[w];
      noted += of_warps[w];
    }
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      if (own[i]) notes[at++] = first + i;
    }
    __syncthreads();
    if (noted + kLookedAt <= kNotes && begin + kLookedAt < count) continue;
    if (column < channels) {
      add_rows<T, kN>(notes, noted, tokens, dout, dtable, column,
                      std::min<int64_t>(kN, channels - column));
    }
    noted = 0;
    __syncthreads();
  }
}

template <class T>
void forward(const Context& ctx, const EmbeddingForward& args) {
  if (ctx.measuring() || args.out.empty()) return;
  for_pieces<T>(ctx, "embedding forward", args.out.dim(0), args.out.dim(1),
                vectors_allowed({args.table, args.out}),
                Gather<T>{.tokens = args.tokens.data<int32_t>(),
                          .vocabulary = args.table.dim(0),
                          .table = rows_of<T>(args.table),
                          .out = rows_to<T>(args.out)});
}

template <class T, int kN>
void run_backward(const Context& ctx, const EmbeddingBackward& args) {
  const int64_t channels = args.dout.dim(1), vocabulary = args.dtable.dim(0);
  const int64_t columns = (channels + kThreads * kN - 1) / (kThreads * kN);
  launch(ctx, "embedding backward", backward_kernel<T, kN>,
         {.blocks = dim3(static_cast<unsigned>(std::min(kOwners, vocabulary)),
                         static_cast<unsigned>(columns)),
          .threads = dim3(kThreads)},
         args.dout.dim(0), channels, vocabulary, args.tokens.data<int32_t>(), rows_of<T>(args.dout),
         rows_to<Accumulator<T>>(args.dtable));
}

template <class T>
void backward(const Context& ctx, const EmbeddingBackward& args) {
  if (ctx.measuring() || args.dout.empty() || args.dtable.empty()) return;
  if (vectors_allowed({args.dout, args.dtable})) {
    run_backward<T, kPiece<T>>(ctx, args);
  } else {
    run_backward<T, 1>(ctx, args);
  }
}

template <class T>
constexpr EmbeddingKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr EmbeddingKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const EmbeddingKernel> embedding_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
