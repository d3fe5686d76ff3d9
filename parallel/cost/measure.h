// Measures what plans are priced with (parallel/cost/cluster.h). All functions run on every rank of
// a group at the same time, since the ranks of a node share its memory.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "parallel/cost/cluster.h"

namespace longhaul::parallel {

// A node number for each rank: ranks that can read each other's memory have equal ones, the
// smallest rank among them. Collective.
std::vector<int> nodes_of(dist::Group& group);
// Ranks of a node if nodes are consecutive ranks and equally large, else 1.
int ranks_per_node(const std::vector<int>& node_of);

// Each rank's next one: on its own node, or at the same place of the next node that has as many.
std::vector<int> next_ranks(const std::vector<int>& node_of, bool same_node);

// Seconds of the kernel over segments among `rows` rows, beside the cost of a call. Takes some
// 0.2 to 0.7 s.
struct KernelCosts {
  KernelProfile profile;
  double seconds_per_task = 0;
};
KernelCosts measure_kernel(const Context& ctx, const HeadShape& heads, DType dtype, int64_t rows);

// Bytes a second, read and written, of copies as large as those of attention.
double measure_memory(const Context& ctx);

// What the group's links do: latency by ping-pong between the first two ranks on a node, and on two
// nodes; bandwidth by a shift of all ranks, within nodes and to the next node. Links that the group
// does not have are left out. Collective; takes some tenths of a second.
struct LinkCosts {
  std::optional<Link> within_rank, within_node, between_nodes;
  double seconds_to_publish = 0;
};
LinkCosts measure_links(dist::Group& group, const Context& ctx, const std::vector<int>& node_of);

// Seconds that a message of `bytes` takes between two ranks of the group: half of a round trip, the
// mean of several. Collective; the result is rank a's, on every rank.
double ping_pong_seconds(dist::Group& group, const Context& ctx, int a, int b, int64_t bytes);
// Seconds of a shift of `bytes` from every rank to next[rank]; next is a permutation. Collective;
// the slowest rank's, on every rank.
double shift_seconds(dist::Group& group, const Context& ctx, const std::vector<int>& next,
                     int64_t bytes);

// Memory and links, without kernels. Collective; links are the same on all ranks.
Cluster measure_links_and_memory(dist::Group& group, const Context& ctx,
                                 const std::vector<int>& node_of);

// The whole description, with the profile of one shape. Collective; links are the same on all
// ranks, the rest is each rank's own.
Cluster measure_cluster(dist::Group& group, const Context& ctx, const std::vector<int>& node_of,
                        const HeadShape& heads, DType dtype, int64_t rows);

}  // namespace longhaul::parallel
