#include "launch/data/batch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

// Names the file and the split where SampleOrder could only name a number of tokens.
Split checked(const TokenFile& file, Split split, int64_t sequence_length) {
  LONGHAUL_CHECK(0 <= split.begin && split.begin <= split.end && split.end <= file.tokens());
  const int64_t tokens = split.end - split.begin;
  if (sequence_length > tokens) {
    const std::string part = tokens == file.tokens() ? std::string()
                                                     : absl::StrCat(" in the part [", split.begin,
                                                                    ", ", split.end, ") used here");
    fail(ErrorCode::kData, absl::StrCat("corpus '", std::string(file.name()), "' has ", tokens,
                                        " tokens", part, ", fewer than one sequence of ",
                                        sequence_length, ": set data.sequence_length to at most ",
                                        tokens, " or prepare a larger corpus"));
  }
  return split;
}

}  // namespace

Split held_out(int64_t tokens, double fraction, int64_t sequence_length) {
  const auto tail = static_cast<int64_t>(fraction * static_cast<double>(tokens));
  return {tail >= sequence_length ? tokens - tail : tokens, tokens};
}

DataLoader::DataLoader(const TokenFile& file, Split split, int64_t sequence_length, uint64_t seed,
                       int64_t prefix_length)
    : file_(file),
      split_(checked(file, split, sequence_length)),
      sequence_length_(sequence_length),
      prefix_length_(prefix_length),
      order_(split.end - split.begin, sequence_length, seed) {}

parallel::Documents DataLoader::documents_of(int64_t begin) const {
  std::vector<int64_t> begins{0};
  for (int64_t i = file_.document_at(begin) + 1; i < file_.documents(); ++i) {
    const int64_t next = file_.document_begin(i) - begin;
    if (next >= sequence_length_) break;
    if (next > begins.back()) begins.push_back(next);  // not for empty documents
  }
  return parallel::Documents(sequence_length_, std::move(begins));
}

bool DataLoader::last_has_label(int64_t begin) const {
  const int64_t next = begin + sequence_length_;
  return next < split_.end && file_.document_at(next) == file_.document_at(next - 1);
}

int64_t DataLoader::seen_labels(const parallel::Documents& documents, int64_t document) const {
  const int64_t tokens = documents.end(document) - documents.begin(document);
  return std::max<int64_t>(0, std::min(prefix_length_, tokens) - 1);
}

Sample DataLoader::load(int64_t sample_index) const {
  const int64_t begin = split_.begin + order_.begin(sample_index);
  const auto length = static_cast<size_t>(sequence_length_);
  Sample sample;
  sample.index = sample_index;
  sample.documents = documents_of(begin);
  sample.tokens.resize(length);
  file_.read(begin, sample.tokens);
  sample.labels.assign(sample.tokens.begin() + 1, sample.tokens.end());
  sample.labels.push_back(-1);
  if (last_has_label(begin)) file_.read(begin + sequence_length_, std::span(sample.labels).last(1));
  for (int64_t i = 0; i + 1 < sample.documents.count(); ++i) {
    sample.labels[static_cast<size_t>(sample.documents.end(i) - 1)] = -1;
  }
  for (int64_t i = 0; i < sample.documents.count(); ++i) {
    std::fill_n(sample.labels.begin() + sample.documents.begin(i), seen_labels(sample.documents, i),
                -1);
  }
  if (file_.has_mask()) {
    for (size_t i = 0; i < length; ++i) {
      int32_t& label = sample.labels[i];
      if (label >= 0 && !file_.learned(begin + static_cast<int64_t>(i) + 1)) label = -1;
    }
  }
  sample.targets = targets(sample_index);
  return sample;
}

parallel::Documents DataLoader::documents(int64_t sample_index) const {
  return documents_of(split_.begin + order_.begin(sample_index));
}

int64_t DataLoader::targets(int64_t sample_index) const {
  const int64_t begin = split_.begin + order_.begin(sample_index);
  const parallel::Documents documents = documents_of(begin);
  int64_t count = 0;
  for (int64_t i = 0; i < documents.count(); ++i) {
    // Tokens after the document's first that its prefix does not take, and the next one after the
    // sample if that goes on with it.
    const bool goes_on = i + 1 == documents.count() && last_has_label(begin);
    const int64_t end = begin + documents.end(i) + (goes_on ? 1 : 0);
    const int64_t first = begin + documents.begin(i) + 1 + seen_labels(documents, i);
    if (first < end) count += file_.learned(first, end);
  }
  return count;
}

}  // namespace longhaul::launch
