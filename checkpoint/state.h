// What a checkpoint holds, as seen by one rank: slices of named global tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace longhaul::checkpoint {

// Elements [begin, end) of a global tensor, counted in row-major order of its shape. The slices of
// all ranks cover every tensor; where ranks hold the same elements, they hold the same values.
struct Slice {
  std::string name;  // "layers.3.attention.wq", "adam_m/layers.3.attention.wq"
  Shape shape;       // of the global tensor
  int64_t begin = 0;
  int64_t end = 0;
  // [end - begin], contiguous, on any device; owned by the model or optimizer. At rest: nothing
  // that is still under way writes or reads it.
  TensorView data;
};

using State = std::vector<Slice>;

}  // namespace longhaul::checkpoint
