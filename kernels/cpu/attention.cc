// The table of attention kernels, and the parts that are one pass over memory.
#include "kernels/attention.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_few.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 16384;

int64_t rows_per_task(const ConstTensorView& x) {
  return std::max<int64_t>(1, kElementsPerTask / (x.dim(1) * x.dim(2)));
}

template <class A>
void init(const Context& ctx, TensorView out_acc, TensorView lse) {
  if (ctx.measuring() || lse.empty()) return;
  A *out = out_acc.data<A>(), *l = lse.data<A>();
  ctx.parallel_for(out_acc.elements(), kElementsPerTask,
                   [=](int64_t begin, int64_t end) { std::fill(out + begin, out + end, A(0)); });
  std::fill_n(l, lse.elements(), -std::numeric_limits<A>::infinity());
}

template <class O, class T>
void delta_rows(const Context& ctx, ConstTensorView out, ConstTensorView dout, TensorView delta) {
  using A = Accumulator<T>;
  const int64_t tokens = dout.dim(0), heads = dout.dim(1), dim = dout.dim(2);
  const DotRow<O, T> dot = dot_row<O, T>();
  ctx.parallel_for(tokens, rows_per_task(dout), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const O* o = out.data<O>() + t * out.stride(0) + h * out.stride(1);
        const T* g = dout.data<T>() + t * dout.stride(0) + h * dout.stride(1);
        delta.data<A>()[h * tokens + t] = dot(o, g, dim);
      }
    }
  });
}

template <class T>
void delta(const Context& ctx, ConstTensorView out, ConstTensorView dout, TensorView result) {
  if (ctx.measuring() || dout.empty()) return;
  if (out.dtype() == dout.dtype()) return delta_rows<T, T>(ctx, out, dout, result);
  delta_rows<Accumulator<T>, T>(ctx, out, dout, result);
}

template <class A>
void merge(const Context& ctx, ConstTensorView part, ConstTensorView part_lse, TensorView out_acc,
           TensorView lse) {
  if (ctx.measuring() || lse.empty()) return;
  const int64_t tokens = out_acc.dim(0), heads = out_acc.dim(1), dim = out_acc.dim(2);
  const A *part_out = part.data<A>(), *part_l = part_lse.data<A>();
  A *out = out_acc.data<A>(), *l = lse.data<A>();
  const MixRow<A> mix = mix_row<A>();
  ctx.parallel_for(tokens, rows_per_task(part), [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        A& row_lse = l[h * tokens + t];
        const MergeFactors<A> f = merge_factors(row_lse, part_l[h * tokens + t]);
        row_lse = f.lse;
        const int64_t row = (t * heads + h) * dim;
        mix(part_out + row, f.second, f.first, out + row, dim);
      }
    }
  });
}

template <class T, void (*kTiled)(const Context&, const AttentionForward&)>
void forward(const Context& ctx, const AttentionForward& args) {
  const bool few = args.q.dim(0) <= kFewQueries && args.options.dropout.probability == 0;
  few ? attention_forward_few<T>(ctx, args) : kTiled(ctx, args);
}

bool any_dim(int64_t, int64_t) { return true; }
// Pairs lie along the rows of q, k and v.
bool even_dim(int64_t head_dim, int64_t value_dim) {
  return head_dim % 2 == 0 && value_dim % 2 == 0;
}

template <class T>
constexpr AttentionKernel row() {
  return {.name = "tiled",
          .dtype = dtype_of<T>,
          .products = dtype_of<Accumulator<T>>,
          .available = always_available,
          .supports = any_dim,
          .forward = forward<T, attention_forward_tiled<T>>,
          .backward = attention_backward_tiled<T>,
          .init = init<Accumulator<T>>,
          .delta = delta<T>,
          .merge = merge<Accumulator<T>>};
}

constexpr AttentionKernel pairs_row() {
  AttentionKernel kernel = row<bf16>();
  kernel.name = "tiled-pairs";
  kernel.products = DType::kBF16;
  kernel.available = has_bf16_products;
  kernel.supports = even_dim;
  kernel.forward = forward<bf16, attention_forward_pairs>;
  kernel.backward = attention_backward_pairs;
  return kernel;
}

constexpr AttentionKernel kTable[] = {pairs_row(), row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const AttentionKernel> attention_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
