#include "launch/huggingface/carried_files.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checkpoint/files.h"

namespace longhaul::launch::huggingface {

namespace fs = std::filesystem;

namespace {

// On the disk once it returns; what an interrupted copy has left is written anew.
void copy_if_there(const std::string& from, const std::string& to, const std::string& name) {
  const std::string source = absl::StrCat(from, "/", name), target = absl::StrCat(to, "/", name);
  std::error_code error;
  if (!fs::is_regular_file(source, error)) return;
  checkpoint::remove_tree(target);
  const checkpoint::InputFile in(source);
  checkpoint::OutputFile out(target);
  constexpr int64_t kBlock = int64_t{1} << 20;
  std::vector<std::byte> block;
  for (int64_t at = 0; at < in.bytes(); at += kBlock) {
    block.resize(static_cast<size_t>(std::min(kBlock, in.bytes() - at)));
    in.read(at, block);
    out.write(block);
  }
  out.finish();
}

}  // namespace

void copy_carried_files(const std::string& from, const std::string& to) {
  checkpoint::make_folder(to);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt",
                           "chat_template.jinja", "generation_config.json"}) {
    copy_if_there(from, to, name);
  }
}

void carry_on(const std::string& from_run, const std::string& to_run) {
  const std::string from = absl::StrCat(from_run, "/", kCarriedFolder);
  const std::string to = absl::StrCat(to_run, "/", kCarriedFolder);
  if (from_run.empty() || !checkpoint::exists(from)) return;
  std::error_code ignored;
  if (fs::equivalent(from, to, ignored)) return;
  copy_carried_files(from, to);
  copy_if_there(from, to, "config.json");
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
