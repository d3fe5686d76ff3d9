#include "kernels/activation.h"

#include "kernels/cuda/activations.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <Activation kAct, class T, class Y>
struct Forward {
  using A = Accumulator<T>;
  A scale;
  Rows<const T> x;
  Rows<Y> y;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<T, kN> from = load<kN>(x.at(row, column), count);
    Pack<Y, kN> to;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      to.e[i] = Y(scale * activate<kAct>(static_cast<A>(from.e[i])));
    }
    store(to, y.at(row, column), count);
  }
};

template <Activation kAct, class T, class Y>
struct Backward {
  using A = Accumulator<T>;
  A scale;
  Rows<const Y> dy;
  Rows<const T> x;
  Rows<T> dx;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<T, kN> from = load<kN>(x.at(row, column), count);
    const Pack<Y, kN> grad = load<kN>(dy.at(row, column), count);
    Pack<T, kN> to;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const A slope = activate_with_slope<kAct>(static_cast<A>(from.e[i])).slope;
      to.e[i] = T(scale * static_cast<A>(grad.e[i]) * slope);
    }
    store(to, dx.at(row, column), count);
  }
};

// f.operator()<kAct, Y>() where Y is the type of y: T or its accumulator type.
template <class T, class F>
void visit(Activation activation, DType wide, F&& f) {
  using enum Activation;
  const auto with = [&]<Activation kAct>() {
    if (wide == dtype_of<T>) {
      f.template operator()<kAct, T>();
    } else {
      f.template operator()<kAct, Accumulator<T>>();
    }
  };
  switch (activation) {
    case kIdentity:
      return with.template operator()<kIdentity>();
    case kSilu:
      return with.template operator()<kSilu>();
    case kSigmoid:
      return with.template operator()<kSigmoid>();
    case kLogSigmoid:
      return with.template operator()<kLogSigmoid>();
  }
}

template <class T>
void forward(const Context& ctx, const ActivationForward& args) {
  if (ctx.measuring() || args.x.empty()) return;
  const auto scale = static_cast<Accumulator<T>>(args.scale);
  visit<T>(args.activation, args.y.dtype(), [&]<Activation kAct, class Y>() {
    for_pieces<T>(ctx, "activation forward", args.x.dim(0), args.x.dim(1),
                  vectors_allowed({args.x, args.y}),
                  Forward<kAct, T, Y>{scale, rows_of<T>(args.x), rows_to<Y>(args.y)});
  });
}

template <class T>
void backward(const Context& ctx, const ActivationBackward& args) {
  if (ctx.measuring() || args.x.empty()) return;
  const auto scale = static_cast<Accumulator<T>>(args.scale);
  visit<T>(args.activation, args.dy.dtype(), [&]<Activation kAct, class Y>() {
    for_pieces<T>(
        ctx, "activation backward", args.x.dim(0), args.x.dim(1),
        vectors_allowed({args.dy, args.x, args.dx}),
        Backward<kAct, T, Y>{scale, rows_of<Y>(args.dy), rows_of<T>(args.x), rows_to<T>(args.dx)});
  });
}

template <class T>
constexpr ActivationKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr ActivationKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const ActivationKernel> activation_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
