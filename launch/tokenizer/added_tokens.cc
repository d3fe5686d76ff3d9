#include "launch/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>

#include "launch/tokenizer/utf8.h"

namespace longhaul::launch {
namespace {

// What regular expressions call \w, but for the few letter-like symbols of other categories.
bool of_word(Utf8Character character) {
  if (character.bytes == 0) return false;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(character.code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return character.code == 0x200C || character.code == 0x200D;
  }
}

bool is_single_word(std::string_view text, size_t begin, size_t end) {
  return !of_word(utf8_character_before(text, begin)) && !of_word(utf8_character(text, end));
}

size_t spaces_before(std::string_view text, size_t at, size_t least) {
  while (at > least) {
    const Utf8Character before = utf8_character_before(text, at);
    if (before.bytes == 0 || !is_white_space(before.code) || at - before.bytes < least) break;
    at -= before.bytes;
  }
  return at;
}

size_t spaces_after(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Character after = utf8_character(text, at);
    if (after.bytes == 0 || !is_white_space(after.code)) break;
    at += after.bytes;
  }
  return at;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  nodes_.emplace_back();
  for (size_t i = 0; i < tokens_.size(); ++i) {
    int32_t at = 0;
    for (const char c : tokens_[i].content) {
      int32_t next = child(at, c);
      if (next < 0) {
        next = static_cast<int32_t>(nodes_.size());
        auto& edges = nodes_[static_cast<size_t>(at)].next;
        edges.insert(std::upper_bound(edges.begin(), edges.end(), std::pair(c, next)), {c, next});
        nodes_.emplace_back();
      }
      at = next;
    }
    nodes_[static_cast<size_t>(at)].token = static_cast<int32_t>(i);
    starts_[static_cast<uint8_t>(tokens_[i].content[0])] = true;
  }
  if (std::count(starts_.begin(), starts_.end(), true) == 1) {
    only_start_ =
        static_cast<int>(std::find(starts_.begin(), starts_.end(), true) - starts_.begin());
  }
}

int32_t AddedTokenFinder::child(int32_t node, char c) const {
  const auto& edges = nodes_[static_cast<size_t>(node)].next;
  const auto found = std::lower_bound(
      edges.begin(), edges.end(), c, [](const auto& edge, char byte) { return edge.first < byte; });
  return found != edges.end() && found->first == c ? found->second : -1;
}

int32_t AddedTokenFinder::longest_at(std::string_view text, size_t at) const {
  int32_t node = 0, longest = -1;
  for (; at < text.size(); ++at) {
    node = child(node, text[at]);
    if (node < 0) break;
    const int32_t token = nodes_[static_cast<size_t>(node)].token;
    if (token >= 0) longest = token;
  }
  return longest;
}

size_t AddedTokenFinder::next_start(std::string_view text, size_t at) const {
  if (at >= text.size()) return text.size();
  if (only_start_ >= 0) {
    const void* found = std::memchr(text.data() + at, only_start_, text.size() - at);
    return found == nullptr ? text.size()
                            : static_cast<size_t>(static_cast<const char*>(found) - text.data());
  }
  while (at < text.size() && !starts_[static_cast<uint8_t>(text[at])]) ++at;
  return at;
}

void AddedTokenFinder::split(std::string_view text, bool special_as_text,
                             const std::function<void(std::string_view)>& part,
                             const std::function<void(const AddedToken&)>& token) const {
  size_t done = 0;
  for (size_t at = tokens_.empty() ? text.size() : next_start(text, 0); at < text.size();) {
    const int32_t found = longest_at(text, at);
    if (found < 0) {
      at = next_start(text, at + 1);
      continue;
    }
    const AddedToken& added = tokens_[static_cast<size_t>(found)];
    const size_t end = at + added.content.size();
    const size_t next = next_start(text, end);
    if (!(special_as_text && added.special) &&
        !(added.single_word && !is_single_word(text, at, end))) {
      const size_t first = added.lstrip ? spaces_before(text, at, done) : std::max(at, done);
      if (first > done) part(text.substr(done, first - done));
      token(added);
      done = std::max(done, added.rstrip ? spaces_after(text, end) : end);
    }
    at = next;
  }
  if (done < text.size()) part(text.substr(done));
}

}  // namespace longhaul::launch
