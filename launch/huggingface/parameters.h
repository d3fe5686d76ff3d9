// What parameters a model has, without having them in memory.
#pragma once

#include <string>
#include <vector>

#include "kernels/core/tensor.h"
#include "launch/config/config.h"

namespace longhaul::launch::huggingface {

struct NamedShape {
  std::string name;
  Shape shape;
};

// Of a resolved configuration, in the order in which the model declares them.
std::vector<NamedShape> parameters_of(const Config& config);

// A configuration that says what a model is, completed; for one that is not to be trained.
Config resolved(const Config& config);

}  // namespace longhaul::launch::huggingface
