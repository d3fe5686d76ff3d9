// The weights of a checkpoint without the optimizer's state: for a new run that starts from them,
// and for a model that is used.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "model/config.h"
#include "parallel/shard/parameters.h"

namespace longhaul::launch {

// Elements [begin, end) of a parameter, to be filled. `values` may have another floating type than
// what is saved.
struct WeightSlice {
  const parallel::ParameterStore::Entry* entry = nullptr;
  int64_t begin = 0;
  int64_t end = 0;
  TensorView values;  // [end - begin], contiguous
};

// Collective over `group`. The model may differ from the saved one in what no size depends on and
// what is changed to extend a context (RoPE's base and scaling, the sliding window), in
// train.dtype, and in having adapters (lora) where that has none, which then keep their values.
// Throws the errors of checkpoint::load, naming any other difference.
void load_weights(dist::Group& group, const Context& ctx, const std::string& checkpoint,
                  const model::ModelConfig& model, DType dtype,
                  std::span<const WeightSlice> slices);

}  // namespace longhaul::launch
