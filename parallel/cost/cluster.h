// What a cluster's ranks and links can do: the figures that plans are priced with. Measured
// (parallel/cost/measure.h) or read from a cluster description (launch/config/cluster.proto).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

// Messages between two ranks take alpha + bytes / beta seconds (Hockney 1994).
struct Link {
  double seconds_per_message = 0;
  double bytes_per_second = 0;  // of a rank in each direction, while all ranks communicate
  // Share of a message's time in which the rank's processor makes it and cannot compute: near 1 for
  // copies through shared memory, 0 where an adapter or a copy engine does it.
  double processor_share = 0;
  bool operator==(const Link&) const = default;
};

// Seconds that the attention kernel takes for a (query, key) pair of one head, over the size of the
// segments: small ones do not fill its tiles. All of the rank's threads together, while all ranks
// of a node compute.
struct KernelProfile {
  DType dtype = DType::kF32;
  int64_t head_dim = 0;
  std::vector<int64_t> lengths;  // rising; of queries and of keys
  // [i * lengths.size() + j]: lengths[i] queries against lengths[j] keys.
  std::vector<double> forward, backward;
  // Keys that a tile computes in vain for each query at which a side of the band cuts it.
  double forward_border = 0, backward_border = 0;

  // Bilinear in the logarithms of lengths and seconds; beyond the measured lengths as at their end.
  double seconds_per_pair(Direction direction, double queries, double keys) const;
  bool operator==(const KernelProfile&) const = default;
};

// Seconds that the kernels of linear attention take for a token of one head, of a rank's tokens
// that need nothing from other ranks. All threads together, while all ranks of a node compute.
struct LinearProfile {
  DType dtype = DType::kF32;
  kernels::StateDecay state_decay = kernels::StateDecay::kScalar;  // of the kind
  int64_t head_dim = 0, value_dim = 0;
  double forward = 0, backward = 0;

  double seconds_per_token(Direction direction) const {
    return direction == Direction::kForward ? forward : backward;
  }
  bool operator==(const LinearProfile&) const = default;
};

struct Cluster {
  std::optional<Link> within_rank;     // between slots of a rank; none: at the speed of memory
  std::optional<Link> within_node;     // moved between ranks of a node; none: not known
  std::optional<Link> between_nodes;   // none: not known
  int ranks_per_node = 0;              // consecutive ranks; 0: not known
  int adapters_per_node = 0;           // that the ranks of a node share; 0: one for each rank
  double seconds_to_publish = 0;       // until a neighbour sees what a rank shows it in place
  double seconds_per_task = 0;         // of a call of the attention kernel, beyond its pairs
  double memory_bytes_per_second = 0;  // read and written by copies, sums and merges
  std::vector<KernelProfile> profiles;
  std::vector<LinearProfile> linear_profiles{};

  // Null if there is none.
  const KernelProfile* profile(DType dtype, int64_t head_dim) const;
  const LinearProfile* linear_profile(DType dtype, const HeadShape& heads) const;
  bool operator==(const Cluster&) const = default;
};

// Seconds of a task's attention calls.
double task_seconds(const Task& task, Direction direction, const Cluster& cluster,
                    const KernelProfile& profile);

}  // namespace longhaul::parallel
