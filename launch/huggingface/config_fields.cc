#include "launch/huggingface/config_fields.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch::huggingface {

bool Fields::has(const std::string& name) const {
  const auto found = object_.find(name);
  return found != object_.end() && !found->is_null();
}

void Fields::refuse(const std::string& name, const std::string& why) const {
  const auto found = object_.find(name);
  std::string value = found == object_.end()
                          ? "missing"
                          : found->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (value.size() > 200) value = value.substr(0, 200) + "...";
  fail(ErrorCode::kCheckpoint, absl::StrCat(path_, ": ", prefix_, name, " is ", value, "; ", why));
}

bool Fields::wants(const std::string& name, bool has_default) const {
  if (has(name)) return true;
  if (!has_default) refuse(name, "the model cannot be known without it");
  return false;
}

int64_t Fields::integer(const std::string& name, std::optional<int64_t> otherwise) const {
  if (!wants(name, otherwise.has_value())) return *otherwise;
  const nlohmann::json& value = object_.at(name);
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() &&
       value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))) {
    refuse(name, "it must be a whole number");
  }
  return value.get<int64_t>();
}

double Fields::number(const std::string& name, std::optional<double> otherwise) const {
  if (!wants(name, otherwise.has_value())) return *otherwise;
  if (!object_.at(name).is_number() || !std::isfinite(object_.at(name).get<double>())) {
    refuse(name, "it must be a finite number");
  }
  return object_.at(name).get<double>();
}

bool Fields::flag(const std::string& name, bool otherwise) const {
  if (!has(name)) return otherwise;
  if (!object_.at(name).is_boolean()) refuse(name, "it must be true or false");
  return object_.at(name).get<bool>();
}

std::string Fields::text(const std::string& name, std::optional<std::string> otherwise) const {
  if (!wants(name, otherwise.has_value())) return *otherwise;
  if (!object_.at(name).is_string()) refuse(name, "it must be a string");
  return object_.at(name).get<std::string>();
}

}  // namespace longhaul::launch::huggingface
