// Small models with linear attention: together they have everything that models may have.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"

namespace longhaul::test {

struct HybridCase {
  std::string name;
  model::ModelConfig config;
};
std::vector<HybridCase> hybrid_cases();

}  // namespace longhaul::test
