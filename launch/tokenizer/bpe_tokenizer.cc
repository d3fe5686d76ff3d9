#include "launch/tokenizer/bpe_tokenizer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/error.h"
#include "launch/tokenizer/utf8.h"
#include "launch/tokenizer/word_cache.h"

namespace longhaul::launch {
namespace {

std::vector<AddedToken> with_normalized(const BpeParts& parts, bool normalized) {
  std::vector<AddedToken> tokens;
  std::string buffers[2];
  for (AddedToken token : parts.added) {
    if (token.normalized != normalized) continue;
    if (normalized) token.content = std::string(parts.normalizer.apply(token.content, buffers));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// Whether a text may be cut where PreTokenizer::is_cut() says, whatever added tokens stand there.
bool allows_cuts(const AddedToken& token) {
  const std::string& content = token.content;
  const auto space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  const char last = content.empty() ? ' ' : content.back();
  const bool ends_in_word =
      (last >= '0' && last <= '9') || (last >= 'a' && last <= 'z') || (last >= 'A' && last <= 'Z');
  return !token.lstrip && !(token.rstrip && ends_in_word) &&
         std::none_of(content.begin(), content.end(), space);
}

void replace_all(std::string& text, const std::string& what, char with) {
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) {
    text.replace(at, what.size(), 1, with);
  }
}

uint64_t crossing(char32_t left, char32_t right) { return uint64_t{left} << 32 | right; }

}  // namespace

struct BpeTokenizer::Space {
  MatchSpace match;
  Merger merger;
  WordCache cache;
  std::vector<int32_t> symbols;
  std::string buffers[2];
  std::string prefixed;
};

// Takes a space for as long as it lives, from those that others have given back.
struct BpeTokenizer::Lease {
  explicit Lease(const BpeTokenizer& of) : tokenizer(of) {
    const std::lock_guard lock(tokenizer.mutex_);
    if (!tokenizer.spaces_.empty()) {
      space = std::move(tokenizer.spaces_.back());
      tokenizer.spaces_.pop_back();
    }
  }
  ~Lease() {
    const std::lock_guard lock(tokenizer.mutex_);
    if (space != nullptr) tokenizer.spaces_.push_back(std::move(space));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  const BpeTokenizer& tokenizer;
  std::unique_ptr<Space> space;
};

struct BpeTokenizer::Call {
  Space& space;
  std::vector<int32_t>& tokens;
  bool special_as_text;
  bool beginning = true;  // of the text
  bool goes_on = false;   // of other text, or after bytes that are not UTF-8
};

BpeTokenizer::BpeTokenizer(BpeParts parts)
    : parts_(std::move(parts)),
      merges_(parts_.merges),
      original_(with_normalized(parts_, false)),
      normalized_(with_normalized(parts_, true)) {
  for (const AddedToken& token : parts_.added) {
    if (token.special) special_.insert(token.id);
  }
  if (parts_.whole_words) {
    for (size_t i = 0; i < parts_.bytes.size(); ++i) {
      const auto id = static_cast<int32_t>(i);
      // <0x41> is no word.
      const bool stands_for_a_byte = parts_.characters && is_byte_token(id);
      if (!parts_.bytes[i].empty() && !stands_for_a_byte) whole_.emplace(parts_.bytes[i], id);
    }
    for (const AddedToken& token : parts_.added) whole_.erase(token.content);
  } else if (parts_.characters) {
    find_crossings();
  }
  if (!parts_.space_symbol.empty()) {
    for (std::string& bytes : parts_.bytes) replace_all(bytes, parts_.space_symbol, ' ');
    for (const AddedToken& token : parts_.added) {
      parts_.bytes[static_cast<size_t>(token.id)] = token.content;
    }
  }
  has_cuts_ = !parts_.characters && parts_.prefix.empty() && parts_.pre_tokenizer.has_cuts() &&
              parts_.normalizer.by_parts() &&
              std::all_of(parts_.added.begin(), parts_.added.end(), allows_cuts);
}

BpeTokenizer::~BpeTokenizer() = default;

bool BpeTokenizer::is_byte_token(int32_t token) const {
  return std::ranges::find(parts_.byte_tokens, token) != parts_.byte_tokens.end();
}

void BpeTokenizer::find_crossings() {
  std::vector<bool> of_byte(parts_.bytes.size());
  for (const int32_t token : parts_.byte_tokens) of_byte[static_cast<size_t>(token)] = true;
  cut_words_ = true;
  for (const Merge& merge : parts_.merges) {
    const std::string& left = parts_.bytes[static_cast<size_t>(merge.left)];
    const std::string& right = parts_.bytes[static_cast<size_t>(merge.right)];
    const Utf8Character last = utf8_character_before(left, left.size());
    const Utf8Character first = utf8_character(right, 0);
    if (last.bytes == 0 || first.bytes == 0 || of_byte[static_cast<size_t>(merge.left)] ||
        of_byte[static_cast<size_t>(merge.right)]) {
      cut_words_ = false;
      return;
    }
    crossings_.insert(crossing(last.code, first.code));
  }
}

void BpeTokenizer::encode(std::string_view text, std::vector<int32_t>& tokens,
                          SpecialTokens special, Before before) const {
  Lease lease(*this);
  if (lease.space == nullptr) lease.space = std::make_unique<Space>();
  Call call{*lease.space, tokens, special == SpecialTokens::kAsText};
  call.beginning = before == Before::kNothing;
  call.goes_on = before == Before::kText;
  original_.split(
      text, call.special_as_text,
      [&](std::string_view part) {
        while (!part.empty()) {
          const size_t valid = utf8_valid_bytes(part, 0);
          if (valid > 0) encode_part(part.substr(0, valid), call);
          size_t invalid = valid;
          while (invalid < part.size() && utf8_character(part, invalid).bytes == 0) ++invalid;
          if (invalid > valid) {
            encode_piece(part.substr(valid, invalid - valid), call);
            call.goes_on = true;
          }
          part.remove_prefix(invalid);
        }
        call.beginning = call.goes_on = false;
      },
      [&](const AddedToken& token) {
        tokens.push_back(token.id);
        call.beginning = call.goes_on = false;
      });
}

// UTF-8 without added tokens of the original text.
void BpeTokenizer::encode_part(std::string_view text, Call& call) const {
  const std::string_view normal = parts_.normalizer.apply(text, call.space.buffers, call.goes_on);
  if (normalized_.empty()) {
    encode_characters(normal, call);
  } else {
    normalized_.split(
        normal, call.special_as_text, [&](std::string_view part) { encode_characters(part, call); },
        [&](const AddedToken& token) {
          call.tokens.push_back(token.id);
          call.beginning = call.goes_on = false;
        });
  }
}

// Normalised, without any added tokens.
void BpeTokenizer::encode_characters(std::string_view text, Call& call) const {
  if (!parts_.prefix.empty() && !call.goes_on && !text.starts_with(parts_.prefix) &&
      (call.beginning || !parts_.prefix_at_beginning_only)) {
    call.space.prefixed = parts_.prefix;
    call.space.prefixed += text;
    text = call.space.prefixed;
  }
  call.beginning = call.goes_on = false;
  parts_.pre_tokenizer.split(text, call.space.match,
                             [&](std::string_view word) { encode_word(word, call); });
}

void BpeTokenizer::encode_word(std::string_view word, Call& call) const {
  if (!cut_words_) return encode_piece(word, call);
  size_t begin = 0;
  Utf8Character previous = utf8_character(word, 0);
  for (size_t at = previous.bytes; at < word.size();) {
    const Utf8Character next = utf8_character(word, at);
    if (!crossings_.contains(crossing(previous.code, next.code))) {
      encode_piece(word.substr(begin, at - begin), call);
      begin = at;
    }
    previous = next;
    at += next.bytes;
  }
  encode_piece(word.substr(begin), call);
}

void BpeTokenizer::encode_piece(std::string_view piece, Call& call) const {
  if (call.space.cache.get(piece, call.tokens)) return;
  std::vector<int32_t>& symbols = call.space.symbols;
  symbols.clear();
  const auto whole = parts_.whole_words ? whole_.find(absl::string_view(piece.data(), piece.size()))
                                        : whole_.end();
  if (whole != whole_.end()) {
    symbols.push_back(whole->second);
  } else {
    first_symbols(piece, symbols);
    call.space.merger.merge(merges_, symbols);
  }
  call.space.cache.put(piece, symbols);
  call.tokens.insert(call.tokens.end(), symbols.begin(), symbols.end());
}

void BpeTokenizer::first_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
  for (size_t at = 0; at < word.size();) {
    if (parts_.characters) {
      const size_t bytes = utf8_character(word, at).bytes;
      const auto found = parts_.character_tokens.find(absl::string_view(word.data() + at, bytes));
      if (bytes > 0 && found != parts_.character_tokens.end()) {
        symbols.push_back(found->second);
        at += bytes;
        continue;
      }
    }
    const size_t end =
        at + std::max<size_t>(1, parts_.characters ? utf8_character(word, at).bytes : 1);
    for (; at < end; ++at) {
      const auto byte = static_cast<uint8_t>(word[at]);
      if (parts_.byte_tokens[byte] < 0) {
        fail(ErrorCode::kData,
             absl::StrFormat("the vocabulary of '%s' has no token for the byte 0x%02X, which the "
                             "text has: use a tokenizer with all 256 bytes",
                             parts_.name, byte));
      }
      symbols.push_back(parts_.byte_tokens[byte]);
    }
  }
}

std::string BpeTokenizer::decode(std::span<const int32_t> tokens, bool continues) const {
  std::string text;
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary()) {
      fail(ErrorCode::kData, absl::StrCat("token ", token, " is outside the vocabulary of ",
                                          vocabulary(), " of '", parts_.name, "'"));
    }
    text += parts_.bytes[static_cast<size_t>(token)];
  }
  if (parts_.strip_first_space && !continues && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::optional<int32_t> BpeTokenizer::added_token(std::string_view spelling) const {
  for (const AddedToken& token : parts_.added) {
    if (token.content == spelling) return token.id;
  }
  return std::nullopt;
}

size_t BpeTokenizer::last_cut(std::string_view text) const {
  if (!has_cuts_) return 0;
  for (size_t at = text.size(); at-- > 1;) {
    if (PreTokenizer::is_cut(text, at)) return at;
  }
  return 0;
}

}  // namespace longhaul::launch
