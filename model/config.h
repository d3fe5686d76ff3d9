// Sizes of a model of the Llama family.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "kernels/core/dtype.h"
#include "kernels/rope.h"
#include "parallel/plan/plan.h"

namespace longhaul::model {

struct ModelConfig {
  std::string architecture = "llama";  // a row of architectures() in model/model.h
  int64_t vocabulary = 256;
  int64_t layers = 4;
  int64_t width = 256;  // of the residual stream
  int64_t heads = 4;
  int64_t kv_heads = 4;
  int64_t head_dim = 64;
  int64_t mlp_width = 768;
  double norm_eps = 1e-5;
  kernels::RopeOptions rope = {};
  bool tied_embeddings = true;

  parallel::HeadShape head_shape() const { return {heads, kv_heads, head_dim, head_dim}; }

  // Number of parameters.
  int64_t parameters() const;
  // Throws Error(kConfig) for sizes that cannot be, naming the field, its value and the fix.
  void validate() const;
  // Field -> value, as compared between a checkpoint and a configuration.
  std::map<std::string, std::string> describe(DType dtype) const;
};

}  // namespace longhaul::model
