#include "launch/data/prepare_inputs.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

[[noreturn]] void unusable(const std::string& path, const std::string& why) {
  fail(ErrorCode::kData, absl::StrCat("input '", path, "' ", why));
}

bool is_output(const fs::path& path, const PrepareOptions& options) {
  static constexpr const char* kEndings[] = {".bin",  ".idx",     ".mask",
                                             ".json", ".lengths", ".progress"};
  const fs::path ours = fs::absolute(path).lexically_normal();
  const std::string prefix = fs::absolute(options.output).lexically_normal().string();
  return std::any_of(std::begin(kEndings), std::end(kEndings), [&](const char* ending) {
    return ours == fs::path(prefix + ending) || ours == fs::path(prefix + ending + ".partial");
  });
}

[[noreturn]] void refuse_output(const std::string& path, const PrepareOptions& options) {
  fail(ErrorCode::kConfig,
       absl::StrCat("input '", path, "' would be overwritten by the output with the prefix '",
                    options.output, "'; choose another --output"));
}

// Whether what lies in an input folder where an output will is one of ours, and no text.
bool is_ours(const fs::path& path) {
  if (path.extension() != ".json") return true;  // no ending of a text
  std::ifstream file(path);
  const json record = json::parse(file, nullptr, /*allow_exceptions=*/false);
  return record.is_object() && record.contains("source") && record.contains("version");
}

void add_folder(const std::string& folder, const PrepareOptions& options,
                std::vector<std::string>& files) {
  std::vector<std::string> found;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error);
  while (!error && it != fs::recursive_directory_iterator()) {
    const bool hidden = it->path().filename().string().starts_with('.');
    if (hidden && it->is_directory()) it.disable_recursion_pending();
    if (!hidden && it->is_regular_file()) {
      if (!is_output(it->path(), options)) {
        found.push_back(it->path().string());
      } else if (!is_ours(it->path())) {
        refuse_output(it->path().string(), options);
      }
    }
    it.increment(error);
  }
  if (error) unusable(folder, absl::StrCat("cannot be listed: ", error.message()));
  if (found.empty()) unusable(folder, "is a folder without files");
  std::sort(found.begin(), found.end());
  files.insert(files.end(), found.begin(), found.end());
}

json file_record(const std::string& path) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  if (error) unusable(path, absl::StrCat("cannot be examined: ", error.message()));
  const auto time = fs::last_write_time(path, error);
  if (error) unusable(path, absl::StrCat("cannot be examined: ", error.message()));
  return {{"path", fs::absolute(path).lexically_normal().string()},
          {"bytes", bytes},
          {"modified_ns",
           std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count()}};
}

}  // namespace

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
      if (is_output(input, options)) refuse_output(input, options);
      files.push_back(input);
    } else if (fs::exists(status)) {
      unusable(input, "is neither a file nor a folder");
    } else {
      unusable(input, absl::StrCat("cannot be found: ", error.message()));
    }
  }
  return files;
}

json source_record(const PrepareOptions& options, const std::vector<std::string>& files) {
  json inputs = json::array();
  for (const std::string& path : files) inputs.push_back(file_record(path));
  json tokenizer = options.tokenizer;
  std::error_code error;
  if (options.tokenizer != "bytes" && fs::exists(options.tokenizer, error)) {
    const fs::path given = options.tokenizer;
    const bool folder = fs::is_directory(given, error);
    tokenizer = json::array();
    // Which token ends a text stands beside a tokenizer.
    for (const fs::path& path :
         {folder ? given / "tokenizer.json" : given,
          (folder ? given : given.parent_path()) / "tokenizer_config.json"}) {
      if (fs::exists(path, error)) tokenizer.push_back(file_record(path.string()));
    }
  }
  return {{"tokenizer", std::move(tokenizer)},
          {"pattern", options.pattern},
          {"split_on", options.split_on},
          {"field", options.field},
          {"chat", options.chat},
          {"prompt_field", options.prompt_field},
          {"special_as_text", options.special_as_text},
          {"bare", options.bare},
          {"inputs", std::move(inputs)}};
}

}  // namespace longhaul::launch
