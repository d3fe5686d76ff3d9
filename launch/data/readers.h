// Input files of `longhaul data prepare`, cut into blocks of about a mebibyte that can be tokenized
// one by one. Memory grows with a JSONL file's longest line, and with a text's longest stretch
// without a place to cut it (Tokenizer::last_cut), which for some tokenizers is a document.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

// A part of a file: whole rows, or text of one or several documents.
struct Block {
  bool rows = false;
  std::string text{};
  // Text: the first document begins here, not in an earlier block; and where documents end, bytes.
  // After the last end, more of a document may follow, to be continued in the next block.
  bool begins_document = true;
  std::vector<size_t> ends{};
  // Rows: for messages.
  std::string path{};
  int64_t first_line = 1;
};

using BlockSink = std::function<void(Block)>;

// The file is one document, or several if `split_on` is not empty: a line that equals it ends a
// document and belongs to none.
void read_text(const std::string& path, const std::string& split_on, const Tokenizer& tokenizer,
               const BlockSink& sink);

// Lines as they are.
void read_rows(const std::string& path, const BlockSink& sink);

}  // namespace longhaul::launch
