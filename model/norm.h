// A normalisation of a model: RMSNorm with a weight, or SRMSNorm without.
#pragma once

#include <optional>
#include <string>

#include "kernels/core/context.h"
#include "model/config.h"
#include "parallel/shard/parameters.h"

namespace longhaul::model {

class Norm {
 public:
  Norm() = default;
  // By the configuration's eps, and frozen where it freezes weights. `width`: how many elements
  // share a scale. `name`: of the weight, if there is one.
  Norm(const ModelConfig& config, NormKind kind, const std::string& name, int64_t width,
       parallel::ParameterStore& store, int bucket);

  // x, y [T, width], rstd [T] accumulator type.
  void forward(const Context&, ConstTensorView x, TensorView y, TensorView rstd) const;
  // dx [T, width] is added to, as is the weight's gradient.
  void backward(const Context&, ConstTensorView dy, ConstTensorView x, ConstTensorView rstd,
                TensorView dx) const;

 private:
  std::optional<parallel::Parameter> weight_;
  double eps_ = 1e-5;
};

}  // namespace longhaul::model
