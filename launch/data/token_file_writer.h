// Writes a corpus in the format that token_file.h describes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::launch {

class OutputFile;

// Tokens stream to the disk; memory grows by 12 bytes a document. The files appear under their
// names in finish(); without it nothing is left, and what was there before stays.
class TokenFileWriter {
 public:
  // Tokens are uint16 if every id below `vocabulary` fits, int32 otherwise.
  TokenFileWriter(std::string prefix, int64_t vocabulary);
  ~TokenFileWriter();

  void append(std::span<const int32_t> document) {
    extend(document);
    end_document();
  }

  // A document in pieces. A token outside the vocabulary is Error(kData).
  void extend(std::span<const int32_t> tokens);
  void end_document();  // also of an empty one

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(first_sequences_.size()); }
  // Of the document that is being written.
  int64_t document_tokens() const { return document_tokens_; }
  std::string_view dtype_name() const { return wide_ ? "int32" : "uint16"; }

  void finish();

 private:
  std::string prefix_;
  int64_t vocabulary_;
  bool wide_;
  std::unique_ptr<OutputFile> bin_;
  std::vector<int32_t> lengths_;          // of the sequences
  std::vector<int64_t> first_sequences_;  // of the documents
  int64_t tokens_ = 0;
  int64_t document_tokens_ = 0;
};

}  // namespace longhaul::launch
