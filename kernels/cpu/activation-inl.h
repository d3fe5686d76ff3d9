// Activations on vectors (Highway's -inl.h convention: include after hwy/foreach_target.h).
#if defined(LONGHAUL_KERNELS_CPU_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_ACTIVATION_INL_H_
#undef LONGHAUL_KERNELS_CPU_ACTIVATION_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_ACTIVATION_INL_H_
#endif

#include "kernels/activation.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// What both sides of 0 are made of without overflow or cancellation: e = e^-|x|, 1 / (1 + e), whose
// product with e is the rest to 1.
template <class V>
struct Sides {
  V e, larger, smaller;
};
template <class D, class V>
HWY_INLINE Sides<V> sides(D d, V x) {
  const auto one = hn::Set(d, hn::TFromD<D>(1));
  const V e = exp(d, hn::Neg(hn::Abs(x)));
  const V larger = hn::Div(one, hn::Add(one, e));
  return {e, larger, hn::Mul(e, larger)};
}

// log(1 + e^z) where `side` is that of z or of -z.
template <class D, class V>
HWY_INLINE V softplus(D d, V z, const Sides<V>& side) {
  const auto more = hn::Add(hn::Max(z, hn::Zero(d)), hn::Log1p(d, side.e));
  return hn::IfThenElse(hn::IsNaN(z), z, more);
}

template <class V>
struct ValueAndSlope {
  V value, slope;
};

template <Activation kAct, class D, class V>
HWY_INLINE V activate(D d, V x) {
  if constexpr (kAct == Activation::kSilu) {
    return hn::Mul(x, sigmoid(d, x));
  } else if constexpr (kAct == Activation::kSigmoid) {
    return sigmoid(d, x);
  } else if constexpr (kAct == Activation::kLogSigmoid) {
    return hn::Neg(softplus(d, hn::Neg(x), sides(d, x)));
  } else {
    static_assert(kAct == Activation::kIdentity);
    return x;
  }
}

// act(x) and its derivative.
template <Activation kAct, class D, class V>
HWY_INLINE ValueAndSlope<V> activate_with_slope(D d, V x) {
  const auto one = hn::Set(d, hn::TFromD<D>(1));
  if constexpr (kAct == Activation::kSilu) {
    const auto s = sigmoid(d, x);
    return {hn::Mul(x, s), hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one))};
  } else if constexpr (kAct == Activation::kSigmoid) {
    const auto side = sides(d, x);
    const auto negative = hn::Lt(x, hn::Zero(d));
    return {hn::IfThenElse(negative, side.smaller, side.larger),
            hn::Mul(side.smaller, side.larger)};
  } else if constexpr (kAct == Activation::kLogSigmoid) {
    const auto side = sides(d, x);
    const auto negative = hn::Lt(x, hn::Zero(d));
    return {hn::Neg(softplus(d, hn::Neg(x), side)),
            hn::IfThenElse(negative, side.larger, side.smaller)};
  } else {
    static_assert(kAct == Activation::kIdentity);
    return {x, one};
  }
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
