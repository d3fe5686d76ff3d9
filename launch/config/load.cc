#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "launch/config/config.h"
#include "launch/config/descriptors.h"
#include "launch/config/suggest.h"
#include "launch/config/text.h"

namespace longhaul::launch {
namespace {

namespace pb = google::protobuf;

// Text between the first two double quotes at or after `from`.
std::optional<std::string> quoted(const std::string& text, size_t from) {
  const size_t begin = text.find('"', from);
  if (begin == std::string::npos) return std::nullopt;
  const size_t end = text.find('"', begin + 1);
  if (end == std::string::npos) return std::nullopt;
  return text.substr(begin + 1, end - begin - 1);
}

// The parser counts a tab as up to the next multiple of 8; editors count characters.
size_t character_of_column(const std::string& line, int column) {
  int seen = 0;
  size_t i = 0;
  for (; i < line.size() && seen < column; ++i) seen += line[i] == '\t' ? 8 - seen % 8 : 1;
  return i;
}

// Where `word` begins: the parser complains after it has read past it.
size_t before(const std::string& line, const std::string& word, size_t character) {
  const size_t at = line.rfind(word, character);
  return at == std::string::npos ? character : at;
}

// Keeps the first error, in our words.
class FirstError : public pb::io::ErrorCollector {
 public:
  FirstError(const std::string& text, const pb::Descriptor& root) : root_(root) {
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines_.push_back(line);
  }

  void AddError(int line, int column, const std::string& message) override {
    if (seen_) return;
    seen_ = true;
    const auto row = static_cast<size_t>(std::max(line, 0));
    const std::string content = row < lines_.size() ? lines_[row] : "";
    size_t character = character_of_column(content, column);
    sentence_ = message;
    while (!sentence_.empty() && (sentence_.back() == '.' || sentence_.back() == ' ')) {
      sentence_.pop_back();
    }
    if (message.find("has no field named") != std::string::npos) {
      const std::string type = quoted(message, 0).value_or("");
      const size_t after_type = message.find("has no field named");
      const std::string field = quoted(message, after_type).value_or("");
      character = before(content, field, character);
      sentence_ = absl::StrCat("unknown field `", field, "`");
      const pb::Descriptor* descriptor = root_.file()->pool()->FindMessageTypeByName(type);
      if (descriptor != nullptr) {
        sentence_ = absl::StrCat(sentence_, " in ", block_name(*descriptor, root_),
                                 suggestion(field, field_names(*descriptor)));
      }
    } else if (message.find("Unknown enumeration value") != std::string::npos) {
      describe_enum(message);
      character = before(content, quoted(message, 0).value_or(""), character);
    }
    position_ = absl::StrCat(row + 1, ":", character + 1);
  }
  void AddWarning(int, int, const std::string&) override {}

  const std::string& sentence() const { return sentence_; }
  const std::string& position() const { return position_; }

 private:
  // Unknown enumeration value of "FP32" for field "dtype".
  void describe_enum(const std::string& message) {
    const std::string value = quoted(message, 0).value_or("");
    const std::string field = quoted(message, message.find(" for field ")).value_or("");
    if (const pb::EnumDescriptor* type = enum_of_field(root_, field)) {
      sentence_ = absl::StrCat("unknown value ", value, " for `", field, "`",
                               suggestion(value, value_names(*type)));
    }
  }

  const pb::Descriptor& root_;
  std::vector<std::string> lines_;
  bool seen_ = false;
  std::string sentence_;
  std::string position_;
};

}  // namespace

void parse_text(const std::string& text, const std::string& name, pb::Message& message) {
  FirstError errors(text, *message.GetDescriptor());
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  if (!parser.ParseFromString(text, &message)) {
    fail(ErrorCode::kConfig, absl::StrCat(name, ":", errors.position(), ": ", errors.sentence()));
  }
}

Config parse_config(const std::string& text, const std::string& name) {
  Config config;
  parse_text(text, name, config);
  return config;
}

std::string read_text(const std::string& path, const std::string& what, const std::string& fix) {
  std::string text;
  std::error_code problem;
  const bool folder = std::filesystem::is_directory(path, problem);
  std::ifstream file(path, std::ios::binary);
  if (file && !folder) text.assign(std::istreambuf_iterator<char>(file), {});
  if (!file || folder) {
    fail(ErrorCode::kConfig,
         absl::StrCat("cannot read the ", what, " ", path, ": ",
                      folder ? "it is a folder" : std::strerror(errno), "; ", fix));
  }
  return text;
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  const std::string text =
      read_text(path, "configuration",
                "give --config an existing file, e.g. launch/configs/quickstart.txtpb");
  Config config = parse_config(text, path);
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  return config;
}

}  // namespace longhaul::launch
