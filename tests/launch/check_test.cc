// `longhaul check`: quiet about every strategy of the table, and loud about plans that are wrong.
#include "launch/check/check.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <mutex>
#include <set>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "launch/check/reduced.h"
#include "parallel/plan/planners.h"

namespace longhaul::launch {
namespace {

using parallel::Direction;
using parallel::Plan;
using parallel::Problem;
using parallel::Step;
using parallel::Strategy;

constexpr std::chrono::seconds kDeadline(60);

Config config_of(const std::string& dtype, const std::string& parallel, int64_t tokens = 4099) {
  return parse_config(
      absl::StrCat("model { vocabulary: 16 layers: 2 width: 32 heads: 8 kv_heads: 4 head_dim: 16 "
                   "mlp_width: 48 norm_eps: 1e-5 } data { path: 'none' sequence_length: ",
                   tokens, " } train { steps: 1 dtype: ", dtype, " } parallel { ", parallel, " }"),
      "test");
}

struct Outcome {
  std::vector<Deviation> deviations;
  std::vector<std::string> errors;  // of all ranks
};
Outcome run(int ranks, const Config& given, std::span<const Strategy> table) {
  Outcome outcome;
  std::mutex mutex;
  dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
    Config config = given;
    resolve(config, world.size(), 1);
    ThreadPool pool(1);
    SettledStrategies settled;
    settled.forward = config.parallel().strategy();
    settled.ranks_per_node = world.size();
    const CheckedAttention attention = checked_attention(config, settled);
    const std::vector<Deviation> deviations =
        check_attention(world, {.pool = &pool}, attention, table);
    const auto error = attempt([&] { require_small(world, attention.subject(), deviations); });
    const std::scoped_lock lock(mutex);
    outcome.deviations = deviations;
    if (!error) return;
    EXPECT_EQ(error->code(), ErrorCode::kNumerics);
    outcome.errors.emplace_back(error->what());
  });
  return outcome;
}

// Dtypes and ranks in turn: every strategy and every layout meets each of them.
TEST(Check, EveryStrategyPasses) {
  size_t turn = 0;
  for (const Strategy& strategy : parallel::strategies()) {
    for (const parallel::LayoutKind& layout : parallel::layout_kinds()) {
      const std::string dtype = std::array{"F32", "BF16", "F64"}[turn % 3];
      const int ranks = std::array{2, 3, 1, 4}[turn % 4];
      ++turn;
      // Layouts of samples mix the tokens of ranks as zigzag does.
      const parallel::TokenLayout rows =
          (layout.make_for != nullptr ? parallel::TokenLayout::zigzag : layout.make)(64, ranks);
      const parallel::Documents whole = parallel::Documents::whole(64);
      const Problem problem{.layout = rows,
                            .documents = whole,
                            .mask = {},
                            .heads = {.q_heads = 8, .kv_heads = 4},
                            .ranks_per_node = ranks};
      if (strategy.refusal(problem)) continue;
      SCOPED_TRACE(absl::StrCat(std::string(strategy.name), " ", std::string(layout.name), " ",
                                dtype, " ", ranks, " ranks"));
      const Config config =
          config_of(dtype, absl::StrCat("strategy: '", std::string(strategy.name), "' layout: '",
                                        std::string(layout.name), "'"));
      const Outcome outcome = run(ranks, config, parallel::strategies());
      EXPECT_TRUE(outcome.errors.empty()) << outcome.errors.front();
      EXPECT_EQ(outcome.deviations.size(), dtype == "F64" ? 5u : 10u);
      for (const Deviation& d : outcome.deviations) {
        EXPECT_TRUE(std::isfinite(d.max_relative_error)) << d.tensor;
        EXPECT_GT(d.limit, 0) << d.tensor;
      }
    }
  }
}

std::optional<std::string> refuses_nothing(const Problem&) { return std::nullopt; }

// What else a model's attention may do is checked, too; the gradient of sinks as a tensor of its
// own.
TEST(Check, OptionsOfAttentionAreChecked) {
  Config config = config_of("BF16", "strategy: 'group_cast' layout: 'balanced'");
  for (const char* option :
       {"sliding_window=700", "soft_cap=5", "alibi=true", "sinks=true", "dropout=0.2"}) {
    apply_override(config, absl::StrCat("model.attention.", option));
  }
  const Outcome outcome = run(3, config, parallel::strategies());
  EXPECT_TRUE(outcome.errors.empty()) << outcome.errors.front();
  ASSERT_EQ(outcome.deviations.size(), 12u);
  EXPECT_EQ(outcome.deviations.back().tensor, "dsink");
}

// The ring with a mistake on its last rank.
template <class Break>
Plan broken_ring(const Problem& problem, Direction direction, int rank, Break&& damage) {
  Plan plan = parallel::plan_ring(problem, direction, rank);
  if (rank + 1 == problem.layout.ranks()) damage(plan);
  return plan;
}
Plan forgets_forward(const Problem& problem, Direction direction, int rank) {
  return broken_ring(problem, direction, rank, [&](Plan& plan) {
    if (direction == Direction::kForward) plan.steps[1].tasks.clear();
  });
}
Plan forgets_backward(const Problem& problem, Direction direction, int rank) {
  return broken_ring(problem, direction, rank, [&](Plan& plan) {
    if (direction == Direction::kBackward) plan.steps[1].tasks.clear();
  });
}
Plan looks_ahead(const Problem& problem, Direction direction, int rank) {
  return broken_ring(problem, direction, rank, [](Plan& plan) {
    Segment& segment = plan.steps[0].tasks[0].segments[0];
    ++segment.band_hi;
  });
}
// Wrong for packed samples only.
Plan ignores_documents(const Problem& problem, Direction direction, int rank) {
  const parallel::Documents whole = parallel::Documents::whole(problem.layout.tokens());
  return parallel::plan_ring({problem.layout, whole, problem.mask, problem.heads}, direction, rank);
}
Plan never_clears(const Problem& problem, Direction direction, int rank) {
  return broken_ring(problem, direction, rank, [&](Plan& plan) {
    if (direction == Direction::kBackward) plan.steps[0].clears.clear();
  });
}

TEST(Check, MistakesAreFoundAndNamedOnEveryRank) {
  struct Mistake {
    Strategy strategy;
    std::set<std::string> wrong;  // tensors
  };
  const Mistake mistakes[] = {
      {{"ring", forgets_forward, refuses_nothing}, {"out", "lse", "dq", "dk", "dv"}},
      {{"ring", forgets_backward, refuses_nothing}, {"dq", "dk", "dv"}},
      {{"ring", looks_ahead, refuses_nothing}, {"out", "lse", "dq", "dk", "dv"}},
      {{"ring", ignores_documents, refuses_nothing}, {"out", "lse", "dq", "dk", "dv"}},
      {{"ring", never_clears, refuses_nothing}, {"dq", "dk", "dv"}}};
  int index = 0;
  for (const Mistake& mistake : mistakes) {
    for (const char* dtype : {"F32", "BF16", "F64"}) {
      SCOPED_TRACE(absl::StrCat("mistake ", index, " ", dtype));
      const Outcome outcome =
          run(3, config_of(dtype, "strategy: 'ring' layout: 'zigzag'"), {&mistake.strategy, 1});
      for (const Deviation& d : outcome.deviations) {
        EXPECT_EQ(d.too_large(), mistake.wrong.contains(d.tensor))
            << d.tensor << " " << d.max_relative_error << " " << d.limit;
      }
      ASSERT_EQ(outcome.errors.size(), 3u);
      EXPECT_EQ(std::set(outcome.errors.begin(), outcome.errors.end()).size(), 1u);
      // "check: dq of strategy ring on layout zigzag deviates ..."
      const std::string& message = outcome.errors[0];
      const std::string tensor = message.substr(7, message.find(" of ") - 7);
      EXPECT_TRUE(mistake.wrong.contains(tensor)) << message;
      EXPECT_NE(message.find(" of strategy ring on layout zigzag deviates"), std::string::npos)
          << message;
      EXPECT_NE(message.find("the limit is "), std::string::npos) << message;
    }
    ++index;
  }
}

constexpr const char* kDisaggregated[] = {"data: 2", "data: 3 layout: 'balanced' row_price: 0",
                                          "data: 2 servers: 1", "data: 2 nano_batches: 2"};
int ranks_of(const std::string& parallel) {
  if (parallel.find("nano") != std::string::npos) return 4;
  return parallel == "data: 2" ? 2 : 3;
}

// Disaggregated attention of a problem this small must be cut and moved, or its check sees nothing.
TEST(Check, ServersMoveTasksOfTheReducedProblem) {
  for (const std::string parallel : kDisaggregated) {
    SCOPED_TRACE(parallel);
    Config config = config_of("F32", "strategy: 'disaggregated' " + parallel);
    resolve(config, ranks_of(parallel), 1);
    SettledStrategies settled;
    settled.forward = config.parallel().strategy();
    const CheckedAttention checked = checked_attention(config, settled);
    const ReducedProblem reduced =
        reduce(checked.layout, checked.tokens, checked.ranks, checked.options, checked.of_one);
    const parallel::Documents& packed = reduced.samples[1];
    const parallel::TokenLayout layout =
        reduced.attention.sample_layout(packed, reduced.attention.mask, reduced.layout.ranks());
    Problem problem{.layout = layout,
                    .documents = packed,
                    .mask = reduced.attention.mask,
                    .heads = reduced.attention.heads,
                    .servers = reduced.attention.servers};
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      int64_t bytes = 0;
      for (int rank = 0; rank < layout.ranks(); ++rank) {
        bytes += parallel::sent_bytes(plan_disaggregated(problem, direction, rank), rank,
                                      problem.heads, DType::kF32);
      }
      EXPECT_GT(bytes, 0);
    }
  }
}

// Computes nothing on what others have sent.
Plan forgets_others(const Problem& problem, Direction direction, int rank) {
  Plan plan = parallel::plan_disaggregated(problem, direction, rank);
  for (Step& step : plan.steps) {
    std::erase_if(step.tasks, [](const parallel::Task& task) { return task.q_slot != 0; });
  }
  return plan;
}
TEST(Check, TasksThatServersForgetAreFound) {
  const Strategy forgetful{"disaggregated", forgets_others, parallel::disaggregated_refusal};
  for (const std::string parallel : kDisaggregated) {
    SCOPED_TRACE(parallel);
    const Config config = config_of("F32", "strategy: 'disaggregated' " + parallel);
    EXPECT_TRUE(run(ranks_of(parallel), config, parallel::strategies()).errors.empty());
    const Outcome outcome = run(ranks_of(parallel), config, {&forgetful, 1});
    EXPECT_EQ(outcome.errors.size(), static_cast<size_t>(ranks_of(parallel)));
    for (const Deviation& d : outcome.deviations) EXPECT_TRUE(d.too_large()) << d.tensor;
  }
}

TEST(Check, TheReducedProblemKeepsWhatMatters) {
  const parallel::LayoutKind& zigzag = parallel::layout_kinds()[1];
  for (const int ranks : {1, 2, 3, 7, 64}) {
    for (const int64_t tokens : {1, 61, 8192, 100'003}) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", tokens, " tokens"));
      const ReducedProblem reduced =
          reduce(zigzag, tokens, {.sequence = ranks},
                 {.heads = {32, 8, 128, 128}, .mask = {.causal = true, .window = 512}});
      const int64_t n = reduced.layout.tokens();
      EXPECT_LE(n, tokens);
      EXPECT_LE(n, 1024);
      EXPECT_EQ(n % (2 * ranks), tokens % (2 * ranks));
      EXPECT_EQ(reduced.attention.heads.group(), 4);
      EXPECT_EQ(reduced.attention.heads.head_dim, 128);
      EXPECT_GE(reduced.attention.heads.q_heads, std::min(32, ranks));
      EXPECT_GE(reduced.attention.mask.window, 1);
      EXPECT_TRUE(tokens <= 512 || reduced.attention.mask.window < n);
      ASSERT_EQ(reduced.samples.size(), 2u);
      EXPECT_EQ(reduced.samples[0].count(), 1);
      if (tokens < 8 * ranks) continue;  // chunks of a few tokens each
      const parallel::Documents& packed = reduced.samples[1];
      EXPECT_GT(packed.count(), 2);
      for (int r = 0; r < ranks; ++r) {
        for (const parallel::Run& run : reduced.layout.runs(r)) {
          if (run.global_begin == 0 || run.length == 0) continue;
          EXPECT_LT(packed.begin(packed.at(run.global_begin)), run.global_begin);
        }
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::launch
