// JSON that nobody has checked: every access says what it wants, and what was never asked for is
// refused, so that no setting is passed over.
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

namespace longhaul::launch {

// Throws Error(kData) naming `file` for what is no JSON, or nested so deeply that nobody wrote it.
nlohmann::json parse_json(std::string_view text, const std::string& file);

// Reads and parses a file. Throws Error(kData).
nlohmann::json read_json_file(const std::string& path);

// The fields of an object. All failures are Error(kData) that name the file and the field.
class JsonFields {
 public:
  // `json` must outlive it; `field` is its name within `file` ("model.vocab"; "": the file itself).
  JsonFields(const nlohmann::json& json, std::string file, std::string field);

  // Null if it is missing or null.
  const nlohmann::json* find(const std::string& name);
  const nlohmann::json& require(const std::string& name);

  std::string text(const std::string& name);
  std::string text(const std::string& name, const std::string& unless_given);
  bool flag(const std::string& name, bool unless_given);
  // The object or array at `name`, missing ones excluded.
  JsonFields object(const std::string& name);
  const nlohmann::json& array(const std::string& name);

  // A field that has to be missing, null, false, 0 or "".
  void must_be_off(const std::string& name);
  // A field without an influence on what is done here.
  void pass_over(const std::string& name) { known_.insert(name); }
  // Refuses fields that were not asked for.
  void done() const;

  const std::string& file() const { return file_; }
  // "'F': model.vocab"
  std::string where(const std::string& name = "") const;
  [[noreturn]] void refuse(const std::string& name, const std::string& why) const;

 private:
  const nlohmann::json& json_;
  std::string file_, field_;
  std::set<std::string> known_;
};

}  // namespace longhaul::launch
