#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kGrain = 16384;

template <class T>
void run(const Context& ctx, const AdamW& args) {
  if (ctx.measuring()) return;
  using A = Accumulator<T>;
  const double steps = static_cast<double>(args.step);
  const A beta1 = static_cast<A>(args.beta1), beta2 = static_cast<A>(args.beta2);
  const A rest1 = static_cast<A>(1 - args.beta1), rest2 = static_cast<A>(1 - args.beta2);
  // The bias corrections 1 - beta^t of both moments, as factors.
  const A rate = static_cast<A>(args.learning_rate / (1 - std::pow(args.beta1, steps)));
  const A correction2 = static_cast<A>(1 / std::sqrt(1 - std::pow(args.beta2, steps)));
  const A keep = static_cast<A>(1 - args.learning_rate * args.weight_decay);
  const A eps = static_cast<A>(args.eps), scale = static_cast<A>(args.grad_scale);
  const A* grad = args.grad.data<A>();
  A *master = args.master.data<A>(), *m = args.m.data<A>(), *v = args.v.data<A>();
  T* param = args.param.data<T>();
  ctx.parallel_for(args.param.elements(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const A g = grad[i] * scale;
      const A mi = beta1 * m[i] + rest1 * g;
      const A vi = beta2 * v[i] + rest2 * g * g;
      const A x = keep * master[i] - rate * mi / (std::sqrt(vi) * correction2 + eps);
      m[i] = mi;
      v[i] = vi;
      master[i] = x;
      param[i] = static_cast<T>(x);
    }
  });
}

constexpr AdamWKernel kTable[] = {{"cpu", DType::kBF16, always_available, run<bf16>},
                                  {"cpu", DType::kF32, always_available, run<float>},
                                  {"cpu", DType::kF64, always_available, run<double>}};

}  // namespace

std::span<const AdamWKernel> adamw_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
