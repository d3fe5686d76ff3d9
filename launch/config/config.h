// The configuration of a run: read, overridden, completed, checked.
//
// Every error is an Error(kConfig) of one sentence that names the field (in files:
// path:line:column), its value, the limit and the fix. Field meanings and defaults: config.proto.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"
#include "launch/config/config.pb.h"
#include "model/config.h"

namespace longhaul::launch {

// The value of parallel.strategy that lets costs choose.
inline constexpr std::string_view kAutoStrategy = "auto";

// The value of parallel.strategy under which all ranks of the job share attention.
inline constexpr std::string_view kDisaggregated = "disaggregated";

// Reads a file in Protobuf text format and applies overrides, in order, on top.
Config load_config(const std::string& path, const std::vector<std::string>& overrides);

// The text of a file; `name` is how messages call it.
Config parse_config(const std::string& text, const std::string& name);

// "model.layers=8": a dotted path to a field, and its value as in text format, but strings without
// quotes, and names of enumerators in any case.
void apply_override(Config& config, std::string_view assignment);

// Checks every field and fills those that are not set: from the model preset, from the number of
// ranks of the job, from `threads` (cores for each rank) and from config.proto's defaults. The
// result resolves to itself for as many ranks.
void resolve(Config& config, int ranks, int threads);

// Text format with all fields, as written into the run folder; reads back as an equal Config.
std::string to_text(const Config& config);

// Of a resolved configuration.
model::ModelConfig model_config(const Config& config);
DType dtype(const Config& config);

}  // namespace longhaul::launch
