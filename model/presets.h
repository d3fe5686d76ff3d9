// Named model sizes.
#pragma once

#include <span>
#include <string_view>

#include "model/config.h"

namespace longhaul::model {

struct Preset {
  std::string_view name;
  std::string_view note;
  ModelConfig config;
};

// From a few million parameters to Llama-3-8B, and models with linear attention. To add one: a row
// in presets.cc.
std::span<const Preset> presets();

// Throws Error(kConfig) with the known names if there is none of this name.
const Preset& preset(std::string_view name);

}  // namespace longhaul::model
