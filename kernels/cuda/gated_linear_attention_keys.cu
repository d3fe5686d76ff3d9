// Passes of gated linear attention whose results lie along keys. A block has one piece of one head
// and 32 key dimensions, with the state's rows of these in shared memory, transposed; it walks
// through the piece 16 rows at a time, and through their values 32 at a time.
#include "kernels/cuda/gated_linear_attention_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

template <class T, bool kRight, GatedUse kUse>
__global__ void __launch_bounds__(kThreads, kGatedBlocksAtOnce<T>)
    keys_kernel(LinearWork work, GatedPass<T> pass, int tiles) {
  using A = Accumulator<T>;
  constexpr bool kFollows = kUse == GatedUse::kFollow;
  __shared__ GatedTile<A> dout, v, row, entering, leaving;
  __shared__ GateTiles<A> gates;
  __shared__ GatedSquare<A> p;
  auto* const state = reinterpret_cast<GatedState<A>>(dynamic_shared());
  const LinearPlace at(work, tiles);
  const int dim = pass.head_dim, columns = pass.value_dim, column = at.column + lane();
  if (!kFollows && !reaches<kRight>(work, at.piece)) return;
  const A* const from =
      pass.entering.p == nullptr
          ? nullptr
          : pass.entering.of(at.piece, at.number, work.heads, at.head, int64_t{dim} * columns);
  for (int n = warp(); n < kSide; n += kWarps) {
    const int c = at.column + n;
    const bool inside = from != nullptr && c < dim;
    A factor = 1;
    if (!kFollows && inside) {
      factor = decay_of_pieces<A, kRight>(work, at, pass.gate_sums, dim, c);
    }
    for (int e = lane(); e < columns; e += kWarp) {
      state[e][n] = inside ? factor * from[int64_t{c} * columns + e] : A(0);
    }
  }
  bool over = false;  // nothing more is reached
  at.template for_chunks<kRight>(work, [&](const LinearChunk& chunk, bool last) {
    if (over) return;
    over = !kFollows && chunk.starts != 0;
    const bool goes_on = !last && !over;
    const IndexRange from_rows = leaving_rows<kRight>(chunk);
    __syncthreads();
    if (kFollows) load_chunk(kRight ? pass.k : pass.q, chunk, at.head, at.column, row);
    gates.load(pass.log_gate, chunk, work.heads, at.head, dim, at.column);
    __syncthreads();
    const GatedTile<A>* const none = nullptr;
    if (warp() == 0) gates.template multiply<kRight>(chunk, none, entering);
    if (kFollows && warp() == 1) gates.template multiply<!kRight>(chunk, &row, leaving);
    if (warp() == 2) gates.sum(chunk);
    A score = 0, sums[2] = {};
    const int i_of_score = static_cast<int>(threadIdx.x) / kGatedRows;
    const int j_of_score = static_cast<int>(threadIdx.x) % kGatedRows;
    for (int begin = 0; begin < columns; begin += kSide) {
      __syncthreads();
      if (kFollows || kRight) load_chunk(pass.dout, chunk, at.head, begin, dout);
      if (kFollows || !kRight) load_chunk(pass.v, chunk, at.head, begin, v);
      __syncthreads();
      const int count = columns - begin < kSide ? columns - begin : kSide;
      const GatedTile<A>& x = kRight ? dout : v;
#pragma unroll 4
      for (int e = 0; e < count; ++e) {
        const A s = state[begin + e][lane()];
#pragma unroll
        for (int r = 0; r < 2; ++r) sums[r] += x[row_of_warp(r)][e] * s;
        if (kFollows) score += dout[i_of_score][e] * v[j_of_score][e];
      }
      if (!goes_on) continue;
      __syncthreads();
      A added[kRows] = {};
      if (kFollows) {
        const GatedTile<A>& y = kRight ? v : dout;
        for (auto j = static_cast<int>(from_rows.begin); j < from_rows.end; ++j) {
          const A value = leaving[j][lane()];
#pragma unroll
          for (int r = 0; r < kRows; ++r) added[r] += y[j][warp() * kRows + r] * value;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int e = warp() * kRows + r;
        if (e >= count) break;
        const A before = state[begin + e][lane()];
        state[begin + e][lane()] = chunk.starts != 0 ? added[r]
                                                     : gates.decay[lane()] * before +
                                                           (gates.rest[lane()] * before + added[r]);
      }
    }
    if (kFollows) {
      p[i_of_score][j_of_score] = score;
      __syncthreads();
    }
    const IndexRange to_rows = reached_rows<kRight>(chunk);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = row_of_warp(r);
      if (i >= chunk.rows || column >= dim) continue;
      A sum = 0;
      if (kFollows) {
        // Horner's rule: what is summed so far meets one gate more with every row.
        const IndexRange document = document_of(chunk, i);
        if (kRight) {
          for (auto j = static_cast<int>(document.begin); j <= i; ++j) {
            if (j > document.begin) sum *= gates.gate[j][lane()];
            sum += p[i][j] * row[j][lane()];
          }
        } else {
          for (auto j = static_cast<int>(document.end) - 1; j >= i; --j) {
            if (j + 1 < document.end) sum *= gates.gate[j + 1][lane()];
            sum += p[j][i] * row[j][lane()];
          }
        }
      }
      if (i >= to_rows.begin && i < to_rows.end) sum += entering[i][lane()] * sums[r];
      *result_at(pass.result, chunk, i, work.heads, at.head, dim, column) += sum;
    }
  });
}

}  // namespace

template <class T>
template <bool kRight, GatedUse kUse>
void GatedPasses<T>::keys(const Context& ctx, const LinearWork& work, const GatedPass<T>& pass) {
  launch_pieces<kThreads>(
      ctx, "gated linear attention: keys", keys_kernel<T, kRight, kUse>, work, pass, pass.head_dim,
      static_cast<size_t>(pass.value_dim) * (kSide + 1) * sizeof(Accumulator<T>));
}

#define LONGHAUL_GATED_KEYS(T, USE)                                                 \
  template void GatedPasses<T>::keys<true, USE>(const Context&, const LinearWork&,  \
                                                const GatedPass<T>&);               \
  template void GatedPasses<T>::keys<false, USE>(const Context&, const LinearWork&, \
                                                 const GatedPass<T>&);
#define LONGHAUL_GATED_KEYS_OF(T)           \
  LONGHAUL_GATED_KEYS(T, GatedUse::kFollow) \
  LONGHAUL_GATED_KEYS(T, GatedUse::kAdd)
LONGHAUL_GATED_KEYS_OF(bf16)
LONGHAUL_GATED_KEYS_OF(float)
LONGHAUL_GATED_KEYS_OF(double)
#undef LONGHAUL_GATED_KEYS_OF
#undef LONGHAUL_GATED_KEYS

}  // namespace longhaul::kernels::cuda
