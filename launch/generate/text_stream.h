// Bytes of tokens to whole characters: a token may end within one.
#pragma once

#include <string>
#include <string_view>

namespace longhaul::launch {

class TextStream {
 public:
  // More bytes: the characters that are now complete. What can be no UTF-8 becomes U+FFFD, one for
  // each maximal part of a character (Unicode 15, section 3.9, "substitution of maximal subparts").
  std::string add(std::string_view bytes);
  // What is left when nothing follows: nothing, or U+FFFD.
  std::string finish();

 private:
  std::string pending_;  // the beginning of a character
};

}  // namespace longhaul::launch
