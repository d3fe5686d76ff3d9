// What the kernels of the gated delta rule share: a chunk's decays, and its triangular systems.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/cuda/delta_rule_passes.h"
#include "kernels/cuda/gate_sum.h"
#include "kernels/cuda/hardware.h"
#include "kernels/cuda/linear_attention_place.h"
#include "kernels/cuda/simt_tiles.h"

namespace longhaul::kernels::cuda {

static_assert(kDeltaRows == kSide);

// A piece, head and 32 columns: the step-th piece of a run.
struct DeltaPlace {
  int64_t run, number, head;
  int column;  // its first
  bool inside;
  LinearPiece piece;

  __device__ DeltaPlace(const LinearWork& work, int64_t step, int tiles)
      : run(blockIdx.x / tiles / work.heads),
        number(work.run_begins[run] + step),
        head(blockIdx.x / tiles % work.heads),
        column(static_cast<int>(blockIdx.x % tiles) * kSide),
        inside(number < work.run_begins[run + 1]) {
    if (inside) piece = work.pieces[number];
  }
};

// A chunk's decays, products of gates in f64, those too small for normal numbers 0.
template <class A>
struct DeltaDecays {
  Tile<A> between;  // D_ij for j <= i in one document, else 0
  double gate[kSide];
  A rising[kSide], falling[kSide], beta[kSide];
  int begin[kSide], end[kSide];  // rows of row i's document
  A decay, rest;                 // over the chunk, rounded, and what rounding took away

  static __device__ double times(double x, double y) {
    const double product = x * y;
    return product < static_cast<double>(std::numeric_limits<A>::min()) ? 0.0 : product;
  }

  // By the whole block; begins and ends with a barrier.
  __device__ void load(const A* log_gate, const A* betas, const LinearChunk& chunk, int64_t heads,
                       int64_t head) {
    __syncthreads();
    const auto rows = static_cast<int>(chunk.rows);
    const int i = lane();
    if (warp() == 0) {
      const int64_t at = (chunk.begin + i) * heads + head;
      gate[i] = i < rows ? exp(static_cast<double>(log_gate[at])) : 1.0;
      beta[i] = i < rows ? betas[at] : A(0);
      int first = i, behind = i + 1;
      while (first > 0 && (chunk.starts >> first & 1u) == 0) --first;
      while (behind < rows && (chunk.starts >> behind & 1u) == 0) ++behind;
      begin[i] = first;
      end[i] = behind;
    }
    __syncthreads();
    if (warp() == 0) {
      double product = 1;
      for (int r = 0; r < kSide; ++r) {
        if (r > i) product = times(product, gate[r]);
        const bool seen = r >= i && r < end[i] && i < rows;
        between[r][i] = seen ? static_cast<A>(product) : A(0);
        if (r == rows - 1) falling[i] = static_cast<A>(product);
      }
    } else if (warp() == 1) {
      double product = 1;
      for (int r = 0; r <= i; ++r) product = times(product, gate[r]);
      rising[i] = static_cast<A>(product);
    } else if (warp() == 2 && i == 0) {
      GateSum sum;
      for (int r = 0; r < rows; ++r) {
        sum.add(static_cast<double>(log_gate[(chunk.begin + r) * heads + head]));
      }
      sum.decay(decay, rest);
    }
    __syncthreads();
  }
};

inline constexpr int kDeltaSolved = 8;  // rows that one warp solves alone

// x and product = beta x, in place of x without what its own rows add: to the right y and u, to the
// left r and w. keys(i, j) = D_ij k(i) . k(j) for j < i. By the whole block, a lane a column;
// begins and ends with a barrier.
template <bool kRight, class A>
__device__ void solve(const DeltaDecays<A>& decays, int rows, const Tile<A>& keys, Tile<A>& x,
                      Tile<A>& product) {
  const auto subtract = [&](int i, int begin, int end) {
    A sum = x[i][lane()];
    for (int j = begin; j < end; ++j) {
      sum -= (kRight ? keys[i][j] : keys[j][i]) * product[j][lane()];
    }
    x[i][lane()] = sum;
  };
  __syncthreads();
  const int groups = (rows + kDeltaSolved - 1) / kDeltaSolved;
  for (int n = 0; n < groups; ++n) {
    const int first = (kRight ? n : groups - 1 - n) * kDeltaSolved;
    const int behind = first + kDeltaSolved < rows ? first + kDeltaSolved : rows;
    if (warp() == 0) {
      for (int m = 0; m < behind - first; ++m) {
        const int i = kRight ? first + m : behind - 1 - m;
        if (kRight) {
          subtract(i, decays.begin[i] > first ? decays.begin[i] : first, i);
        } else {
          subtract(i, i + 1, decays.end[i] < behind ? decays.end[i] : behind);
        }
        product[i][lane()] = decays.beta[i] * x[i][lane()];
      }
    }
    __syncthreads();
    if (kRight) {
      for (int i = behind + warp(); i < rows; i += kWarps) {
        subtract(i, decays.begin[i] > first ? decays.begin[i] : first, behind);
      }
    } else {
      for (int i = warp(); i < first; i += kWarps) {
        subtract(i, first, decays.end[i] < behind ? decays.end[i] : behind);
      }
    }
    __syncthreads();
  }
}

template <class T>
__device__ __forceinline__ TileRows<T> chunk_rows(const Operand<T>& x, int64_t head,
                                                  const LinearChunk& chunk) {
  return {x.of_head(head), chunk.begin, static_cast<int>(chunk.rows), x.dim};
}

}  // namespace longhaul::kernels::cuda
