#include "launch/data/readers.h"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

constexpr size_t kChunk = size_t{1} << 20;
constexpr size_t kLongestLine = size_t{1} << 30;

// Calls chunk(text) for the file's bytes, in order.
void for_each_chunk(const std::string& path, const std::function<void(std::string_view)>& chunk) {
  const auto unreadable = [&](int reason) {
    fail(ErrorCode::kData,
         absl::StrCat("cannot read '", path, "': ", std::generic_category().message(reason)));
  };
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
  if (file == nullptr) unreadable(errno);
  std::vector<char> buffer(kChunk);
  bool first = true;
  while (true) {
    const size_t got = std::fread(buffer.data(), 1, buffer.size(), file.get());
    if (got == 0 && std::ferror(file.get()) != 0) unreadable(errno);
    if (got == 0) return;
    const std::string_view text(buffer.data(), got);
    // A model trained on compressed bytes learns nothing, and nobody would see why.
    for (const std::string_view magic :
         {"\x1f\x8b", "\xfd\x37zXZ", "\x28\xb5\x2f\xfd", "BZh9", "PK\x03\x04"}) {
      if (first && text.starts_with(magic)) {
        fail(ErrorCode::kData, absl::StrCat("'", path, "' is compressed: unpack it first"));
      }
    }
    first = false;
    chunk(text);
  }
}

// Passes text through, except for lines that equal the separator.
class Splitter {
 public:
  Splitter(const std::string& separator, const DocumentSink& sink)
      : separator_(separator), sink_(sink) {}

  void add(std::string_view text) {
    while (!text.empty()) {
      const size_t newline = text.find('\n');
      const bool whole = newline != std::string_view::npos;
      const std::string_view part = text.substr(0, whole ? newline + 1 : text.size());
      text.remove_prefix(part.size());
      if (!undecided_) {
        sink_.text(part);
      } else {
        line_ += part;
        // Two more for "\r\n": beyond that it is no separator, and may be very long.
        if (line_.size() > separator_.size() + 2) pass_line();
      }
      if (whole) end_line();
    }
  }

  void finish() {
    end_line();
    sink_.end();
  }

 private:
  void pass_line() {
    sink_.text(line_);
    line_.clear();
    undecided_ = false;
  }
  void end_line() {
    if (undecided_ && !line_.empty()) {
      std::string_view content = line_;
      if (content.ends_with('\n')) content.remove_suffix(1);
      if (content.ends_with('\r')) content.remove_suffix(1);
      if (content == separator_) {
        sink_.end();
        line_.clear();
      } else {
        pass_line();
      }
    }
    undecided_ = true;
  }

  const std::string& separator_;
  const DocumentSink& sink_;
  std::string line_;  // what is known of a line that may be the separator
  bool undecided_ = true;
};

std::string field_names(const nlohmann::json& row) {
  std::string names;
  for (const auto& [name, value] : row.items()) {
    if (names.size() > 200) return names + ", ...";
    absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  }
  return names;
}

void read_row(const std::string& line, const std::string& field, const std::string& where,
              const DocumentSink& sink) {
  if (line.find_first_not_of(" \t\r") == std::string::npos) return;
  nlohmann::json row;
  try {
    row = nlohmann::json::parse(line);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kData, absl::StrCat(where, " is no valid JSON: ", error.what()));
  }
  if (!row.is_object()) {
    fail(ErrorCode::kData, absl::StrCat(where, " is ", row.type_name(), ", not an object"));
  }
  const auto found = row.find(field);
  if (found == row.end()) {
    fail(ErrorCode::kData, absl::StrCat(where, " has no field '", field, "' (it has: ",
                                        field_names(row), "): name the field with --field"));
  }
  if (!found->is_string()) {
    fail(ErrorCode::kData,
         absl::StrCat(where, ": field '", field, "' is ", found->type_name(), ", not a string"));
  }
  sink.text(found->get_ref<const std::string&>());
  sink.end();
}

}  // namespace

void read_text(const std::string& path, const std::string& split_on, const DocumentSink& sink) {
  if (split_on.empty()) {
    for_each_chunk(path, sink.text);
    sink.end();
    return;
  }
  Splitter splitter(split_on, sink);
  for_each_chunk(path, [&](std::string_view text) { splitter.add(text); });
  splitter.finish();
}

void read_jsonl(const std::string& path, const std::string& field, const DocumentSink& sink) {
  int64_t number = 1;
  std::string line;
  const auto where = [&] { return absl::StrCat(path, ":", number); };
  for_each_chunk(path, [&](std::string_view text) {
    while (!text.empty()) {
      const size_t newline = text.find('\n');
      const bool whole = newline != std::string_view::npos;
      line += text.substr(0, newline);
      text.remove_prefix(whole ? newline + 1 : text.size());
      if (line.size() > kLongestLine) {
        fail(ErrorCode::kData, absl::StrCat(where(), " is longer than ", kLongestLine, " bytes"));
      }
      if (!whole) break;
      read_row(line, field, where(), sink);
      line.clear();
      ++number;
    }
  });
  read_row(line, field, where(), sink);
}

}  // namespace longhaul::launch
