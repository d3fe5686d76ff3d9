// What a checkpoint holds, as seen by one rank: slices of named global tensors.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace longhaul::checkpoint {

// Elements that are made when they are written: of a tensor that is never whole in memory.
struct Source {
  DType dtype = DType::kF32;
  // Fills `part`, which is contiguous and on the CPU, with the elements from `begin` on, counted
  // from the first one of what is written. Called in ascending order, each element once.
  std::function<void(int64_t begin, const TensorView& part)> read;
};

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
  std::optional<Source> source = {};  // when saving, in place of data

  DType dtype() const { return source ? source->dtype : data.dtype(); }
};

using State = std::vector<Slice>;

}  // namespace longhaul::checkpoint
