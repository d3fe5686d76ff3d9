// Small helpers on whole tensors.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

void fill_zero(const Context&, TensorView x);  // contiguous

// y = x, converting between floating types. Same shape; rows (first dimension) may have any stride,
// the rest is dense.
void copy(const Context&, ConstTensorView x, TensorView y);

// y += x in y's type; x of any floating type; both contiguous.
void add_to(const Context&, ConstTensorView x, TensorView y);

// z = x + y; one dtype, contiguous; z may be x or y.
void add(const Context&, ConstTensorView x, ConstTensorView y, TensorView z);

// These three have a result for the host: on GPUs they wait for the stream. While measuring they
// take their scratch and return 0, 0 and -1.

// Sum of squares, summed in f64 in an order that depends on the length alone.
double sum_of_squares(const Context&, ConstTensorView x);
double sum(const Context&, ConstTensorView x);

// Index of the first NaN or infinity in row-major order, or -1.
int64_t find_non_finite(const Context&, ConstTensorView x);

struct PointwiseKernel {
  std::string_view name;
  DeviceKind device;
  void (*fill_zero)(const Context&, TensorView);
  void (*copy)(const Context&, ConstTensorView, TensorView);
  void (*add_to)(const Context&, ConstTensorView, TensorView);
  void (*add)(const Context&, ConstTensorView, ConstTensorView, TensorView);
  double (*sum_of_squares)(const Context&, ConstTensorView);
  double (*sum)(const Context&, ConstTensorView);
  int64_t (*find_non_finite)(const Context&, ConstTensorView);
};

}  // namespace longhaul::kernels
