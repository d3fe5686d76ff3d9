// The register tile of matrix products, for operands of any dtype. Compiled once per instruction
// set (include after hwy/foreach_target.h).
//
// Operands are made of words: what one lane of the multiplying instruction takes. A word is an
// element, or two bf16 that are neighbours along k.
#if defined(LONGHAUL_KERNELS_CPU_GEMM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_GEMM_TILE_INL_H_
#undef LONGHAUL_KERNELS_CPU_GEMM_TILE_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_GEMM_TILE_INL_H_
#endif

#include <cstddef>
#include <cstring>

#include "hwy/cache_control.h"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// A format of operands says what a word is, how words are made of elements, and how vectors of them
// are multiplied: in kParts steps, each of which takes a part of every word.

// f32 and f64.
template <class T>
struct Elements {
  using Element = T;
  using Word = T;
  using Sum = T;
  static constexpr int64_t kPerWord = 1;
  static constexpr int kParts = 1;

  // The word that starts at p; its elements are `step` apart, and `left` of them are there.
  static Word word(const Element* p, int64_t /*step*/, int64_t /*left*/) { return *p; }
  // The words of neighbouring columns.
  template <class D>
  static HWY_INLINE hn::Vec<D> words(D d, const Element* p, int64_t /*step*/, int64_t /*left*/) {
    return hn::LoadU(d, p);
  }
  template <int kPart, class V>
  static HWY_INLINE V part(V words) {
    return words;
  }
  template <class V>
  static HWY_INLINE V multiply_add(V a, V b, V sum) {
    return hn::MulAdd(a, b, sum);
  }
};

struct PairWords {
  using Element = bf16;
  using Word = uint32_t;
  using Sum = float;
  static constexpr int64_t kPerWord = 2;

  static Word word(const Element* p, int64_t step, int64_t left) {
    return p[0].bits | (left > 1 ? uint32_t{p[step].bits} << 16 : 0u);
  }
  template <class D>
  static HWY_INLINE hn::Vec<D> words(D d, const Element* p, int64_t step, int64_t left) {
    const hn::Rebind<uint16_t, D> halves;
    const auto low = hn::PromoteTo(d, hn::LoadU(halves, &p->bits));
    if (left < 2) return low;
    return hn::Or(low, hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(halves, &p[step].bits))));
  }
};

// Multiplied as f32, the even elements of all pairs first.
struct PairsAsF32 : PairWords {
  static constexpr int kParts = 2;

  template <int kPart, class V>
  static HWY_INLINE auto part(V words) {
    const hn::DFromV<V> d;
    const hn::RebindToFloat<decltype(d)> floats;
    if constexpr (kPart == 0) {
      return hn::BitCast(floats, hn::ShiftLeft<16>(words));
    } else {
      return hn::BitCast(floats, hn::And(words, hn::Set(d, 0xffff0000u)));
    }
  }
  template <class V>
  static HWY_INLINE V multiply_add(V a, V b, V sum) {
    return hn::MulAdd(a, b, sum);
  }
};

#if HWY_TARGET == HWY_AVX3
// Multiplied by AVX512-BF16's instruction.
struct PairsInHardware : PairWords {
  static constexpr int kParts = 1;

  template <int kPart, class V>
  static HWY_INLINE V part(V words) {
    return words;
  }
  template <class W, class V>
  static HWY_INLINE V multiply_add(W a, W b, V sum) {
    return add_pair_products(a, b, sum);
  }
};
#else
using PairsInHardware = PairsAsF32;  // never run: this instruction set has no such instruction
#endif

template <class F>
using SumVector = VectorOf<typename F::Sum>;

// Columns of a tile.
template <class F>
inline constexpr int64_t kGemmColumns =
    kTileVectors* static_cast<int64_t>(hn::MaxLanes(SumVector<F>()));

template <class F, int kRows, int kVectors>
struct GemmTile {
  hn::Vec<SumVector<F>> v[kRows][kVectors];
};

// Rows of op(a) in words: word i of row r stands at data + r * row + i * step bytes, unaligned.
struct WordRows {
  const std::byte* data;
  int64_t row;
  int64_t step;
};

template <class Word>
HWY_INLINE Word word_at(const std::byte* p) {
  Word word;
  std::memcpy(&word, p, sizeof(Word));
  return word;
}

// Brings `count` elements from p on into the first cache.
template <class T>
HWY_INLINE void prefetch(const T* p, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) hwy::Prefetch(p + i);
}

// Memory that will be needed soon, asked for in small portions while something else is computed.
struct NextRows {
  const std::byte* row = nullptr;
  int64_t rows = 0;
  int64_t bytes = 0;  // of a row
  int64_t stride = 0;
  int64_t rows_at_once = 0;

  HWY_INLINE void fetch() {
    for (int64_t n = std::min(rows_at_once, rows); n > 0; --n, --rows, row += stride) {
      prefetch(row, bytes);
    }
  }
};

template <class F, int kPart, int kRows, int kVectors>
HWY_INLINE void multiply_part(const std::byte* a, int64_t row, const typename F::Word* b,
                              GemmTile<F, kRows, kVectors>& t) {
  const VectorOf<typename F::Word> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  decltype(F::template part<kPart>(hn::Zero(d))) bv[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    bv[v] = F::template part<kPart>(hn::LoadU(d, b + v * lanes));
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const auto av = F::template part<kPart>(hn::Set(d, word_at<typename F::Word>(a + r * row)));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) t.v[r][v] = F::multiply_add(av, bv[v], t.v[r][v]);
  }
}

// How far ahead rows of a panel are asked for: they come from the second cache.
inline constexpr int64_t kRowsAhead = 4;

// The product of kRows rows of a and one panel of b, `depth` words deep. A panel's rows are
// kGemmColumns<F> words wide and follow each other.
template <class F, int kRows, int kVectors>
HWY_INLINE GemmTile<F, kRows, kVectors> multiply(const WordRows& a, const typename F::Word* b,
                                                 int64_t depth) {
  const SumVector<F> d;
  GemmTile<F, kRows, kVectors> t;
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) t.v[r][v] = hn::Zero(d);
  }
  const std::byte* word = a.data;
  for (int64_t i = 0; i < depth; ++i) {
    prefetch(b + kRowsAhead * kGemmColumns<F>, kGemmColumns<F>);
    multiply_part<F, 0>(word, a.row, b, t);
    if constexpr (F::kParts == 2) multiply_part<F, 1>(word, a.row, b, t);
    word += a.step;
    b += kGemmColumns<F>;
  }
  return t;
}

// Where a tile goes: c = tile [+ c] [+ partial].
template <class C, class Sum>
struct Output {
  C* c;
  int64_t ldc;
  bool add;
  const Sum* partial;  // nullptr: none
  int64_t ld_partial;
};

template <class F, int kRows, int kVectors, class C>
HWY_INLINE void write(const GemmTile<F, kRows, kVectors>& tile,
                      const Output<C, typename F::Sum>& out, int64_t columns) {
  const SumVector<F> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto put = [&](auto sum, int r, int64_t column, auto part) HWY_ATTR {
    C* c = out.c + r * out.ldc + column;
    if (out.partial != nullptr) {
      sum = hn::Add(load(d, out.partial + r * out.ld_partial + column, part), sum);
    }
    if (out.add) sum = hn::Add(load(d, c, part), sum);
    store(d, sum, c, part);
  };
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = columns - v * lanes;
      if (left >= lanes) {
        put(tile.v[r][v], r, v * lanes, Whole{});
      } else if (left > 0) {
        put(tile.v[r][v], r, v * lanes, Some{left});
      }
    }
  }
}

// One tile of c, at most kGemmColumns<F> wide: product, then sum.
template <class F, int kRows, class C>
HWY_INLINE void tile(const WordRows& a, const typename F::Word* b, int64_t depth, int64_t columns,
                     const Output<C, typename F::Sum>& out) {
  for (int r = 0; r < kRows; ++r) prefetch(out.c + r * out.ldc, columns);
  if (columns == kGemmColumns<F>) {
    write<F, kRows, kTileVectors>(multiply<F, kRows, kTileVectors>(a, b, depth), out,
                                  kGemmColumns<F>);
  } else if (columns <= static_cast<int64_t>(hn::MaxLanes(SumVector<F>()))) {
    write<F, kRows, 1>(multiply<F, kRows, 1>(a, b, depth), out, columns);
  } else {
    write<F, kRows, kTileVectors>(multiply<F, kRows, kTileVectors>(a, b, depth), out, columns);
  }
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
