// Core attention disaggregation: random cuts of the attention matrix on random servers.
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "tests/parallel/attention_world.h"
#include "tests/parallel/random_tasks.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Field;
using parallel::HeadShape;
using parallel::PlacedTask;
using parallel::Plan;
using parallel::Problem;
using parallel::TokenLayout;

constexpr std::pair<int64_t, int64_t> kHeads[] = {{8, 8}, {8, 2}, {4, 1}, {5, 5}, {6, 3}};

HeadShape shape(std::pair<int64_t, int64_t> heads) {
  return {.q_heads = heads.first, .kv_heads = heads.second, .head_dim = 3, .value_dim = 2};
}

TEST(PlanTasks, RandomPlacementsEqualNaiveAttention) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 60; ++round) {
    const int ranks = 1 + round % 7;
    const auto tokens = static_cast<int64_t>(random() % 62);
    const auto& kind = parallel::layout_kinds()[random() % 3];
    const TokenLayout layout = kind.make(tokens, ranks);
    const Documents documents =
        random() % 2 == 0 ? Documents::whole(tokens) : random_documents(tokens, 9, random());
    const parallel::Mask masks[] = {{true, 0}, {false, 0}, {true, 7}};
    const Problem problem{layout, documents, masks[random() % 3],
                          shape(kHeads[random() % std::size(kHeads)])};
    auto tasks = random_tasks(layout, problem.heads, random, all_ranks(ranks));
    const int rounds = 1 + round % 4;
    for (PlacedTask& task : tasks) task.round = static_cast<int>(random() % 4) % rounds;
    SCOPED_TRACE(absl::StrCat("case ", round, ": ", std::string(kind.name), ", ", ranks, " ranks, ",
                              tokens, " tokens, ", rounds, " rounds"));
    const AttentionTruth truth = attention_truth(documents, problem.mask, problem.heads, random());
    ASSERT_NO_THROW(verify_attention(
        problem,
        [&](Direction direction, int rank) { return plan_tasks(problem, direction, tasks, rank); },
        truth, random()));
  }
}

// Servers that own no tokens: the mode with dedicated servers.
TEST(PlanTasks, DedicatedServersOwnNothing) {
  std::mt19937_64 random(12);
  const TokenLayout layout(40, {{{0, 25, 1}}, {{25, 15, 1}}, {}, {}});
  const Documents documents = random_documents(40, 13, 2);
  const Problem problem{layout, documents, {true, 0}, shape({8, 2})};
  const AttentionTruth truth = attention_truth(documents, problem.mask, problem.heads, 4);
  for (int round = 0; round < 10; ++round) {
    const auto tasks = random_tasks(layout, problem.heads, random, {2, 3});
    ASSERT_NO_THROW(verify_attention(
        problem,
        [&](Direction direction, int rank) { return plan_tasks(problem, direction, tasks, rank); },
        truth, random()));
  }
}

// Work that stays where its queries and keys live moves nothing.
TEST(PlanTasks, LocalWorkMovesNothing) {
  const TokenLayout layout = TokenLayout::contiguous(32, 4);
  const Documents documents(32, {0, 8, 16, 24});  // borders are those of the ranks
  const Problem problem{layout, documents, {true, 0}, shape({8, 2})};
  std::vector<PlacedTask> tasks;
  for (int q = 0; q < 4; ++q) {
    for (int k = 0; k < 4; ++k) tasks.push_back({q, {0, 8}, k, {0, 8}, {0, 8}, (q + k) / 2});
  }
  for (int r = 0; r < 4; ++r) {
    for (Direction direction : {Direction::kForward, Direction::kBackward}) {
      const Plan plan = plan_tasks(problem, direction, tasks, r);
      for (const parallel::Step& step : plan.steps) EXPECT_TRUE(step.transfers.empty());
      EXPECT_EQ(plan.steps[0].tasks.size(), 1u);  // before any waiting
    }
  }
}

// However many tasks share them, rows of a head go to a server once, and no row goes in vain.
TEST(PlanTasks, RowsGoToAServerOnce) {
  std::mt19937_64 random(13);
  for (int round = 0; round < 20; ++round) {
    const TokenLayout layout = TokenLayout::zigzag(47, 4);
    const Documents documents = Documents::whole(47);
    const Problem problem{layout, documents, {false, 0}, shape({8, 2})};
    auto tasks = random_tasks(layout, problem.heads, random, all_ranks(4));
    const int rounds = 1 + round % 4;
    for (PlacedTask& task : tasks) task.round = static_cast<int>(random() % 4) % rounds;
    for (Direction direction : {Direction::kForward, Direction::kBackward}) {
      for (int r = 0; r < 4; ++r) {
        using Element = std::tuple<int, Field, int64_t, int64_t>;
        std::set<Element> sent, needed;
        const Plan plan = plan_tasks(problem, direction, tasks, r);
        for (const parallel::Step& step : plan.steps) {
          for (const parallel::Transfer& t : step.transfers) {
            if (!t.send || t.slot != 0) continue;
            const Field field = t.fields.has(Field::kQ) ? Field::kQ : Field::kK;
            for (int64_t row = t.rows.begin; row < t.rows.end(); ++row) {
              for (int64_t head = t.heads.begin; head < t.heads.end(); ++head) {
                EXPECT_TRUE(sent.insert({t.peer, field, row, head}).second) << "sent twice";
              }
            }
          }
        }
        for (const PlacedTask& task : tasks) {
          if (task.server == r) continue;
          for (int64_t head = task.q_heads.begin; head < task.q_heads.end(); ++head) {
            for (int64_t row = 0; task.q_owner == r && row < task.q_rows.length; ++row) {
              needed.insert({task.server, Field::kQ, task.q_rows.begin + row, head});
            }
            for (int64_t row = 0; task.k_owner == r && row < task.k_rows.length; ++row) {
              needed.insert({task.server, Field::kK, task.k_rows.begin + row, head / 4});
            }
          }
        }
        EXPECT_TRUE(sent == needed) << sent.size() << " sent, " << needed.size() << " needed";
      }
    }
  }
}

TEST(PlanTasks, RefusesTasksThatLeaveTheirOwner) {
  const TokenLayout layout = TokenLayout::contiguous(32, 4);
  const Documents documents = Documents::whole(32);
  const Problem problem{layout, documents, {true, 0}, shape({8, 2})};
  const auto plan = [&](PlacedTask task) { plan_tasks(problem, Direction::kForward, {task}, 0); };
  EXPECT_NO_THROW(plan({3, {0, 8}, 0, {0, 8}, {0, 8}, 2}));
  EXPECT_THROW(plan({3, {0, 9}, 0, {0, 8}, {0, 8}, 2}), Error);
  EXPECT_THROW(plan({3, {0, 8}, 0, {-1, 8}, {0, 8}, 2}), Error);
  EXPECT_THROW(plan({3, {0, 8}, 0, {0, 8}, {4, 5}, 2}), Error);
  EXPECT_THROW(plan({3, {0, 8}, 0, {0, 8}, {0, 8}, 4}), Error);
}

}  // namespace
}  // namespace longhaul::test
