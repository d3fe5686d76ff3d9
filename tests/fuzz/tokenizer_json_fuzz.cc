// libFuzzer: tokenizer.json is untrusted. Whatever it says, loading it ends with a tokenizer or
// with an Error, and a tokenizer encodes any bytes to tokens of its vocabulary, which decode.
//
// The input is the file, and behind a zero byte a text to encode.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kernels/core/error.h"
#include "launch/tokenizer/tokenizer_json.h"
#include "tests/fuzz/seeds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using longhaul::Error;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const std::string_view text = end == std::string_view::npos
                                    ? std::string_view("a \xc3\xa9\xff 12's")
                                    : input.substr(end + 1);
  try {
    const auto tokenizer = longhaul::launch::parse_tokenizer_json(input.substr(0, end), "input");
    const auto tokens = tokenizer->encode(text);
    for (const int32_t token : tokens) {
      if (token < 0 || token >= tokenizer->vocabulary()) std::abort();
    }
    tokenizer->decode(tokens);
    tokenizer->last_cut(text);
  } catch (const Error& error) {
    if (error.code() == longhaul::ErrorCode::kInternal) throw;
    longhaul::refused(error);
  }
  return 0;
}
