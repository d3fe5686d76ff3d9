// The characters that byte-level vocabularies write for bytes: printable ones stand for
// themselves, the others, in their order, for U+0100 and up (Radford et al. 2019, GPT-2's encoder).
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "launch/tokenizer/utf8.h"

namespace longhaul::launch {

inline bool stands_for_itself(uint8_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

inline std::optional<uint8_t> byte_of(char32_t character) {
  if (character < 0x100) {
    const auto byte = static_cast<uint8_t>(character);
    if (stands_for_itself(byte)) return byte;
    return std::nullopt;
  }
  if (character >= 0x144) return std::nullopt;
  auto left = static_cast<int>(character - 0x100);
  for (int byte = 0; byte < 256; ++byte) {
    if (!stands_for_itself(static_cast<uint8_t>(byte)) && left-- == 0) {
      return static_cast<uint8_t>(byte);
    }
  }
  return std::nullopt;
}

// The bytes that a spelling in this alphabet stands for; nothing for one with other characters.
inline std::optional<std::string> bytes_of(std::string_view spelling) {
  std::string bytes;
  while (!spelling.empty()) {
    const Utf8Character character = utf8_character(spelling, 0);
    const auto byte = character.bytes > 0 ? byte_of(character.code) : std::nullopt;
    if (!byte) return std::nullopt;
    bytes.push_back(static_cast<char>(*byte));
    spelling.remove_prefix(character.bytes);
  }
  return bytes;
}

}  // namespace longhaul::launch
