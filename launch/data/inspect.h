// `longhaul data inspect`: what is in a corpus.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::launch {

struct InspectOptions {
  std::string prefix;    // of .bin and .idx
  int64_t document = 0;  // whose beginning is shown
  int64_t shown_tokens = 200;
  std::string tokenizer{};  // to show them as text; empty: for tokens that are all bytes
  std::string pattern{};    // of the tokenizer
};

struct InspectReport {
  std::string prefix;
  std::string dtype;  // of a token on disk
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t learned = 0;  // tokens
  // Tokens of a document: the shortest, quantiles (nearest rank), the longest; 0 without documents.
  struct Lengths {
    int64_t shortest = 0, p10 = 0, median = 0, p90 = 0, p99 = 0, longest = 0;
    bool operator==(const Lengths&) const = default;
  };
  Lengths lengths;
  int64_t document = 0;
  int64_t document_tokens = 0;
  std::vector<int32_t> beginning;  // first tokens of `document`
  // They as text, if there is a tokenizer or all are bytes, with what cannot be printed as \xNN;
  // empty otherwise.
  std::string text;
};

// Throws Error(kData) as TokenFile::open, Error(kConfig) for a document that there is not.
InspectReport inspect(const InspectOptions& options);

// For a terminal, several lines.
std::string describe(const InspectReport& report);

}  // namespace longhaul::launch
