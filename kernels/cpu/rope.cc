#include "kernels/rope.h"

#include <algorithm>

#include "kernels/cpu/by_dtype.h"
#include "kernels/cpu/rope_token.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void rotate(const RopeToken<T>& token) {
  const VectorOf<Accumulator<T>> d;
  const auto sign = hn::Set(d, token.sign);
  for (int64_t h = 0; h < token.heads; ++h) {
    T *first = token.x + h * token.stride, *second = first + token.half;
    for_vectors(d, token.half, [&](int64_t i, auto part) HWY_ATTR {
      const auto cos = load(d, token.cos + i, part);
      const auto sin = hn::Mul(sign, load(d, token.sin + i, part));
      const auto a = load(d, first + i, part), b = load(d, second + i, part);
      store(d, hn::NegMulAdd(b, sin, hn::Mul(a, cos)), first + i, part);
      store(d, hn::MulAdd(a, sin, hn::Mul(b, cos)), second + i, part);
    });
  }
}

ByDType<RotateToken> rotate_token() { return {rotate<bf16>, rotate<float>, rotate<double>}; }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(rotate_token);

namespace {

constexpr int64_t kElementsPerTask = 16384;

template <class T>
void run(const Context& ctx, const Rope& args) {
  if (ctx.measuring() || args.x.empty()) return;
  using A = Accumulator<T>;
  const int64_t heads = args.x.dim(1), half = args.x.dim(2) / 2;
  const A *cos = args.cos.data<A>(), *sin = args.sin.data<A>();
  T* x = args.x.data<T>();
  const auto rotate = std::get<RotateToken<T>>(HWY_DYNAMIC_DISPATCH(rotate_token)());
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (heads * half * 2));
  ctx.parallel_for(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      rotate({.cos = cos + t * half,
              .sin = sin + t * half,
              .sign = args.inverse ? A(-1) : A(1),
              .half = half,
              .heads = heads,
              .stride = args.x.stride(1),
              .x = x + t * args.x.stride(0)});
    }
  });
}

constexpr RopeKernel kTable[] = {{"vector", DType::kBF16, always_available, run<bf16>},
                                 {"vector", DType::kF32, always_available, run<float>},
                                 {"vector", DType::kF64, always_available, run<double>}};

}  // namespace

std::span<const RopeKernel> rope_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
