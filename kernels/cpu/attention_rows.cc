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

template <class T>
void dot_many(const T* rows, int64_t stride, int64_t count, const T* x, int64_t n,
              Accumulator<T>* to) {
  for (int64_t j = 0; j < count; ++j) to[j] = dot(x, rows + j * stride, n);
}

template <class T>
void add_many(const T* rows, int64_t stride, int64_t count, const Accumulator<T>* weights,
              Accumulator<T> keep, Accumulator<T>* to, int64_t n) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    // Two sums hide half of the additions' latency; their order depends on `count` alone.
    auto even = keep == A(0) ? hn::Zero(d) : hn::Mul(load(d, to + i, part), hn::Set(d, keep));
    auto odd = hn::Zero(d);
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      const T* row = rows + j * stride + i;
      even = hn::MulAdd(load(d, row, part), hn::Set(d, weights[j]), even);
      odd = hn::MulAdd(load(d, row + stride, part), hn::Set(d, weights[j + 1]), odd);
    }
    if (j < count) {
      even = hn::MulAdd(load(d, rows + j * stride + i, part), hn::Set(d, weights[j]), even);
    }
    store(d, hn::Add(even, odd), to + i, part);
  });
}

void dots_bf16(const bf16* rows, int64_t stride, int64_t count, const bf16* x, int64_t n,
               float* to) {
  dot_many(rows, stride, count, x, n, to);
}
void dots_f32(const float* rows, int64_t stride, int64_t count, const float* x, int64_t n,
              float* to) {
  dot_many(rows, stride, count, x, n, to);
}
void dots_f64(const double* rows, int64_t stride, int64_t count, const double* x, int64_t n,
              double* to) {
  dot_many(rows, stride, count, x, n, to);
}
void add_bf16(const bf16* rows, int64_t stride, int64_t count, const float* weights, float keep,
              float* to, int64_t n) {
  add_many(rows, stride, count, weights, keep, to, n);
}
void add_f32(const float* rows, int64_t stride, int64_t count, const float* weights, float keep,
             float* to, int64_t n) {
  add_many(rows, stride, count, weights, keep, to, n);
}
void add_f64(const double* rows, int64_t stride, int64_t count, const double* weights, double keep,
             double* to, int64_t n) {
  add_many(rows, stride, count, weights, keep, to, n);
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

HWY_EXPORT(dots_bf16);
HWY_EXPORT(dots_f32);
HWY_EXPORT(dots_f64);
HWY_EXPORT(add_bf16);
HWY_EXPORT(add_f32);
HWY_EXPORT(add_f64);
HWY_EXPORT(dot_bf16);
HWY_EXPORT(dot_f32_bf16);
HWY_EXPORT(dot_f32);
HWY_EXPORT(dot_f64);
HWY_EXPORT(mix_f32);
HWY_EXPORT(mix_f64);

template <>
DotRows<bf16> dot_rows() {
  return HWY_DYNAMIC_DISPATCH(dots_bf16);
}
template <>
AddRows<bf16> add_rows() {
  return HWY_DYNAMIC_DISPATCH(add_bf16);
}
template <>
DotRows<float> dot_rows() {
  return HWY_DYNAMIC_DISPATCH(dots_f32);
}
template <>
AddRows<float> add_rows() {
  return HWY_DYNAMIC_DISPATCH(add_f32);
}
template <>
DotRows<double> dot_rows() {
  return HWY_DYNAMIC_DISPATCH(dots_f64);
}
template <>
AddRows<double> add_rows() {
  return HWY_DYNAMIC_DISPATCH(add_f64);
}
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
