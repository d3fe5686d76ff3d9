#include "parallel/cost/row_price.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

bool one_node(const std::vector<int>& node_of) {
  return std::ranges::all_of(node_of, [&](int node) { return node == node_of.front(); });
}

// Bytes a second of a rank over its slowest link, while all ranks communicate.
double bandwidth(const Cluster& cluster, const std::vector<int>& node_of) {
  const bool within = one_node(node_of);
  const std::optional<Link>& link = within ? cluster.within_node : cluster.between_nodes;
  if (!link) {
    fail(
        ErrorCode::kConfig,
        absl::StrCat("the figures of the cluster do not say how fast links are that the price of a "
                     "row needs (",
                     within ? "within_node" : "between_nodes",
                     "); set parallel.row_price, or write them into the cluster description"));
  }
  if (within || cluster.adapters_per_node == 0) return link->bytes_per_second;
  int64_t most = 0;
  for (int node : node_of) most = std::max<int64_t>(most, std::ranges::count(node_of, node));
  return link->bytes_per_second *
         std::min(1.0, cluster.adapters_per_node / static_cast<double>(most));
}

}  // namespace

bool all_in_place(const std::vector<int>& node_of, bool in_place) {
  return one_node(node_of) && (in_place || node_of.size() == 1);
}

RowPrice row_price(const Cluster& cluster, const HeadShape& heads, DType dtype, int64_t rows,
                   const std::vector<int>& node_of, bool in_place) {
  if (node_of.size() == 1) return {0, "there is one rank"};
  if (all_in_place(node_of, in_place)) {
    return {0, "all ranks are on one node and read keys where they lie"};
  }
  const KernelProfile* profile = cluster.profile(dtype, heads.head_dim);
  LONGHAUL_CHECK(profile != nullptr, "a profile of the kernel is there");
  int64_t bytes = 0;
  for (Field field : {Field::kK, Field::kV}) bytes += 2 * field_bytes(field, heads, dtype);
  for (Field field : {Field::kDK, Field::kDV}) bytes += field_bytes(field, heads, dtype);
  bytes *= heads.kv_heads;
  const auto length = static_cast<double>(std::max<int64_t>(rows, 1));
  const double of_a_head = profile->seconds_per_pair(Direction::kForward, length, length) +
                           profile->seconds_per_pair(Direction::kBackward, length, length);
  const double pair = static_cast<double>(heads.q_heads) * of_a_head;
  const double speed = bandwidth(cluster, node_of);
  const double row = static_cast<double>(bytes) / speed;
  return {row / pair,
          absl::StrFormat("forward and backward move %d bytes of it at %.3g GB/s in %.3g us, and a "
                          "pair takes %.3g ns",
                          bytes, speed / 1e9, 1e6 * row, 1e9 * pair)};
}

}  // namespace longhaul::parallel
