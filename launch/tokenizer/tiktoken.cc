#include "launch/tokenizer/tiktoken.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/tokenizer/bpe_tokenizer.h"

namespace longhaul::launch {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 24;
constexpr size_t kLongestLine = 4096;

struct SpecialRow {
  const char* content;
  int32_t id;
};

// Facts about the published vocabularies: special tokens are not in the files.
struct Family {
  std::string_view name, file, pattern;
  std::vector<SpecialRow> special;
  const char* beginning;
  const char* end;
};

std::vector<Family> families() {
  return {
      {"gpt2", "r50k_base.tiktoken", "gpt2", {{"<|endoftext|>", 50256}}, nullptr, "<|endoftext|>"},
      {"cl100k",
       "cl100k_base.tiktoken",
       "cl100k",
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}},
       nullptr,
       "<|endoftext|>"},
      {"o200k",
       "o200k_base.tiktoken",
       "o200k",
       {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}},
       nullptr,
       "<|endoftext|>"},
      {"qwen2",
       "qwen.tiktoken",
       "qwen2",
       {{"<|endoftext|>", 151643}, {"<|im_start|>", 151644}, {"<|im_end|>", 151645}},
       nullptr,
       "<|endoftext|>"},
      {"llama3",
       "",
       "cl100k",
       {{"<|begin_of_text|>", 128000},
        {"<|end_of_text|>", 128001},
        {"<|start_header_id|>", 128006},
        {"<|end_header_id|>", 128007},
        {"<|eot_id|>", 128009}},
       "<|begin_of_text|>",
       "<|end_of_text|>"},
  };
}

Family family_of(const std::string& path, const std::string& pattern) {
  const std::string file = std::filesystem::path(path).filename().string();
  for (Family& family : families()) {
    if (pattern.empty() ? !family.file.empty() && family.file == file : family.name == pattern) {
      return std::move(family);
    }
  }
  fail(ErrorCode::kData,
       absl::StrCat("'", path, "' does not say which pattern cuts its words",
                    pattern.empty() ? "" : absl::StrCat(", and '", pattern, "' is none"),
                    ": name one of gpt2, cl100k, o200k, qwen2, llama3"));
}

// Bytes by rank.
std::vector<std::string> read_ranks(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    fail(ErrorCode::kData,
         absl::StrCat("cannot read '", path, "': ", std::generic_category().message(errno)));
  }
  std::vector<std::string> tokens;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    const auto bad = [&](const std::string& why) {
      fail(ErrorCode::kData, absl::StrCat(path, ":", number, " ", why));
    };
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    std::string bytes;
    int32_t rank = -1;
    const char* const end = line.data() + line.size();
    if (line.size() > kLongestLine || space == std::string::npos ||
        !absl::Base64Unescape(absl::string_view(line.data(), space), &bytes) || bytes.empty()) {
      bad("is no line of a token in base64, a space and its rank");
    }
    if (const auto parsed = std::from_chars(line.data() + space + 1, end, rank);
        parsed.ec != std::errc() || parsed.ptr != end || rank < 0 || rank >= kMostTokens) {
      bad(absl::StrCat("has no rank in 0..", kMostTokens - 1));
    }
    if (rank > 2 * number + 65536) bad(absl::StrCat("has rank ", rank, ", far beyond its line"));
    if (tokens.size() <= static_cast<size_t>(rank)) tokens.resize(static_cast<size_t>(rank) + 1);
    std::string& token = tokens[static_cast<size_t>(rank)];
    if (!token.empty()) bad(absl::StrCat("has rank ", rank, " a second time"));
    token = std::move(bytes);
  }
  if (tokens.empty()) fail(ErrorCode::kData, absl::StrCat("'", path, "' has no tokens"));
  return tokens;
}

}  // namespace

std::unique_ptr<const Tokenizer> load_tiktoken(const std::string& path,
                                               const std::string& pattern) {
  const Family family = family_of(path, pattern);
  BpeParts parts;
  parts.name = path;
  parts.bytes = read_ranks(path);
  parts.byte_tokens.fill(-1);
  parts.whole_words = true;
  absl::flat_hash_map<std::string, int32_t> ids;
  for (size_t i = 0; i < parts.bytes.size(); ++i) {
    const std::string& bytes = parts.bytes[i];
    if (bytes.empty()) continue;
    const auto id = static_cast<int32_t>(i);
    if (!ids.emplace(bytes, id).second) {
      fail(ErrorCode::kData,
           absl::StrCat("'", path, "' has one token with two ranks, ", ids[bytes], " and ", id));
    }
    if (bytes.size() == 1) parts.byte_tokens[static_cast<uint8_t>(bytes[0])] = id;
  }
  for (const auto& [bytes, id] : ids) {
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = ids.find(absl::string_view(bytes).substr(0, cut));
      if (left == ids.end()) continue;
      const auto right = ids.find(absl::string_view(bytes).substr(cut));
      if (right != ids.end()) parts.merges.push_back({left->second, right->second, id, id});
    }
  }
  for (const SpecialRow& row : family.special) {
    const auto at = static_cast<size_t>(row.id);
    if (at >= parts.bytes.size()) parts.bytes.resize(at + 1);
    if (!parts.bytes[at].empty()) {
      fail(ErrorCode::kData,
           absl::StrCat("'", path, "' has a token of rank ", row.id, ", which is ", row.content,
                        " with '", std::string(family.name), "': name its pattern"));
    }
    parts.bytes[at] = row.content;
    AddedToken token;
    token.id = row.id;
    token.content = row.content;
    token.special = true;
    if (family.beginning != nullptr && token.content == family.beginning) {
      parts.beginning_of_text = row.id;
      parts.before_text = {row.id};
    }
    if (token.content == family.end) parts.end_of_text = row.id;
    parts.added.push_back(std::move(token));
  }
  parts.pre_tokenizer.add_split(known_pattern(family.pattern), SplitBehavior::kIsolated, path);
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

}  // namespace longhaul::launch
