#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <class T>
struct Update {
  using A = Accumulator<T>;

  explicit Update(const AdamW& args)
      : grad(args.grad.data<A>()),
        master(args.master.data<A>()),
        m(args.m.data<A>()),
        v(args.v.data<A>()),
        param(args.param.data<T>()) {
    const auto steps = static_cast<double>(args.step);
    beta1 = static_cast<A>(args.beta1), beta2 = static_cast<A>(args.beta2);
    rest1 = static_cast<A>(1 - args.beta1), rest2 = static_cast<A>(1 - args.beta2);
    rate = static_cast<A>(args.learning_rate / (1 - std::pow(args.beta1, steps)));
    correction2 = static_cast<A>(1 / std::sqrt(1 - std::pow(args.beta2, steps)));
    keep = static_cast<A>(1 - args.learning_rate * args.weight_decay);
    eps = static_cast<A>(args.eps), scale = static_cast<A>(args.grad_scale);
  }

  template <int kN>
  __device__ void run(int64_t, int64_t i, int64_t count) const {
    const Pack<A, kN> gradient = load<kN>(grad + i, count);
    Pack<A, kN> x = load<kN>(master + i, count);
    Pack<A, kN> first = load<kN>(m + i, count), second = load<kN>(v + i, count);
    Pack<T, kN> rounded;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const A g = gradient.e[k] * scale;
      first.e[k] = beta1 * first.e[k] + rest1 * g;
      second.e[k] = beta2 * second.e[k] + rest2 * g * g;
      x.e[k] = keep * x.e[k] - rate * (first.e[k] / (sqrt(second.e[k]) * correction2 + eps));
      rounded.e[k] = T(x.e[k]);
    }
    store(first, m + i, count);
    store(second, v + i, count);
    store(x, master + i, count);
    if (static_cast<const void*>(param) != master) store(rounded, param + i, count);
  }

  const A* grad;
  A *master, *m, *v;
  T* param;
  // Rounded once; with the bias corrections 1 - beta^t of both moments.
  A beta1, beta2, rest1, rest2, rate, correction2, keep, eps, scale;
};

template <class T>
void run(const Context& ctx, const AdamW& args) {
  if (ctx.measuring() || args.param.empty()) return;
  for_pieces<T>(ctx, "adamw", 1, args.param.elements(),
                vectors_allowed({args.grad, args.master, args.m, args.v, args.param}),
                Update<T>(args));
}

constexpr AdamWKernel kTable[] = {{"cuda", DType::kBF16, available, run<bf16>},
                                  {"cuda", DType::kF32, available, run<float>},
                                  {"cuda", DType::kF64, available, run<double>}};

}  // namespace

std::span<const AdamWKernel> adamw_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
