// Token files of llm.c, of GPT-2's tokens (magic 20240520, version 1, uint16) and of Llama 3's
// (20240801, version 7, uint32): 256 int32 of header, of which the third is the number of tokens,
// then the tokens. Documents have no index there: each begins with a token that no text has.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::launch {

struct ImportOptions {
  std::vector<std::string> inputs;  // in this order
  std::string output;               // prefix of .bin and .idx (token_file.h)
  // The token that begins a document: unset, 50256 and 128000 as the format says; -1: a file is one
  // document.
  std::optional<int64_t> document_token;
};

struct ImportReport {
  int64_t files = 0, documents = 0, tokens = 0;
  std::string dtype;
};

// Throws Error(kData) for files that are of another format, damaged, or of both kinds.
ImportReport import_llmc(const ImportOptions& options);

}  // namespace longhaul::launch
