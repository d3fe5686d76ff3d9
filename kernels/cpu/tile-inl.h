// The register tile from which the attention kernels are made, and their exponential. Compiled once
// per instruction set (include after hwy/foreach_target.h).
//
// Matrices that run along the vectors live in panels kPanel elements wide, whatever the vector
// length, so that the size of workspaces does not depend on the machine.
#if defined(LONGHAUL_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_TILE_INL_H_
#undef LONGHAUL_KERNELS_CPU_TILE_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_TILE_INL_H_
#endif

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// 6 x 4 accumulators use 24 of AVX-512's 32 registers, 6 x 2 use 12 of the 16 that others have.
inline constexpr int kTileRows = 6;
inline constexpr int kTileVectors = HWY_TARGET == HWY_AVX3 ? 4 : 2;

template <class D>
constexpr int64_t tile_columns(D d) {
  return kTileVectors * static_cast<int64_t>(hn::Lanes(d));
}

// Accumulators of kRows x (kVectors vectors) elements.
template <int kRows, class D, int kVectors = kTileVectors>
struct Tile {
  hn::Vec<D> v[kRows][kVectors];
};

// tile(r, :) += sum over i < depth of a(r, i) * b(i, :), where a(r, i) is at a[r * a_row + i * a_i]
// and row i of b starts at b + i * b_row.
template <int kRows, int kVectors, class D, class A = hn::TFromD<D>>
HWY_INLINE void multiply(D d, const A* HWY_RESTRICT a, int64_t a_row, int64_t a_i,
                         const A* HWY_RESTRICT b, int64_t b_row, int64_t depth,
                         Tile<kRows, D, kVectors>& tile) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto t = tile;  // a local copy stays in registers
  for (int64_t i = 0; i < depth; ++i) {
    hn::Vec<D> bv[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) bv[v] = hn::LoadU(d, b + i * b_row + v * lanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const auto av = hn::Set(d, a[r * a_row + i * a_i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) t.v[r][v] = hn::MulAdd(av, bv[v], t.v[r][v]);
    }
  }
  tile = t;
}

// body(rows, first) with rows an integral constant: tiles of kTileRows rows, then the rest.
template <class F>
HWY_INLINE void for_row_tiles(int64_t n, F&& body) {
  int64_t r = 0;
  for (; r + kTileRows <= n; r += kTileRows) body(std::integral_constant<int, kTileRows>(), r);
  switch (n - r) {
    case 5:
      return body(std::integral_constant<int, 5>(), r);
    case 4:
      return body(std::integral_constant<int, 4>(), r);
    case 3:
      return body(std::integral_constant<int, 3>(), r);
    case 2:
      return body(std::integral_constant<int, 2>(), r);
    case 1:
      return body(std::integral_constant<int, 1>(), r);
    default:
      return;
  }
}

// f(r, v, vector&) for every vector of a tile.
template <int kRows, int kVectors, class D, class F>
HWY_INLINE void for_tile(Tile<kRows, D, kVectors>& tile, F&& f) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) f(r, v, tile.v[r][v]);
  }
}

template <int kRows, int kVectors, class D>
HWY_INLINE void clear(D d, Tile<kRows, D, kVectors>& tile) {
  for_tile(tile, [d](int, int, auto& c) HWY_ATTR { c = hn::Zero(d); });
}

// body(vectors, column) with vectors an integral constant, for columns [0, n), n a multiple of the
// vector length.
template <class D, class F>
HWY_INLINE void for_column_tiles(D d, int64_t n, F&& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  for (; c + tile_columns(d) <= n; c += tile_columns(d)) {
    body(std::integral_constant<int, kTileVectors>(), c);
  }
  for (; c < n; c += lanes) body(std::integral_constant<int, 1>(), c);
}

// 2^x for x <= 0, to a relative 2e-7; exactly 0 below -127 and at -inf, NaN at NaN. A polynomial
// for the fraction (minimax on [-1/2, 1/2], 9.2e-8), integer arithmetic for the exponent.
template <class D, class V>
HWY_INLINE V exp2(D d, V x) {
  if constexpr (std::is_same_v<hn::TFromD<D>, double>) {
    return exp(d, hn::Mul(x, hn::Set(d, 0.6931471805599453094)));
  } else {
    const hn::RebindToSigned<D> integers;
    x = hn::Max(hn::Set(d, -127.0f), x);  // this order keeps NaN
    const auto n = hn::NearestInt(x);
    const auto f = hn::Sub(x, hn::ConvertTo(d, n));
    auto p = hn::Set(d, 1.326472664793e-3f);
    p = hn::MulAdd(p, f, hn::Set(d, 9.671512677017e-3f));
    p = hn::MulAdd(p, f, hn::Set(d, 5.550733745079e-2f));
    p = hn::MulAdd(p, f, hn::Set(d, 2.402224208456e-1f));
    p = hn::MulAdd(p, f, hn::Set(d, 6.931469775979e-1f));
    p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
    const auto scale = hn::ShiftLeft<23>(hn::Add(n, hn::Set(integers, 127)));
    return hn::Mul(p, hn::BitCast(d, scale));
  }
}

// Widens `rows` rows of `columns` elements to the accumulator type; new rows are `width` apart and
// filled up with zeros.
template <class T>
void widen_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, int64_t width,
                Accumulator<T>* to) {
  const VectorOf<Accumulator<T>> d;
  for (int64_t r = 0; r < rows; ++r) {
    const T* source = from + r * stride;
    Accumulator<T>* target = to + r * width;
    for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
      store(d, load(d, source + c, part), target + c, part);
    });
    std::fill(target + columns, target + width, Accumulator<T>(0));
  }
}

// Puts rows [0, rows) of `columns` elements across a panel: to[c * kPanel + r], times `factor`;
// lanes from `rows` on become 0.
template <class T>
void pack_panel(const T* from, int64_t stride, int64_t rows, int64_t columns, Accumulator<T> factor,
                Accumulator<T>* to) {
  using A = Accumulator<T>;
  for (int64_t c = 0; c < columns; ++c) {
    A* lane = to + c * kPanel;
    for (int64_t r = 0; r < rows; ++r) lane[r] = static_cast<A>(from[r * stride + c]) * factor;
    for (int64_t r = rows; r < kPanel; ++r) lane[r] = 0;
  }
}

// Lanes [first, last) of a vector at column `column` of a panel.
template <class D>
HWY_INLINE auto lanes_between(D d, int64_t column, int64_t first, int64_t last) {
  using A = hn::TFromD<D>;
  const auto at = hn::Iota(d, static_cast<A>(column));
  return hn::And(hn::Ge(at, hn::Set(d, static_cast<A>(first))),
                 hn::Lt(at, hn::Set(d, static_cast<A>(last))));
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
