// Regular expressions of tokenizers. They are written for Oniguruma (tokenizer.json) or fancy-regex
// (tiktoken) and run by PCRE2, so they are translated: what means the same in all three passes,
// the rest is refused by name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace longhaul::launch {

// The constructs of `expression` in PCRE2's syntax, for compilation with UTF and UCP. Throws
// Error(kData) beginning with `where`.
std::string translate_pattern(std::string_view expression, const std::string& where);

// Memory for matching; one per thread.
class MatchSpace {
 public:
  MatchSpace();
  ~MatchSpace();
  MatchSpace(const MatchSpace&) = delete;
  MatchSpace& operator=(const MatchSpace&) = delete;

 private:
  friend class Pattern;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

struct MatchRange {
  size_t begin = 0, end = 0;  // bytes
};

class Pattern {
 public:
  // Throws Error(kData) beginning with `where` for what cannot be translated or compiled, and for
  // patterns that match nothing at all, which would split between all characters.
  Pattern(std::string_view expression, const std::string& where);
  ~Pattern();
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  const std::string& expression() const { return expression_; }

  // The first match that begins at or after `from`; false: none. `text` is UTF-8. Throws
  // Error(kData) if the search gives up, which only expressions bring about that try one text in
  // countless ways.
  bool find(std::string_view text, size_t from, MatchSpace& space, MatchRange& match) const;

 private:
  struct Code;
  std::string expression_, where_;
  std::unique_ptr<const Code> code_;
};

}  // namespace longhaul::launch
