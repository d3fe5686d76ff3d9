// Linear attention in bf16 on tensor cores, heads of up to 128 (padded to 64 or 128).
//
// A block of 4 warps has one piece of one head and 32 columns of z. It goes through the piece by
// blocks of at most 64 rows of one document, so that nothing of another document is ever multiplied
// with it, not even by 0. Warp w has rows 16 w .. of the results and a quarter of the state's rows,
// in registers. Operands are exact in bf16. What is not, the decayed scores, the decayed z and the
// state, is written as a sum of three bf16, which hold the 24 bits of an f32 but for the last:
// three products take the place of one in f32, so that results are as good as those of the other
// kernels.
#include "kernels/cuda/attention_mma_tiles.h"
#include "kernels/cuda/linear_attention_place.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int kBlockRows = kMostChunkRows;
constexpr int kColumns = kLinearColumns;
constexpr int kColumnTiles = kColumns / 8;
constexpr int kParts = 3;  // bf16 of an f32
static_assert(kBlockRows == 16 * kMmaWarps);

template <int kDim>
struct Shared {
  bf16 x[kTileElements<kBlockRows, kDim>], y[kTileElements<kBlockRows, kDim>];
  bf16 z[kTileElements<kBlockRows, kColumns>];
  bf16 decayed[kParts][kTileElements<kBlockRows, kColumns>];  // z
  bf16 state[kParts][kTileElements<kDim, kColumns>];
  LinearPowers<float> powers;
};

// A warp's rows of the state's columns.
template <int kDim>
inline constexpr int kStateTiles = kDim / kMmaWarps / 16;
template <int kDim>
struct State {
  MmaTiles<kStateTiles<kDim>, kColumnTiles> tiles;
};
template <int kDim>
__device__ __forceinline__ int state_row(int tile) {
  return mma_warp() * (kDim / kMmaWarps) + 16 * tile;
}

// At most kBlockRows rows of one document.
struct Block {
  int64_t begin;
  int rows;
  bool fresh;  // a document begins with it
};

// body(block, whether it is the last one) for all of a piece, in the pass's direction.
template <bool kRight, class Body>
__device__ __forceinline__ void for_blocks(const LinearWork& work, const LinearPlace& at,
                                           Body&& body) {
  at.for_chunks<kRight>(work, [&](const LinearChunk& chunk, bool last_chunk) {
    const auto rows = static_cast<int>(chunk.rows);
    const auto starts_at = [&](int row) { return (chunk.starts >> row & 1u) != 0; };
    int done = 0;  // rows of the chunk
    while (done < rows) {
      int low = 0, high = rows;
      if constexpr (kRight) {
        low = done;
        for (high = low + 1; chunk.starts != 0 && high < rows && !starts_at(high);) ++high;
        high = chunk.starts == 0 ? rows : high;
      } else {
        high = rows - done;
        for (low = high - 1; chunk.starts != 0 && low > 0 && !starts_at(low);) --low;
        low = chunk.starts == 0 ? 0 : low;
      }
      done += high - low;
      body(Block{chunk.begin + low, high - low, starts_at(low)}, last_chunk && done == rows);
    }
  });
}

// Columns from `column` on.
__device__ __forceinline__ Operand<bf16> columns_from(const Operand<bf16>& z, int column) {
  Operand<bf16> result = z;
  result.p += column;
  result.dim -= column;
  return result;
}

// The leading bf16 of x, which is taken away from it.
__device__ __forceinline__ bf16 take_part(float& x) {
  const bf16 part(x);
  x -= static_cast<float>(part);
  return part;
}
__device__ __forceinline__ uint32_t take_parts(float& a, float& b) {
  const uint32_t pair = pack_bf16(a, b);
  bf16 low, high;
  low.bits = static_cast<uint16_t>(pair);
  high.bits = static_cast<uint16_t>(pair >> 16);
  a -= static_cast<float>(low);
  b -= static_cast<float>(high);
  return pair;
}

// A warp's rows of the state, as parts for all warps to multiply with.
template <int kDim>
__device__ __forceinline__ void publish(const State<kDim>& state, Shared<kDim>& shared) {
#pragma unroll
  for (int m = 0; m < kStateTiles<kDim>; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = state_row<kDim>(m) + mma_row() + 8 * half;
        const int at = row * kPaddedRow<kColumns> + 8 * n + mma_column();
        float a = state.tiles[m][n][2 * half], b = state.tiles[m][n][2 * half + 1];
        for (int part = 0; part < kParts; ++part) {
          *reinterpret_cast<uint32_t*>(shared.state[part] + at) = take_parts(a, b);
        }
      }
    }
  }
}

// f(c, n, element) for the elements of the state that a lane has.
template <int kDim, class F>
__device__ __forceinline__ void for_elements(State<kDim>& state, F&& f) {
#pragma unroll
  for (int m = 0; m < kStateTiles<kDim>; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        f(state_row<kDim>(m) + mma_row() + e / 2 * 8, 8 * n + mma_column() + e % 2,
          state.tiles[m][n][e]);
      }
    }
  }
}

// Returns whether there is a state; zeros if not.
template <int kDim>
__device__ bool load_state(const LinearStates<const float>& from, const LinearWork& work,
                           const LinearPlace& at, int dim, int columns, State<kDim>& state) {
  clear(state.tiles);
  if (from.p == nullptr) return false;
  const float* p = from.of(at.piece, at.number, work.heads, at.head, int64_t{dim} * columns);
  for_elements<kDim>(state, [&](int c, int n, float& element) {
    if (c < dim && at.column + n < columns) {
      element = p[state_index(from.turned, c, at.column + n, dim, columns)];
    }
  });
  return true;
}

template <int kDim>
__device__ void store_state(float* p, bool turned, const LinearPlace& at, int dim, int columns,
                            State<kDim>& state) {
  for_elements<kDim>(state, [&](int c, int n, float& element) {
    if (c < dim && at.column + n < columns) {
      p[state_index(turned, c, at.column + n, dim, columns)] = element;
    }
  });
}

// For all copies that were started.
__device__ __forceinline__ void wait_for_rows() {
  commit_copies();
  wait_copies<0>();
  __syncthreads();
}

// decayed = a^leave z times `far`, in parts.
template <int kDim, bool kRight>
__device__ __forceinline__ void decay_rows(int rows, float far, Shared<kDim>& shared) {
#pragma unroll 4
  for (int n = static_cast<int>(threadIdx.x); n < kBlockRows * kColumns; n += kMmaThreads) {
    const int row = n / kColumns, at = row * kPaddedRow<kColumns> + n % kColumns;
    float value = 0;
    if (row < rows) {
      value = static_cast<float>(shared.z[at]) *
              (far * shared.powers.template leave<kRight>(row, rows));
    }
    for (int part = 0; part < kParts; ++part) shared.decayed[part][at] = take_part(value);
  }
}

// state += y^T decayed, of `rows` rows.
template <int kDim>
__device__ __forceinline__ void add_to_state(const Shared<kDim>& shared, int rows,
                                             State<kDim>& state) {
#pragma unroll 1
  for (int k = 0; k < rows; k += 16) {
    uint32_t left[kStateTiles<kDim>][4];
#pragma unroll
    for (int m = 0; m < kStateTiles<kDim>; ++m) {
      load_matrices_transposed(left[m], shared.y + offset_across<kDim>(k, state_row<kDim>(m)));
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        uint32_t right[4];
        load_matrices_transposed(right, shared.decayed[part] + offset_along<kColumns>(k, 8 * n));
        multiply_two(left, right, n, state.tiles);
      }
    }
  }
}

// sums = the warp's rows of x times the state.
template <int kDim>
__device__ __forceinline__ void multiply_by_state(const Shared<kDim>& shared,
                                                  MmaTiles<1, kColumnTiles>& sums) {
  clear(sums);
#pragma unroll 2
  for (int k = 0; k < kDim; k += 16) {
    uint32_t left[1][4];
    load_matrices(left[0], shared.x + offset_along<kDim>(16 * mma_warp(), k));
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        uint32_t right[4];
        load_matrices_transposed(right, shared.state[part] + offset_along<kColumns>(k, 8 * n));
        multiply_two(left, right, n, sums);
      }
    }
  }
}

// Row i of the block's rows, of those a lane has two of.
__device__ __forceinline__ int result_row(int half) {
  return 16 * mma_warp() + mma_row() + 8 * half;
}

// sums *= far a^enter
template <bool kRight>
__device__ __forceinline__ void decay_results(const LinearPowers<float>& powers, float far,
                                              int rows, MmaTiles<1, kColumnTiles>& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = result_row(half);
    const float factor = i < rows ? far * powers.enter<kRight>(i, rows) : 0.0f;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      sums[0][n][2 * half] *= factor;
      sums[0][n][2 * half + 1] *= factor;
    }
  }
}

// sums += the decayed scores of x and y, as far as they are seen, times z.
template <int kDim, bool kRight>
__device__ __forceinline__ void add_rows_seen(const Shared<kDim>& shared, int rows,
                                              MmaTiles<1, kColumnTiles>& sums) {
  MmaTiles<1, kBlockRows / 8> scores;
  multiply_rows<kDim, 1, kBlockRows / 8>(shared.x + 16 * mma_warp() * kPaddedRow<kDim>, shared.y,
                                         scores);
#pragma unroll
  for (int n = 0; n < kBlockRows / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = result_row(e / 2), j = 8 * n + mma_column() + e % 2;
      const bool sees = i < rows && j < rows && (kRight ? j <= i : j >= i);
      scores[0][n][e] = sees ? scores[0][n][e] * shared.powers.rounded[i < j ? j - i : i - j] : 0;
    }
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    MmaOperand<1, kBlockRows / 16> left;
#pragma unroll
    for (int k = 0; k < kBlockRows / 16; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float(&tile)[4] = scores[0][2 * k + r / 2];
        left[0][k][r] = take_parts(tile[r % 2 * 2], tile[r % 2 * 2 + 1]);
      }
    }
    add_products<kColumns, 1, kBlockRows / 16>(left, shared.z, sums);
  }
}

// The lane's results: written, or added to what is there.
__device__ __forceinline__ void write_results(const MmaTiles<1, kColumnTiles>& sums,
                                              const Block& block, const LinearWork& work,
                                              const LinearPlace& at, int columns, bool add,
                                              float* result) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = result_row(half);
    if (i >= block.rows) continue;
    float* const row = result + ((block.begin + i) * work.heads + at.head) * columns;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int column = at.column + 8 * n + mma_column();
      const float a = sums[0][n][2 * half], b = sums[0][n][2 * half + 1];
      if (column + 1 < columns && aligned_pair(row + column)) {
        auto& pair = *reinterpret_cast<float2*>(row + column);
        pair = add ? make_float2(pair.x + a, pair.y + b) : make_float2(a, b);
        continue;
      }
      if (column < columns) row[column] = add ? row[column] + a : a;
      if (column + 1 < columns) row[column + 1] = add ? row[column + 1] + b : b;
    }
  }
}

template <int kDim, bool kRight>
__global__ void __launch_bounds__(kMmaThreads)
    follow_kernel(LinearWork work, LinearFollow<bf16> pass, int tiles) {
  auto& shared = *reinterpret_cast<Shared<kDim>*>(dynamic_shared());
  const LinearPlace at(work, tiles);
  const int dim = pass.x.dim, columns = pass.z.dim;
  const bool leaves = pass.leaving.p != nullptr && at.template at_end<kRight>();
  const Operand<bf16> z = columns_from(pass.z, at.column);
  shared.powers.fill(at.slope);
  State<kDim> state;
  bool enters = load_state<kDim>(pass.entering, work, at, dim, columns, state);
  publish<kDim>(state, shared);
  for_blocks<kRight>(work, at, [&](const Block& block, bool last) {
    __syncthreads();
    load_rows<kBlockRows, kDim>(pass.x, at.head, block.begin, block.rows, shared.x);
    load_rows<kBlockRows, kDim>(pass.y, at.head, block.begin, block.rows, shared.y);
    load_rows<kBlockRows, kColumns>(z, at.head, block.begin, block.rows, shared.z);
    wait_for_rows();
    if (kRight && block.fresh) enters = false;
    MmaTiles<1, kColumnTiles> sums;
    if (enters) {
      multiply_by_state<kDim>(shared, sums);
      decay_results<kRight>(shared.powers, 1.0f, block.rows, sums);
    } else {
      clear(sums);
    }
    add_rows_seen<kDim, kRight>(shared, block.rows, sums);
    write_results(sums, block, work, at, columns, pass.add, pass.result);
    if (last && !leaves) return;
    decay_rows<kDim, kRight>(block.rows, 1.0f, shared);
    __syncthreads();
    if (enters) {
      const float rounded = shared.powers.rounded[block.rows],
                  rest = shared.powers.rest[block.rows];
      for_elements<kDim>(
          state, [&](int, int, float& element) { element = rounded * element + rest * element; });
    } else {
      clear(state.tiles);
    }
    add_to_state<kDim>(shared, block.rows, state);
    enters = kRight || !block.fresh;
    if (!enters) clear(state.tiles);
    publish<kDim>(state, shared);
  });
  if (!leaves) return;
  store_state<kDim>(
      pass.leaving.of(at.piece, at.number, work.heads, at.head, int64_t{dim} * columns),
      pass.leaving.turned, at, dim, columns, state);
}

template <int kDim, bool kRight>
__global__ void __launch_bounds__(kMmaThreads)
    sums_kernel(LinearWork work, LinearSums<bf16> pass, int tiles) {
  auto& shared = *reinterpret_cast<Shared<kDim>*>(dynamic_shared());
  const LinearPlace at(work, tiles);
  if (!pass.all && at.template at_end<kRight>()) return;
  const int dim = pass.y.dim, columns = pass.z.dim;
  const Operand<bf16> z = columns_from(pass.z, at.column);
  shared.powers.fill(at.slope);
  State<kDim> state;
  clear(state.tiles);
  for_blocks<kRight>(work, at, [&](const Block& block, bool) {
    if (kRight && block.fresh) clear(state.tiles);
    __syncthreads();
    load_rows<kBlockRows, kDim>(pass.y, at.head, block.begin, block.rows, shared.y);
    load_rows<kBlockRows, kColumns>(z, at.head, block.begin, block.rows, shared.z);
    wait_for_rows();
    const int64_t distance =
        kRight ? at.piece.end - block.begin - block.rows : block.begin - at.piece.begin;
    decay_rows<kDim, kRight>(block.rows, decay_over<float>(at.slope, distance), shared);
    __syncthreads();
    add_to_state<kDim>(shared, block.rows, state);
    if (!kRight && block.fresh) clear(state.tiles);
  });
  store_state<kDim>(pass.states + (at.number * work.heads + at.head) * int64_t{dim} * columns,
                    false, at, dim, columns, state);
}

template <int kDim, bool kRight>
__global__ void __launch_bounds__(kMmaThreads)
    add_kernel(LinearWork work, LinearAdd<bf16> pass, int tiles) {
  auto& shared = *reinterpret_cast<Shared<kDim>*>(dynamic_shared());
  const LinearPlace at(work, tiles);
  shared.powers.fill(at.slope);
  State<kDim> state;
  load_state<kDim>(pass.entering, work, at, pass.x.dim, pass.columns, state);
  publish<kDim>(state, shared);
  at.template for_chunks<kRight>(work, [&](const LinearChunk& chunk, bool) {
    const int64_t distance = kRight ? chunk.before : chunk.after;
    // The rows of the document that comes from there.
    const int64_t begin = kRight ? 0 : chunk.last, end = kRight ? chunk.first : chunk.rows;
    if (distance < 0 || begin == end) return;
    const Block block{chunk.begin + begin, static_cast<int>(end - begin), false};
    __syncthreads();
    load_rows<kBlockRows, kDim>(pass.x, at.head, block.begin, block.rows, shared.x);
    wait_for_rows();
    MmaTiles<1, kColumnTiles> sums;
    multiply_by_state<kDim>(shared, sums);
    decay_results<kRight>(shared.powers, decay_over<float>(at.slope, distance), block.rows, sums);
    write_results(sums, block, work, at, pass.columns, true, pass.result);
  });
}

}  // namespace

template <int kDim>
template <bool kRight>
void LinearMma<kDim>::sums(const Context& ctx, const LinearWork& work,
                           const LinearSums<bf16>& pass) {
  launch_pieces<kMmaThreads>(ctx, "linear attention: sums", sums_kernel<kDim, kRight>, work, pass,
                             pass.z.dim, sizeof(Shared<kDim>));
}

template <int kDim>
template <bool kRight>
void LinearMma<kDim>::follow(const Context& ctx, const LinearWork& work,
                             const LinearFollow<bf16>& pass) {
  launch_pieces<kMmaThreads>(ctx, "linear attention", follow_kernel<kDim, kRight>, work, pass,
                             pass.z.dim, sizeof(Shared<kDim>));
}

template <int kDim>
template <bool kRight>
void LinearMma<kDim>::add(const Context& ctx, const LinearWork& work, const LinearAdd<bf16>& pass) {
  launch_pieces<kMmaThreads>(ctx, "linear attention: add", add_kernel<kDim, kRight>, work, pass,
                             pass.columns, sizeof(Shared<kDim>));
}

#define LONGHAUL_LINEAR_MMA(DIM, RIGHT)                                          \
  template void LinearMma<DIM>::sums<RIGHT>(const Context&, const LinearWork&,   \
                                            const LinearSums<bf16>&);            \
  template void LinearMma<DIM>::follow<RIGHT>(const Context&, const LinearWork&, \
                                              const LinearFollow<bf16>&);        \
  template void LinearMma<DIM>::add<RIGHT>(const Context&, const LinearWork&,    \
                                           const LinearAdd<bf16>&);
LONGHAUL_LINEAR_MMA(64, true)
LONGHAUL_LINEAR_MMA(64, false)
LONGHAUL_LINEAR_MMA(128, true)
LONGHAUL_LINEAR_MMA(128, false)
#undef LONGHAUL_LINEAR_MMA

}  // namespace longhaul::kernels::cuda
