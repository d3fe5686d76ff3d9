// Loads, stores and functions on vectors of the accumulator type, compiled once per instruction set
// (Highway's -inl.h convention: include after hwy/foreach_target.h).
#if defined(LONGHAUL_KERNELS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_VECTOR_INL_H_
#undef LONGHAUL_KERNELS_CPU_VECTOR_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_VECTOR_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/core/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class A>
using VectorOf = hn::ScalableTag<A>;

// Vectors side by side in a register tile of 6 rows: 6 x 4 accumulators use 24 of AVX-512's 32
// registers, 6 x 2 use 12 of the 16 that others have.
inline constexpr int kTileVectors = HWY_TARGET == HWY_AVX3 ? 4 : 2;

#if HWY_TARGET == HWY_AVX3
// Adds both products of the pairs of bf16 in each lane of a and b to the sum in f32; takes
// subnormal numbers for zero. Only where has_bf16_products(); as assembly, since Debian's Highway
// has no target with the instruction.
template <class W, class V>
HWY_INLINE V add_pair_products(W a, W b, V sum) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
}
#endif

// A whole vector, or the first `count` lanes of one: the tail of a row.
struct Whole {};
struct Some {
  int64_t count;
};

// body(i, part) for i = 0, N, 2N, ...; the last part may be shorter.
template <class D, class F>
HWY_INLINE void for_vectors(D d, int64_t n, F&& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, Whole{});
  if (i < n) body(i, Some{n - i});
}

// Values are widened to the lanes' type on load and rounded on store.
template <class D, class T>
HWY_INLINE auto load(D d, const T* p, Whole) {
  using A = hn::TFromD<D>;
  if constexpr (std::is_same_v<T, A>) {
    return hn::LoadU(d, p);
  } else if constexpr (std::is_same_v<A, double>) {
    const hn::Rebind<float, D> narrow;
    return hn::PromoteTo(d, load(narrow, p, Whole{}));
  } else {
    const hn::RebindToUnsigned<D> bits;
    const hn::Rebind<uint16_t, D> half;
    const auto stored = hn::LoadU(half, reinterpret_cast<const uint16_t*>(p));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(bits, stored)));
  }
}

template <class D, class V, class T>
HWY_INLINE void store(D d, V v, T* p, Whole) {
  using A = hn::TFromD<D>;
  if constexpr (std::is_same_v<T, A>) {
    hn::StoreU(v, d, p);
  } else if constexpr (std::is_same_v<A, double>) {
    const hn::Rebind<float, D> narrow;
    store(narrow, hn::DemoteTo(narrow, v), p, Whole{});
  } else {
    // To nearest even; NaN keeps its upper half, with the quiet bit set.
    const hn::RebindToUnsigned<D> bits;
    const hn::RebindToSigned<D> integers;
    const hn::Rebind<uint16_t, D> half;
    const auto u = hn::BitCast(bits, v);
    const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(bits, 1u));
    const auto rounded = hn::Add(u, hn::Add(odd, hn::Set(bits, 0x7fffu)));
    const auto quiet = hn::Or(u, hn::Set(bits, 0x400000u));
    const auto chosen = hn::IfThenElse(hn::RebindMask(bits, hn::IsNaN(v)), quiet, rounded);
    hn::StoreU(hn::DemoteTo(half, hn::BitCast(integers, hn::ShiftRight<16>(chosen))), half,
               reinterpret_cast<uint16_t*>(p));
  }
}

template <class D, class T>
HWY_INLINE auto load(D d, const T* p, Some part) {
  std::array<T, hn::MaxLanes(D())> buffer{};
  std::copy_n(p, part.count, buffer.begin());
  return load(d, buffer.data(), Whole{});
}

template <class D, class V, class T>
HWY_INLINE void store(D d, V v, T* p, Some part) {
  std::array<T, hn::MaxLanes(D())> buffer;
  store(d, v, buffer.data(), Whole{});
  std::copy_n(buffer.begin(), part.count, p);
}

// The sum over i < n of term(i, part), vectors that are zero beyond the end of a short part. Four
// sums side by side hide the latency of additions; their order depends on n and the vectors' length
// only.
template <class D, class F>
HWY_INLINE hn::TFromD<D> sum_vectors(D d, int64_t n, F&& term) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    s0 = hn::Add(s0, term(i, Whole{}));
    s1 = hn::Add(s1, term(i + lanes, Whole{}));
    s2 = hn::Add(s2, term(i + 2 * lanes, Whole{}));
    s3 = hn::Add(s3, term(i + 3 * lanes, Whole{}));
  }
  for (; i + lanes <= n; i += lanes) s0 = hn::Add(s0, term(i, Whole{}));
  if (i < n) s1 = hn::Add(s1, term(i, Some{n - i}));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

// e^x to about 1 ulp; NaN stays NaN. In f32, 0 below -87.3: no results are subnormal.
template <class D, class V>
HWY_INLINE V exp(D d, V x) {
  if constexpr (std::is_same_v<hn::TFromD<D>, double>) {
    return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));  // Highway's own makes NaN 0
  } else {
    // e^x = 2^n e^f with |f| <= log(2)/2; log(2) in two parts (Cody & Waite 1980), since n log(2)
    // cancels all but a few bits of x. Adding 1.5 * 2^23 rounds to an integer, which then stands in
    // the low bits: with 127 more, the exponent's. Only n is bounded: beyond, f grows until the
    // product is infinite, and a NaN reaches it through f.
    constexpr float kRound = 12582912.0f + 127;
    const hn::RebindToUnsigned<D> bits;
    auto n = hn::MulAdd(x, hn::Set(d, 1.44269504f), hn::Set(d, kRound));
    n = hn::Max(hn::Set(d, kRound - 126), hn::Min(hn::Set(d, kRound + 127), n));
    const auto scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(bits, n)));
    const auto count = hn::Sub(n, hn::Set(d, kRound));
    auto f = hn::NegMulAdd(count, hn::Set(d, 0.693145751953125f), x);
    f = hn::NegMulAdd(count, hn::Set(d, 1.42860677e-6f), f);
    // Minimax in relative error, 4e-9; in Estrin's order, since latency is what costs.
    const auto f2 = hn::Mul(f, f);
    auto p = hn::MulAdd(hn::Set(d, 8.368745446e-03f), f, hn::Set(d, 4.166838899e-02f));
    p = hn::MulAdd(hn::Set(d, 1.381454058e-03f), f2, p);
    p = hn::MulAdd(p, f2,
                   hn::MulAdd(hn::Set(d, 1.666652113e-01f), f, hn::Set(d, 4.999999404e-01f)));
    p = hn::MulAdd(p, f2, hn::Add(f, hn::Set(d, 1.0f)));
    return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3f)), hn::Mul(p, scale));
  }
}

// 1 / (1 + e^-x). In f64, a bound keeps e^-x in the range of Highway's function.
template <class D, class V>
HWY_INLINE V sigmoid(D d, V x) {
  using A = hn::TFromD<D>;
  const auto one = hn::Set(d, A(1));
  auto negative = hn::Neg(x);
  if constexpr (std::is_same_v<A, double>) {  // NaN is not larger
    const auto most = hn::Set(d, 700.0);
    negative = hn::IfThenElse(hn::Gt(negative, most), most, negative);
  }
  return hn::Div(one, hn::Add(one, exp(d, negative)));
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
