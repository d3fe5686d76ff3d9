// What Oniguruma (Ruby's syntax), fancy-regex and PCRE2 agree upon, and what is to be written
// otherwise: white space (PCRE2 counts U+180E to it), scripts (PCRE2 would take extensions),
// line anchors, \u.
#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/error.h"
#include "launch/tokenizer/pattern.h"
#include "launch/tokenizer/utf8.h"

namespace longhaul::launch {
namespace {

constexpr std::string_view kSpaces = R"(\p{Z}\x{9}-\x{d}\x{85})";

bool digit(char c) { return c >= '0' && c <= '9'; }
bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool hexadecimal(char c) { return digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

class Translator {
 public:
  Translator(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  std::string run() {
    if (utf8_valid_bytes(text_, 0) != text_.size()) refuse("what is not UTF-8");
    while (at_ < text_.size()) element();
    if (groups_ > 0) refuse("a group that does not end");
    return out_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail(ErrorCode::kData, absl::StrCat(where_, " has ", what, " at byte ", at_, " of \"",
                                        std::string(text_), "\", which cannot be translated"));
  }
  bool next_is(std::string_view what) const { return text_.substr(at_).starts_with(what); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void copy(size_t bytes) {
    out_ += text_.substr(at_, bytes);
    at_ += bytes;
  }

  // One construct and what repeats it.
  void element() {
    const char c = peek();
    if (c == '(') return open_group();
    if (c == '|') return copy(1);
    if (c == '^' || c == '$') {
      absl::StrAppend(&out_, "(?m:", std::string(1, c), ")");
      ++at_;
      return;  // not repeated
    }
    if (c == ')') {
      if (groups_-- == 0) refuse("a closing parenthesis without an opening one");
      copy(1);
    } else if (c == '[') {
      set();
    } else if (c == '\\') {
      escape(/*in_set=*/false);
    } else if (c == '?' || c == '*' || c == '+') {
      refuse("a repetition of nothing, or of a repetition,");
    } else {
      const size_t bytes = utf8_character(text_, at_).bytes;
      if (c == '{' || c == '}' || c == ']' || c == '#') out_ += '\\';
      copy(bytes);
    }
    repetition();
  }

  void open_group() {
    static constexpr std::string_view kKnown[] = {"(?:", "(?=", "(?!", "(?>", "(?i:", "(?-i:"};
    ++groups_;
    const auto* known = std::find_if(std::begin(kKnown), std::end(kKnown),
                                     [&](std::string_view k) { return next_is(k); });
    if (known != std::end(kKnown)) return copy(known->size());
    if (next_is("(?") || next_is("(*"))
      refuse(absl::StrCat("\"", std::string(text_.substr(at_, 4)), "\""));
    out_ += "(?:";  // captures are not asked for
    ++at_;
  }

  void repetition() {
    if (peek() == '{') {
      const size_t end = text_.find('}', at_);
      const std::string_view inner =
          end == std::string_view::npos ? "" : text_.substr(at_ + 1, end - at_ - 1);
      const size_t comma = inner.find(',');
      const std::string_view least = inner.substr(0, comma);
      const std::string_view most = comma == std::string_view::npos ? "" : inner.substr(comma + 1);
      if (least.empty() || least.size() > 4 || most.size() > 4 ||
          !std::all_of(least.begin(), least.end(), digit) ||
          !std::all_of(most.begin(), most.end(), digit)) {
        refuse("braces that are no {n}, {n,} or {n,m} with up to four digits,");
      }
      copy(inner.size() + 2);
      if (peek() == '+' || peek() == '*') refuse("a repetition of a repetition");
      if (peek() == '?') {
        // Oniguruma reads {n}? as "n times or not at all".
        if (comma == std::string_view::npos) refuse("{n}?");
        copy(1);
      }
    } else if (peek() == '?' || peek() == '*' || peek() == '+') {
      copy(1);
      if (peek() == '?' || peek() == '+') copy(1);
    }
  }

  void code_point(size_t begin, size_t digits, size_t after) {
    const std::string_view value = text_.substr(begin, digits);
    if (value.empty() || value.size() != digits || digits > 6 ||
        !std::all_of(value.begin(), value.end(), hexadecimal)) {
      refuse("a character's number that is not hexadecimal");
    }
    absl::StrAppend(&out_, "\\x{", std::string(value), "}");
    at_ = after;
  }

  // Of general categories and scripts, which is what tokenizers ask for.
  void property() {
    const size_t end = text_.find('}', at_);
    if (text_.substr(at_ + 2, 1) != "{" || end == std::string_view::npos)
      refuse("\\p without {name}");
    std::string_view name = text_.substr(at_ + 3, end - at_ - 3);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    static constexpr std::string_view kCategories[] = {
        "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N", "Nd",
        "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm",
        "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co"};
    const bool category =
        std::find(std::begin(kCategories), std::end(kCategories), name) != std::end(kCategories);
    static constexpr std::string_view kScripts[] = {
        "Arabic", "Armenian", "Bengali",  "Cyrillic", "Devanagari", "Georgian", "Greek", "Han",
        "Hangul", "Hebrew",   "Hiragana", "Katakana", "Latin",      "Tamil",    "Thai"};
    if (!category &&
        std::find(std::begin(kScripts), std::end(kScripts), name) == std::end(kScripts)) {
      refuse(absl::StrCat("\\p{", std::string(name), "}"));
    }
    absl::StrAppend(&out_, std::string(text_.substr(at_, 2)), "{", negated ? "^" : "",
                    category ? "" : "sc:", std::string(name), "}");
    at_ = end + 1;
  }

  void escape(bool in_set) {
    const char c = at_ + 1 < text_.size() ? text_[at_ + 1] : '\0';
    const auto replace = [&](const std::string& with) {
      out_ += with;
      at_ += 2;
    };
    const std::string spaces(kSpaces);
    switch (c) {
      case 'p':
      case 'P':
        return property();
      case 's':
        return replace(in_set ? spaces : absl::StrCat("[", spaces, "]"));
      case 'S':
        if (in_set) refuse("\\S in brackets");
        return replace(absl::StrCat("[^", spaces, "]"));
      case 'd':
        return replace("\\p{Nd}");
      case 'D':
        return replace("\\P{Nd}");
      case 'u':
        return code_point(at_ + 2, 4, at_ + 6);
      case 'x': {
        if (text_.substr(at_ + 2, 1) != "{") return code_point(at_ + 2, 2, at_ + 4);
        const size_t end = text_.find('}', at_);
        if (end == std::string_view::npos) refuse("\\x{ without }");
        return code_point(at_ + 3, end - at_ - 3, end + 1);
      }
      case 't':
      case 'n':
      case 'r':
      case 'f':
        return copy(2);
      case 'v':
        return replace("\\x{b}");
      default:
        break;
    }
    const bool sign = c > ' ' && c < 0x7f && !letter(c) && !digit(c);
    if (!sign && c != ' ') refuse(absl::StrCat("\\", std::string(1, c)));
    copy(2);
  }

  void set() {
    copy(1);
    if (peek() == '^') copy(1);
    if (peek() == ']') refuse("empty brackets");
    while (true) {
      if (at_ >= text_.size()) refuse("brackets that do not end");
      if (peek() == ']') return copy(1);
      if (peek() == '[') refuse("brackets in brackets");
      if (next_is("&&")) refuse("&& in brackets");
      if (peek() == '\\') {
        escape(/*in_set=*/true);
      } else {
        copy(utf8_character(text_, at_).bytes);
      }
    }
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
  int groups_ = 0;
  std::string out_;
};

}  // namespace

std::string translate_pattern(std::string_view expression, const std::string& where) {
  return Translator(expression, where).run();
}

}  // namespace longhaul::launch
