// A prompt over all ranks and then one token at a time give the logits of a naive model over all
// tokens at once.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "tests/model/inference_run.h"
#include "tests/model/model_run.h"
#include "tests/slow_build.h"

namespace longhaul::test {
namespace {

constexpr std::chrono::seconds kDeadline(60);

std::vector<Rows> run_on(int ranks, const InferenceCase& c) {
  std::vector<Rows> of_ranks(static_cast<size_t>(ranks));
  dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
    of_ranks[static_cast<size_t>(group.rank())] = run_inference(group, c);
  });
  return of_ranks;
}

TEST(Inference, LogitsOfEachDecodedTokenEqualTheNaiveModels) {
  for (const int ranks : some_of<int>({3, 1, 2, 4}, 2)) {
    for (const InferenceCase& c : inference_cases(ranks)) {
      SCOPED_TRACE(absl::StrCat("P=", ranks, " ", c.config.pattern, " ", c.layout, " ", c.strategy,
                                " prompt ", c.prompt));
      const Rows expected = naive_log_probabilities(c);
      const std::vector<Rows> actual = run_on(ranks, c);
      EXPECT_LE(largest_difference(expected, log_softmax(actual[0])), 1e-10);
      for (const Rows& rows : actual) EXPECT_EQ(rows, actual[0]);
    }
  }
}

TEST(Inference, RerunsInLowPrecisionAreBitIdentical) {
  InferenceCase c = inference_cases(3)[1];
  c.dtype = DType::kBF16;
  EXPECT_EQ(run_on(3, c), run_on(3, c));
  EXPECT_LE(largest_difference(naive_log_probabilities(c), log_softmax(run_on(3, c)[0])), 0.05);
}

TEST(Inference, APromptShorterThanThePrefixIsRefused) {
  InferenceCase c{.config = model_with_attention_options(/*alibi=*/false), .prompt = 3};
  try {
    run_on(2, c);
    FAIL() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_NE(std::string(error.what()).find("prefix_length 4"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace longhaul::test
