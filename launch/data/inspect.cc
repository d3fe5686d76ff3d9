#include "launch/data/inspect.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"
#include "launch/data/token_file.h"
#include "launch/tokenizer/tokenizer.h"

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
std::string printable(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (c == '\n' || c == '\t' || (byte >= 0x20 && byte != 0x7f)) {
      text.push_back(c);
    } else {
      absl::StrAppendFormat(&text, "\\x%02x", byte);
    }
  }
  return text;
}

std::string text_of(const std::vector<int32_t>& tokens, const InspectOptions& options) {
  if (!options.tokenizer.empty()) {
    return printable(load_tokenizer(options.tokenizer, options.pattern)->decode(tokens));
  }
  const bool bytes =
      std::all_of(tokens.begin(), tokens.end(), [](int32_t t) { return t >= 0 && t <= 255; });
  return bytes ? printable(std::string(tokens.begin(), tokens.end())) : "";
}

}  // namespace

InspectReport inspect(const InspectOptions& options) {
  const TokenFile file = TokenFile::open(options.prefix);
  InspectReport report;
  report.prefix = options.prefix;
  report.dtype = std::string(file.dtype_name());
  report.tokens = file.tokens();
  report.documents = file.documents();
  report.learned = file.learned(0, file.tokens());
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
  report.text = text_of(report.beginning, options);
  return report;
}

std::string describe(const InspectReport& report) {
  const InspectReport::Lengths& lengths = report.lengths;
  std::string text =
      absl::StrCat(report.prefix, ": ", report.tokens, " tokens (", report.dtype, ") in ",
                   report.documents, " documents\n",
                   report.learned < report.tokens
                       ? absl::StrCat(report.learned, " of them are learned, the others given\n")
                       : std::string(),
                   "tokens per document: shortest ", lengths.shortest, ", 10 % ", lengths.p10,
                   ", median ", lengths.median, ", 90 % ", lengths.p90, ", 99 % ", lengths.p99,
                   ", longest ", lengths.longest, "\n");
  if (report.beginning.empty()) return text;
  absl::StrAppend(&text, "document ", report.document, " (", report.document_tokens,
                  " tokens) begins:\n",
                  report.text.empty() ? absl::StrJoin(report.beginning, " ") : report.text, "\n");
  return text;
}

}  // namespace longhaul::launch
