// model.safetensors.index.json: which file of a Hugging Face folder has which tensor.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace longhaul::checkpoint::huggingface {

inline constexpr char kSingleFile[] = "model.safetensors";
inline constexpr char kIndexFile[] = "model.safetensors.index.json";

// Tensor -> file name, of the index's text; `path` is for messages. File names lead nowhere but
// into the index's own folder. Throws Error(kCheckpoint).
std::map<std::string, std::string> parse_index(std::string_view json, const std::string& path);

// The reverse. total_bytes: of all tensors.
std::string index_text(const std::map<std::string, std::string>& files, int64_t total_bytes);

}  // namespace longhaul::checkpoint::huggingface
