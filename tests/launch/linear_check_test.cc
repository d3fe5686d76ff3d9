// `longhaul check` of linear layers: quiet about every method and layout, loud about deviations.
#include "launch/check/linear_check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::launch {
namespace {

constexpr std::chrono::seconds kDeadline(60);

Config config_of(const std::string& dtype, const std::string& method, const std::string& layout,
                 const std::string& linear = "slopes: 'transnormer'") {
  return parse_config(
      absl::StrCat("model { vocabulary: 16 layers: 2 width: 32 heads: 12 head_dim: 8 mlp_width: 48 "
                   "pattern: 'NL' linear { ",
                   linear,
                   " } } data { path: 'none' sequence_length: 4099 } train { steps: 1 dtype: ",
                   dtype, " } parallel { linear_method: '", method, "' layout: '", layout, "' }"),
      "test");
}

std::vector<Deviation> deviations_of(int ranks, const Config& given) {
  std::vector<Deviation> result;
  std::mutex mutex;
  dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
    Config config = given;
    resolve(config, world.size(), 1);
    ThreadPool pool(1);
    const CheckedLinearAttention attention =
        checked_linear_attention(config, config.parallel().linear_method());
    EXPECT_EQ(attention.options.heads, 8) << "of 12";
    const auto deviations = check_linear_attention(world, {.pool = &pool}, attention);
    require_small(world, attention.subject(), deviations);
    const std::scoped_lock lock(mutex);
    result = deviations;
  });
  return result;
}

TEST(LinearCheck, IsQuietAboutEveryMethodAndLayout) {
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    for (const parallel::LayoutKind& layout : parallel::layout_kinds()) {
      const std::string dtype = method.name == "ring" ? "BF16" : "F32";
      SCOPED_TRACE(absl::StrCat(std::string(method.name), " ", std::string(layout.name)));
      const auto deviations =
          deviations_of(3, config_of(dtype, std::string(method.name), std::string(layout.name)));
      ASSERT_EQ(deviations.size(), 8u) << "out, dq, dk, dv in f64 and in the run's dtype";
      for (const Deviation& d : deviations) {
        EXPECT_LE(d.max_relative_error, d.limit) << d.tensor;
        EXPECT_TRUE(std::isfinite(d.max_relative_error)) << d.tensor;
      }
    }
  }
}

TEST(LinearCheck, IsQuietAboutGates) {
  for (const auto& [kind, tensors] : {std::pair("kind: 'gla'", 10), {"kind: 'gated_delta'", 12}}) {
    for (const char* layout : {"contiguous", "zigzag"}) {
      SCOPED_TRACE(absl::StrCat(kind, " ", layout));
      const auto deviations = deviations_of(3, config_of("F32", "all_gather", layout, kind));
      ASSERT_EQ(deviations.size(), static_cast<size_t>(tensors));
      for (const Deviation& d : deviations) EXPECT_FALSE(d.too_large()) << d.tensor;
    }
  }
}

TEST(LinearCheck, DeviationsAreNamedOnEveryRank) {
  dist::run_local(3, kDeadline, [&](dist::Group& world) {
    Config config = config_of("F32", "all_gather", "zigzag");
    resolve(config, world.size(), 1);
    const Subject subject =
        checked_linear_attention(config, config.parallel().linear_method()).subject();
    Deviation small, large;
    keep_worst(small, "out", DType::kF64, 1e-11, 0);
    EXPECT_FALSE(small.too_large());
    keep_worst(large, "dq", DType::kF32, 3e-4, 1e-4);
    keep_worst(large, "dq", DType::kF32, 1e-6, 1e-4);
    EXPECT_EQ(large.max_relative_error, 3e-4) << "the worse of two samples";
    const std::vector<Deviation> mine{small, world.rank() == 1 ? large : small};
    const auto error = attempt([&] { require_small(world, subject, mine); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ErrorCode::kNumerics);
    const std::string message = error->what();
    EXPECT_NE(message.find("dq of linear attention by all_gather on layout zigzag deviates"),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("parallel.linear_method"), std::string::npos) << message;
    Deviation nan;
    keep_worst(nan, "dv", DType::kF32, std::nan(""), 0);
    EXPECT_TRUE(nan.too_large());
  });
}

}  // namespace
}  // namespace longhaul::launch
