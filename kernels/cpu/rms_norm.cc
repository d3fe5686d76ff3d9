#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/rms_norm_rows.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rms_norm.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
Accumulator<T> forward_row(const T* x, const T* weight, double eps, int64_t n, T* y) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  const A squares = sum_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto v = load(d, x + i, part);
    return hn::Mul(v, v);
  });
  const A r = 1 / std::sqrt(squares / static_cast<A>(n) + static_cast<A>(eps));
  const auto factor = hn::Set(d, r);
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto normal = hn::Mul(load(d, x + i, part), factor);
    store(d, hn::Mul(normal, load(d, weight + i, part)), y + i, part);
  });
  return r;
}

template <class T>
void backward_row(const T* dy, const T* x, const T* weight, Accumulator<T> r, int64_t n, T* dx,
                  Accumulator<T>* dweight) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  const auto rstd = hn::Set(d, r);
  const A along = sum_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto g = hn::Mul(load(d, dy + i, part), load(d, weight + i, part));
    return hn::Mul(g, hn::Mul(load(d, x + i, part), rstd));
  });
  const auto mean = hn::Set(d, along / static_cast<A>(n));
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto normal = hn::Mul(load(d, x + i, part), rstd), g = load(d, dy + i, part);
    const auto inner = hn::NegMulAdd(normal, mean, hn::Mul(g, load(d, weight + i, part)));
    store(d, hn::MulAdd(rstd, inner, load(d, dx + i, part)), dx + i, part);
    store(d, hn::MulAdd(g, normal, load(d, dweight + i, part)), dweight + i, part);
  });
}

template <class A>
void add_row(const A* from, int64_t n, A* to) {
  const VectorOf<A> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    store(d, hn::Add(load(d, to + i, part), load(d, from + i, part)), to + i, part);
  });
}

template <class T>
RmsNormRows<T> rows() {
  return {forward_row<T>, backward_row<T>, add_row<Accumulator<T>>};
}
RmsNormRows<bf16> rms_norm_bf16() { return rows<bf16>(); }
RmsNormRows<float> rms_norm_f32() { return rows<float>(); }
RmsNormRows<double> rms_norm_f64() { return rows<double>(); }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(rms_norm_bf16);
HWY_EXPORT(rms_norm_f32);
HWY_EXPORT(rms_norm_f64);

namespace {

constexpr int64_t kElementsPerTask = 16384;
// Sums of dweight: a part has this many rows, or more so that there are no more parts than below.
// Both are constants, so that the order of the sum does not depend on the threads.
constexpr int64_t kRowsPerPart = 32;
constexpr int64_t kParts = 64;
constexpr int64_t kColumnsPerTask = 1024;

template <class T>
RmsNormRows<T> rows() {
  if constexpr (std::is_same_v<T, bf16>) {
    return HWY_DYNAMIC_DISPATCH(rms_norm_bf16)();
  } else if constexpr (std::is_same_v<T, float>) {
    return HWY_DYNAMIC_DISPATCH(rms_norm_f32)();
  } else {
    return HWY_DYNAMIC_DISPATCH(rms_norm_f64)();
  }
}

template <class T>
void forward(const Context& ctx, const RmsNormForward& args) {
  if (ctx.measuring() || args.x.dim(0) == 0) return;
  using A = Accumulator<T>;
  const int64_t channels = args.x.dim(1);
  const T *x = args.x.data<T>(), *weight = args.weight.data<T>();
  T* y = args.y.data<T>();
  A* rstd = args.rstd.data<A>();
  const auto row = rows<T>().forward;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(channels, 1));
  ctx.parallel_for(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      rstd[t] = row(x + t * args.x.stride(0), weight, args.eps, channels, y + t * args.y.stride(0));
    }
  });
}

template <class T>
void backward(const Context& ctx, const RmsNormBackward& args) {
  using A = Accumulator<T>;
  const int64_t tokens = args.x.dim(0), channels = args.x.dim(1);
  const int64_t parts = std::clamp<int64_t>(tokens / kRowsPerPart, 1, kParts);
  // dweight is a sum over rows: one partial sum per part, added in order afterwards.
  const Arena::Scope scope(*ctx.scratch);
  const TensorView partial = ctx.scratch->allocate(accumulator(args.x.dtype()), {parts, channels});
  if (ctx.measuring() || args.x.empty()) return;
  A *sums = partial.data<A>(), *dweight = args.dweight.data<A>();
  const RmsNormRows<T> row = rows<T>();
  ctx.pool->run(
      parts,
      [&](int64_t part, int) {
        A* sum = sums + part * channels;
        std::fill_n(sum, channels, A(0));
        const Range range = part_of(tokens, part, parts);
        for (int64_t t = range.begin; t < range.end; ++t) {
          row.backward(args.dy.data<T>() + t * args.dy.stride(0),
                       args.x.data<T>() + t * args.x.stride(0), args.weight.data<T>(),
                       args.rstd.data<A>()[t], channels, args.dx.data<T>() + t * args.dx.stride(0),
                       sum);
        }
      },
      ctx.poll);
  ctx.parallel_for(channels, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t part = 0; part < parts; ++part) {
      row.add(sums + part * channels + begin, end - begin, dweight + begin);
    }
  });
}

constexpr RmsNormKernel kTable[] = {
    {"vector", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"vector", DType::kF32, always_available, forward<float>, backward<float>},
    {"vector", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const RmsNormKernel> rms_norm_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
