// Passes of the gated delta rule along values (delta_rule_passes.h). The columns of k and q pass
// through shared memory 32 at a time, twice a chunk: for products with the state and each other,
// and for what the chunk adds to the state.
#include "kernels/cuda/delta_rule_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

template <class A>
struct Shared {
  Tile<A> k, q, z, x, product, keys, scores;  // z: v or dout; x: y or r
  DeltaDecays<A> decays;
  double sums[kWarps];
};
template <class A>
size_t shared_bytes(int head_dim) {
  return sizeof(Shared<A>) + static_cast<size_t>(head_dim) * (kSide + 1) * sizeof(A);
}
template <class A>
using StateRows = A (*)[kSide + 1];

template <class A>
__device__ void store_state(StateRows<A> state, int dim, int columns, int column, A* to) {
  if (column >= columns) return;
  for (int c = warp(); c < dim; c += kWarps) to[int64_t{c} * columns + column] = state[c][lane()];
}

// Products of the warp's rows: k S and q S, and keys and scores (Shared), of a whole chunk.
template <class T, class A>
__device__ void multiply(const DeltaPass<T>& pass, const LinearChunk& chunk, int64_t head,
                         bool queries, StateRows<A> state, Shared<A>& s, A (&by_key)[kRows],
                         A (&by_query)[kRows]) {
  A keys[kRows] = {}, scores[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) by_key[r] = by_query[r] = 0;
  for (int begin = 0; begin < pass.head_dim; begin += kSide) {
    __syncthreads();
    load(chunk_rows(pass.k, head, chunk), begin, s.k);
    if (queries) load(chunk_rows(pass.q, head, chunk), begin, s.q);
    __syncthreads();
    const int count = pass.head_dim - begin < kSide ? pass.head_dim - begin : kSide;
#pragma unroll 2
    for (int c = 0; c < count; ++c) {
      const A value = state[begin + c][lane()], key = s.k[lane()][c];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const A left = s.k[warp() * kRows + r][c];
        by_key[r] += left * value;
        keys[r] += left * key;
        if (!queries) continue;
        const A query = s.q[warp() * kRows + r][c];
        by_query[r] += query * value;
        scores[r] += query * key;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = warp() * kRows + r;
    const A between = s.decays.between[i][lane()];
    const bool seen = lane() >= s.decays.begin[i] && lane() <= i && i < chunk.rows;
    s.keys[i][lane()] = seen && lane() < i ? between * keys[r] : A(0);
    s.scores[i][lane()] = seen ? between * scores[r] : A(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    right_kernel(LinearWork work, DeltaPass<T> pass, int tiles) {
  using A = Accumulator<T>;
  auto& s = *reinterpret_cast<Shared<A>*>(dynamic_shared());
  auto* const state = reinterpret_cast<StateRows<A>>(dynamic_shared() + sizeof(Shared<A>));
  const DeltaPlace at(work, pass.step, tiles);
  if (!at.inside) return;
  const int dim = pass.head_dim, columns = pass.columns, column = at.column + lane();
  const int64_t elements = int64_t{dim} * columns;
  const LinearStates<const A>& entering = at.piece.first ? pass.entering_run : pass.entering;
  const LinearStates<A>& leaving = at.piece.last ? pass.leaving_run : pass.leaving;
  const A* const from = entering.p == nullptr
                            ? nullptr
                            : entering.of(at.piece, at.number, work.heads, at.head, elements);
  for (int c = warp(); c < dim; c += kWarps) {
    const A start = pass.identity && at.piece.first && c == column ? A(1) : A(0);
    state[c][lane()] =
        from != nullptr && column < columns ? from[int64_t{c} * columns + column] : start;
  }
  const bool leaves = leaving.p != nullptr, results = pass.out != nullptr;
  const bool keeps = pass.kept.states != nullptr;
  for (int64_t n = at.piece.chunk_begin; n < at.piece.chunk_end; ++n) {
    const LinearChunk chunk = work.chunks[n];
    const auto rows = static_cast<int>(chunk.rows);
    const int64_t slot = at.run * pass.kept.chunks + n - at.piece.chunk_begin;
    s.decays.load(pass.log_gate, pass.beta, chunk, work.heads, at.head);
    if (keeps) {
      store_state<A>(state, dim, columns, column,
                     pass.kept.states + (slot * work.heads + at.head) * elements);
    }
    if (pass.v.p != nullptr) load(chunk_rows(pass.v, at.head, chunk), at.column, s.z);
    A by_key[kRows], by_query[kRows];
    multiply(pass, chunk, at.head, results, state, s, by_key, by_query);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int i = warp() * kRows + r;
      const A value = pass.v.p != nullptr ? s.z[i][lane()] : A(0);
      s.x[i][lane()] = i < chunk.first ? value - s.decays.rising[i] * by_key[r] : value;
    }
    solve<true>(s.decays, rows, s.keys, s.x, s.product);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int i = warp() * kRows + r;
      if (i >= rows || column >= columns) continue;
      if (keeps) {
        pass.kept.y[((slot * kSide + i) * work.heads + at.head) * columns + column] =
            s.x[i][lane()];
      }
      if (!results) continue;
      A sum = i < chunk.first ? s.decays.rising[i] * by_query[r] : A(0);
      for (int j = s.decays.begin[i]; j <= i; ++j) sum += s.scores[i][j] * s.product[j][lane()];
      *result_at(pass.out, chunk, i, work.heads, at.head, columns, column) = sum;
    }
    if (!leaves && n + 1 == at.piece.chunk_end) break;
    __syncthreads();
    for (int i = warp(); i < rows; i += kWarps) s.product[i][lane()] *= s.decays.falling[i];
    for (int begin = 0; begin < dim; begin += kSide) {
      __syncthreads();
      load(chunk_rows(pass.k, at.head, chunk), begin, s.k);
      __syncthreads();
      A added[kRows] = {};
      for (auto j = static_cast<int>(chunk.last); j < rows; ++j) {
        const A value = s.product[j][lane()];
#pragma unroll
        for (int r = 0; r < kRows; ++r) added[r] += s.k[j][warp() * kRows + r] * value;
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int c = begin + warp() * kRows + r;
        if (c >= dim) break;
        const A before = state[c][lane()];
        state[c][lane()] = chunk.starts != 0
                               ? added[r]
                               : s.decays.decay * before + (s.decays.rest * before + added[r]);
      }
    }
  }
  if (!leaves) return;
  __syncthreads();
  store_state<A>(state, dim, columns, column,
                 leaving.of(at.piece, at.number, work.heads, at.head, elements));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    left_kernel(LinearWork work, DeltaPass<T> pass, int tiles) {
  using A = Accumulator<T>;
  auto& s = *reinterpret_cast<Shared<A>*>(dynamic_shared());
  auto* const state = reinterpret_cast<StateRows<A>>(dynamic_shared() + sizeof(Shared<A>));
  const DeltaPlace at(work, pass.step, tiles);
  if (!at.inside) return;
  const int dim = pass.head_dim, columns = pass.columns, column = at.column + lane();
  const int64_t elements = int64_t{dim} * columns;
  const LinearStates<const A>& entering = at.piece.last ? pass.entering_run : pass.entering;
  const LinearStates<A>& leaving = at.piece.first ? pass.leaving_run : pass.leaving;
  const A* const from = entering.p == nullptr
                            ? nullptr
                            : entering.of(at.piece, at.number, work.heads, at.head, elements);
  for (int c = warp(); c < dim; c += kWarps) {
    state[c][lane()] =
        from != nullptr && column < columns ? from[int64_t{c} * columns + column] : A(0);
  }
  const bool keeps = pass.kept.states != nullptr;
  for (int64_t n = at.piece.chunk_end; n-- > at.piece.chunk_begin;) {
    const LinearChunk chunk = work.chunks[n];
    const auto rows = static_cast<int>(chunk.rows);
    const int64_t slot = at.run * pass.kept.chunks + n - at.piece.chunk_begin;
    const int64_t of_state = (slot * work.heads + at.head) * elements;
    s.decays.load(pass.log_gate, pass.beta, chunk, work.heads, at.head);
    if (keeps) store_state<A>(state, dim, columns, column, pass.kept.gradients + of_state);
    load(chunk_rows(pass.dout, at.head, chunk), at.column, s.z);
    A by_key[kRows], by_query[kRows];
    multiply(pass, chunk, at.head, true, state, s, by_key, by_query);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int j = warp() * kRows + r;
      A sum = j >= chunk.last && j < rows ? s.decays.falling[j] * by_key[r] : A(0);
      for (int i = j; i < s.decays.end[j] && i < rows; ++i) {
        sum += s.scores[i][j] * s.z[i][lane()];
      }
      s.x[j][lane()] = sum;
    }
    solve<false>(s.decays, rows, s.keys, s.x, s.product);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int j = warp() * kRows + r;
      if (j >= rows || column >= columns || !keeps) continue;
      pass.kept.r[((slot * kSide + j) * work.heads + at.head) * columns + column] = s.x[j][lane()];
      *result_at(pass.dv, chunk, j, work.heads, at.head, columns, column) += s.product[j][lane()];
    }
    __syncthreads();
    for (int i = warp(); i < rows; i += kWarps) {
      s.z[i][lane()] *= s.decays.rising[i];
      s.product[i][lane()] *= s.decays.rising[i];
    }
    double product = 0;
    for (int begin = 0; begin < dim; begin += kSide) {
      __syncthreads();
      load(chunk_rows(pass.k, at.head, chunk), begin, s.k);
      load(chunk_rows(pass.q, at.head, chunk), begin, s.q);
      __syncthreads();
      A added[kRows] = {};
      for (int i = 0; i < chunk.first; ++i) {
        const A grad = s.z[i][lane()], written = s.product[i][lane()];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int c = warp() * kRows + r;
          added[r] += s.q[i][c] * grad - s.k[i][c] * written;
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int c = begin + warp() * kRows + r;
        if (c >= dim) break;
        const A before = state[c][lane()];
        const A after = chunk.starts != 0
                            ? added[r]
                            : s.decays.decay * before + (s.decays.rest * before + added[r]);
        state[c][lane()] = after;
        if (keeps && column < columns) {
          product +=
              static_cast<double>(pass.kept.states[of_state + int64_t{c} * columns + column]) *
              static_cast<double>(after);
        }
      }
    }
    if (keeps) {
      product = block_sum(product, s.sums);
      const int tile = at.column / kSide;
      if (threadIdx.x == 0) {
        pass.kept.products[(slot * work.heads + at.head) * tiles + tile] = product;
      }
    }
  }
  if (leaving.p == nullptr) return;
  __syncthreads();
  store_state<A>(state, dim, columns, column,
                 leaving.of(at.piece, at.number, work.heads, at.head, elements));
}

template <class T, class Kernel>
void launch_runs(const Context& ctx, const char* name, Kernel kernel, const LinearWork& work,
                 const DeltaPass<T>& pass) {
  const int tiles = column_tiles(pass.columns);
  launch(ctx, name, kernel,
         {.blocks = dim3(static_cast<unsigned>(work.run_count * work.heads * tiles)),
          .threads = dim3(kThreads),
          .shared_bytes = shared_bytes<Accumulator<T>>(pass.head_dim)},
         work, pass, tiles);
}

}  // namespace

template <class T>
void DeltaPasses<T>::right(const Context& ctx, const LinearWork& work, const DeltaPass<T>& pass) {
  launch_runs(ctx, "delta rule: to the right", right_kernel<T>, work, pass);
}
template <class T>
void DeltaPasses<T>::left(const Context& ctx, const LinearWork& work, const DeltaPass<T>& pass) {
  launch_runs(ctx, "delta rule: to the left", left_kernel<T>, work, pass);
}

#define LONGHAUL_DELTA_STATES(T)                                                               \
  template void DeltaPasses<T>::right(const Context&, const LinearWork&, const DeltaPass<T>&); \
  template void DeltaPasses<T>::left(const Context&, const LinearWork&, const DeltaPass<T>&);
LONGHAUL_DELTA_STATES(bf16)
LONGHAUL_DELTA_STATES(float)
LONGHAUL_DELTA_STATES(double)
#undef LONGHAUL_DELTA_STATES

}  // namespace longhaul::kernels::cuda
