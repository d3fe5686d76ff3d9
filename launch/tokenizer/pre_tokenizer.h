// Cuts a text into words, which byte-pair encoding never joins.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "launch/tokenizer/pattern.h"

namespace longhaul::launch {

// What a pattern's matches do to the text; the rest of the text stays in one piece between them.
enum class SplitBehavior {
  kIsolated,            // each is a piece
  kContiguous,          // matches that touch are one piece
  kMergedWithPrevious,  // each ends the piece before it
  kMergedWithNext,      // each begins the piece after it
};

class PreTokenizer {
 public:
  // A stage cuts the pieces of the one before it.
  void add_split(std::string_view expression, SplitBehavior behavior, const std::string& where);

  // Calls word(piece) in the order of the text, which is UTF-8; pieces are not empty and are all of
  // the text.
  template <class Word>
  void split(std::string_view text, MatchSpace& space, const Word& word) const {
    if (!text.empty()) split_from(text, 0, space, word);
  }

  bool empty() const { return stages_.empty(); }

  // Whether text may be cut at places that is_cut() knows: every stage is one of the patterns
  // below.
  bool has_cuts() const { return has_cuts_; }
  // Whether text[at], at > 0, begins a piece, and the pieces on both sides are the same if the text
  // is cut there; with has_cuts().
  //
  // Two such places: before a space between an ASCII letter or digit and an ASCII letter ("a| b"),
  // and after a newline between what is no white space and a letter, a digit, or a character beyond
  // ASCII that is no white space ("a\n|b"). In none of the patterns does anything match across
  // them, a space begins the word that it precedes, and a lone newline is the same piece whether
  // text follows or not, since no pattern looks further than one character.
  static bool is_cut(std::string_view text, size_t at);

 private:
  struct Stage {
    std::unique_ptr<const Pattern> pattern;
    SplitBehavior behavior;
  };
  // Pieces of a stage that are more than matches and what is between them.
  std::vector<MatchRange> merged_pieces(const Stage& stage, std::string_view text,
                                        MatchSpace& space) const;

  template <class Word>
  void split_from(std::string_view text, size_t number, MatchSpace& space, const Word& word) const {
    if (number == stages_.size()) return word(text);
    const Stage& stage = stages_[number];
    const auto piece = [&](size_t begin, size_t end) {
      if (begin < end) split_from(text.substr(begin, end - begin), number + 1, space, word);
    };
    if (stage.behavior != SplitBehavior::kIsolated) {
      for (const MatchRange& range : merged_pieces(stage, text, space))
        piece(range.begin, range.end);
      return;
    }
    size_t done = 0;
    MatchRange match;
    while (done < text.size() && stage.pattern->find(text, done, space, match)) {
      piece(done, match.begin);
      piece(match.begin, match.end);
      done = match.end;
    }
    piece(done, text.size());
  }

  std::vector<Stage> stages_;
  bool has_cuts_ = false;
};

// Patterns of published tokenizers by name: "gpt2", "cl100k" (GPT-4; as in Llama 3), "qwen2",
// "o200k". Empty: not known.
std::string_view known_pattern(std::string_view name);
// "gpt2, cl100k, ..."
std::string known_pattern_names();
// Whether the expression is one of these in one of its published spellings: between them, their
// matches leave nothing out.
bool is_known_pattern(std::string_view expression);

}  // namespace longhaul::launch
