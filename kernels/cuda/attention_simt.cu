// Attention by tiles of 32 queries x 32 keys, after "FlashAttention-2" (Dao 2023).
//
// A block of 8 warps owns 32 rows, queries or (for dk and dv) keys, and walks through the others 32
// at a time. Warp w has rows 4 w .. 4 w + 3: a lane is one of the others in the products of rows,
// and every 32nd column in what is summed up. Operands pass through shared memory 32 columns at a
// time, so that the head dimensions cost no shared memory.
#include "kernels/cuda/attention_simt.h"

#include "kernels/cuda/attention_arguments.h"
#include "kernels/cuda/simt_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int kColumns = kMostHeadDim / kWarp;  // of a lane

template <class A>
using Sums = A[kRows][kColumns];

// result[r] = the warp's row r of `left` times row `lane` of `right`.
template <class T, class A>
__device__ void multiply_rows(const TileRows<T>& left, const TileRows<T>& right, Tile<A>& a,
                              Tile<A>& b, A (&result)[kRows]) {
  for (A& x : result) x = 0;
  for (int begin = 0; begin < left.dim; begin += kSide) {
    __syncthreads();
    load(left, begin, a);
    load(right, begin, b);
    __syncthreads();
    const int columns = left.dim - begin < kSide ? left.dim - begin : kSide;
    for (int c = 0; c < columns; ++c) {
      const A x = b[lane()][c];
#pragma unroll
      for (int r = 0; r < kRows; ++r) result[r] += a[warp() * kRows + r][c] * x;
    }
  }
}

// sums += weights * right; row r of weights belongs to the warp that has row r.
template <class T, class A>
__device__ void add_products(const Tile<A>& weights, const TileRows<T>& right, Tile<A>& b,
                             Sums<A>& sums) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    if (n * kSide >= right.dim) break;
    __syncthreads();
    load(right, n * kSide, b);
    __syncthreads();
    for (int j = 0; j < right.count; ++j) {
      const A x = b[j][lane()];
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[r][n] += weights[warp() * kRows + r][j] * x;
    }
  }
}

template <class A>
__device__ void clear(Sums<A>& sums) {
  for (auto& row : sums) {
    for (A& x : row) x = 0;
  }
}

// to[row of the warp] += factor * sums, for rows below `count`.
template <class A>
__device__ void add_rows(const Sums<A>& sums, A factor, A* to, int64_t stride, int count, int dim) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (warp() * kRows + r >= count) break;
    A* row = to + (warp() * kRows + r) * stride;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int column = n * kSide + lane();
      if (column < dim) row[column] += factor * sums[r][n];
    }
  }
}

// Both sides of a step, within one segment: queries from i on and keys from j on.
struct Sides {
  const Segment* segment;
  IndexRange queries, keys;  // of the step that exist
  TileMask mask;

  __device__ Sides(const Segment& s, IndexRange queries_, IndexRange keys_)
      : segment(&s),
        queries(queries_),
        keys(keys_),
        mask(classify(s, queries_.begin, queries_.end, keys_.begin, keys_.end)) {}
  __device__ bool sees(int64_t i, int64_t j) const {
    return i >= queries.begin && i < queries.end && j >= keys.begin && j < keys.end &&
           (mask == TileMask::kFull || longhaul::sees(*segment, i, j));
  }
  __device__ int64_t q_position(int64_t i) const { return segment->q_pos + i * segment->stride; }
  __device__ int64_t k_position(int64_t j) const { return segment->k_pos + j * segment->stride; }
};

__device__ __forceinline__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// body(sides, j): steps of keys from j on that a tile of queries sees, over all its segments.
template <class Body>
__device__ void for_keys(const AttentionWork& work, const AttentionTile& tile, Body&& body) {
  for (int64_t visit = tile.first; visit < tile.last; ++visit) {
    const Segment& s = work.segments[work.visits[visit]];
    const IndexRange queries = part_of(s.q_row, s.q_len, tile.begin, tile.end);
    const IndexRange keys = keys_seen(s, queries.begin, queries.end);
    for (int64_t j = keys.begin; j < keys.end; j += kSide) {
      const Sides sides(s, queries, {j, least(keys.end, j + kSide)});
      if (sides.mask != TileMask::kEmpty) body(sides, j);
    }
  }
}

template <class T, bool kGeneral, class A = Accumulator<T>>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(AttentionWork work, AttentionArguments<T> args) {
  __shared__ Tile<A> left, right, weights;
  const auto [tile, head] = tile_of_block(work, args.q_heads);
  const int64_t kv_head = args.heads.kv_head(head);
  const HeadScores<A, kGeneral> scores(args.options, args.heads, head);
  const int count = static_cast<int>(tile.end - tile.begin);
  const TileRows<T> q{args.q.of_head(head), tile.begin, count, args.q.dim};
  constexpr A kNothing = -std::numeric_limits<A>::infinity();

  Sums<A> out;
  A max[kRows], sum[kRows];  // of a row; of the row's keys that are this lane's
  clear(out);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    max[r] = kNothing;
    sum[r] = 0;
  }
  for_keys(work, tile, [&](const Sides& sides, int64_t j0) {
    const Segment& s = *sides.segment;
    const int keys = static_cast<int>(sides.keys.end - j0);
    const int64_t j = j0 + lane();
    A product[kRows];
    multiply_rows(q, TileRows<T>{args.k.of_head(kv_head), s.k_row + j0, keys, args.k.dim}, left,
                  right, product);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = tile.begin + warp() * kRows + r - s.q_row;
      const int64_t q_position = sides.q_position(i), k_position = sides.k_position(j);
      const bool seen = sides.sees(i, j);
      const A score = seen ? scores.score(product[r], q_position - k_position) : kNothing;
      const A now = warp_max(score > max[r] ? score : max[r]);
      const A shift = now == kNothing ? A(0) : now;
      const A rescale = std::exp2(max[r] - shift), p = std::exp2(score - shift);
      max[r] = now;
      sum[r] = sum[r] * rescale + p;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) out[r][n] *= rescale;
      weights[warp() * kRows + r][lane()] =
          kGeneral && seen ? p * scores.kept(q_position, k_position) : p;
    }
    add_products(weights, TileRows<T>{args.v.of_head(kv_head), s.k_row + j0, keys, args.v.dim},
                 right, out);
  });

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const A total = warp_sum(sum[r]);
    // A row to which nothing was added keeps its bits.
    if (warp() * kRows + r >= count || total == A(0)) continue;
    const int64_t row = tile.begin + warp() * kRows + r;
    A& lse = args.lse[head * args.queries + row];
    const A part = (max[r] + std::log2(total)) / static_cast<A>(kLog2E);
    const MergeFactors<A> f = merge_factors(lse, part);
    __syncwarp();  // all have read lse
    if (lane() == 0) lse = f.lse;
    A* to = args.out + row * args.out_stride + head * args.v.dim;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const int column = n * kSide + lane();
      if (column < args.v.dim) to[column] = to[column] * f.first + out[r][n] * (f.second / total);
    }
  }
}

// P = 2^(S - lse), after dropout, and dS / scale of one element.
template <class A>
struct Element {
  A p = 0, ds = 0;
};
template <bool kGeneral, class A>
__device__ Element<A> element(const HeadScores<A, kGeneral>& scores, const Sides& sides, int64_t i,
                              int64_t j, A product, A dp, A lse, A delta) {
  // What is masked is selected away, not multiplied by 0.
  if (!sides.sees(i, j)) return {};
  const int64_t q_position = sides.q_position(i), k_position = sides.k_position(j);
  A derivative = 1;
  const A p = std::exp2(scores.score(product, q_position - k_position, derivative) - lse);
  const A kept = scores.kept(q_position, k_position);
  return {p * kept, p * (dp * kept - delta) * derivative};
}

template <class T, bool kGeneral, class A = Accumulator<T>>
__global__ void __launch_bounds__(kThreads)
    query_gradient_kernel(AttentionWork work, AttentionArguments<T> args) {
  __shared__ Tile<A> left, right, weights;
  const auto [tile, head] = tile_of_block(work, args.q_heads);
  const int64_t kv_head = args.heads.kv_head(head);
  const HeadScores<A, kGeneral> scores(args.options, args.heads, head);
  const int count = static_cast<int>(tile.end - tile.begin);
  const TileRows<T> q{args.q.of_head(head), tile.begin, count, args.q.dim};
  const TileRows<T> dout{args.dout.of_head(head), tile.begin, count, args.dout.dim};

  A lse[kRows], delta[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = warp() * kRows + r;
    const int64_t at = head * args.queries + tile.begin + (row < count ? row : 0);
    lse[r] = lse_for_backward(args.final_lse[at]);
    delta[r] = args.delta[at];
  }
  Sums<A> dq;
  clear(dq);
  for_keys(work, tile, [&](const Sides& sides, int64_t j0) {
    const Segment& s = *sides.segment;
    const int keys = static_cast<int>(sides.keys.end - j0);
    const TileRows<T> k{args.k.of_head(kv_head), s.k_row + j0, keys, args.k.dim};
    A product[kRows], dp[kRows];
    multiply_rows(q, k, left, right, product);
    multiply_rows(dout, TileRows<T>{args.v.of_head(kv_head), s.k_row + j0, keys, args.v.dim}, left,
                  right, dp);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = tile.begin + warp() * kRows + r - s.q_row;
      weights[warp() * kRows + r][lane()] =
          element(scores, sides, i, j0 + lane(), product[r], dp[r], lse[r], delta[r]).ds;
    }
    add_products(weights, k, right, dq);
  });
  add_rows(dq, args.options.scale, args.dq + tile.begin * args.dq_stride + head * args.q.dim,
           args.dq_stride, count, args.q.dim);
}

template <class T, bool kGeneral, class A = Accumulator<T>>
__global__ void __launch_bounds__(kThreads)
    key_gradients_kernel(AttentionWork work, AttentionArguments<T> args) {
  __shared__ Tile<A> left, right, weights_v, weights_k;
  const auto [tile, kv_head] = tile_of_block(work, args.kv_heads);
  const int count = static_cast<int>(tile.end - tile.begin);
  const TileRows<T> k{args.k.of_head(kv_head), tile.begin, count, args.k.dim};
  const TileRows<T> v{args.v.of_head(kv_head), tile.begin, count, args.v.dim};
  const IndexRange group = args.group_of(kv_head);

  Sums<A> dk, dv;
  clear(dk);
  clear(dv);
  for (int64_t visit = tile.first; visit < tile.last; ++visit) {
    const Segment& s = work.segments[work.visits[visit]];
    const IndexRange keys = part_of(s.k_row, s.k_len, tile.begin, tile.end);
    const IndexRange queries = queries_seeing(s, keys.begin, keys.end);
    for (int64_t head = group.begin; head < group.end; ++head) {
      const HeadScores<A, kGeneral> scores(args.options, args.heads, head);
      for (int64_t i0 = queries.begin; i0 < queries.end; i0 += kSide) {
        const Sides sides(s, {i0, least(queries.end, i0 + kSide)}, keys);
        if (sides.mask == TileMask::kEmpty) continue;
        const int rows = static_cast<int>(sides.queries.end - i0);
        const TileRows<T> q{args.q.of_head(head), s.q_row + i0, rows, args.q.dim};
        const TileRows<T> dout{args.dout.of_head(head), s.q_row + i0, rows, args.dout.dim};
        const int64_t at = head * args.queries + s.q_row + i0 + (lane() < rows ? lane() : 0);
        const A lse = lse_for_backward(args.final_lse[at]), delta = args.delta[at];
        A product[kRows], dp[kRows];
        multiply_rows(k, q, left, right, product);
        multiply_rows(v, dout, left, right, dp);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int64_t j = tile.begin + warp() * kRows + r - s.k_row;
          const Element<A> e =
              element(scores, sides, i0 + lane(), j, product[r], dp[r], lse, delta);
          weights_v[warp() * kRows + r][lane()] = e.p;
          weights_k[warp() * kRows + r][lane()] = e.ds;
        }
        add_products(weights_v, dout, right, dv);
        add_products(weights_k, q, right, dk);
      }
    }
  }
  add_rows(dk, args.options.scale, args.dk + (tile.begin * args.kv_heads + kv_head) * args.k.dim,
           args.kv_heads * args.k.dim, count, args.k.dim);
  add_rows(dv, A(1), args.dv + (tile.begin * args.kv_heads + kv_head) * args.v.dim,
           args.kv_heads * args.v.dim, count, args.v.dim);
}

}  // namespace

template <class T>
void attention_forward_simt(const Context& ctx, const AttentionForward& args) {
  const auto of_work = [&](const AttentionWork& work) {
    launch(ctx, "attention forward",
           args.options.plain() ? forward_kernel<T, false> : forward_kernel<T, true>,
           {.blocks = blocks_of(work, args.q.dim(1)), .threads = dim3(kThreads)}, work,
           arguments<T>(args));
  };
  for_work(ctx, query_tiles, args.segments, args.q.dim(0), kSide, of_work);
}

template <class T>
void attention_backward_simt(const Context& ctx, const AttentionBackward& args) {
  const bool plain = args.options.plain();
  const auto by_queries = [&](const AttentionWork& work) {
    launch(ctx, "attention backward, dq",
           plain ? query_gradient_kernel<T, false> : query_gradient_kernel<T, true>,
           {.blocks = blocks_of(work, args.q.dim(1)), .threads = dim3(kThreads)}, work,
           arguments<T>(args));
  };
  const auto by_keys = [&](const AttentionWork& work) {
    launch(ctx, "attention backward, dk and dv",
           plain ? key_gradients_kernel<T, false> : key_gradients_kernel<T, true>,
           {.blocks = blocks_of(work, args.k.dim(1)), .threads = dim3(kThreads)}, work,
           arguments<T>(args));
  };
  for_work(ctx, query_tiles, args.segments, args.q.dim(0), kSide, by_queries);
  for_work(ctx, key_tiles, args.segments, args.k.dim(0), kSide, by_keys);
}

template void attention_forward_simt<float>(const Context&, const AttentionForward&);
template void attention_forward_simt<double>(const Context&, const AttentionForward&);
template void attention_backward_simt<float>(const Context&, const AttentionBackward&);
template void attention_backward_simt<double>(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cuda
