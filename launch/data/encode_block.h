// Blocks of input files to tokens.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/data/chat.h"
#include "launch/data/readers.h"

namespace longhaul::launch {

// How documents become tokens.
struct EncodeOptions {
  const Tokenizer& tokenizer;
  const ChatTemplate* chat = nullptr;  // rows are conversations
  std::string field;                   // of a row, which is the document
  std::string prompt_field;            // of a row: comes before it and is not learned; empty: none
  SpecialTokens special = SpecialTokens::kRecognised;
  // Of every document that is not a conversation and not empty.
  std::vector<int32_t> before, after;
};

struct EncodedBlock {
  MaskedTokens text;            // `learned` is empty if everything is
  std::vector<int64_t> ends;    // where documents end, in tokens
  int64_t empty_documents = 0;  // left out
};

// Throws Error(kData) for rows that are not as they should be, naming file:line. Thread-safe.
EncodedBlock encode_block(const Block& block, const EncodeOptions& options);

}  // namespace longhaul::launch
