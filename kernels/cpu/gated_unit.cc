#include "kernels/gated_unit.h"

#include "kernels/cpu/by_dtype.h"
#include "kernels/cpu/gated_unit_rows.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gated_unit.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/activation-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <Activation kAct, class T>
void forward_row(const T* gate, const T* up, int64_t n, T* y) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto g = load(d, gate + i, part);
    store(d, hn::Mul(activate<kAct>(d, g), load(d, up + i, part)), y + i, part);
  });
}

template <Activation kAct, class T>
void backward_row(const T* dy, const T* gate, const T* up, int64_t n, T* dgate, T* dup) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto u = load(d, up + i, part), grad = load(d, dy + i, part);
    const auto act = activate_with_slope<kAct>(d, load(d, gate + i, part));
    store(d, hn::Mul(hn::Mul(grad, u), act.slope), dgate + i, part);
    store(d, hn::Mul(grad, act.value), dup + i, part);
  });
}

template <class T>
GatedUnitRows<T> rows(Activation activation) {
  using enum Activation;
  switch (activation) {
    case kSilu:
      return {forward_row<kSilu, T>, backward_row<kSilu, T>};
    case kSigmoid:
      return {forward_row<kSigmoid, T>, backward_row<kSigmoid, T>};
    default:  // the door lets no other pass
      return {forward_row<kIdentity, T>, backward_row<kIdentity, T>};
  }
}
ByDType<GatedUnitRows> gated_unit_rows(Activation activation) {
  return {rows<bf16>(activation), rows<float>(activation), rows<double>(activation)};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(gated_unit_rows);

namespace {

constexpr int64_t kElementsPerTask = 8192;

int64_t rows_per_task(int64_t columns) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(columns, 1));
}

template <class T>
GatedUnitRows<T> rows(Activation activation) {
  return std::get<GatedUnitRows<T>>(HWY_DYNAMIC_DISPATCH(gated_unit_rows)(activation));
}

template <class T>
void forward(const Context& ctx, const GatedUnitForward& args) {
  if (ctx.measuring() || args.y.empty()) return;
  const int64_t columns = args.y.dim(1);
  const auto row = rows<T>(args.activation).forward;
  ctx.parallel_for(args.y.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      row(args.gate.data<T>() + t * args.gate.stride(0), args.up.data<T>() + t * args.up.stride(0),
          columns, args.y.data<T>() + t * args.y.stride(0));
    }
  });
}

template <class T>
void backward(const Context& ctx, const GatedUnitBackward& args) {
  if (ctx.measuring() || args.dy.empty()) return;
  const int64_t columns = args.dy.dim(1);
  const auto row = rows<T>(args.activation).backward;
  ctx.parallel_for(args.dy.dim(0), rows_per_task(columns), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      row(args.dy.data<T>() + t * args.dy.stride(0), args.gate.data<T>() + t * args.gate.stride(0),
          args.up.data<T>() + t * args.up.stride(0), columns,
          args.dgate.data<T>() + t * args.dgate.stride(0),
          args.dup.data<T>() + t * args.dup.stride(0));
    }
  });
}

constexpr GatedUnitKernel kTable[] = {
    {"vector", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"vector", DType::kF32, always_available, forward<float>, backward<float>},
    {"vector", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const GatedUnitKernel> gated_unit_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
