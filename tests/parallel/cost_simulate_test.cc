// The simulation of plans against times computed by hand, and its properties.
#include "parallel/cost/simulate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/cost/choose.h"
#include "parallel/plan/planners.h"
#include "tests/parallel/cost_cluster.h"

namespace longhaul::parallel {
namespace {

using test::free_cluster;

// One head of dimension 1 in f32: a row of q, k, v, out or lse has 4 bytes.
constexpr HeadShape kTiny{.q_heads = 1, .kv_heads = 1, .head_dim = 1, .value_dim = 1};
SimulationOptions tiny_options(std::vector<int> node_of, bool in_place = false) {
  return {.direction = Direction::kForward,
          .heads = kTiny,
          .dtype = DType::kF32,
          .node_of = std::move(node_of),
          .in_place = in_place};
}
Cluster tiny_cluster(double rate) { return free_cluster(rate, DType::kF32, 1); }

// Two ranks of two tokens each that see all: 4 pairs a step; a rank's k and v have 16 bytes.
std::vector<Plan> two_ranks() {
  const TokenLayout layout = TokenLayout::contiguous(4, 2);
  const Documents documents = Documents::whole(4);
  const Problem problem{layout, documents, {.causal = false, .window = 0}, kTiny};
  return {plan_ring(problem, Direction::kForward, 0), plan_ring(problem, Direction::kForward, 1)};
}

void expect_time(const RankTime& time, double computing, double copying, double waiting) {
  EXPECT_DOUBLE_EQ(time.computing, computing);
  EXPECT_DOUBLE_EQ(time.copying, copying);
  EXPECT_DOUBLE_EQ(time.waiting, waiting);
  EXPECT_DOUBLE_EQ(time.seconds, computing + copying + waiting);
  EXPECT_DOUBLE_EQ(time.exposed(), copying + waiting);
}

TEST(Simulate, TransfersHideBehindTasksUntilTheyTakeLonger) {
  Cluster cluster = tiny_cluster(1);
  // k and v go together: 2 s + 16 bytes / 8 bytes a second = the 4 s of step 0's task.
  cluster.within_node = Link{.seconds_per_message = 2, .bytes_per_second = 8};
  for (const RankTime& time : simulate(two_ranks(), cluster, tiny_options({0, 0}))) {
    expect_time(time, 8, 0, 0);
    EXPECT_EQ(time.received_bytes, 16);
    EXPECT_EQ(time.in_place_bytes, 0);
    EXPECT_EQ(time.pairs, 8);
  }
  cluster.within_node->bytes_per_second = 2;  // 10 s
  for (const RankTime& time : simulate(two_ranks(), cluster, tiny_options({0, 0}))) {
    expect_time(time, 8, 0, 6);
  }
}

TEST(Simulate, AProcessorThatMakesTheTransfersCannotComputeMeanwhile) {
  Cluster cluster = tiny_cluster(1);
  // k and v are two messages to the processor: 2 x 1 s + 2 s.
  cluster.within_node = Link{.seconds_per_message = 1, .bytes_per_second = 8, .processor_share = 1};
  for (const RankTime& time : simulate(two_ranks(), cluster, tiny_options({0, 0}))) {
    expect_time(time, 8, 4, 0);
  }
  // With nothing to compute, nothing takes longer.
  cluster.profiles[0].forward = {1e-300};
  for (const RankTime& time : simulate(two_ranks(), cluster, tiny_options({0, 0}))) {
    EXPECT_DOUBLE_EQ(time.seconds, 4);
  }
}

TEST(Simulate, ReadingInPlaceCostsACopyAtHomeAndAWait) {
  Cluster cluster = tiny_cluster(1);
  cluster.within_node = Link{.seconds_per_message = 1000, .bytes_per_second = 1};
  // Publishing: 16 bytes read and written; clearing out and lse: 16 bytes written.
  cluster.memory_bytes_per_second = 8;
  for (const RankTime& time : simulate(two_ranks(), cluster, tiny_options({0, 0}, true))) {
    expect_time(time, 8, 4 + 2, 0);
    EXPECT_EQ(time.received_bytes, 16);
    EXPECT_EQ(time.in_place_bytes, 16);
  }
  // Published at 4 s, seen 20 s later; until 10 s there is work.
  cluster.seconds_to_publish = 20;
  for (const RankTime& time : simulate(two_ranks(), cluster, tiny_options({0, 0}, true))) {
    expect_time(time, 8, 6, 14);
  }
  // Other nodes cannot.
  cluster.between_nodes = Link{.seconds_per_message = 0, .bytes_per_second = 1};
  for (const RankTime& time : simulate(two_ranks(), cluster, tiny_options({0, 1}, true))) {
    EXPECT_EQ(time.in_place_bytes, 0);
    expect_time(time, 8, 2, 16 - 4);
  }
}

TEST(Simulate, CallsSegmentsAndHeadsCost) {
  Cluster cluster = tiny_cluster(1);
  cluster.seconds_per_task = 0.5;
  Task task{.q_heads = {0, 3}, .segments = {}};
  for (int64_t keys : {2, 7}) {
    task.segments.push_back(
        {.q_len = 4, .k_len = keys, .band_lo = -kBandOpen, .band_hi = kBandOpen});
  }
  EXPECT_DOUBLE_EQ(task_seconds(task, Direction::kForward, cluster, cluster.profiles[0]),
                   0.5 + 3 * (4 * 2 + 4 * 7));
}

TEST(Simulate, SidesOfABandWasteATileOfKeys) {
  Cluster cluster = tiny_cluster(1);
  KernelProfile& profile = cluster.profiles[0];
  profile.forward_border = 2;
  const auto seconds = [&](const Segment& segment, Direction direction) {
    const Task task{.q_heads = {0, 1}, .segments = {segment}};
    return task_seconds(task, direction, cluster, profile);
  };
  Segment causal{.q_len = 10, .k_len = 10, .band_lo = -kBandOpen, .band_hi = 0};
  EXPECT_DOUBLE_EQ(seconds(causal, Direction::kForward), 55 + 2 * 9);  // the last query sees all
  EXPECT_DOUBLE_EQ(seconds(causal, Direction::kBackward), 55);
  causal.band_lo = -2;  // a window of 3: 7 queries miss keys at its lower side
  EXPECT_DOUBLE_EQ(seconds(causal, Direction::kForward), 27 + 2 * (9 + 7));
  const Segment full{.q_len = 10, .k_len = 10, .band_lo = -kBandOpen, .band_hi = kBandOpen};
  EXPECT_DOUBLE_EQ(seconds(full, Direction::kForward), 100);
  profile.forward_border = 1000;  // never more than all
  EXPECT_DOUBLE_EQ(seconds(causal, Direction::kForward), 100);
}

// A plan of sends of q from home, and of receives into slot 1, in one step.
Plan sends(std::initializer_list<std::pair<int, int64_t>> peers_and_rows) {
  Plan plan;
  plan.slots = {{.q_rows = 100, .q_heads = {0, 1}, .kv_heads = {}, .fields = {Field::kQ}}};
  plan.steps.resize(1);
  for (const auto& [peer, rows] : peers_and_rows) {
    plan.steps[0].transfers.push_back({.send = true,
                                       .peer = peer,
                                       .fields = {Field::kQ},
                                       .rows = {0, rows},
                                       .heads = {0, 1},
                                       .done_by = 1});
  }
  return plan;
}
Plan receives(int peer, int64_t rows, Fields fields = {Field::kQ}, Reduce reduce = Reduce::kStore) {
  Plan plan;
  plan.slots = {{}, {.q_rows = 100, .q_heads = {0, 1}, .kv_heads = {}, .fields = fields}};
  plan.steps.resize(1);
  plan.steps[0].transfers = {{.peer = peer,
                              .slot = 1,
                              .fields = fields,
                              .rows = {0, rows},
                              .heads = {0, 1},
                              .reduce = reduce,
                              .done_by = 1}};
  return plan;
}

std::vector<double> seconds(const std::vector<Plan>& plans, const Cluster& cluster,
                            std::vector<int> node_of) {
  std::vector<double> result;
  for (const RankTime& time : simulate(plans, cluster, tiny_options(std::move(node_of)))) {
    result.push_back(time.seconds);
  }
  return result;
}
using Seconds = std::vector<double>;

TEST(Simulate, ARankSendsOneMessageAtATime) {
  Cluster cluster = tiny_cluster(1);
  cluster.within_node = Link{.bytes_per_second = 4};  // a row a second
  cluster.between_nodes = Link{.bytes_per_second = 2};
  const std::vector<Plan> plans{sends({{1, 5}, {2, 7}}), receives(0, 5), receives(0, 7)};
  EXPECT_EQ(seconds(plans, cluster, {0, 0, 0}), (Seconds{12, 5, 12}));
  // The way to other nodes is another one.
  EXPECT_EQ(seconds(plans, cluster, {0, 0, 1}), (Seconds{14, 5, 14}));
}

TEST(Simulate, MessagesAreOnTheirWayTogether) {
  Cluster cluster = tiny_cluster(1);
  cluster.within_node = Link{.seconds_per_message = 100, .bytes_per_second = 4};
  const std::vector<Plan> plans{sends({{1, 5}, {2, 7}}), receives(0, 5), receives(0, 7)};
  EXPECT_EQ(seconds(plans, cluster, {0, 0, 0}), (Seconds{112, 105, 112}));
  cluster.within_node->processor_share = 0.25;  // of alpha, too: 25 s each on the port
  // Half of the processor's work for a message, a quarter of its 105 or 107 s, is at each end, done
  // before the next step.
  EXPECT_EQ(seconds(plans, cluster, {0, 0, 0}), (Seconds{25 + 5 + 25 + 7 + 75, 105, 137}));
}

TEST(Simulate, RanksOfANodeShareItsAdapters) {
  Cluster cluster = tiny_cluster(1);
  cluster.between_nodes = Link{.bytes_per_second = 4};
  const std::vector<Plan> plans{sends({{2, 5}}), sends({{3, 7}}), receives(0, 5), receives(1, 7)};
  EXPECT_EQ(seconds(plans, cluster, {0, 0, 1, 1}), (Seconds{5, 7, 5, 7}));
  cluster.adapters_per_node = 1;
  EXPECT_EQ(seconds(plans, cluster, {0, 0, 1, 1}), (Seconds{5, 12, 5, 12}));
  cluster.adapters_per_node = 2;
  EXPECT_EQ(seconds(plans, cluster, {0, 0, 1, 1}), (Seconds{5, 7, 5, 7}));
}

TEST(Simulate, ATransferStartsWhenBothEndsHave) {
  Cluster cluster = tiny_cluster(1);
  cluster.within_node = Link{.bytes_per_second = 4};
  std::vector<Plan> plans{sends({{1, 5}}), receives(0, 5)};
  // The receiver first computes 3 pairs.
  Step busy;
  busy.tasks.push_back(
      {.q_slot = 1,
       .k_slot = 1,
       .q_heads = {0, 1},
       .segments = {{.q_len = 1, .k_len = 3, .band_lo = -kBandOpen, .band_hi = kBandOpen}}});
  plans[1].steps.insert(plans[1].steps.begin(), busy);
  plans[1].steps[1].transfers[0].done_by = 2;
  EXPECT_EQ(seconds(plans, cluster, {0, 0}), (Seconds{8, 8}));
}

TEST(Simulate, SumsAndPackingCostMemoryTraffic) {
  Cluster cluster = tiny_cluster(1);
  cluster.memory_bytes_per_second = 4;
  std::vector<Plan> plans{sends({{1, 5}}), receives(0, 5, {Field::kDQ}, Reduce::kAdd)};
  plans[0].slots[0].fields = plans[0].steps[0].transfers[0].fields = {Field::kDQ};
  // Two read, one written.
  EXPECT_EQ(seconds(plans, cluster, {0, 0}), (Seconds{0, 15}));
  // One head of two is packed, and unpacked into a slot of two.
  plans[0].slots[0].q_heads = plans[1].slots[1].q_heads = {0, 2};
  plans[1].steps[0].transfers[0].reduce = Reduce::kStore;
  EXPECT_EQ(seconds(plans, cluster, {0, 0}), (Seconds{10, 20}));
}

TEST(Simulate, WhatARankSendsToItselfKeepsItsProcessorBusy) {
  Cluster cluster = tiny_cluster(1);
  cluster.within_rank.reset();
  cluster.memory_bytes_per_second = 4;
  std::vector<Plan> plans{sends({{0, 5}})};
  plans[0].slots.push_back(receives(0, 5).slots[1]);
  plans[0].steps[0].transfers.push_back(receives(0, 5).steps[0].transfers[0]);
  EXPECT_EQ(seconds(plans, cluster, {0}), (Seconds{10}));  // 20 bytes, read and written
  cluster.within_rank = Link{.seconds_per_message = 3, .bytes_per_second = 5};
  EXPECT_EQ(seconds(plans, cluster, {0}), (Seconds{7}));
}

TEST(Simulate, PlansThatDoNotFitAreRefused) {
  const Cluster cluster = tiny_cluster(1);
  const auto code = [&](std::vector<Plan> plans, const Cluster& on, std::vector<int> nodes) {
    const auto error = attempt([&] { simulate(plans, on, tiny_options(std::move(nodes))); });
    return error ? static_cast<int>(error->code()) : 0;
  };
  EXPECT_EQ(code({sends({{1, 5}}), receives(0, 5)}, cluster, {0, 0}), 0);
  EXPECT_EQ(code({sends({{1, 5}}), sends({})}, cluster, {0, 0}), 1);
  Cluster unknown = cluster;
  unknown.between_nodes.reset();
  EXPECT_EQ(code({sends({{1, 5}}), receives(0, 5)}, unknown, {0, 0}), 0);
  EXPECT_EQ(code({sends({{1, 5}}), receives(0, 5)}, unknown, {0, 1}), 2);
}

TEST(KernelProfile, IsBilinearInLogarithmsAndFlatBeyond) {
  const KernelProfile profile{.dtype = DType::kF32,
                              .head_dim = 1,
                              .lengths = {16, 64},
                              .forward = {8, 2, 4, 1},
                              .backward = {80, 20, 40, 10}};
  EXPECT_DOUBLE_EQ(profile.seconds_per_pair(Direction::kForward, 16, 16), 8);
  EXPECT_DOUBLE_EQ(profile.seconds_per_pair(Direction::kForward, 16, 64), 2);
  EXPECT_DOUBLE_EQ(profile.seconds_per_pair(Direction::kForward, 64, 16), 4);
  EXPECT_DOUBLE_EQ(profile.seconds_per_pair(Direction::kForward, 16, 32), 4);
  EXPECT_DOUBLE_EQ(profile.seconds_per_pair(Direction::kForward, 32, 32),
                   std::sqrt(std::sqrt(8. * 2 * 4 * 1)));
  EXPECT_DOUBLE_EQ(profile.seconds_per_pair(Direction::kForward, 1, 1e6), 2);
  EXPECT_DOUBLE_EQ(profile.seconds_per_pair(Direction::kBackward, 1e6, 1e6), 10);
}

// On every strategy, layout and direction.
TEST(Simulate, NothingThatGetsFasterMakesAPredictionSlower) {
  const HeadShape heads{.q_heads = 6, .kv_heads = 2, .head_dim = 8, .value_dim = 8};
  Cluster slow = free_cluster(3e-8, DType::kF32, 8);
  slow.within_node =
      Link{.seconds_per_message = 2e-6, .bytes_per_second = 1e9, .processor_share = 0.3};
  slow.between_nodes = Link{.seconds_per_message = 2e-5, .bytes_per_second = 2e8};
  slow.adapters_per_node = 1;
  slow.seconds_per_task = 1e-6;
  slow.seconds_to_publish = 1e-6;
  slow.memory_bytes_per_second = 1e10;
  const std::vector<void (*)(Cluster&)> improvements{
      [](Cluster& c) { c.within_node->bytes_per_second *= 1.3; },
      [](Cluster& c) { c.between_nodes->bytes_per_second *= 2.5; },
      [](Cluster& c) { c.between_nodes->seconds_per_message = 0; },
      [](Cluster& c) { c.within_node->processor_share = 0; },
      [](Cluster& c) { c.adapters_per_node = 0; },
      [](Cluster& c) { c.seconds_per_task = 0; },
      [](Cluster& c) { c.memory_bytes_per_second *= 7; },
      [](Cluster& c) {
        for (double& rate : c.profiles[0].forward) rate /= 1.7;
        for (double& rate : c.profiles[0].backward) rate /= 1.7;
      }};
  int checked = 0;
  for (const LayoutKind& kind : layout_kinds()) {
    const TokenLayout layout = kind.make(997, 6);
    const Documents documents(997, {0, 100, 420, 700, 707});
    const Problem problem{layout, documents, {.causal = true, .window = 0}, heads, 3};
    const std::vector<int> node_of = nodes_in_order(6, 3);
    for (const Strategy& strategy : strategies()) {
      if (strategy.refusal(problem)) continue;
      for (Direction direction : {Direction::kForward, Direction::kBackward}) {
        for (bool in_place : {false, true}) {
          const auto time = [&](const Cluster& cluster) {
            return predict(strategy, problem, direction, DType::kF32, cluster, node_of, in_place)
                .seconds;
          };
          const double before = time(slow);
          for (size_t i = 0; i < improvements.size(); ++i) {
            Cluster better = slow;
            improvements[i](better);
            EXPECT_LE(time(better), before * (1 + 1e-12))
                << std::string(strategy.name) << " " << std::string(kind.name) << " " << i;
            ++checked;
          }
        }
      }
    }
  }
  EXPECT_GE(checked, 3 * 3 * 2 * 2 * 8);
}

// Ranks take the time of their parts, and no less than their work and their bytes take.
TEST(Simulate, TimesAddUpAndAreNotShorterThanWorkAndBytes) {
  const HeadShape heads{.q_heads = 6, .kv_heads = 2, .head_dim = 8, .value_dim = 8};
  Cluster cluster = free_cluster(1e-8, DType::kF32, 8);
  cluster.within_node = Link{.seconds_per_message = 1e-6, .bytes_per_second = 1e8};
  for (int ranks : {1, 2, 3, 5, 8}) {
    const TokenLayout layout = TokenLayout::zigzag(331, ranks);
    const Documents documents = Documents::whole(331);
    const Problem problem{layout, documents, {.causal = true, .window = 0}, heads, 1};
    for (const Strategy& strategy : strategies()) {
      if (strategy.refusal(problem)) continue;
      for (Direction direction : {Direction::kForward, Direction::kBackward}) {
        SCOPED_TRACE(absl::StrCat(std::string(strategy.name), " on ", ranks));
        std::vector<Plan> plans;
        for (int r = 0; r < ranks; ++r) plans.push_back(strategy.plan(problem, direction, r));
        double pairs = 0, longest = 0, received = 0;
        for (const RankTime& time : simulate(plans, cluster,
                                             {.direction = direction,
                                             .heads = heads,
                                             .dtype = DType::kF32,
                                             .node_of = nodes_in_order(ranks, ranks),
                                             .in_place = false})) {
          EXPECT_NEAR(time.seconds, time.computing + time.copying + time.waiting, 1e-12);
          longest = std::max(longest, time.seconds);
          received = std::max(received, static_cast<double>(time.received_bytes));
          pairs += time.pairs;
        }
        EXPECT_EQ(pairs, 6 * 331 * 332 / 2);
        EXPECT_GE(longest, pairs / ranks * 1e-8 * (1 - 1e-12));
        EXPECT_GE(longest, received / 1e8 * (1 - 1e-12));
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::parallel
