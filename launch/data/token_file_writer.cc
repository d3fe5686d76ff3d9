#include "launch/data/token_file_writer.h"

#include <unistd.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/data/output_file.h"

namespace longhaul::launch {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr int64_t kMostPerSequence = std::numeric_limits<int32_t>::max();

}  // namespace

TokenFileWriter::TokenFileWriter(std::string prefix, int64_t vocabulary)
    : prefix_(std::move(prefix)), vocabulary_(vocabulary), wide_(vocabulary > 65536) {
  if (vocabulary < 1 || vocabulary > (int64_t{1} << 31)) {
    fail(ErrorCode::kData, absl::StrCat("a vocabulary of ", vocabulary,
                                        " tokens cannot be written: 1 to 2^31 are possible"));
  }
  bin_ = std::make_unique<OutputFile>(prefix_ + ".bin");
}

TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::extend(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary_) {
      fail(ErrorCode::kData, absl::StrCat("token ", token, " of document ", documents(),
                                          " is outside the vocabulary of ", vocabulary_));
    }
  }
  if (wide_) {
    bin_->write(std::as_bytes(tokens));
  } else {
    for (const int32_t token : tokens) bin_->write_value(static_cast<uint16_t>(token));
  }
  tokens_ += static_cast<int64_t>(tokens.size());
  document_tokens_ += static_cast<int64_t>(tokens.size());
}

void TokenFileWriter::end_document() {
  first_sequences_.push_back(static_cast<int64_t>(lengths_.size()));
  do {
    const int64_t length = std::min(document_tokens_, kMostPerSequence);
    lengths_.push_back(static_cast<int32_t>(length));
    document_tokens_ -= length;
  } while (document_tokens_ > 0);
}

void TokenFileWriter::finish() {
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
  // The tokens of one corpus must never stand beside the index of another, so a program killed
  // here leaves no index rather than a wrong one.
  ::unlink((prefix_ + ".idx").c_str());
  bin_->commit();
  idx.commit();
}

}  // namespace longhaul::launch
