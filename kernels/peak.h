// What this machine can do: the limits that speeds are compared with. Each measurement takes a few
// tens of milliseconds, over all its threads at once and with the instruction set in use
// (kernels/instruction_set.h), and gives the rate over the whole time: threads may have to share
// cores, and the cores' clocks.
#pragma once

#include <vector>

#include "kernels/core/tensor.h"

namespace longhaul::kernels {

// The type whose multiply-adds are the limit of computing in `dtype`: its own, but f32 for bf16
// where the instruction set in use has no products of bf16 pairs, since bf16 is then computed in
// f32.
DType multiply_add_type(DType dtype);

// FLOPs a second (2 a multiply-add) of f32, f64, or bf16 pairs with f32 sums, as of
// multiply_add_type(dtype), on registers with the widest vectors.
double measured_peak_flops(DType dtype, int threads);

// Bytes a second of copying between two sets of arrays, each four times the last level of cache (at
// least 128 MiB), as STREAM counts (McCalpin 1995): every byte read and every byte written counts
// once, but not what a cache reads only to overwrite it. The faster of ordinary and non-temporal
// stores. Keeps its arrays, so that measuring again costs only the copying.
class CopyBandwidth {
 public:
  explicit CopyBandwidth(int threads);
  double measure() const;

 private:
  struct Share {  // a thread's
    Tensor from, to;
  };
  std::vector<Share> shares_;
};

}  // namespace longhaul::kernels
