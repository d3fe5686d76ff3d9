// Reading and judging a checkpoint's manifest.
#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.pb.h"

namespace longhaul::checkpoint {

inline constexpr uint32_t kFormat = 1;

// The bytes of manifest.pb in a checkpoint's folder, verified against COMPLETE. Throws
// Error(kCheckpoint).
std::string read_manifest(const std::string& path);

// Parses it and verifies that it is consistent: format version, plain file names, slices that cover
// each tensor exactly once and point to files that exist in its list.
proto::Manifest parse_manifest(const std::string& bytes, const std::string& path);

Info info_of(const proto::Manifest& manifest);
void set_info(proto::Manifest& manifest, const Info& info);

// Throws Error(kCheckpoint) naming the first field in which the running model differs from the
// saved.
void check_model(const std::map<std::string, std::string>& running, const Info& saved,
                 const std::string& path);

}  // namespace longhaul::checkpoint
