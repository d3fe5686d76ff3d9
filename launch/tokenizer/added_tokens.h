// Tokens that are found in a text by their spelling, before anything else is done to it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::launch {

// With the reference library's meaning of the flags.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // not within a word
  bool lstrip = false;       // takes white space before it, too
  bool rstrip = false;       // and after it
  bool normalized = false;   // is looked for in the normalised text, not in the original
  bool special = false;
};

// Finds tokens in a text: the first to begin, of these the longest, without overlaps.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }
  const std::vector<AddedToken>& tokens() const { return tokens_; }

  // Calls text(part) and token(found) in the order of the text; parts are not empty. With
  // `special_as_text` special tokens are not recognised.
  void split(std::string_view text, bool special_as_text,
             const std::function<void(std::string_view)>& part,
             const std::function<void(const AddedToken&)>& token) const;

 private:
  struct Node {
    std::vector<std::pair<char, int32_t>> next;  // sorted
    int32_t token = -1;                          // index in tokens_
  };
  int32_t child(int32_t node, char c) const;
  // Index of the longest token that begins at text[at]; -1: none.
  int32_t longest_at(std::string_view text, size_t at) const;
  size_t next_start(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> starts_{};
  int only_start_ = -1;  // the byte that every token starts with, if they agree
};

}  // namespace longhaul::launch
