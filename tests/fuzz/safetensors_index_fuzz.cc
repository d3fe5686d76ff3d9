// libFuzzer: an index of safetensors files is untrusted. Whatever it says, parsing it ends with
// names of files in its own folder, or with an Error.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/huggingface/index.h"
#include "kernels/core/error.h"
#include "tests/fuzz/seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using longhaul::checkpoint::huggingface::parse_index;
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  try {
    const auto files = parse_index(json, "input");
    if (files.empty()) std::abort();
    for (const auto& [tensor, file] : files) {
      if (file.empty() || file == ".." || file.find('/') != std::string::npos) std::abort();
    }
  } catch (const longhaul::Error& error) {
    if (error.code() != longhaul::ErrorCode::kCheckpoint) std::abort();
    longhaul::refused(error);
  }
  return 0;
}
