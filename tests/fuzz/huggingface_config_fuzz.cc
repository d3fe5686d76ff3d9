// libFuzzer: config.json is untrusted. Whatever it says, reading it ends with a model, or with an
// Error; and a model that could be read can be written, with the same file as its base.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "kernels/core/error.h"
#include "launch/huggingface/config_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longhaul;
  const std::string json(reinterpret_cast<const char*>(data), size);
  try {
    const launch::Model model = launch::huggingface::read_config(json, "input");
    const std::string written =
        launch::huggingface::write_config(model, DType::kF32, /*length=*/1, json);
    launch::huggingface::read_config(written, "written");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCheckpoint) std::abort();
  }
  return 0;
}
