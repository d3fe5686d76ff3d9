// What the executor does beyond the strategies of the table: keys of which only some rows are
// wanted, read in place or moved; nodes between which nothing is shared; memory for samples that
// were not measured.
#include "parallel/attention/execution.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"
#include "tests/parallel/core_attention_cases.h"
#include "tests/parallel/random_tasks.h"

namespace longhaul::test {
namespace {

using parallel::CoreAttention;
using parallel::Direction;
using parallel::Documents;
using parallel::Execution;
using parallel::Field;
using parallel::FieldViews;
using parallel::Plan;
using parallel::Problem;
using parallel::Span;
using parallel::Strategy;

constexpr std::chrono::seconds kDeadline(60);
constexpr int kRanks = 4;

std::optional<std::string> refuses_nothing(const Problem&) { return std::nullopt; }

// Rows of `owner` that some query of `rank` sees, as few ranges as possible.
std::vector<Span> needed_rows(const Problem& problem, int rank, int owner) {
  std::set<int64_t> rows;
  for (const Segment& s :
       parallel::cut_segments(problem.layout.runs(rank), problem.layout.runs(owner),
                              problem.documents, problem.mask)) {
    for (int64_t row = 0; row < s.k_len; ++row) rows.insert(s.k_row + row);
  }
  std::vector<Span> spans;
  for (int64_t row : rows) {
    if (!spans.empty() && spans.back().end() == row) {
      ++spans.back().length;
    } else {
      spans.push_back({row, 1});
    }
  }
  return spans;
}

// Every rank fetches the rows that it needs of every other one, at home's row numbers, all at once,
// and returns their gradients. `hungry`: rank 1 has many slots more if a sample is packed.
Plan fetch(const Problem& problem, Direction direction, int rank, bool hungry) {
  const bool backward = direction == Direction::kBackward;
  const int ranks = problem.layout.ranks();
  const Span heads{0, problem.heads.kv_heads};
  Plan plan;
  plan.slots.push_back(parallel::home_slot(problem, direction, rank));
  plan.steps.resize(backward ? 3 : 2);
  plan.steps[0].clears.push_back({0, parallel::home_outputs(direction)});
  for (int hop = 1; hop < ranks; ++hop) {
    const int from = (rank + ranks - hop) % ranks, to = (rank + hop) % ranks;
    const int slot = static_cast<int>(plan.slots.size());
    plan.slots.push_back(parallel::key_buffer(problem, direction));
    const std::vector<Span> take = needed_rows(problem, rank, from);
    const std::vector<Span> give = needed_rows(problem, to, rank);
    if (!give.empty()) plan.home_readers.push_back(to);
    for (Span rows : give) {
      parallel::add_send(plan.steps[0], {to, 0, parallel::kKeys, rows, heads, 1, rank});
      if (!backward) continue;
      parallel::add_receive(plan.steps[2], {to, 0, parallel::kKeyGradients, rows, heads, 3},
                            parallel::Reduce::kAdd);
    }
    for (Span rows : take) {
      parallel::add_receive(plan.steps[0], {from, slot, parallel::kKeys, rows, heads, 1, from},
                            parallel::Reduce::kStore);
      if (!backward) continue;
      parallel::add_send(plan.steps[2], {from, slot, parallel::kKeyGradients, rows, heads, 3});
    }
    if (backward) plan.steps[1].clears.push_back({slot, parallel::kKeyGradients});
    parallel::add_ring_task(plan.steps[1], problem, rank, from, slot);
  }
  parallel::add_ring_task(plan.steps[0], problem, rank, rank, 0);
  if (hungry && problem.documents.count() > 1 && rank == 1) {
    plan.slots.resize(plan.slots.size() + 32, plan.slots.back());
  }
  return plan;
}
Plan plan_fetch(const Problem& problem, Direction direction, int rank) {
  return fetch(problem, direction, rank, false);
}
Plan plan_hungry(const Problem& problem, Direction direction, int rank) {
  return fetch(problem, direction, rank, true);
}
// Core attention disaggregation: queries, keys and heads of every pair of ranks are cut at random,
// and any rank computes any part, also where it holds the queries, the keys or both. The same cuts
// for all samples of a layout.
Plan plan_scattered_tasks(const Problem& problem, Direction direction, int rank) {
  std::mt19937_64 random(static_cast<uint64_t>(problem.heads.q_heads));
  const auto tasks =
      random_tasks(problem.layout, problem.heads, random, all_ranks(problem.layout.ranks()));
  return parallel::plan_tasks(problem, direction, tasks, rank);
}
constexpr Strategy kTable[] = {{"fetch", plan_fetch, refuses_nothing},
                               {"hungry", plan_hungry, refuses_nothing},
                               {"scattered tasks", plan_scattered_tasks, refuses_nothing}};

AttentionCase fetch_case(const Documents& documents, const std::string& layout, bool in_place) {
  return {.strategy = "fetch",
          .layout = layout,
          .tokens = documents.tokens(),
          .heads = {4, 2, 6, 4},
          .mask = {true, 0},
          .documents = documents,
          .dtype = DType::kF64,
          .in_place = in_place,
          .ranks_per_node = 1};
}

// Documents that leave holes in what a rank needs of another, also in the middle of its rows.
std::vector<Documents> packings(int64_t tokens) {
  return {Documents::whole(tokens), Documents(tokens, {0, 3, 40, 41, 77}),
          random_documents(tokens, 5, 1), random_documents(tokens, 30, 2)};
}

TEST(Execution, SomeRowsAreReadInPlaceOrMoved) {
  for (const bool in_place : {true, false}) {
    for (const char* layout : {"contiguous", "zigzag", "striped"}) {
      for (const Documents& documents : packings(97)) {
        const AttentionCase c = fetch_case(documents, layout, in_place);
        SCOPED_TRACE(c.name());
        const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 3);
        std::vector<double> worst;
        int64_t moved = 0, in_place_bytes = 0, planned = 0;
        std::mutex mutex;
        dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
          const AttentionResult result = run_core_attention(group, c, truth, kTable);
          const std::vector<double> e = errors(group, c, truth, result);
          const parallel::TokenLayout rows = layout_of(c, kRanks);
          const Problem problem{rows, c.documents, c.mask, c.heads};
          const Plan plan = plan_fetch(problem, Direction::kForward, group.rank());
          const std::scoped_lock lock(mutex);
          worst = e;
          moved += result.sent_bytes;
          in_place_bytes += result.in_place_bytes;
          planned += parallel::received_bytes(plan, group.rank(), c.heads, c.dtype);
        });
        for (double e : worst) EXPECT_LE(e, 1e-12);
        // Keys forward; keys and gradients of the same rows, which are as wide, backward.
        EXPECT_EQ(moved, in_place ? planned : 3 * planned);
        EXPECT_EQ(in_place_bytes, in_place ? 2 * planned : 0);
      }
    }
  }
}

// One rank's plan needs more than was reserved for one document: it says so, and all ranks end.
TEST(Execution, TooLittleMemoryIsAnErrorThatEndsAllRanks) {
  AttentionCase c = fetch_case(random_documents(97, 9, 4), "zigzag", false);
  c.strategy = "hungry";
  const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 3);
  std::atomic<int> failed = 0;
  const auto error = attempt([&] {
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      const auto own = attempt([&] { run_core_attention(group, c, truth, kTable); });
      if (!own) return;
      ++failed;
      throw Error(*own);
    });
  });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code(), ErrorCode::kEnvironment);
  EXPECT_NE(std::string(error->what()).find("strategy hungry needs "), std::string::npos)
      << error->what();
  EXPECT_EQ(failed, kRanks);
}

// Whether a rank computes a part of the heads of queries that it owns.
bool splits_heads_at_home(const Plan& plan, const parallel::HeadShape& heads) {
  for (const parallel::Step& step : plan.steps) {
    for (const parallel::Task& task : step.tasks) {
      if (task.q_slot == 0 && task.q_heads.length < heads.q_heads) return true;
    }
  }
  return false;
}

TEST(Execution, TasksOfAnyRowsAndHeadsOnAnyServer) {
  constexpr int64_t kTokens = 97;
  for (const auto& [q_heads, kv_heads] : {std::pair(8, 2), {5, 5}, {4, 1}}) {
    const auto options = score_options(q_heads).back().options;  // all of them
    for (const char* layout : {"contiguous", "zigzag", "striped"}) {
      for (const DType dtype : {DType::kF64, DType::kF32}) {
        const AttentionCase c{.strategy = "scattered tasks",
                              .layout = layout,
                              .tokens = kTokens,
                              .heads = {q_heads, kv_heads, 6, 4},
                              .mask = {true, 30, 5},
                              .documents = random_documents(kTokens, 30, 2),
                              .dtype = dtype,
                              .options = options};
        SCOPED_TRACE(c.name());
        const parallel::TokenLayout rows = layout_of(c, kRanks);
        const Problem problem{rows, c.documents, c.mask, c.heads};
        int splitting = 0;
        for (int rank = 0; rank < kRanks; ++rank) {
          const Plan plan = plan_scattered_tasks(problem, Direction::kBackward, rank);
          splitting += splits_heads_at_home(plan, c.heads) ? 1 : 0;
        }
        EXPECT_EQ(splitting, kRanks);
        const AttentionTruth truth = truth_of(c, 3);
        dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
          CoreAttention attention(group, rows, options_of(c), kTable);
          attention.prepare(c.documents);
          RankTensors tensors(truth, rows.positions(group.rank()), c.dtype);
          tensors.dropout_key = c.options.dropout_key;
          // Parcels of other samples may be cut into more slots, so memory is not measured here.
          Arena scratch("scratch", 1 << 22), buffers("buffers", 1 << 22);
          scratch.poison();
          buffers.poison();
          run_passes(attention, tensors, scratch, buffers);
          for (double e : errors(group, c, truth, tensors.result())) {
            EXPECT_LE(e, dtype == DType::kF64 ? 1e-12 : 2e-6);
          }
        });
      }
    }
  }
}

// Two nodes: what lies on the other one travels, into slots whose keys were read in place before.
TEST(Execution, NodesAreMixed) {
  for (const std::string strategy : {"ring", "double_ring", "fetch", "group_cast", "lightseq"}) {
    AttentionCase c = fetch_case(random_documents(97, 30, 2),
                                 strategy == "lightseq" ? "contiguous" : "zigzag", true);
    c.strategy = strategy;
    c.ranks_per_node = 2;
    SCOPED_TRACE(c.name());
    const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 3);
    const std::vector<int> node_of{0, 0, 2, 2};
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      const parallel::TokenLayout layout = layout_of(c, kRanks);
      const Problem problem{layout, c.documents, c.mask, c.heads, c.ranks_per_node};
      const RankTensors t(truth, layout.positions(group.rank()), c.dtype);
      const auto window = group.make_window(2, layout.most_rows() * c.heads.kv_heads * (6 + 4) * 8);
      FieldViews home;
      const std::pair<Field, const Tensor*> fields[] = {
          {Field::kQ, &t.q},     {Field::kK, &t.k},         {Field::kV, &t.v},
          {Field::kOut, &t.out}, {Field::kLse, &t.lse},     {Field::kDOut, &t.dout},
          {Field::kDQ, &t.dq},   {Field::kDelta, &t.delta}, {Field::kDK, &t.dk},
          {Field::kDV, &t.dv}};
      for (const auto& [field, tensor] : fields) at(home, field) = *tensor;
      ThreadPool pool(1);
      Arena scratch("scratch", 1 << 22), buffers("buffers", 1 << 22);
      const Context ctx{.pool = &pool, .scratch = &scratch};
      for (uint64_t epoch = 1; epoch <= 4; ++epoch) {  // forward, backward, and again
        const Direction direction = epoch % 2 == 1 ? Direction::kForward : Direction::kBackward;
        const Plan plan = (c.strategy == "fetch" ? kTable[0] : parallel::strategy(c.strategy))
                              .plan(problem, direction, group.rank());
        scratch.poison();
        buffers.poison();
        Execution execution(
            ctx,
            {.group = &group,
             .plan = &plan,
             .layout = &layout,
             .direction = direction,
             .what = direction == Direction::kForward ? "attention forward" : "attention backward",
             .heads = c.heads,
             .dtype = c.dtype,
             .kernel_options = {.scale = options_of(c).scale},
             .in_place = {window.get(), &node_of, epoch},
             .communication = &buffers},
            home);
        execution.start(ctx);
        execution.finish(ctx);
      }
      for (double e : errors(group, c, truth, t.result())) EXPECT_LE(e, 1e-12);
      const auto& traffic = group.traffic()["attention forward"];
      EXPECT_GT(group.sum(static_cast<double>(traffic.in_place_bytes), "test"), 0);
      EXPECT_GT(group.sum(static_cast<double>(traffic.sent_bytes), "test"), 0);
    });
  }
}

}  // namespace
}  // namespace longhaul::test
