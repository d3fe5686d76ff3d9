// Plans of samples that come again are not made again, whatever came between, and take no more than
// the memory that is set aside for them.
#include "parallel/attention/plan_cache.h"

#include <gtest/gtest.h>

#include <atomic>

#include "dist/local/local.h"
#include "parallel/plan/planners.h"
#include "tests/parallel/core_attention_cases.h"

namespace longhaul::test {
namespace {

using parallel::CoreAttention;
using parallel::Direction;
using parallel::Documents;
using parallel::Plan;
using parallel::PlanCache;
using parallel::Problem;
using parallel::SamplePlans;
using parallel::TokenLayout;

constexpr std::chrono::seconds kDeadline(60);
constexpr int64_t kTokens = 97;

std::atomic<int> plans_made = 0;  // a table's planners are plain functions
Plan counted(const Problem& problem, Direction direction, int rank) {
  ++plans_made;
  return parallel::plan_group_cast(problem, direction, rank);
}
std::optional<std::string> refuses_nothing(const Problem&) { return std::nullopt; }
constexpr parallel::Strategy kCounted[] = {{"counted", counted, refuses_nothing}};

// The balanced layout gives each of these samples its own rows on every rank: a plan or a layout
// that is not the sample's would give other results.
TEST(PlanCache, SamplesThatComeAgainArePlannedOnce) {
  constexpr int kRanks = 3;
  const std::vector<Documents> samples{Documents::whole(kTokens),
                                       Documents(kTokens, {0, 60, 71, 90}),
                                       Documents(kTokens, {0, 5, 11, 17, 30, 44})};
  const int order[] = {0, 1, 1, 2, 0, 2, 1, 0};
  std::vector<AttentionTruth> truths;
  AttentionCase c{.strategy = "counted",
                  .layout = "balanced",
                  .tokens = kTokens,
                  .heads = {4, 2, 6, 4},
                  .mask = {true, 0},
                  .dtype = DType::kF64};
  for (const Documents& documents : samples) {
    c.documents = documents;
    truths.push_back(truth_of(c, 3));
  }
  plans_made = 0;
  dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
    const parallel::LayoutKind& kind = parallel::layout_kind(c.layout);
    CoreAttention attention(group, kind.make(kTokens, kRanks), options_of(c), kCounted);
    EXPECT_EQ(attention.planned_count(), 0);
    Arena scratch("scratch", 1 << 22), buffers("buffers", 1 << 22);
    std::vector<std::optional<AttentionResult>> first(samples.size());
    for (const int which : order) {
      const auto i = static_cast<size_t>(which);
      AttentionCase of_sample = c;
      of_sample.documents = samples[i];
      attention.prepare(samples[i]);
      EXPECT_EQ(attention.layout().positions(group.rank()),
                layout_of(of_sample, kRanks).positions(group.rank()));
      const RankTensors tensors(truths[i], attention.layout().positions(group.rank()), c.dtype);
      scratch.poison();
      buffers.poison();
      run_passes(attention, tensors, scratch, buffers);
      const AttentionResult result = tensors.result();
      for (double e : errors(group, of_sample, truths[i], result)) EXPECT_LE(e, 1e-12) << which;
      EXPECT_EQ(first[i].value_or(result), result) << which;
      first[i] = result;
    }
    EXPECT_EQ(attention.planned_count(), static_cast<int64_t>(samples.size()));
  });
  // In both directions; once more for measuring memory before the first sample.
  EXPECT_EQ(plans_made, kRanks * 2 * (1 + static_cast<int>(samples.size())));
}

SamplePlans plans_of(int64_t second_document, int64_t segments = 0) {
  SamplePlans plans{.documents = Documents(kTokens, {0, second_document}),
                    .layout = TokenLayout::contiguous(kTokens, 1),
                    .forward = {},
                    .backward = {}};
  plans.forward.steps.resize(1);
  plans.forward.steps[0].tasks.push_back({.q_slot = 0, .k_slot = 0, .q_heads = {}, .segments = {}});
  plans.forward.steps[0].tasks[0].segments.resize(static_cast<size_t>(segments));
  return plans;
}
bool has(PlanCache& cache, int64_t second_document) {
  const Documents documents(kTokens, {0, second_document});
  const SamplePlans* found = cache.find(documents);
  EXPECT_TRUE(found == nullptr || found->documents == documents);
  return found != nullptr;
}

TEST(PlanCache, DropsTheSampleThatWasUsedLongestAgo) {
  PlanCache cache(3);
  for (int64_t i : {1, 2, 3}) cache.add(plans_of(i));
  EXPECT_TRUE(has(cache, 1));
  cache.add(plans_of(4));
  EXPECT_EQ(cache.samples(), 3);
  EXPECT_FALSE(has(cache, 2));
  for (int64_t i : {1, 3, 4}) EXPECT_TRUE(has(cache, i)) << i;
}

TEST(PlanCache, LookingUsesNothing) {
  PlanCache cache(2);
  for (int64_t i : {1, 2}) cache.add(plans_of(i));
  EXPECT_TRUE(cache.contains(Documents(kTokens, {0, 1})));
  EXPECT_FALSE(cache.contains(Documents(kTokens, {0, 3})));
  cache.add(plans_of(3));
  EXPECT_FALSE(cache.contains(Documents(kTokens, {0, 1})));
  EXPECT_TRUE(cache.contains(Documents(kTokens, {0, 2})));
}

TEST(PlanCache, MemoryIsBounded) {
  constexpr int64_t kMost = 20000;
  constexpr int64_t kLarge = 100;  // segments
  PlanCache cache(PlanCache::kMostSamples, kMost);
  const int64_t one = memory_bytes(plans_of(1, kLarge));
  EXPECT_GE(one, kLarge * static_cast<int64_t>(sizeof(Segment)));
  for (int64_t i = 1; i < 50; ++i) {
    cache.add(plans_of(i, kLarge));
    EXPECT_TRUE(has(cache, i));
    EXPECT_LE(cache.bytes(), kMost + one);
    EXPECT_EQ(cache.bytes(), cache.samples() * one);
  }
  EXPECT_EQ(cache.samples(), kMost / one + 1);  // those that fit, and the one in use
  // One that is larger than all that is set aside is kept as long as it is used, and no longer.
  cache.add(plans_of(50, 100 * kLarge));
  EXPECT_TRUE(has(cache, 50));
  cache.add(plans_of(51));
  cache.add(plans_of(52));
  EXPECT_FALSE(has(cache, 50));
  EXPECT_LE(cache.bytes(), kMost + one);
}

}  // namespace
}  // namespace longhaul::test
