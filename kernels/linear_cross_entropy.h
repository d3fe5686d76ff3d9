// The output layer and its loss in one operation: logits = x weight^T are made a tile of rows at a
// time and never exist as a whole (the fused linear cross-entropy of Liger and ALST).
//
// The loss's denominator is known before backward (the batch carries it), so gradients are made in
// the same pass: three products a tile instead of four.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct LinearCrossEntropy {
  ConstTensorView x;       // [T, C]
  ConstTensorView weight;  // [V, C]
  ConstTensorView labels;  // [T] i32 in [0, V), or -1: the row counts for nothing
  TensorView row_loss;     // [T] accumulator type: -log p(label), 0 where there is no label
  // Rows of logits in memory at a time; 0: chosen for about 16 MiB, on GPUs 256 MiB.
  int64_t tile_rows = 0;

  // Gradients of grad_scale * sum(row_loss); leave dx and dweight empty to have the loss alone.
  bool with_gradients = false;
  double grad_scale = 1.0;
  TensorView dx{};       // [T, C], overwritten
  TensorView dweight{};  // [V, C] accumulator type; +=. Absent: not wanted
};

// Throws Error(kData) for a label that is neither -1 nor in the vocabulary, naming it.
void check_labels(std::span<const int32_t> labels, int64_t vocabulary);

// Such a label: on CPUs the error of check_labels(). On GPUs, where an error would have to be
// waited for, a loss and gradients of NaN; who uploads labels checks them.
void linear_cross_entropy(const Context&, const LinearCrossEntropy&);

struct LinearCrossEntropyKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*run)(const Context&, const LinearCrossEntropy&);
};

}  // namespace longhaul::kernels
