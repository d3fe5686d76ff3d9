// Passes of gated linear attention whose results lie along values. A block has one piece of one
// head and 32 columns of values, with the state's columns in shared memory; it walks through the
// piece 16 rows at a time, and through their key dimensions 32 at a time.
#include "kernels/cuda/gated_linear_attention_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

// P of the warp's two rows, summed over a lane's key dimensions: row i goes through the gates from
// itself backwards. sums[s] is of the first row and its s-th last key, then of the second.
template <class A>
__device__ __forceinline__ void add_scores(const GatedTile<A>& q, const GatedTile<A>& k,
                                           const GatedTile<A>& gate, A (&sums)[kPairs]) {
  A passed = 0;
#pragma unroll
  for (int s = 0; s < kPairs; ++s) {
    const bool second = s > warp();
    const int i = row_of_warp(second ? 1 : 0), j = second ? kGatedRows - s : warp() - s;
    if (i == j) passed = q[i][lane()];
    sums[s] += passed * k[j][lane()];
    passed *= gate[j][lane()];
  }
}
template <class A>
__device__ __forceinline__ void write_scores(const A (&sums)[kPairs], GatedSquare<A>& p) {
#pragma unroll
  for (int s = 0; s < kPairs; ++s) {
    const bool second = s > warp();
    const int i = row_of_warp(second ? 1 : 0), j = second ? kGatedRows - s : warp() - s;
    const A sum = warp_sum(sums[s]);
    if (lane() == 0) p[i][j] = sum;
  }
}

template <class T, bool kRight, GatedUse kUse>
__global__ void __launch_bounds__(kThreads, kGatedBlocksAtOnce<T>)
    values_kernel(LinearWork work, GatedPass<T> pass, int tiles) {
  using A = Accumulator<T>;
  constexpr bool kFollows = kUse == GatedUse::kFollow;
  constexpr bool kReads = kUse != GatedUse::kSums, kWrites = kUse != GatedUse::kAdd;
  constexpr bool kQueries = kFollows || kRight == kReads, kKeys = kFollows || kRight == kWrites;
  __shared__ GatedTile<A> q, k, front, back, z;
  __shared__ GateTiles<A> gates;
  __shared__ GatedSquare<A> p;
  auto* const state = reinterpret_cast<GatedState<A>>(dynamic_shared());
  const LinearPlace at(work, tiles);
  const int dim = pass.head_dim, columns = pass.value_dim, column = at.column + lane();
  if (kUse == GatedUse::kSums && !pass.all && at.template at_end<kRight>()) return;
  if (kUse == GatedUse::kAdd && !reaches<kRight>(work, at.piece)) return;
  const bool leaves = pass.leaving.p != nullptr && (!kFollows || at.template at_end<kRight>());
  const int64_t elements = int64_t{dim} * columns;
  const A* const from = pass.entering.p == nullptr
                            ? nullptr
                            : pass.entering.of(at.piece, at.number, work.heads, at.head, elements);
  for (int c = warp(); c < dim; c += kWarps) {
    A value = from != nullptr && column < columns ? from[int64_t{c} * columns + column] : A(0);
    if constexpr (kUse == GatedUse::kAdd) {
      value *= decay_of_pieces<A, kRight>(work, at, pass.gate_sums, dim, c);
    }
    state[c][lane()] = value;
  }
  bool over = false;  // nothing more is reached
  at.template for_chunks<kRight>(work, [&](const LinearChunk& chunk, bool last) {
    if (over) return;
    over = !kWrites && chunk.starts != 0;
    const bool goes_on = kWrites ? leaves || !last : !over;
    const IndexRange from_rows = leaving_rows<kRight>(chunk);
    A scores[kPairs] = {}, sums[2] = {};
    for (int begin = 0; begin < dim; begin += kSide) {
      __syncthreads();
      if (kWrites && begin == 0)
        load_chunk(kRight ? pass.v : pass.dout, chunk, at.head, at.column, z);
      if (kQueries) load_chunk(pass.q, chunk, at.head, begin, q);
      if (kKeys) load_chunk(pass.k, chunk, at.head, begin, k);
      gates.load(pass.log_gate, chunk, work.heads, at.head, dim, begin);
      __syncthreads();
      if (kQueries && warp() == 0) gates.template multiply<true>(chunk, &q, front);
      if (kKeys && warp() == 1) gates.template multiply<false>(chunk, &k, back);
      if (warp() == 2) gates.sum(chunk);
      if (kFollows) add_scores(q, k, gates.gate, scores);
      __syncthreads();
      const int count = dim - begin < kSide ? dim - begin : kSide;
      if (kReads) {
        const GatedTile<A>& entering = kRight ? front : back;
#pragma unroll 4
        for (int c = 0; c < count; ++c) {
          const A s = state[begin + c][lane()];
#pragma unroll
          for (int r = 0; r < 2; ++r) sums[r] += entering[row_of_warp(r)][c] * s;
        }
      }
      if (!goes_on) continue;
      __syncthreads();
      A added[kRows] = {};
      if (kWrites) {
        const GatedTile<A>& leaving = kRight ? back : front;
        for (auto j = static_cast<int>(from_rows.begin); j < from_rows.end; ++j) {
          const A value = z[j][lane()];
#pragma unroll
          for (int r = 0; r < kRows; ++r) added[r] += leaving[j][warp() * kRows + r] * value;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int c = warp() * kRows + r;
        if (c >= count) break;
        const A before = state[begin + c][lane()];
        state[begin + c][lane()] =
            chunk.starts != 0 ? added[r]
                              : gates.decay[c] * before + (gates.rest[c] * before + added[r]);
      }
    }
    if (!kReads) return;
    if (kFollows) {
      write_scores(scores, p);
      __syncthreads();
    }
    const IndexRange to_rows = reached_rows<kRight>(chunk);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = row_of_warp(r);
      if (i >= chunk.rows || column >= columns) continue;
      A sum = i >= to_rows.begin && i < to_rows.end ? sums[r] : A(0);
      if (kFollows) {
        const IndexRange document = document_of(chunk, i);
        const int begin = kRight ? static_cast<int>(document.begin) : i;
        const int end = kRight ? i + 1 : static_cast<int>(document.end);
        for (int j = begin; j < end; ++j) sum += (kRight ? p[i][j] : p[j][i]) * z[j][lane()];
      }
      A* to = result_at(pass.result, chunk, i, work.heads, at.head, columns, column);
      *to = kUse == GatedUse::kAdd || pass.add ? *to + sum : sum;
    }
  });
  if (!kWrites || !leaves) return;
  __syncthreads();
  A* const to = pass.leaving.of(at.piece, at.number, work.heads, at.head, elements);
  for (int c = warp(); c < dim && column < columns; c += kWarps) {
    to[int64_t{c} * columns + column] = state[c][lane()];
  }
}

}  // namespace

template <class T>
template <bool kRight, GatedUse kUse>
void GatedPasses<T>::values(const Context& ctx, const LinearWork& work, const GatedPass<T>& pass) {
  launch_pieces<kThreads>(
      ctx, "gated linear attention: values", values_kernel<T, kRight, kUse>, work, pass,
      pass.value_dim, static_cast<size_t>(pass.head_dim) * (kSide + 1) * sizeof(Accumulator<T>));
}

#define LONGHAUL_GATED_VALUES(T, USE)                                                 \
  template void GatedPasses<T>::values<true, USE>(const Context&, const LinearWork&,  \
                                                  const GatedPass<T>&);               \
  template void GatedPasses<T>::values<false, USE>(const Context&, const LinearWork&, \
                                                   const GatedPass<T>&);
#define LONGHAUL_GATED_VALUES_OF(T)           \
  LONGHAUL_GATED_VALUES(T, GatedUse::kFollow) \
  LONGHAUL_GATED_VALUES(T, GatedUse::kSums)   \
  LONGHAUL_GATED_VALUES(T, GatedUse::kAdd)
LONGHAUL_GATED_VALUES_OF(bf16)
LONGHAUL_GATED_VALUES_OF(float)
LONGHAUL_GATED_VALUES_OF(double)
#undef LONGHAUL_GATED_VALUES_OF
#undef LONGHAUL_GATED_VALUES

}  // namespace longhaul::kernels::cuda
