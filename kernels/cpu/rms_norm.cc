#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/by_dtype.h"
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

// x(i) * weight(i), where there is a weight.
template <bool kWeight, class D, class V, class T, class Part>
HWY_INLINE V weigh(D d, V x, const T* weight, int64_t i, Part part) {
  if constexpr (kWeight) {
    return hn::Mul(x, load(d, weight + i, part));
  } else {
    return x;
  }
}

template <bool kWeight, class T>
Accumulator<T> forward_row(const T* x, const T* weight, double eps, Accumulator<T> scale, int64_t n,
                           T* y) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  const A squares = sum_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto v = load(d, x + i, part);
    return hn::Mul(v, v);
  });
  const A r = 1 / std::sqrt(squares / static_cast<A>(n) + static_cast<A>(eps));
  const auto factor = hn::Set(d, r * scale);
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto normal = hn::Mul(load(d, x + i, part), factor);
    store(d, weigh<kWeight>(d, normal, weight, i, part), y + i, part);
  });
  return r;
}

template <bool kWeight, class T>
void backward_row(const T* dy, const T* x, const T* weight, Accumulator<T> r, Accumulator<T> scale,
                  int64_t n, T* dx, Accumulator<T>* dweight) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  const auto rstd = hn::Set(d, r), scaled = hn::Set(d, r * scale), factor = hn::Set(d, scale);
  const A along = sum_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto g = weigh<kWeight>(d, load(d, dy + i, part), weight, i, part);
    return hn::Mul(g, hn::Mul(load(d, x + i, part), rstd));
  });
  const auto mean = hn::Set(d, along / static_cast<A>(n));
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto normal = hn::Mul(load(d, x + i, part), rstd), g = load(d, dy + i, part);
    const auto inner = hn::NegMulAdd(normal, mean, weigh<kWeight>(d, g, weight, i, part));
    store(d, hn::MulAdd(scaled, inner, load(d, dx + i, part)), dx + i, part);
    if constexpr (kWeight) {
      const auto sum = load(d, dweight + i, part);
      store(d, hn::MulAdd(hn::Mul(g, factor), normal, sum), dweight + i, part);
    }
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
RmsNormRows<T> rows(bool weight) {
  if (weight) return {forward_row<true, T>, backward_row<true, T>, add_row<Accumulator<T>>};
  return {forward_row<false, T>, backward_row<false, T>, add_row<Accumulator<T>>};
}
ByDType<RmsNormRows> rms_norm_rows(bool weight) {
  return {rows<bf16>(weight), rows<float>(weight), rows<double>(weight)};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(rms_norm_rows);

namespace {

constexpr int64_t kElementsPerTask = 16384;
// Sums of dweight: a part has this many rows, or more so that there are no more parts than below.
// Both are constants, so that the order of the sum does not depend on the threads.
constexpr int64_t kRowsPerPart = 32;
constexpr int64_t kParts = 64;
constexpr int64_t kColumnsPerTask = 1024;

template <class T>
RmsNormRows<T> rows(bool weight) {
  return std::get<RmsNormRows<T>>(HWY_DYNAMIC_DISPATCH(rms_norm_rows)(weight));
}

template <class T>
void forward(const Context& ctx, const RmsNormForward& args) {
  if (ctx.measuring() || args.x.dim(0) == 0) return;
  using A = Accumulator<T>;
  const int64_t channels = args.x.dim(1);
  const bool weighted = args.weight.rank() > 0;
  const T *x = args.x.data<T>(), *weight = weighted ? args.weight.data<T>() : nullptr;
  T* y = args.y.data<T>();
  A* rstd = args.rstd.data<A>();
  const auto row = rows<T>(weighted).forward;
  const auto scale = static_cast<A>(args.scale);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(channels, 1));
  ctx.parallel_for(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      rstd[t] = row(x + t * args.x.stride(0), weight, args.eps, scale, channels,
                    y + t * args.y.stride(0));
    }
  });
}

template <class T>
void backward(const Context& ctx, const RmsNormBackward& args) {
  using A = Accumulator<T>;
  const int64_t tokens = args.x.dim(0), channels = args.x.dim(1);
  const int64_t parts = std::clamp<int64_t>(tokens / kRowsPerPart, 1, kParts);
  const bool weighted = args.weight.rank() > 0;
  // dweight is a sum over rows: one partial sum per part, added in order afterwards.
  const Arena::Scope scope(*ctx.scratch);
  const TensorView partial =
      weighted ? ctx.scratch->allocate(dtype_of<A>, {parts, channels}) : TensorView();
  if (ctx.measuring() || args.x.empty()) return;
  A* sums = weighted ? partial.data<A>() : nullptr;
  const T* weight = weighted ? args.weight.data<T>() : nullptr;
  const RmsNormRows<T> row = rows<T>(weighted);
  const auto scale = static_cast<A>(args.scale);
  ctx.pool->run(
      parts,
      [&](int64_t part, int) {
        A* sum = weighted ? sums + part * channels : nullptr;
        if (weighted) std::fill_n(sum, channels, A(0));
        const Range range = part_of(tokens, part, parts);
        for (int64_t t = range.begin; t < range.end; ++t) {
          row.backward(args.dy.data<T>() + t * args.dy.stride(0),
                       args.x.data<T>() + t * args.x.stride(0), weight, args.rstd.data<A>()[t],
                       scale, channels, args.dx.data<T>() + t * args.dx.stride(0), sum);
        }
      },
      ctx.poll);
  if (!weighted) return;
  A* dweight = args.dweight.data<A>();
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
