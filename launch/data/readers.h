// Input files of `longhaul data prepare` as streams of documents. Memory does not grow with a text
// file's size, and with a JSONL file's longest line only.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace longhaul::launch {

struct DocumentSink {
  std::function<void(std::string_view piece)> text;  // more of the current document
  std::function<void()> end;                         // the current document is complete
};

// The file is one document, or several if `split_on` is not empty: a line that equals it ends a
// document and belongs to none.
void read_text(const std::string& path, const std::string& split_on, const DocumentSink& sink);

// One JSON object a line; its string `field` is a document. Blank lines are passed over. Throws
// Error(kData) naming file:line.
void read_jsonl(const std::string& path, const std::string& field, const DocumentSink& sink);

}  // namespace longhaul::launch
