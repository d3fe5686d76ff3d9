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

#include <array>
#include <cstddef>
#include <cstring>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

inline constexpr int kTileRows = 6;

template <class D>
constexpr int64_t tile_columns(D d) {
  return kTileVectors * static_cast<int64_t>(hn::Lanes(d));
}

// Accumulators of kRows x (kVectors vectors) elements.
template <int kRows, class D, int kVectors = kTileVectors>
struct Tile {
  hn::Vec<D> v[kRows][kVectors];
};

// What a product multiplies. An operand is made of units of the size of an accumulator: one
// element, or two bf16 that are neighbours along the sum.
struct Single {
  static constexpr int64_t kDepth = 1;  // elements of the sum in a unit
  template <class D, class V>
  static HWY_INLINE V multiply_add(D, V a, V b, V sum) {
    return hn::MulAdd(a, b, sum);
  }
};

#if HWY_TARGET == HWY_AVX3
struct Pairs {
  static constexpr int64_t kDepth = 2;
  template <class D, class V>
  static HWY_INLINE V multiply_add(D, V a, V b, V sum) {
    return add_pair_products(a, b, sum);
  }
};

// Rounds two vectors to bf16, to nearest even, and puts them together lane by lane: units of a
// product that sums over (first, second).
template <class D, class V>
HWY_INLINE V interleave_bf16(D d, V first, V second) {
  __m512i both;  // all of `first`, then all of `second`
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(second.raw), "v"(first.raw));
  const hn::Repartition<uint16_t, D> halves;
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto order = hn::Load(halves, kOrder);
  return hn::BitCast(d, hn::Vec<decltype(halves)>{_mm512_permutexvar_epi16(order.raw, both)});
}

// Rounds two vectors to bf16, one after the other.
template <class D, class V>
HWY_INLINE V concatenate_bf16(D d, V first, V second) {
  const hn::Repartition<uint16_t, D> halves;
  __m512i both;
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(second.raw), "v"(first.raw));
  return hn::BitCast(d, hn::Vec<decltype(halves)>{both});
}

using Bf16Arithmetic = Pairs;
#else
// Compiles what is never called: a row that asks for the instructions is not chosen without them.
using Bf16Arithmetic = Single;
#endif

// tile(r, :) += sum over i < depth of a(r, i) * b(i, :), where a(r, i) is at a[r * a_row + i * a_i]
// and row i of b starts at b + i * b_row; distances and depth count units.
template <class Arithmetic = Single, int kRows, int kVectors, class D, class A = hn::TFromD<D>>
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
      for (int v = 0; v < kVectors; ++v)
        t.v[r][v] = Arithmetic::multiply_add(d, av, bv[v], t.v[r][v]);
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
  for (; c + 2 * lanes <= n; c += 2 * lanes) body(std::integral_constant<int, 2>(), c);
  for (; c < n; c += lanes) body(std::integral_constant<int, 1>(), c);
}

// 2^x to a relative 2e-7; exactly 0 far below -127 and at -inf, NaN at NaN, and above 2^100 (in
// f64, 2^900) where x is too large. A polynomial for the fraction (minimax on [-1/2, 1/2], 9.2e-8)
// and arithmetic on exponents.
template <class D, class V>
HWY_INLINE V exp2(D d, V x) {
  if constexpr (std::is_same_v<hn::TFromD<D>, double>) {
    // Bounded to what Highway's function takes; NaN stays, since the second operand then counts.
    const auto limited = hn::IfThenElse(hn::Gt(x, hn::Set(d, 1000.0)), hn::Set(d, 1000.0), x);
    return exp(d, hn::Mul(limited, hn::Set(d, 0.6931471805599453094)));
  } else {
    const auto polynomial = [d](auto f) HWY_ATTR {
      auto p = hn::Set(d, 1.326472664793e-3f);
      p = hn::MulAdd(p, f, hn::Set(d, 9.671512677017e-3f));
      p = hn::MulAdd(p, f, hn::Set(d, 5.550733745079e-2f));
      p = hn::MulAdd(p, f, hn::Set(d, 2.402224208456e-1f));
      p = hn::MulAdd(p, f, hn::Set(d, 6.931469775979e-1f));
      return hn::MulAdd(p, f, hn::Set(d, 1.0f));
    };
#if HWY_TARGET == HWY_AVX3
    // vreduceps gives x - round(x), and 0 at -inf; vscalefps multiplies by 2^n.
    const auto f = V{_mm512_reduce_ps(x.raw, 0)};
    return V{_mm512_scalef_ps(polynomial(f).raw, hn::Sub(x, f).raw)};
#else
    const hn::RebindToSigned<D> integers;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const auto shift = hn::Set(d, 12582912.0f);
    const auto limited = hn::Min(hn::Max(hn::Set(d, -126.0f), x), hn::Set(d, 128.0f));
    const auto n = hn::Add(limited, shift);
    const auto p = polynomial(hn::Sub(limited, hn::Sub(n, shift)));
    const auto scaled = hn::BitCast(
        d, hn::Add(hn::BitCast(integers, p), hn::ShiftLeft<23>(hn::BitCast(integers, n))));
    // Not x itself where it is NaN: comparisons with NaN are false.
    return hn::IfThenElse(hn::Lt(x, hn::Set(d, -125.0f)), hn::Zero(d),
                          hn::IfThenElse(hn::IsNaN(x), x, scaled));
#endif
  }
}

// Widens rows to the accumulator type, and puts them one behind the other.
template <class T>
void widen_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, Accumulator<T>* to) {
  const VectorOf<Accumulator<T>> d;
  for (int64_t r = 0; r < rows; ++r) {
    for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
      store(d, load(d, from + r * stride + c, part), to + r * columns + c, part);
    });
  }
}

#if HWY_TARGET == HWY_SCALAR
template <class A>
inline constexpr int64_t kSquareOf = 1;

template <class A>
HWY_INLINE void transpose_square(const A* from, int64_t, A* to, int64_t) {
  *to = *from;
}
#else
// Squares whose rows have 128 bits.
template <class A>
inline constexpr int64_t kSquareOf = 16 / sizeof(A);

template <class A>
HWY_INLINE void transpose_square(const A* from, int64_t from_row, A* to, int64_t to_row) {
  const hn::FixedTag<A, kSquareOf<A>> d;
  const auto r0 = hn::LoadU(d, from), r1 = hn::LoadU(d, from + from_row);
  if constexpr (kSquareOf<A> == 2) {
    hn::StoreU(hn::InterleaveLower(d, r0, r1), d, to);
    hn::StoreU(hn::InterleaveUpper(d, r0, r1), d, to + to_row);
  } else {
    const hn::RepartitionToWide<decltype(d)> wide;
    const auto r2 = hn::LoadU(d, from + 2 * from_row), r3 = hn::LoadU(d, from + 3 * from_row);
    const auto a = hn::BitCast(wide, hn::InterleaveLower(d, r0, r1));
    const auto b = hn::BitCast(wide, hn::InterleaveLower(d, r2, r3));
    const auto e = hn::BitCast(wide, hn::InterleaveUpper(d, r0, r1));
    const auto f = hn::BitCast(wide, hn::InterleaveUpper(d, r2, r3));
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, a, b)), d, to);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, a, b)), d, to + to_row);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, e, f)), d, to + 2 * to_row);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, e, f)), d, to + 3 * to_row);
  }
}
#endif

// to(c, r) = from(r, c) for a matrix of rows x columns.
template <class A>
void transpose(const A* from, int64_t from_row, int64_t rows, int64_t columns, A* to,
               int64_t to_row) {
  constexpr int64_t kSide = kSquareOf<A>;
  const int64_t whole_rows = rows / kSide * kSide, whole_columns = columns / kSide * kSide;
  for (int64_t r = 0; r < whole_rows; r += kSide) {
    for (int64_t c = 0; c < whole_columns; c += kSide) {
      transpose_square(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      to[c * to_row + r] = from[r * from_row + c];
    }
  }
}

// The operands of Arithmetic come from tensors of T: a row of n elements has units(n) units.
template <class Arithmetic>
constexpr int64_t units(int64_t elements) {
  return (elements + Arithmetic::kDepth - 1) / Arithmetic::kDepth;
}

// Units along the rows: to[r * units(columns) + c]. For pairs, `columns` must be even.
template <class Arithmetic, class T>
void load_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, Accumulator<T>* to) {
  if constexpr (Arithmetic::kDepth == 1) {
    widen_rows(from, stride, rows, columns, to);
  } else {
    const int64_t width = columns / Arithmetic::kDepth;
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(to + r * width, from + r * stride, static_cast<size_t>(columns) * sizeof(T));
    }
  }
}

// Units across the rows: to[r * columns + c] for unit row r; a missing last row is 0.
template <class Arithmetic, class T>
void interleave_rows(const T* from, int64_t stride, int64_t rows, int64_t columns,
                     Accumulator<T>* to) {
  if constexpr (Arithmetic::kDepth == 1) {
    widen_rows(from, stride, rows, columns, to);
  } else {
    const VectorOf<Accumulator<T>> d;
    const hn::RebindToUnsigned<decltype(d)> bits;
    for (int64_t r = 0; r < rows; r += 2) {
      const T *first = from + r * stride, *second = first + stride;
      for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
        // Widened, an element lies in the upper half.
        const auto low = hn::ShiftRight<16>(hn::BitCast(bits, load(d, first + c, part)));
        const auto high =
            r + 1 < rows ? hn::BitCast(bits, load(d, second + c, part)) : hn::Zero(bits);
        store(d, hn::BitCast(d, hn::Or(low, high)), to + r / 2 * columns + c, part);
      });
    }
  }
}

// Units along the rows, rows [0, rows) across a panel: to[c * kPanel + r] for unit c; lanes from
// `rows` on become 0.
template <class Arithmetic, class T>
void load_panel(const T* from, int64_t stride, int64_t rows, int64_t columns, Accumulator<T>* to) {
  using A = Accumulator<T>;
  constexpr int64_t kDepth = Arithmetic::kDepth, kChunk = 32;
  alignas(64) A block[kPanel * kChunk];
  for (int64_t c = 0; c < columns; c += kChunk * kDepth) {
    const int64_t width = std::min(kChunk, (columns - c) / kDepth);
    load_rows<Arithmetic>(from + c, stride, rows, width * kDepth, block);
    std::fill(block + rows * width, block + kPanel * width, A(0));
    transpose(block, width, kPanel, width, to + c / kDepth * kPanel, kPanel);
  }
}

// Rows that will be touched soon and should be in the second-level cache by then. Short rows far
// apart are not foreseen by hardware, and all at once they would block what is being computed, so
// they are asked for in parts.
class Upcoming {
 public:
  template <class T>
  void add(const T* first, int64_t stride, int64_t rows, int64_t columns) {
    constexpr auto kSize = static_cast<int64_t>(sizeof(T));
    if (rows <= 0) return;
    lists_[static_cast<size_t>(count_++)] = {reinterpret_cast<const std::byte*>(first),
                                             stride * kSize, rows, columns * kSize};
  }

  void prefetch(int64_t part, int64_t parts) const {
    constexpr int64_t kLine = 64;
    for (int64_t i = 0; i < count_; ++i) {
      const List& list = lists_[static_cast<size_t>(i)];
      const Range range = part_of(list.rows, part, parts);
      for (int64_t r = range.begin; r < range.end; ++r) {
        for (int64_t b = 0; b < list.bytes; b += kLine) {
          __builtin_prefetch(list.first + r * list.stride + b, 0, 2);
        }
      }
    }
  }

 private:
  struct List {
    const std::byte* first;
    int64_t stride, rows, bytes;
  };
  std::array<List, 4> lists_;
  int64_t count_ = 0;
};

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
