// Fields of a JSON object, with what is wrong with them said in one sentence.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

namespace longhaul::launch::huggingface {

class Fields {
 public:
  // prefix: of names in messages, e.g. "rope_scaling.". The object must outlive this.
  Fields(const nlohmann::json& object, std::string path, std::string prefix = "")
      : object_(object), path_(std::move(path)), prefix_(std::move(prefix)) {}

  // Neither absent nor null.
  bool has(const std::string& name) const;
  // Each throws Error(kCheckpoint) for a value of another type, and, without a default, for none.
  int64_t integer(const std::string& name, std::optional<int64_t> otherwise = {}) const;
  double number(const std::string& name, std::optional<double> otherwise = {}) const;
  bool flag(const std::string& name, bool otherwise) const;
  std::string text(const std::string& name, std::optional<std::string> otherwise = {}) const;
  const nlohmann::json& value(const std::string& name) const { return object_.at(name); }

  // "<path>: <field> is <value>; <why>"
  [[noreturn]] void refuse(const std::string& name, const std::string& why) const;

 private:
  bool wants(const std::string& name, bool has_default) const;

  const nlohmann::json& object_;
  std::string path_, prefix_;
};

}  // namespace longhaul::launch::huggingface
