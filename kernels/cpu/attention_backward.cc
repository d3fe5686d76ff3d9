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
#include "kernels/cpu/attention_backward.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// `rows` queries against one panel of keys.
template <class A>
struct PanelStep {
  const BackwardScratch<A>& s;
  int64_t rows, keys;  // keys: distance of rows in p and ds
  int64_t head_dim, value_dim;
  A factor;  // of q.k, for scores in units of log 2
  A scale;
  int64_t panel;  // first key of the panel within the step
  const Segment& segment;
  int64_t i, j;   // query 0 of the rows and key 0 of the panel, local to the segment
  int64_t valid;  // keys of the panel that exist
};

// P and dS of one tile of rows. `masked` is a constant, so that whole tiles pay nothing for it.
template <int kRows, class A>
HWY_INLINE void make_gradient_tile(const PanelStep<A>& t, int64_t r, int64_t x, bool masked) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto seen = [&](int row, int v) HWY_ATTR {
    // Lanes j with i + lo <= j <= i + hi.
    const int64_t offset = t.i + r + row - t.j;
    const int64_t first = std::clamp<int64_t>(offset + t.segment.band_lo, 0, kPanel);
    const int64_t last = std::clamp<int64_t>(offset + t.segment.band_hi + 1, 0, kPanel);
    return lanes_between(d, x + v * lanes, first, last);
  };
  A* p = t.s.p + r * t.keys + t.panel + x;
  A* ds = t.s.ds + r * t.keys + t.panel + x;
  Tile<kRows, VectorOf<A>> tile;
  clear(d, tile);
  multiply(d, t.s.q + r * t.head_dim, t.head_dim, 1, t.s.k_panels + t.panel * t.head_dim + x,
           kPanel, t.head_dim, tile);
  const auto factor = hn::Set(d, t.factor);
  for_tile(tile, [&](int row, int v, auto& c) HWY_ATTR {
    auto e = exp2(d, hn::MulSub(c, factor, hn::Set(d, t.s.lse[r + row])));
    if (masked) e = hn::IfThenElseZero(seen(row, v), e);
    hn::StoreU(e, d, p + row * t.keys + v * lanes);
  });
  clear(d, tile);
  multiply(d, t.s.dout + r * t.value_dim, t.value_dim, 1, t.s.v_panels + t.panel * t.value_dim + x,
           kPanel, t.value_dim, tile);
  const auto scale = hn::Set(d, t.scale);
  for_tile(tile, [&](int row, int v, auto& c) HWY_ATTR {
    const auto e = hn::Mul(hn::LoadU(d, p + row * t.keys + v * lanes), scale);
    auto g = hn::Mul(e, hn::Sub(c, hn::Set(d, t.s.delta[r + row])));
    if (masked) g = hn::IfThenElseZero(seen(row, v), g);
    hn::StoreU(g, d, ds + row * t.keys + v * lanes);
  });
}

template <class A>
void clear_gradient_tile(const PanelStep<A>& t, int64_t rows, int64_t r) {
  for (int64_t row = r; row < r + rows; ++row) {
    std::fill_n(t.s.p + row * t.keys + t.panel, kPanel, A(0));
    std::fill_n(t.s.ds + row * t.keys + t.panel, kPanel, A(0));
  }
}

template <class A>
void make_gradients(const PanelStep<A>& t) {
  const VectorOf<A> d;
  for_row_tiles(t.rows, [&](auto rows, int64_t r) HWY_ATTR {
    const TileMask mask = classify(t.segment, t.i + r, t.i + r + rows, t.j, t.j + t.valid);
    if (mask == TileMask::kEmpty) return clear_gradient_tile(t, rows, r);
    for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
      if (mask == TileMask::kFull) {
        make_gradient_tile<rows>(t, r, x, false);
      } else {
        make_gradient_tile<rows>(t, r, x, true);
      }
    }
  });
}

// panel(c, :) += sum over rows r of left(r, c) * right(r, :): dV^T += dO^T P and dK^T += Q^T dS.
template <class A>
void add_columns(const A* left, int64_t columns, const A* right, int64_t right_row, int64_t rows,
                 A* panel) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t x = 0; x < kPanel; x += tile_columns(d)) {
    for_row_tiles(columns, [&](auto tile_rows, int64_t c) HWY_ATTR {
      A* out = panel + c * kPanel + x;
      Tile<tile_rows, VectorOf<A>> tile;
      for_tile(tile, [&](int r, int v, auto& value)
                         HWY_ATTR { value = hn::LoadU(d, out + r * kPanel + v * lanes); });
      multiply(d, left + c, 1, columns, right + x, right_row, rows, tile);
      for_tile(tile, [&](int r, int v, auto& value)
                         HWY_ATTR { hn::StoreU(value, d, out + r * kPanel + v * lanes); });
    });
  }
}

// dq = dS K over keys [begin, end) of the step.
template <class A>
void make_dq(const BackwardScratch<A>& s, int64_t rows, int64_t keys, int64_t begin, int64_t end,
             int64_t width) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for_column_tiles(d, width, [&](auto vectors, int64_t c) HWY_ATTR {
    for_row_tiles(rows, [&](auto tile_rows, int64_t r) HWY_ATTR {
      Tile<tile_rows, VectorOf<A>, vectors> tile;
      clear(d, tile);
      multiply(d, s.ds + r * keys + begin, keys, 1, s.k + begin * width + c, width, end - begin,
               tile);
      for_tile(tile, [&](int row, int v, auto& value) HWY_ATTR {
        hn::StoreU(value, d, s.dq + (r + row) * width + c + v * lanes);
      });
    });
  });
}

// One task: a grid tile of one kv head.
template <class T>
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
        width_(rounded_up(head_dim_, BackwardScratch<A>::kDqUnit)),
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
        step(segment, h, i, last, j0, j1);
        poller.did((last - i) * (j1 - j0) * (3 * head_dim_ + 2 * value_dim_));
      }
    }
    add_panels(s_.dk_panels, head_dim_, args_.dk_acc.data<A>(), segment.k_row + j0, j1 - j0);
    add_panels(s_.dv_panels, value_dim_, args_.dv_acc.data<A>(), segment.k_row + j0, j1 - j0);
  }

  void load_keys(int64_t row, int64_t count) {
    const int64_t k_stride = args_.k.stride(0), v_stride = args_.v.stride(0);
    const T* k = args_.k.data<T>() + row * k_stride + kv_head_ * args_.k.stride(1);
    const T* v = args_.v.data<T>() + row * v_stride + kv_head_ * args_.v.stride(1);
    for (int64_t j = 0; j < count; j += kPanel) {
      const int64_t rows = std::min(kPanel, count - j);
      load_panel<Single>(k + j * k_stride, k_stride, rows, head_dim_, s_.k_panels + j * head_dim_);
      load_panel<Single>(v + j * v_stride, v_stride, rows, value_dim_,
                         s_.v_panels + j * value_dim_);
    }
    widen_rows(k, k_stride, count, head_dim_, width_, s_.k);
    const int64_t padded = rounded_up(count, kPanel);
    std::fill_n(s_.dk_panels, padded * head_dim_, A(0));
    std::fill_n(s_.dv_panels, padded * value_dim_, A(0));
  }

  void load_queries(int64_t row, int64_t count, int64_t h) {
    widen_rows(args_.q.data<T>() + row * args_.q.stride(0) + h * args_.q.stride(1),
               args_.q.stride(0), count, head_dim_, head_dim_, s_.q);
    widen_rows(args_.dout.data<T>() + row * args_.dout.stride(0) + h * args_.dout.stride(1),
               args_.dout.stride(0), count, value_dim_, value_dim_, s_.dout);
    const A* lse = args_.lse.data<A>() + h * args_.q.dim(0) + row;
    const A* delta = args_.delta.data<A>() + h * args_.q.dim(0) + row;
    constexpr A kInfinity = std::numeric_limits<A>::infinity();
    for (int64_t i = 0; i < count; ++i) {
      // A row that sees nothing has lse = -inf, and P = 0 as if lse were +inf.
      s_.lse[i] = lse[i] == -kInfinity ? kInfinity : lse[i] * static_cast<A>(kLog2E);
      s_.delta[i] = delta[i];
    }
  }

  void step(const Segment& segment, int64_t h, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const int64_t rows = i1 - i0;
    const IndexRange seen = keys_seen(segment, i0, i1);
    const int64_t begin = (std::max(seen.begin, j0) - j0) / kPanel * kPanel;
    const int64_t end = std::min(seen.end, j1) - j0;
    if (begin >= end) return;
    load_queries(segment.q_row + i0, rows, h);
    for (int64_t panel = begin; panel < end; panel += kPanel) {
      make_gradients(PanelStep<A>{.s = s_,
                                  .rows = rows,
                                  .keys = step_,
                                  .head_dim = head_dim_,
                                  .value_dim = value_dim_,
                                  .factor = static_cast<A>(args_.options.scale * kLog2E),
                                  .scale = static_cast<A>(args_.options.scale),
                                  .panel = panel,
                                  .segment = segment,
                                  .i = i0,
                                  .j = j0 + panel,
                                  .valid = std::min(kPanel, j1 - j0 - panel)});
      add_columns(s_.dout, value_dim_, s_.p + panel, step_, rows,
                  s_.dv_panels + panel * value_dim_);
      add_columns(s_.q, head_dim_, s_.ds + panel, step_, rows, s_.dk_panels + panel * head_dim_);
    }
    make_dq(s_, rows, step_, begin, end, width_);
    const int64_t stride = args_.q.dim(1) * head_dim_;
    A* dq = args_.dq_acc.data<A>() + (segment.q_row + i0) * stride + h * head_dim_;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < head_dim_; ++c) dq[i * stride + c] += s_.dq[i * width_ + c];
    }
  }

  // acc[row + j, kv_head, c] += panels(c, j)
  void add_panels(const A* panels, int64_t columns, A* acc, int64_t row, int64_t count) {
    const int64_t stride = args_.k.dim(1) * columns;
    A* to = acc + row * stride + kv_head_ * columns;
    for (int64_t j = 0; j < count; ++j) {
      const A* from = panels + j / kPanel * kPanel * columns + j % kPanel;
      for (int64_t c = 0; c < columns; ++c) to[j * stride + c] += from[c * kPanel];
    }
  }

  const AttentionBackward& args_;
  const int64_t kv_head_;
  const GridTile& tile_;
  const BackwardScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
  const int64_t width_;  // of rows of K and dq
  const int64_t step_;   // keys a step
};

void backward_tile_bf16(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                        const BackwardScratch<float>& scratch, Poller& poller) {
  TileRun<bf16>(args, kv_head, tile, scratch).run(poller);
}
void backward_tile_f32(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                       const BackwardScratch<float>& scratch, Poller& poller) {
  TileRun<float>(args, kv_head, tile, scratch).run(poller);
}
void backward_tile_f64(const AttentionBackward& args, int64_t kv_head, const GridTile& tile,
                       const BackwardScratch<double>& scratch, Poller& poller) {
  TileRun<double>(args, kv_head, tile, scratch).run(poller);
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(backward_tile_bf16);
HWY_EXPORT(backward_tile_f32);
HWY_EXPORT(backward_tile_f64);

namespace {

template <class T>
auto backward_tile() {
  if constexpr (std::is_same_v<T, bf16>) {
    return HWY_DYNAMIC_DISPATCH(backward_tile_bf16);
  } else if constexpr (std::is_same_v<T, float>) {
    return HWY_DYNAMIC_DISPATCH(backward_tile_f32);
  } else {
    return HWY_DYNAMIC_DISPATCH(backward_tile_f64);
  }
}

}  // namespace

template <class T>
void attention_backward_tiled(const Context& ctx, const AttentionBackward& args) {
  using A = Accumulator<T>;
  const int64_t head_dim = args.q.dim(2), value_dim = args.v.dim(2), kv_heads = args.k.dim(1);
  const int threads = ctx.pool->threads();
  const Arena::Scope scope(*ctx.scratch);
  const int64_t elements = BackwardScratch<A>::size(head_dim, value_dim);
  const TensorView scratch = ctx.scratch->allocate(dtype_of<A>, {threads, elements});
  if (ctx.measuring() || args.q.empty() || args.k.empty()) return;
  const std::vector<GridTile> tiles = grid_tiles(args, threads);
  const auto run_tile = backward_tile<T>();
  for (size_t first = 0; first < tiles.size();) {
    size_t last = first;
    while (last < tiles.size() && tiles[last].round == tiles[first].round) ++last;
    ctx.pool->run(
        static_cast<int64_t>(last - first) * kv_heads,
        [&](int64_t task, int worker) {
          Poller poller(ctx, worker);
          const BackwardScratch<A> memory(scratch.data<A>() + worker * elements, head_dim,
                                          value_dim);
          run_tile(args, task % kv_heads, tiles[first + static_cast<size_t>(task / kv_heads)],
                   memory, poller);
        },
        ctx.poll);
    first = last;
  }
}

template void attention_backward_tiled<bf16>(const Context&, const AttentionBackward&);
template void attention_backward_tiled<float>(const Context&, const AttentionBackward&);
template void attention_backward_tiled<double>(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
