#include "launch/tokenizer/tokenizer.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/tokenizer/byte_tokenizer.h"
#include "launch/tokenizer/tiktoken.h"
#include "launch/tokenizer/tokenizer_json.h"

namespace longhaul::launch {

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  encode(text, tokens);
  return tokens;
}

std::unique_ptr<const Tokenizer> load_tokenizer(const std::string& path,
                                                const std::string& pattern) {
  namespace fs = std::filesystem;
  std::error_code error;
  const bool folder = fs::is_directory(path, error);
  const std::string file = folder ? (fs::path(path) / "tokenizer.json").string() : path;
  const bool json = file.ends_with(".json");
  if (!pattern.empty() && (json || path == "bytes")) {
    fail(ErrorCode::kConfig, absl::StrCat("the pattern '", pattern, "' is given, but '", file,
                                          "' has its own: patterns are for .tiktoken files"));
  }
  if (path == "bytes") return std::make_unique<ByteTokenizer>();
  if (!fs::exists(file, error)) {
    fail(ErrorCode::kData, absl::StrCat("tokenizer '", file,
                                        "' cannot be found: name a tokenizer.json, a folder with "
                                        "one, a .tiktoken file, or \"bytes\""));
  }
  if (json) return load_tokenizer_json(file);
  if (file.ends_with(".tiktoken") || !pattern.empty()) return load_tiktoken(file, pattern);
  fail(ErrorCode::kData, absl::StrCat("tokenizer '", file,
                                      "' is neither *.json nor *.tiktoken: "
                                      "SentencePiece's own files are not supported, their "
                                      "tokenizer.json is; ranks in base64 want their pattern"));
}

}  // namespace longhaul::launch
