#include "launch/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "kernels/core/error.h"
#include "launch/tokenizer/pattern.h"
#include "launch/tokenizer/pre_tokenizer.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The byte alphabet of GPT-2, built as its authors do: printable bytes in three ranges, the rest
// counted up from 256. All below U+0800.
std::vector<std::string> byte_alphabet() {
  std::vector<std::string> names(256);
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                           (byte >= 0xAE && byte <= 0xFF);
    const int code = printable ? byte : next++;
    if (code < 0x80) {
      names[byte] = std::string(1, static_cast<char>(code));
    } else {
      names[byte] = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    }
  }
  return names;
}

std::string spelled(const std::string& bytes) {
  static const std::vector<std::string> kNames = byte_alphabet();
  std::string out;
  for (const char c : bytes) out += kNames[static_cast<uint8_t>(c)];
  return out;
}

// A vocabulary: all bytes, then what merges make, in their order.
struct Naive {
  std::map<std::string, int32_t> ids;
  std::vector<std::pair<std::string, std::string>> merges;

  Naive() {
    for (int byte = 0; byte < 256; ++byte) {
      const auto size = static_cast<int32_t>(ids.size());
      ids[std::string(1, static_cast<char>(byte))] = size;
    }
  }
  void add(const std::string& left, const std::string& right) {
    const auto size = static_cast<int32_t>(ids.size());
    if (!ids.emplace(left + right, size).second) return;
    merges.emplace_back(left, right);
  }
  // By the definition: of all neighbours that are a merge, the one of the least rank, the leftmost.
  std::vector<int32_t> encode(const std::string& word) const {
    std::vector<std::string> parts;
    for (const char c : word) parts.emplace_back(1, c);
    while (true) {
      size_t best_rank = merges.size(), best = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        for (size_t rank = 0; rank < best_rank; ++rank) {
          if (merges[rank].first == parts[i] && merges[rank].second == parts[i + 1]) {
            best_rank = rank;
            best = i;
          }
        }
      }
      if (best_rank == merges.size()) break;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    std::vector<int32_t> tokens;
    for (const std::string& part : parts) tokens.push_back(ids.at(part));
    return tokens;
  }
  json model() const {
    json vocab = json::object(), pairs = json::array();
    for (const auto& [bytes, id] : ids) vocab[spelled(bytes)] = id;
    for (const auto& [left, right] : merges) pairs.push_back(spelled(left) + " " + spelled(right));
    return {{"type", "BPE"}, {"vocab", vocab}, {"merges", pairs}};
  }
};

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json split(const std::string& pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json tokenizer_json(const Naive& naive, const std::string& pattern = "") {
  const json pre = pattern.empty() ? byte_level(true)
                                   : json{{"type", "Sequence"},
                                          {"pretokenizers", {split(pattern), byte_level(false)}}};
  return {{"version", "1.0"},          {"truncation", nullptr},
          {"padding", nullptr},        {"added_tokens", json::array()},
          {"normalizer", nullptr},     {"pre_tokenizer", pre},
          {"post_processor", nullptr}, {"decoder", byte_level(true)},
          {"model", naive.model()}};
}

json added(int32_t id, const std::string& content, const std::set<std::string>& flags) {
  json token = {{"id", id}, {"content", content}};
  for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"}) {
    token[flag] = flags.contains(flag);
  }
  return token;
}

std::unique_ptr<const Tokenizer> load(const json& file) {
  const TempFolder folder;
  write_all(folder / "tokenizer.json", file.dump());
  return load_tokenizer(folder / "tokenizer.json");
}

std::string error_of(const json& file) {
  try {
    load(file);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

// Merges that chain up, overlap and compete over a small alphabet.
Naive random_merges(std::mt19937& random, const std::string& alphabet, int count) {
  Naive naive;
  std::vector<std::string> parts;
  for (const char c : alphabet) parts.emplace_back(1, c);
  for (int i = 0; i < count; ++i) {
    const std::string left = parts[random() % parts.size()], right = parts[random() % parts.size()];
    if (left.size() + right.size() > 12) continue;
    naive.add(left, right);
    parts.push_back(left + right);
  }
  return naive;
}

std::string random_text(std::mt19937& random, const std::string& alphabet, size_t length) {
  std::string text;
  while (text.size() < length) text += alphabet[random() % alphabet.size()];
  return text;
}

TEST(Tokenizer, MergesAsTheDefinitionSays) {
  std::mt19937 random(1);
  for (int round = 0; round < 6; ++round) {
    const Naive naive = random_merges(random, "abc", 40);
    json file = tokenizer_json(naive);
    if (round % 2 == 1) {  // merges as pairs
      for (json& merge : file["model"]["merges"]) {
        const auto text = merge.get<std::string>();
        const size_t space = text.find(' ');
        merge = {text.substr(0, space), text.substr(space + 1)};
      }
    }
    const auto tokenizer = load(file);
    for (int i = 0; i < 60; ++i) {
      // Letters only, so a word each; on both sides of where the method changes.
      const std::string word = random_text(random, "abc", 1 + random() % 90);
      ASSERT_EQ(tokenizer->encode(word), naive.encode(word)) << word;
      ASSERT_EQ(tokenizer->encode(word), naive.encode(word)) << "from the cache: " << word;
    }
    const std::string longest = random_text(random, "abc", 600);
    EXPECT_EQ(tokenizer->encode(longest), naive.encode(longest));
  }
}

// GPT-2's rule for ASCII, by hand.
std::vector<std::string> gpt2_words(const std::string& text) {
  const auto space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  const auto kind = [&](char c) {
    return std::isalpha(static_cast<uint8_t>(c)) != 0   ? 'a'
           : std::isdigit(static_cast<uint8_t>(c)) != 0 ? '0'
           : space(c)                                   ? ' '
                                                        : '.';
  };
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    for (const char* suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      if (end == at && text.compare(at, std::strlen(suffix), suffix) == 0) {
        end = at + std::strlen(suffix);
      }
    }
    if (end == at) {
      const size_t first = text[at] == ' ' && at + 1 < text.size() ? at + 1 : at;
      const char what = kind(text[first]);
      if (what != ' ') {
        end = first;
        while (end < text.size() && kind(text[end]) == what) ++end;
      } else {
        end = at;
        while (end < text.size() && space(text[end])) ++end;
        if (end < text.size() && end > at + 1) --end;  // the last one belongs to what follows
      }
    }
    words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

TEST(Tokenizer, CutsWordsAsGpt2) {
  std::mt19937 random(2);
  const std::string alphabet = "abst'  \n\t07.!e";
  const Naive naive = random_merges(random, "abst' .\n0", 60);
  const auto tokenizer = load(tokenizer_json(naive));
  for (int i = 0; i < 400; ++i) {
    const std::string text = random_text(random, alphabet, random() % 40);
    std::vector<int32_t> expected;
    for (const std::string& word : gpt2_words(text)) {
      const auto tokens = naive.encode(word);
      expected.insert(expected.end(), tokens.begin(), tokens.end());
    }
    ASSERT_EQ(tokenizer->encode(text), expected) << testing::PrintToString(text);
    ASSERT_EQ(tokenizer->decode(expected), text);
  }
}

std::vector<std::string> words_of(const std::string& pattern, const std::string& text) {
  PreTokenizer pre;
  pre.add_split(known_pattern(pattern), SplitBehavior::kIsolated, "test");
  MatchSpace space;
  std::vector<std::string> words;
  pre.split(text, space, [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

TEST(PreTokenizer, PublishedPatterns) {
  const std::string text = "I'LL pay 12345\u00a0\u20ac,\r\n\r\n  na\u00efve\u2019s   x=1;\n";
  EXPECT_THAT(words_of("gpt2", text),
              ElementsAre("I", "'", "LL", " pay", " 12345", "\u00a0", "\u20ac,", "\r\n\r\n ",
                          " na\u00efve", "\u2019", "s", "  ", " x", "=", "1", ";", "\n"));
  EXPECT_THAT(words_of("cl100k", text),
              ElementsAre("I", "'LL", " pay", " ", "123", "45", "\u00a0", "\u20ac,\r\n\r\n", " ",
                          " na\u00efve", "\u2019s", "  ", " x", "=", "1", ";\n"));
  EXPECT_THAT(words_of("qwen2", "12 a"), ElementsAre("1", "2", " a"));
  EXPECT_THAT(words_of("o200k", "CamelCase's //\n\nABCdef"),
              ElementsAre("Camel", "Case's", " //\n\n", "ABCdef"));
  // Small kana and marks are letters' company; an ideographic space is white space; U+180E is not.
  EXPECT_THAT(
      words_of("gpt2", "e\u0301 \u3000\u4e2d\u6587\u3002 a\u180eb"),
      ElementsAre("e", "\u0301", " ", "\u3000", "\u4e2d\u6587", "\u3002", " a", "\u180e", "b"));
  EXPECT_THAT(words_of("cl100k", "a'\u017f"), ElementsAre("a", "'\u017f"));
}

TEST(PreTokenizer, TextMayBeCutWhereItSays) {
  std::mt19937 random(3);
  const std::vector<std::string> pieces = {
      "a", "Zb", "7",      " ",      "  ",     "\n",     "\r\n",   ".",    "/",   "'s",
      "_", "\t", "\u00e9", "\u4e2d", "\u3000", "\u0301", "\u2028", "\xff", "x y", "qq\nr"};
  int cuts = 0;
  for (const char* pattern : {"gpt2", "cl100k", "qwen2", "o200k"}) {
    json file = tokenizer_json(Naive(), std::string(known_pattern(pattern)));
    file["normalizer"] = {{"type", "NFC"}};
    file["added_tokens"] = {added(300, "<|x|>", {"special"}), added(301, "qq", {"single_word"})};
    const auto tokenizer = load(file);
    for (int i = 0; i < 500; ++i) {
      std::string text;
      for (size_t n = random() % 16; n > 0; --n) text += pieces[random() % pieces.size()];
      const size_t cut = tokenizer->last_cut(text);
      if (cut == 0) continue;
      ++cuts;
      ASSERT_LT(cut, text.size());
      std::vector<int32_t> parts;
      tokenizer->encode(text.substr(0, cut), parts);
      tokenizer->encode(text.substr(cut), parts);
      ASSERT_EQ(parts, tokenizer->encode(text)) << pattern << ": " << testing::PrintToString(text);
    }
  }
  EXPECT_GT(cuts, 500);
}

// The same for words, which bytes alone would not show.
TEST(PreTokenizer, CutsAreBetweenTheSameWords) {
  std::mt19937 random(4);
  const std::vector<std::string> pieces = {"a", "Z",  "7",  " ",      "\n",     "\r",     ".",
                                           "/", "'s", "\t", "\u00e9", "\u4e2d", "\u3000", "\u0301"};
  int cuts = 0;
  for (const char* pattern : {"gpt2", "cl100k", "qwen2", "o200k"}) {
    for (int i = 0; i < 1500; ++i) {
      std::string text;
      for (size_t n = random() % 12; n > 0; --n) text += pieces[random() % pieces.size()];
      for (size_t at = 1; at < text.size(); ++at) {
        if (!PreTokenizer::is_cut(text, at)) continue;
        ++cuts;
        std::vector<std::string> parts = words_of(pattern, text.substr(0, at));
        const auto rest = words_of(pattern, text.substr(at));
        parts.insert(parts.end(), rest.begin(), rest.end());
        ASSERT_EQ(parts, words_of(pattern, text)) << pattern << testing::PrintToString(text) << at;
      }
    }
  }
  EXPECT_GT(cuts, 300);
}

TEST(Tokenizer, AnyBytesComeBack) {
  std::mt19937 random(5);
  const Naive naive = random_merges(random, "ab \xe4\xb8\xad\xff", 60);
  const auto tokenizer = load(tokenizer_json(naive, std::string(known_pattern("cl100k"))));
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (size_t n = random() % 60; n > 0; --n) {
      text += random() % 3 != 0 ? static_cast<char>(random())
                                : std::string("ab \xe4\xb8\xad\xff")[random() % 7];
    }
    const auto tokens = tokenizer->encode(text);
    ASSERT_EQ(tokenizer->decode(tokens), text);
    std::string pieces;
    for (const int32_t token : tokens) pieces += tokenizer->decode({&token, 1}, !pieces.empty());
    ASSERT_EQ(pieces, text);
  }
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{-1}), Error);
  EXPECT_THROW(tokenizer->decode(std::vector<int32_t>{100000}), Error);
}

TEST(Tokenizer, AddedTokensAndTheirFlags) {
  Naive naive;
  json file = tokenizer_json(naive);
  file["added_tokens"] = {
      added(300, "<a>", {"special"}),     added(301, "<a>b", {}),
      added(302, "<l>", {"lstrip"}),      added(303, "<r>", {"rstrip"}),
      added(304, "<w>", {"single_word"}), added(305, "\u00e9\u00e9", {"normalized"}),
      added(306, "</s>", {"special"})};
  file["normalizer"] = {{"type", "NFC"}};
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<a>"}, {"type_id", 0}}}},
        {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", json::array()},
      {"special_tokens", {{"<a>", {{"id", "<a>"}, {"ids", {300}}, {"tokens", {"<a>"}}}}}}};
  const auto tokenizer = load(file);
  EXPECT_EQ(tokenizer->vocabulary(), 307);
  EXPECT_THAT(tokenizer->encode("x<a>b<a>c"), ElementsAre('x', 301, 300, 'c'));
  EXPECT_THAT(tokenizer->encode("x \t<l> <r> \u3000y"), ElementsAre('x', 302, ' ', 303, 'y'));
  EXPECT_THAT(tokenizer->encode("<r> <l>"), ElementsAre(303, 302));
  EXPECT_THAT(tokenizer->encode("<w>.<w>"), ElementsAre(304, '.', 304));
  EXPECT_THAT(tokenizer->encode("a<w>"), ElementsAre('a', '<', 'w', '>'));
  EXPECT_THAT(tokenizer->encode("<w>\u4e2d"), ElementsAre('<', 'w', '>', 0xe4, 0xb8, 0xad));
  EXPECT_THAT(tokenizer->encode("e\u0301\u00e9"), ElementsAre(305));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{300, 'x', 305}), "<a>x\u00e9\u00e9");
  std::vector<int32_t> as_text;
  tokenizer->encode("<a><l>", as_text, SpecialTokens::kAsText);
  EXPECT_THAT(as_text, ElementsAre('<', 'a', '>', 302));
  EXPECT_TRUE(tokenizer->is_special(300));
  EXPECT_FALSE(tokenizer->is_special(302));
  EXPECT_EQ(tokenizer->added_token("<r>"), 303);
  EXPECT_EQ(tokenizer->added_token("x"), std::nullopt);
  EXPECT_EQ(tokenizer->end_of_text(), 306);
  EXPECT_EQ(tokenizer->before_text().size(), 1U);
  EXPECT_EQ(tokenizer->before_text()[0], 300);
  EXPECT_TRUE(tokenizer->after_text().empty());
}

TEST(Tokenizer, ConfigurationBesideItNamesTheEnds) {
  const TempFolder folder;
  json file = tokenizer_json(Naive());
  file["added_tokens"] = {added(300, "<|endoftext|>", {"special"}),
                          added(301, "<|im_end|>", {"special"})};
  write_all(folder / "tokenizer.json", file.dump());
  EXPECT_EQ(load_tokenizer(folder / "tokenizer.json")->end_of_text(), 300);
  write_all(folder / "tokenizer_config.json",
            R"({"bos_token": null, "eos_token": {"content": "<|im_end|>"}, "x": 1})");
  const auto tokenizer = load_tokenizer(folder / "");
  EXPECT_EQ(tokenizer->end_of_text(), 301);
  EXPECT_EQ(tokenizer->beginning_of_text(), std::nullopt);
  write_all(folder / "tokenizer_config.json", R"({"eos_token": "<other>"})");
  EXPECT_THROW(load_tokenizer(folder / "tokenizer.json"), Error);
}

TEST(Tokenizer, WholeWordsBeforeMerges) {
  Naive naive;
  naive.add("b", "c");
  naive.add("a", "b");
  naive.ids["abc"] = 400;  // no merges lead to it
  json file = tokenizer_json(naive);
  EXPECT_THAT(load(file)->encode("abc ab"), ElementsAre('a', 256, ' ', 257));
  file["model"]["ignore_merges"] = true;
  EXPECT_THAT(load(file)->encode("abc ab"), ElementsAre(400, ' ', 257));
}

// Characters first, bytes for those that the vocabulary lacks; a space is U+2581.
TEST(Tokenizer, SentencePieceWithByteFallback) {
  const std::string space = "\u2581";
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    vocab[name] = 3 + byte;
  }
  int id = 259;
  for (const std::string& token : {space, std::string("a"), std::string("b"), std::string("\u00e9"),
                                   space + "a", std::string("ab"), space + "ab", space + space}) {
    vocab[token] = id++;
  }
  json file = {{"version", "1.0"},
               {"added_tokens", {added(1, "<s>", {"special"}), added(2, "</s>", {"special"})}},
               {"normalizer",
                {{"type", "Sequence"},
                 {"normalizers",
                  {{{"type", "Prepend"}, {"prepend", space}},
                   {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space}}}}}},
               {"decoder",
                {{"type", "Sequence"},
                 {"decoders",
                  {{{"type", "Replace"}, {"pattern", {{"String", space}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}},
                   {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
               {"model",
                {{"type", "BPE"},
                 {"unk_token", "<unk>"},
                 {"fuse_unk", true},
                 {"byte_fallback", true},
                 {"vocab", vocab},
                 {"merges", {"a b", space + " a", space + " ab", space + " " + space}}}}};
  const int s = 259, a = 260, b = 261, e = 262, ab = 264, sab = 265, ss = 266;
  const auto check = [](const Tokenizer& tokenizer, const std::string& text,
                        const std::vector<int32_t>& tokens) {
    EXPECT_EQ(tokenizer.encode(text), tokens) << text;
    EXPECT_EQ(tokenizer.decode(tokens), text);
  };
  const auto llama = load(file);
  check(*llama, "ab ab", {sab, sab});
  check(*llama, "b\u00e9\n", {s, b, e, 3 + '\n'});
  check(*llama, "  ab\xff\u4e2d", {ss, sab, 3 + 0xff, 3 + 0xe4, 3 + 0xb8, 3 + 0xad});
  EXPECT_EQ(llama->decode(std::vector<int32_t>{sab}, true), " ab");
  EXPECT_EQ(llama->last_cut("ab ab"), 0U);

  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", space}, {"prepend_scheme", "first"}, {"split", false}};
  const auto mistral = load(file);
  check(*mistral, "ab ab", {sab, sab});
  EXPECT_THAT(mistral->encode("ab</s>ab b"), ElementsAre(sab, 2, ab, s, b));
  EXPECT_THAT(mistral->encode("a"), ElementsAre(263));

  // Whole words first: no merges lead to this one, and <0x61> is none.
  file["model"]["vocab"][space + "eb"] = 267;
  file["model"]["ignore_merges"] = true;
  check(*load(file), "eb", {267});
  EXPECT_THAT(load(file)->encode("</s>a"), ElementsAre(2, a));
}

TEST(Tokenizer, Tiktoken) {
  const TempFolder folder;
  // "a" to "d", "ab", "cd", "abcd", "bc" in base64.
  write_all(folder / "x.tiktoken",
            "YQ== 0\nYg== 1\nYw== 2\nZA== 3\nYWI= 4\nY2Q= 5\nYWJjZA== 6\nYmM= 7\nIA== 8\n");
  EXPECT_THROW(load_tokenizer(folder / "x.tiktoken"), Error);
  EXPECT_THROW(load_tokenizer(folder / "x.tiktoken", "nonsense"), Error);
  const auto tokenizer = load_tokenizer(folder / "x.tiktoken", "cl100k");
  EXPECT_THAT(tokenizer->encode("abcd"), ElementsAre(6));
  EXPECT_THAT(tokenizer->encode("bcd abc"), ElementsAre(1, 5, 8, 4, 2));
  EXPECT_THAT(tokenizer->encode("bc<|endoftext|>"), ElementsAre(7, 100257));
  EXPECT_EQ(tokenizer->end_of_text(), 100257);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{6, 100257}), "abcd<|endoftext|>");
  try {
    tokenizer->encode("xy");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("has no token for the byte 0x78"));
  }
  write_all(folder / "r50k_base.tiktoken", "YQ== 0\n!! 1\n");
  try {
    load_tokenizer(folder / "r50k_base.tiktoken");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("r50k_base.tiktoken:2 is no line of a token"));
  }
}

TEST(Tokenizer, RefusesByNameWhatItCannotDo) {
  Naive naive;
  naive.add("a", "b");
  const json good = tokenizer_json(naive);
  ASSERT_EQ(error_of(good), "");
  const auto refuses = [&](const char* pointer, const json& value, const std::string& message) {
    json file = good;
    file[json::json_pointer(pointer)] = value;
    EXPECT_THAT(error_of(file), HasSubstr(message)) << pointer;
  };
  refuses("/version", "2.0", "version is 2.0; only 1.0 is known");
  refuses("/truncation", {{"max_length", 5}}, "truncation is {\"max_length\":5}, which is not");
  refuses("/news", 1, "tokenizer.json': news is a field that is not known here (1)");
  refuses("/normalizer", {{"type", "Lowercase"}}, "normalizer.type is Lowercase");
  refuses("/normalizer", {{"type", "NFC"}, {"x", 1}}, "normalizer.x is a field that is not known");
  refuses("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "a"}}}, {"content", "b"}},
          "normalizer.pattern is a Regex");
  refuses("/pre_tokenizer", {{"type", "Whitespace"}}, "pre_tokenizer.type is Whitespace");
  refuses("/pre_tokenizer", nullptr, "there is no ByteLevel pre-tokenizer");
  refuses("/pre_tokenizer",
          {{"type", "Sequence"}, {"pretokenizers", {byte_level(true), {{"type", "Digits"}}}}},
          "pre_tokenizer.pretokenizers[1].type is Digits after ByteLevel");
  refuses("/pre_tokenizer",
          {{"type", "Split"},
           {"pattern", {{"String", " "}}},
           {"behavior", "Removed"},
           {"invert", false}},
          "behavior is Removed, which is not supported: text would be lost");
  refuses("/pre_tokenizer", split("(?<=a)b"), "pattern has \"(?<=\" at byte 0");
  refuses("/pre_tokenizer", split("a*"), "matches an empty text");
  refuses("/pre_tokenizer", split("(a"), "a group that does not end");
  refuses("/post_processor", {{"type", "BertProcessing"}}, "post_processor.type is BertProcessing");
  refuses("/decoder", {{"type", "WordPiece"}}, "decoder.type is WordPiece");
  refuses("/model/type", "Unigram", "model.type is Unigram; only BPE is supported");
  refuses("/model/dropout", 0.1, "model.dropout is 0.1");
  refuses("/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix is \"</w>\"");
  refuses("/model/byte_fallback", true, "is true beside a ByteLevel pre-tokenizer");
  refuses("/model/vocab", json::array(), "model.vocab is no object");
  refuses("/model/vocab/zz", 3, "gives the id 3 to");
  refuses("/model/vocab/zz", -3, "the id -3, which is not in 0..");
  refuses("/model/vocab/zz", 1e9, "the id 1000000000.0, which is not in 0..");
  refuses("/model/merges", json::array({"a b c"}), "model.merges[0] is \"a b c\": not two tokens");
  refuses("/model/merges", json::array({json::array({"a", "c"})}),
          "model.merges[0] is [\"a\",\"c\"]: not two tokens");
  refuses("/added_tokens", json::array({json{{"id", 500}}}), "added_tokens[0].content is missing");
  refuses("/added_tokens", json::array({added(5, "<a>", {})}),
          "added_tokens[0].id is 5 for \"<a>\"");
  refuses("/added_tokens", json::array({added(9'000'000, "<a>", {})}),
          "have ids up to 9000000 for 258 tokens");
  json deep = "x";
  for (int i = 0; i < 2000; ++i) deep = json::array({std::move(deep)});
  refuses("/news", deep, "tokenizer.json' is nested 2001 deep");
}

TEST(Pattern, WhatIsTranslatedAndWhatRefused) {
  EXPECT_EQ(translate_pattern("(?i:'s)| ?\\p{L}+$", "x"), "(?i:'s)| ?\\p{L}+(?m:$)");
  EXPECT_EQ(translate_pattern("\\s[^\\s\\u4e00]", "x"),
            "[\\p{Z}\\x{9}-\\x{d}\\x{85}][^\\p{Z}\\x{9}-\\x{d}\\x{85}\\x{4e00}]");
  EXPECT_EQ(translate_pattern("\\p{Han}", "x"), "\\p{sc:Han}");
  for (const char* bad :
       {"\\w",   "\\b",   "\\1",      "\\K",    "(?<n>a)", "(*ACCEPT)a", "a**",
        "a{2}+", "a{,3}", "a{99999}", "[a&&b]", "[[a]]",   "[\\S]",      "[",
        "[]",    ")",     "\\p{Foo}", "\\pL",   "\\",      "+a",         "\xff"}) {
    EXPECT_THROW(translate_pattern(bad, "x"), Error) << bad;
  }
  // What takes exponential time to fail gives up instead.
  const Pattern slow("(a|a|a|aa)+[bd]", "x");
  MatchSpace space;
  MatchRange match;
  EXPECT_THROW(slow.find(std::string(40, 'a') + "c", 0, space, match), Error);
}

}  // namespace
}  // namespace longhaul::launch
