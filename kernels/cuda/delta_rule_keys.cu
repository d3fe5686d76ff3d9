// dq and dk of the gated delta rule, from what its passes to the right and left have kept of chunks
// (delta_rule_passes.h), and then the gradients of its gates. With u = beta y, w = beta r, and of
// rows in one document dP(i, j) = D_ij dO(i) . u(j) for j <= i, E(i, j) = -D_ij w(i) . u(j) for
// j < i:
//
//   dQ += rising dO S^T + dP K              readers = -rising W S^T + E K
//   dK += readers + writers                 writers = falling U G^T + dP^T Q + E^T K
//   dbeta = r . y
//
// The gradient of a chunk's first gate is S . G, with the G that leaves; going on to row i + 1 it
// gains k . writers - k . readers - q . dq of row i. A block has 32 key dimensions of a chunk,
// whose share of these terms a warp for each chunk and head then adds up in order.
#include "kernels/cuda/delta_rule_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

template <class A>
struct Shared {
  Tile<A> dout, u, w, states, gradients, products, e, q, k;
  DeltaDecays<A> decays;
};

// Chunk `slot` of what is kept; null if there is none.
__device__ const LinearChunk* chunk_of(const LinearWork& work, int64_t step, int64_t chunks,
                                       int64_t slot) {
  const int64_t run = slot / chunks, number = work.run_begins[run] + step;
  if (number >= work.run_begins[run + 1]) return nullptr;
  const int64_t n = work.pieces[number].chunk_begin + slot % chunks;
  return n < work.pieces[number].chunk_end ? &work.chunks[n] : nullptr;
}

// Columns [begin, begin + 32) of rows kept, times beta.
template <class A>
__device__ void load_kept(const A* from, int64_t slot, int64_t heads, int64_t head, int columns,
                          int begin, int rows, const A* beta, Tile<A>& tile) {
  const int column = begin + lane();
  for (int r = warp(); r < kSide; r += kWarps) {
    const int64_t at = ((slot * kSide + r) * heads + head) * columns + column;
    tile[r][lane()] = r < rows && column < columns ? beta[r] * from[at] : A(0);
  }
}

// Rows [row, row + 32) and columns [column, column + 32) of a state.
template <class A>
__device__ void load_part(const A* state, int row, int column, int dim, int columns,
                          Tile<A>& tile) {
  const int e = column + lane();
  for (int r = warp(); r < kSide; r += kWarps) {
    tile[r][lane()] = row + r < dim && e < columns ? state[int64_t{row + r} * columns + e] : A(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(LinearWork work, DeltaPass<T> pass, int tiles) {
  using A = Accumulator<T>;
  auto& s = *reinterpret_cast<Shared<A>*>(dynamic_shared());
  const int64_t slot = blockIdx.x / tiles / work.heads, head = blockIdx.x / tiles % work.heads;
  const int tile = static_cast<int>(blockIdx.x % tiles), first_column = tile * kSide;
  const LinearChunk* const found = chunk_of(work, pass.step, pass.kept.chunks, slot);
  if (found == nullptr) return;
  const LinearChunk chunk = *found;
  const auto rows = static_cast<int>(chunk.rows);
  const int dim = pass.head_dim, columns = pass.columns, column = first_column + lane();
  const int64_t of_state = (slot * work.heads + head) * dim * columns;
  s.decays.load(pass.log_gate, pass.beta, chunk, work.heads, head);
  load(chunk_rows(pass.q, head, chunk), first_column, s.q);
  load(chunk_rows(pass.k, head, chunk), first_column, s.k);
  A products[kRows] = {}, e[kRows] = {}, queries[kRows] = {}, readers[kRows] = {},
    writers[kRows] = {};
  for (int begin = 0; begin < columns; begin += kSide) {
    __syncthreads();
    load(chunk_rows(pass.dout, head, chunk), begin, s.dout);
    load_kept<A>(pass.kept.y, slot, work.heads, head, columns, begin, rows, s.decays.beta, s.u);
    load_kept<A>(pass.kept.r, slot, work.heads, head, columns, begin, rows, s.decays.beta, s.w);
    load_part<A>(pass.kept.states + of_state, first_column, begin, dim, columns, s.states);
    load_part<A>(pass.kept.gradients + of_state, first_column, begin, dim, columns, s.gradients);
    __syncthreads();
    const int count = columns - begin < kSide ? columns - begin : kSide;
#pragma unroll 2
    for (int c = 0; c < count; ++c) {
      const A u = s.u[lane()][c], state = s.states[lane()][c], gradient = s.gradients[lane()][c];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int i = warp() * kRows + r;
        const A grad = s.dout[i][c], w = s.w[i][c];
        products[r] += grad * u;
        e[r] -= w * u;
        queries[r] += grad * state;
        readers[r] -= w * state;
        writers[r] += s.u[i][c] * gradient;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = warp() * kRows + r, j = lane();
    const A between = s.decays.between[i][j];
    const bool seen = j >= s.decays.begin[i] && j <= i && i < rows;
    s.products[i][j] = seen ? between * products[r] : A(0);
    s.e[i][j] = seen && j < i ? between * e[r] : A(0);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = warp() * kRows + r;
    if (i >= rows) break;
    const bool entered = i < chunk.first, leaves = i >= chunk.last;
    A dq = entered ? s.decays.rising[i] * queries[r] : A(0);
    A read = entered ? s.decays.rising[i] * readers[r] : A(0);
    A written = leaves ? s.decays.falling[i] * writers[r] : A(0);
    for (int j = s.decays.begin[i]; j <= i; ++j) {
      dq += s.products[i][j] * s.k[j][lane()];
      if (j < i) read += s.e[i][j] * s.k[j][lane()];
    }
    for (int j = i; j < s.decays.end[i]; ++j) {
      written += s.products[j][i] * s.q[j][lane()];
      if (j > i) written += s.e[j][i] * s.k[j][lane()];
    }
    if (column < dim) {
      *result_at(pass.dq, chunk, i, work.heads, head, dim, column) += dq;
      *result_at(pass.dk, chunk, i, work.heads, head, dim, column) += read + written;
    }
    const double term = warp_sum(static_cast<double>(s.k[i][lane()] * (written - read)) -
                                 static_cast<double>(s.q[i][lane()] * dq));
    if (lane() == 0) {
      pass.kept.terms[((slot * work.heads + head) * tiles + tile) * kSide + i] = term;
    }
  }
}

// A warp for each chunk and head.
template <class T>
__global__ void __launch_bounds__(kWarp)
    gates_kernel(LinearWork work, DeltaPass<T> pass, int key_tiles, int value_tiles) {
  using A = Accumulator<T>;
  __shared__ double terms[kSide], gates[kSide];
  const int64_t slot = blockIdx.x / work.heads, head = blockIdx.x % work.heads;
  const LinearChunk* const found = chunk_of(work, pass.step, pass.kept.chunks, slot);
  if (found == nullptr) return;
  const LinearChunk& chunk = *found;
  const int columns = pass.columns;
  const int64_t of_tiles = slot * work.heads + head;
  if (lane() < chunk.rows) {
    const int64_t row = chunk.begin + lane();
    double sum = 0;
    for (int n = 0; n < key_tiles; ++n) {
      sum += pass.kept.terms[(of_tiles * key_tiles + n) * kSide + lane()];
    }
    terms[lane()] = sum;
    gates[lane()] = exp(static_cast<double>(pass.log_gate[row * work.heads + head]));
  }
  __syncwarp();
  double sum = 0;
  for (int n = 0; n < value_tiles; ++n) sum += pass.kept.products[of_tiles * value_tiles + n];
  for (int i = 0; i < chunk.rows; ++i) {
    const int64_t at = ((slot * kSide + i) * work.heads + head) * columns;
    double dbeta = 0;
    for (int e = lane(); e < columns; e += kWarp) {
      dbeta += static_cast<double>(pass.kept.r[at + e]) * static_cast<double>(pass.kept.y[at + e]);
    }
    dbeta = warp_sum(dbeta);
    // A gate that lets nothing pass has no gradient.
    const bool closed = gates[i] < static_cast<double>(std::numeric_limits<A>::min());
    if (closed || (chunk.starts >> i & 1u) != 0) sum = 0;
    if (lane() == 0) {
      const int64_t to = (chunk.begin + i) * work.heads + head;
      pass.dbeta[to] = static_cast<A>(dbeta);
      pass.dlog_gate[to] = static_cast<A>(sum);
    }
    sum += terms[i];
  }
}

}  // namespace

template <class T>
void DeltaPasses<T>::keys(const Context& ctx, const LinearWork& work, const DeltaPass<T>& pass) {
  const int64_t blocks = work.run_count * pass.kept.chunks * work.heads;
  const int key_tiles = column_tiles(pass.head_dim), value_tiles = column_tiles(pass.columns);
  launch(ctx, "delta rule: keys", keys_kernel<T>,
         {.blocks = dim3(static_cast<unsigned>(blocks * key_tiles)),
          .threads = dim3(kThreads),
          .shared_bytes = sizeof(Shared<Accumulator<T>>)},
         work, pass, key_tiles);
  launch(ctx, "delta rule: gates", gates_kernel<T>,
         {.blocks = dim3(static_cast<unsigned>(blocks)), .threads = dim3(kWarp)}, work, pass,
         key_tiles, value_tiles);
}

#define LONGHAUL_DELTA_KEYS(T) \
  template void DeltaPasses<T>::keys(const Context&, const LinearWork&, const DeltaPass<T>&);
LONGHAUL_DELTA_KEYS(bf16)
LONGHAUL_DELTA_KEYS(float)
LONGHAUL_DELTA_KEYS(double)
#undef LONGHAUL_DELTA_KEYS

}  // namespace longhaul::kernels::cuda
