#include "kernels/swiglu.h"

#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// y = silu(gate) * up for n elements.
template <class T>
void swiglu_row(const T* gate, const T* up, T* y, int64_t n) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto g = load(d, gate + i, part);
    const auto silu = hn::Mul(g, sigmoid(d, g));
    store(d, hn::Mul(silu, load(d, up + i, part)), y + i, part);
  });
}

// dup = dy * silu(gate);  dgate = dy * up * s * (1 + gate * (1 - s)),  s = sigmoid(gate).
template <class T>
void swiglu_backward_row(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  const auto one = hn::Set(d, A(1));
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto g = load(d, gate + i, part), u = load(d, up + i, part);
    const auto grad = load(d, dy + i, part);
    const auto s = sigmoid(d, g);
    const auto slope = hn::Mul(s, hn::MulAdd(g, hn::Sub(one, s), one));
    store(d, hn::Mul(hn::Mul(grad, u), slope), dgate + i, part);
    store(d, hn::Mul(grad, hn::Mul(g, s)), dup + i, part);
  });
}

void forward_bf16(const bf16* g, const bf16* u, bf16* y, int64_t n) { swiglu_row(g, u, y, n); }
void forward_f32(const float* g, const float* u, float* y, int64_t n) { swiglu_row(g, u, y, n); }
void forward_f64(const double* g, const double* u, double* y, int64_t n) { swiglu_row(g, u, y, n); }
void backward_bf16(const bf16* dy, const bf16* g, const bf16* u, bf16* dg, bf16* du, int64_t n) {
  swiglu_backward_row(dy, g, u, dg, du, n);
}
void backward_f32(const float* dy, const float* g, const float* u, float* dg, float* du,
                  int64_t n) {
  swiglu_backward_row(dy, g, u, dg, du, n);
}
void backward_f64(const double* dy, const double* g, const double* u, double* dg, double* du,
                  int64_t n) {
  swiglu_backward_row(dy, g, u, dg, du, n);
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(forward_bf16);
HWY_EXPORT(forward_f32);
HWY_EXPORT(forward_f64);
HWY_EXPORT(backward_bf16);
HWY_EXPORT(backward_f32);
HWY_EXPORT(backward_f64);

namespace {

constexpr int64_t kElementsPerTask = 8192;

int64_t rows_per_task(int64_t columns) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(columns, 1));
}

template <class T>
using ForwardRow = void (*)(const T*, const T*, T*, int64_t);
template <class T>
using BackwardRow = void (*)(const T*, const T*, const T*, T*, T*, int64_t);

template <class T>
void for_rows(const Context& ctx, const SwigluForward& args, ForwardRow<T> row) {
  if (ctx.measuring() || args.y.empty()) return;
  const int64_t columns = args.y.dim(1);
  ctx.parallel_for(args.y.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      row(args.gate.data<T>() + t * args.gate.stride(0), args.up.data<T>() + t * args.up.stride(0),
          args.y.data<T>() + t * args.y.stride(0), columns);
    }
  });
}

template <class T>
void for_rows(const Context& ctx, const SwigluBackward& args, BackwardRow<T> row) {
  if (ctx.measuring() || args.dy.empty()) return;
  const int64_t columns = args.dy.dim(1);
  ctx.parallel_for(args.dy.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      row(args.dy.data<T>() + t * args.dy.stride(0), args.gate.data<T>() + t * args.gate.stride(0),
          args.up.data<T>() + t * args.up.stride(0),
          args.dgate.data<T>() + t * args.dgate.stride(0),
          args.dup.data<T>() + t * args.dup.stride(0), columns);
    }
  });
}

const SwigluKernel kTable[] = {{"vector", DType::kBF16, always_available,
                                [](const Context& ctx, const SwigluForward& args) {
                                  for_rows<bf16>(ctx, args, HWY_DYNAMIC_DISPATCH(forward_bf16));
                                },
                                [](const Context& ctx, const SwigluBackward& args) {
                                  for_rows<bf16>(ctx, args, HWY_DYNAMIC_DISPATCH(backward_bf16));
                                }},
                               {"vector", DType::kF32, always_available,
                                [](const Context& ctx, const SwigluForward& args) {
                                  for_rows<float>(ctx, args, HWY_DYNAMIC_DISPATCH(forward_f32));
                                },
                                [](const Context& ctx, const SwigluBackward& args) {
                                  for_rows<float>(ctx, args, HWY_DYNAMIC_DISPATCH(backward_f32));
                                }},
                               {"vector", DType::kF64, always_available,
                                [](const Context& ctx, const SwigluForward& args) {
                                  for_rows<double>(ctx, args, HWY_DYNAMIC_DISPATCH(forward_f64));
                                },
                                [](const Context& ctx, const SwigluBackward& args) {
                                  for_rows<double>(ctx, args, HWY_DYNAMIC_DISPATCH(backward_f64));
                                }}};

}  // namespace

std::span<const SwigluKernel> swiglu_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
