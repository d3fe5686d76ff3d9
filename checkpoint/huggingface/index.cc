#include "checkpoint/huggingface/index.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint::huggingface {

namespace {

bool is_plain(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

}  // namespace

std::map<std::string, std::string> parse_index(std::string_view json, const std::string& path) {
  const auto damaged = [&](const std::string& why) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", path, "' is damaged or no index of safetensors files: ", why,
                      "; download it again"));
  };
  const auto index = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object()) damaged("it is no JSON object");
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) damaged("it has no object weight_map");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) damaged(absl::StrCat("the file of tensor '", tensor, "' is no string"));
    const auto name = file.get<std::string>();
    if (!is_plain(name)) {
      damaged(absl::StrCat("the file of tensor '", tensor, "', '", name, "', is no file name"));
    }
    files.emplace(tensor, name);
  }
  if (files.empty()) damaged("weight_map names no tensor");
  return files;
}

std::string index_text(const std::map<std::string, std::string>& files, int64_t total_bytes) {
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", files}};
  return index.dump(2) + "\n";
}

}  // namespace longhaul::checkpoint::huggingface
