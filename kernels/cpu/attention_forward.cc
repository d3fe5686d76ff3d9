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
// (m, l, O) = (lse, 1, out).
//
// Any m will do that keeps sums within the range of numbers, as it cancels. So most steps keep m, 0
// at first, and take the exponential of a tile while it is in registers; only a step whose sums
// leave the range stores its scores and finds m' first.
//
// The general instance, for soft-cap, bias and dropout, changes scores as they are made and always
// takes the careful way.
//
// A masked score is selected away, so a NaN in a key does not reach queries that do not see it; one
// in a value may, within a panel, as P = 0 is still multiplied by it.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_forward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_forward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/attention_options-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// One panel against keys [0, keys) of the step.
template <class A>
struct Step {
  using Element = A;
  static constexpr bool kGeneral = false;

  const A *q, *k, *v;
  A *out, *max, *sum;
  A *scores, *step_max, *rescale, *step_sum;
  int64_t keys;   // a multiple of the arithmetic's depth
  int64_t depth;  // units of a row of q and k
  int64_t value_dim;
  A factor;  // of what q k^T gives, for scores in units of log 2
  // Lanes [first_lane + j, last_lane + j) within [lane_begin, lane_end) see key j, if j < valid.
  int64_t first_lane, last_lane, lane_begin, lane_end, valid;

  bool sees_any(int64_t lane) const {
    return std::max<int64_t>(lane - last_lane + 1, 0) <= std::min(valid - 1, lane - first_lane);
  }

  // Keys [begin, end) that all lanes see.
  IndexRange seen_by_all() const {
    if (lane_begin > 0 || lane_end < kPanel) return {0, 0};
    return {std::max<int64_t>(kPanel - last_lane, 0), std::min(valid, 1 - first_lane)};
  }
};

template <class A>
struct GeneralStep : Step<A> {
  static constexpr bool kGeneral = true;

  const HeadOptions<A>& options;
  int64_t distance, stride;  // query minus key position of lane 0 and key 0, and a lane's step
  const A* dropout;          // [keys][kPanel]: factors of P
};

// tile(r, :) = scores of key j + r, in units of log 2, for queries from column x on.
template <class Arithmetic, bool kMasked, int kRows, class S, class A = typename S::Element>
HWY_INLINE void make_score_tile(const S& s, int64_t j, int64_t x, const hn::Vec<VectorOf<A>>* shift,
                                Tile<kRows, VectorOf<A>>& tile) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, s.factor);
  clear(d, tile);
  multiply<Arithmetic>(d, s.k + j * s.depth, s.depth, 1, s.q + x, kPanel, s.depth, tile);
  for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
    c = hn::MulSub(c, factor, shift[v]);
    if constexpr (S::kGeneral) {
      if (s.options.caps()) c = s.options.capped(d, s.options.tanh_of(d, c));
      c = s.options.biased(d, c, s.distance - (j + r) * s.stride, s.stride, x + v * lanes);
    }
    if constexpr (kMasked) {
      const int64_t first = std::max(s.lane_begin, s.first_lane + j + r);
      const int64_t last = j + r < s.valid ? std::min(s.lane_end, s.last_lane + j + r) : 0;
      c = hn::IfThenElse(
          lanes_between(d, x + v * lanes, std::min(first, kPanel), std::max<int64_t>(last, 0)), c,
          hn::Set(d, -std::numeric_limits<A>::infinity()));
    }
  });
}

// Stores rows of P, first key j, as units.
template <class Arithmetic, int kRows, class A>
HWY_INLINE void store_probabilities(const Step<A>& s, int64_t j, int64_t x,
                                    Tile<kRows, VectorOf<A>>& tile) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  A* to = s.scores + j / Arithmetic::kDepth * kPanel + x;
  for_tile(tile, [&](int r, int v, auto& p) HWY_ATTR {
    if constexpr (Arithmetic::kDepth == 1) {
      hn::StoreU(p, d, to + r * kPanel + v * lanes);
    } else if (r % 2 == 1) {
      hn::StoreU(interleave_bf16(d, tile.v[r - 1][v], p), d, to + r / 2 * kPanel + v * lanes);
    }
  });
}

// P = 2^(S - m) of keys [begin, end) with the m of the steps before; sums of its columns go to
// step_sum. False if a sum outgrows its m.
template <class Arithmetic, bool kMasked, class A>
bool try_probabilities(const Step<A>& s, int64_t begin, int64_t end) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // Far from overflow, even of sums over all keys times values.
  const auto limit = hn::Set(d, A(0x1p60));
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    hn::Vec<VectorOf<A>> shift[kTileVectors], sum[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      const auto max = hn::LoadU(d, s.max + x + v * lanes);
      const auto nothing = hn::Set(d, -std::numeric_limits<A>::infinity());
      shift[v] = hn::IfThenZeroElse(hn::Eq(max, nothing), max);
      sum[v] = hn::LoadU(d, s.step_sum + x + v * lanes);
    }
    for_row_tiles(end - begin, [&](auto rows, int64_t r) HWY_ATTR {
      const int64_t j = begin + r;
      Tile<rows, VectorOf<A>> tile;
      make_score_tile<Arithmetic, kMasked>(s, j, x, shift, tile);
      for_tile(tile, [&](int, int v, auto& c) HWY_ATTR {
        c = exp2(d, c);
        sum[v] = hn::Add(sum[v], c);
      });
      store_probabilities<Arithmetic>(s, j, x, tile);
    });
    for (int v = 0; v < kTileVectors; ++v) {
      if (!hn::AllTrue(d, hn::Lt(sum[v], limit))) return false;
      hn::StoreU(sum[v], d, s.step_sum + x + v * lanes);
    }
  }
  return true;
}

// The same of all keys, masked where they must be. Only scratch is touched if false.
template <class Arithmetic, class A>
bool try_probabilities(const Step<A>& s) {
  constexpr int64_t kDepth = Arithmetic::kDepth;
  const IndexRange all = s.seen_by_all();
  const int64_t begin = std::clamp(rounded_up(all.begin, kDepth), int64_t{0}, s.keys);
  const int64_t end = std::clamp(all.end / kDepth * kDepth, begin, s.keys);
  std::copy_n(s.sum, kPanel, s.step_sum);
  return try_probabilities<Arithmetic, true>(s, 0, begin) &&
         try_probabilities<Arithmetic, false>(s, begin, end) &&
         try_probabilities<Arithmetic, true>(s, end, s.keys);
}

// S = K Q^T and the largest score of every query.
template <class Arithmetic, class S>
void make_scores(const S& s) {
  using A = typename S::Element;
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    hn::Vec<VectorOf<A>> largest[kTileVectors], none[kTileVectors];
    for (auto& l : largest) l = hn::Set(d, -std::numeric_limits<A>::infinity());
    for (auto& n : none) n = hn::Zero(d);
    for_row_tiles(s.keys, [&](auto rows, int64_t j) HWY_ATTR {
      Tile<rows, VectorOf<A>> tile;
      make_score_tile<Arithmetic, true>(s, j, x, none, tile);
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        largest[v] = hn::Max(largest[v], c);
        hn::StoreU(c, d, s.scores + (j + r) * kPanel + x + v * lanes);
      });
    });
    for (int v = 0; v < kTileVectors; ++v) hn::StoreU(largest[v], d, s.step_max + x + v * lanes);
  }
}

// P = 2^(S - m'), the new m and l, and the factor for what was summed before.
template <class Arithmetic, class S>
void make_probabilities(const S& s) {
  using A = typename S::Element;
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, -std::numeric_limits<A>::infinity());
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    hn::Vec<VectorOf<A>> shift[kTileVectors], sum[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
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
    constexpr int kRows = Arithmetic::kDepth;
    // Units replace scores from the front, behind what is still to be read.
    for (int64_t j = 0; j < s.keys; j += kRows) {
      Tile<kRows, VectorOf<A>> tile;
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        c = exp2(d, hn::Sub(hn::LoadU(d, s.scores + (j + r) * kPanel + x + v * lanes), shift[v]));
        sum[v] = hn::Add(sum[v], c);
        if constexpr (S::kGeneral) {
          c = hn::Mul(c, hn::LoadU(d, s.dropout + (j + r) * kPanel + x + v * lanes));
        }
      });
      store_probabilities<Arithmetic>(s, j, x, tile);
    }
    for (int v = 0; v < kTileVectors; ++v) hn::StoreU(sum[v], d, s.sum + x + v * lanes);
  }
}

// O^T = O^T 2^(m - m') + V^T P; the factor is 1 unless `kRescale`.
template <class Arithmetic, bool kRescale, class A>
void add_values(const Step<A>& s) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    for_row_tiles(s.value_dim, [&](auto rows, int64_t e) HWY_ATTR {
      A* out = s.out + e * kPanel + x;
      Tile<rows, VectorOf<A>> tile;
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        c = hn::LoadU(d, out + r * kPanel + v * lanes);
        if constexpr (kRescale) c = hn::Mul(c, hn::LoadU(d, s.rescale + x + v * lanes));
      });
      multiply<Arithmetic>(d, s.v + e, 1, s.value_dim, s.scores + x, kPanel,
                           s.keys / Arithmetic::kDepth, tile);
      for_tile(tile, [&](int r, int v, auto& c)
                         HWY_ATTR { hn::StoreU(c, d, out + r * kPanel + v * lanes); });
    });
  }
}

// Takes what try_probabilities made. False if a row that had seen nothing finds its first scores
// too low for an m of 0.
template <class A>
bool accept_sums(const Step<A>& s) {
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  A *begin = s.max + s.lane_begin, *end = s.max + s.lane_end;
  if (std::find(begin, end, kNothing) != end) {
    const auto starts = [&](int64_t lane) { return s.max[lane] == kNothing && s.sees_any(lane); };
    for (int64_t lane = s.lane_begin; lane < s.lane_end; ++lane) {
      if (starts(lane) && s.step_sum[lane] < A(0x1p-60)) return false;
    }
    for (int64_t lane = s.lane_begin; lane < s.lane_end; ++lane) {
      if (starts(lane)) s.max[lane] = 0;
    }
  }
  std::copy_n(s.step_sum, kPanel, s.sum);
  return true;
}

template <class Arithmetic, class S>
void fold_carefully(const S& s) {
  make_scores<Arithmetic>(s);
  make_probabilities<Arithmetic>(s);
  add_values<Arithmetic, true>(s);
}

template <class Arithmetic, class A>
void fold_step(const Step<A>& s) {
  if (try_probabilities<Arithmetic>(s) && accept_sums(s)) {
    return add_values<Arithmetic, false>(s);
  }
  fold_carefully<Arithmetic>(s);
}

// The part of one task that belongs to one call: where its rows lie.
template <class T, class Arithmetic, bool kGeneral>
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
        depth_(units<Arithmetic>(args.q.dim(2))),
        value_dim_(args.v.dim(2)) {}

  void run(Poller& poller) {
    coming_panel(0).prefetch(0, 1);
    for (const Segment* segment : block_.segments) fold(*segment, poller);
    for (int64_t p = 0; p < panels(); ++p) {
      if (read_[static_cast<size_t>(p)]) write_panel(p);
    }
  }

 private:
  int64_t panels() const { return rounded_up(block_.end - block_.begin, kPanel) / kPanel; }
  int64_t panel_rows(int64_t p) const {
    return std::min(kPanel, block_.end - block_.begin - p * kPanel);
  }
  A* lse_of(int64_t row) const { return args_.lse.data<A>() + head_ * args_.q.dim(0) + row; }
  A* out_of(int64_t row) const {
    return args_.out_acc.data<A>() + row * out_stride() + head_ * value_dim_;
  }
  int64_t out_stride() const { return args_.out_acc.stride(0); }

  const T* q_row(int64_t row) const {
    return args_.q.data<T>() + row * args_.q.stride(0) + head_ * args_.q.stride(1);
  }

  Upcoming coming_panel(int64_t p) const {
    Upcoming rows;
    if (p < panels()) {
      const int64_t row = block_.begin + p * kPanel;
      rows.add(q_row(row), args_.q.stride(0), panel_rows(p), args_.q.dim(2));
      rows.add(out_of(row), out_stride(), panel_rows(p), value_dim_);
    }
    return rows;
  }

  // The state of a panel is read when it is first folded into.
  void need_panel(int64_t p) {
    bool& read = read_[static_cast<size_t>(p)];
    if (read) return;
    read = true;
    const int64_t row = block_.begin + p * kPanel, rows = panel_rows(p);
    load_panel<Arithmetic>(q_row(row), args_.q.stride(0), rows, args_.q.dim(2),
                           s_.q + p * kPanel * depth_);
    load_panel<Single>(out_of(row), out_stride(), rows, value_dim_,
                       s_.out + p * kPanel * value_dim_);
    for (int64_t r = 0; r < kPanel; ++r) {
      const A lse = r < rows ? *lse_of(row + r) : -std::numeric_limits<A>::infinity();
      s_.max[p * kPanel + r] = lse * static_cast<A>(kLog2E);
      s_.sum[p * kPanel + r] = lse == -std::numeric_limits<A>::infinity() ? A(0) : A(1);
    }
    coming_panel(p + 1).prefetch(0, 1);
  }

  void write_panel(int64_t p) {
    const int64_t row = block_.begin + p * kPanel, rows = panel_rows(p);
    A* out = s_.out + p * kPanel * value_dim_;
    A* factor = s_.rescale;
    bool unchanged = false;
    for (int64_t r = 0; r < rows; ++r) {
      const A max = s_.max[p * kPanel + r], sum = s_.sum[p * kPanel + r];
      // A row to which nothing was added keeps its bits.
      const A before = *lse_of(row + r) * static_cast<A>(kLog2E);
      const bool keep = sum == A(0) || (sum == A(1) && max == before);
      unchanged = unchanged || keep;
      factor[r] = keep ? A(0) : A(1) / sum;
      if (!keep) *lse_of(row + r) = (max + std::log2(sum)) / static_cast<A>(kLog2E);
    }
    if (!unchanged) {
      scale_columns(factor, out);
      transpose(out, kPanel, value_dim_, rows, out_of(row), out_stride());
      return;
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (factor[r] == A(0)) continue;
      for (int64_t e = 0; e < value_dim_; ++e) out_of(row + r)[e] = out[e * kPanel + r] * factor[r];
    }
  }

  // panel(e, r) *= factor[r]
  void scale_columns(const A* factor, A* panel) const {
    const VectorOf<A> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t i = 0; i < value_dim_ * kPanel; i += lanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, panel + i), hn::LoadU(d, factor + i % kPanel)), d, panel + i);
    }
  }

  const T* k_row(int64_t row) const {
    return args_.k.data<T>() + row * args_.k.stride(0) + kv_head_ * args_.k.stride(1);
  }
  const T* v_row(int64_t row) const {
    return args_.v.data<T>() + row * args_.v.stride(0) + kv_head_ * args_.v.stride(1);
  }

  void fold(const Segment& segment, Poller& poller) {
    const int64_t i0 = std::max(block_.begin - segment.q_row, int64_t{0});
    const int64_t i1 = std::min(block_.end - segment.q_row, segment.q_len);
    const IndexRange keys = keys_seen(segment, i0, i1);
    for (int64_t j0 = keys.begin; j0 < keys.end; j0 += kKeys) {
      const int64_t j1 = std::min(keys.end, j0 + kKeys);
      const int64_t row = segment.k_row + j0, count = j1 - j0;
      load_rows<Arithmetic>(k_row(row), args_.k.stride(0), count, args_.k.dim(2), s_.k);
      // The row that makes the keys a whole number of units.
      std::fill_n(s_.k + count * depth_, depth_, A(0));
      interleave_rows<Arithmetic>(v_row(row), args_.v.stride(0), count, value_dim_, s_.v);
      Upcoming next;
      next.add(k_row(segment.k_row + j1), args_.k.stride(0), std::min(kKeys, keys.end - j1),
               args_.k.dim(2));
      next.add(v_row(segment.k_row + j1), args_.v.stride(0), std::min(kKeys, keys.end - j1),
               value_dim_);
      for (int64_t p = 0; p < panels(); ++p) {
        next.prefetch(p, panels());
        fold_panel(segment, i0, i1, j0, j1, p);
      }
      poller.did((i1 - i0) * count * (args_.q.dim(2) + value_dim_));
    }
  }

  // Queries [i0, i1) of the segment that lie in panel p, against keys [j0, j1), which are loaded.
  void fold_panel(const Segment& segment, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                  int64_t p) {
    constexpr int64_t kDepth = Arithmetic::kDepth;
    // Lane x of the panel is query base + x of the segment.
    const int64_t base = block_.begin + p * kPanel - segment.q_row;
    const int64_t first = std::max(i0, base), last = std::min(i1, base + kPanel);
    if (first >= last) return;
    const IndexRange seen = keys_seen(segment, first, last);
    // Whole units of the keys that are loaded.
    const int64_t begin = j0 + (std::max(j0, seen.begin) - j0) / kDepth * kDepth;
    const int64_t end = std::min(j1, seen.end);
    if (begin >= end) return;
    if (classify(segment, first, last, begin, end) == TileMask::kEmpty) return;
    need_panel(p);
    const int64_t keys = rounded_up(end - begin, kDepth);
    const Step<A> step{.q = s_.q + p * kPanel * depth_,
                       .k = s_.k + (begin - j0) * depth_,
                       .v = s_.v + (begin - j0) / kDepth * value_dim_,
                       .out = s_.out + p * kPanel * value_dim_,
                       .max = s_.max + p * kPanel,
                       .sum = s_.sum + p * kPanel,
                       .scores = s_.scores,
                       .step_max = s_.step_max,
                       .rescale = s_.rescale,
                       .step_sum = s_.step_sum,
                       .keys = keys,
                       .depth = depth_,
                       .value_dim = value_dim_,
                       .factor = static_cast<A>(args_.options.scale * kLog2E),
                       .first_lane = begin - segment.band_hi - base,
                       .last_lane = begin - segment.band_lo - base + 1,
                       .lane_begin = first - base,
                       // Whatever lanes behind the last row see, nobody reads it.
                       .lane_end = last - base == panel_rows(p) ? kPanel : last - base,
                       .valid = end - begin};
    if constexpr (kGeneral) {
      fold_generally(step, segment, base, begin);
    } else {
      fold_step<Arithmetic>(step);
    }
  }

  // Lane 0 is query `query` of the segment, and the first key is its key `key`.
  void fold_generally(const Step<A>& step, const Segment& segment, int64_t query, int64_t key) {
    const HeadOptions<A> options(args_.options, args_.heads, head_);
    const int64_t q_position = segment.q_pos + query * segment.stride;
    const int64_t k_position = segment.k_pos + key * segment.stride;
    options.dropout_factors(q_position, k_position, segment.stride, step.keys, s_.dropout);
    fold_carefully<Arithmetic>(
        GeneralStep<A>{step, options, q_position - k_position, segment.stride, s_.dropout});
  }

  const AttentionForward& args_;
  const int64_t head_, kv_head_;
  const QueryBlock& block_;
  const ForwardScratch<A>& s_;
  const int64_t depth_;  // units of a row of q and k
  const int64_t value_dim_;
  std::array<bool, kMostPanels> read_{};
};

template <class T, class Arithmetic>
void forward_block(const AttentionForward& args, int64_t head, const QueryBlock& block,
                   const ForwardScratch<Accumulator<T>>& scratch, Poller& poller) {
  if (args.options.plain()) {
    BlockRun<T, Arithmetic, false>(args, head, block, scratch).run(poller);
  } else {
    BlockRun<T, Arithmetic, true>(args, head, block, scratch).run(poller);
  }
}

void forward_block_pairs(const AttentionForward& args, int64_t head, const QueryBlock& block,
                         const ForwardScratch<float>& scratch, Poller& poller) {
  forward_block<bf16, Bf16Arithmetic>(args, head, block, scratch, poller);
}
void forward_block_bf16(const AttentionForward& args, int64_t head, const QueryBlock& block,
                        const ForwardScratch<float>& scratch, Poller& poller) {
  forward_block<bf16, Single>(args, head, block, scratch, poller);
}
void forward_block_f32(const AttentionForward& args, int64_t head, const QueryBlock& block,
                       const ForwardScratch<float>& scratch, Poller& poller) {
  forward_block<float, Single>(args, head, block, scratch, poller);
}
void forward_block_f64(const AttentionForward& args, int64_t head, const QueryBlock& block,
                       const ForwardScratch<double>& scratch, Poller& poller) {
  forward_block<double, Single>(args, head, block, scratch, poller);
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(forward_block_pairs);
HWY_EXPORT(forward_block_bf16);
HWY_EXPORT(forward_block_f32);
HWY_EXPORT(forward_block_f64);

namespace {

template <class A, class RunBlock>
void run_blocks(const Context& ctx, const AttentionForward& args, RunBlock run_block) {
  const int64_t heads = args.q.dim(1), head_dim = args.q.dim(2), value_dim = args.v.dim(2);
  const int threads = ctx.pool->threads();
  const Arena::Scope scope(*ctx.scratch);
  const bool general = !args.options.plain();
  const int64_t elements = ForwardScratch<A>::size(head_dim, value_dim, general);
  const TensorView scratch = ctx.scratch->allocate(dtype_of<A>, {threads, elements});
  if (ctx.measuring() || args.q.empty()) return;
  const std::vector<QueryBlock> blocks = query_blocks(args, threads);
  ctx.pool->run(
      static_cast<int64_t>(blocks.size()) * heads,
      [&](int64_t task, int worker) {
        Poller poller(ctx, worker);
        const ForwardScratch<A> memory(scratch.data<A>() + worker * elements, head_dim, value_dim,
                                       general);
        run_block(args, task % heads, blocks[static_cast<size_t>(task / heads)], memory, poller);
      },
      ctx.poll);
}

}  // namespace

void attention_forward_pairs(const Context& ctx, const AttentionForward& args) {
  run_blocks<float>(ctx, args, HWY_DYNAMIC_DISPATCH(forward_block_pairs));
}

template <>
void attention_forward_tiled<bf16>(const Context& ctx, const AttentionForward& args) {
  run_blocks<float>(ctx, args, HWY_DYNAMIC_DISPATCH(forward_block_bf16));
}

template <>
void attention_forward_tiled<float>(const Context& ctx, const AttentionForward& args) {
  run_blocks<float>(ctx, args, HWY_DYNAMIC_DISPATCH(forward_block_f32));
}

template <>
void attention_forward_tiled<double>(const Context& ctx, const AttentionForward& args) {
  run_blocks<double>(ctx, args, HWY_DYNAMIC_DISPATCH(forward_block_f64));
}

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
