// Linear attention across ranks: random dense affine maps per token and head, composed by the plans
// of all ranks, against one walk over the sequence.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/decayed_scan.h"
#include "parallel/plan/scan.h"
#include "tests/parallel/plan_interpreter.h"
#include "tests/parallel/plan_order.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Field;
using parallel::HeadShape;
using parallel::Plan;
using parallel::RunList;
using parallel::ScanMethod;
using parallel::TokenLayout;

// S -> A S + B on states of n x m.
constexpr size_t n = 3, m = 2;
struct Map {
  std::vector<double> a = std::vector<double>(n * n, 0.0), b = std::vector<double>(n * m, 0.0);
};

Map identity_map() {
  Map map;
  for (size_t i = 0; i < n; ++i) map.a[i * n + i] = 1;
  return map;
}

// x += A y for matrices of `columns` columns.
void add_product(std::span<double> x, std::span<const double> a, std::span<const double> y,
                 size_t columns) {
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < columns; ++j) {
      for (size_t k = 0; k < n; ++k) x[i * columns + j] += a[i * n + k] * y[k * columns + j];
    }
  }
}

Map after(const Map& later, const Map& earlier) {
  Map map;
  map.b = later.b;
  add_product(map.b, later.a, earlier.b, m);
  add_product(map.a, later.a, earlier.a, n);
  return map;
}

// Of every head and token.
using TokenMaps = std::vector<std::vector<Map>>;
TokenMaps random_maps(int64_t heads, int64_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  TokenMaps maps(static_cast<size_t>(heads), std::vector<Map>(static_cast<size_t>(tokens)));
  for (auto& of_head : maps) {
    for (Map& map : of_head) {
      for (double& value : map.a) value = 0.55 * uniform(random);
      for (double& value : map.b) value = 0.55 * uniform(random);
      for (size_t i = 0; i < n; ++i) map.a[i * n + i] += 0.4;
    }
  }
  return maps;
}

// forgets: by head, whether only what the run before has of itself counts; empty: of none.
using Forgets = std::vector<bool>;
std::vector<Plan> plans_of(const ScanMethod& method, const TokenLayout& layout, int64_t heads,
                           Direction direction, const Forgets& forgets = {}) {
  std::vector<Plan> plans;
  for (int r = 0; r < layout.ranks(); ++r) {
    plans.push_back(plan_scan(method, layout, heads, forgets, direction, r));
  }
  return plans;
}

// What tokens of a run do, in the order of the direction.
Map map_of(const std::vector<Map>& tokens, const parallel::Run& run, bool forward) {
  Map map = identity_map();
  for (int64_t t = 0; t < run.length; ++t) {
    const int64_t position = run.position(forward ? t : run.length - 1 - t);
    map = after(tokens[static_cast<size_t>(position)], map);
  }
  return map;
}

// The sums of the run before each, by rank and run; zeros before the first.
std::vector<std::vector<std::vector<double>>> sums_before(const TokenLayout& layout,
                                                          const std::vector<Map>& tokens,
                                                          bool forward) {
  std::vector<std::tuple<int64_t, int64_t, int, size_t>> order;
  std::vector<std::vector<std::vector<double>>> before;
  for (int r = 0; r < layout.ranks(); ++r) {
    before.emplace_back(layout.runs(r).size());
    for (size_t i = 0; i < layout.runs(r).size(); ++i) {
      order.emplace_back(layout.runs(r)[i].global_begin, layout.runs(r)[i].length, r, i);
    }
  }
  std::ranges::sort(order);
  if (!forward) std::ranges::reverse(order);
  std::vector<double> sums(n * m, 0.0);
  for (const auto& [begin, length, r, i] : order) {
    before[static_cast<size_t>(r)][i] = sums;
    sums = map_of(tokens, layout.runs(r)[i], forward).b;
  }
  return before;
}

void verify_scan(const TokenLayout& layout, const ScanMethod& method, int64_t heads,
                 Direction direction, uint64_t seed, const Forgets& forgets = {}) {
  const TokenMaps tokens = random_maps(heads, layout.tokens(), seed);
  PlanInterpreter::Dims dims{};
  dims[static_cast<size_t>(Field::kState)] = n * m;
  dims[static_cast<size_t>(Field::kDecay)] = n * n;
  PlanInterpreter ranks(
      plans_of(method, layout, heads, direction, forgets), dims,
      {.run_task = [](int, const parallel::Task&) { throw PlanViolation("a scan has no tasks"); },
       .compose =
           [](std::span<double> state, std::span<double> decay, std::span<const double> received,
              std::span<const double> received_decay) {
             add_product(state, decay, received, m);
             if (received_decay.empty()) return;
             std::vector<double> product(n * n, 0.0);
             add_product(product, decay, received_decay, n);
             std::copy(product.begin(), product.end(), decay.begin());
           }});
  const bool forward = direction == Direction::kForward;
  const auto for_each_run = [&](auto&& visit) {
    for (int r = 0; r < layout.ranks(); ++r) {
      for (size_t i = 0; i < layout.runs(r).size(); ++i) {
        for (int64_t h = 0; h < heads; ++h) {
          visit(r, static_cast<int64_t>(i), layout.runs(r)[i], h);
        }
      }
    }
  };
  for_each_run([&](int r, int64_t i, const parallel::Run& run, int64_t h) {
    const Map map = map_of(tokens[static_cast<size_t>(h)], run, forward);
    std::copy(map.b.begin(), map.b.end(),
              ranks.at(r, parallel::kMapsSlot, Field::kState, i, h).begin());
    std::copy(map.a.begin(), map.a.end(),
              ranks.at(r, parallel::kMapsSlot, Field::kDecay, i, h).begin());
  });
  ranks.run(seed);

  // What enters token t of each head and leaves token t - 1; backward: the other way round.
  TokenMaps entering;
  for (const std::vector<Map>& of_head : tokens) {
    std::vector<Map> states{identity_map()};
    for (size_t t = 0; t < of_head.size(); ++t) {
      states.push_back(after(of_head[forward ? t : of_head.size() - 1 - t], states.back()));
    }
    if (!forward) std::reverse(states.begin(), states.end());
    entering.push_back(std::move(states));
  }
  std::vector<decltype(sums_before(layout, tokens[0], forward))> before;
  for (const std::vector<Map>& of_head : tokens) {
    before.push_back(sums_before(layout, of_head, forward));
  }
  for_each_run([&](int r, int64_t i, const parallel::Run& run, int64_t h) {
    const int64_t left = run.global_begin, right = run.global_begin + run.length;
    for (const int slot : {parallel::kEnteringSlot, parallel::kMapsSlot}) {
      const bool enters = slot == parallel::kEnteringSlot;
      const auto at = static_cast<size_t>(enters == forward ? left : right);
      std::vector<double> want = entering[static_cast<size_t>(h)][at].b;
      if (!forgets.empty() && forgets[static_cast<size_t>(h)]) {
        want = before[static_cast<size_t>(h)][static_cast<size_t>(r)][static_cast<size_t>(i)];
        if (!enters) {
          Map entered = identity_map();
          entered.b = want;
          want = after(map_of(tokens[static_cast<size_t>(h)], run, forward), entered).b;
        }
      }
      const auto got = ranks.at(r, slot, Field::kState, i, h);
      for (size_t e = 0; e < want.size(); ++e) {
        ASSERT_TRUE(std::abs(got[e] - want[e]) <= 1e-12 * (1 + std::abs(want[e])))
            << "rank " << r << " run " << i << " head " << h << ": " << got[e] << ", not "
            << want[e] << (enters ? " enters" : " leaves");
      }
    }
  });
}

constexpr Direction kDirections[] = {Direction::kForward, Direction::kBackward};

std::string describe(const ScanMethod& method, const TokenLayout& layout, int64_t heads,
                     Direction direction) {
  return absl::StrCat(std::string(method.name), ", ", layout.ranks(), " ranks, ", layout.tokens(),
                      " tokens, ", heads, " heads",
                      direction == Direction::kForward ? ", forward" : ", backward");
}

TEST(PlanScan, EqualsOneWalk) {
  for (const ScanMethod& method : parallel::scan_methods()) {
    for (const auto make : {TokenLayout::contiguous, TokenLayout::zigzag}) {
      for (int ranks = 1; ranks <= 9; ++ranks) {
        for (int64_t tokens : {0, 1, 7, ranks - 1, 61}) {
          for (const int64_t heads : {1, 3, 20}) {
            for (const Direction direction : kDirections) {
              const TokenLayout layout = make(tokens, ranks);
              SCOPED_TRACE(describe(method, layout, heads, direction));
              const auto seed = static_cast<uint64_t>(heads);
              ASSERT_NO_THROW(verify_scan(layout, method, heads, direction, seed));
              ASSERT_FALSE(HasFatalFailure());
              for (const Grouping grouping : kGroupings) {
                ASSERT_EQ(stuck(plans_of(method, layout, heads, direction), grouping), "");
              }
            }
          }
        }
      }
    }
  }
}

// Chunks dealt at random: several consecutive ones on a rank, ranks with none.
TEST(PlanScan, EqualsOneWalkForAnyRuns) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    const int ranks = static_cast<int>(1 + random() % 6);
    std::vector<RunList> runs(static_cast<size_t>(ranks));
    int64_t tokens = 0;
    for (uint64_t chunk = random() % 12; chunk-- > 0;) {
      const auto length = static_cast<int64_t>(random() % 5);
      RunList& list = runs[random() % runs.size()];
      // Rows need not be in order of position.
      list.insert(random() % 2 == 0 ? list.begin() : list.end(), {tokens, length, 1});
      tokens += length;
    }
    const TokenLayout layout(tokens, runs);
    for (const ScanMethod& method : parallel::scan_methods()) {
      for (const Direction direction : kDirections) {
        const int64_t heads = 1 + round % 4;
        SCOPED_TRACE(absl::StrCat(describe(method, layout, heads, direction), ", round ", round));
        ASSERT_NO_THROW(
            verify_scan(layout, method, heads, direction, static_cast<uint64_t>(round)));
        ASSERT_FALSE(HasFatalFailure());
        for (const Grouping grouping : kGroupings) {
          ASSERT_EQ(stuck(plans_of(method, layout, heads, direction), grouping), "");
        }
      }
    }
  }
}

// Heads that forget: some, in one range or several, or all.
const Forgets kForgets[] = {{true},
                            {true, true, true, false, false},
                            {false, true, false, true},
                            {true, false, false, true, true},
                            {false, false, true}};

TEST(PlanScan, HeadsThatForgetTakeWhatTheRunBeforeHas) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 60; ++round) {
    const int ranks = static_cast<int>(1 + random() % 6);
    std::vector<RunList> runs(static_cast<size_t>(ranks));
    int64_t tokens = 0;
    for (uint64_t chunk = random() % 12; chunk-- > 0;) {
      const auto length = static_cast<int64_t>(random() % 5);
      RunList& list = runs[random() % runs.size()];
      list.insert(random() % 2 == 0 ? list.begin() : list.end(), {tokens, length, 1});
      tokens += length;
    }
    for (const TokenLayout& layout : {TokenLayout(tokens, runs), TokenLayout::zigzag(61, ranks),
                                      TokenLayout::contiguous(61, ranks)}) {
      for (const ScanMethod& method : parallel::scan_methods()) {
        for (const Direction direction : kDirections) {
          const Forgets& forgets = kForgets[random() % std::size(kForgets)];
          const auto heads = static_cast<int64_t>(forgets.size());
          SCOPED_TRACE(absl::StrCat(describe(method, layout, heads, direction), ", round ", round));
          ASSERT_NO_THROW(
              verify_scan(layout, method, heads, direction, static_cast<uint64_t>(round), forgets));
          ASSERT_FALSE(HasFatalFailure());
          for (const Grouping grouping : kGroupings) {
            ASSERT_EQ(stuck(plans_of(method, layout, heads, direction, forgets), grouping), "");
          }
        }
      }
    }
  }
}

// No head forgets: the method's own plan, to the letter.
TEST(PlanScan, WithoutHeadsThatForgetPlansAreTheMethods) {
  const TokenLayout layout = TokenLayout::zigzag(61, 5);
  for (const ScanMethod& method : parallel::scan_methods()) {
    for (const Direction direction : kDirections) {
      for (int r = 0; r < 5; ++r) {
        const Plan plan = method.plan(layout, 3, direction, r);
        EXPECT_EQ(plan_scan(method, layout, 3, {}, direction, r), plan);
        EXPECT_EQ(plan_scan(method, layout, 3, {false, false, false}, direction, r), plan);
        EXPECT_NE(plan_scan(method, layout, 3, {true, false, false}, direction, r), plan);
      }
    }
  }
}

// The shortest run that a state would pass through decides: neither the first nor the last one.
TEST(PlanScan, WhichHeadsForget) {
  using parallel::forgetting_heads;
  const TokenLayout layout(
      100, {RunList{{0, 2, 1}, {95, 5, 1}}, RunList{{2, 50, 1}}, RunList{{52, 43, 1}}});
  const std::vector<double> slopes{0, 0.1, 0.2, 1};
  const double kept = std::exp(-0.2 * 43);
  EXPECT_EQ(forgetting_heads(layout, slopes, 1.01 * kept), (Forgets{false, false, true, true}));
  EXPECT_EQ(forgetting_heads(layout, slopes, 0.99 * kept), (Forgets{false, false, false, true}));
  EXPECT_EQ(forgetting_heads(layout, slopes, 0), (Forgets(4, false)));
  for (const int ranks : {1, 2}) {  // nothing passes through a run
    EXPECT_EQ(forgetting_heads(TokenLayout::contiguous(100, ranks), slopes, 0.9),
              (Forgets(4, false)));
  }
  const parallel::DecayError error = parallel::decay_error(layout, slopes, 1.01 * kept);
  EXPECT_EQ(error.heads, 2);
  EXPECT_NEAR(error.of_state, kept, 1e-15);
  // Tokens at a distance of 44 and more: a geometric series.
  double rest = 0;
  for (int distance = 44; distance < 2000; ++distance) rest += std::exp(-0.2 * distance);
  EXPECT_NEAR(error.of_output, rest, 1e-12 * rest);
  EXPECT_EQ(parallel::decay_error(layout, slopes, 0).heads, 0);
}

// Of one rank: the closed forms of parallel/ALGORITHMS.md, on contiguous layouts.
int64_t closed_form(std::string_view method, int ranks, int rank, int64_t sigma, int64_t decay) {
  if (method == "all_gather") return (ranks - 1) * (sigma + decay);
  if (rank == 0) return 0;
  if (method != "doubling") return sigma;
  // 1 + ceil(log2 r) messages, of which the last is a state, as is the only one of rank 1; so is
  // no other.
  int rounds = 0;
  while ((1 << rounds) < rank) ++rounds;
  return (1 + rounds) * sigma + rounds * decay;
}

TEST(PlanScan, BytesAreThoseOfTheAlgorithms) {
  using kernels::StateDecay;
  for (const StateDecay kind : {StateDecay::kScalar, StateDecay::kDiagonal, StateDecay::kDense}) {
    const HeadShape shape{
        .q_heads = 4, .kv_heads = 4, .head_dim = 16, .value_dim = 24, .state_decay = kind};
    const int64_t decay_sizes[] = {1, 16, 16 * 16};
    const int64_t sigma = 4 * 16 * 24 * 4, decay = 4 * 4 * decay_sizes[static_cast<int>(kind)];
    for (const ScanMethod& method : parallel::scan_methods()) {
      for (int ranks = 1; ranks <= 9; ++ranks) {
        for (const Direction direction : kDirections) {
          int64_t zigzag = 0;
          for (int r = 0; r < ranks; ++r) {
            // Backward, the state comes from the other end.
            const int place = direction == Direction::kForward ? r : ranks - 1 - r;
            const Plan plan = method.plan(TokenLayout::contiguous(100, ranks), 4, direction, r);
            EXPECT_EQ(received_bytes(plan, r, shape, DType::kBF16),
                      closed_form(method.name, ranks, place, sigma, decay))
                << std::string(method.name) << " P=" << ranks << " rank " << r;
            const Plan twice = method.plan(TokenLayout::zigzag(100, ranks), 4, direction, r);
            if (method.name == "all_gather") {
              EXPECT_EQ(received_bytes(twice, r, shape, DType::kBF16),
                        (ranks - 1) * 2 * (sigma + decay));
            }
            // One of four heads forgets: its state of the run before, and a method's for three.
            if (ranks > 2) {
              EXPECT_EQ(received_bytes(plan_scan(method, TokenLayout::contiguous(100, ranks), 4,
                                                 {false, true, false, false}, direction, r),
                                       r, shape, DType::kBF16),
                        (place > 0 ? sigma / 4 : 0) +
                            closed_form(method.name, ranks, place, sigma * 3 / 4, decay * 3 / 4))
                  << std::string(method.name) << " P=" << ranks << " rank " << r;
            }
            zigzag += received_bytes(twice, r, shape, DType::kBF16);
          }
          // There and back: the last rank keeps its two neighbouring chunks to itself.
          if (method.name == "ring" || method.name == "pipelined") {
            EXPECT_EQ(zigzag, (ranks - 1) * 2 * sigma);
          }
        }
      }
    }
  }
}

TEST(PlanScan, StepsThatWaitForOtherRanksAreThoseOfTheAlgorithms) {
  for (const ScanMethod& method : parallel::scan_methods()) {
    for (int ranks = 2; ranks <= 9; ++ranks) {
      int most = 0;
      for (int r = 0; r < ranks; ++r) {
        const Plan plan =
            method.plan(TokenLayout::contiguous(100, ranks), 64, Direction::kForward, r);
        int steps = 0;
        for (const parallel::Step& step : plan.steps) {
          steps += std::any_of(step.transfers.begin(), step.transfers.end(),
                               [&](const parallel::Transfer& t) { return t.peer != r; });
        }
        most = std::max(most, steps);
      }
      int rounds = 0;
      while ((1 << rounds) < ranks - 1) ++rounds;
      const std::map<std::string_view, int> expected{
          {"all_gather", 1},
          {"ring", ranks == 2 ? 1 : 2},  // of one rank: it receives, and sends on
          {"doubling", 1 + rounds},
          {"pipelined", ranks == 2 ? ranks : ranks + 1}};  // blocks, and one more
      EXPECT_EQ(most, expected.at(method.name)) << std::string(method.name) << " P=" << ranks;
    }
  }
}

TEST(PlanScan, RefusesStripes) {
  const TokenLayout layout = TokenLayout::striped(64, 4);
  for (const ScanMethod& method : parallel::scan_methods()) {
    try {
      method.plan(layout, 1, Direction::kForward, 0);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_NE(std::string(error.what()).find("contiguous or zigzag"), std::string::npos);
    }
  }
}

TEST(PlanScan, UnknownMethodsAreNamed) {
  try {
    parallel::scan_method("lasp");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_NE(std::string(error.what()).find("all_gather, ring, doubling, pipelined"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace longhaul::test
