// A block has one piece of one head and 32 columns of z, with the states' columns in shared memory;
// it walks through the piece 32 rows at a time. The columns of x and y pass through shared memory
// 32 at a time, and a score is computed once for each 32 columns of z.
#include "kernels/cuda/hardware.h"
#include "kernels/cuda/linear_attention_place.h"
#include "kernels/cuda/simt_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int kColumns = kMostLinearDim / kWarp;  // groups of 32 columns of x
static_assert(LinearSimt<float>::kChunkRows == kSide);
// Of a multiprocessor at least, by registers.
template <class T>
constexpr int kBlocksAtOnce = sizeof(T) == 8 ? 1 : 2;

// Rows of a chunk: of the document that enters it, and of the one that leaves it.
template <bool kRight>
__device__ __forceinline__ IndexRange reached(const LinearChunk& chunk) {
  return kRight ? IndexRange{0, chunk.first} : IndexRange{chunk.last, chunk.rows};
}
template <bool kRight>
__device__ __forceinline__ IndexRange leaving(const LinearChunk& chunk) {
  return kRight ? IndexRange{chunk.last, chunk.rows} : IndexRange{0, chunk.first};
}
__device__ __forceinline__ bool holds(const IndexRange& range, int64_t i) {
  return i >= range.begin && i < range.end;
}

template <class T>
__device__ __forceinline__ TileRows<T> rows_of(const Operand<T>& x, int64_t head,
                                               const LinearChunk& chunk) {
  return {x.of_head(head), chunk.begin, static_cast<int>(chunk.rows), x.dim};
}

// The block's columns of a state, [dim of x][kSide + 1] in shared memory.
template <class A>
using StateColumns = A (*)[kSide + 1];

// Zeros where there is no state.
template <class A>
__device__ void load_state(const LinearStates<const A>& from, const LinearWork& work,
                           const LinearPlace& at, int dim, int columns, StateColumns<A> state) {
  const A* p = from.p == nullptr
                   ? nullptr
                   : from.of(at.piece, at.number, work.heads, at.head, int64_t{dim} * columns);
  const int column = at.column + lane();
  for (int c = warp(); c < dim; c += kWarps) {
    state[c][lane()] = p != nullptr && column < columns
                           ? p[state_index(from.turned, c, column, dim, columns)]
                           : A(0);
  }
}

template <class A>
__device__ void store_state(StateColumns<A> state, const LinearWork& work, const LinearPlace& at,
                            int dim, int columns, const LinearStates<A>& to) {
  A* p = to.of(at.piece, at.number, work.heads, at.head, int64_t{dim} * columns);
  const int column = at.column + lane();
  for (int c = warp(); c < dim && column < columns; c += kWarps) {
    p[state_index(to.turned, c, column, dim, columns)] = state[c][lane()];
  }
}

// The warp's rows of a chunk times the state's columns; and, if there are other rows, times them.
template <class T, class A>
__device__ void multiply(const TileRows<T>& x, const TileRows<T>* y, StateColumns<A> state,
                         Tile<A>& a, Tile<A>& b, A (&by_state)[kRows], A (&by_rows)[kRows]) {
  for (int r = 0; r < kRows; ++r) by_state[r] = by_rows[r] = 0;
  for (int begin = 0; begin < x.dim; begin += kSide) {
    __syncthreads();
    load(x, begin, a);
    if (y != nullptr) load(*y, begin, b);
    __syncthreads();
    const int columns = x.dim - begin < kSide ? x.dim - begin : kSide;
#pragma unroll 4
    for (int c = 0; c < columns; ++c) {
      const A s = state[begin + c][lane()], other = y != nullptr ? b[lane()][c] : A(0);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const A value = a[warp() * kRows + r][c];
        by_state[r] += value * s;
        by_rows[r] += value * other;
      }
    }
  }
}

template <class T, bool kRight>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    follow_kernel(LinearWork work, LinearFollow<T> pass, int tiles) {
  using A = Accumulator<T>;
  __shared__ Tile<A> a, b, p;
  __shared__ LinearPowers<A> powers;
  auto* const state = reinterpret_cast<StateColumns<A>>(dynamic_shared());
  const LinearPlace at(work, tiles);
  const int dim = pass.x.dim, columns = pass.z.dim, column = at.column + lane();
  const bool leaves = pass.leaving.p != nullptr && at.template at_end<kRight>();
  powers.fill(at.slope);
  load_state(pass.entering, work, at, dim, columns, state);
  at.template for_chunks<kRight>(work, [&](const LinearChunk& chunk, bool last) {
    const auto rows = static_cast<int>(chunk.rows);
    const TileRows<T> x = rows_of(pass.x, at.head, chunk), y = rows_of(pass.y, at.head, chunk);
    A inter[kRows], scores[kRows], sums[kRows];
    multiply(x, &y, state, a, b, inter, scores);
    unsigned seen[kRows];  // bit j: row j is seen by the warp's row
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int i = warp() * kRows + r, j = lane();
      const int low = i < j ? i : j, high = i < j ? j : i;
      const bool sees =
          high < rows && (kRight ? j <= i : j >= i) && same_document(chunk.starts, low, high);
      seen[r] = __ballot_sync(kAllLanes, sees);
      p[i][j] = sees ? scores[r] * powers.rounded[high - low] : A(0);
      sums[r] = holds(reached<kRight>(chunk), i) ? powers.template enter<kRight>(i, rows) * inter[r]
                                                 : A(0);
    }
    __syncthreads();
    load(rows_of(pass.z, at.head, chunk), at.column, a);
    __syncthreads();
#pragma unroll 4
    for (int j = 0; j < rows; ++j) {
      const A z = a[j][lane()];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if ((seen[r] >> j & 1u) != 0) sums[r] += p[warp() * kRows + r][j] * z;
      }
    }
    for (int r = 0; r < kRows && column < columns; ++r) {
      const int i = warp() * kRows + r;
      if (i >= rows) break;
      A* to = result_at(pass.result, chunk, i, work.heads, at.head, columns, column);
      *to = pass.add ? *to + sums[r] : sums[r];
    }
    if (last && !leaves) return;
    const IndexRange from = leaving<kRight>(chunk);
    for (int begin = 0; begin < dim; begin += kSide) {
      __syncthreads();
      load(y, begin, b);
      __syncthreads();
      A added[kRows] = {};
#pragma unroll 4
      for (auto j = static_cast<int>(from.begin); j < from.end; ++j) {
        const A z = a[j][lane()] * powers.template leave<kRight>(j, rows);
#pragma unroll
        for (int r = 0; r < kRows; ++r) added[r] += b[j][warp() * kRows + r] * z;
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int c = begin + warp() * kRows + r;
        if (c >= dim) break;
        const A before = state[c][lane()];
        state[c][lane()] = chunk.starts != 0 ? added[r]
                                             : powers.rounded[rows] * before +
                                                   (powers.rest[rows] * before + added[r]);
      }
    }
  });
  if (!leaves) return;
  __syncthreads();
  store_state(state, work, at, dim, columns, pass.leaving);
}

template <class T, bool kRight>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    sums_kernel(LinearWork work, LinearSums<T> pass, int tiles) {
  using A = Accumulator<T>;
  __shared__ Tile<A> a, b;
  __shared__ LinearPowers<A> powers;
  const LinearPlace at(work, tiles);
  if (!pass.all && at.template at_end<kRight>()) return;
  const int dim = pass.y.dim, columns = pass.z.dim, column = at.column + lane();
  powers.fill(at.slope);
  A sums[kColumns][kRows] = {};
  at.template for_chunks<kRight>(work, [&](const LinearChunk& chunk, bool) {
    if (chunk.starts != 0) {
#pragma unroll
      for (auto& group : sums) {
        for (A& sum : group) sum = 0;
      }
    }
    const auto rows = static_cast<int>(chunk.rows);
    const int64_t end = chunk.begin + chunk.rows;
    const A far =
        decay_over<A>(at.slope, kRight ? at.piece.end - end : chunk.begin - at.piece.begin);
    const IndexRange from = leaving<kRight>(chunk);
    const TileRows<T> y = rows_of(pass.y, at.head, chunk);
    __syncthreads();
    load(rows_of(pass.z, at.head, chunk), at.column, a);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      if (n * kSide >= dim) break;
      __syncthreads();
      load(y, n * kSide, b);
      __syncthreads();
#pragma unroll 4
      for (auto j = static_cast<int>(from.begin); j < from.end; ++j) {
        const A z = a[j][lane()] * (far * powers.template leave<kRight>(j, rows));
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[n][r] += b[j][warp() * kRows + r] * z;
      }
    }
  });
  A* const to = pass.states + (at.number * work.heads + at.head) * dim * columns;
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int c = n * kSide + warp() * kRows + r;
      if (c < dim && column < columns) to[int64_t{c} * columns + column] = sums[n][r];
    }
  }
}

template <class T, bool kRight>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    add_kernel(LinearWork work, LinearAdd<T> pass, int tiles) {
  using A = Accumulator<T>;
  __shared__ Tile<A> a;
  __shared__ LinearPowers<A> powers;
  auto* const state = reinterpret_cast<StateColumns<A>>(dynamic_shared());
  const LinearPlace at(work, tiles);
  const int column = at.column + lane();
  powers.fill(at.slope);
  load_state(pass.entering, work, at, pass.x.dim, pass.columns, state);
  at.template for_chunks<kRight>(work, [&](const LinearChunk& chunk, bool) {
    const int64_t distance = kRight ? chunk.before : chunk.after;
    if (distance < 0) return;
    const auto rows = static_cast<int>(chunk.rows);
    A inter[kRows], unused[kRows];
    multiply(rows_of(pass.x, at.head, chunk), static_cast<const TileRows<T>*>(nullptr), state, a, a,
             inter, unused);
    const A far = decay_over<A>(at.slope, distance);
    for (int r = 0; r < kRows && column < pass.columns; ++r) {
      const int i = warp() * kRows + r;
      if (i >= rows || !holds(reached<kRight>(chunk), i)) continue;
      *result_at(pass.result, chunk, i, work.heads, at.head, pass.columns, column) +=
          far * powers.template enter<kRight>(i, rows) * inter[r];
    }
  });
}

template <class A>
size_t state_bytes(int dim) {
  return static_cast<size_t>(dim) * (kSide + 1) * sizeof(A);
}

}  // namespace

template <class T>
template <bool kRight>
void LinearSimt<T>::sums(const Context& ctx, const LinearWork& work, const LinearSums<T>& pass) {
  launch_pieces<kThreads>(ctx, "linear attention: sums", sums_kernel<T, kRight>, work, pass,
                          pass.z.dim, 0);
}

template <class T>
template <bool kRight>
void LinearSimt<T>::follow(const Context& ctx, const LinearWork& work,
                           const LinearFollow<T>& pass) {
  launch_pieces<kThreads>(ctx, "linear attention", follow_kernel<T, kRight>, work, pass, pass.z.dim,
                          state_bytes<Accumulator<T>>(pass.x.dim));
}

template <class T>
template <bool kRight>
void LinearSimt<T>::add(const Context& ctx, const LinearWork& work, const LinearAdd<T>& pass) {
  launch_pieces<kThreads>(ctx, "linear attention: add", add_kernel<T, kRight>, work, pass,
                          pass.columns, state_bytes<Accumulator<T>>(pass.x.dim));
}

#define LONGHAUL_LINEAR_SIMT(T, RIGHT)                                          \
  template void LinearSimt<T>::sums<RIGHT>(const Context&, const LinearWork&,   \
                                           const LinearSums<T>&);               \
  template void LinearSimt<T>::follow<RIGHT>(const Context&, const LinearWork&, \
                                             const LinearFollow<T>&);           \
  template void LinearSimt<T>::add<RIGHT>(const Context&, const LinearWork&, const LinearAdd<T>&);
LONGHAUL_LINEAR_SIMT(bf16, true)
LONGHAUL_LINEAR_SIMT(bf16, false)
LONGHAUL_LINEAR_SIMT(float, true)
LONGHAUL_LINEAR_SIMT(float, false)
LONGHAUL_LINEAR_SIMT(double, true)
LONGHAUL_LINEAR_SIMT(double, false)
#undef LONGHAUL_LINEAR_SIMT

}  // namespace longhaul::kernels::cuda
