#include "launch/tokenizer/byte_tokenizer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {

void ByteTokenizer::encode(std::string_view text, std::vector<int32_t>& tokens,
                           SpecialTokens /*special*/, Before /*before*/) const {
  const size_t first = tokens.size();
  tokens.resize(first + text.size());
  std::transform(text.begin(), text.end(), tokens.begin() + static_cast<std::ptrdiff_t>(first),
                 [](char byte) { return static_cast<int32_t>(static_cast<uint8_t>(byte)); });
}

std::string ByteTokenizer::decode(std::span<const int32_t> tokens, bool /*continues*/) const {
  std::string text;
  text.reserve(tokens.size());
  for (const int32_t token : tokens) {
    if (token < 0 || token >= kVocabulary) {
      fail(ErrorCode::kData, absl::StrCat("token ", token, " is no byte: it is outside 0..255"));
    }
    text.push_back(static_cast<char>(token));
  }
  return text;
}

}  // namespace longhaul::launch
