// Losses by position in a sample, in equal parts ("buckets").
#pragma once

#include <vector>

#include "kernels/core/tensor.h"
#include "parallel/layout/shard.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::launch {

// Of this rank's labelled tokens: sums of their losses, and how many there are.
struct PositionLoss {
  std::vector<double> sum;
  std::vector<double> count;
};

// row_loss: of the shard's rows, on the host, f32 or f64.
void add_by_position(const ConstTensorView& row_loss, const parallel::Shard& shard,
                     const parallel::TokenLayout& layout, int rank, PositionLoss& buckets);

}  // namespace longhaul::launch
