// Attention backward: tiles, keys along the vectors; P is made again from the final lse.
//
// A task owns a part of the attention matrix for one kv head: query rows x key rows. It goes
// through the keys, a step of rows at a time (K^T, V^T packed in panels, dK^T, dV^T accumulated in
// panels), and for each through the queries of every query head that uses the kv head:
//
//     P = 2^(Q K^T - lse)      dS = P * (dO V^T - delta) * scale
//     dV^T += dO^T P           dK^T += Q^T dS           dQ += dS K
//
// where the left operands of all five products are broadcast from rows, so only K and V are ever
// transposed. Two tasks that share query or key rows must not run together, and sums need a fixed
// order: the matrix is cut into a grid whose tiles are done in rounds, no two tiles of a round in
// one row or column of the grid. So they run in parallel and add to dq, dk and dv in place: five
// products, no partial sums, whatever the number of heads.
//
// The general instance, for soft-cap, bias and dropout, has factors Z of dropout (0 or 1/(1 - p))
// and C of the soft-cap (its derivative):
//
//     dV^T += dO^T (P * Z)     dS = P * (dO V^T * Z - delta) * C * scale
#include "kernels/cpu/attention_backward.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/attention_options-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// Queries [0, rows) of the step against one panel of keys.
template <class A>
struct PanelStep {
  using Element = A;
  static constexpr bool kGeneral = false;

  const BackwardScratch<A>& s;
  int64_t rows;                // a multiple of the arithmetic's depth
  int64_t qk_depth, ov_depth;  // units of a row of q and k, and of dout and v
  A factor;                    // of q k^T, for scores in units of log 2
  int64_t panel;
  const Segment& segment;
  int64_t i, j;   // query 0 of the rows and key 0 of the panel, local to the segment
  int64_t valid;  // keys of the panel that exist

  // For rows [r, r + count) of queries.
  TileMask mask(int64_t r, int64_t count) const {
    const TileMask tile = classify(segment, i + r, i + r + count, j, j + valid);
    return tile == TileMask::kFull && valid < kPanel ? TileMask::kPartial : tile;
  }
};

template <class A>
struct GeneralPanelStep : PanelStep<A> {
  static constexpr bool kGeneral = true;

  const HeadOptions<A>& options;

  int64_t q_position() const { return this->segment.q_pos + this->i * this->segment.stride; }
  int64_t k_position() const { return this->segment.k_pos + this->j * this->segment.stride; }
};

// The factors of dropout, of all rows.
template <class A>
void make_dropout(const GeneralPanelStep<A>& t) {
  const int64_t stride = t.segment.stride;
  for (int64_t r = 0; r < t.rows; r += kPanel) {
    t.options.dropout_factors(t.q_position() + r * stride, t.k_position(), stride, kPanel,
                              t.s.by_keys);
    transpose(t.s.by_keys, kPanel, kPanel, kPanel, t.s.dropout + r * kPanel, kPanel);
  }
}

// Stores tile rows from row r of a panel on as units across the rows.
template <class Arithmetic, int kRows, class A>
HWY_INLINE void store_across(Tile<kRows, VectorOf<A>>& tile, A* panel, int64_t r, int64_t x) {
  if constexpr (Arithmetic::kDepth == 2) {
    const VectorOf<A> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    A* to = panel + r / 2 * kPanel + x;
    for_tile(tile, [&](int row, int v, auto& c) HWY_ATTR {
      if (row % 2 == 0) return;
      hn::StoreU(interleave_bf16(d, tile.v[row - 1][v], c), d, to + row / 2 * kPanel + v * lanes);
    });
  }
}

// Soft-cap and bias of scores of row `row` in units of log 2, for keys from lane `column` on; keeps
// the soft-cap's derivative.
template <class A, class V>
HWY_INLINE V general_score(const GeneralPanelStep<A>& t, int64_t row, int64_t column, V score) {
  const VectorOf<A> d;
  const int64_t stride = t.segment.stride;
  auto derivative = hn::Set(d, A(1));
  if (t.options.caps()) {
    const auto tanh = t.options.tanh_of(d, score);
    derivative = hn::NegMulAdd(tanh, tanh, derivative);
    score = t.options.capped(d, tanh);
  }
  hn::StoreU(derivative, d, t.s.steepness + row * kPanel + column);
  const int64_t distance = t.q_position() + row * stride - t.k_position();
  return t.options.biased(d, score, distance, -stride, column);
}

// P = 2^(S - lse) of one tile.
template <class Arithmetic, bool kMasked, int kRows, class S>
HWY_INLINE void make_probability_tile(const S& t, int64_t r, int64_t x) {
  using A = typename S::Element;
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Tile<kRows, VectorOf<A>> tile;
  clear(d, tile);
  multiply<Arithmetic>(d, t.s.q + r * t.qk_depth, t.qk_depth, 1,
                       t.s.k_panels + t.panel * t.qk_depth * kPanel + x, kPanel, t.qk_depth, tile);
  const auto factor = hn::Set(d, t.factor);
  for_tile(tile, [&](int row, int v, auto& c) HWY_ATTR {
    const int64_t at = (r + row) * kPanel + x + v * lanes;
    const auto lse = hn::Set(d, t.s.lse[r + row]);
    if constexpr (S::kGeneral) {
      c = hn::Sub(general_score(t, r + row, x + v * lanes, hn::Mul(c, factor)), lse);
    } else {
      c = hn::MulSub(c, factor, lse);
    }
    c = exp2(d, c);
    if constexpr (kMasked) {
      // Lanes j with i + lo <= j <= i + hi.
      const int64_t offset = t.i + r + row - t.j;
      const int64_t first = std::clamp<int64_t>(offset + t.segment.band_lo, 0, kPanel);
      const int64_t last = std::clamp<int64_t>(offset + t.segment.band_hi + 1, 0, t.valid);
      c = hn::IfThenElseZero(lanes_between(d, x + v * lanes, first, last), c);
    }
    hn::StoreU(c, d, t.s.p + at);
    if constexpr (S::kGeneral) {
      c = hn::Mul(c, hn::LoadU(d, t.s.dropout + at));
      if constexpr (Arithmetic::kDepth == 1) hn::StoreU(c, d, t.s.p_across + at);
    }
  });
  store_across<Arithmetic>(tile, t.s.p_across, r, x);
}

// body(rows, r, mask) for tiles of rows that see a part of the panel; the rows of the others, in
// both forms if there are two, become 0.
template <class Arithmetic, bool kTwoForms, class S, class A, class Body>
HWY_INLINE void for_seen_tiles(const S& t, A* along, A* across, int64_t row_units, Body&& body) {
  for_row_tiles(t.rows, [&](auto rows, int64_t r) HWY_ATTR {
    const TileMask mask = t.mask(r, rows);
    if (mask != TileMask::kEmpty) return body(rows, r, mask);
    std::fill_n(along + r * row_units, rows * row_units, A(0));
    if constexpr (kTwoForms) {
      std::fill_n(across + r / Arithmetic::kDepth * kPanel, rows / Arithmetic::kDepth * kPanel,
                  A(0));
    }
  });
}

template <class Arithmetic, class S>
void make_probabilities(const S& t) {
  using A = typename S::Element;
  for_seen_tiles<Arithmetic, (Arithmetic::kDepth > 1 || S::kGeneral)>(
      t, t.s.p, t.s.p_across, kPanel, [&](auto rows, int64_t r, TileMask mask) HWY_ATTR {
        for (int64_t x = 0; x < kPanel; x += tile_columns(VectorOf<A>())) {
          if (mask == TileMask::kFull) {
            make_probability_tile<Arithmetic, false, rows>(t, r, x);
          } else {
            make_probability_tile<Arithmetic, true, rows>(t, r, x);
          }
        }
      });
}

// dS / scale = P * (dP - delta) of the panel. Where P is 0, so is dS, whatever the masked product.
template <class Arithmetic, class S>
void make_score_gradients(const S& t) {
  using A = typename S::Element;
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr int64_t kUnits = kPanel / Arithmetic::kDepth;
  A* ds = t.s.ds + t.panel * kQueryRows * kUnits;
  for_seen_tiles<Arithmetic, (Arithmetic::kDepth > 1)>(
      t, ds, t.s.ds_across, kUnits, [&](auto rows, int64_t r, TileMask mask) HWY_ATTR {
        for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
          Tile<rows, VectorOf<A>> tile;
          for_tile(tile, [&](int row, int, auto& c) HWY_ATTR {
            c = S::kGeneral ? hn::Zero(d) : hn::Set(d, -t.s.delta[r + row]);
          });
          multiply<Arithmetic>(d, t.s.dout + r * t.ov_depth, t.ov_depth, 1,
                               t.s.v_panels + t.panel * t.ov_depth * kPanel + x, kPanel, t.ov_depth,
                               tile);
          for_tile(tile, [&](int row, int v, auto& c) HWY_ATTR {
            const int64_t at = (r + row) * kPanel + x + v * lanes;
            const auto p = hn::LoadU(d, t.s.p + at);
            if constexpr (S::kGeneral) {
              c = hn::MulSub(c, hn::LoadU(d, t.s.dropout + at), hn::Set(d, t.s.delta[r + row]));
              c = hn::Mul(c, hn::LoadU(d, t.s.steepness + at));
            }
            c = hn::Mul(p, c);
            if (mask == TileMask::kPartial) c = hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), c);
          });
          for_tile(tile, [&](int row, int v, auto& c) HWY_ATTR {
            A* to = ds + (r + row) * kUnits + (x + v * lanes) / Arithmetic::kDepth;
            if constexpr (Arithmetic::kDepth == 1) {
              hn::StoreU(c, d, to);
            } else if (v % 2 == 0) {
              hn::StoreU(concatenate_bf16(d, c, tile.v[row][v + 1]), d, to);
            }
          });
          store_across<Arithmetic>(tile, t.s.ds_across, r, x);
        }
      });
}

// panel(c, :) += sum over r < depth of left(r, c) * right(r, :): dV^T += dO^T P and
// dK^T += Q^T dS, where left and right hold units across their rows.
template <class Arithmetic, class A>
void add_columns(const A* left, int64_t columns, const A* right, int64_t depth, A* panel) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    for_row_tiles(columns, [&](auto tile_rows, int64_t c) HWY_ATTR {
      A* out = panel + c * kPanel + x;
      Tile<tile_rows, VectorOf<A>> tile;
      for_tile(tile, [&](int r, int v, auto& value)
                         HWY_ATTR { value = hn::LoadU(d, out + r * kPanel + v * lanes); });
      multiply<Arithmetic>(d, left + c, 1, columns, right + x, kPanel, depth, tile);
      for_tile(tile, [&](int r, int v, auto& value)
                         HWY_ATTR { hn::StoreU(value, d, out + r * kPanel + v * lanes); });
    });
  }
}

// dq / scale = dS K / scale over keys [begin, end) of the step; begin starts a panel.
template <class Arithmetic, class A>
void make_dq(const BackwardScratch<A>& s, int64_t rows, int64_t begin, int64_t end,
             int64_t head_dim) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr int64_t kUnits = kPanel / Arithmetic::kDepth;
  const int64_t dq_row = rounded_up(head_dim, kPanel);
  for_column_tiles(d, rounded_up(head_dim, lanes), [&](auto vectors, int64_t c) HWY_ATTR {
    for_row_tiles(rows, [&](auto tile_rows, int64_t r) HWY_ATTR {
      Tile<tile_rows, VectorOf<A>, vectors> tile;
      clear(d, tile);
      for (int64_t j = begin; j < end; j += kPanel) {
        multiply<Arithmetic>(d, s.ds + (j * kQueryRows + r * kPanel) / Arithmetic::kDepth, kUnits,
                             1, s.k + j / Arithmetic::kDepth * head_dim + c, head_dim,
                             units<Arithmetic>(std::min(kPanel, end - j)), tile);
      }
      for_tile(tile, [&](int row, int v, auto& value) HWY_ATTR {
        hn::StoreU(value, d, s.dq + (r + row) * dq_row + c + v * lanes);
      });
    });
  });
}

// to(r, :) += factor * from(r, :)
template <class A>
void add_rows(const A* from, int64_t from_row, int64_t rows, int64_t columns, A factor, A* to,
              int64_t to_row) {
  const VectorOf<A> d;
  const auto f = hn::Set(d, factor);
  for (int64_t r = 0; r < rows; ++r) {
    const A* source = from + r * from_row;
    A* target = to + r * to_row;
    for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
      const auto sum = hn::MulAdd(load(d, source + c, part), f, load(d, target + c, part));
      store(d, sum, target + c, part);
    });
  }
}

// One task: a grid tile of one kv head.
template <class T, class Arithmetic, bool kGeneral>
class TileRun {
  using A = Accumulator<T>;

 public:
  TileRun(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
          const BackwardScratch<A>& scratch)
      : args_(args),
        kv_head_(kv_head),
        tile_(tile),
        s_(scratch),
        head_dim_(args.q.dim(2)),
        value_dim_(args.v.dim(2)),
        step_(step_keys(head_dim_, value_dim_)) {}

  void run(Poller& poller) {
    for (const Segment* segment : tile_.segments) {
      const int64_t i0 = std::max(tile_.q_begin - segment->q_row, int64_t{0});
      const int64_t i1 = std::min(tile_.q_end - segment->q_row, segment->q_len);
      const IndexRange seen = keys_seen(*segment, i0, i1);
      const int64_t begin = std::max(tile_.k_begin - segment->k_row, seen.begin);
      const int64_t end = std::min(tile_.k_end - segment->k_row, seen.end);
      for (int64_t j = begin; j < end; j += step_) {
        keys(*segment, i0, i1, j, std::min(end, j + step_), poller);
      }
    }
  }

 private:
  // Keys [j0, j1) and queries [i0, i1) of the segment.
  void keys(const Segment& segment, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
            Poller& poller) {
    const IndexRange queries = queries_seeing(segment, j0, j1);
    const int64_t begin = std::max(i0, queries.begin), end = std::min(i1, queries.end);
    if (begin >= end) return;
    load_keys(segment.k_row + j0, j1 - j0);
    for (int64_t h = 0; h < args_.q.dim(1); ++h) {
      if (args_.heads.kv_head(h) != kv_head_) continue;
      for (int64_t i = begin; i < end; i += kQueryRows) {
        const int64_t last = std::min(end, i + kQueryRows);
        Upcoming upcoming;
        upcoming.add(dq_row(segment.q_row + i, h), dq_stride(), last - i, head_dim_);
        if (last < end) {
          const int64_t rows = std::min(kQueryRows, end - last);
          upcoming.add(row_of(args_.q, segment.q_row + last, h), args_.q.stride(0), rows,
                       head_dim_);
          upcoming.add(row_of(args_.dout, segment.q_row + last, h), args_.dout.stride(0), rows,
                       value_dim_);
        } else {
          const int64_t row = segment.k_row + j1, rows = std::min(step_, segment.k_len - j1);
          upcoming.add(row_of(args_.k, row, kv_head_), args_.k.stride(0), rows, head_dim_);
          upcoming.add(row_of(args_.v, row, kv_head_), args_.v.stride(0), rows, value_dim_);
        }
        step(segment, h, i, last, j0, j1, upcoming);
        poller.did((last - i) * (j1 - j0) * (3 * head_dim_ + 2 * value_dim_));
      }
    }
    const A scale = static_cast<A>(args_.options.scale);
    add_panels(s_.dk_panels, head_dim_, scale, args_.dk_acc, segment.k_row + j0, j1 - j0);
    add_panels(s_.dv_panels, value_dim_, A(1), args_.dv_acc, segment.k_row + j0, j1 - j0);
  }

  static const T* row_of(const ConstTensorView& x, int64_t row, int64_t head) {
    return x.data<T>() + row * x.stride(0) + head * x.stride(1);
  }

  void load_keys(int64_t row, int64_t count) {
    const int64_t k_stride = args_.k.stride(0), v_stride = args_.v.stride(0);
    const T *k = row_of(args_.k, row, kv_head_), *v = row_of(args_.v, row, kv_head_);
    for (int64_t j = 0; j < count; j += kPanel) {
      const int64_t rows = std::min(kPanel, count - j);
      load_panel<Arithmetic>(k + j * k_stride, k_stride, rows, head_dim_,
                             s_.k_panels + j * units<Arithmetic>(head_dim_));
      load_panel<Arithmetic>(v + j * v_stride, v_stride, rows, value_dim_,
                             s_.v_panels + j * units<Arithmetic>(value_dim_));
    }
    interleave_rows<Arithmetic>(k, k_stride, count, head_dim_, s_.k);
    const int64_t padded = rounded_up(count, kPanel);
    std::fill_n(s_.dk_panels, padded * head_dim_, A(0));
    std::fill_n(s_.dv_panels, padded * value_dim_, A(0));
  }

  // Fills up to whole units with rows that see nothing.
  void load_queries(int64_t row, int64_t count, int64_t h) {
    constexpr int64_t kDepth = Arithmetic::kDepth;
    const int64_t q_stride = args_.q.stride(0), dout_stride = args_.dout.stride(0);
    const int64_t qk = units<Arithmetic>(head_dim_), ov = units<Arithmetic>(value_dim_);
    const T *q = row_of(args_.q, row, h), *dout = row_of(args_.dout, row, h);
    load_rows<Arithmetic>(q, q_stride, count, head_dim_, s_.q);
    load_rows<Arithmetic>(dout, dout_stride, count, value_dim_, s_.dout);
    if constexpr (kDepth > 1) {
      interleave_rows<Arithmetic>(q, q_stride, count, head_dim_, s_.q_across);
      interleave_rows<Arithmetic>(dout, dout_stride, count, value_dim_, s_.dout_across);
    }
    const A* lse = args_.lse.data<A>() + h * args_.q.dim(0) + row;
    const A* delta = args_.delta.data<A>() + h * args_.q.dim(0) + row;
    constexpr A kInfinity = std::numeric_limits<A>::infinity();
    for (int64_t i = 0; i < count; ++i) {
      // A row that sees nothing has lse = -inf, and P = 0 as if lse were +inf.
      s_.lse[i] = lse[i] == -kInfinity ? kInfinity : lse[i] * static_cast<A>(kLog2E);
      s_.delta[i] = delta[i];
    }
    for (int64_t i = count; i < rounded_up(count, kDepth); ++i) {
      std::fill_n(s_.q + i * qk, qk, A(0));
      std::fill_n(s_.dout + i * ov, ov, A(0));
      s_.lse[i] = kInfinity;
      s_.delta[i] = 0;
    }
  }

  int64_t dq_stride() const { return args_.dq_acc.stride(0); }
  A* dq_row(int64_t row, int64_t h) const {
    return args_.dq_acc.data<A>() + row * dq_stride() + h * head_dim_;
  }

  void step(const Segment& segment, int64_t h, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
            const Upcoming& upcoming) {
    const IndexRange seen = keys_seen(segment, i0, i1);
    const int64_t begin = (std::max(seen.begin, j0) - j0) / kPanel * kPanel;
    const int64_t end = std::min(seen.end, j1) - j0;
    if (begin >= end) return;
    const int64_t rows = rounded_up(i1 - i0, Arithmetic::kDepth);
    load_queries(segment.q_row + i0, i1 - i0, h);
    for (int64_t j = begin; j < end; j += kPanel) {
      upcoming.prefetch((j - begin) / kPanel, rounded_up(end - begin, kPanel) / kPanel);
      const PanelStep<A> t{.s = s_,
                           .rows = rows,
                           .qk_depth = units<Arithmetic>(head_dim_),
                           .ov_depth = units<Arithmetic>(value_dim_),
                           .factor = static_cast<A>(args_.options.scale * kLog2E),
                           .panel = j / kPanel,
                           .segment = segment,
                           .i = i0,
                           .j = j0 + j,
                           .valid = std::min(kPanel, j1 - j0 - j)};
      // Rows of units that see a key of the panel; the others add nothing to its keys.
      const IndexRange seeing = queries_seeing(segment, t.j, t.j + t.valid);
      const int64_t first = std::max(seeing.begin - i0, int64_t{0}) / Arithmetic::kDepth;
      const int64_t count = units<Arithmetic>(std::min(seeing.end - i0, rows)) - first;
      const auto make = [&](const auto& of) HWY_ATTR {
        make_probabilities<Arithmetic>(of);
        add_columns<Arithmetic>(s_.dout_across + first * value_dim_, value_dim_,
                                s_.p_across + first * kPanel, count, s_.dv_panels + j * value_dim_);
        make_score_gradients<Arithmetic>(of);
      };
      if constexpr (kGeneral) {
        const HeadOptions<A> options(args_.options, args_.heads, h);
        const GeneralPanelStep<A> general{t, options};
        make_dropout(general);
        make(general);
      } else {
        make(t);
      }
      const A* ds = Arithmetic::kDepth == 1 ? s_.ds + j * kQueryRows : s_.ds_across;
      add_columns<Arithmetic>(s_.q_across + first * head_dim_, head_dim_, ds + first * kPanel,
                              count, s_.dk_panels + j * head_dim_);
    }
    make_dq<Arithmetic>(s_, rows, begin, end, head_dim_);
    add_rows(s_.dq, rounded_up(head_dim_, kPanel), i1 - i0, head_dim_,
             static_cast<A>(args_.options.scale), dq_row(segment.q_row + i0, h), dq_stride());
  }

  // acc[row + j, kv_head, c] += factor * panels(c, j)
  void add_panels(const A* panels, int64_t columns, A factor, const TensorView& acc, int64_t row,
                  int64_t count) {
    constexpr int64_t kChunk = 32;
    alignas(64) A block[kPanel * kChunk];
    const int64_t stride = args_.k.dim(1) * columns;
    for (int64_t j = 0; j < count; j += kPanel) {
      const int64_t rows = std::min(kPanel, count - j);
      for (int64_t c = 0; c < columns; c += kChunk) {
        const int64_t width = std::min(kChunk, columns - c);
        transpose(panels + j * columns + c * kPanel, kPanel, width, kPanel, block, kChunk);
        add_rows(block, kChunk, rows, width, factor,
                 acc.data<A>() + (row + j) * stride + kv_head_ * columns + c, stride);
      }
    }
  }

  const AttentionBackward& args_;
  const int64_t kv_head_;
  const GridTile& tile_;
  const BackwardScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
  const int64_t step_;  // keys a step
};

template <class T, class Arithmetic>
void backward_tile(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                   const BackwardScratch<Accumulator<T>>& scratch, Poller& poller) {
  if (args.options.plain()) {
    TileRun<T, Arithmetic, false>(args, kv_head, tile, scratch).run(poller);
  } else {
    TileRun<T, Arithmetic, true>(args, kv_head, tile, scratch).run(poller);
  }
}

void backward_tile_pairs(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                         const BackwardScratch<float>& scratch, Poller& poller) {
  backward_tile<bf16, Bf16Arithmetic>(args, kv_head, tile, scratch, poller);
}
void backward_tile_bf16(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                        const BackwardScratch<float>& scratch, Poller& poller) {
  backward_tile<bf16, Single>(args, kv_head, tile, scratch, poller);
}
void backward_tile_f32(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                       const BackwardScratch<float>& scratch, Poller& poller) {
  backward_tile<float, Single>(args, kv_head, tile, scratch, poller);
}
void backward_tile_f64(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                       const BackwardScratch<double>& scratch, Poller& poller) {
  backward_tile<double, Single>(args, kv_head, tile, scratch, poller);
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(backward_tile_pairs);
HWY_EXPORT(backward_tile_bf16);
HWY_EXPORT(backward_tile_f32);
HWY_EXPORT(backward_tile_f64);

namespace {

template <class A, class RunTile>
void run_tiles(const Context& ctx, const AttentionBackward& args, int64_t depth, RunTile run_tile) {
  const int64_t head_dim = args.q.dim(2), value_dim = args.v.dim(2), kv_heads = args.k.dim(1);
  const int threads = ctx.pool->threads();
  const Arena::Scope scope(*ctx.scratch);
  const bool general = !args.options.plain();
  const int64_t elements = BackwardScratch<A>::size(head_dim, value_dim, depth, general);
  const TensorView scratch = ctx.scratch->allocate(dtype_of<A>, {threads, elements});
  if (ctx.measuring() || args.q.empty() || args.k.empty()) return;
  const std::vector<GridTile> tiles = grid_tiles(args, threads);
  for (size_t first = 0; first < tiles.size();) {
    size_t last = first;
    while (last < tiles.size() && tiles[last].round == tiles[first].round) ++last;
    ctx.pool->run(
        static_cast<int64_t>(last - first) * kv_heads,
        [&](int64_t task, int worker) {
          Poller poller(ctx, worker);
          const BackwardScratch<A> memory(scratch.data<A>() + worker * elements, head_dim,
                                          value_dim, depth, general);
          run_tile(args, task % kv_heads, tiles[first + static_cast<size_t>(task / kv_heads)],
                   memory, poller);
        },
        ctx.poll);
    first = last;
  }
}

}  // namespace

void attention_backward_pairs(const Context& ctx, const AttentionBackward& args) {
  run_tiles<float>(ctx, args, 2, HWY_DYNAMIC_DISPATCH(backward_tile_pairs));
}

template <>
void attention_backward_tiled<bf16>(const Context& ctx, const AttentionBackward& args) {
  run_tiles<float>(ctx, args, 1, HWY_DYNAMIC_DISPATCH(backward_tile_bf16));
}

template <>
void attention_backward_tiled<float>(const Context& ctx, const AttentionBackward& args) {
  run_tiles<float>(ctx, args, 1, HWY_DYNAMIC_DISPATCH(backward_tile_f32));
}

template <>
void attention_backward_tiled<double>(const Context& ctx, const AttentionBackward& args) {
  run_tiles<double>(ctx, args, 1, HWY_DYNAMIC_DISPATCH(backward_tile_f64));
}

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
