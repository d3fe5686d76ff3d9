#include "kernels/gated_unit.h"

#include "kernels/cuda/activations.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <Activation kAct, class T>
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
      result.e[i] = T(activate<kAct>(static_cast<A>(g.e[i])) * static_cast<A>(u.e[i]));
    }
    store(result, y.at(row, column), count);
  }
};

template <Activation kAct, class T>
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
      const ValueAndSlope<A> act = activate_with_slope<kAct>(static_cast<A>(g.e[i]));
      const A grad = static_cast<A>(d.e[i]);
      to_gate.e[i] = T(grad * static_cast<A>(u.e[i]) * act.slope);
      to_up.e[i] = T(grad * act.value);
    }
    store(to_gate, dgate.at(row, column), count);
    store(to_up, dup.at(row, column), count);
  }
};

// f.operator()<kAct>() for the activations that the door lets pass.
template <class F>
void visit(Activation activation, F&& f) {
  using enum Activation;
  if (activation == kSilu) return f.template operator()<kSilu>();
  if (activation == kSigmoid) return f.template operator()<kSigmoid>();
  f.template operator()<kIdentity>();
}

template <class T>
void forward(const Context& ctx, const GatedUnitForward& args) {
  if (ctx.measuring() || args.y.empty()) return;
  const bool vectors = vectors_allowed({args.gate, args.up, args.y});
  visit(args.activation, [&]<Activation kAct>() {
    for_pieces<T>(ctx, "gated_unit forward", args.y.dim(0), args.y.dim(1), vectors,
                  Forward<kAct, T>{rows_of<T>(args.gate), rows_of<T>(args.up), rows_to<T>(args.y)});
  });
}

template <class T>
void backward(const Context& ctx, const GatedUnitBackward& args) {
  if (ctx.measuring() || args.dy.empty()) return;
  const bool vectors = vectors_allowed({args.dy, args.gate, args.up, args.dgate, args.dup});
  visit(args.activation, [&]<Activation kAct>() {
    for_pieces<T>(ctx, "gated_unit backward", args.dy.dim(0), args.dy.dim(1), vectors,
                  Backward<kAct, T>{rows_of<T>(args.dy), rows_of<T>(args.gate), rows_of<T>(args.up),
                                    rows_to<T>(args.dgate), rows_to<T>(args.dup)});
  });
}

template <class T>
constexpr GatedUnitKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr GatedUnitKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const GatedUnitKernel> gated_unit_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
