// What the balanced layout pays for a row of keys and values that comes from another rank, in pairs
// of attention (BalancedOptions::row_price), by the figures of a cluster.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/cost/cluster.h"

namespace longhaul::parallel {

struct RowPrice {
  double pairs = 0;  // (query, key), over all query heads
  std::string why;   // for people: what it rests on
};

// Whether no row is moved: all ranks are on one node and read each other's keys where they lie.
bool all_in_place(const std::vector<int>& node_of, bool in_place);

// The seconds in which a row's keys and values arrive, and in backward again with their gradients,
// over those that the kernel takes for a pair in both directions, among as many rows as a rank has.
// The link is the slowest that the ranks have, with a rank's share of its node's adapters. 0 where
// no row is moved, whatever the cluster; else it must have a profile for dtype and head_dim, and
// know that link: throws Error(kConfig) if not.
RowPrice row_price(const Cluster& cluster, const HeadShape& heads, DType dtype, int64_t rows,
                   const std::vector<int>& node_of, bool in_place);

}  // namespace longhaul::parallel
