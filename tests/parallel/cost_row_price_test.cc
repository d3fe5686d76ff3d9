// The price of a row against the formula of parallel/ALGORITHMS.md.
#include "parallel/cost/row_price.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "parallel/cost/choose.h"
#include "tests/parallel/cost_cluster.h"

namespace longhaul::parallel {
namespace {

constexpr HeadShape kHeads{.q_heads = 8, .kv_heads = 2, .head_dim = 16, .value_dim = 24};

// 2 ns a pair forward, 5 ns backward; 4 GB/s within nodes, 1 GB/s between them.
Cluster cluster() {
  Cluster cluster = test::free_cluster(2e-9, DType::kBF16, kHeads.head_dim);
  cluster.profiles[0].backward = {5e-9};
  cluster.within_node = Link{.bytes_per_second = 4e9};
  cluster.between_nodes = Link{.bytes_per_second = 1e9};
  return cluster;
}
double price(const Cluster& figures, int ranks, int per_node, bool in_place = false) {
  return row_price(figures, kHeads, DType::kBF16, 100, nodes_in_order(ranks, per_node), in_place)
      .pairs;
}

TEST(RowPrice, IsTheTimeOfARowOverThatOfAPair) {
  // Keys and values in bf16 twice, their gradients in f32 once, over 8 heads in both directions.
  const double bytes = 2 * (16 + 24) * (2 * 2 + 4), pair = 8 * (2e-9 + 5e-9);
  EXPECT_DOUBLE_EQ(price(cluster(), 4, 4), bytes / 4e9 / pair);
  EXPECT_DOUBLE_EQ(price(cluster(), 4, 2), bytes / 1e9 / pair);  // the slowest link
  Cluster slower = cluster();
  slower.profiles[0].forward = {16e-9};
  EXPECT_NEAR(price(slower, 4, 2), price(cluster(), 4, 2) / 3, 1e-9);
}

TEST(RowPrice, RanksShareTheirNodesAdapters) {
  Cluster shared = cluster();
  shared.adapters_per_node = 2;
  EXPECT_DOUBLE_EQ(price(shared, 16, 8), 4 * price(cluster(), 16, 8));
  EXPECT_DOUBLE_EQ(price(shared, 16, 2), price(cluster(), 16, 2));
  EXPECT_DOUBLE_EQ(price(shared, 16, 1), price(cluster(), 16, 1));
  EXPECT_DOUBLE_EQ(price(shared, 4, 4), price(cluster(), 4, 4));  // within a node
}

TEST(RowPrice, IsNothingWhereNoRowIsMoved) {
  EXPECT_EQ(price(Cluster{}, 4, 4, true), 0);
  EXPECT_EQ(price(Cluster{}, 1, 1), 0);
  EXPECT_GT(price(cluster(), 4, 2, true), 0);  // nodes do not share memory
}

TEST(RowPrice, AnUnknownLinkIsAnError) {
  Cluster unknown = cluster();
  unknown.between_nodes.reset();
  EXPECT_GT(price(unknown, 4, 4), 0);
  const auto error = attempt([&] { price(unknown, 4, 2); });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code(), ErrorCode::kConfig);
  EXPECT_THAT(error->what(), testing::AllOf(testing::HasSubstr("between_nodes"),
                                            testing::HasSubstr("set parallel.row_price")));
}

}  // namespace
}  // namespace longhaul::parallel
