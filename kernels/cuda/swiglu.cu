#include "kernels/swiglu.h"

#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <class T>
struct Forward {
  using A = Accumulator<T>;
  Rows<const T> gate, up;
  Rows<T> y;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<T, kN> g = load<kN>(gate.at(row, column), count);
    const Pack<T, kN> u = load<kN>(up.at(row, column), count);
    Pack<T, kN> result;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const A x = static_cast<A>(g.e[i]);
      result.e[i] = T(x / (A(1) + exp(-x)) * static_cast<A>(u.e[i]));
    }
    store(result, y.at(row, column), count);
  }
};

template <class T>
struct Backward {
  using A = Accumulator<T>;
  Rows<const T> dy, gate, up;
  Rows<T> dgate, dup;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<T, kN> g = load<kN>(gate.at(row, column), count);
    const Pack<T, kN> u = load<kN>(up.at(row, column), count);
    const Pack<T, kN> d = load<kN>(dy.at(row, column), count);
    Pack<T, kN> to_gate, to_up;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const A x = static_cast<A>(g.e[i]), grad = static_cast<A>(d.e[i]);
      const A sigmoid = A(1) / (A(1) + exp(-x));
      to_gate.e[i] = T(grad * static_cast<A>(u.e[i]) * sigmoid * (A(1) + x * (A(1) - sigmoid)));
      to_up.e[i] = T(grad * x * sigmoid);
    }
    store(to_gate, dgate.at(row, column), count);
    store(to_up, dup.at(row, column), count);
  }
};

template <class T>
void forward(const Context& ctx, const SwigluForward& args) {
  if (ctx.measuring() || args.y.empty()) return;
  for_pieces<T>(ctx, "swiglu forward", args.y.dim(0), args.y.dim(1),
                vectors_allowed({args.gate, args.up, args.y}),
                Forward<T>{rows_of<T>(args.gate), rows_of<T>(args.up), rows_to<T>(args.y)});
}

template <class T>
void backward(const Context& ctx, const SwigluBackward& args) {
  if (ctx.measuring() || args.dy.empty()) return;
  for_pieces<T>(ctx, "swiglu backward", args.dy.dim(0), args.dy.dim(1),
                vectors_allowed({args.dy, args.gate, args.up, args.dgate, args.dup}),
                Backward<T>{rows_of<T>(args.dy), rows_of<T>(args.gate), rows_of<T>(args.up),
                            rows_to<T>(args.dgate), rows_to<T>(args.dup)});
}

template <class T>
constexpr SwigluKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr SwigluKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const SwigluKernel> swiglu_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
