#include "launch/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "launch/tokenizer/utf8.h"

namespace longhaul::launch {
namespace {

struct KnownPattern {
  std::string_view name, expression;
};

// Facts about models, as published with them. The first spelling of a name is taken.
constexpr KnownPattern kKnown[] = {
    {"gpt2", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {"cl100k",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {"qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {"o200k",
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    // The same with other letters.
    {"cl100k",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"},
    {"gpt2", R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
};

bool ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool ascii_word(char c) { return ascii_letter(c) || (c >= '0' && c <= '9'); }

}  // namespace

void PreTokenizer::add_split(std::string_view expression, SplitBehavior behavior,
                             const std::string& where) {
  // Numbers apart, as some models have them, cut neither place.
  const bool of_numbers = expression == R"(\p{N})" || expression == R"(\p{N}{1,3})";
  const bool known = is_known_pattern(expression) || of_numbers;
  has_cuts_ = (stages_.empty() || has_cuts_) && known && behavior == SplitBehavior::kIsolated;
  // What numbers leave in one piece would be cut.
  if (stages_.empty() && of_numbers) has_cuts_ = false;
  stages_.push_back({std::make_unique<const Pattern>(expression, where), behavior});
}

std::vector<MatchRange> PreTokenizer::merged_pieces(const Stage& stage, std::string_view text,
                                                    MatchSpace& space) const {
  struct Part {
    MatchRange range;
    bool match;
  };
  std::vector<Part> parts;
  size_t done = 0;
  MatchRange match;
  while (done < text.size() && stage.pattern->find(text, done, space, match)) {
    if (match.begin > done) parts.push_back({{done, match.begin}, false});
    parts.push_back({match, true});
    done = match.end;
  }
  if (done < text.size()) parts.push_back({{done, text.size()}, false});

  std::vector<MatchRange> pieces;
  const bool forwards = stage.behavior != SplitBehavior::kMergedWithNext;
  bool previous = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[forwards ? i : parts.size() - 1 - i];
    const bool joins = stage.behavior == SplitBehavior::kContiguous ? part.match == previous
                                                                    : part.match && !previous;
    if (!joins || pieces.empty()) {
      pieces.push_back(part.range);
    } else if (forwards) {
      pieces.back().end = part.range.end;
    } else {
      pieces.back().begin = part.range.begin;
    }
    previous = part.match;
  }
  if (!forwards) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

bool PreTokenizer::is_cut(std::string_view text, size_t at) {
  if (at + 1 >= text.size() || at == 0) return false;
  if (text[at] == ' ') return ascii_word(text[at - 1]) && ascii_letter(text[at + 1]);
  if (at < 2 || text[at - 1] != '\n') return false;
  if (!ascii_word(text[at])) {
    const Utf8Character after = utf8_character(text, at);
    if (after.bytes < 2 || is_white_space(after.code)) return false;
  }
  const Utf8Character before = utf8_character_before(text, at - 1);
  return before.bytes > 0 && !is_white_space(before.code);
}

std::string_view known_pattern(std::string_view name) {
  const auto* const known = std::find_if(std::begin(kKnown), std::end(kKnown),
                                         [&](const KnownPattern& k) { return k.name == name; });
  return known == std::end(kKnown) ? std::string_view() : known->expression;
}

std::string known_pattern_names() { return "gpt2, cl100k, qwen2, o200k"; }

bool is_known_pattern(std::string_view expression) {
  return std::any_of(std::begin(kKnown), std::end(kKnown),
                     [&](const KnownPattern& k) { return k.expression == expression; });
}

}  // namespace longhaul::launch
