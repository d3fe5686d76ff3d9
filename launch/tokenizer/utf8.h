// UTF-8 (RFC 3629): neither overlong forms, nor surrogates, nor anything above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace longhaul::launch {

struct Utf8Character {
  char32_t code = 0;
  size_t bytes = 0;  // 0: text[at] begins no character
};

// The character that begins at text[at].
Utf8Character utf8_character(std::string_view text, size_t at);
// The character that ends before text[end], if there is one.
Utf8Character utf8_character_before(std::string_view text, size_t end);

// Bytes from text[at] on that are characters.
size_t utf8_valid_bytes(std::string_view text, size_t at);

void append_utf8(char32_t code, std::string& text);

// Unicode's White_Space.
bool is_white_space(char32_t code);

}  // namespace longhaul::launch
