// AdamW with its state divided over the ranks (ZeRO stage 1, Rajbhandari et al. 2020, section 5):
// every rank holds all parameters and its own gradient sums; gradients are reduce-scattered, each
// rank updates its shard of every bucket, and the new values are all-gathered. Frozen buckets are
// divided alike, for checkpoints, but have no state and never change.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/group.h"
#include "kernels/adamw.h"
#include "kernels/core/arena.h"
#include "parallel/shard/parameters.h"

namespace longhaul::parallel {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  // 0: no clipping
};

class ShardedOptimizer {
 public:
  // `group`: the ranks whose gradients are summed (data x sequence). The store must be allocated
  // with shards() == group.size(). State is taken from `arena`, which may be measuring.
  ShardedOptimizer(const Context&, dist::Group& group, ParameterStore& store,
                   const AdamWOptions& options, Arena& arena);

  // Collective: sums gradients over the group into this rank's shards. Returns the global norm,
  // the same bits on every rank; not finite if any gradient is not. Local gradients are kept.
  double reduce_gradients(const Context&);

  // Collective, after reduce_gradients: updates the shards and gathers the parameters.
  // step: from 1, for the bias correction.
  void step(const Context&, double learning_rate, int64_t step);

  // After parameter values were set from outside (initialisation): shards follow the values.
  void adopt_values(const Context&);
  // Collective. After the shards were set from outside (loading): values follow the shards.
  void publish_values(const Context&);

  // A range of one parameter that this rank holds, for checkpoints.
  struct Range {
    const ParameterStore::Entry* entry = nullptr;
    int64_t begin = 0;  // elements of the parameter
    int64_t end = 0;
    // [end - begin], accumulator type. Of frozen parameters: master is the values, in their type;
    // m and v are absent.
    TensorView master, m, v;
  };
  std::vector<Range> ranges() const;

 private:
  struct Shard {          // of one bucket
    TensorView gradient;  // [size / shards] summed, accumulator type
    // master is the values themselves where they are accumulators or frozen. m, v: where trained
    TensorView master, m, v;
  };
  TensorView own_part(const TensorView& bucket) const;

  dist::Group& group_;
  ParameterStore& store_;
  AdamWOptions options_;
  std::vector<Shard> shards_;
  double norm_ = 0;
};

}  // namespace longhaul::parallel
