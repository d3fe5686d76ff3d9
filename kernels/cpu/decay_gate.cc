#include "kernels/decay_gate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/by_dtype.h"
#include "kernels/cpu/decay_gate_rows.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decay_gate.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/activation-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void forward_row(const T* x, const Accumulator<T>* rate, const T* bias, int64_t n,
                 Accumulator<T>* y) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto z = hn::Add(load(d, x + i, part), load(d, bias + i, part));
    const auto soft = softplus(d, z, sides(d, z));
    store(d, hn::Neg(hn::Mul(load(d, rate + i, part), soft)), y + i, part);
  });
}

template <class T>
void backward_row(const Accumulator<T>* dy, const T* x, const Accumulator<T>* rate, const T* bias,
                  int64_t n, T* dx, Accumulator<T>* da_log, Accumulator<T>* dbias) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto z = hn::Add(load(d, x + i, part), load(d, bias + i, part));
    const auto side = sides(d, z);
    const auto grad = hn::Neg(hn::Mul(load(d, dy + i, part), load(d, rate + i, part)));
    const auto sigma = hn::IfThenElse(hn::Lt(z, hn::Zero(d)), side.smaller, side.larger);
    const auto slope = hn::Mul(grad, sigma);
    store(d, slope, dx + i, part);
    store(d, hn::Add(load(d, dbias + i, part), slope), dbias + i, part);
    store(d, hn::MulAdd(grad, softplus(d, z, side), load(d, da_log + i, part)), da_log + i, part);
  });
}

template <class T>
DecayGateRows<T> rows() {
  return {forward_row<T>, backward_row<T>};
}
ByDType<DecayGateRows> decay_gate_rows() { return {rows<bf16>(), rows<float>(), rows<double>()}; }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(decay_gate_rows);

namespace {

constexpr int64_t kElementsPerTask = 4096;
// Sums of parameters' gradients: a part has this many rows, or more so that there are no more parts
// than below. Constants, so that the order of the sum does not depend on the threads.
constexpr int64_t kRowsPerPart = 256;
constexpr int64_t kParts = 64;

template <class T>
DecayGateRows<T> rows() {
  return std::get<DecayGateRows<T>>(HWY_DYNAMIC_DISPATCH(decay_gate_rows)());
}

// e^a_log
template <class T>
std::vector<Accumulator<T>> rates(const ConstTensorView& a_log) {
  std::vector<Accumulator<T>> result;
  for (int64_t h = 0; h < a_log.dim(0); ++h) {
    result.push_back(std::exp(static_cast<Accumulator<T>>(a_log.data<T>()[h])));
  }
  return result;
}

template <class T>
void forward(const Context& ctx, const DecayGateForward& args) {
  if (ctx.measuring() || args.x.empty()) return;
  using A = Accumulator<T>;
  const int64_t heads = args.x.dim(1);
  const std::vector<A> rate = rates<T>(args.a_log);
  const auto row = rows<T>().forward;
  ctx.parallel_for(args.x.dim(0), std::max<int64_t>(1, kElementsPerTask / heads),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t t = begin; t < end; ++t) {
                       row(args.x.data<T>() + t * args.x.stride(0), rate.data(),
                           args.bias.data<T>(), heads, args.y.data<A>() + t * args.y.stride(0));
                     }
                   });
}

template <class T>
void backward(const Context& ctx, const DecayGateBackward& args) {
  using A = Accumulator<T>;
  const int64_t tokens = args.x.dim(0), heads = args.x.dim(1);
  const int64_t parts = std::clamp<int64_t>(tokens / kRowsPerPart, 1, kParts);
  const Arena::Scope scope(*ctx.scratch);
  const TensorView partial = ctx.scratch->allocate(dtype_of<A>, {parts, 2, heads});
  if (ctx.measuring() || args.x.empty()) return;
  const std::vector<A> rate = rates<T>(args.a_log);
  const auto row = rows<T>().backward;
  ctx.pool->run(
      parts,
      [&](int64_t part, int) {
        A* sums = partial.data<A>() + part * 2 * heads;
        std::fill_n(sums, 2 * heads, A(0));
        const Range range = part_of(tokens, part, parts);
        for (int64_t t = range.begin; t < range.end; ++t) {
          row(args.dy.data<A>() + t * args.dy.stride(0), args.x.data<T>() + t * args.x.stride(0),
              rate.data(), args.bias.data<T>(), heads, args.dx.data<T>() + t * args.dx.stride(0),
              sums, sums + heads);
        }
      },
      ctx.poll);
  for (int64_t part = 0; part < parts; ++part) {
    const A* sums = partial.data<A>() + part * 2 * heads;
    for (int64_t h = 0; h < heads; ++h) {
      args.da_log.data<A>()[h] += sums[h];
      args.dbias.data<A>()[h] += sums[heads + h];
    }
  }
}

constexpr DecayGateKernel kTable[] = {
    {"vector", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"vector", DType::kF32, always_available, forward<float>, backward<float>},
    {"vector", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const DecayGateKernel> decay_gate_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
