// Which tokens a sample consists of: a pure function of (seed, sample index), so that the data do
// not depend on ranks, on the batch size or on where a run was interrupted.
#pragma once

#include <cstdint>

namespace longhaul::launch {

// The corpus is cut into floor(tokens / sequence_length) windows; what is left at its end is not
// used. Each epoch visits every window once, in an order of its own: a keyed permutation (Feistel
// network over Philox, with cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite
// domains"), which needs no table. There is no last epoch.
class SampleOrder {
 public:
  // Throws Error(kData) if there is not one window.
  SampleOrder(int64_t tokens, int64_t sequence_length, uint64_t seed);

  int64_t samples_per_epoch() const { return windows_; }
  // First token of sample 0, 1, 2, ...
  int64_t begin(int64_t sample_index) const;

 private:
  int64_t windows_ = 0;
  int64_t sequence_length_ = 0;
  uint64_t seed_ = 0;
  int half_bits_ = 0;  // of the Feistel network's two halves
};

}  // namespace longhaul::launch
