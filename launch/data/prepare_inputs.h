// Which files a corpus is made from, and what says whether they have changed.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/data/prepare.h"

namespace longhaul::launch {

// Files in the order in which they are read, without the outputs. Throws Error(kConfig) without
// inputs or output, Error(kData) for inputs that are none.
std::vector<std::string> list_inputs(const PrepareOptions& options);

// What the corpus is made from: equal records, equal corpus. "inputs" has an object for each file.
nlohmann::json source_record(const PrepareOptions& options, const std::vector<std::string>& files);

}  // namespace longhaul::launch
