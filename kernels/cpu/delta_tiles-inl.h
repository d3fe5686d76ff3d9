// What the passes of the gated delta rule are made of. Compiled once per instruction set (include
// after hwy/foreach_target.h).
//
// Names, for a block with the state S before it and decays D_ij = a_(j+1) ... a_i:
//
//   y_i = v_i - rising_i S^T k_i - sum over j < i of D_ij (k_i . k_j) u_j        u_i = beta_i y_i
//
// what is written under key i and what of it counts; and with r = dU and G the gradient of S,
//
//   r_j = dU_j - sum over i > j of D_ij (k_i . k_j) w_i                          w_i = beta_i r_i
//
// the gradients of beta y and of v.
#if defined(LONGHAUL_KERNELS_CPU_DELTA_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_DELTA_TILES_INL_H_
#undef LONGHAUL_KERNELS_CPU_DELTA_TILES_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_DELTA_TILES_INL_H_
#endif

#include "kernels/cpu/delta_schedule.h"
#include "kernels/cpu/linear_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

template <class T, class View>
auto* delta_rows(const View& x, int64_t row, int64_t h) {
  return x.template data<T>() + row * x.stride(0) + h * x.stride(1);
}

// A block's decays and betas, into scratch; products in f64, those too small for normal numbers 0.
// Returns the decay over the block.
template <class A>
typename Powers<A>::Pair load_decays(const DeltaTokens& tokens, const LinearBlock& block, int64_t h,
                                     const DeltaScratch<A>& s) {
  constexpr double kSmallest = std::numeric_limits<A>::min();
  const auto times = [](double x, double y) {
    const double product = x * y;
    return product < kSmallest ? 0.0 : product;
  };
  std::array<double, kBlock> row{};
  double rising = 1;
  long double sum = 0;  // its rounding errors would be the decay's, and there are many blocks
  for (int64_t i = 0; i < kBlock; ++i) {
    const bool inside = i < block.rows;
    const int64_t at = (block.begin + i) * tokens.log_gate.dim(1) + h;
    s.beta[i] = inside ? tokens.beta.data<A>()[at] : A(0);
    if (!inside) continue;
    const auto log_gate = static_cast<double>(tokens.log_gate.data<A>()[at]);
    const double gate = std::exp(log_gate);
    sum += log_gate;
    rising = times(rising, gate);
    for (int64_t j = 0; j < i; ++j) {
      double& value = row[static_cast<size_t>(j)];
      value = times(value, gate);
      s.decays[i * kBlock + j] = static_cast<A>(value);
    }
    row[static_cast<size_t>(i)] = 1;
    s.decays[i * kBlock + i] = A(1);
    s.rising[i] = static_cast<A>(rising);
    s.minus_rising[i] = -s.rising[i];
  }
  std::copy_n(s.decays + (block.rows - 1) * kBlock, block.rows, s.falling);
  // Not as a product of rounded gates: block after block, their error would add up.
  const double over = times(std::exp(static_cast<double>(sum)), 1);
  const A first = static_cast<A>(over);
  return {first, static_cast<A>(over - static_cast<double>(first))};
}

// p(i, j) = scale decays(i, j) left(i, :) . right(j, :) for j < i, and j = i unless strict; 0 for
// later j up to the end of the row tile. right is given transposed.
template <class A>
void weighted_products(int64_t rows, const A* left, int64_t width, int64_t depth, const A* right,
                       A scale, bool strict, const DeltaScratch<A>& s, A* p) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  const auto factor = hn::Set(d, scale);
  for_row_tiles(rows, [&](auto n, int64_t i) HWY_ATTR {
    for_widths(d, rounded_up(i + n, lanes), [&](auto vectors, int64_t j) HWY_ATTR {
      Tile<n, VectorOf<A>, vectors> tile;
      clear(d, tile);
      multiply(d, left + i * width, width, 1, right + j, kBlock, depth, tile);
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        const int64_t row = i + r, column = j + v * lanes;
        const auto seen = hn::Lt(hn::Iota(d, static_cast<A>(column)),
                                 hn::Set(d, static_cast<A>(strict ? row : row + 1)));
        const auto weight = hn::LoadU(d, s.decays + row * kBlock + column);
        hn::StoreU(hn::IfThenElseZero(seen, hn::Mul(factor, hn::Mul(weight, c))), d,
                   p + row * kBlock + column);
      });
    });
  });
}

// Keys of the block, as rows and transposed, and s.keys_left(i, j) = -D_ij k_i . k_j for j < i, 0
// elsewhere.
template <class T>
void load_delta_keys(const ConstTensorView& k, const LinearBlock& block, int64_t h,
                     const DeltaScratch<Accumulator<T>>& s) {
  using A = Accumulator<T>;
  const T* from = delta_rows<T>(k, block.begin, h);
  load_rows<T>(from, k.stride(0), block.rows, k.dim(2), nullptr, s.key_width, s.k);
  load_transposed<T>(from, k.stride(0), block.rows, k.dim(2), kBlock, s.kt);
  std::fill_n(s.keys_left, kBlock * kBlock, A(0));
  weighted_products<A>(block.rows, s.k, s.key_width, k.dim(2), s.kt, A(-1), true, s, s.keys_left);
}

// x(r, :) += sum over t < depth of p(r, t) y(t, :), where p(r, t) is at p[r * p_row + t * p_t].
template <class A>
void add_products(int64_t rows, int64_t columns, int64_t depth, const A* p, int64_t p_row,
                  int64_t p_t, const A* y, int64_t width, A* x) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  for_widths(d, rounded_up(columns, lanes), [&](auto vectors, int64_t column) HWY_ATTR {
    for_row_tiles(rows, [&](auto n, int64_t i) HWY_ATTR {
      Tile<n, VectorOf<A>, vectors> tile;
      for_tile(tile, [&](int r, int v, auto& c)
                         HWY_ATTR { c = hn::LoadU(d, x + (i + r) * width + column + v * lanes); });
      multiply(d, p + i * p_row, p_row, p_t, y + column, width, depth, tile);
      for_tile(tile, [&](int r, int v, auto& c)
                         HWY_ATTR { hn::StoreU(c, d, x + (i + r) * width + column + v * lanes); });
    });
  });
}

// The rows of one sub-block, in order or backwards: product = beta x, which then adds its share
// to the x that follow. left: the sub-block's square of s.keys_left.
template <bool kBackwards, class A>
void solve_diagonal(int64_t columns, const A* left, const A* beta, int64_t width, A* x,
                    A* products) {
  const VectorOf<A> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr int kRows = kDeltaSubBlock;
  for (int64_t c = 0; c < columns; c += lanes) {
    hn::Vec<decltype(d)> row[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) row[i] = hn::LoadU(d, x + i * width + c);
#pragma GCC unroll 16
    for (int n = 0; n < kRows; ++n) {
      const int j = kBackwards ? kRows - 1 - n : n;
      const auto product = hn::Mul(hn::Set(d, beta[j]), row[j]);
      hn::StoreU(product, d, products + j * width + c);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        if (kBackwards ? i >= j : i <= j) continue;
        const A* factor = kBackwards ? left + j * kBlock + i : left + i * kBlock + j;
        row[i] = hn::MulAdd(hn::Set(d, *factor), product, row[i]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) hn::StoreU(row[i], d, x + i * width + c);
  }
}

// Solves for y and u in place of what y is without the block's own u, rows `width` apart.
template <class A>
void solve(int64_t rows, int64_t columns, int64_t width, const DeltaScratch<A>& s, A* y, A* u) {
  for (int64_t first = 0; first < rows; first += kDeltaSubBlock) {
    const int64_t n = std::min(kDeltaSubBlock, rows - first);
    const A* left = s.keys_left + first * kBlock;
    add_products(n, columns, first, left, kBlock, 1, u, width, y + first * width);
    solve_diagonal<false>(columns, left + first, s.beta + first, width, y + first * width,
                          u + first * width);
  }
}

// Solves for r and w in place of dU. Rows up to a whole sub-block are made zeros.
template <class A>
void solve_backwards(int64_t rows, int64_t columns, int64_t width, const DeltaScratch<A>& s, A* r,
                     A* w) {
  std::fill(r + rows * width, r + rounded_up(rows, kDeltaSubBlock) * width, A(0));
  for (int64_t first = (rows - 1) / kDeltaSubBlock * kDeltaSubBlock; first >= 0;
       first -= kDeltaSubBlock) {
    const int64_t n = std::min(kDeltaSubBlock, rows - first), behind = first + n;
    const A* left = s.keys_left + first;
    add_products(n, columns, rows - behind, left + behind * kBlock, 1, kBlock, w + behind * width,
                 width, r + first * width);
    solve_diagonal<true>(columns, left + first * kBlock, s.beta + first, width, r + first * width,
                         w + first * width);
  }
}

// A state of D rows, `width` apart: S, or the transition.
template <class A>
struct DeltaState {
  A* state = nullptr;
  int64_t columns = 0, width = 0;
  bool empty = true;  // all zeros, whatever it holds
};

// y without the block's own u: y -= diag(rising) K S, with v or zeros in y.
template <class A>
void read_from_state(int64_t rows, int64_t head_dim, const DeltaState<A>& state,
                     const DeltaScratch<A>& s, A* y) {
  if (state.empty) return;
  make_rows(RowSums<A>{.rows = rows,
                       .columns = state.columns,
                       .x = s.k,
                       .x_width = s.key_width,
                       .depth = head_dim,
                       .state = state.state,
                       .factors = s.minus_rising,
                       .width = state.width,
                       .add = true,
                       .out = y,
                       .out_stride = state.width});
}

// S <- decay S + (diag(falling) K)^T U. Leaves the scaled keys in s.scaled.
template <class A>
void write_to_state(int64_t rows, int64_t head_dim, typename Powers<A>::Pair decay,
                    DeltaState<A>& state, const DeltaScratch<A>& s, const A* u) {
  load_rows<A>(s.k, s.key_width, rows, head_dim, s.falling, s.key_width, s.scaled);
  update_state(StateUpdate<A>{.rows = rows,
                              .left = s.scaled,
                              .left_width = s.key_width,
                              .depth = head_dim,
                              .right = u,
                              .width = state.width,
                              .columns = state.columns,
                              .decay = decay,
                              .empty = state.empty,
                              .state = state.state});
  state.empty = false;
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
