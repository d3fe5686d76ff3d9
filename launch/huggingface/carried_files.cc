#include "launch/huggingface/carried_files.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "checkpoint/files.h"
#include "kernels/core/error.h"

namespace longhaul::launch::huggingface {

namespace fs = std::filesystem;

void copy_carried_files(const std::string& from, const std::string& to) {
  checkpoint::make_folder(to);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
                           "chat_template.jinja", "generation_config.json"}) {
    const fs::path source = fs::path(from) / name, target = fs::path(to) / name;
    std::error_code error;
    if (!fs::is_regular_file(source, error)) continue;
    fs::copy_file(source, target, fs::copy_options::overwrite_existing, error);
    if (!error) continue;
    fail(ErrorCode::kCheckpoint, absl::StrCat("cannot copy '", source.string(), "' to '",
                                              target.string(), "': ", error.message()));
  }
}

void carry_on(const std::string& from_run, const std::string& to_run) {
  const std::string from = absl::StrCat(from_run, "/", kCarriedFolder);
  const std::string to = absl::StrCat(to_run, "/", kCarriedFolder);
  if (from_run.empty() || !checkpoint::exists(from)) return;
  std::error_code ignored;
  if (fs::equivalent(from, to, ignored)) return;
  copy_carried_files(from, to);
  const std::string config = text_of(from + "/config.json");
  if (!config.empty()) write_text(to + "/config.json", config);
}

std::string text_of(const std::string& path) {
  constexpr int64_t kLimit = int64_t{64} << 20;
  return checkpoint::exists(path) ? checkpoint::read_file(path, kLimit) : "";
}

void write_text(const std::string& path, const std::string& text) {
  checkpoint::OutputFile file(path);
  file.write(text);
  file.finish();
}

}  // namespace longhaul::launch::huggingface
