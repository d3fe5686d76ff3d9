// A tokenized corpus on disk, in the format of Megatron-LM: <prefix>.bin has the tokens,
// <prefix>.idx says where documents begin. Both are memory-mapped: opening reads the index, not the
// tokens.
//
// <prefix>.idx, little-endian, without padding:
//   "MMIDIDX\0\0"          9 bytes
//   u64 version            1
//   u8  type of a token    4: int32, 8: uint16
//   u64 sequences S
//   u64 length D of the document index (documents + 1)
//   i32 tokens of each sequence         [S]
//   i64 byte offset of each in the .bin [S]
//   i64 first sequence of each document, then S [D]
// We write one sequence a document, more only if a document has over 2^31 - 1 tokens.
//
// <prefix>.mask, ours and only where it is needed, says which tokens are learned: a byte for each
// token, 1 if it is a target of the loss, 0 if it is only given (a prompt). Without the file all
// are learned.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace longhaul::launch {

class TokenFile {
 public:
  // Throws Error(kData) for a file that is missing, truncated, of another format, or inconsistent.
  // With <prefix>.mask, if there is one.
  static TokenFile open(const std::string& prefix);

  std::string_view name() const { return prefix_; }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  // In tokens; i may be documents(), which gives tokens(). Documents may be empty.
  int64_t document_begin(int64_t i) const;
  // The document that holds a token: the last one that begins at or before it.
  int64_t document_at(int64_t token) const;

  int bytes_per_token() const { return bytes_per_token_; }
  std::string_view dtype_name() const { return bytes_per_token_ == 2 ? "uint16" : "int32"; }

  // Tokens [begin, begin + out.size()). Thread-safe.
  void read(int64_t begin, std::span<int32_t> out) const;

  bool has_mask() const { return mask_ != nullptr; }
  // Whether a token is to be learned, and how many of [begin, end) are. Thread-safe.
  bool learned(int64_t token) const { return learned(token, token + 1) == 1; }
  int64_t learned(int64_t begin, int64_t end) const;

 private:
  class Mapping;
  TokenFile() = default;
  void check_index();
  int64_t index_i64(int64_t offset) const;

  std::string prefix_;
  std::shared_ptr<const Mapping> bin_, idx_, mask_;  // mask_ may be null
  int64_t tokens_ = 0;
  int64_t sequences_ = 0;
  int64_t documents_ = 0;
  int bytes_per_token_ = 0;
};

}  // namespace longhaul::launch
