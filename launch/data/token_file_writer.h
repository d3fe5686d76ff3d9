// Writes a corpus in the format that token_file.h describes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::launch {

class OutputFile;

struct TokenFileOptions {
  bool mask = false;  // which tokens are learned is written, too
  // checkpoint() can be called, and a writer can go on from one: from these numbers of tokens and
  // documents, whose files are there as <prefix>.*.partial. Otherwise both are 0.
  bool resumable = false;
  int64_t tokens = 0, documents = 0;
};

// Tokens stream to the disk; memory grows by 12 bytes a document. The files appear under their
// names in finish(); without it nothing is left, and what was there before stays.
class TokenFileWriter {
 public:
  // Tokens are uint16 if every id below `vocabulary` fits, int32 otherwise. Going on from a
  // checkpoint whose files are gone or too short is Error(kData).
  TokenFileWriter(std::string prefix, int64_t vocabulary, TokenFileOptions options = {});
  ~TokenFileWriter();

  void append(std::span<const int32_t> document) {
    extend(document);
    end_document();
  }

  // A document in pieces. A token outside the vocabulary is Error(kData). `learned` has a value,
  // 1 or 0, for each token, or none: all are learned. Only with a mask may some not be.
  void extend(std::span<const int32_t> tokens, std::span<const uint8_t> learned = {});
  void end_document();  // also of an empty one

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(first_sequences_.size()); }
  // Of the document that is being written.
  int64_t document_tokens() const { return document_tokens_; }
  std::string_view dtype_name() const { return wide_ ? "int32" : "uint16"; }

  // After a document: what was written is on the disk, and stays there if this writer is not
  // finished, to go on from.
  void checkpoint();
  // before_names: called when all is on the disk, before anything that was there before goes. Until
  // then a checkpoint stays good to go on from.
  void finish(const std::function<void()>& before_names = {});

 private:
  void enter_lengths(int64_t tokens);
  void restore_lengths(int64_t documents, int64_t tokens);

  std::string prefix_;
  int64_t vocabulary_;
  bool wide_;
  std::unique_ptr<OutputFile> bin_, mask_, document_lengths_;
  std::vector<int32_t> lengths_;          // of the sequences
  std::vector<int64_t> first_sequences_;  // of the documents
  int64_t tokens_ = 0;
  int64_t document_tokens_ = 0;
  std::vector<uint16_t> narrow_;      // tokens as they are written
  std::vector<uint8_t> all_learned_;  // ones, for a mask
};

}  // namespace longhaul::launch
