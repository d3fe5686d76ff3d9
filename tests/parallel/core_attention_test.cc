// The executor: every strategy of the table on ranks as threads, against naive attention in fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "parallel/plan/planners.h"
#include "parallel/server/schedule.h"
#include "tests/parallel/core_attention_cases.h"
#include "tests/parallel/covering.h"
#include "tests/slow_build.h"

namespace longhaul::test {
namespace {

constexpr std::chrono::seconds kDeadline(60);

struct MaskCase {
  parallel::Mask mask;
  bool packed;
};
constexpr MaskCase kMasks[] = {
    {{true, 0, 0}, false},  {{false, 0, 0}, false}, {{true, 9, 0}, false}, {{true, 0, 6}, false},
    {{true, 0, 0}, true},   {{false, 0, 0}, true},  {{true, 9, 0}, true},  {{true, 0, 5}, true},
    {{true, 9, 20}, false}, {{false, 7, 4}, true}};
struct Heads {
  int64_t q, kv;
};
constexpr Heads kHeads[] = {{8, 8}, {8, 2}, {8, 1}, {5, 5}};
constexpr int64_t kDims[][2] = {{64, 64}, {128, 128}, {6, 4}};

template <class T>
int count_of(const T& list) {
  return static_cast<int>(std::size(list));
}

// Primes, as many as a document of 7, and fewer than ranks, so that some have nothing.
int64_t tokens_of(int index, int ranks) {
  const int64_t tokens[] = {1, 7, std::max(ranks - 1, 1), 61, 97};
  return tokens[index];
}

// One of 7 tokens in the midst of others; all straddle ranks.
parallel::Documents documents_of(bool packed, int64_t tokens) {
  std::vector<int64_t> begins{0};
  for (int64_t begin : {tokens / 3, tokens / 3 + 7, tokens / 3 + 8, tokens * 3 / 4}) {
    if (packed && begin > begins.back() && begin < tokens) begins.push_back(begin);
  }
  return parallel::Documents(tokens, begins);
}

// Nodes of 2 or 3 ranks where they divide.
int ranks_per_node(int ranks) { return ranks % 2 == 0 ? 2 : ranks % 3 == 0 ? 3 : 1; }

// Whether the case's strategy can do it. What it cannot do it must refuse by name, also when asked
// to run, and the refusal is shown.
bool possible(const AttentionCase& c, int ranks) {
  const auto why = refusal(c, ranks);
  if (!why) return true;
  EXPECT_NE(why->find(c.strategy), std::string::npos) << *why;
  dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
    const auto error =
        attempt([&] { parallel::CoreAttention(group, layout_of(c, group.size()), options_of(c)); });
    EXPECT_TRUE(error && error->code() == ErrorCode::kConfig);
  });
  std::cout << "[  SKIPPED ] " << c.name() << " P=" << ranks << ": " << *why << "\n";
  return false;
}

std::vector<AttentionResult> results_of(const AttentionCase& c, const AttentionTruth& truth,
                                        int ranks) {
  std::vector<AttentionResult> results(static_cast<size_t>(ranks));
  dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
    results[static_cast<size_t>(group.rank())] = run_core_attention(group, c, truth);
  });
  return results;
}

std::vector<double> errors_of(const AttentionCase& c, const AttentionTruth& truth, int ranks) {
  std::vector<double> result;
  try {
    dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
      const auto e = errors(group, c, truth, run_core_attention(group, c, truth));
      if (group.rank() == 0) result = e;
    });
  } catch (const Error& error) {
    ADD_FAILURE() << error.what();
  }
  return result;
}

// Strategy x mask x option x ranks x tokens x heads x head dimension; layouts, reading in place,
// nodes and ranges of heads are factors, too, in the pairwise set, and drawn at random where all of
// the rest is gone through.
TEST(CoreAttention, EveryStrategyEqualsNaiveAttention) {
  const auto strategies = parallel::strategies();
  const auto layouts = parallel::layout_kinds();
  const int options = count_of(score_options(1));
  // The last factors vary fastest: cases of one truth are neighbours.
  std::vector<int> sizes{count_of(kMasks),    options, count_of(kHeads), count_of(kDims), 5, 9,
                         count_of(strategies)};
  if (full_coverage()) {
    sizes[3] = 2;  // 64 and 128
  } else {
    sizes.push_back(count_of(layouts));
    sizes.push_back(2);
    sizes.push_back(2);
    sizes.push_back(3);
  }
  std::mt19937 random(1);
  std::map<std::string, int> runs;
  AttentionTruth truth;
  std::vector<int64_t> truth_is_of;
  for (Case pick : some_of(cases_of(sizes), 2)) {
    if (full_coverage()) {
      pick.push_back(static_cast<int>(random() % layouts.size()));
      pick.push_back(static_cast<int>(random() % 2));
      pick.push_back(static_cast<int>(random() % 2));
      pick.push_back(static_cast<int>(random() % 3));
    }
    const int ranks = pick[5] + 1;
    const int64_t tokens = tokens_of(pick[4], ranks);
    const MaskCase& mask = kMasks[pick[0]];
    const Heads heads = kHeads[pick[2]];
    const AttentionCase c{.strategy = std::string(strategies[static_cast<size_t>(pick[6])].name),
                          .layout = std::string(layouts[static_cast<size_t>(pick[7])].name),
                          .tokens = tokens,
                          .heads = {heads.q, heads.kv, kDims[pick[3]][0], kDims[pick[3]][1]},
                          .mask = mask.mask,
                          .documents = documents_of(mask.packed, tokens),
                          .dtype = DType::kF64,
                          .in_place = pick[8] == 1,
                          .ranks_per_node = pick[9] == 1 ? ranks : ranks_per_node(ranks),
                          .gather_heads = pick[10],
                          .options = score_options(heads.q)[static_cast<size_t>(pick[1])].options};
    if (!possible(c, ranks)) continue;
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
    if (std::vector<int64_t> wanted{pick[0], pick[1], pick[2], pick[3], tokens};
        wanted != truth_is_of) {
      truth = truth_of(c, 5);
      truth_is_of = wanted;
    }
    for (double e : errors_of(c, truth, ranks)) EXPECT_LE(e, 1e-10);
    ++runs[c.strategy];
  }
  for (const parallel::Strategy& strategy : strategies) {
    EXPECT_GE(runs[std::string(strategy.name)], slow_build() ? 1 : 3) << strategy.name;
  }
}

// Most of the cases above are none for a strategy with conditions.
TEST(CoreAttention, LightSeqHelpsOnAnyNumberOfRanks) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const bool in_place : {false, true}) {
      const int64_t tokens = in_place ? 61 : 7;
      const AttentionCase c{.strategy = "lightseq",
                            .layout = "contiguous",
                            .tokens = tokens,
                            .heads = {ranks == 2 ? 1 : 6, ranks == 2 ? 1 : 3, 6, 4},
                            .mask = {true, ranks % 3 == 0 ? 19 : 0},
                            .documents = documents_of(ranks % 2 == 1, tokens),
                            .dtype = DType::kF64,
                            .in_place = in_place,
                            .ranks_per_node = 1};
      ASSERT_TRUE(possible(c, ranks));
      SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
      for (double e : errors_of(c, truth_of(c, 5), ranks)) EXPECT_LE(e, 1e-12);
    }
  }
}

// Accumulators are f32 end to end: sharding may cost no more than twice one rank's rounding.
TEST(CoreAttention, LowPrecisionLosesNothingOverRanks) {
  const auto strategies = parallel::strategies();
  const auto layouts = parallel::layout_kinds();
  const auto options = score_options(4);
  constexpr int kRanks[] = {2, 5, 8};
  for (const Case& pick : cases_of({count_of(strategies), count_of(kMasks), count_of(options),
                                    count_of(layouts), count_of(kRanks), 2})) {
    const int ranks = kRanks[pick[4]];
    const MaskCase& mask = kMasks[pick[1]];
    const AttentionCase c{.strategy = std::string(strategies[static_cast<size_t>(pick[0])].name),
                          .layout = std::string(layouts[static_cast<size_t>(pick[3])].name),
                          .tokens = 193,
                          .heads = {4, 2, 32, 32},
                          .mask = mask.mask,
                          .documents = documents_of(mask.packed, 193),
                          .dtype = pick[5] == 0 ? DType::kF32 : DType::kBF16,
                          .in_place = true,
                          .ranks_per_node = ranks_per_node(ranks),
                          .options = options[static_cast<size_t>(pick[2])].options};
    // Biases that grow towards later keys make lse large, and merging by a large lse costs digits;
    // configurations have ALiBi with causal masks only.
    if (!c.mask.causal && !c.options.slopes.empty()) continue;
    if (!possible(c, ranks)) continue;
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
    const AttentionTruth truth = truth_of(c, 8);
    AttentionCase alone = c;
    alone.ranks_per_node = 1;
    const std::vector<double> one = errors_of(alone, truth, 1), many = errors_of(c, truth, ranks);
    // A tensor of a few sums (dsink) may be lucky on one rank: a floor of sqrt(N) units of f32,
    // what a sum over the tokens is good for.
    const double floor = std::sqrt(static_cast<double>(c.tokens)) * 0x1p-24;
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_LE(many[i], std::max(2 * one[i], floor)) << "tensor " << i;
    }
  }
}

// Everything at once, in each strategy.
AttentionCase every_option(std::string_view strategy, const char* layout, DType dtype) {
  return {.strategy = std::string(strategy),
          .layout = layout,
          .tokens = 131,
          .heads = {4, 2, 16, 16},
          .mask = {true, 30, 5},
          .documents = parallel::Documents(131, {0, 44, 51, 100}),
          .dtype = dtype,
          .in_place = true,
          .ranks_per_node = 2,
          .options = score_options(4).back().options};
}

// In place and on dedicated servers, in one round or several, documents and tiles at random; bytes
// are the plan's.
TEST(CoreAttention, DisaggregatedEqualsNaiveAttention) {
  std::mt19937 random(7);
  int remote = 0;
  for (int round = 0; round < 24; ++round) {
    const int ranks = 2 + round % 7;
    const int dedicated = round % 3 == 0 ? 0 : 1 + round % std::min(3, ranks - 1);
    AttentionCase c{.strategy = "disaggregated",
                    .layout = std::string(parallel::layout_kinds()[random() % 4].name),
                    .tokens = 60 + static_cast<int64_t>(random() % 60),
                    .heads = {4, round % 2 == 0 ? 2 : 4, 6, 4},
                    .mask = kMasks[random() % std::size(kMasks)].mask,
                    .in_place = false};
    std::vector<int64_t> begins{0};
    while (begins.back() + 50 < c.tokens) {
      begins.push_back(begins.back() + 1 + static_cast<int64_t>(random() % 50));
    }
    c.documents = parallel::Documents(c.tokens, begins);
    c.servers.imbalance = 0.05;
    c.servers.tile = 1 + static_cast<int64_t>(random() % 8);
    c.servers.nano_batches = 1 + round % 4;
    // With several rounds room to align more parts; with one, what is always enough.
    if (c.servers.nano_batches > 1) c.servers.buffer_bytes = int64_t{8} << 20;
    for (int s = ranks - dedicated; s < ranks; ++s) c.servers.ranks.push_back(s);
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks, ", ", dedicated, " servers, ",
                              c.servers.nano_batches, " rounds"));
    const AttentionTruth truth = truth_of(c, 5);
    for (double e : errors_of(c, truth, ranks)) EXPECT_LE(e, 1e-12);
    const std::vector<AttentionResult> results = results_of(c, truth, ranks);
    const parallel::TokenLayout layout = layout_of(c, ranks);
    parallel::Problem problem{.layout = layout,
                              .documents = c.documents,
                              .mask = c.mask,
                              .heads = c.heads,
                              .servers = c.servers};
    problem.servers.dtype = c.dtype;
    // The limit that memory was measured with: of one document, on the layout of that.
    AttentionCase measured = c;
    measured.documents = parallel::Documents::whole(c.tokens);
    if (c.layout == "balanced") measured.layout = "contiguous";
    const parallel::TokenLayout of_any = layout_of(measured, ranks);
    if (c.servers.nano_batches == 1) {
      problem.servers.buffer_bytes = parallel::least_buffer_bytes({.layout = of_any,
                                                                   .documents = measured.documents,
                                                                   .mask = c.mask,
                                                                   .heads = c.heads,
                                                                   .servers = problem.servers});
    }
    EXPECT_EQ(parallel::schedule_tasks(problem, parallel::Direction::kBackward).rounds,
              c.servers.nano_batches);
    for (int r = 0; r < ranks; ++r) {
      int64_t bytes = 0;
      for (const auto direction : {parallel::Direction::kForward, parallel::Direction::kBackward}) {
        bytes += sent_bytes(plan_disaggregated(problem, direction, r), r, c.heads, c.dtype);
      }
      EXPECT_EQ(results[static_cast<size_t>(r)].sent_bytes, bytes);
      remote += bytes > 0 ? 1 : 0;
    }
  }
  EXPECT_GT(remote, 60);
}

// Each direction has a strategy of its own; only the scheduled one is bounded by servers' memory.
TEST(CoreAttention, DisaggregatedInOneDirection) {
  for (const auto& [forward, backward] :
       {std::pair("disaggregated", "ring"), std::pair("ring", "disaggregated"),
        std::pair("disaggregated", "all_gather")}) {
    AttentionCase c{.strategy = forward,
                    .backward_strategy = backward,
                    .layout = "contiguous",
                    .tokens = 67,
                    .heads = {4, 2, 6, 4},
                    .mask = {.causal = true},
                    .documents = parallel::Documents(67, {0, 5, 40}),
                    .in_place = false};
    c.servers.tile = 4;
    SCOPED_TRACE(absl::StrCat(forward, ", ", backward));
    for (double e : errors_of(c, truth_of(c, 5), 4)) EXPECT_LE(e, 1e-12);
  }
}

TEST(CoreAttention, RerunsAreBitIdentical) {
  constexpr int kRanks = 4;
  for (const parallel::Strategy& strategy : parallel::strategies()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const AttentionCase c = every_option(strategy.name, "zigzag", dtype);
      if (!possible(c, kRanks)) continue;
      const AttentionTruth truth = truth_of(c, 9);
      EXPECT_EQ(results_of(c, truth, kRanks), results_of(c, truth, kRanks)) << c.name();
    }
  }
}

// A test of the tests: results agree with the truth far below what one more or less dropped would
// change.
TEST(CoreAttention, AnotherDropoutKeyDropsOthers) {
  AttentionCase c = every_option("ring", "zigzag", DType::kF64);
  const AttentionTruth truth = truth_of(c, 9);
  for (double e : errors_of(c, truth, 4)) EXPECT_LE(e, 1e-10);
  c.options.dropout_key.stream += 1;
  const std::vector<double> other = errors_of(c, truth, 4);
  EXPECT_GT(other[0], 0.1);  // out
  EXPECT_LE(other[1], 1e-10) << "lse is of all probabilities, dropped or not";
}

// Byte counters are the plan's transfers, and reading in place replaces exactly the keys and
// values.
TEST(CoreAttention, BytesAreThePlans) {
  constexpr int kRanks = 4;
  for (bool in_place : {false, true}) {
    const AttentionCase c{.strategy = "ring",
                          .layout = "zigzag",
                          .tokens = 64,
                          .heads = {4, 2, 8, 8},
                          .mask = {true, 0},
                          .documents = parallel::Documents::whole(64),
                          .dtype = DType::kF32,
                          .in_place = in_place,
                          .ranks_per_node = 1};
    const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 4);
    std::vector<AttentionResult> results(kRanks);
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      results[static_cast<size_t>(group.rank())] = run_core_attention(group, c, truth);
    });
    const int64_t kv = (kRanks - 1) * (c.tokens / kRanks) * 2 * 2 * 8 * 4;
    for (const AttentionResult& r : results) {
      // Forward k, v; backward k, v and their gradients.
      EXPECT_EQ(r.sent_bytes, in_place ? kv : 3 * kv);
      EXPECT_EQ(r.in_place_bytes, in_place ? 2 * kv : 0);
    }
  }
}

// Two ranges of heads have memory, and what goes to several ranks is packed once.
TEST(CoreAttention, HeadRangesBoundTheMemoryOfAllGather) {
  constexpr int kRanks = 4;
  constexpr int64_t kTokens = 512, kDim = 8, kAll = 8;
  std::vector<int64_t> bytes;
  for (int64_t at_once : {1, 2, 8}) {
    const AttentionCase c{.strategy = "all_gather",
                          .layout = "zigzag",
                          .tokens = kTokens,
                          .heads = {kAll, kAll, kDim, kDim},
                          .mask = {true, 0},
                          .documents = parallel::Documents::whole(kTokens),
                          .dtype = DType::kF32,
                          .in_place = true,
                          .ranks_per_node = 1,
                          .gather_heads = at_once};
    const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 4);
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      const AttentionResult result = run_core_attention(group, c, truth);
      if (group.rank() == 0) bytes.push_back(result.buffer_bytes);
    });
    // Backward: k, v, dk, dv of all rows in each of the slots; gradients from all ranks for the
    // range that returns; what is packed or folded, a copy of each of the own rows' fields at most.
    // A copy for each receiver would be more.
    const int64_t slots = at_once == kAll ? 1 : 2, rows = kTokens * at_once * kDim * 4;
    const int64_t own = rows / kRanks;
    // Besides, a block of staging memory leaves room to align its parts.
    const int64_t margin = int64_t{16} * 192 * kRanks;
    EXPECT_LE(bytes.back(), (slots * 4 + 2) * rows + 6 * own + margin) << at_once;
  }
  EXPECT_LT(bytes[0], bytes[1]);
  EXPECT_LT(bytes[1], bytes[2]);
}

// One token of the second document is changed: whatever the ranks and strategy, nothing of the
// others moves by a bit.
TEST(CoreAttention, DocumentsAreIsolated) {
  constexpr int kRanks = 4;
  for (const parallel::Strategy& strategy : parallel::strategies()) {
    for (const char* layout : {"contiguous", "zigzag", "striped"}) {
      const AttentionCase c = every_option(strategy.name, layout, DType::kF64);
      if (!possible(c, kRanks)) continue;
      SCOPED_TRACE(c.name());
      AttentionTruth truth = truth_of(c, 6);
      const auto before = results_of(c, truth, kRanks);
      constexpr int64_t kChanged = 47;
      for (Field3* field : {&truth.q, &truth.k, &truth.v, &truth.dout}) {
        for (int64_t i = 0; i < field->heads * field->dim; ++i) field->at(kChanged, 0)[i] += 1;
      }
      const auto after = results_of(c, truth, kRanks);
      int changed = 0, compared = 0;
      const parallel::TokenLayout places = layout_of(c, kRanks);
      for (int r = 0; r < kRanks; ++r) {
        const AttentionResult &a = before[static_cast<size_t>(r)],
                              &b = after[static_cast<size_t>(r)];
        const int64_t rows = places.rows(r);
        const auto compare = [&](const std::vector<double>& x, const std::vector<double>& y,
                                 bool heads_first) {
          const int64_t of_row = static_cast<int64_t>(x.size()) / std::max<int64_t>(rows, 1);
          for (int64_t row = 0; row < rows; ++row) {
            const int64_t position = places.position(r, row);
            for (int64_t i = 0; i < of_row; ++i) {
              const auto at = static_cast<size_t>(heads_first ? i * rows + row : row * of_row + i);
              if (position < 44 || position >= 51) {
                ASSERT_EQ(x[at], y[at]) << position;
                ++compared;
              } else {
                changed += x[at] == y[at] ? 0 : 1;
              }
            }
          }
        };
        compare(a.out, b.out, false);
        compare(a.lse, b.lse, true);
        compare(a.dq, b.dq, false);
        compare(a.dk, b.dk, false);
        compare(a.dv, b.dv, false);
      }
      EXPECT_EQ(compared, (131 - 7) * (2 * 4 * 16 + 4 + 2 * 2 * 16));
      EXPECT_GT(changed, 200);
    }
  }
}

}  // namespace
}  // namespace longhaul::test
