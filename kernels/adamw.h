// AdamW (Loshchilov & Hutter 2019, algorithm 2) on a flat range of parameters.
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct AdamW {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1.0;  // multiplies the gradient first: gradient clipping
  int64_t step = 1;         // from 1; for the bias correction

  ConstTensorView grad;     // [n] accumulator type of param
  TensorView master, m, v;  // [n] accumulator type
  TensorView param;         // [n] storage type: master rounded; may be master itself
};

void adamw(const Context&, const AdamW&);

struct AdamWKernel {
  std::string_view name;
  DType dtype;  // of param
  bool (*available)();
  void (*run)(const Context&, const AdamW&);
};

}  // namespace longhaul::kernels
