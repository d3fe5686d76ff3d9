// What the general instance of the attention kernels does to scores and probabilities beyond the
// plain one: soft-cap, bias and dropout. Compiled once per instruction set (include after
// hwy/foreach_target.h).
#if defined(LONGHAUL_KERNELS_CPU_ATTENTION_OPTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_ATTENTION_OPTIONS_INL_H_
#undef LONGHAUL_KERNELS_CPU_ATTENTION_OPTIONS_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_ATTENTION_OPTIONS_INL_H_
#endif

#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR
template <class D, class V>
HWY_INLINE V multiply_low(D d, V a, uint32_t b) {
  return hn::Set(d, (hn::GetLane(a) & 0xffffffffu) * b);
}
#else
// The lower halves of 64-bit lanes, times b.
template <class D, class V>
HWY_INLINE V multiply_low(D d, V a, uint32_t b) {
  const hn::Repartition<uint32_t, D> words;
  return hn::MulEven(hn::BitCast(words, a), hn::BitCast(words, hn::Set(d, uint64_t{b})));
}
#endif

// The options of one query head.
template <class A>
class HeadOptions {
 public:
  HeadOptions(const AttentionOptions& options, const HeadMap& heads, int64_t head)
      : cap_(static_cast<A>(options.soft_cap * kLog2E)),
        slope_(options.biased() ? static_cast<A>(kLog2E * options.bias_slopes.data<float>()[head])
                                : A(0)),
        stream_(dropout_stream(options.dropout.key, heads.q_begin + head)),
        threshold_(dropout_threshold(options.dropout.probability)),
        kept_(static_cast<A>(1 / (1 - options.dropout.probability))) {}

  bool caps() const { return cap_ != A(0); }

  // tanh(score / cap), for a score in units of log 2.
  template <class D, class V>
  HWY_INLINE V tanh_of(D d, V score) const {
    const auto x = hn::Div(score, hn::Set(d, cap_));
    return hn::IfThenElse(hn::IsNaN(x), x, hn::Tanh(d, x));  // Highway's own loses NaN
  }
  template <class D, class V>
  HWY_INLINE V capped(D d, V tanh) const {
    return hn::Mul(tanh, hn::Set(d, cap_));
  }

  // Adds the bias to lanes from `column` on; `distance` is query minus key position at column 0 and
  // grows by `step` a column.
  template <class D, class V>
  HWY_INLINE V biased(D d, V score, int64_t distance, int64_t step, int64_t column) const {
    const auto at =
        hn::MulAdd(hn::Iota(d, static_cast<A>(column)), hn::Set(d, static_cast<A>(step)),
                   hn::Set(d, static_cast<A>(distance)));
    return hn::NegMulAdd(at, hn::Set(d, slope_), score);
  }

  // to[j * kPanel + x]: what dropout multiplies the probability of key j for query x by, for `keys`
  // keys and a panel of queries, from the given positions on, `stride` apart.
  void dropout_factors(int64_t q_position, int64_t k_position, int64_t stride, int64_t keys,
                       A* to) const {
    if (threshold_ == 0) {
      std::fill_n(to, keys * kPanel, A(1));
      return;
    }
    uint64_t rows[kPanel], words[4][kPanel];
    for (int64_t x = 0; x < kPanel; ++x) {
      rows[x] = stream_.stream + static_cast<uint64_t>(q_position + x * stride);
    }
    for (int64_t j = 0; j < keys; ++j) {
      const auto before = static_cast<uint64_t>(k_position + (j - 1) * stride);
      const auto key = static_cast<uint64_t>(k_position + j * stride);
      // Neighbouring keys have words of the same 128 bits.
      if (j == 0 || key / 4 != before / 4) make_words(rows, key / 4, words);
      for (int64_t x = 0; x < kPanel; ++x) {
        to[j * kPanel + x] = words[key % 4][x] < threshold_ ? A(0) : kept_;
      }
    }
  }

 private:
  // random_bits() of a panel of streams, in lanes of which the lower halves count.
  void make_words(const uint64_t* streams, uint64_t index, uint64_t (&words)[4][kPanel]) const {
    const hn::ScalableTag<uint64_t> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t x = 0; x < kPanel; x += lanes) {
      auto c0 = hn::Set(d, index), c1 = hn::Set(d, index >> 32);
      auto c2 = hn::LoadU(d, streams + x), c3 = hn::ShiftRight<32>(c2);
      auto k0 = static_cast<uint32_t>(stream_.seed), k1 = static_cast<uint32_t>(stream_.seed >> 32);
      for (int round = 0; round < Philox::kRounds; ++round) {
        const auto p0 = multiply_low(d, c0, Philox::kMultiply0);
        const auto p1 = multiply_low(d, c2, Philox::kMultiply1);
        c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d, uint64_t{k0}));
        c1 = p1;
        c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d, uint64_t{k1}));
        c3 = p0;
        k0 += Philox::kWeyl0;
        k1 += Philox::kWeyl1;
      }
      const auto low = hn::Set(d, uint64_t{0xffffffffu});
      hn::StoreU(hn::And(c0, low), d, words[0] + x);
      hn::StoreU(hn::And(c1, low), d, words[1] + x);
      hn::StoreU(hn::And(c2, low), d, words[2] + x);
      hn::StoreU(hn::And(c3, low), d, words[3] + x);
    }
  }

  A cap_, slope_;  // in units of log 2, as scores are
  RandomKey stream_;
  uint64_t threshold_;
  A kept_;
};

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
