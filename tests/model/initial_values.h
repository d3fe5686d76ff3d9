// The parameters that run_model starts from, and the loss that a naive model has with them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/model/model_run.h"

namespace longhaul::test {

// By name, of a model in f64; the case's moved element is moved.
std::map<std::string, std::vector<double>> initial_values(const ModelCase& c);

// Mean over the targets.
double naive_loss(const ModelCase& c);

}  // namespace longhaul::test
