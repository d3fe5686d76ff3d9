// Declares the parameters of one block under their public names, with the initial values that the
// models share.
#pragma once

#include <string>

#include "model/config.h"
#include "model/linear.h"
#include "parallel/shard/parameters.h"

namespace longhaul::model {

class BlockParameters {
 public:
  BlockParameters(const ModelConfig& config, parallel::ParameterStore& store, int64_t layer,
                  int bucket);

  // [out, in], for inner products, with an adapter if the model's LoRA names it. `name` without
  // "model.layers.N." and ".weight".
  Projection linear(const std::string& name, int64_t out, int64_t in) const;
  // The same for what is added to the residual stream: smaller by sqrt(2 layers), as in GPT-2.
  Projection residual(const std::string& name, int64_t in) const;
  // [size], without weight decay. `name` without "model.layers.N.".
  parallel::Parameter constant(const std::string& name, int64_t size, double value) const;

  // The same, normal around a value.
  parallel::Parameter scattered(const std::string& name, int64_t size, double value,
                                double deviation) const;

  parallel::ParameterStore& store() const { return store_; }
  const std::string& prefix() const { return prefix_; }
  int bucket() const { return bucket_; }

 private:
  Projection matrix(const std::string& name, int64_t out, int64_t in, double deviation) const;

  const ModelConfig& config_;
  parallel::ParameterStore& store_;
  std::string prefix_;
  int bucket_;
};

}  // namespace longhaul::model
