#include "launch/data/prepare.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/data/output_file.h"
#include "launch/data/readers.h"
#include "launch/data/token_file.h"
#include "launch/data/token_file_writer.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kRecordVersion = 1;

std::string record_path(const PrepareOptions& options) { return options.output + ".json"; }

[[noreturn]] void unusable(const std::string& path, const std::string& why) {
  fail(ErrorCode::kData, absl::StrCat("input '", path, "' ", why));
}

// The outputs may lie in a folder that is an input.
bool is_output(const fs::path& path, const PrepareOptions& options) {
  static constexpr const char* kEndings[] = {".bin",         ".idx",         ".json",
                                             ".bin.partial", ".idx.partial", ".json.partial"};
  const fs::path ours = fs::absolute(path).lexically_normal();
  const std::string prefix = fs::absolute(options.output).lexically_normal().string();
  return std::any_of(std::begin(kEndings), std::end(kEndings),
                     [&](const char* ending) { return ours == fs::path(prefix + ending); });
}

void add_folder(const std::string& folder, const PrepareOptions& options,
                std::vector<std::string>& files) {
  std::vector<std::string> found;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error);
  while (!error && it != fs::recursive_directory_iterator()) {
    const bool hidden = it->path().filename().string().starts_with('.');
    if (hidden && it->is_directory()) it.disable_recursion_pending();
    if (!hidden && it->is_regular_file() && !is_output(it->path(), options)) {
      found.push_back(it->path().string());
    }
    it.increment(error);
  }
  if (error) unusable(folder, absl::StrCat("cannot be listed: ", error.message()));
  if (found.empty()) unusable(folder, "is a folder without files");
  std::sort(found.begin(), found.end());
  files.insert(files.end(), found.begin(), found.end());
}

std::vector<std::string> list_inputs(const PrepareOptions& options) {
  if (options.inputs.empty()) {
    fail(ErrorCode::kConfig, "no input: name text files, .jsonl files or folders of them");
  }
  if (options.output.empty()) {
    fail(ErrorCode::kConfig, "no output: name the prefix of the files to write, e.g. data/corpus");
  }
  std::vector<std::string> files;
  for (const std::string& input : options.inputs) {
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (fs::is_directory(status)) {
      add_folder(input, options, files);
    } else if (fs::is_regular_file(status)) {
      files.push_back(input);
    } else if (fs::exists(status)) {
      unusable(input, "is neither a file nor a folder");
    } else {
      unusable(input, absl::StrCat("cannot be found: ", error.message()));
    }
  }
  return files;
}

// What the corpus is made from: equal records, equal corpus.
json source_record(const PrepareOptions& options, const std::vector<std::string>& files) {
  json inputs = json::array();
  for (const std::string& path : files) {
    std::error_code error;
    const auto bytes = fs::file_size(path, error);
    if (error) unusable(path, absl::StrCat("cannot be examined: ", error.message()));
    const auto time = fs::last_write_time(path, error);
    if (error) unusable(path, absl::StrCat("cannot be examined: ", error.message()));
    inputs.push_back(
        {{"path", fs::absolute(path).lexically_normal().string()},
         {"bytes", bytes},
         {"modified_ns",
          std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count()}});
  }
  return {{"tokenizer", "bytes"},
          {"vocabulary", kByteVocabulary},
          {"split_on", options.split_on},
          {"field", options.field},
          {"inputs", std::move(inputs)}};
}

// The report of an earlier run with the same source, if its corpus is still there.
std::optional<PrepareReport> earlier(const PrepareOptions& options, const json& source) {
  std::ifstream file(record_path(options));
  const json record = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object() || record.value("version", json()) != kRecordVersion ||
      record.value("source", json()) != source) {
    return std::nullopt;
  }
  PrepareReport report;
  report.up_to_date = true;
  const auto corpus = [&]() -> std::optional<TokenFile> {
    try {
      return TokenFile::open(options.output);
    } catch (const Error&) {
      return std::nullopt;  // then it is made again
    }
  }();
  const json empty = record.value("empty_documents", json());
  if (!corpus || !empty.is_number_integer() || record.value("tokens", json()) != corpus->tokens() ||
      record.value("documents", json()) != corpus->documents()) {
    return std::nullopt;
  }
  report.files = static_cast<int64_t>(source["inputs"].size());
  report.documents = corpus->documents();
  report.tokens = corpus->tokens();
  report.empty_documents = empty.get<int64_t>();
  report.dtype = std::string(corpus->dtype_name());
  return report;
}

// Bytes become tokens, documents without any are left out.
class ByteTokenizer {
 public:
  ByteTokenizer(TokenFileWriter& writer, PrepareReport& report)
      : writer_(writer), report_(report) {}

  void add(std::string_view text) {
    while (!text.empty()) {
      const std::string_view part = text.substr(0, kTokensAtATime);
      tokens_.assign(part.size(), 0);
      std::transform(part.begin(), part.end(), tokens_.begin(),
                     [](char byte) { return static_cast<int32_t>(static_cast<uint8_t>(byte)); });
      writer_.extend(tokens_);
      text.remove_prefix(part.size());
    }
  }
  void end() {
    if (writer_.document_tokens() > 0) {
      writer_.end_document();
    } else {
      ++report_.empty_documents;
    }
  }

 private:
  static constexpr size_t kTokensAtATime = 65536;
  TokenFileWriter& writer_;
  PrepareReport& report_;
  std::vector<int32_t> tokens_;
};

}  // namespace

PrepareReport prepare(const PrepareOptions& options) {
  const std::vector<std::string> files = list_inputs(options);
  const json source = source_record(options, files);
  if (auto report = earlier(options, source)) return *report;

  PrepareReport report;
  TokenFileWriter writer(options.output, kByteVocabulary);
  ByteTokenizer tokenizer(writer, report);
  const DocumentSink sink{[&](std::string_view text) { tokenizer.add(text); },
                          [&] { tokenizer.end(); }};
  for (const std::string& path : files) {
    if (path.ends_with(".jsonl")) {
      read_jsonl(path, options.field, sink);
    } else {
      read_text(path, options.split_on, sink);
    }
  }
  if (writer.documents() == 0) {
    fail(ErrorCode::kData, absl::StrCat("the ", files.size(),
                                        " input files have no text: there is nothing to train on"));
  }
  report.files = static_cast<int64_t>(files.size());
  report.documents = writer.documents();
  report.tokens = writer.tokens();
  report.dtype = std::string(writer.dtype_name());

  OutputFile record(record_path(options));
  // Paths need not be UTF-8.
  record.write(json({{"version", kRecordVersion},
                     {"source", source},
                     {"documents", report.documents},
                     {"empty_documents", report.empty_documents},
                     {"tokens", report.tokens}})
                   .dump(1, ' ', false, json::error_handler_t::replace) +
               "\n");
  // The old record goes first: it must not vouch for a corpus that is half replaced.
  std::error_code error;
  fs::remove(record_path(options), error);
  writer.finish();
  record.commit();
  return report;
}

std::string describe(const PrepareReport& report, const PrepareOptions& options) {
  return absl::StrCat(options.output, report.up_to_date ? " is up to date: " : ": ", report.tokens,
                      " tokens (", report.dtype, ") in ", report.documents, " documents from ",
                      report.files, " files",
                      report.empty_documents > 0
                          ? absl::StrCat("; ", report.empty_documents, " empty ones left out")
                          : std::string());
}

}  // namespace longhaul::launch
