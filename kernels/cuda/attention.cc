// The table of attention kernels.
#include "kernels/attention.h"

#include <algorithm>

#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/attention_simt.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

bool up_to_most(int64_t head_dim, int64_t value_dim) {
  return head_dim <= kMostHeadDim && value_dim <= kMostHeadDim;
}

template <class T>
constexpr AttentionKernel row(std::string_view name, DType products,
                              void (*forward)(const Context&, const AttentionForward&),
                              void (*backward)(const Context&, const AttentionBackward&)) {
  return {.name = name,
          .dtype = dtype_of<T>,
          .products = products,
          .available = available,
          .supports = up_to_most,
          .forward = forward,
          .backward = backward,
          .init = attention_init<Accumulator<T>>,
          .delta = attention_delta<T>,
          .merge = attention_merge<Accumulator<T>>};
}

template <class T>
constexpr AttentionKernel simt_row() {
  return row<T>("cuda-simt", dtype_of<T>, attention_forward_simt<T>, attention_backward_simt<T>);
}

// Kernels of the padded size that both dimensions fit into.
void forward_of_dims(const Context& ctx, const AttentionForward& args) {
  with_mma_dim(std::max(args.q.dim(2), args.v.dim(2)),
               [&](auto dim) { forward_mma<dim>(ctx, args); });
}
void backward_of_dims(const Context& ctx, const AttentionBackward& args) {
  with_mma_dim(std::max(args.q.dim(2), args.v.dim(2)),
               [&](auto dim) { backward_mma<dim>(ctx, args); });
}

constexpr AttentionKernel mma_row() {
  return row<bf16>("cuda-mma", DType::kBF16, forward_of_dims, backward_of_dims);
}

constexpr AttentionKernel kTable[] = {mma_row(), simt_row<float>(), simt_row<double>()};

}  // namespace

std::span<const AttentionKernel> attention_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
