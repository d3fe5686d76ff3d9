// What this machine can do: the limits that speeds are compared with. Each measurement takes a few
// tens of milliseconds, over all its threads at once and with the instruction set in use
// (kernels/instruction_set.h), and gives the rate over the whole time: threads may have to share
// cores, and the cores' clocks.
#pragma once

#include <vector>

#include "kernels/core/tensor.h"

namespace longhaul::kernels {

// FLOPs a second of multiply-adds on registers (2 each) with the widest vectors: f32 or f64; for
// bf16 pairs of bf16 with f32 sums where the instruction set has those products, the f32 figure
// where it has not, since bf16 is then computed in f32.
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
