#include "launch/data/llmc.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/data/token_file_writer.h"

namespace longhaul::launch {
namespace {

constexpr int64_t kHeaderValues = 256;

struct Kind {
  int32_t magic, version;
  int bytes;
  int32_t document_token;
  int64_t vocabulary;
};
constexpr std::array<Kind, 2> kKinds = {Kind{20240520, 1, 2, 50256, 65536},
                                        Kind{20240801, 7, 4, 128000, int64_t{1} << 31}};

[[noreturn]] void bad(const std::string& path, const std::string& why) {
  fail(ErrorCode::kData, absl::StrCat("'", path, "' ", why));
}

class Source {
 public:
  explicit Source(const std::string& path) : path_(path), file_(path, std::ios::binary) {
    std::array<int32_t, kHeaderValues> header{};
    if (!file_) bad(path, absl::StrCat("cannot be read: ", std::generic_category().message(errno)));
    file_.read(reinterpret_cast<char*>(header.data()), sizeof header);
    for (const Kind& kind : kKinds) {
      if (file_ && header[0] == kind.magic && header[1] == kind.version) kind_ = &kind;
    }
    if (kind_ == nullptr) {
      bad(path, file_ ? absl::StrCat("is no token file of llm.c: it begins with ", header[0],
                                     " and ", header[1], ", not 20240520 and 1 or 20240801 and 7")
                      : std::string("is no token file of llm.c: it has no header"));
    }
    tokens_ = header[2];
    std::error_code error;
    const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
    const int64_t wanted = kHeaderValues * 4 + tokens_ * kind_->bytes;
    if (tokens_ < 0 || error || bytes != wanted) {
      bad(path, absl::StrCat("has ", bytes, " bytes, but its header says ", tokens_, " tokens, ",
                             wanted, " bytes: it is truncated or damaged"));
    }
  }

  const Kind& kind() const { return *kind_; }

  template <class Take>
  void read(const Take& take) {
    constexpr int64_t kAtOnce = 1 << 18;
    std::vector<char> raw;
    std::vector<int32_t> tokens;
    for (int64_t left = tokens_; left > 0;) {
      const int64_t count = std::min(left, kAtOnce);
      raw.resize(static_cast<size_t>(count * kind_->bytes));
      if (!file_.read(raw.data(), static_cast<std::streamsize>(raw.size()))) {
        bad(path_, "cannot be read to its end");
      }
      tokens.resize(static_cast<size_t>(count));
      for (size_t i = 0; i < tokens.size(); ++i) {
        uint32_t value = 0;
        std::memcpy(&value, raw.data() + i * static_cast<size_t>(kind_->bytes),
                    static_cast<size_t>(kind_->bytes));
        if (value > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
          bad(path_, absl::StrCat("has a token ", value, ", beyond 2^31 - 1: it is damaged"));
        }
        tokens[i] = static_cast<int32_t>(value);
      }
      take(tokens);
      left -= count;
    }
  }

 private:
  std::string path_;
  std::ifstream file_;
  const Kind* kind_ = nullptr;
  int64_t tokens_ = 0;
};

}  // namespace

ImportReport import_llmc(const ImportOptions& options) {
  if (options.inputs.empty()) fail(ErrorCode::kConfig, "no input: name token files of llm.c");
  for (const std::string& path : options.inputs) {
    std::error_code error;
    if (std::filesystem::equivalent(path, options.output + ".bin", error)) {
      fail(ErrorCode::kConfig,
           absl::StrCat("the input '", path, "' would be overwritten by the output '",
                        options.output, ".bin': choose another --output"));
    }
  }
  const Kind& kind = Source(options.inputs.front()).kind();
  const int64_t delimiter = options.document_token.value_or(kind.document_token);
  TokenFileWriter writer(options.output, kind.vocabulary);
  for (const std::string& path : options.inputs) {
    Source source(path);
    if (&source.kind() != &kind) {
      bad(path, absl::StrCat("has tokens of ", source.kind().bytes, " bytes, but '",
                             options.inputs.front(), "' of ", kind.bytes,
                             ": they are of different tokenizers"));
    }
    source.read([&](const std::vector<int32_t>& tokens) {
      size_t begin = 0;
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (tokens[i] != delimiter || (i == begin && writer.document_tokens() == 0)) continue;
        writer.extend(std::span(tokens).subspan(begin, i - begin));
        writer.end_document();
        begin = i;
      }
      writer.extend(std::span(tokens).subspan(begin));
    });
    // Shards are cut at a number of tokens: without an index, nobody knows whether in a document.
    if (writer.document_tokens() > 0) writer.end_document();
  }
  if (writer.tokens() == 0) fail(ErrorCode::kData, "the files have no tokens");
  ImportReport report{static_cast<int64_t>(options.inputs.size()), writer.documents(),
                      writer.tokens(), std::string(writer.dtype_name())};
  writer.finish();
  return report;
}

}  // namespace longhaul::launch
