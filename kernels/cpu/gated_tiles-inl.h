// What the passes of gated linear attention are made of, beside those of linear_tiles-inl.h.
// Compiled once per instruction set (include after hwy/foreach_target.h).
//
// Sub-blocks are sub-blocks of a block; their borders lie before each and after the last.
#if defined(LONGHAUL_KERNELS_CPU_GATED_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_GATED_TILES_INL_H_
#undef LONGHAUL_KERNELS_CPU_GATED_TILES_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_GATED_TILES_INL_H_
#endif

#include <utility>

#include "kernels/cpu/gated_schedule.h"
#include "kernels/cpu/linear_walk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// Numbers too small to be normal become 0: they cost time and stand for nothing. NaN stays.
template <class D, class V>
HWY_INLINE V normal_or_zero(D d, V x) {
  using A = hn::TFromD<D>;
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, std::numeric_limits<A>::min())), x);
}

// first + rest = e^(the sum of each column), to twice the precision, rests of f64 being 0.
template <class A>
void decay_over(const A* log_gate, int64_t stride, int64_t rows, int64_t columns, A* first,
                A* rest) {
  const VectorOf<double> d;
  const auto smallest = hn::Set(d, static_cast<double>(std::numeric_limits<A>::min()));
  for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int64_t r = 0; r < rows; ++r) sum = hn::Add(sum, load(d, log_gate + r * stride + c, part));
    auto exact = exp(d, sum);
    exact = hn::IfThenZeroElse(hn::Lt(exact, smallest), exact);
    store(d, exact, first + c, Whole{});
    store(d, hn::Sub(exact, load(d, first + c, Whole{})), rest + c, Whole{});
  });
}

// The gates of a block of one head and their products, into `s`. Up to a whole sub-block, gates of
// rows that there are none of are 1.
template <class A>
void load_gates(const A* log_gate, int64_t stride, int64_t rows, int64_t columns,
                const GatedScratch<A>& s) {
  const VectorOf<A> d;
  const auto one = hn::Set(d, A(1));
  const int64_t width = s.key_width, whole = rounded_up(rows, kSubBlock);
  for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
    auto all = one, some = one;
    for (int64_t r = 0; r < whole; ++r) {
      const auto gate = r < rows ? exp(d, load(d, log_gate + r * stride + c, part)) : one;
      const int64_t at = r * width + c;
      all = normal_or_zero(d, hn::Mul(all, gate));
      some = r % kSubBlock == 0 ? gate : normal_or_zero(d, hn::Mul(some, gate));
      hn::StoreU(gate, d, s.gate + at);
      hn::StoreU(all, d, s.from_begin + at);
      hn::StoreU(some, d, s.from_border + at);
    }
    all = some = one;
    for (int64_t r = whole; r-- > 0;) {
      const int64_t at = r * width + c;
      if ((r + 1) % kSubBlock == 0) some = one;
      hn::StoreU(all, d, s.to_end + at);
      hn::StoreU(some, d, s.to_border + at);
      const auto gate = hn::LoadU(d, s.gate + at);
      all = normal_or_zero(d, hn::Mul(all, gate));
      some = normal_or_zero(d, hn::Mul(some, gate));
    }
  });
  decay_over(log_gate, stride, rows, columns, s.decay, s.decay_rest);
}

// Decay between blocks and an end of their run, block after block: e^gates at first.
template <class A>
void round_outside(int64_t columns, const GatedScratch<A>& s) {
  for (int64_t c = 0; c < columns; ++c) {
    const double exact = s.outside_exact[c];
    s.outside[c] =
        exact < static_cast<double>(std::numeric_limits<A>::min()) ? A(0) : static_cast<A>(exact);
  }
}
template <class A>
void begin_outside(const double* gates, int64_t columns, const GatedScratch<A>& s) {
  for (int64_t c = 0; c < columns; ++c) s.outside_exact[c] = std::exp(gates[c]);
  round_outside(columns, s);
}
template <class A>
void pass_block(int64_t columns, const GatedScratch<A>& s) {
  for (int64_t c = 0; c < columns; ++c) {
    s.outside_exact[c] *= static_cast<double>(s.decay[c]) + static_cast<double>(s.decay_rest[c]);
  }
  round_outside(columns, s);
}
template <class A>
bool any(const A* x, int64_t n) {
  return std::any_of(x, x + n, [](A value) { return value != A(0); });
}

// to[r, :] = x[r, :] . y[r, :], rows `width` apart in all three.
template <class A>
void multiply_rows(const A* x, const A* y, int64_t rows, int64_t columns, int64_t width, A* to) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r * width; c < r * width + columns; c += lanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, x + c), hn::LoadU(d, y + c)), d, to + c);
    }
  }
}
// x[r, :] = factors . x[r, :]
template <class A>
void multiply_columns(const A* factors, int64_t rows, int64_t columns, int64_t width, A* x) {
  for (int64_t r = 0; r < rows; ++r) {
    multiply_rows(x + r * width, factors, 1, columns, width, x + r * width);
  }
}

// out(r, :) = or += gates(r, :) . sum over t < depth of x(r, t) y(t, :), where x(r, t) is at
// x[r * x_row + t * x_t].
template <class A>
struct Product {
  int64_t rows = 0, columns = 0, depth = 0;
  const A* x = nullptr;
  int64_t x_row = 0, x_t = 1;
  const A* y = nullptr;
  int64_t width = 0;         // of y and gates
  const A* gates = nullptr;  // or null: 1
  bool add = false;
  A* out = nullptr;
  int64_t out_stride = 0;
  Ahead::Part ahead = {}, ahead_between = {};
};

template <class A>
void make_product(const Product<A>& s) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  for_widths(d, rounded_up(s.columns, lanes), [&](auto vectors, int64_t column) HWY_ATTR {
    for_row_tiles(s.rows, [&](auto n, int64_t i) HWY_ATTR {
      if (column == 0) s.ahead.fetch(i, n);
      Tile<n, VectorOf<A>, vectors> tile;
      clear(d, tile);
      multiply(d, s.x + i * s.x_row, s.x_row, s.x_t, s.y + column, s.width, s.depth, tile);
      if (column == 0) s.ahead_between.fetch(i, n);
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        const int64_t at = column + v * lanes;
        if (s.gates != nullptr) c = hn::Mul(c, hn::LoadU(d, s.gates + (i + r) * s.width + at));
        A* out = s.out + (i + r) * s.out_stride + at;
        if (at + lanes <= s.columns) {
          hn::StoreU(s.add ? hn::Add(hn::LoadU(d, out), c) : c, d, out);
        } else {
          const Some part{s.columns - at};
          store(d, s.add ? hn::Add(load(d, out, part), c) : c, out, part);
        }
      });
    });
  });
}

// state(l, :) = decay(l) state(l, :) + sum over rows t of left(t, l) right(t, :), for l < depth,
// left(t, l) at left[l * left_l + t * left_t]. by_column: decay(column) instead.
template <class A>
struct GatedUpdate {
  int64_t rows = 0;
  const A* left = nullptr;
  int64_t left_l = 0, left_t = 0, depth = 0;
  const A* right = nullptr;
  int64_t width = 0, columns = 0;  // width: of right and state
  const A *decay = nullptr, *decay_rest = nullptr;
  bool by_column = false;
  bool empty = false;  // the state is all zeros, whatever it holds
  A* state = nullptr;
  Ahead::Part ahead = {};
};

template <class A>
void update_gated_state(const GatedUpdate<A>& s) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  for_widths(d, rounded_up(s.columns, lanes), [&](auto vectors, int64_t column) HWY_ATTR {
    for_row_tiles(s.depth, [&](auto n, int64_t l) HWY_ATTR {
      if (column == 0) s.ahead.fetch(l, n);
      Tile<n, VectorOf<A>, vectors> tile;
      clear(d, tile);
      multiply(d, s.left + l * s.left_l, s.left_l, s.left_t, s.right + column, s.width, s.rows,
               tile);
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        const int64_t at = column + v * lanes;
        A* state = s.state + (l + r) * s.width + at;
        // The old state comes last, as in update_state().
        if (!s.empty) {
          const auto first = s.by_column ? hn::LoadU(d, s.decay + at) : hn::Set(d, s.decay[l + r]);
          const auto rest =
              s.by_column ? hn::LoadU(d, s.decay_rest + at) : hn::Set(d, s.decay_rest[l + r]);
          const auto old = hn::LoadU(d, state);
          c = hn::MulAdd(old, first, hn::MulAdd(old, rest, c));
        }
        hn::StoreU(c, d, state);
      });
    });
  });
}

// Columns j of a diagonal square of products, for rows in vector kVector of its rows: a row i meets
// all keys j <= i at once by way of u = q_i gate_i gate_(i-1) ... gate_(j+1), the key dimensions
// one after the other.
template <int kVector, class A>
HWY_NOINLINE void diagonal_vector(int64_t first, int64_t depth, const GatedScratch<A>& s) {
  constexpr VectorOf<A> d;
  constexpr int kLanes = hn::MaxLanes(d);
  constexpr int kColumns = (kVector + 1) * kLanes;
  const auto row = hn::Iota(d, static_cast<A>(kVector * kLanes));
  const int64_t width = s.key_width;
  hn::Vec<decltype(d)> sum[kColumns];
#pragma GCC unroll 16
  for (int j = 0; j < kColumns; ++j) sum[j] = hn::Zero(d);
  for (int64_t l = 0; l < depth; ++l) {
    const auto q = hn::LoadU(d, s.qt + l * kBlock + first + kVector * kLanes);
    const A* gate = s.gate + first * width + l;
    const A* key = s.k + first * width + l;
    auto u = hn::Zero(d);
#pragma GCC unroll 16
    for (int back = 0; back < kColumns; ++back) {
      const int j = kColumns - 1 - back;
      if (back > 0) u = hn::Mul(u, hn::Set(d, gate[(j + 1) * width]));
      if (j >= kVector * kLanes) u = hn::IfThenElse(hn::Eq(row, hn::Set(d, A(j))), q, u);
      sum[j] = hn::MulAdd(u, hn::Set(d, key[j * width]), sum[j]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kColumns; ++j) {
    hn::StoreU(sum[j], d, s.square + j * kSubBlock + kVector * kLanes);
  }
}

// p(i, j) for rows and columns of the sub-block that begins at `first` and has n rows.
template <class A>
void diagonal_products(int64_t first, int64_t n, int64_t depth, const GatedScratch<A>& s) {
  constexpr VectorOf<A> d;
  constexpr int kLanes = hn::MaxLanes(d);
  std::fill_n(s.square, kSubBlock * kSubBlock, A(0));
  [&]<int... kVectors>(std::integer_sequence<int, kVectors...>) {
    ((kVectors * kLanes < n ? diagonal_vector<kVectors>(first, depth, s) : void()), ...);
  }
  (std::make_integer_sequence<int, kSubBlock / kLanes>());
  transpose(s.square, kSubBlock, kSubBlock, n, s.p + first * kBlock + first, kBlock);
}

// s.p(i, j) = sum over l of q(i, l) k(j, l) times the gates of rows j + 1 to i, for j <= i, and 0
// for later j. From rows of q and k, with zeros up to a whole sub-block. Leaves in s.kt the keys,
// decayed up to the end of the block, transposed.
template <class A>
void gated_products(int64_t rows, int64_t depth, const GatedScratch<A>& s, Ahead::Part ahead) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  const int64_t width = s.key_width;
  std::fill_n(s.p, kBlock * kBlock, A(0));
  multiply_rows(s.k, s.to_border, rows, depth, width, s.moved);
  load_transposed<A>(s.moved, width, rows, depth, kBlock, s.kt);
  load_transposed<A>(s.q, width, rounded_up(rows, kSubBlock), depth, kBlock, s.qt);
  multiply_rows(s.q, s.from_border, rows, depth, width, s.moved);
  for (int64_t first = 0; first < rows; first += kSubBlock) {
    const int64_t n = std::min(kSubBlock, rows - first);
    // s.kt holds the keys of rows before `first`, decayed up to there.
    for_row_tiles(n, [&](auto tile_rows, int64_t i) HWY_ATTR {
      ahead.fetch(first + i, tile_rows);
      for_widths(d, first, [&](auto vectors, int64_t j) HWY_ATTR {
        Tile<tile_rows, VectorOf<A>, vectors> tile;
        clear(d, tile);
        multiply(d, s.moved + (first + i) * width, width, 1, s.kt + j, kBlock, depth, tile);
        for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
          hn::StoreU(c, d, s.p + (first + i + r) * kBlock + j + v * lanes);
        });
      });
    });
    diagonal_products(first, n, depth, s);
    const A* over = s.from_border + (first + n - 1) * width;
    for (int64_t l = 0; l < depth && first > 0; ++l) {
      const auto factor = hn::Set(d, over[l]);
      A* keys = s.kt + l * kBlock;
      for (int64_t j = 0; j < first; j += lanes) {
        hn::StoreU(hn::Mul(factor, hn::LoadU(d, keys + j)), d, keys + j);
      }
    }
  }
}

// Rows from `rows` up to a whole sub-block become zeros.
template <class A>
void pad_rows(int64_t rows, int64_t width, A* x) {
  std::fill(x + rows * width, x + rounded_up(rows, kSubBlock) * width, A(0));
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
