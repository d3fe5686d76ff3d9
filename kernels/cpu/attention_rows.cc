#include "kernels/cpu/attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_rows.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class O, class T>
Accumulator<T> dot(const O* out, const T* dout, int64_t n) {
  const VectorOf<Accumulator<T>> d;
  return sum_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    return hn::Mul(load(d, out + i, part), load(d, dout + i, part));
  });
}

template <class A>
void mix(const A* from, A take, A keep, A* to, int64_t n) {
  const VectorOf<A> d;
  const auto t = hn::Set(d, take), k = hn::Set(d, keep);
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto added = hn::Mul(load(d, from + i, part), t);
    store(d, hn::MulAdd(load(d, to + i, part), k, added), to + i, part);
  });
}

float dot_bf16(const bf16* x, const bf16* y, int64_t n) { return dot(x, y, n); }
float dot_f32_bf16(const float* x, const bf16* y, int64_t n) { return dot(x, y, n); }
float dot_f32(const float* x, const float* y, int64_t n) { return dot(x, y, n); }
double dot_f64(const double* x, const double* y, int64_t n) { return dot(x, y, n); }
void mix_f32(const float* x, float take, float keep, float* y, int64_t n) {
  mix(x, take, keep, y, n);
}
void mix_f64(const double* x, double take, double keep, double* y, int64_t n) {
  mix(x, take, keep, y, n);
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(dot_bf16);
HWY_EXPORT(dot_f32_bf16);
HWY_EXPORT(dot_f32);
HWY_EXPORT(dot_f64);
HWY_EXPORT(mix_f32);
HWY_EXPORT(mix_f64);

template <>
DotRow<bf16, bf16> dot_row() {
  return HWY_DYNAMIC_DISPATCH(dot_bf16);
}
template <>
DotRow<float, bf16> dot_row() {
  return HWY_DYNAMIC_DISPATCH(dot_f32_bf16);
}
template <>
DotRow<float, float> dot_row() {
  return HWY_DYNAMIC_DISPATCH(dot_f32);
}
template <>
DotRow<double, double> dot_row() {
  return HWY_DYNAMIC_DISPATCH(dot_f64);
}
template <>
MixRow<float> mix_row() {
  return HWY_DYNAMIC_DISPATCH(mix_f32);
}
template <>
MixRow<double> mix_row() {
  return HWY_DYNAMIC_DISPATCH(mix_f64);
}

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
