#include "kernels/activation.h"

#include "kernels/cpu/activation_rows.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/activation-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <Activation kAct, class T, class Y>
void forward_row(const T* x, Accumulator<T> scale, int64_t n, Y* y) {
  const VectorOf<Accumulator<T>> d;
  const auto factor = hn::Set(d, scale);
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    store(d, hn::Mul(factor, activate<kAct>(d, load(d, x + i, part))), y + i, part);
  });
}

template <Activation kAct, class T, class Y>
void backward_row(const Y* dy, const T* x, Accumulator<T> scale, int64_t n, T* dx) {
  const VectorOf<Accumulator<T>> d;
  const auto factor = hn::Set(d, scale);
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto slope = activate_with_slope<kAct>(d, load(d, x + i, part)).slope;
    store(d, hn::Mul(hn::Mul(factor, load(d, dy + i, part)), slope), dx + i, part);
  });
}

template <class T, class Y>
ActivationRows<T, Y> rows(Activation activation) {
  using enum Activation;
  switch (activation) {
    case kSilu:
      return {forward_row<kSilu, T, Y>, backward_row<kSilu, T, Y>};
    case kSigmoid:
      return {forward_row<kSigmoid, T, Y>, backward_row<kSigmoid, T, Y>};
    case kLogSigmoid:
      return {forward_row<kLogSigmoid, T, Y>, backward_row<kLogSigmoid, T, Y>};
    case kIdentity:
      break;
  }
  return {forward_row<kIdentity, T, Y>, backward_row<kIdentity, T, Y>};
}
ActivationRowsOfAll activation_rows(Activation activation) {
  return {rows<bf16, bf16>(activation), rows<bf16, float>(activation),
          rows<float, float>(activation), rows<double, double>(activation)};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(activation_rows);

namespace {

constexpr int64_t kElementsPerTask = 8192;

int64_t rows_per_task(int64_t columns) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(columns, 1));
}

template <class T, class Y>
ActivationRows<T, Y> rows(Activation activation) {
  return std::get<ActivationRows<T, Y>>(HWY_DYNAMIC_DISPATCH(activation_rows)(activation));
}

template <class T, class Y>
void run_forward(const Context& ctx, const ActivationForward& args) {
  const int64_t columns = args.x.dim(1);
  const auto row = rows<T, Y>(args.activation).forward;
  const auto scale = static_cast<Accumulator<T>>(args.scale);
  ctx.parallel_for(args.x.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      row(args.x.data<T>() + t * args.x.stride(0), scale, columns,
          args.y.data<Y>() + t * args.y.stride(0));
    }
  });
}

template <class T, class Y>
void run_backward(const Context& ctx, const ActivationBackward& args) {
  const int64_t columns = args.x.dim(1);
  const auto row = rows<T, Y>(args.activation).backward;
  const auto scale = static_cast<Accumulator<T>>(args.scale);
  ctx.parallel_for(args.x.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      row(args.dy.data<Y>() + t * args.dy.stride(0), args.x.data<T>() + t * args.x.stride(0), scale,
          columns, args.dx.data<T>() + t * args.dx.stride(0));
    }
  });
}

template <class T>
void forward(const Context& ctx, const ActivationForward& args) {
  if (ctx.measuring() || args.x.empty()) return;
  if (args.y.dtype() == dtype_of<T>) {
    run_forward<T, T>(ctx, args);
  } else {
    run_forward<T, Accumulator<T>>(ctx, args);
  }
}

template <class T>
void backward(const Context& ctx, const ActivationBackward& args) {
  if (ctx.measuring() || args.x.empty()) return;
  if (args.dy.dtype() == dtype_of<T>) {
    run_backward<T, T>(ctx, args);
  } else {
    run_backward<T, Accumulator<T>>(ctx, args);
  }
}

constexpr ActivationKernel kTable[] = {
    {"vector", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"vector", DType::kF32, always_available, forward<float>, backward<float>},
    {"vector", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const ActivationKernel> activation_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
