#include "launch/data/encode_block.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

void append(const std::vector<int32_t>& from, std::vector<int32_t>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

std::string field_names(const nlohmann::json& row) {
  std::string names;
  for (const auto& [name, value] : row.items()) {
    if (names.size() > 200) return names + ", ...";
    absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  return names;
}

const nlohmann::json& field_of(const nlohmann::json& row, const std::string& field,
                               const std::string& where, const char* option) {
  const auto found = row.find(field);
  if (found == row.end()) {
    fail(ErrorCode::kData, absl::StrCat(where, " has no field '", field, "' (it has: ",
                                        field_names(row), "): name the field with ", option));
  }
  return *found;
}

const std::string& text_of(const nlohmann::json& row, const std::string& field,
                           const std::string& where, const char* option) {
  const nlohmann::json& value = field_of(row, field, where, option);
  if (!value.is_string()) {
    fail(ErrorCode::kData,
         absl::StrCat(where, ": field '", field, "' is ", value.type_name(), ", not a string"));
  }
  return value.get_ref<const std::string&>();
}

nlohmann::json parsed_row(std::string_view line, const std::string& where) {
  nlohmann::json row;
  try {
    row = nlohmann::json::parse(line);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kData, absl::StrCat(where, " is no valid JSON: ", error.what()));
  }
  if (!row.is_object()) {
    fail(ErrorCode::kData, absl::StrCat(where, " is ", row.type_name(), ", not an object"));
  }
  return row;
}

void encode_row(std::string_view line, const std::string& where, const EncodeOptions& options,
                EncodedBlock& out) {
  const nlohmann::json row = parsed_row(line, where);
  MaskedTokens& text = out.text;
  if (options.chat != nullptr) {
    options.chat->encode(field_of(row, options.field, where, "--field"),
                         absl::StrCat(where, ": field '", options.field, "'"), text);
    out.ends.push_back(static_cast<int64_t>(text.tokens.size()));
    return;
  }
  const std::string& document = text_of(row, options.field, where, "--field");
  const bool prompted = !options.prompt_field.empty();
  const std::string* prompt =
      prompted ? &text_of(row, options.prompt_field, where, "--prompt-field") : nullptr;
  if (document.empty() && (prompt == nullptr || prompt->empty())) {
    ++out.empty_documents;
    return;
  }
  append(options.before, text.tokens);
  if (prompt != nullptr) {
    options.tokenizer.encode(*prompt, text.tokens, options.special);
    text.mark(false);
  }
  const bool goes_on = prompt != nullptr && !prompt->empty();
  options.tokenizer.encode(document, text.tokens, options.special,
                           goes_on ? Before::kText : Before::kNothing);
  append(options.after, text.tokens);
  if (prompt != nullptr) text.mark(true);
  out.ends.push_back(static_cast<int64_t>(text.tokens.size()));
}

void encode_rows(const Block& block, const EncodeOptions& options, EncodedBlock& out) {
  std::string_view text = block.text;
  for (int64_t number = block.first_line; !text.empty(); ++number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    encode_row(line, absl::StrCat(block.path, ":", number), options, out);
  }
}

void encode_text(const Block& block, const EncodeOptions& options, EncodedBlock& out) {
  std::vector<int32_t>& tokens = out.text.tokens;
  const std::string_view text = block.text;
  size_t begin = 0;
  bool begins = block.begins_document;
  for (size_t i = 0; i <= block.ends.size(); ++i) {
    const bool whole = i < block.ends.size();
    const size_t end = whole ? block.ends[i] : text.size();
    if (begins && begin == end) {
      if (whole) ++out.empty_documents;
      continue;
    }
    if (begins) append(options.before, tokens);
    options.tokenizer.encode(text.substr(begin, end - begin), tokens, options.special);
    if (whole) {
      append(options.after, tokens);
      out.ends.push_back(static_cast<int64_t>(tokens.size()));
    }
    begin = end;
    begins = true;
  }
}

}  // namespace

EncodedBlock encode_block(const Block& block, const EncodeOptions& options) {
  EncodedBlock out;
  if (block.rows) {
    encode_rows(block, options, out);
  } else {
    encode_text(block, options, out);
  }
  return out;
}

}  // namespace longhaul::launch
