// From a corpus to training samples.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/data/sample_order.h"
#include "launch/data/token_file.h"
#include "parallel/layout/documents.h"

namespace longhaul::launch {

// N tokens with what to predict from each. Labels are shifted here, before a sample is spread over
// ranks: labels[i] is the token after tokens[i] in the corpus if that is in the same document and
// the same split and to be learned (TokenFile::learned), -1 otherwise. In a prefix language model
// also those of a document's first tokens are -1 whose next token they see: a prefix is given, not
// predicted.
struct Sample {
  int64_t index = 0;
  std::vector<int32_t> tokens;  // [N]
  std::vector<int32_t> labels;  // [N]; -1: none
  // The parts of the corpus's documents that lie in the sample. The first begins at 0 even if its
  // document began earlier.
  parallel::Documents documents = parallel::Documents::whole(0);
  int64_t targets = 0;  // labels that are not -1
};

// Tokens [begin, end) of a corpus: training or validation.
struct Split {
  int64_t begin = 0;
  int64_t end = 0;
};

// The tail of a corpus of `tokens` that training leaves for validation: data.validation_fraction of
// them, or, if that is less than a sample, nothing.
Split held_out(int64_t tokens, double fraction, int64_t sequence_length);

// The samples of a split, in the order that SampleOrder gives them. Thread-safe.
class DataLoader {
 public:
  // The file must outlive the loader. Throws Error(kData) if the split is shorter than a sequence.
  // prefix_length: of the model's mask (model/config.h).
  DataLoader(const TokenFile& file, Split split, int64_t sequence_length, uint64_t seed,
             int64_t prefix_length = 0);

  int64_t samples_per_epoch() const { return order_.samples_per_epoch(); }
  Sample load(int64_t sample_index) const;
  // Sample::documents without reading tokens: what the next sample is planned by.
  parallel::Documents documents(int64_t sample_index) const;
  // Sample::targets without reading tokens: the loss denominator of samples of other ranks.
  int64_t targets(int64_t sample_index) const;

 private:
  parallel::Documents documents_of(int64_t begin) const;
  bool last_has_label(int64_t begin) const;
  // Labels of a document of the sample, from its first on, that its prefix takes.
  int64_t seen_labels(const parallel::Documents& documents, int64_t document) const;

  const TokenFile& file_;
  Split split_;
  int64_t sequence_length_;
  int64_t prefix_length_;
  SampleOrder order_;
};

}  // namespace longhaul::launch
