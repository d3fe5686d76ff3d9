#include "kernels/linear_cross_entropy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/by_dtype.h"
#include "kernels/cpu/softmax_rows.h"
#include "kernels/cpu/tables.h"
#include "kernels/linear_cross_entropy_tiles.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_cross_entropy.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kBlock = 1024;  // logits that stay in the first cache from one look to the next

// log(sum(exp(logit))) of a row in one pass: a sum relative to the largest logit so far, which is
// scaled down when a block has a larger one (the online softmax of Milakov & Gimelshein 2018).
template <class A>
A log_sum_exp(const A* row, int64_t n) {
  const VectorOf<A> d;
  constexpr A kLowest = std::numeric_limits<A>::lowest();
  A max = kLowest, sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const A* block = row + begin;
    const int64_t length = std::min(kBlock, n - begin);
    auto largest = hn::Set(d, max);
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + lanes <= length; i += lanes) largest = hn::Max(largest, hn::LoadU(d, block + i));
    A block_max = hn::GetLane(hn::MaxOfLanes(d, largest));
    for (; i < length; ++i) block_max = std::max(block_max, block[i]);
    // A NaN may pass both comparisons; the sum below shows it.
    if (block_max > max) {
      sum *= std::exp(max - block_max);
      max = block_max;
    }
    const auto reference = hn::Set(d, max);
    sum += sum_vectors(d, length, [&](int64_t at, auto part) HWY_ATTR {
      const auto e = exp(d, hn::Sub(load(d, block + at, part), reference));
      if constexpr (std::is_same_v<decltype(part), Some>) {
        return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(part.count)), e);
      }
      return e;
    });
  }
  return max + std::log(sum);
}

// gradient[i] = exp(logit[i] - lse) * factor, rounded. The gradient may take the place of the
// logits, though its elements be narrower: a vector is read before it is written, and element i is
// never stored behind where it was read.
template <class T>
void softmax(const Accumulator<T>* logits, int64_t n, Accumulator<T> lse, Accumulator<T> factor,
             T* gradient) {
  const VectorOf<Accumulator<T>> d;
  const auto reference = hn::Set(d, lse), f = hn::Set(d, factor);
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    const auto p = exp(d, hn::Sub(load(d, logits + i, part), reference));
    store(d, hn::Mul(p, f), gradient + i, part);
  });
}

template <class T>
SoftmaxRows<T> rows() {
  return {log_sum_exp<Accumulator<T>>, softmax<T>};
}
ByDType<SoftmaxRows> softmax_rows() { return {rows<bf16>(), rows<float>(), rows<double>()}; }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(softmax_rows);

namespace {

constexpr int64_t kTileBytes = int64_t{16} << 20;
constexpr int64_t kElementsPerTask = 16384;

template <class T>
SoftmaxRows<T> rows() {
  return std::get<SoftmaxRows<T>>(HWY_DYNAMIC_DISPATCH(softmax_rows)());
}

// Loss of one row, and its logits turned into d(loss)/d(logits) in the storage type, which takes
// the place of the logits: the rows of the gradient lie as far apart as those of the logits.
template <class T>
Accumulator<T> loss_row(const SoftmaxRows<T>& rows, Accumulator<T>* logits, int64_t vocabulary,
                        int32_t label, bool gradients, double grad_scale) {
  using A = Accumulator<T>;
  T* gradient = reinterpret_cast<T*>(logits);
  if (label < 0) {
    if (gradients) std::fill_n(gradient, vocabulary, T(0.0f));
    return A(0);
  }
  const A target = logits[label], lse = rows.log_sum_exp(logits, vocabulary);
  if (gradients) {
    const A factor = static_cast<A>(grad_scale);
    rows.softmax(logits, vocabulary, lse, factor, gradient);
    gradient[label] = static_cast<T>(std::expm1(target - lse) * factor);
  }
  return lse - target;
}

template <class T>
void run(const Context& ctx, const LinearCrossEntropy& args) {
  using A = Accumulator<T>;
  if (!ctx.measuring()) check_labels(args.labels.span<int32_t>(), args.weight.dim(0));
  const SoftmaxRows<T> softmax = rows<T>();
  const auto losses = [&](const TensorView& tile, int64_t first) {
    const int64_t vocabulary = tile.dim(1);
    A* logits = tile.data<A>();
    const int32_t* labels = args.labels.data<int32_t>() + first;
    A* row_loss = args.row_loss.data<A>() + first;
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(vocabulary, 1));
    ctx.parallel_for(tile.dim(0), grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        row_loss[t] = loss_row<T>(softmax, logits + t * tile.stride(0), vocabulary, labels[t],
                                  args.with_gradients, args.grad_scale);
      }
    });
  };
  for_loss_tiles<T>(ctx, args, {.bytes = kTileBytes}, losses);
}

constexpr LinearCrossEntropyKernel kTable[] = {
    {"tiled", DType::kBF16, always_available, run<bf16>},
    {"tiled", DType::kF32, always_available, run<float>},
    {"tiled", DType::kF64, always_available, run<double>}};

}  // namespace

std::span<const LinearCrossEntropyKernel> linear_cross_entropy_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
