#include "kernels/linear_cross_entropy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/tables.h"
#include "kernels/gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_cross_entropy.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// Replaces a row of logits by exp(logit - max), or leaves it if !keep. Returns
// log(sum(exp(logit))).
template <class A>
A log_sum_exp(A* row, int64_t n, bool keep, A& sum) {
  const VectorOf<A> d;
  auto largest = hn::Set(d, -std::numeric_limits<A>::infinity());
  A tail_largest = -std::numeric_limits<A>::infinity();
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) largest = hn::Max(largest, hn::LoadU(d, row + i));
  for (; i < n; ++i) tail_largest = std::max(tail_largest, row[i]);
  const A max = std::max(tail_largest, hn::GetLane(hn::MaxOfLanes(d, largest)));
  auto total = hn::Zero(d);
  A tail_total = 0;
  const auto vmax = hn::Set(d, max);
  for (i = 0; i + lanes <= n; i += lanes) {
    const auto e = exp(d, hn::Sub(hn::LoadU(d, row + i), vmax));
    total = hn::Add(total, e);
    if (keep) hn::StoreU(e, d, row + i);
  }
  for (; i < n; ++i) {
    const A e = std::exp(row[i] - max);
    tail_total += e;
    if (keep) row[i] = e;
  }
  sum = hn::GetLane(hn::SumOfLanes(d, total)) + tail_total;
  return max + std::log(sum);
}

float log_sum_exp_f32(float* row, int64_t n, bool keep, float& sum) {
  return log_sum_exp(row, n, keep, sum);
}
double log_sum_exp_f64(double* row, int64_t n, bool keep, double& sum) {
  return log_sum_exp(row, n, keep, sum);
}

// to[i] = from[i] * factor, rounded. `to` may be the front of `from`: a vector is read before it is
// written, and element i is never stored behind where it was read.
template <class T, class A>
void scale(const A* from, int64_t n, A factor, T* to) {
  const VectorOf<A> d;
  const auto f = hn::Set(d, factor);
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    store(d, hn::Mul(load(d, from + i, part), f), to + i, part);
  });
}
void scale_bf16(const float* from, int64_t n, float factor, bf16* to) {
  scale(from, n, factor, to);
}
void scale_f32(const float* from, int64_t n, float factor, float* to) {
  scale(from, n, factor, to);
}
void scale_f64(const double* from, int64_t n, double factor, double* to) {
  scale(from, n, factor, to);
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(log_sum_exp_f32);
HWY_EXPORT(log_sum_exp_f64);
HWY_EXPORT(scale_bf16);
HWY_EXPORT(scale_f32);
HWY_EXPORT(scale_f64);

namespace {

constexpr int64_t kTileBytes = int64_t{16} << 20;
constexpr int64_t kElementsPerTask = 16384;

float log_sum_exp(float* row, int64_t n, bool keep, float& sum) {
  return HWY_DYNAMIC_DISPATCH(log_sum_exp_f32)(row, n, keep, sum);
}
double log_sum_exp(double* row, int64_t n, bool keep, double& sum) {
  return HWY_DYNAMIC_DISPATCH(log_sum_exp_f64)(row, n, keep, sum);
}
void scale(const float* from, int64_t n, float factor, bf16* to) {
  HWY_DYNAMIC_DISPATCH(scale_bf16)(from, n, factor, to);
}
void scale(const float* from, int64_t n, float factor, float* to) {
  HWY_DYNAMIC_DISPATCH(scale_f32)(from, n, factor, to);
}
void scale(const double* from, int64_t n, double factor, double* to) {
  HWY_DYNAMIC_DISPATCH(scale_f64)(from, n, factor, to);
}

void check_labels(const int32_t* labels, int64_t count, int64_t vocabulary) {
  for (int64_t t = 0; t < count; ++t) {
    if (labels[t] < -1 || labels[t] >= vocabulary) {
      fail(ErrorCode::kData, absl::StrCat("label ", labels[t], " at row ", t,
                                          " is neither -1 nor in the vocabulary [0, ", vocabulary,
                                          "); tokenize the data for this model"));
    }
  }
}

// Loss of one row, and its logits turned into d(loss)/d(logits) in the storage type, which takes
// the place of the logits: the rows of the gradient lie as far apart as those of the logits.
template <class T>
Accumulator<T> loss_row(Accumulator<T>* logits, int64_t vocabulary, int32_t label, bool gradients,
                        double grad_scale) {
  using A = Accumulator<T>;
  T* gradient = reinterpret_cast<T*>(logits);
  if (label < 0) {
    if (gradients) std::fill_n(gradient, vocabulary, T(0.0f));
    return A(0);
  }
  const A target = logits[label];
  A sum = 0;
  const A lse = log_sum_exp(logits, vocabulary, gradients, sum);
  if (gradients) {
    const A factor = static_cast<A>(grad_scale) / sum;
    const A at_label = logits[label] * factor - static_cast<A>(grad_scale);
    scale(logits, vocabulary, factor, gradient);
    gradient[label] = static_cast<T>(at_label);
  }
  return lse - target;
}

template <class T>
class Tiles {
  using A = Accumulator<T>;

 public:
  Tiles(const Context& ctx, const LinearCrossEntropy& args)
      : ctx_(ctx), args_(args), tokens_(args.x.dim(0)), vocabulary_(args.weight.dim(0)) {
    const int64_t row_bytes = std::max<int64_t>(1, vocabulary_ * size_of(dtype_of<A>));
    rows_ = args.tile_rows > 0 ? args.tile_rows : std::max<int64_t>(1, kTileBytes / row_bytes);
    rows_ = std::min(rows_, tokens_);
    logits_ = ctx.scratch->allocate(dtype_of<A>, {rows_, vocabulary_});
  }

  void run() const {
    if (tokens_ == 0) return;
    if (ctx_.measuring()) {
      // Products of the two tile heights that occur: their scratch is all that varies.
      tile(0, rows_);
      if (tokens_ % rows_ != 0) tile(0, tokens_ % rows_);
      return;
    }
    check_labels(args_.labels.data<int32_t>(), tokens_, vocabulary_);
    for (int64_t t = 0; t < tokens_; t += rows_) tile(t, std::min(rows_, tokens_ - t));
  }

 private:
  void tile(int64_t first, int64_t count) const {
    const TensorView logits = logits_.rows(0, count);
    const ConstTensorView x = args_.x.rows(first, count);
    gemm(ctx_, {.transpose_b = Transpose::kYes, .a = x, .b = args_.weight, .c = logits});
    if (!ctx_.measuring()) losses(first, count);
    if (!args_.with_gradients) return;
    // The storage type's rows lie at the start of the accumulator type's.
    const TensorView gradient(logits.raw(), dtype_of<T>, {count, vocabulary_},
                              {vocabulary_ * (size_of(dtype_of<A>) / size_of(dtype_of<T>)), 1},
                              logits.device());
    gemm(ctx_, {.a = gradient, .b = args_.weight, .c = args_.dx.rows(first, count)});
    gemm(ctx_,
         {.transpose_a = Transpose::kYes, .a = gradient, .b = x, .c = args_.dweight, .beta = 1.0});
  }

  void losses(int64_t first, int64_t count) const {
    A* logits = logits_.data<A>();
    const int32_t* labels = args_.labels.data<int32_t>() + first;
    A* row_loss = args_.row_loss.data<A>() + first;
    const int64_t grain =
        std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(vocabulary_, 1));
    ctx_.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        row_loss[t] = loss_row<T>(logits + t * vocabulary_, vocabulary_, labels[t],
                                  args_.with_gradients, args_.grad_scale);
      }
    });
  }

  const Context& ctx_;
  const LinearCrossEntropy& args_;
  int64_t tokens_, vocabulary_, rows_ = 0;
  TensorView logits_;
};

template <class T>
void run(const Context& ctx, const LinearCrossEntropy& args) {
  const Arena::Scope scope(*ctx.scratch);
  Tiles<T>(ctx, args).run();
}

constexpr LinearCrossEntropyKernel kTable[] = {
    {"tiled", DType::kBF16, always_available, run<bf16>},
    {"tiled", DType::kF32, always_available, run<float>},
    {"tiled", DType::kF64, always_available, run<double>}};

}  // namespace

std::span<const LinearCrossEntropyKernel> linear_cross_entropy_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
