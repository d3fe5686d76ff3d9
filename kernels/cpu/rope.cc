#include "kernels/rope.h"

#include <algorithm>

#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 16384;

template <class T>
void rotate(const Accumulator<T>* cos, const Accumulator<T>* sin, Accumulator<T> sign, int64_t half,
            T* x) {
  using A = Accumulator<T>;
  for (int64_t d = 0; d < half; ++d) {
    const A a = static_cast<A>(x[d]), b = static_cast<A>(x[d + half]);
    const A s = sign * sin[d];
    x[d] = static_cast<T>(a * cos[d] - b * s);
    x[d + half] = static_cast<T>(b * cos[d] + a * s);
  }
}

template <class T>
void run(const Context& ctx, const Rope& args) {
  if (ctx.measuring() || args.x.empty()) return;
  using A = Accumulator<T>;
  const int64_t heads = args.x.dim(1), half = args.x.dim(2) / 2;
  const A *cos = args.cos.data<A>(), *sin = args.sin.data<A>();
  const A sign = args.inverse ? A(-1) : A(1);
  T* x = args.x.data<T>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (heads * half * 2));
  ctx.parallel_for(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        rotate<T>(cos + t * half, sin + t * half, sign, half,
                  x + t * args.x.stride(0) + h * args.x.stride(1));
      }
    }
  });
}

constexpr RopeKernel kTable[] = {{"cpu", DType::kBF16, always_available, run<bf16>},
                                 {"cpu", DType::kF32, always_available, run<float>},
                                 {"cpu", DType::kF64, always_available, run<double>}};

}  // namespace

std::span<const RopeKernel> rope_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
