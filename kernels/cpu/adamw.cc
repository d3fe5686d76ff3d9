#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/adamw_range.h"
#include "kernels/cpu/by_dtype.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adamw.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// Every element is computed alone, in vectors up to the last: the result does not depend on where a
// range begins. The root and the quotient are the hardware's, rounded correctly; memory is slower.
template <class T>
void update(const AdamWFactors<Accumulator<T>>& f, const AdamWRange<T>& range) {
  const VectorOf<Accumulator<T>> d;
  const auto beta1 = hn::Set(d, f.beta1), rest1 = hn::Set(d, f.rest1);
  const auto beta2 = hn::Set(d, f.beta2), rest2 = hn::Set(d, f.rest2);
  const auto rate = hn::Set(d, f.rate), correction2 = hn::Set(d, f.correction2);
  const auto keep = hn::Set(d, f.keep), eps = hn::Set(d, f.eps), scale = hn::Set(d, f.scale);
  for_vectors(d, range.n, [&](int64_t i, auto part) HWY_ATTR {
    const auto g = hn::Mul(load(d, range.grad + i, part), scale);
    const auto m = hn::MulAdd(beta1, load(d, range.m + i, part), hn::Mul(rest1, g));
    const auto v = hn::MulAdd(beta2, load(d, range.v + i, part), hn::Mul(hn::Mul(rest2, g), g));
    const auto below = hn::MulAdd(hn::Sqrt(v), correction2, eps);
    const auto x =
        hn::NegMulAdd(rate, hn::Div(m, below), hn::Mul(keep, load(d, range.master + i, part)));
    store(d, m, range.m + i, part);
    store(d, v, range.v + i, part);
    store(d, x, range.master + i, part);
    if constexpr (std::is_same_v<T, Accumulator<T>>) {
      if (range.param == range.master) return;
    }
    store(d, x, range.param + i, part);
  });
}

ByDType<UpdateRange> update_range() { return {update<bf16>, update<float>, update<double>}; }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(update_range);

namespace {

constexpr int64_t kGrain = 16384;

template <class T>
void run(const Context& ctx, const AdamW& args) {
  if (ctx.measuring()) return;
  using A = Accumulator<T>;
  const AdamWFactors<A> factors(args);
  const auto update = std::get<UpdateRange<T>>(HWY_DYNAMIC_DISPATCH(update_range)());
  ctx.parallel_for(args.param.elements(), kGrain, [&](int64_t begin, int64_t end) {
    update(factors, {.grad = args.grad.data<A>() + begin,
                     .master = args.master.data<A>() + begin,
                     .m = args.m.data<A>() + begin,
                     .v = args.v.data<A>() + begin,
                     .param = args.param.data<T>() + begin,
                     .n = end - begin});
  });
}

constexpr AdamWKernel kTable[] = {{"vector", DType::kBF16, always_available, run<bf16>},
                                  {"vector", DType::kF32, always_available, run<float>},
                                  {"vector", DType::kF64, always_available, run<double>}};

}  // namespace

std::span<const AdamWKernel> adamw_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
