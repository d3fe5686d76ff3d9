// Byte-pair encoding with everything that published models put around it. In order: added tokens
// are found, the text between them is normalised, cut into words, and each word's first symbols
// are merged. The first symbols are bytes ("byte-level", GPT-2 and most since), or characters with
// bytes for those that the vocabulary lacks (SentencePiece with byte fallback, Llama 2).
//
// Bytes that are not UTF-8 are words of their own: patterns and normalisation are of characters.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "launch/tokenizer/added_tokens.h"
#include "launch/tokenizer/merges.h"
#include "launch/tokenizer/normalizer.h"
#include "launch/tokenizer/pre_tokenizer.h"
#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

// A vocabulary as a file describes it.
struct BpeParts {
  std::string name;                // of the file, for messages
  std::vector<std::string> bytes;  // of each token: its UTF-8, or half a character's
  std::vector<Merge> merges;
  std::array<int32_t, 256>
      byte_tokens{};  // first symbols of single bytes; -1: the vocabulary has none
  // A word that is a token as a whole is that token, whatever merges say.
  bool whole_words = false;
  // First symbols are characters: those of the vocabulary, by their UTF-8.
  bool characters = false;
  absl::flat_hash_map<std::string, int32_t> character_tokens;

  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  // Put before a part of a text that does not begin with it, when all else but cutting into words
  // is done; empty: nothing.
  std::string prefix;
  bool prefix_at_beginning_only = false;
  // Decoding: what stands for a space in text tokens (empty: a space), and whether a text's first
  // space is left out.
  std::string space_symbol;
  bool strip_first_space = false;

  std::vector<int32_t> before_text, after_text;
  std::optional<int32_t> beginning_of_text, end_of_text;
};

class BpeTokenizer : public Tokenizer {
 public:
  // Parts are consistent: the loaders check them.
  explicit BpeTokenizer(BpeParts parts);
  ~BpeTokenizer() override;

  int64_t vocabulary() const override { return static_cast<int64_t>(parts_.bytes.size()); }
  using Tokenizer::encode;
  void encode(std::string_view text, std::vector<int32_t>& tokens,
              SpecialTokens special = SpecialTokens::kRecognised,
              Before before = Before::kNothing) const override;
  std::string decode(std::span<const int32_t> tokens, bool continues = false) const override;
  bool is_special(int32_t token) const override { return special_.contains(token); }
  std::optional<int32_t> added_token(std::string_view spelling) const override;
  std::optional<int32_t> beginning_of_text() const override { return parts_.beginning_of_text; }
  std::optional<int32_t> end_of_text() const override { return parts_.end_of_text; }
  std::span<const int32_t> before_text() const override { return parts_.before_text; }
  std::span<const int32_t> after_text() const override { return parts_.after_text; }
  size_t last_cut(std::string_view text) const override;

 private:
  struct Space;  // memory of one encode() at a time
  struct Lease;
  struct Call;

  void encode_part(std::string_view text, Call& call) const;
  void encode_characters(std::string_view text, Call& call) const;
  void encode_word(std::string_view word, Call& call) const;
  void encode_piece(std::string_view piece, Call& call) const;
  void first_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
  bool is_byte_token(int32_t token) const;
  void find_crossings();

  BpeParts parts_;
  MergeTable merges_;
  AddedTokenFinder original_, normalized_;
  absl::flat_hash_set<int32_t> special_;
  absl::flat_hash_map<std::string, int32_t> whole_;  // with whole_words
  // With `characters`: pairs of characters that some merge joins. Between all others a word can be
  // cut, which makes words short enough to be met again.
  absl::flat_hash_set<uint64_t> crossings_;
  bool cut_words_ = false;
  bool has_cuts_ = false;

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Space>> spaces_;
};

}  // namespace longhaul::launch
