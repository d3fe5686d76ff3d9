// Attention forward: tiles with online softmax, queries along the vectors.
//
// A task is a block of query rows of one head. It holds Q^T and O^T in panels of kPanel queries and
// goes through the keys of its segments, a block of rows at a time:
//
//     S = K Q^T          (keys x queries: rows of K are broadcast, no operand is transposed)
//     m' = max(m, columns of S);  P = 2^(S - m');  l = l 2^(m - m') + columns of P
//     O^T = O^T 2^(m - m') + V^T P
//
// Row statistics are vectors, so nothing is ever reduced across lanes, and head dimensions may be
// any number, since they run along tile rows. The running state starts as the folded result so far:
// (m, l, O) = (lse, 1, out). A masked score is selected away, so a NaN in a key does not reach
// queries that do not see it; one in a value may, within a panel, as P = 0 is still multiplied by
// it.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_forward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_forward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// One panel against keys [0, keys) of the step.
template <class A>
struct Step {
  const A *q, *k, *v;
  A *out, *max, *sum;
  A *scores, *step_max, *rescale;
  int64_t keys, head_dim, value_dim;
  // Lanes that see key j, if masked: [first_lane + j, last_lane + j) within [lane_begin, lane_end).
  bool masked;
  int64_t first_lane, last_lane, lane_begin, lane_end;
};

// S = K Q^T, masked, and the largest score of every query.
template <class A>
void make_scores(const Step<A>& s) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, -std::numeric_limits<A>::infinity());
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    hn::Vec<VectorOf<A>> largest[kTileVectors];
    for (auto& l : largest) l = lowest;
    for_row_tiles(s.keys, [&](auto rows, int64_t j) HWY_ATTR {
      Tile<rows, VectorOf<A>> tile;
      clear(d, tile);
      multiply(d, s.k + j * s.head_dim, s.head_dim, 1, s.q + x, kPanel, s.head_dim, tile);
      if (s.masked) {
        for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
          const int64_t first = std::max(s.lane_begin, s.first_lane + j + r);
          const int64_t last = std::min(s.lane_end, s.last_lane + j + r);
          c = hn::IfThenElse(
              lanes_between(d, x + v * lanes, std::min(first, kPanel), std::max<int64_t>(last, 0)),
              c, lowest);
        });
      }
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        largest[v] = hn::Max(largest[v], c);
        hn::StoreU(c, d, s.scores + (j + r) * kPanel + x + v * lanes);
      });
    });
    for (int v = 0; v < kTileVectors; ++v) hn::StoreU(largest[v], d, s.step_max + x + v * lanes);
  }
}

// P = 2^(S - m'), the new m and l, and the factor for what was summed before.
template <class A>
void make_probabilities(const Step<A>& s) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, -std::numeric_limits<A>::infinity());
  constexpr int kVectors = 4;
  for (int64_t x = 0; x < kPanel; x += kVectors * lanes) {
    hn::Vec<VectorOf<A>> shift[kVectors], sum[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = x + v * lanes;
      const auto before = hn::LoadU(d, s.max + at);
      const auto now = hn::Max(before, hn::LoadU(d, s.step_max + at));
      // A query that has seen nothing yet has m = -inf; any finite shift will do.
      shift[v] = hn::IfThenZeroElse(hn::Eq(now, lowest), now);
      const auto rescale = exp2(d, hn::Sub(before, shift[v]));
      sum[v] = hn::Mul(hn::LoadU(d, s.sum + at), rescale);
      hn::StoreU(rescale, d, s.rescale + at);
      hn::StoreU(now, d, s.max + at);
    }
    A* row = s.scores + x;
    for (int64_t j = 0; j < s.keys; ++j, row += kPanel) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const auto p = exp2(d, hn::Sub(hn::LoadU(d, row + v * lanes), shift[v]));
        hn::StoreU(p, d, row + v * lanes);
        sum[v] = hn::Add(sum[v], p);
      }
    }
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[v], d, s.sum + x + v * lanes);
  }
}

// O^T = O^T 2^(m - m') + V^T P
template <class A>
void add_values(const Step<A>& s) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    hn::Vec<VectorOf<A>> rescale[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) rescale[v] = hn::LoadU(d, s.rescale + x + v * lanes);
    for_row_tiles(s.value_dim, [&](auto rows, int64_t e) HWY_ATTR {
      A* out = s.out + e * kPanel + x;
      Tile<rows, VectorOf<A>> tile;
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        c = hn::Mul(hn::LoadU(d, out + r * kPanel + v * lanes), rescale[v]);
      });
      multiply(d, s.v + e, 1, s.value_dim, s.scores + x, kPanel, s.keys, tile);
      for_tile(tile, [&](int r, int v, auto& c)
                         HWY_ATTR { hn::StoreU(c, d, out + r * kPanel + v * lanes); });
    });
  }
}

// The part of one task that belongs to one call: where its rows lie.
template <class T>
class BlockRun {
  using A = Accumulator<T>;

 public:
  BlockRun(const AttentionForward& args, int64_t head, const QueryBlock& block,
           const ForwardScratch<A>& scratch)
      : args_(args),
        head_(head),
        kv_head_(args.heads.kv_head(head)),
        block_(block),
        s_(scratch),
        head_dim_(args.q.dim(2)),
        value_dim_(args.v.dim(2)) {}

  void run(Poller& poller) {
    read_state();
    for (const Segment* segment : block_.segments) fold(*segment, poller);
    write_state();
  }

 private:
  int64_t panels() const { return rounded_up(block_.end - block_.begin, kPanel) / kPanel; }
  int64_t panel_rows(int64_t p) const {
    return std::min(kPanel, block_.end - block_.begin - p * kPanel);
  }
  A* lse_of(int64_t row) const { return args_.lse.data<A>() + head_ * args_.q.dim(0) + row; }
  A* out_of(int64_t row) const {
    return args_.out_acc.data<A>() + (row * args_.q.dim(1) + head_) * value_dim_;
  }

  void read_state() {
    const A factor = static_cast<A>(args_.options.scale * kLog2E);
    const int64_t out_stride = args_.q.dim(1) * value_dim_;
    for (int64_t p = 0; p < panels(); ++p) {
      const int64_t row = block_.begin + p * kPanel, rows = panel_rows(p);
      pack_panel(args_.q.data<T>() + row * args_.q.stride(0) + head_ * args_.q.stride(1),
                 args_.q.stride(0), rows, head_dim_, factor, s_.q + p * kPanel * head_dim_);
      pack_panel<A>(out_of(row), out_stride, rows, value_dim_, A(1),
                    s_.out + p * kPanel * value_dim_);
      for (int64_t r = 0; r < kPanel; ++r) {
        const A lse = r < rows ? *lse_of(row + r) : -std::numeric_limits<A>::infinity();
        s_.max[p * kPanel + r] = lse * static_cast<A>(kLog2E);
        s_.sum[p * kPanel + r] = lse == -std::numeric_limits<A>::infinity() ? A(0) : A(1);
      }
    }
  }

  void write_state() {
    for (int64_t p = 0; p < panels(); ++p) {
      for (int64_t r = 0; r < panel_rows(p); ++r) {
        const int64_t row = block_.begin + p * kPanel + r;
        const A max = s_.max[p * kPanel + r], sum = s_.sum[p * kPanel + r];
        // A row to which nothing was added keeps its bits.
        const A before = *lse_of(row) * static_cast<A>(kLog2E);
        if (sum == A(0) || (sum == A(1) && max == before)) continue;
        *lse_of(row) = (max + std::log2(sum)) / static_cast<A>(kLog2E);
        const A* panel = s_.out + p * kPanel * value_dim_ + r;
        A* out = out_of(row);
        for (int64_t e = 0; e < value_dim_; ++e) out[e] = panel[e * kPanel] / sum;
      }
    }
  }

  void fold(const Segment& segment, Poller& poller) {
    const int64_t i0 = std::max(block_.begin - segment.q_row, int64_t{0});
    const int64_t i1 = std::min(block_.end - segment.q_row, segment.q_len);
    const IndexRange keys = keys_seen(segment, i0, i1);
    for (int64_t j0 = keys.begin; j0 < keys.end; j0 += kKeys) {
      const int64_t j1 = std::min(keys.end, j0 + kKeys);
      const int64_t row = segment.k_row + j0;
      widen_rows(args_.k.data<T>() + row * args_.k.stride(0) + kv_head_ * args_.k.stride(1),
                 args_.k.stride(0), j1 - j0, head_dim_, head_dim_, s_.k);
      widen_rows(args_.v.data<T>() + row * args_.v.stride(0) + kv_head_ * args_.v.stride(1),
                 args_.v.stride(0), j1 - j0, value_dim_, value_dim_, s_.v);
      for (int64_t p = 0; p < panels(); ++p) fold_panel(segment, i0, i1, j0, j1, p);
      poller.did((i1 - i0) * (j1 - j0) * (head_dim_ + value_dim_));
    }
  }

  // Queries [i0, i1) of the segment that lie in panel p, against keys [j0, j1), which are loaded.
  void fold_panel(const Segment& segment, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                  int64_t p) {
    // Lane x of the panel is query base + x of the segment.
    const int64_t base = block_.begin + p * kPanel - segment.q_row;
    const int64_t first = std::max(i0, base), last = std::min(i1, base + kPanel);
    if (first >= last) return;
    const IndexRange seen = keys_seen(segment, first, last);
    const int64_t begin = std::max(j0, seen.begin), end = std::min(j1, seen.end);
    if (begin >= end) return;
    const TileMask mask = classify(segment, first, last, begin, end);
    if (mask == TileMask::kEmpty) return;
    const Step<A> step{.q = s_.q + p * kPanel * head_dim_,
                       .k = s_.k + (begin - j0) * head_dim_,
                       .v = s_.v + (begin - j0) * value_dim_,
                       .out = s_.out + p * kPanel * value_dim_,
                       .max = s_.max + p * kPanel,
                       .sum = s_.sum + p * kPanel,
                       .scores = s_.scores,
                       .step_max = s_.step_max,
                       .rescale = s_.rescale,
                       .keys = end - begin,
                       .head_dim = head_dim_,
                       .value_dim = value_dim_,
                       .masked = mask == TileMask::kPartial || last - first < panel_rows(p),
                       .first_lane = begin - segment.band_hi - base,
                       .last_lane = begin - segment.band_lo - base + 1,
                       .lane_begin = first - base,
                       .lane_end = last - base};
    make_scores(step);
    make_probabilities(step);
    add_values(step);
  }

  const AttentionForward& args_;
  const int64_t head_, kv_head_;
  const QueryBlock& block_;
  const ForwardScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
};

void forward_block_bf16(const AttentionForward& args, int64_t head, const QueryBlock& block,
                        const ForwardScratch<float>& scratch, Poller& poller) {
  BlockRun<bf16>(args, head, block, scratch).run(poller);
}
void forward_block_f32(const AttentionForward& args, int64_t head, const QueryBlock& block,
                       const ForwardScratch<float>& scratch, Poller& poller) {
  BlockRun<float>(args, head, block, scratch).run(poller);
}
void forward_block_f64(const AttentionForward& args, int64_t head, const QueryBlock& block,
                       const ForwardScratch<double>& scratch, Poller& poller) {
  BlockRun<double>(args, head, block, scratch).run(poller);
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(forward_block_bf16);
HWY_EXPORT(forward_block_f32);
HWY_EXPORT(forward_block_f64);

namespace {

template <class T>
auto forward_block() {
  if constexpr (std::is_same_v<T, bf16>) {
    return HWY_DYNAMIC_DISPATCH(forward_block_bf16);
  } else if constexpr (std::is_same_v<T, float>) {
    return HWY_DYNAMIC_DISPATCH(forward_block_f32);
  } else {
    return HWY_DYNAMIC_DISPATCH(forward_block_f64);
  }
}

}  // namespace

template <class T>
void attention_forward_tiled(const Context& ctx, const AttentionForward& args) {
  using A = Accumulator<T>;
  const int64_t heads = args.q.dim(1), head_dim = args.q.dim(2), value_dim = args.v.dim(2);
  const int threads = ctx.pool->threads();
  const Arena::Scope scope(*ctx.scratch);
  const int64_t elements = ForwardScratch<A>::size(head_dim, value_dim);
  const TensorView scratch = ctx.scratch->allocate(dtype_of<A>, {threads, elements});
  if (ctx.measuring() || args.q.empty()) return;
  const std::vector<QueryBlock> blocks = query_blocks(args, threads);
  const auto run_block = forward_block<T>();
  ctx.pool->run(
      static_cast<int64_t>(blocks.size()) * heads,
      [&](int64_t task, int worker) {
        Poller poller(ctx, worker);
        const ForwardScratch<A> memory(scratch.data<A>() + worker * elements, head_dim, value_dim);
        run_block(args, task % heads, blocks[static_cast<size_t>(task / heads)], memory, poller);
      },
      ctx.poll);
}

template void attention_forward_tiled<bf16>(const Context&, const AttentionForward&);
template void attention_forward_tiled<float>(const Context&, const AttentionForward&);
template void attention_forward_tiled<double>(const Context&, const AttentionForward&);

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
