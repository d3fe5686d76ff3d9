// The operations of a training step that are bound by memory, as cases of `longhaul bench
// pointwise`.
#pragma once

#include <span>
#include <string_view>

#include "launch/bench/kernel_bench.h"

namespace longhaul::launch {

struct PointwiseShape {
  int64_t tokens = 16384;  // so many that no operand stays in a usual cache
  int64_t width = 2048;    // of a row: of the model, of an MLP, or of all heads
  int64_t head_dim = 128;
  int64_t vocabulary = 32000;
  Stream stream = {};  // of the device that operands are made on
};

// Work is the compulsory bytes: each operand read once, each result written once, and what is added
// to both read and written.
struct PointwiseOperation {
  std::string_view name;
  KernelCase (*make)(DType dtype, const PointwiseShape& shape);
  // Its operands are of the accumulator type in any training: measured for f32 only.
  bool accumulator_only = false;
};
std::span<const PointwiseOperation> pointwise_operations();

}  // namespace longhaul::launch
