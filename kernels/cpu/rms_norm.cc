#include "kernels/rms_norm.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 16384;
constexpr int64_t kPartsPerThread = 4;

// Sum over c of f(c), in lanes that the compiler may turn into vectors; a fixed order.
template <class A, class F>
A sum_lanes(int64_t n, F f) {
  constexpr int64_t kLanes = 16;
  std::array<A, kLanes> lanes{};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[static_cast<size_t>(l)] += f(c + l);
  }
  A total = 0;
  for (A lane : lanes) total += lane;
  for (; c < n; ++c) total += f(c);
  return total;
}

template <class T>
void forward(const Context& ctx, const RmsNormForward& args) {
  if (ctx.measuring() || args.x.dim(0) == 0) return;
  using A = Accumulator<T>;
  const int64_t channels = args.x.dim(1);
  const T *all_x = args.x.data<T>(), *weight = args.weight.data<T>();
  T* all_y = args.y.data<T>();
  A* rstd = args.rstd.data<A>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(channels, 1));
  ctx.parallel_for(args.x.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* x = all_x + t * args.x.stride(0);
      T* y = all_y + t * args.y.stride(0);
      const A squares = sum_lanes<A>(channels, [x](int64_t c) {
        const A value = static_cast<A>(x[c]);
        return value * value;
      });
      const A r = 1 / std::sqrt(squares / static_cast<A>(channels) + static_cast<A>(args.eps));
      rstd[t] = r;
      for (int64_t c = 0; c < channels; ++c) {
        y[c] = static_cast<T>(static_cast<A>(x[c]) * r * static_cast<A>(weight[c]));
      }
    }
  });
}

// With g = dy * weight and n = x * rstd:  dx += rstd * (g - n * mean(g * n)),  dweight += dy * n.
template <class T>
void backward_row(const T* dy, const T* x, const T* weight, Accumulator<T> r, int64_t channels,
                  T* dx, Accumulator<T>* dweight) {
  using A = Accumulator<T>;
  const A mean = sum_lanes<A>(channels,
                              [=](int64_t c) {
                                return static_cast<A>(dy[c]) * static_cast<A>(weight[c]) *
                                       static_cast<A>(x[c]) * r;
                              }) /
                 static_cast<A>(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const A normal = static_cast<A>(x[c]) * r, g = static_cast<A>(dy[c]);
    dx[c] =
        static_cast<T>(static_cast<A>(dx[c]) + r * (g * static_cast<A>(weight[c]) - normal * mean));
    dweight[c] += g * normal;
  }
}

template <class T>
void backward(const Context& ctx, const RmsNormBackward& args) {
  using A = Accumulator<T>;
  const int64_t channels = args.x.dim(1), parts = kPartsPerThread * ctx.pool->threads();
  // dweight is a sum over rows: one partial sum per part, added in order afterwards.
  const Arena::Scope scope(*ctx.scratch);
  const TensorView partial = ctx.scratch->allocate(accumulator(args.x.dtype()), {parts, channels});
  if (ctx.measuring() || args.x.empty()) return;
  A* sums = partial.data<A>();
  ctx.pool->run(
      parts,
      [&](int64_t part, int) {
        A* dweight = sums + part * channels;
        std::fill_n(dweight, channels, A(0));
        const Range rows = part_of(args.x.dim(0), part, parts);
        for (int64_t t = rows.begin; t < rows.end; ++t) {
          backward_row(args.dy.data<T>() + t * args.dy.stride(0),
                       args.x.data<T>() + t * args.x.stride(0), args.weight.data<T>(),
                       args.rstd.data<A>()[t], channels, args.dx.data<T>() + t * args.dx.stride(0),
                       dweight);
        }
      },
      ctx.poll);
  A* dweight = args.dweight.data<A>();
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t c = 0; c < channels; ++c) dweight[c] += sums[part * channels + c];
  }
}

constexpr RmsNormKernel kTable[] = {
    {"cpu", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"cpu", DType::kF32, always_available, forward<float>, backward<float>},
    {"cpu", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const RmsNormKernel> rms_norm_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
