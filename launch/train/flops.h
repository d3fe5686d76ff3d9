// The model FLOPs of a step, from which MFU is computed.
//
//   MFU = model FLOPs of a step / (seconds of the step x measured peak of all ranks in train.dtype)
//   model FLOPs = 6 x (weights of matrix products) x tokens  +  12 x head_dim x (attention pairs)
//                 + 6 x (elements of linear layers' states x 2) x tokens
//
// Six: two for forward and four for backward, per multiply-add pair; four for weights that LoRA
// freezes, whose gradient is not made, and six for its adapters. A pair is one query head
// seeing one key, counted exactly from the segments of the plan, so that masks, windows and
// documents count for what they are; forward has two products of 2 x head_dim FLOPs a pair,
// backward counts twice that. Each token of a linear layer is added to the state and read from it,
// one multiply-add for each of the state's elements each; the products within blocks, by which
// kernels save time, do not count. What is computed again (recomputation, or the scores in
// attention's backward) does not count as work done, as usual for MFU (Chowdhery et al. 2022,
// appendix B).
#pragma once

#include <cstdint>

#include "model/config.h"

namespace longhaul::launch {

// Weights that take part in matrix products: all but norms and, when untied, the embedding table.
int64_t product_weights(const model::ModelConfig& config);

// Multiply-adds by which a token's queries, keys and values meet the states of linear layers.
int64_t state_products(const model::ModelConfig& config);

double training_flops(const model::ModelConfig& config, int64_t tokens, int64_t attention_pairs);

}  // namespace longhaul::launch
