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

// Values are widened to the accumulator type on load and rounded on store.
template <class D, class T>
HWY_INLINE auto load(D d, const T* p, Whole) {
  if constexpr (std::is_same_v<T, bf16>) {
    const hn::RebindToUnsigned<D> bits;
    const hn::Rebind<uint16_t, D> half;
    const auto stored = hn::LoadU(half, reinterpret_cast<const uint16_t*>(p));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(bits, stored)));
  } else {
    return hn::LoadU(d, p);
  }
}

template <class D, class V, class T>
HWY_INLINE void store(D d, V v, T* p, Whole) {
  if constexpr (std::is_same_v<T, bf16>) {
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
  } else {
    hn::StoreU(v, d, p);
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

// e^x; NaN stays NaN (Highway's own makes it 0).
template <class D, class V>
HWY_INLINE V exp(D d, V x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

// 1 / (1 + e^-x). The bound keeps e^-x finite.
template <class D, class V>
HWY_INLINE V sigmoid(D d, V x) {
  using A = hn::TFromD<D>;
  constexpr A kLargest = std::is_same_v<A, float> ? A(88) : A(700);
  const auto one = hn::Set(d, A(1));
  return hn::Div(one, hn::Add(one, exp(d, hn::Min(hn::Set(d, kLargest), hn::Neg(x)))));
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
