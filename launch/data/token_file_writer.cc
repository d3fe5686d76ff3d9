#include "launch/data/token_file_writer.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/data/output_file.h"

namespace longhaul::launch {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr int64_t kMostPerSequence = std::numeric_limits<int32_t>::max();

}  // namespace

TokenFileWriter::TokenFileWriter(std::string prefix, int64_t vocabulary, TokenFileOptions options)
    : prefix_(std::move(prefix)), vocabulary_(vocabulary), wide_(vocabulary > 65536) {
  if (vocabulary < 1 || vocabulary > (int64_t{1} << 31)) {
    fail(ErrorCode::kData, absl::StrCat("a vocabulary of ", vocabulary,
                                        " tokens cannot be written: 1 to 2^31 are possible"));
  }
  if (options.documents > 0) restore_lengths(options.documents, options.tokens);
  const auto output = [&](const char* ending, int64_t kept) {
    std::error_code error;
    const std::string path = prefix_ + ending;
    const auto bytes = kept > 0 ? std::filesystem::file_size(path + ".partial", error) : 0;
    if (error) {
      fail(ErrorCode::kData, absl::StrCat("'", path, ".partial' is gone, but '", prefix_,
                                          ".progress' is there: remove it to begin anew"));
    }
    if (static_cast<int64_t>(bytes) < kept) {
      fail(ErrorCode::kData,
           absl::StrCat("'", path, ".partial' is shorter than the ", kept, " bytes that '", prefix_,
                        ".progress' says: remove both"));
    }
    return std::make_unique<OutputFile>(path, kept);
  };
  tokens_ = options.tokens;
  bin_ = output(".bin", tokens_ * (wide_ ? 4 : 2));
  if (options.mask) mask_ = output(".mask", tokens_);
  if (options.resumable) document_lengths_ = output(".lengths", 8 * options.documents);
  // Until something else is on the disk, it is worth what it was worth to the writer before.
  if (options.documents > 0) {
    for (OutputFile* file : {bin_.get(), mask_.get(), document_lengths_.get()}) {
      if (file != nullptr) file->leave();
    }
  }
}

TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::restore_lengths(int64_t documents, int64_t tokens) {
  std::ifstream file(prefix_ + ".lengths.partial", std::ios::binary);
  std::vector<int64_t> lengths(static_cast<size_t>(documents));
  file.read(reinterpret_cast<char*>(lengths.data()),
            static_cast<std::streamsize>(lengths.size() * sizeof(int64_t)));
  int64_t sum = file ? 0 : -1;
  for (const int64_t length : lengths) {
    if (sum >= 0) sum = length < 0 || length > tokens - sum ? -1 : sum + length;
  }
  if (sum != tokens) {
    fail(ErrorCode::kData, absl::StrCat("'", prefix_, ".lengths.partial' does not fit '", prefix_,
                                        ".progress': remove that to begin anew"));
  }
  for (const int64_t length : lengths) enter_lengths(length);
}

void TokenFileWriter::extend(std::span<const int32_t> tokens, std::span<const uint8_t> learned) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary_) {
      fail(ErrorCode::kData, absl::StrCat("token ", token, " of document ", documents(),
                                          " is outside the vocabulary of ", vocabulary_));
    }
  }
  LONGHAUL_CHECK(learned.empty() || (mask_ != nullptr && learned.size() == tokens.size()), prefix_);
  if (wide_) {
    bin_->write(std::as_bytes(tokens));
  } else {
    narrow_.assign(tokens.begin(), tokens.end());
    bin_->write(std::as_bytes(std::span(narrow_)));
  }
  if (mask_ != nullptr) {
    if (learned.empty()) {
      all_learned_.assign(tokens.size(), 1);
      learned = all_learned_;
    }
    mask_->write(std::as_bytes(learned));
  }
  tokens_ += static_cast<int64_t>(tokens.size());
  document_tokens_ += static_cast<int64_t>(tokens.size());
}

void TokenFileWriter::end_document() {
  enter_lengths(document_tokens_);
  if (document_lengths_ != nullptr) document_lengths_->write_value(document_tokens_);
  document_tokens_ = 0;
}

void TokenFileWriter::enter_lengths(int64_t tokens) {
  first_sequences_.push_back(static_cast<int64_t>(lengths_.size()));
  do {
    const int64_t length = std::min(tokens, kMostPerSequence);
    lengths_.push_back(static_cast<int32_t>(length));
    tokens -= length;
  } while (tokens > 0);
}

void TokenFileWriter::checkpoint() {
  LONGHAUL_CHECK(document_tokens_ == 0 && document_lengths_ != nullptr, prefix_);
  for (OutputFile* file : {bin_.get(), mask_.get(), document_lengths_.get()}) {
    if (file == nullptr) continue;
    file->sync();
    file->leave();
  }
}

void TokenFileWriter::finish(const std::function<void()>& before_names) {
  LONGHAUL_CHECK(document_tokens_ == 0, "finish() after end_document()");
  OutputFile idx(prefix_ + ".idx");
  idx.write(kMagic);
  idx.write_value(uint64_t{1});
  idx.write_value(wide_ ? uint8_t{4} : uint8_t{8});
  idx.write_value(static_cast<uint64_t>(lengths_.size()));
  idx.write_value(static_cast<uint64_t>(first_sequences_.size() + 1));
  idx.write(std::as_bytes(std::span(lengths_)));
  int64_t offset = 0;
  for (const int32_t length : lengths_) {
    idx.write_value(offset);
    offset += int64_t{length} * (wide_ ? 4 : 2);
  }
  for (const int64_t sequence : first_sequences_) idx.write_value(sequence);
  idx.write_value(static_cast<int64_t>(lengths_.size()));
  idx.sync();
  bin_->sync();
  if (mask_ != nullptr) mask_->sync();
  if (before_names) before_names();
  // The tokens of one corpus must never stand beside the index of another, so a program killed
  // here leaves no index rather than a wrong one.
  ::unlink((prefix_ + ".idx").c_str());
  ::unlink((prefix_ + ".mask").c_str());
  bin_->commit();
  if (mask_ != nullptr) mask_->commit();
  idx.commit();
  if (document_lengths_ != nullptr) ::unlink((prefix_ + ".lengths.partial").c_str());
}

}  // namespace longhaul::launch
