// A token is a byte, the vocabulary is 256, and there is nothing else.
#pragma once

#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

class ByteTokenizer : public Tokenizer {
 public:
  static constexpr int64_t kVocabulary = 256;

  int64_t vocabulary() const override { return kVocabulary; }
  using Tokenizer::encode;
  void encode(std::string_view text, std::vector<int32_t>& tokens,
              SpecialTokens special = SpecialTokens::kRecognised,
              Before before = Before::kNothing) const override;
  std::string decode(std::span<const int32_t> tokens, bool continues = false) const override;
  bool is_special(int32_t) const override { return false; }
  std::optional<int32_t> added_token(std::string_view) const override { return std::nullopt; }
  std::optional<int32_t> beginning_of_text() const override { return std::nullopt; }
  std::optional<int32_t> end_of_text() const override { return std::nullopt; }
  std::span<const int32_t> before_text() const override { return {}; }
  std::span<const int32_t> after_text() const override { return {}; }
  size_t last_cut(std::string_view text) const override { return text.size(); }
};

}  // namespace longhaul::launch
