// Files in Protobuf text format, with errors of one sentence.
#pragma once

#include <google/protobuf/message.h>

#include <string>

namespace longhaul::launch {

// Reads `text` into `message`; `name` is how errors call it. Throws Error(kConfig) with line,
// column and, for unknown names, a suggestion.
void parse_text(const std::string& text, const std::string& name,
                google::protobuf::Message& message);

// The content of a file. Throws Error(kConfig): "cannot read the <what> <path>: ...; <fix>".
std::string read_text(const std::string& path, const std::string& what, const std::string& fix);

}  // namespace longhaul::launch
