// Bytes of plans against closed forms (parallel/ALGORITHMS.md), where tokens and heads divide.
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {
namespace {

struct Sizes {
  int64_t n;     // tokens of a rank
  int64_t H, K;  // query and kv heads
  int64_t d, e;  // head and value dimension
  int64_t b, g;  // bytes of an element and of an accumulator
};

struct Setting {
  LayoutKind kind;
  int ranks;
  DType dtype;
  HeadShape heads;
  int per_node = 1;

  static constexpr int64_t kRows = 12;
  TokenLayout layout() const { return kind.make(kRows * ranks, ranks); }
  Sizes sizes() const {
    const int64_t b = dtype == DType::kBF16 ? 2 : dtype == DType::kF32 ? 4 : 8;
    return {kRows, heads.q_heads,          heads.kv_heads, heads.head_dim, heads.value_dim,
            b,     std::max<int64_t>(b, 4)};
  }
  std::string text() const {
    return absl::StrCat(std::string(kind.name), ", ", ranks, " ranks, ", per_node, " per node, ",
                        std::string(longhaul::name(dtype)), ", heads ", heads.q_heads, "/",
                        heads.kv_heads);
  }
};

template <class F>
void for_each_setting(const std::vector<int>& ranks_list, F&& check) {
  for (const LayoutKind& kind : layout_kinds()) {
    for (int ranks : ranks_list) {
      for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
        for (int64_t kv_heads : {8, 4, 2, 1}) {
          const Setting setting{
              kind,
              ranks,
              dtype,
              {.q_heads = 8, .kv_heads = kv_heads, .head_dim = 16, .value_dim = 24}};
          SCOPED_TRACE(setting.text());
          check(setting);
        }
      }
    }
  }
}

void expect_received(const Problem& problem, DType dtype, const Strategy& strategy,
                     Direction direction, int64_t expected) {
  int64_t sent = 0, received = 0;
  for (int r = 0; r < problem.layout.ranks(); ++r) {
    const Plan plan = strategy.plan(problem, direction, r);
    const int64_t bytes = received_bytes(plan, r, problem.heads, dtype);
    EXPECT_EQ(bytes, expected) << "rank " << r;
    received += bytes;
    sent += sent_bytes(plan, r, problem.heads, dtype);
  }
  EXPECT_EQ(sent, received);
}

TEST(PlanBytes, RingsReceiveEveryOtherRanksKeysOnce) {
  for_each_setting({1, 2, 3, 4, 7, 8}, [](Setting setting) {
    const TokenLayout layout = setting.layout();
    const Documents documents = Documents::whole(layout.tokens());
    const auto [n, H, K, d, e, b, g] = setting.sizes();
    const int64_t row = n * K * (d + e);
    for (int per_node : {1, 2, 4, setting.ranks}) {
      if (setting.ranks % per_node != 0) continue;
      const Problem problem{layout, documents, {true, 0}, setting.heads, per_node};
      for (const char* name : {"ring", "double_ring"}) {
        SCOPED_TRACE(absl::StrCat(name, ", ", per_node, " per node"));
        expect_received(problem, setting.dtype, strategy(name), Direction::kForward,
                        (setting.ranks - 1) * row * b);
        expect_received(problem, setting.dtype, strategy(name), Direction::kBackward,
                        (setting.ranks - 1) * row * (b + g));
      }
    }
  });
}

TEST(PlanBytes, DoubleRingCrossesNodesSeldom) {
  for_each_setting({4, 6, 8, 9}, [](Setting setting) {
    const TokenLayout layout = setting.layout();
    const Documents documents = Documents::whole(layout.tokens());
    const auto [n, H, K, d, e, b, g] = setting.sizes();
    for (int inner = 1; inner <= setting.ranks; ++inner) {
      if (setting.ranks % inner != 0) continue;
      SCOPED_TRACE(absl::StrCat(inner, " per node"));
      const int outer = setting.ranks / inner;
      const Problem problem{layout, documents, {true, 0}, setting.heads, inner};
      for (Direction direction : {Direction::kForward, Direction::kBackward}) {
        const int64_t row = n * K * (d + e) * (direction == Direction::kForward ? b : b + g);
        for (int r = 0; r < setting.ranks; ++r) {
          int64_t within = 0, between = 0;
          const Plan plan = plan_double_ring(problem, direction, r);
          for (const Step& step : plan.steps) {
            for (const Transfer& t : step.transfers) {
              if (t.send) continue;
              (t.peer / inner == r / inner ? within : between) +=
                  transfer_bytes(t, r, setting.heads, setting.dtype);
            }
          }
          EXPECT_EQ(between, (outer - 1) * row);
          EXPECT_EQ(within, outer * (inner - 1) * row);
        }
      }
    }
  });
}

TEST(PlanBytes, UlyssesExchangesHeads) {
  for_each_setting({1, 2, 4, 8}, [](Setting setting) {
    const TokenLayout layout = setting.layout();
    const Documents documents = Documents::whole(layout.tokens());
    const auto [n, H, K, d, e, b, g] = setting.sizes();
    const int64_t U = setting.ranks, kv = std::max(K, U);
    const Problem problem{layout, documents, {true, 0}, setting.heads};
    // Queries (and dout) travel as elements; out, lse, delta and gradients as accumulators.
    const int64_t forward = H * (d * b + e * g + g) + kv * (d + e) * b;
    const int64_t backward = H * ((d + e) * b + 2 * g + d * g) + kv * ((d + e) * b + (d + e) * g);
    expect_received(problem, setting.dtype, strategy("ulysses"), Direction::kForward,
                    n * forward * (U - 1) / U);
    expect_received(problem, setting.dtype, strategy("ulysses"), Direction::kBackward,
                    n * backward * (U - 1) / U);
  });
}

std::vector<int64_t> received_by_rank(const Problem& problem, DType dtype, const char* name,
                                      Direction direction) {
  std::vector<int64_t> received;
  int64_t all_sent = 0, all_received = 0;
  for (int r = 0; r < problem.layout.ranks(); ++r) {
    const Plan plan = strategy(name).plan(problem, direction, r);
    received.push_back(received_bytes(plan, r, problem.heads, dtype));
    all_received += received.back();
    all_sent += sent_bytes(plan, r, problem.heads, dtype);
  }
  EXPECT_EQ(all_sent, all_received);
  return received;
}

// Needed halves only: of a rank after it in the zigzag, a rank needs both chunks, of one before it
// the first only. In backward it gets gradients for each half that others have used.
TEST(PlanBytes, GroupCastOnZigzagMovesTheNeededHalves) {
  for (const int P : {1, 2, 3, 4, 7, 8, 9}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const Setting setting{layout_kinds()[1],
                            P,
                            dtype,
                            {.q_heads = 8, .kv_heads = 2, .head_dim = 16, .value_dim = 24}};
      SCOPED_TRACE(setting.text());
      const TokenLayout layout = setting.layout();
      const Documents documents = Documents::whole(layout.tokens());
      const auto [n, H, K, d, e, b, g] = setting.sizes();
      const Problem problem{layout, documents, {true, 0}, setting.heads};
      const auto forward = received_by_rank(problem, dtype, "group_cast", Direction::kForward);
      const auto backward = received_by_rank(problem, dtype, "group_cast", Direction::kBackward);
      int64_t sum = 0, sum_backward = 0, most = 0, most_backward = 0;
      for (int r = 0; r < P; ++r) {
        const int64_t keys = (2 * (P - 1) - r) * n / 2 * K * (d + e);
        const int64_t gradients = (P - 1 + r) * n / 2 * K * (d + e);
        EXPECT_EQ(forward[static_cast<size_t>(r)], keys * b) << "rank " << r;
        EXPECT_EQ(backward[static_cast<size_t>(r)], keys * b + gradients * g) << "rank " << r;
        sum += forward[static_cast<size_t>(r)];
        sum_backward += backward[static_cast<size_t>(r)];
        most = std::max(most, forward[static_cast<size_t>(r)]);
        most_backward = std::max(most_backward, backward[static_cast<size_t>(r)]);
      }
      const int64_t ring = (P - 1) * n * K * (d + e);  // elements of a ring
      EXPECT_EQ(4 * sum, 3 * P * ring * b);
      EXPECT_EQ(4 * sum_backward, 3 * P * ring * (b + g));
      EXPECT_EQ(most, ring * b);  // rank 0 saves nothing
      EXPECT_EQ(2 * most_backward, ring * std::max(2 * b + g, b + 2 * g));
    }
  }
}

// Documents of half a chunk that end where chunks end cross nothing.
TEST(PlanBytes, GroupCastMovesNothingForDocumentsThatStayAtHome) {
  const TokenLayout layout = TokenLayout::zigzag(96, 4);
  const Documents documents = [] {
    std::vector<int64_t> begins;
    for (int64_t at = 0; at < 96; at += 6) begins.push_back(at);
    return Documents(96, std::move(begins));
  }();
  const Problem problem{layout, documents, {true, 0}, {.q_heads = 4, .kv_heads = 2}};
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    for (int64_t bytes : received_by_rank(problem, DType::kBF16, "group_cast", direction)) {
      EXPECT_EQ(bytes, 0);
    }
  }
}

// In round t, ranks t and later get keys and the first t get queries and give back results.
TEST(PlanBytes, LightSeqMovesKeysToThoseWhoWorkAndQueriesToThoseWhoHelp) {
  for (const int P : {1, 2, 3, 4, 5, 6, 7, 8, 9}) {
    for (const int64_t kv_heads : {8, 2}) {
      const DType dtype = DType::kBF16;
      const Setting setting{layout_kinds()[0],
                            P,
                            dtype,
                            {.q_heads = 8, .kv_heads = kv_heads, .head_dim = 16, .value_dim = 24}};
      SCOPED_TRACE(setting.text());
      const TokenLayout layout = setting.layout();
      const Documents documents = Documents::whole(layout.tokens());
      const auto [n, H, K, d, e, b, g] = setting.sizes();
      const Problem problem{layout, documents, {true, 0}, setting.heads};
      struct Row {
        int64_t keys, key_gradients, queries, results;
      };
      const Row rows[2] = {
          {K * (d + e) * b, 0, H * d * b, H * (e * g + g)},
          {K * (d + e) * b, K * (d + e) * g, H * ((d + e) * b + 2 * g), H * d * g}};
      for (Direction direction : {Direction::kForward, Direction::kBackward}) {
        const Row& row = rows[direction == Direction::kForward ? 0 : 1];
        const auto received = received_by_rank(problem, dtype, "lightseq", direction);
        int64_t sum = 0;
        for (int r = 0; r < P; ++r) {
          int64_t expected = 0;
          for (int t = 1; t <= P / 2; ++t) {
            const int64_t part = 2 * t == P ? 2 : 1;  // the last block is shared by heads
            expected += n * (r >= t ? row.keys : row.queries) / part;
            expected += n * (r + t < P ? row.key_gradients : row.results) / part;
          }
          EXPECT_EQ(received[static_cast<size_t>(r)], expected) << "rank " << r;
          sum += received[static_cast<size_t>(r)];
        }
        const int64_t keys = row.keys + row.key_gradients, queries = row.queries + row.results;
        const int64_t T = (P - 1) / 2;  // rounds of whole blocks
        int64_t closed = T * (2 * P - T - 1) / 2 * n * keys + T * (T + 1) / 2 * n * queries;
        if (P % 2 == 0) closed += P / 2 * n / 2 * (keys + queries);
        EXPECT_EQ(sum, closed);
      }
    }
  }
}

TEST(PlanBytes, UspExchangesHeadsInsideAndKeysAcross) {
  for_each_setting({4, 6, 8}, [](Setting setting) {
    const TokenLayout layout = setting.layout();
    const Documents documents = Documents::whole(layout.tokens());
    const auto [n, H, K, d, e, b, g] = setting.sizes();
    for (const int64_t U : {1, 2, 4, 8}) {
      if (setting.ranks % U != 0) continue;
      SCOPED_TRACE(absl::StrCat(U, " per node"));
      const int64_t groups = setting.ranks / U, kv = std::max(K, U);
      const Problem problem{layout, documents, {true, 0}, setting.heads, static_cast<int>(U)};
      const int64_t forward = H * (d * b + e * g + g) + kv * (d + e) * b;
      const int64_t backward = H * ((d + e) * b + 2 * g + d * g) + kv * (d + e) * (b + g);
      // The ring moves a group's rows of this rank's kv heads: U n rows of kv / U heads.
      const int64_t ring = (groups - 1) * n * kv * (d + e);
      expect_received(problem, setting.dtype, strategy("usp"), Direction::kForward,
                      n * forward * (U - 1) / U + ring * b);
      expect_received(problem, setting.dtype, strategy("usp"), Direction::kBackward,
                      n * backward * (U - 1) / U + ring * (b + g));
      for (int r = 0; r < setting.ranks; ++r) {
        int64_t across = 0;
        for (const Step& step : plan_usp(problem, Direction::kBackward, r).steps) {
          for (const Transfer& t : step.transfers) {
            if (t.send || t.peer / U == r / U) continue;
            across += transfer_bytes(t, r, setting.heads, setting.dtype);
          }
        }
        EXPECT_EQ(across, ring * (b + g));
      }
    }
  });
}

// Heads and rows that do not divide: the first places of a group receive most.
TEST(PlanBytes, UspWithUnevenHeadsAndRows) {
  constexpr int64_t kTokens = 61, d = 16, e = 24, b = 2, g = 4;
  struct Heads {
    int64_t q, kv;
  };
  for (const LayoutKind& kind : layout_kinds()) {
    for (const auto& [H, K] : {Heads{5, 5}, {6, 3}, {8, 2}, {3, 1}}) {
      for (const auto& [ranks, U] : {std::pair(6, 3), {6, 2}, {8, 4}, {4, 4}, {10, 5}}) {
        SCOPED_TRACE(absl::StrCat(std::string(kind.name), " ", H, "/", K, " ", ranks, " by ", U));
        const TokenLayout layout = kind.make(kTokens, ranks);
        const Documents documents = Documents::whole(kTokens);
        const HeadShape heads{.q_heads = H, .kv_heads = K, .head_dim = d, .value_dim = e};
        const Problem problem{layout, documents, {true, 0}, heads, U};
        const auto held = [&, q_heads = H](int place) { return even_part(q_heads, U, place); };
        const auto group_rows = [&, width = U](int group) {
          int64_t rows = 0;
          for (int r = group * width; r < (group + 1) * width; ++r) rows += layout.rows(r);
          return rows;
        };
        for (int r = 0; r < ranks; ++r) {
          const int place = r % U, group = r / U, groups = ranks / U;
          const int64_t n = layout.rows(r), R = group_rows(group);
          const int64_t left = group_rows((group + groups - 1) % groups);
          const int64_t h = held(place).length, k = kv_heads_of(held(place), heads).length;
          int64_t others = 0;
          for (int i = 0; i < U; ++i) {
            if (i != place) others += kv_heads_of(held(i), heads).length;
          }
          EXPECT_EQ(
              received_bytes(plan_usp(problem, Direction::kForward, r), r, heads, DType::kBF16),
              (R - n) * (h * d + k * (d + e)) * b + n * (H - h) * (e + 1) * g +
                  (kTokens - R) * k * (d + e) * b);
          EXPECT_EQ(
              received_bytes(plan_usp(problem, Direction::kBackward, r), r, heads, DType::kBF16),
              (R - n) * (h * ((d + e) * b + 2 * g) + k * (d + e) * b) + n * (H - h) * d * g +
                  n * others * (d + e) * g + (kTokens - R) * k * (d + e) * b +
                  (groups > 1 ? (kTokens - left) * k * (d + e) * g : 0));
        }
      }
    }
  }
}

TEST(PlanBytes, AllGatherMovesKeysOnceAndGradientsOnce) {
  for_each_setting({1, 2, 3, 8}, [](Setting setting) {
    const TokenLayout layout = setting.layout();
    const Documents documents = Documents::whole(layout.tokens());
    const auto [n, H, K, d, e, b, g] = setting.sizes();
    for (const int64_t heads_at_once : {0, 1, 2, 8}) {
      SCOPED_TRACE(absl::StrCat(heads_at_once, " heads at once"));
      Problem problem{layout, documents, {true, 0}, setting.heads};
      problem.gather_heads = heads_at_once;
      const int64_t row = (setting.ranks - 1) * n * K * (d + e);
      expect_received(problem, setting.dtype, strategy("all_gather"), Direction::kForward, row * b);
      expect_received(problem, setting.dtype, strategy("all_gather"), Direction::kBackward,
                      row * (b + g));
    }
  });
}

TEST(PlanBytes, QueryRingMovesQueriesBackward) {
  for_each_setting({1, 2, 3, 4, 8}, [](Setting setting) {
    const TokenLayout layout = setting.layout();
    const Documents documents = Documents::whole(layout.tokens());
    const auto [n, H, K, d, e, b, g] = setting.sizes();
    const Problem problem{layout, documents, {true, 0}, setting.heads};
    const int64_t hops = setting.ranks - 1;
    expect_received(problem, setting.dtype, strategy("query_ring"), Direction::kForward,
                    hops * n * K * (d + e) * b);
    expect_received(problem, setting.dtype, strategy("query_ring"), Direction::kBackward,
                    hops * n * H * ((d + e) * b + d * g + 2 * g));
  });
}

// Uneven shards: the mean and the largest rank follow from the rows of the others.
TEST(PlanBytes, UnevenShardsReceiveTheRowsOfOthers) {
  const int64_t tokens = 61;
  const HeadShape heads{.q_heads = 8, .kv_heads = 2, .head_dim = 16, .value_dim = 24};
  for (const LayoutKind& kind : layout_kinds()) {
    for (int ranks : {3, 7}) {
      const TokenLayout layout = kind.make(tokens, ranks);
      const Documents documents = Documents::whole(tokens);
      const Problem problem{layout, documents, {true, 0}, heads};
      const int64_t keys = 2 * (16 + 24);
      for (int r = 0; r < ranks; ++r) {
        const int64_t n = layout.rows(r), others = tokens - n;
        const auto received = [&](const char* name, Direction direction) {
          return received_bytes(strategy(name).plan(problem, direction, r), r, heads, DType::kBF16);
        };
        EXPECT_EQ(received("all_gather", Direction::kForward), others * keys * 2);
        // Its own gradients from everybody.
        EXPECT_EQ(received("all_gather", Direction::kBackward),
                  others * keys * 2 + (ranks - 1) * n * keys * 4);
        // dq of its own rows comes home; of its left neighbour's it starts the sum.
        const int64_t started = layout.rows((r + ranks - 1) % ranks);
        EXPECT_EQ(received("query_ring", Direction::kBackward),
                  others * 8 * ((16 + 24) * 2 + 8) + (others - started + n) * 8 * 16 * 4);
      }
    }
  }
}

// With fewer heads than ranks the idle ranks still give and take their rows, and receive nothing.
TEST(PlanBytes, RanksWithoutHeadsReceiveOnlyResults) {
  const TokenLayout layout = TokenLayout::contiguous(60, 5);
  const Documents documents = Documents::whole(60);
  const HeadShape heads{.q_heads = 3, .kv_heads = 1, .head_dim = 16, .value_dim = 16};
  const Problem problem{layout, documents, {true, 0}, heads};
  const int64_t results = 12 * 3 * (16 + 1) * 4;
  EXPECT_EQ(received_bytes(plan_ulysses(problem, Direction::kForward, 4), 4, heads, DType::kBF16),
            results);
}

TEST(PlanBytes, FieldsAreHeldAsElementsOrAccumulators) {
  const HeadShape heads{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 24};
  EXPECT_EQ(field_bytes(Field::kQ, heads, DType::kBF16), 32);
  EXPECT_EQ(field_bytes(Field::kV, heads, DType::kBF16), 48);
  EXPECT_EQ(field_bytes(Field::kDOut, heads, DType::kBF16), 48);
  EXPECT_EQ(field_bytes(Field::kOut, heads, DType::kBF16), 96);
  EXPECT_EQ(field_bytes(Field::kDK, heads, DType::kBF16), 64);
  EXPECT_EQ(field_bytes(Field::kLse, heads, DType::kBF16), 4);
  EXPECT_EQ(field_bytes(Field::kDelta, heads, DType::kF64), 8);
  EXPECT_EQ(field_bytes(Field::kState, heads, DType::kBF16), 16 * 24 * 4);
  const Transfer transfer{
      .peer = 1, .fields = {Field::kK, Field::kV}, .rows = {3, 5}, .heads = {1, 1}, .done_by = 1};
  EXPECT_EQ(transfer_bytes(transfer, 0, heads, DType::kBF16), 5 * 80);
  EXPECT_EQ(transfer_bytes(transfer, 1, heads, DType::kBF16), 0);  // to itself
}

}  // namespace
}  // namespace longhaul::parallel
