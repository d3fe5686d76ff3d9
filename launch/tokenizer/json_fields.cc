#include "launch/tokenizer/json_fields.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

constexpr int64_t kLargestFile = int64_t{1} << 30;
constexpr int64_t kDeepest = 100;  // files have less than 10

std::string shown(const nlohmann::json& value) {
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

// Of arrays and objects in each other.
int64_t depth_of(std::string_view text) {
  int64_t depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') ++i;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '[' || c == '{') deepest = std::max(deepest, ++depth);
    if (c == ']' || c == '}') --depth;
  }
  return deepest;
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& file) {
  if (const int64_t depth = depth_of(text); depth > kDeepest) {
    fail(ErrorCode::kData, absl::StrCat("'", file, "' is nested ", depth, " deep; at most ",
                                        kDeepest, " are possible: the file is damaged"));
  }
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kData, absl::StrCat("'", file, "' is no valid JSON: ", error.what()));
  }
}

nlohmann::json read_json_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) {
    fail(ErrorCode::kData,
         absl::StrCat("cannot read '", path, "': ", std::generic_category().message(errno)));
  }
  const auto bytes = static_cast<int64_t>(file.tellg());
  if (bytes < 0 || bytes > kLargestFile) {
    fail(ErrorCode::kData,
         absl::StrCat("'", path, "' is no file of at most ", kLargestFile, " bytes"));
  }
  std::string text(static_cast<size_t>(bytes), '\0');
  file.seekg(0);
  if (!file.read(text.data(), bytes)) {
    fail(ErrorCode::kData, absl::StrCat("cannot read '", path, "' to its end"));
  }
  return parse_json(text, path);
}

JsonFields::JsonFields(const nlohmann::json& json, std::string file, std::string field)
    : json_(json), file_(std::move(file)), field_(std::move(field)) {
  if (!json.is_object()) refuse("", absl::StrCat("is ", json.type_name(), ", not an object"));
}

std::string JsonFields::where(const std::string& name) const {
  return absl::StrCat("'", file_, "'", field_.empty() && name.empty() ? "" : ": ", field_,
                      field_.empty() || name.empty() ? "" : ".", name);
}

void JsonFields::refuse(const std::string& name, const std::string& why) const {
  fail(ErrorCode::kData, absl::StrCat(where(name), " ", why));
}

const nlohmann::json* JsonFields::find(const std::string& name) {
  known_.insert(name);
  const auto found = json_.find(name);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

const nlohmann::json& JsonFields::require(const std::string& name) {
  const nlohmann::json* value = find(name);
  if (value == nullptr) refuse(name, "is missing: the file is damaged or of another format");
  return *value;
}

std::string JsonFields::text(const std::string& name) {
  const nlohmann::json& value = require(name);
  if (!value.is_string()) refuse(name, absl::StrCat("is ", shown(value), ", not a string"));
  return value.get<std::string>();
}

std::string JsonFields::text(const std::string& name, const std::string& unless_given) {
  return find(name) == nullptr ? unless_given : text(name);
}

bool JsonFields::flag(const std::string& name, bool unless_given) {
  const nlohmann::json* value = find(name);
  if (value == nullptr) return unless_given;
  if (!value->is_boolean()) refuse(name, absl::StrCat("is ", shown(*value), ", not true or false"));
  return value->get<bool>();
}

JsonFields JsonFields::object(const std::string& name) {
  return JsonFields(require(name), file_, field_.empty() ? name : absl::StrCat(field_, ".", name));
}

const nlohmann::json& JsonFields::array(const std::string& name) {
  const nlohmann::json& value = require(name);
  if (!value.is_array()) refuse(name, absl::StrCat("is ", shown(value), ", not an array"));
  return value;
}

void JsonFields::must_be_off(const std::string& name) {
  const nlohmann::json* value = find(name);
  if (value == nullptr || *value == false || *value == "" || *value == 0) return;
  refuse(name, absl::StrCat("is ", shown(*value), ", which is not supported: only null is"));
}

void JsonFields::done() const {
  for (const auto& [name, value] : json_.items()) {
    if (!known_.contains(name) && !value.is_null()) {
      refuse(name, absl::StrCat("is a field that is not known here (", shown(value),
                                "): such a tokenizer is not supported"));
    }
  }
}

}  // namespace longhaul::launch
