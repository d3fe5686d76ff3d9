// Text to tokens and back. Models trained by others bring a tokenizer; Longhaul's own quickstart
// needs none: there a token is a byte.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::launch {

// What becomes of special tokens ("<|end_of_text|>") that are spelled out in a text.
enum class SpecialTokens {
  kRecognised,  // each is one token, as in the reference library: for trusted text
  kAsText,      // their letters are text: for what a user says within a chat template
};

// What stands before a text that is encoded: some tokenizers put a space before the first word of a
// whole text, others also before the first one after a token for control.
enum class Before { kNothing, kControl, kText };

// All methods are thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Tokens are 0 to this minus 1; some in between may be unused.
  virtual int64_t vocabulary() const = 0;

  // Appends the tokens of `text` and nothing else: no beginning or end of text. Bytes that are not
  // UTF-8 are text, too. Throws Error(kData) for text that the vocabulary has no tokens for.
  virtual void encode(std::string_view text, std::vector<int32_t>& tokens,
                      SpecialTokens special = SpecialTokens::kRecognised,
                      Before before = Before::kNothing) const = 0;
  std::vector<int32_t> encode(std::string_view text) const;

  // The bytes of tokens; a token may be half a character. With `continues` they follow others,
  // which matters where a text's first token carries a space that is not the text's.
  // Texts decode to themselves, after normalisation (NFC) if the tokenizer prescribes one.
  // Throws Error(kData) for a token outside the vocabulary; an unused one is empty.
  virtual std::string decode(std::span<const int32_t> tokens, bool continues = false) const = 0;

  // A token for control, not for text: not shown to readers.
  virtual bool is_special(int32_t token) const = 0;
  // An added token by its spelling, e.g. "<|im_start|>".
  virtual std::optional<int32_t> added_token(std::string_view spelling) const = 0;

  // What the model knows as beginning and end of a text, if anything.
  virtual std::optional<int32_t> beginning_of_text() const = 0;
  virtual std::optional<int32_t> end_of_text() const = 0;
  // What stands before and after a text that is given to the model (the post-processor's template:
  // often the beginning of text and nothing).
  virtual std::span<const int32_t> before_text() const = 0;
  virtual std::span<const int32_t> after_text() const = 0;

  // A place p of `text`, p > 0, with encode(text) = encode(text until p) + encode(text from p),
  // whatever was before and will follow the text: the last one that is easily found. 0: none.
  virtual size_t last_cut(std::string_view text) const = 0;
};

// "bytes": a token is a byte. Otherwise a file: tokenizer.json of Hugging Face (tokenizer_json.h)
// or a folder with one, or ranks in base64, *.tiktoken (tiktoken.h), which `pattern` belongs to:
// the name of one, or empty where the file's name says it.
// Throws Error(kData) for files that are missing, damaged or ask for what cannot be done, naming
// the field.
std::unique_ptr<const Tokenizer> load_tokenizer(const std::string& path,
                                                const std::string& pattern = "");

}  // namespace longhaul::launch
