// Puts operands of matrix products into the order in which register tiles read them (compiled once
// per instruction set; include after hwy/foreach_target.h). Nothing outside the operands is read.
#if defined(LONGHAUL_KERNELS_CPU_GEMM_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_GEMM_PACK_INL_H_
#undef LONGHAUL_KERNELS_CPU_GEMM_PACK_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_GEMM_PACK_INL_H_
#endif

#include "kernels/cpu/gemm_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

template <class F>
constexpr int64_t words_of(int64_t elements) {
  return (elements + F::kPerWord - 1) / F::kPerWord;
}

// Elements of k that lie this far ahead are fetched while those here are packed.
template <class F>
inline constexpr int64_t kDepthAhead = 8 * F::kPerWord;

// Panels of b from rows along n: row p of `from` has the elements of k = p. All panels at once, so
// that memory is read in long runs.
template <class F>
void pack_panels_along(const typename F::Element* from, int64_t stride, int64_t depth,
                       int64_t columns, typename F::Word* to) {
  using Word = typename F::Word;
  const VectorOf<Word> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t panel = words_of<F>(depth) * kGemmColumns<F>;
  for (int64_t p = 0; p < depth; p += F::kPerWord, to += kGemmColumns<F>) {
    const typename F::Element* row = from + p * stride;
    for (int64_t q = 0; q < F::kPerWord; ++q) {
      const int64_t next = p + q + kDepthAhead<F>;
      if (next < depth) prefetch(from + next * stride, columns);
    }
    Word* out = to;
    for (int64_t j = 0; j < columns; j += kGemmColumns<F>, out += panel) {
      const int64_t here = std::min(kGemmColumns<F>, columns - j);
      int64_t c = 0;
      for (; c + lanes <= here; c += lanes) {
        hn::StoreU(F::words(d, row + j + c, stride, depth - p), d, out + c);
      }
      for (; c < here; ++c) out[c] = F::word(row + j + c, stride, depth - p);
      std::fill(out + here, out + kGemmColumns<F>, Word(0));
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
// 16 bytes from each of a few rows: block b of the result starts at p + b * stride.
template <class D, class T>
HWY_INLINE hn::Vec<D> load_blocks(D d, const T* p, int64_t stride) {
  constexpr size_t kBlocks = hn::MaxLanes(D()) * sizeof(hn::TFromD<D>) / 16;
  if constexpr (kBlocks == 1) {
    const hn::Repartition<uint8_t, D> bytes;
    return hn::BitCast(d, hn::LoadU(bytes, reinterpret_cast<const uint8_t*>(p)));
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, load_blocks(half, p + kBlocks / 2 * stride, stride),
                       load_blocks(half, p, stride));
  }
}

// Transposes 16 bytes, kWords words, from each of as many rows as D has lanes.
template <class D, class T>
HWY_INLINE void transpose_blocks(D d, const T* from, int64_t stride, hn::TFromD<D>* to,
                                 int64_t to_stride) {
  constexpr int64_t kWords = 16 / sizeof(hn::TFromD<D>);
  const auto row = [&](int64_t r)
                       HWY_ATTR { return load_blocks(d, from + r * stride, kWords * stride); };
  if constexpr (kWords == 2) {
    const auto a = row(0), b = row(1);
    hn::StoreU(hn::InterleaveLower(d, a, b), d, to);
    hn::StoreU(hn::InterleaveUpper(d, a, b), d, to + to_stride);
  } else {
    const hn::Repartition<uint64_t, D> wide;
    const auto a = row(0), b = row(1), c = row(2), e = row(3);
    const auto ab01 = hn::BitCast(wide, hn::InterleaveLower(d, a, b));
    const auto ab23 = hn::BitCast(wide, hn::InterleaveUpper(d, a, b));
    const auto ce01 = hn::BitCast(wide, hn::InterleaveLower(d, c, e));
    const auto ce23 = hn::BitCast(wide, hn::InterleaveUpper(d, c, e));
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, ab01, ce01)), d, to);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, ab01, ce01)), d, to + to_stride);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, ab23, ce23)), d, to + 2 * to_stride);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, ab23, ce23)), d, to + 3 * to_stride);
  }
}

#else
// One lane makes no block.
template <class D, class T>
void transpose_blocks(D, const T*, int64_t, hn::TFromD<D>*, int64_t) {}
#endif

// A panel of b from rows along k: row c of `from` becomes column c.
template <class F>
void pack_panel_across(const typename F::Element* from, int64_t stride, int64_t depth,
                       int64_t columns, typename F::Word* to) {
  using Word = typename F::Word;
  // 32 bytes: the cache lines of 8 rows stay in L1 whatever their stride.
  const hn::CappedTag<Word, 32 / sizeof(Word)> d;
  constexpr int64_t kWords = 16 / sizeof(Word);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t words = words_of<F>(depth), whole = depth / F::kPerWord;
  for (int64_t c = 0; c < kGemmColumns<F>; c += lanes) {
    int64_t w = 0;
    if (lanes > 1 && c + lanes <= columns) {
      for (; w + kWords <= whole; w += kWords) {
        transpose_blocks(d, from + c * stride + w * F::kPerWord, stride,
                         to + w * kGemmColumns<F> + c, kGemmColumns<F>);
      }
    }
    for (; w < words; ++w) {
      Word* row = to + w * kGemmColumns<F> + c;
      for (int64_t j = 0; j < lanes; ++j) {
        const int64_t p = w * F::kPerWord;
        row[j] = c + j < columns ? F::word(from + (c + j) * stride + p, 1, depth - p) : Word(0);
      }
    }
  }
}

// Rows [0, rows) of op(a) in tiles of kGemmRows, where row p of `from` has the elements of k = p,
// of which `there` (>= rows) may be read. Word w of row r of a tile goes to w * kPackedStep + r.
//
// Packs k in [begin, end), whole words, of [0, depth).
template <class F>
void pack_rows_along(const typename F::Element* from, int64_t stride, int64_t depth, int64_t begin,
                     int64_t end, int64_t rows, int64_t there, typename F::Word* to) {
  using Word = typename F::Word;
  const hn::CappedTag<Word, kPackedStep> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t tile = words_of<F>(depth) * kPackedStep;
  to += begin / F::kPerWord * kPackedStep;
  for (int64_t p = begin; p < end; p += F::kPerWord, to += kPackedStep) {
    const typename F::Element* row = from + p * stride;
    for (int64_t q = 0; q < F::kPerWord; ++q) {
      const int64_t next = p + q + kDepthAhead<F>;
      if (next < depth) prefetch(from + next * stride, rows);
    }
    Word* out = to;
    int64_t r = 0;
    for (; r < rows && r + kPackedStep <= there; r += kGemmRows, out += tile) {
      for (int64_t v = 0; v < kPackedStep; v += lanes) {
        hn::StoreU(F::words(d, row + r + v, stride, depth - p), d, out + v);
      }
    }
    for (; r < rows; r += kGemmRows, out += tile) {
      const int64_t here = std::min<int64_t>(kGemmRows, rows - r);
      for (int64_t i = 0; i < here; ++i) out[i] = F::word(row + r + i, stride, depth - p);
    }
  }
}

// Rows [0, rows) of op(a), stored along k, with their last words completed by zeros.
template <class F>
void complete_rows(const typename F::Element* from, int64_t stride, int64_t depth, int64_t rows,
                   typename F::Word* to) {
  const int64_t words = words_of<F>(depth), whole = depth / F::kPerWord;
  for (int64_t r = 0; r < rows; ++r, from += stride, to += words) {
    std::memcpy(to, from, static_cast<size_t>(whole) * sizeof(typename F::Word));
    if (whole < words) to[whole] = F::word(from + whole * F::kPerWord, 1, 1);
  }
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
