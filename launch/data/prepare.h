// `longhaul data prepare`: text and JSONL files to a tokenized corpus (token_file.h), with the
// byte-level tokenizer: a token is a byte, the vocabulary is 256.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::launch {

inline constexpr int64_t kByteVocabulary = 256;

struct PrepareOptions {
  // Files, and folders whose files are taken with those of their subfolders, sorted by path and
  // without hidden ones. *.jsonl has one document a row; any other file is text.
  std::vector<std::string> inputs;
  std::string output;          // prefix of .bin, .idx, and of .json, which says what they came from
  std::string split_on{};      // text: a line equal to this ends a document; empty: one a file
  std::string field = "text";  // JSONL: the string field that is the document
};

struct PrepareReport {
  bool up_to_date = false;  // same inputs and options as before: nothing was read or written
  int64_t files = 0;
  int64_t documents = 0;
  int64_t empty_documents = 0;  // left out
  int64_t tokens = 0;
  int64_t vocabulary = kByteVocabulary;
  std::string dtype;  // of a token on disk
};

// Streams, so that inputs may exceed memory. Throws Error(kData) for an input that cannot be used,
// naming file:line, Error(kConfig) for options; no partial output stays then. Inputs count as
// unchanged if path, size and time of modification are.
PrepareReport prepare(const PrepareOptions& options);

// What `prepare` tells the user: one or two lines.
std::string describe(const PrepareReport& report, const PrepareOptions& options);

}  // namespace longhaul::launch
