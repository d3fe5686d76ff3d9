// libFuzzer: config.json is untrusted. Whatever it says, reading it ends with a model, or with an
// Error; and a model that could be read can be written, with the same file as its base, and read
// again.
#include <google/protobuf/util/message_differencer.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "kernels/core/error.h"
#include "launch/huggingface/config_json.h"
#include "tests/fuzz/seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longhaul;
  const std::string json(reinterpret_cast<const char*>(data), size);
  launch::Model model;
  try {
    model = launch::huggingface::read_config(json, "input");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCheckpoint) std::abort();
    refused(error);
    return 0;
  }
  // An error from here on ends the program.
  const std::string written =
      launch::huggingface::write_config(model, DType::kF32, /*length=*/1, json);
  const launch::Model again = launch::huggingface::read_config(written, "written");
  if (!google::protobuf::util::MessageDifferencer::Equals(model, again)) std::abort();
  return 0;
}
