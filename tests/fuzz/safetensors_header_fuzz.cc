// libFuzzer: a safetensors header is untrusted. Whatever it says, parsing it ends with tensors that
// lie in the file, or with an Error.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/safetensors.h"
#include "kernels/core/error.h"
#include "tests/fuzz/seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using longhaul::checkpoint::parse_safetensors_header;
  if (size < 2) return 0;
  // The first two bytes: how much data follows the header.
  const int64_t bytes = data[0] + 256 * data[1], begin = static_cast<int64_t>(size) + 8;
  const std::string_view json(reinterpret_cast<const char*>(data) + 2, size - 2);
  try {
    const auto header = parse_safetensors_header(json, begin, bytes, "input");
    int64_t sum = 0;
    for (const auto& [name, entry] : header.tensors) {
      if (entry.begin < begin || entry.end < entry.begin || entry.end > begin + bytes) std::abort();
      sum += entry.end - entry.begin;
    }
    if (sum != bytes) std::abort();
  } catch (const longhaul::Error& error) {
    if (error.code() != longhaul::ErrorCode::kCheckpoint) std::abort();
    longhaul::refused(error);
  }
  return 0;
}
