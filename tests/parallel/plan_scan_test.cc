// Linear attention across ranks: random dense affine maps per token, composed by the plans of all
// ranks, against one walk over the sequence.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/planners.h"
#include "tests/parallel/plan_interpreter.h"

namespace longhaul::test {
namespace {

using parallel::Field;
using parallel::HeadShape;
using parallel::Plan;
using parallel::Run;
using parallel::RunList;
using parallel::TokenLayout;

// S -> A S + B on states of n x m; stored as A, then B, row by row.
constexpr int64_t n = 3, m = 2, kSize = n * n + n * m;
using Map = std::vector<double>;

Map identity_map() {
  Map map(kSize, 0.0);
  for (int64_t i = 0; i < n; ++i) map[static_cast<size_t>(i * n + i)] = 1;
  return map;
}

// later after earlier: A = Al Ae, B = Al Be + Bl.
Map after(std::span<const double> later, std::span<const double> earlier) {
  Map map(later.begin(), later.end());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n + m; ++j) {
      const auto at = [&](int64_t row) {  // of the n x (n + m) matrix (A | B)
        return static_cast<size_t>(j < n ? row * n + j : n * n + row * m + j - n);
      };
      double sum = j < n ? 0 : later[at(i)];
      for (int64_t k = 0; k < n; ++k) sum += later[static_cast<size_t>(i * n + k)] * earlier[at(k)];
      map[at(i)] = sum;
    }
  }
  return map;
}

std::vector<Map> random_maps(int64_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<Map> maps;
  for (int64_t t = 0; t < tokens; ++t) {
    Map map(kSize);
    for (double& value : map) value = 0.55 * uniform(random);
    for (int64_t i = 0; i < n; ++i) map[static_cast<size_t>(i * n + i)] += 0.4;
    maps.push_back(map);
  }
  return maps;
}

using ScanPlanner = Plan (*)(const TokenLayout&, int);

void verify_scan(const TokenLayout& layout, ScanPlanner planner, uint64_t seed) {
  const std::vector<Map> tokens = random_maps(layout.tokens(), seed);
  std::vector<Plan> plans;
  for (int r = 0; r < layout.ranks(); ++r) plans.push_back(planner(layout, r));
  PlanInterpreter::Dims dims{};
  dims[static_cast<size_t>(Field::kState)] = kSize;
  PlanInterpreter ranks(
      std::move(plans), dims,
      {.run_task = [](int, const parallel::Task&) { throw PlanViolation("a scan has no tasks"); },
       .compose =
           [](std::span<double> slot, std::span<const double> received) {
             const Map composed = after(slot, received);
             std::copy(composed.begin(), composed.end(), slot.begin());
           },
       .identity =
           [](std::span<double> state) {
             const Map map = identity_map();
             std::copy(map.begin(), map.end(), state.begin());
           }});
  for (int r = 0; r < layout.ranks(); ++r) {
    for (size_t i = 0; i < layout.runs(r).size(); ++i) {
      Map map = identity_map();
      const auto& run = layout.runs(r)[i];
      for (int64_t t = 0; t < run.length; ++t) {
        map = after(tokens[static_cast<size_t>(run.position(t))], map);
      }
      std::copy(map.begin(), map.end(),
                ranks.at(r, 0, Field::kState, static_cast<int64_t>(i), 0).begin());
    }
  }
  ranks.run(seed);

  std::vector<Map> entering{identity_map()};  // what enters token t
  for (const Map& token : tokens) entering.push_back(after(token, entering.back()));
  for (int r = 0; r < layout.ranks(); ++r) {
    for (size_t i = 0; i < layout.runs(r).size(); ++i) {
      const Map& want = entering[static_cast<size_t>(layout.runs(r)[i].global_begin)];
      const auto got = ranks.at(r, 1, Field::kState, static_cast<int64_t>(i), 0);
      for (size_t e = 0; e < want.size(); ++e) {
        ASSERT_TRUE(std::abs(got[e] - want[e]) <= 1e-12 * (1 + std::abs(want[e])))
            << "rank " << r << " run " << i << ": " << got[e] << ", not " << want[e];
      }
    }
  }
}

struct ScanKind {
  const char* name;
  ScanPlanner plan;
};
constexpr ScanKind kScans[] = {{"ring", parallel::plan_scan_ring},
                               {"all-gather", parallel::plan_scan_all_gather}};

TEST(PlanScan, EqualsOneWalk) {
  for (const ScanKind& scan : kScans) {
    for (const auto make : {TokenLayout::contiguous, TokenLayout::zigzag}) {
      for (int ranks = 1; ranks <= 9; ++ranks) {
        for (int64_t tokens : {0, 1, 7, ranks - 1, 61}) {
          SCOPED_TRACE(absl::StrCat(scan.name, ", ", ranks, " ranks, ", tokens, " tokens"));
          const TokenLayout layout = make(tokens, ranks);
          for (uint64_t seed = 0; seed < 4; ++seed) {
            ASSERT_NO_THROW(verify_scan(layout, scan.plan, seed));
            ASSERT_FALSE(HasFatalFailure());
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
    for (const ScanKind& scan : kScans) {
      SCOPED_TRACE(absl::StrCat(scan.name, ", round ", round));
      ASSERT_NO_THROW(verify_scan(layout, scan.plan, static_cast<uint64_t>(round)));
      ASSERT_FALSE(HasFatalFailure());
    }
  }
}

TEST(PlanScan, BytesAreThoseOfTheAlgorithms) {
  const HeadShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .value_dim = 24};
  const int64_t sigma = 16 * 24 * 4;
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (int64_t per_rank : {1, 2}) {
      const TokenLayout layout =
          per_rank == 1 ? TokenLayout::contiguous(100, ranks) : TokenLayout::zigzag(100, ranks);
      int64_t ring = 0;
      for (int r = 0; r < ranks; ++r) {
        EXPECT_EQ(received_bytes(parallel::plan_scan_all_gather(layout, r), r, shape, DType::kBF16),
                  (ranks - 1) * per_rank * sigma);
        ring += received_bytes(parallel::plan_scan_ring(layout, r), r, shape, DType::kBF16);
      }
      // There, and with zigzag back: the last rank keeps its two neighbouring chunks to itself.
      EXPECT_EQ(ring, (ranks - 1) * per_rank * sigma);
    }
  }
}

TEST(PlanScan, RefusesStripes) {
  const TokenLayout layout = TokenLayout::striped(64, 4);
  for (const ScanKind& scan : kScans) {
    try {
      scan.plan(layout, 0);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_NE(std::string(error.what()).find("contiguous or zigzag"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace longhaul::test
