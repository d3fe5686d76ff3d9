// One pass over memory, which attention itself makes hundreds of: plain loops in parallel.
#include "kernels/attention_sink.h"

#include <algorithm>

#include "kernels/cpu/tables.h"
#include "kernels/segment.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 16384;
constexpr int64_t kQueriesPerSum = 2048;  // a constant: sums do not depend on the threads

template <class T>
void forward(const Context& ctx, const AttentionSinkForward& args) {
  using A = Accumulator<T>;
  if (ctx.measuring() || args.lse.empty()) return;
  const int64_t queries = args.out_acc.dim(0), heads = args.out_acc.dim(1);
  const int64_t dim = args.out_acc.dim(2);
  const T* sink = args.sink.data<T>();
  A *out = args.out_acc.data<A>(), *lse = args.lse.data<A>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, heads * dim));
  ctx.parallel_for(queries, grain, [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        A& row_lse = lse[h * queries + t];
        const MergeFactors<A> f = merge_factors(row_lse, static_cast<A>(sink[h]));
        row_lse = f.lse;
        A* row = out + (t * heads + h) * dim;
        for (int64_t d = 0; d < dim; ++d) row[d] *= f.first;
      }
    }
  });
}

template <class T>
void backward(const Context& ctx, const AttentionSinkBackward& args) {
  using A = Accumulator<T>;
  const int64_t heads = args.lse.dim(0), queries = args.lse.dim(1);
  const int64_t parts = (queries + kQueriesPerSum - 1) / kQueriesPerSum;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView sums = ctx.scratch->allocate(DType::kF64, {heads, parts});
  if (ctx.measuring() || args.lse.empty()) return;
  const T* sink = args.sink.data<T>();
  const A *lse = args.lse.data<A>(), *delta = args.delta.data<A>();
  double* sum = sums.data<double>();
  ctx.parallel_for(heads * parts, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t h = i / parts, first = i % parts * kQueriesPerSum;
      const A of_head = static_cast<A>(sink[h]);
      double total = 0;
      for (int64_t t = first; t < std::min(first + kQueriesPerSum, queries); ++t) {
        const int64_t at = h * queries + t;
        total += static_cast<double>(sink_probability(of_head, lse[at]) * delta[at]);
      }
      sum[i] = total;
    }
  });
  A* dsink = args.dsink.data<A>();
  for (int64_t h = 0; h < heads; ++h) {
    double total = 0;
    for (int64_t part = 0; part < parts; ++part) total += sum[h * parts + part];
    dsink[h] -= static_cast<A>(total);
  }
}

template <class T>
constexpr AttentionSinkKernel row() {
  return {.name = "loops",
          .dtype = dtype_of<T>,
          .available = always_available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr AttentionSinkKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const AttentionSinkKernel> attention_sink_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
