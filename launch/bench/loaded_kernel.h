// What attention over all ranks is held against: the kernel alone, on one block of its own for
// every thread of every rank, all at the same time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dist/group.h"
#include "launch/bench/sequence_timer.h"

namespace longhaul::launch {

class LoadedKernel {
 public:
  // Collective over `group`, as is time(). Every thread of `pool` (on GPUs: the device) has a
  // causal block (without `causal`: a full one) with its equal share of `pairs`, by one call of the
  // kernel.
  LoadedKernel(dist::Group& group, const Context& ctx,
               const parallel::CoreAttentionOptions& options, int64_t pairs);
  ~LoadedKernel();

  // (query, key) pairs x query heads a second of all threads together: the sum of their rates.
  double time(SequencePass pass);

 private:
  struct Block;

  dist::Group& group_;
  Context ctx_;
  std::vector<std::unique_ptr<Block>> blocks_;
};

}  // namespace longhaul::launch
