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

// Backward: a block owns columns of a range of the vocabulary. It goes through all tokens in order,
// notes those of its range, and adds up their rows. All blocks read all tokens, which are few bytes
// beside the rows, and mostly in the cache.
constexpr int kThreads = 128;
constexpr int64_t kRanges = 256;      // of the vocabulary, at most
constexpr int kNotes = 4 * kThreads;  // tokens that are noted at a time
constexpr int kAhead = 8;             // rows that are under way at a time

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
  const int64_t range_begin = vocabulary * blockIdx.x / gridDim.x;
  const int64_t range_end = vocabulary * (blockIdx.x + 1) / gridDim.x;
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kN;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int noted = 0;  // the same in all threads
  for (int64_t begin = 0; begin < count; begin += kThreads) {
    const int64_t t = begin + threadIdx.x;
    const int64_t token = t < count ? tokens[t] : -1;
    const bool mine = token >= range_begin && token < range_end;
    const unsigned lanes = __ballot_sync(kAllLanes, mine);
    if (lane == 0) of_warps[warp] = __popc(lanes);
    __syncthreads();
    int at = noted;
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w < warp) at += of_warps[w];
      noted += of_warps[w];
    }
    if (mine) notes[at + __popc(lanes & ((1u << lane) - 1))] = t;
    __syncthreads();
    if (noted + kThreads <= kNotes && begin + kThreads < count) continue;
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
         {.blocks = dim3(static_cast<unsigned>(std::min(kRanges, vocabulary)),
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
