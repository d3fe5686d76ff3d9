// Models with linear attention on any number of ranks, in any layout and by any method give one
// rank's loss and gradients.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "tests/model/hybrid_cases.h"
#include "tests/model/model_run.h"
#include "tests/parallel/covering.h"

namespace longhaul::test {
namespace {

constexpr std::chrono::seconds kDeadline(60);

ModelRun run_on(int ranks, const ModelCase& c) {
  ModelRun result;
  dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
    const ModelRun mine = run_model(group, c);
    if (group.rank() == 0) result = mine;
  });
  return result;
}

// Prime lengths, documents that straddle ranks, fewer heads than ranks.
TEST(HybridParity, LossAndEveryGradientEqualOneRanks) {
  const std::vector<HybridCase> hybrids = hybrid_cases();
  const std::vector<int> ranks{2, 3, 5, 8};
  const std::vector<std::string> layouts{"contiguous", "zigzag", "striped", "balanced"};
  const std::vector<parallel::Documents> documents{parallel::Documents::whole(61),
                                                   parallel::Documents(61, {0, 7, 8, 40}),
                                                   parallel::Documents(5, {0, 3})};
  const auto methods = parallel::scan_methods();
  const auto size = [](const auto& values) { return static_cast<int>(values.size()); };
  for (const Case& values : cases_of({size(hybrids), size(ranks), size(layouts), size(documents),
                                      static_cast<int>(methods.size()), 2})) {
    const auto value = [&](size_t factor) { return static_cast<size_t>(values[factor]); };
    ModelCase c{.config = hybrids[value(0)].config,
                .options = {.dtype = DType::kF64,
                            .activations = value(5) == 0 ? model::ActivationPolicy::kKeep
                                                         : model::ActivationPolicy::kRecompute},
                .layout = layouts[value(2)],
                .linear_method = std::string(methods[value(4)].name),
                .documents = documents[value(3)]};
    // Distinct tokens: equal values would make some gradients zero, and the measure is relative.
    if (c.documents.tokens() == 5) c.tokens = {3, 1, 4, 15, 9};
    SCOPED_TRACE(absl::StrCat(hybrids[value(0)].name, " P=", ranks[value(1)], " ", c.layout, " ",
                              c.linear_method, " documents ", c.documents.count(), " of ",
                              c.documents.tokens()));
    const ModelRun one = run_on_one_rank(c);
    const ModelRun many = run_on(ranks[value(1)], c);
    EXPECT_NEAR(many.loss, one.loss, 1e-12 * one.loss);
    EXPECT_LE(largest_deviation(one, many), 1e-10);
    EXPECT_EQ(many.linear_forwards, c.config.linear_layers());
    EXPECT_EQ(many.attention_forwards, c.config.softmax_layers());
  }
}

TEST(HybridParity, RerunsAreBitIdentical) {
  ModelCase c{.config = hybrid_cases().back().config,
              .options = {.dtype = DType::kBF16},
              .documents = parallel::Documents(61, {0, 40})};
  const ModelRun once = run_on(3, c), again = run_on(3, c);
  EXPECT_EQ(once.loss, again.loss);
  EXPECT_EQ(once.gradients, again.gradients);
}

}  // namespace
}  // namespace longhaul::test
