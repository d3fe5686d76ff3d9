#include "launch/eval/passkey.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "kernels/core/error.h"
#include "kernels/core/random.h"

namespace longhaul::launch {

namespace {

constexpr char kPlace[] = "{key}";

std::string with_key(const std::string& text, const std::string& key) {
  return absl::StrReplaceAll(text, {{kPlace, key}});
}

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// Whether a text may be cut before `at`.
bool between_words(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens, size_t at) {
  if (at == 0 || at == tokens.size()) return true;
  const std::string before = tokenizer.decode(std::span(&tokens[at - 1], 1), true);
  const std::string after = tokenizer.decode(std::span(&tokens[at], 1), true);
  return (!before.empty() && is_space(before.back())) ||
         (!after.empty() && is_space(after.front()));
}

// The nearest place not after `wanted` and not far before it; `wanted` itself if there is none.
size_t word_border(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens, size_t wanted) {
  constexpr size_t kFar = 64;
  for (size_t back = 0; back <= std::min(wanted, kFar); ++back) {
    if (between_words(tokenizer, tokens, wanted - back)) return wanted - back;
  }
  return wanted;
}

}  // namespace

void check(const PasskeyOptions& options) {
  if (options.lengths.empty()) {
    fail(ErrorCode::kConfig, "--passkey wants --lengths, e.g. --lengths 1024,4096");
  }
  constexpr int64_t kMost = int64_t{1} << 30;
  for (const int64_t length : options.lengths) {
    if (length > kMost) {
      fail(ErrorCode::kConfig, absl::StrCat("--lengths: ", length, " is more than 2^30 tokens"));
    }
  }
  for (const double depth : options.depths) {
    if (!(depth >= 0 && depth <= 1)) {
      fail(ErrorCode::kConfig,
           absl::StrCat("--depths: ", depth, " is not from 0, the beginning, to 1, the end"));
    }
  }
  if (options.depths.empty()) fail(ErrorCode::kConfig, "--depths is empty; give e.g. 0,0.5,1");
  if (options.trials < 1) {
    fail(ErrorCode::kConfig, absl::StrCat("--trials ", options.trials, " is too small; give 1"));
  }
  if (options.needle.find(kPlace) == std::string::npos) {
    fail(ErrorCode::kConfig, "--needle says no key; it needs {key} where the key is to stand");
  }
}

PasskeyText make_passkey_text(const PasskeyOptions& options, const Tokenizer& tokenizer,
                              const std::vector<int32_t>& haystack, int64_t length, double depth,
                              int64_t trial) {
  LONGHAUL_CHECK(!haystack.empty() && depth >= 0 && depth <= 1);
  // Texts of another length or depth are other texts.
  const RandomKey random{
      .seed = options.seed,
      .stream = stream_of(absl::StrCat("passkey ", length, " ", std::bit_cast<uint64_t>(depth)))};
  const uint64_t bits = random_u64(random, static_cast<uint64_t>(2 * trial));
  PasskeyText text{.prompt = {}, .key = absl::StrCat(10000 + bits % 90000)};
  const std::vector<int32_t> needle = tokenizer.encode(with_key(options.needle, text.key));
  const std::vector<int32_t> question = tokenizer.encode(with_key(options.question, text.key));
  text.answer_tokens = static_cast<int64_t>(tokenizer.encode(text.key).size());
  const auto before = tokenizer.before_text();
  const int64_t others =
      static_cast<int64_t>(before.size() + needle.size() + question.size()) + text.answer_tokens;
  if (length < others) {
    fail(ErrorCode::kConfig, absl::StrCat("--lengths: ", length,
                                          " tokens are too few; needle, "
                                          "question and answer alone are ",
                                          others));
  }
  std::vector<int32_t> filler;
  const uint64_t begin = random_u64(random, static_cast<uint64_t>(2 * trial + 1)) % haystack.size();
  for (int64_t i = 0; i < length - others; ++i) {
    filler.push_back(haystack[(begin + static_cast<uint64_t>(i)) % haystack.size()]);
  }
  const auto wanted = static_cast<size_t>(std::llround(depth * static_cast<double>(filler.size())));
  const auto cut = static_cast<std::ptrdiff_t>(word_border(tokenizer, filler, wanted));
  const auto append = [&](auto from, auto to) { text.prompt.insert(text.prompt.end(), from, to); };
  append(before.begin(), before.end());
  append(filler.begin(), filler.begin() + cut);
  text.needle_token = static_cast<int64_t>(text.prompt.size());
  append(needle.begin(), needle.end());
  append(filler.begin() + cut, filler.end());
  append(question.begin(), question.end());
  return text;
}

bool answers(const std::string& answer, const std::string& key) {
  const auto first = std::ranges::find_if_not(answer, is_space);
  const std::string_view said(first, answer.end());
  const bool longer =
      said.size() > key.size() && '0' <= said[key.size()] && said[key.size()] <= '9';
  return said.starts_with(key) && !longer;
}

}  // namespace longhaul::launch
