#include "kernels/adamw_factors.h"
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
        param(args.param.data<T>()),
        f(args) {}

  template <int kN>
  __device__ void run(int64_t, int64_t i, int64_t count) const {
    const Pack<A, kN> gradient = load<kN>(grad + i, count);
    Pack<A, kN> x = load<kN>(master + i, count);
    Pack<A, kN> first = load<kN>(m + i, count), second = load<kN>(v + i, count);
    Pack<T, kN> rounded;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const A g = gradient.e[k] * f.scale;
      first.e[k] = f.beta1 * first.e[k] + f.rest1 * g;
      second.e[k] = f.beta2 * second.e[k] + f.rest2 * g * g;
      x.e[k] =
          f.keep * x.e[k] - f.rate * (first.e[k] / (sqrt(second.e[k]) * f.correction2 + f.eps));
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
  AdamWFactors<A> f;
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
