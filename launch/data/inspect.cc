#include "launch/data/inspect.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"
#include "launch/data/token_file.h"

namespace longhaul::launch {
namespace {

InspectReport::Lengths lengths_of(const TokenFile& file) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < file.documents(); ++i) {
    lengths.push_back(file.document_begin(i + 1) - file.document_begin(i));
  }
  if (lengths.empty()) return {};
  std::sort(lengths.begin(), lengths.end());
  const auto quantile = [&](double q) {
    const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(lengths.size())));
    return lengths[rank - 1];
  };
  return {lengths.front(), quantile(0.1),  quantile(0.5),
          quantile(0.9),   quantile(0.99), lengths.back()};
}

// UTF-8 passes through as it is, control characters are escaped.
std::string printable(const std::vector<int32_t>& tokens) {
  std::string text;
  for (const int32_t token : tokens) {
    if (token < 0 || token > 255) return "";
    const bool shown = token == '\n' || token == '\t' || (token >= 0x20 && token != 0x7f);
    if (shown) {
      text.push_back(static_cast<char>(token));
    } else {
      absl::StrAppendFormat(&text, "\\x%02x", token);
    }
  }
  return text;
}

}  // namespace

InspectReport inspect(const InspectOptions& options) {
  const TokenFile file = TokenFile::open(options.prefix);
  InspectReport report;
  report.prefix = options.prefix;
  report.dtype = std::string(file.dtype_name());
  report.tokens = file.tokens();
  report.documents = file.documents();
  report.lengths = lengths_of(file);
  report.document = options.document;
  if (file.documents() == 0 && options.document == 0) return report;
  if (options.document < 0 || options.document >= file.documents()) {
    fail(ErrorCode::kConfig,
         absl::StrCat("there is no document ", options.document, " in '", options.prefix,
                      "': it has ", file.documents(), ", counted from 0"));
  }
  const int64_t begin = file.document_begin(options.document);
  report.document_tokens = file.document_begin(options.document + 1) - begin;
  const int64_t shown = std::clamp(options.shown_tokens, int64_t{0}, report.document_tokens);
  report.beginning.resize(static_cast<size_t>(shown));
  file.read(begin, report.beginning);
  report.text = printable(report.beginning);
  return report;
}

std::string describe(const InspectReport& report) {
  const InspectReport::Lengths& lengths = report.lengths;
  std::string text =
      absl::StrCat(report.prefix, ": ", report.tokens, " tokens (", report.dtype, ") in ",
                   report.documents, " documents\n", "tokens per document: shortest ",
                   lengths.shortest, ", 10 % ", lengths.p10, ", median ", lengths.median, ", 90 % ",
                   lengths.p90, ", 99 % ", lengths.p99, ", longest ", lengths.longest, "\n");
  if (report.beginning.empty()) return text;
  absl::StrAppend(&text, "document ", report.document, " (", report.document_tokens,
                  " tokens) begins:\n",
                  report.text.empty() ? absl::StrJoin(report.beginning, " ") : report.text, "\n");
  return text;
}

}  // namespace longhaul::launch
