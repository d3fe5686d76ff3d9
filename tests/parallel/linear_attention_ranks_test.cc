// Linear attention on ranks as threads: every method, against the recurrence in fp64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "parallel/attention/execution.h"
#include "tests/parallel/covering.h"
#include "tests/parallel/linear_attention_threads.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::LinearKind;

// Primes, as many as a document of 7, and fewer than ranks, so that some have nothing.
int64_t tokens_of(int index, int ranks) {
  const int64_t tokens[] = {1, 7, std::max(ranks - 1, 1), 61, 199};
  return tokens[index];
}

// Who has which map, in order.
class TokenOwners {
 public:
  explicit TokenOwners(const parallel::TokenLayout& layout) {
    for (int64_t position = 0; position < layout.tokens(); ++position) {
      const int rank = layout.locate(position).rank;
      if (owners_.empty() || owners_.back() != rank) owners_.push_back(rank);
    }
  }
  bool same(int64_t a, int64_t b) const {
    return owners_[static_cast<size_t>(a)] == owners_[static_cast<size_t>(b)];
  }

 private:
  std::vector<int> owners_;
};

constexpr LinearKind kKinds[] = {LinearKind::kDecay, LinearKind::kGated, LinearKind::kDeltaRule};

TEST(LinearAttentionRanks, EveryMethodEqualsTheRecurrence) {
  const auto methods = parallel::scan_methods();
  constexpr int64_t kShapes[][3] = {{3, 5, 4}, {1, 8, 16}, {7, 3, 2}};
  for (const Case& pick : cases_of({static_cast<int>(methods.size()), 4, 9, 5, 2, 3, 4,
                                    static_cast<int>(std::size(kKinds))})) {
    const int ranks = pick[2] + 1;
    const int64_t tokens = tokens_of(pick[3], ranks);
    const int64_t* shape = kShapes[pick[5]];
    const LinearCase c{.kind = kKinds[pick[7]],
                       .method = std::string(methods[static_cast<size_t>(pick[0])].name),
                       .layout = kLayouts[pick[1]],
                       .tokens = tokens,
                       .heads = shape[0],
                       .head_dim = shape[1],
                       .value_dim = shape[2],
                       .documents = documents_of(pick[4] == 1, tokens),
                       .dtype = DType::kF64,
                       .initial_state = pick[6] % 2 == 1,
                       .final_state = pick[6] / 2 == 1};
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
    const LinearInputs x = inputs_of(c, 5);
    for (double e : errors_of(c, x, truth_of(c, x), ranks)) EXPECT_LE(e, 1e-10);
    if (HasFailure()) return;
  }
}

TEST(LinearAttentionRanks, BidirectionalEqualsTheSumOverPairs) {
  const auto methods = parallel::scan_methods();
  for (const Case& pick : cases_of({static_cast<int>(methods.size()), 4, 9, 5, 2})) {
    const int ranks = pick[2] + 1;
    const int64_t tokens = tokens_of(pick[3], ranks);
    const LinearCase c{.method = std::string(methods[static_cast<size_t>(pick[0])].name),
                       .layout = kLayouts[pick[1]],
                       .tokens = tokens,
                       .documents = documents_of(pick[4] == 1, tokens),
                       .dtype = DType::kF64,
                       .causal = false};
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
    const LinearInputs x = inputs_of(c, 5);
    for (double e : errors_of(c, x, truth_of(c, x), ranks)) EXPECT_LE(e, 1e-10);
    if (HasFailure()) return;
  }
}

// Without decays a document is one sum, and one all-reduce is all that travels in a pass; with
// several documents states are scanned as ever.
TEST(LinearAttentionRanks, BidirectionalWithoutDecaysIsOneSum) {
  const auto methods = parallel::scan_methods();
  // States of some bytes, which go to everyone, and of 64 KiB, which are summed in pieces.
  constexpr int64_t kShapes[][3] = {{3, 5, 4}, {2, 64, 64}};
  for (const Case& pick : cases_of({static_cast<int>(methods.size()), 4, 5, 5, 2, 2})) {
    const int ranks = pick[2] + 1;
    const int64_t tokens = tokens_of(pick[3], ranks);
    const int64_t* shape = kShapes[pick[5]];
    const LinearCase c{.method = std::string(methods[static_cast<size_t>(pick[0])].name),
                       .layout = kLayouts[pick[1]],
                       .tokens = tokens,
                       .heads = shape[0],
                       .head_dim = shape[1],
                       .value_dim = shape[2],
                       .documents = documents_of(pick[4] == 1, tokens),
                       .dtype = DType::kF64,
                       .causal = false,
                       .decays = false};
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
    const LinearInputs x = inputs_of(c, 5);
    for (double e : errors_of(c, x, truth_of(c, x), ranks)) EXPECT_LE(e, 1e-10);
    if (HasFailure()) return;
    if (c.documents.count() > 1) continue;
    const auto results = results_of(c, x, ranks);
    const int64_t sigma = shape[0] * shape[1] * shape[2] * 8;
    for (const int direction : {0, 1}) {
      int64_t received = 0;
      for (const LinearResult& r : results) received += r.received_bytes[direction];
      EXPECT_EQ(received, pick[5] == 0 ? ranks * (ranks - 1) * sigma : 2 * (ranks - 1) * sigma);
    }
    EXPECT_EQ(results_of(c, x, ranks), results);
  }
}

// One head that forgets, and scans it is.
TEST(LinearAttentionRanks, OneSumIsForHeadsWithoutDecaysOnly) {
  LinearCase c{.layout = "contiguous", .causal = false};
  const LinearInputs x = inputs_of(c, 5);
  const int64_t sigma = c.heads * c.head_dim * c.value_dim * 8;
  const auto bytes = [&] { return results_of(c, x, 3)[0].received_bytes[0]; };
  EXPECT_EQ(bytes(), 2 * 2 * (sigma + c.heads * 8));  // from two ranks, both ways, with decays
  c.decays = false;
  EXPECT_EQ(bytes(), 2 * sigma);
  c.documents = parallel::Documents(c.tokens, {0, 30});
  EXPECT_EQ(bytes(), 2 * 2 * (sigma + c.heads * 8));
}

// A rank that does not come is named within the deadline, with where the others are.
TEST(LinearAttentionRanks, ARankThatDoesNotComeIsNamed) {
  constexpr int kRanks = 3, kAbsent = 1;
  struct Absence {
    std::string method;
    bool causal;
    Direction direction;
    LinearKind kind = LinearKind::kDecay;
    bool decays = true;
  };
  std::vector<Absence> absences;
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      absences.push_back({std::string(method.name), true, direction});
    }
  }
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    absences.push_back({"all_gather", true, direction, LinearKind::kDeltaRule});
    absences.push_back({"ring", false, direction});
    absences.push_back({"all_gather", false, direction, LinearKind::kDecay, false});
  }
  for (const Absence& absence : absences) {
    const bool forward = absence.direction == Direction::kForward;
    LinearCase c{.kind = absence.kind,
                 .method = absence.method,
                 .layout = "contiguous",
                 .causal = absence.causal,
                 .decays = absence.decays};
    SCOPED_TRACE(absl::StrCat(c.name(), forward ? " forward" : " backward"));
    const LinearInputs x = inputs_of(c, 5);
    const auto begin = std::chrono::steady_clock::now();
    const auto error = attempt([&] {
      dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
        run_linear_attention(group, c, x, [&](Direction direction) {
          if (direction != absence.direction) return;
          if (group.rank() == kAbsent) group.wait_until([] { return false; }, "something else");
          group.job().deadline = std::chrono::milliseconds(100);
        });
      });
    });
    ASSERT_TRUE(error && error->code() == ErrorCode::kCommunication);
    const std::string message = error->what();
    EXPECT_NE(message.find(forward ? "layer 3 linear attention forward"
                                   : "layer 3 linear attention backward"),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("waited 0.1 s"), std::string::npos) << message;
    EXPECT_NE(message.find("rank 1"), std::string::npos) << message;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, kDeadline / 2);
  }
}

TEST(LinearAttentionRanks, GatesAreCausalOnly) {
  dist::run_local(2, kDeadline, [](dist::Group& group) {
    const auto error = attempt([&] {
      parallel::LinearAttention(group, parallel::TokenLayout::contiguous(8, 2),
                                {.kind = LinearKind::kGated, .causal = false});
    });
    ASSERT_TRUE(error && error->code() == ErrorCode::kConfig);
    EXPECT_NE(std::string(error->what()).find("causal only"), std::string::npos);
  });
}

// Accumulators are f32 end to end: sharding may cost no more than twice one rank's rounding.
TEST(LinearAttentionRanks, LowPrecisionLosesNothingOverRanks) {
  size_t kinds = 0;
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int ranks : {2, 3, 5, 8}) {
        const LinearKind kind = kKinds[kinds++ % std::size(kKinds)];
        const LinearCase c = everything(kind, method.name, kLayouts[ranks % 4], dtype);
        SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
        const LinearInputs x = inputs_of(c, 8);
        const LinearOutputs truth = truth_of(c, x);
        const std::vector<double> one = errors_of(c, x, truth, 1);
        const std::vector<double> many = errors_of(c, x, truth, ranks);
        for (size_t i = 0; i < one.size(); ++i) {
          EXPECT_LE(many[i], std::max(2 * one[i], 8 * 0x1p-24)) << "tensor " << i;
        }
      }
    }
  }
}

TEST(LinearAttentionRanks, RerunsAreBitIdentical) {
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    for (const LinearKind kind : kKinds) {
      const LinearCase c = everything(kind, method.name, "zigzag", DType::kF32);
      const LinearInputs x = inputs_of(c, 9);
      EXPECT_EQ(results_of(c, x, 4), results_of(c, x, 4)) << c.name();
    }
  }
}

// The truth would show a small leak as a small error only, and NaN not at all where the truth has
// it too: one token of the second document is NaN, and nothing of the others moves by a bit.
TEST(LinearAttentionRanks, DocumentsAreIsolated) {
  constexpr int kRanks = 4;
  size_t kinds = 0;
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    for (const char* layout : kLayouts) {
      // Every kind, and the first one in both directions.
      const size_t which = kinds++ % (std::size(kKinds) + 1);
      LinearCase c =
          everything(kKinds[which % std::size(kKinds)], method.name, layout, DType::kF64);
      if (which == std::size(kKinds)) c.causal = c.initial_state = c.final_state = false;
      SCOPED_TRACE(c.name());
      LinearInputs x = inputs_of(c, 6);
      const auto before = results_of(c, x, kRanks);
      constexpr int64_t kChanged = 47;
      for (auto* values : {&x.q, &x.k, &x.v, &x.dout}) {
        const auto of_row = static_cast<int64_t>(values->size()) / c.tokens;
        (*values)[static_cast<size_t>(kChanged * of_row)] = std::nan("");
      }
      const auto after = results_of(c, x, kRanks);
      int64_t changed = 0, compared = 0;
      const parallel::TokenLayout places = layout_of(c, kRanks);
      for (int r = 0; r < kRanks; ++r) {
        const auto compare = [&](const std::vector<double>& a, const std::vector<double>& b) {
          const int64_t rows = places.rows(r), of_row = static_cast<int64_t>(a.size()) / rows;
          for (int64_t row = 0; row < rows; ++row) {
            const int64_t position = places.position(r, row);
            const bool other = position < 44 || position >= 51;
            for (int64_t i = row * of_row; i < (row + 1) * of_row; ++i) {
              const bool equal = a[static_cast<size_t>(i)] == b[static_cast<size_t>(i)];
              ASSERT_TRUE(equal || !other) << position;
              (other ? compared : changed) += other || !equal;
            }
          }
        };
        const LinearOutputs& a = before[static_cast<size_t>(r)].outputs;
        const LinearOutputs& b = after[static_cast<size_t>(r)].outputs;
        compare(a.out, b.out);
        compare(a.dq, b.dq);
        compare(a.dk, b.dk);
        compare(a.dv, b.dv);
        if (!a.dlog_gate.empty()) compare(a.dlog_gate, b.dlog_gate);
        if (!a.dbeta.empty()) compare(a.dbeta, b.dbeta);
        EXPECT_EQ(a.final_state, b.final_state);
      }
      EXPECT_GE(compared, (131 - 7) * 2 * (16 + 24) * c.heads);
      EXPECT_GT(changed, 100);
    }
  }
}

// Two samples, the second of which starts with what the first ends with, are one.
TEST(LinearAttentionRanks, StatesCarryOverSamples) {
  for (const LinearKind kind : kKinds) {
    LinearCase whole = everything(kind, "all_gather", "zigzag", DType::kF64);
    whole.initial_state = false;
    const LinearInputs x = inputs_of(whole, 3);
    const LinearOutputs truth = truth_of(whole, x);
    constexpr int64_t kFirst = 70;  // in the midst of a document
    const auto part = [&](int64_t begin, int64_t tokens) {
      LinearInputs piece = x;
      for (auto* values :
           {&piece.q, &piece.k, &piece.v, &piece.dout, &piece.log_gate, &piece.beta}) {
        const auto of_row = static_cast<int64_t>(values->size()) / whole.tokens;
        *values = {values->begin() + begin * of_row, values->begin() + (begin + tokens) * of_row};
      }
      return piece;
    };
    for (const parallel::ScanMethod& method : parallel::scan_methods()) {
      LinearCase first = whole, second = whole;
      first.method = second.method = std::string(method.name);
      first.tokens = kFirst;
      first.documents = parallel::Documents(kFirst, {0, 44, 51});
      second.tokens = whole.tokens - kFirst;
      second.documents = parallel::Documents(second.tokens, {0, 100 - kFirst});
      second.initial_state = true;
      const auto a = results_of(first, part(0, kFirst), 3);
      LinearInputs rest = part(kFirst, second.tokens);
      rest.state_in = a[1].outputs.final_state;
      const auto b = results_of(second, rest, 3);
      const parallel::TokenLayout layout = layout_of(second, 3);
      for (int r = 0; r < 3; ++r) {
        const auto& out = b[static_cast<size_t>(r)].outputs.out;
        const int64_t of_row = whole.heads * whole.value_dim;
        for (size_t i = 0; i < out.size(); ++i) {
          const int64_t row = static_cast<int64_t>(i) / of_row;
          const int64_t at =
              (kFirst + layout.position(r, row)) * of_row + static_cast<int64_t>(i) % of_row;
          ASSERT_NEAR(out[i], truth.out[static_cast<size_t>(at)], 1e-10);
        }
        for (size_t i = 0; i < truth.final_state.size(); ++i) {
          ASSERT_NEAR(b[static_cast<size_t>(r)].outputs.final_state[i], truth.final_state[i],
                      1e-10);
        }
      }
    }
  }
}

// All steps of a scan, not only the first, go on while the caller computes something else.
TEST(LinearAttentionRanks, ScansGoOnWhileTheCallerComputes) {
  constexpr int kRanks = 4;
  const parallel::HeadShape heads{.q_heads = 8, .kv_heads = 8, .head_dim = 2, .value_dim = 3};
  const parallel::TokenLayout layout = parallel::TokenLayout::contiguous(8, kRanks);
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      const int me = group.rank();
      const parallel::Plan plan = method.plan(layout, 8, parallel::Direction::kForward, me);
      const Tensor sums(DType::kF64, {1, 8, 6}), decay(DType::kF64, {1, 8, 1});
      std::ranges::fill(sums.span<double>(), 1 << (4 * me));
      const Tensor entering(DType::kF64, {1, 8, 6});
      parallel::FieldViews home, kept;
      parallel::at(home, parallel::Field::kState) = sums;
      parallel::at(home, parallel::Field::kDecay) = decay;
      parallel::at(kept, parallel::Field::kState) = entering;
      Arena buffers("buffers", 1 << 20), scratch("scratch", 1 << 10);
      ThreadPool pool(2);
      const Context ctx{.pool = &pool, .scratch = &scratch};
      const parallel::ExecutionSetup setup{.group = &group,
                                           .plan = &plan,
                                           .what = "scan",
                                           .heads = heads,
                                           .dtype = DType::kF64,
                                           .kernel_options = {},
                                           .in_place = {},
                                           .communication = &buffers};
      parallel::Execution execution(ctx, setup, home, kept);
      execution.start(ctx);
      const int64_t bytes = parallel::received_bytes(plan, me, heads, DType::kF64);
      const int64_t sent = parallel::sent_bytes(plan, me, heads, DType::kF64);
      group.wait_until(
          [&] {
            execution.advance();
            const auto& traffic = group.traffic()["scan"];
            return traffic.received_bytes == bytes && traffic.sent_bytes == sent;
          },
          "every step to start");
      group.barrier("test");
      execution.finish(ctx);
      double expected = 0;  // slopes of 0: the sum over the ranks before
      for (int r = 0; r < me; ++r) expected += 1 << (4 * r);
      for (const double value : entering.span<double>()) EXPECT_EQ(value, expected);
    });
  }
}

// What the counters have seen is what the algorithms promise, on both ways.
TEST(LinearAttentionRanks, BytesAreThoseOfTheAlgorithms) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const char* layout : {"contiguous", "zigzag"}) {
      // Zigzag: two maps on each rank, but one on the last, whose chunks are neighbours.
      const int64_t maps = std::string_view(layout) == "zigzag" ? 2 * ranks - 1 : ranks;
      for (const parallel::ScanMethod& method : parallel::scan_methods()) {
        const LinearCase c{.method = std::string(method.name),
                           .layout = layout,
                           .tokens = 61,
                           .heads = 3,
                           .head_dim = 6,
                           .value_dim = 4,
                           .documents = parallel::Documents::whole(61),
                           .dtype = DType::kF32};
        SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
        const int64_t sigma = 3 * 6 * 4 * 4, decay = 3 * 4;
        const TokenOwners owners(layout_of(c, ranks));
        const auto results = results_of(c, inputs_of(c, 1), ranks);
        for (const int direction : {0, 1}) {
          int64_t expected = 0, received = 0;  // by all ranks
          if (c.method == "all_gather") {
            // Everybody gets everybody else's.
            expected = (ranks - 1) * maps * (sigma + decay);
          } else if (c.method == "doubling") {
            // What enters map g comes from map g - 1, then from g - 1, g - 2, g - 4, ... steps
            // back; without a decay where that is all there is before g.
            for (int64_t g = 1; g < maps; ++g) {
              const auto other = [&](int64_t before) {
                return direction == 0 ? !owners.same(g, before)
                                      : !owners.same(maps - 1 - g, maps - 1 - before);
              };
              if (other(g - 1)) expected += sigma + (g > 1 ? decay : 0);
              for (int64_t reach = 1; reach < g; reach *= 2) {
                if (other(g - reach)) expected += sigma + (g - reach > reach ? decay : 0);
              }
            }
          } else {
            expected = (maps - 1) * sigma;
          }
          for (const LinearResult& r : results) received += r.received_bytes[direction];
          EXPECT_EQ(received, expected);
        }
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::test
