// Plans that are made before their sample comes are those that would be made then; and ranks that
// have planned differently end before the first message, each with the same error.
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "dist/local/local.h"
#include "parallel/attention/plan_agreement.h"
#include "parallel/plan/planners.h"
#include "tests/parallel/core_attention_cases.h"

namespace longhaul::test {
namespace {

using parallel::CoreAttention;
using parallel::Direction;
using parallel::Documents;
using parallel::Plan;
using parallel::Problem;

constexpr std::chrono::seconds kDeadline(60);
constexpr int64_t kTokens = 97;

AttentionCase some_case(const std::string& strategy) {
  AttentionCase c{.strategy = strategy,
                  .layout = "balanced",
                  .tokens = kTokens,
                  .heads = {4, 2, 6, 4},
                  .mask = {true, 0},
                  .dtype = DType::kF64,
                  .in_place = false};
  c.servers.tile = 8;
  c.servers.buffer_bytes = int64_t{1} << 20;
  return c;
}

// Each with rows of its own on every rank; the last one is of validation.
const std::vector<Documents>& samples() {
  static const std::vector<Documents> samples{
      Documents(kTokens, {0, 60, 71, 90}), Documents(kTokens, {0, 5, 11, 17, 30, 44}),
      Documents::whole(kTokens), Documents(kTokens, {0, 20, 40}), Documents(kTokens, {0, 3, 88})};
  return samples;
}

struct Passes {
  std::vector<std::vector<AttentionResult>> results;  // by rank
  std::vector<int64_t> planned, planned_ahead, compared;
};

// Training over four samples with validation in between, twice; each time a training sample is in
// use, the next one may be planned.
Passes pass(const AttentionCase& c, bool ahead) {
  constexpr int kRanks = 3;
  constexpr size_t kValidation = 4;
  std::vector<AttentionTruth> truths;
  for (const Documents& documents : samples()) {
    AttentionCase of_sample = c;
    of_sample.documents = documents;
    truths.push_back(truth_of(of_sample, 3));
  }
  Passes passes{.results = std::vector<std::vector<AttentionResult>>(kRanks),
                .planned = std::vector<int64_t>(kRanks),
                .planned_ahead = std::vector<int64_t>(kRanks),
                .compared = std::vector<int64_t>(kRanks)};
  dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
    const parallel::LayoutKind& kind = parallel::layout_kind(c.layout);
    CoreAttention attention(group, kind.make(kTokens, kRanks), options_of(c));
    Arena scratch("scratch", 1 << 22), buffers("buffers", 1 << 24);
    const auto rank = static_cast<size_t>(group.rank());
    const auto run = [&](size_t which, std::optional<size_t> next) {
      attention.prepare(samples()[which]);
      if (ahead && next) attention.prefetch(samples()[*next]);
      const RankTensors tensors(truths[which], attention.layout().positions(group.rank()), c.dtype);
      scratch.poison();
      buffers.poison();
      run_passes(attention, tensors, scratch, buffers);
      passes.results[rank].push_back(tensors.result());
    };
    for (int epoch = 0; epoch < 2; ++epoch) {
      for (size_t i = 0; i < kValidation; ++i) {
        run(i, (i + 1) % kValidation);
        if (i % 2 == 1) run(kValidation, {});
      }
    }
    passes.planned[rank] = attention.planned_count();
    passes.planned_ahead[rank] = attention.planned_ahead_count();
    passes.compared[rank] = group.traffic()["plans' digests"].operations;
  });
  return passes;
}

TEST(PlanAhead, ChangesNothingAndIsUsed) {
  for (const std::string strategy : {"group_cast", "disaggregated"}) {
    SCOPED_TRACE(strategy);
    const AttentionCase c = some_case(strategy);
    const Passes ahead = pass(c, true), without = pass(c, false);
    EXPECT_EQ(ahead.results, without.results);
    // All but the first one and that of validation; no sample twice.
    EXPECT_EQ(ahead.planned_ahead, std::vector<int64_t>(3, 3));
    EXPECT_EQ(without.planned_ahead, std::vector<int64_t>(3, 0));
    EXPECT_EQ(ahead.planned, std::vector<int64_t>(3, 5));
    EXPECT_EQ(without.planned, std::vector<int64_t>(3, 5));
    const int64_t once = strategy == "disaggregated" ? 5 : 0;
    EXPECT_EQ(ahead.compared, std::vector<int64_t>(3, once));
    EXPECT_EQ(without.compared, std::vector<int64_t>(3, once));
  }
}

// A table's planners are plain functions.
std::atomic<int> plans_made = 0;
std::atomic<bool> gate = true;  // closed: planners of samples of more than one document wait
Plan gated(const Problem& problem, Direction direction, int rank) {
  if (problem.documents.count() > 1) gate.wait(false);
  if (problem.documents.count() == 3) fail(ErrorCode::kConfig, "no plan for three documents");
  ++plans_made;
  return parallel::plan_group_cast(problem, direction, rank);
}
std::optional<std::string> refuses_nothing(const Problem&) { return std::nullopt; }
constexpr parallel::Strategy kGated[] = {{"gated", gated, refuses_nothing}};

struct Gated {
  explicit Gated(dist::Group& group)
      : attention(group, parallel::TokenLayout::contiguous(kTokens, 1),
                  options_of(some_case("gated")), kGated) {
    plans_made = 0;
  }
  CoreAttention attention;
};

const Documents kOne = Documents::whole(kTokens);
const Documents kTwo(kTokens, {0, 50});
const Documents kOtherTwo(kTokens, {0, 51});
const Documents kThree(kTokens, {0, 20, 40});

TEST(PlanAhead, IsMadeBeneathOtherWorkAndOnce) {
  dist::run_local(1, kDeadline, [](dist::Group& group) {
    Gated of(group);
    gate = false;
    of.attention.prefetch(kTwo);
    of.attention.prefetch(kTwo);
    of.attention.prepare(kOne);  // would wait for ever if the plan was made, or waited for, before
    EXPECT_EQ(plans_made, 2);
    gate = true;
    gate.notify_all();
    of.attention.prepare(kTwo);
    of.attention.prefetch(kTwo);
    of.attention.prepare(kTwo);
    EXPECT_EQ(plans_made, 4);
    EXPECT_EQ(of.attention.planned_count(), 2);
    EXPECT_EQ(of.attention.planned_ahead_count(), 1);
    // One that does not come gives way to the next.
    of.attention.prefetch(kOtherTwo);
    of.attention.prefetch(kThree);
    of.attention.prepare(kOtherTwo);
    EXPECT_EQ(of.attention.planned_ahead_count(), 1);
  });
}

TEST(PlanAhead, ErrorsAreThoseOfTheSample) {
  dist::run_local(1, kDeadline, [](dist::Group& group) {
    Gated of(group);
    of.attention.prefetch(kThree);
    of.attention.prepare(kOne);
    for (int i = 0; i < 2; ++i) {  // made ahead, then not
      const auto error = attempt([&] { of.attention.prepare(kThree); });
      ASSERT_TRUE(error);
      EXPECT_EQ(error->code(), ErrorCode::kConfig);
      EXPECT_STREQ(error->what(), "no plan for three documents");
    }
    EXPECT_EQ(of.attention.planned_count(), 1);
    of.attention.prefetch(kThree);  // and nobody asks
  });
}

TEST(PlanAhead, EndsBeforeAttentionDoes) {
  dist::run_local(1, kDeadline, [](dist::Group& group) {
    std::optional<Gated> of(group);
    gate = false;
    of->attention.prefetch(kTwo);
    std::thread opens([] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      gate = true;
      gate.notify_all();
    });
    of.reset();
    EXPECT_EQ(plans_made, 2);
    opens.join();
  });
}

// Small segments are dear.
parallel::KernelProfile profile() {
  return {.dtype = DType::kF64,
          .head_dim = 6,
          .lengths = {4, 64},
          .forward = {9e-9, 5e-9, 5e-9, 1e-9},
          .backward = {9e-9, 5e-9, 5e-9, 1e-9}};
}

// What each of four ranks ends with, if it does.
std::vector<std::optional<Error>> errors_of(
    const std::function<void(int rank, parallel::CoreAttentionOptions&)>& change, bool ahead) {
  std::vector<std::optional<Error>> errors(4);
  dist::run_local(4, kDeadline, [&](dist::Group& group) {
    parallel::CoreAttentionOptions options = options_of(some_case("disaggregated"));
    options.sample_layout = {};
    change(group.rank(), options);
    CoreAttention attention(group, parallel::TokenLayout::contiguous(kTokens, 4), options);
    const Documents documents(kTokens, {0, 60, 63, 67, 70, 75, 80, 84, 89, 93});
    errors[static_cast<size_t>(group.rank())] = attempt([&] {
      if (ahead) attention.prefetch(documents);
      attention.prepare(documents);
    });
    EXPECT_EQ(attention.planned_ahead_count() == 1, ahead && attention.planned_count() == 1);
  });
  return errors;
}

TEST(PlanAgreement, RanksThatPlanDifferentlyEndWithOneError) {
  for (const bool ahead : {false, true}) {
    const auto with_profiles = [&](int first) {
      return errors_of(
          [&](int rank, parallel::CoreAttentionOptions& options) {
            if (rank >= first) options.profile = profile();
          },
          ahead);
    };
    for (const int alike : {0, 4}) {
      for (const auto& error : with_profiles(alike)) EXPECT_FALSE(error) << error->what();
    }
    for (const auto& error : with_profiles(3)) {
      ASSERT_TRUE(error);
      EXPECT_EQ(error->code(), ErrorCode::kEnvironment);
      const std::string text = error->what();
      EXPECT_TRUE(
          text.starts_with("ranks planned the same attention in 2 ways: ranks 0-2; rank 3;"))
          << text;
      EXPECT_NE(text.find("parallel.cluster"), std::string::npos) << text;
    }
  }
}

// One rank that cannot plan leaves nobody waiting.
TEST(PlanAgreement, ErrorOfOneRankIsThatOfAll) {
  for (const bool ahead : {false, true}) {
    const auto errors = errors_of(
        [&](int rank, parallel::CoreAttentionOptions& options) {
          if (rank == 2) options.servers.buffer_bytes = 1;
        },
        ahead);
    for (const auto& error : errors) {
      ASSERT_TRUE(error);
      EXPECT_EQ(error->code(), ErrorCode::kConfig);
      EXPECT_TRUE(std::string(error->what()).starts_with("rank 2: servers' buffers of 1 bytes"))
          << error->what();
    }
  }
}

TEST(PlanAgreement, NamesRanksBriefly) {
  dist::run_local(9, kDeadline, [](dist::Group& group) {
    const uint64_t digests[] = {7, 7, 7, 8, 7, 8, 9, 10, 11};
    const auto error =
        attempt([&] { parallel::agree_on_plans(group, std::nullopt, digests[group.rank()]); });
    ASSERT_TRUE(error);
    EXPECT_TRUE(std::string(error->what())
                    .starts_with("ranks planned the same attention in 5 ways: ranks 0-2, 4; ranks "
                                 "3, 5; rank 6; rank 7 and 1 other ways;"))
        << error->what();
    EXPECT_FALSE(attempt([&] { parallel::agree_on_plans(group, std::nullopt, 5); }));
  });
}

// All ranks of a schedule have its digest; another schedule has another one.
TEST(PlanAgreement, DigestIsOfTheSchedule) {
  const parallel::TokenLayout layout = parallel::TokenLayout::contiguous(kTokens, 4);
  const parallel::TokenLayout other_layout = parallel::TokenLayout::zigzag(kTokens, 4);
  const Documents documents(kTokens, {0, 60, 63, 67, 70, 75, 80, 84, 89, 93});
  Problem problem{
      .layout = layout, .documents = documents, .mask = {.causal = true}, .heads = {4, 2, 6, 4}};
  problem.servers.tile = 8;
  std::set<uint64_t> digests;
  const auto add = [&](const Problem& one) {
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      const auto plans = parallel::all_plans_disaggregated(one, direction);
      for (size_t r = 0; r < plans.size(); ++r) {
        EXPECT_EQ(plans[r], parallel::plan_disaggregated(one, direction, static_cast<int>(r)));
        EXPECT_EQ(plans[r].digest, plans[0].digest);
      }
      if (direction == Direction::kForward) digests.insert(plans[0].digest);
    }
  };
  add(problem);
  Problem in_rounds = problem;
  in_rounds.servers.nano_batches = 2;
  add(in_rounds);
  Problem weighed = problem;
  const parallel::KernelProfile costs = profile();
  weighed.servers.profile = &costs;
  add(weighed);
  add({.layout = other_layout,
       .documents = documents,
       .mask = problem.mask,
       .heads = problem.heads,
       .servers = problem.servers});
  EXPECT_EQ(digests.size(), 4u);
}

}  // namespace
}  // namespace longhaul::test
