// The promise: any number of ranks, any layout, any length give one rank's loss and gradients.
#include <gtest/gtest.h>

#include <iostream>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "model/attention_options.h"
#include "tests/model/model_run.h"

namespace longhaul::test {
namespace {

constexpr std::chrono::seconds kDeadline(60);
constexpr int kRanks[] = {1, 2, 3, 4, 5, 7, 8};

ModelRun run_on(int ranks, const ModelCase& c) {
  ModelRun result;
  dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
    const ModelRun mine = run_model(group, c);
    if (group.rank() == 0) result = mine;
  });
  return result;
}

// Why the case's strategy cannot do it.
std::optional<std::string> refusal_of(const ModelCase& c, int ranks) {
  const auto options = model::attention_options(c.config, c.options.dtype);
  for (const parallel::LayoutKind& kind : parallel::layout_kinds()) {
    if (kind.name != c.layout) continue;
    const parallel::TokenLayout layout = kind.make(c.documents.tokens(), ranks);
    return parallel::strategy(c.strategy)
        .refusal({.layout = layout,
                  .documents = c.documents,
                  .mask = options.mask,
                  .heads = options.heads,
                  .ranks_per_node = options.ranks_per_node});
  }
  fail(ErrorCode::kInternal, c.layout);
}

// Prime lengths, documents that straddle ranks, 2 kv heads on up to 8 ranks.
TEST(Parity, LossAndEveryGradientEqualOneRanks) {
  for (const model::ActivationPolicy policy :
       {model::ActivationPolicy::kKeep, model::ActivationPolicy::kRecompute}) {
    for (const parallel::Documents& documents :
         {parallel::Documents::whole(61), parallel::Documents(61, {0, 7, 8, 40})}) {
      ModelCase c{.config = small_model(),
                  .options = {.dtype = DType::kF64, .activations = policy},
                  .documents = documents};
      const ModelRun one = run_on_one_rank(c);
      for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"}) {
        for (int ranks : kRanks) {
          SCOPED_TRACE(absl::StrCat(layout, " P=", ranks, " documents ", documents.count()));
          c.layout = layout;
          c.in_place = ranks % 2 == 0;
          const ModelRun many = run_on(ranks, c);
          EXPECT_NEAR(many.loss, one.loss, 1e-12 * one.loss);
          EXPECT_LE(largest_deviation(one, many), 1e-10);
          EXPECT_EQ(many.attention_forwards, c.config.layers);
        }
      }
    }
  }
}

// Window, soft-cap, sinks and dropout on packed documents, with a prefix or with ALiBi, under every
// strategy that can: the same loss and gradients, sinks among them, and the same elements dropped.
TEST(Parity, EveryOptionOfAttention) {
  for (const bool alibi : {false, true}) {
    for (const model::ActivationPolicy policy :
         {model::ActivationPolicy::kKeep, model::ActivationPolicy::kRecompute}) {
      ModelCase c{.config = model_with_attention_options(alibi),
                  .options = {.dtype = DType::kF64, .activations = policy},
                  .documents = parallel::Documents(61, {0, 7, 8, 40})};
      const ModelRun one = run_on_one_rank(c);
      EXPECT_EQ(one.gradients.count("model.layers.1.self_attn.sinks"), 1u);
      for (const parallel::Strategy& strategy : parallel::strategies()) {
        for (const char* layout : {"zigzag", "striped"}) {
          SCOPED_TRACE(absl::StrCat(std::string(strategy.name), " ", layout, " alibi ", alibi));
          c.strategy = strategy.name;
          c.layout = layout;
          if (const auto refusal = refusal_of(c, 3)) {
            std::cout << "[  SKIPPED ] " << *refusal << "\n";
            continue;
          }
          const ModelRun many = run_on(3, c);
          EXPECT_NEAR(many.loss, one.loss, 1e-12 * one.loss);
          EXPECT_LE(largest_deviation(one, many), 1e-10);
        }
      }
      c.strategy = "ring";
      ModelCase without = c;
      without.config.attention.dropout = 0;
      EXPECT_GT(largest_deviation(one, run_on_one_rank(without)), 1e-3) << "dropout does nothing";
    }
  }
}

// Fewer tokens than ranks: some ranks have nothing.
TEST(Parity, EmptyShards) {
  for (int64_t tokens : {2, 3, 5}) {
    ModelCase c{.config = small_model(),
                .options = {.dtype = DType::kF64},
                .documents = parallel::Documents::whole(tokens)};
    // Distinct tokens: equal values would make some gradients zero, and the measure is relative.
    c.tokens = {3, 1, 4, 15, 9};
    c.tokens.resize(static_cast<size_t>(tokens));
    const ModelRun one = run_on_one_rank(c);
    for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"}) {
      c.layout = layout;
      EXPECT_LE(largest_deviation(one, run_on(8, c)), 1e-10) << layout << " " << tokens;
    }
  }
}

// f32 sums of T terms in another order differ by up to about sqrt(T) units in the last place; the
// largest element of each gradient tensor is the measure. Both runs are held against fp64.
TEST(Parity, SinglePrecision) {
  ModelCase c{.config = small_model(),
              .options = {.dtype = DType::kF64},
              .documents = parallel::Documents(61, {0, 7, 8, 40})};
  const ModelRun truth = run_on_one_rank(c);
  c.options.dtype = DType::kF32;
  const double one = largest_deviation(truth, run_on_one_rank(c));
  EXPECT_LE(one, 61 * 1.2e-7);
  for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"}) {
    for (int ranks : {2, 5}) {
      c.layout = layout;
      // Twice one rank's error, and a floor for lucky single runs: three times sqrt(61) units.
      EXPECT_LE(largest_deviation(truth, run_on(ranks, c)), std::max(2 * one, 24 * 1.2e-7))
          << layout << " " << ranks;
    }
  }
}

// One token of the first document: nothing else may change.
TEST(Parity, DocumentsDoNotSeeEachOther) {
  ModelCase c{.config = small_model(),
              .options = {.dtype = DType::kF64},
              .layout = "zigzag",
              .documents = parallel::Documents(40, {0, 15})};
  std::vector<int32_t> tokens = random_tokens(40, 19, 7);
  // The second document alone, on as many ranks: its gradients are the difference of sums.
  const auto rows = [&](const std::vector<int32_t>& sample) {
    ModelCase with = c;
    with.tokens = sample;
    return run_on(3, with);
  };
  const ModelRun before = rows(tokens);
  const ModelRun again = rows(tokens);
  EXPECT_EQ(before.gradients, again.gradients);  // reruns are bit-identical
  tokens[3] = (tokens[3] + 1) % 19;
  const ModelRun after = rows(tokens);
  EXPECT_NE(before.loss, after.loss);
  // Losses are means over 14 + 24 targets. What changed must be explained by the first document.
  ModelCase first = c;
  first.documents = parallel::Documents::whole(15);
  first.tokens = random_tokens(40, 19, 7);
  first.tokens.resize(15);
  const double first_before = run_on(3, first).loss * 14;
  first.tokens[3] = (first.tokens[3] + 1) % 19;
  const double first_after = run_on(3, first).loss * 14;
  EXPECT_NEAR((after.loss - before.loss) * 38, first_after - first_before, 1e-11);
}

}  // namespace
}  // namespace longhaul::test
