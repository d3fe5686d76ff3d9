#include "kernels/lrpe.h"

#include <algorithm>

#include "kernels/cpu/by_dtype.h"
#include "kernels/cpu/lrpe_rows.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/lrpe.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void forward_row(const T* x, const Accumulator<T>* cos, const Accumulator<T>* sin, int64_t n,
                 T* y) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto v = load(d, x + i, part);
    store(d, hn::Mul(v, load(d, cos + i, part)), y + i, part);
    store(d, hn::Mul(v, load(d, sin + i, part)), y + n + i, part);
  });
}

template <class T>
void backward_row(const T* dy, const Accumulator<T>* cos, const Accumulator<T>* sin, int64_t n,
                  T* dx) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto along = hn::Mul(load(d, dy + i, part), load(d, cos + i, part));
    const auto both = hn::MulAdd(load(d, dy + n + i, part), load(d, sin + i, part), along);
    store(d, both, dx + i, part);
  });
}

template <class T>
LrpeRows<T> rows() {
  return {forward_row<T>, backward_row<T>};
}
ByDType<LrpeRows> lrpe_rows() { return {rows<bf16>(), rows<float>(), rows<double>()}; }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(lrpe_rows);

namespace {

constexpr int64_t kElementsPerTask = 16384;

template <class T>
LrpeRows<T> rows() {
  return std::get<LrpeRows<T>>(HWY_DYNAMIC_DISPATCH(lrpe_rows)());
}

// row(from, cos, sin, n, to) for every head of every token.
template <class T>
void for_heads(const Context& ctx, const ConstTensorView& from, const ConstTensorView& cos,
               const ConstTensorView& sin, const TensorView& to,
               void (*row)(const T*, const Accumulator<T>*, const Accumulator<T>*, int64_t, T*)) {
  using A = Accumulator<T>;
  const int64_t heads = cos.dim(1), dim = cos.dim(2);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (heads * dim * 2));
  ctx.parallel_for(from.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = (t * heads + h) * dim;
        row(from.data<T>() + t * from.stride(0) + h * from.stride(1), cos.data<A>() + at,
            sin.data<A>() + at, dim, to.data<T>() + t * to.stride(0) + h * to.stride(1));
      }
    }
  });
}

template <class T>
void forward(const Context& ctx, const LrpeForward& args) {
  if (ctx.measuring() || args.x.empty()) return;
  for_heads<T>(ctx, args.x, args.cos, args.sin, args.y, rows<T>().forward);
}

template <class T>
void backward(const Context& ctx, const LrpeBackward& args) {
  if (ctx.measuring() || args.dx.empty()) return;
  for_heads<T>(ctx, args.dy, args.cos, args.sin, args.dx, rows<T>().backward);
}

constexpr LrpeKernel kTable[] = {
    {"vector", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"vector", DType::kF32, always_available, forward<float>, backward<float>},
    {"vector", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const LrpeKernel> lrpe_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
