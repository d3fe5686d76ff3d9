// Linear attention on ranks as threads: every method, against the recurrence in fp64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "parallel/attention/execution.h"
#include "parallel/plan/decayed_scan.h"
#include "parallel/scan/runs.h"
#include "tests/parallel/covering.h"
#include "tests/parallel/linear_attention_cases.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::LinearKind;

constexpr std::chrono::seconds kDeadline(60);

// Primes, as many as a document of 7, and fewer than ranks, so that some have nothing.
int64_t tokens_of(int index, int ranks) {
  const int64_t tokens[] = {1, 7, std::max(ranks - 1, 1), 61, 199};
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

std::vector<LinearResult> results_of(const LinearCase& c, const LinearInputs& x, int ranks) {
  std::vector<LinearResult> results(static_cast<size_t>(ranks));
  dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
    results[static_cast<size_t>(group.rank())] = run_linear_attention(group, c, x);
  });
  return results;
}

std::vector<double> errors_of(const LinearCase& c, const LinearInputs& x,
                              const LinearOutputs& truth, int ranks) {
  std::vector<double> result;
  try {
    dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
      const auto e = errors(group, c, truth, run_linear_attention(group, c, x));
      if (group.rank() == 0) result = e;
    });
  } catch (const Error& error) {
    ADD_FAILURE() << error.what();
  }
  return result;
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
constexpr const char* kLayouts[] = {"contiguous", "zigzag", "balanced", "striped"};

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

// Everything at once, in each method.
LinearCase everything(LinearKind kind, std::string_view method, const char* layout, DType dtype) {
  return {.kind = kind,
          .method = std::string(method),
          .layout = layout,
          .tokens = 131,
          .heads = 5,
          .head_dim = 16,
          .value_dim = 24,
          .documents = parallel::Documents(131, {0, 44, 51, 100}),
          .dtype = dtype,
          .initial_state = true,
          .final_state = true};
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

// What is left of causal attention if each token sees its own run and, for heads that forget, only
// the run before; pair by pair.
LinearOutputs truncated_truth(const LinearCase& c, const LinearInputs& x,
                              const parallel::TokenLayout& runs, const std::vector<bool>& forgets) {
  std::vector<int64_t> run_of(static_cast<size_t>(c.tokens));
  std::vector<int64_t> begins;
  for (int r = 0; r < runs.ranks(); ++r) {
    for (const parallel::Run& run : runs.runs(r)) begins.push_back(run.global_begin);
  }
  std::ranges::sort(begins);
  for (int64_t t = 0; t < c.tokens; ++t) {
    run_of[static_cast<size_t>(t)] = std::ranges::upper_bound(begins, t) - begins.begin();
  }
  LinearOutputs truth{.out = std::vector<double>(x.v.size()),
                      .dq = std::vector<double>(x.q.size()),
                      .dk = std::vector<double>(x.q.size()),
                      .dv = std::vector<double>(x.v.size())};
  const std::vector<double> slopes = slopes_of(c);
  const auto dim = static_cast<size_t>(c.head_dim), width = static_cast<size_t>(c.value_dim);
  for (int64_t i = 0; i < c.tokens; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      if (c.documents.at(i) != c.documents.at(j)) continue;
      const bool far = run_of[static_cast<size_t>(i)] - run_of[static_cast<size_t>(j)] > 1;
      for (int64_t h = 0; h < c.heads; ++h) {
        if (far && forgets[static_cast<size_t>(h)]) continue;
        const double decay = std::exp(-slopes[static_cast<size_t>(h)] * static_cast<double>(i - j));
        const auto qi = static_cast<size_t>(i * c.heads + h) * dim;
        const auto kj = static_cast<size_t>(j * c.heads + h) * dim;
        const auto oi = static_cast<size_t>(i * c.heads + h) * width;
        const auto vj = static_cast<size_t>(j * c.heads + h) * width;
        double score = 0, dscore = 0;
        for (size_t d = 0; d < dim; ++d) score += decay * x.q[qi + d] * x.k[kj + d];
        for (size_t e = 0; e < width; ++e) dscore += decay * x.dout[oi + e] * x.v[vj + e];
        for (size_t e = 0; e < width; ++e) {
          truth.out[oi + e] += score * x.v[vj + e];
          truth.dv[vj + e] += score * x.dout[oi + e];
        }
        for (size_t d = 0; d < dim; ++d) {
          truth.dq[qi + d] += dscore * x.k[kj + d];
          truth.dk[kj + d] += dscore * x.q[qi + d];
        }
      }
    }
  }
  return truth;
}

// The largest 2-norm of a head's row.
double largest_norm(const std::vector<double>& rows, int64_t dim) {
  double largest = 0;
  for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(dim)) {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d)
      sum += rows[at + static_cast<size_t>(d)] * rows[at + static_cast<size_t>(d)];
    largest = std::max(largest, std::sqrt(sum));
  }
  return largest;
}

// Heads that forget see the run before and nothing beyond, in both passes alike; what that leaves
// out is less than promised; and the bytes are those of the plan.
TEST(LinearAttentionRanks, DecayBoundsLeaveOutWhatTheySay) {
  constexpr double kBound = 0.05, kRounding = 1e-12;
  for (const Case& pick : cases_of({4, 4, 3, 2, 3})) {
    const auto& method = parallel::scan_methods()[static_cast<size_t>(pick[0])];
    const int ranks = pick[2] == 0 ? 2 : pick[2] == 1 ? 3 : 5;
    LinearCase c{.method = std::string(method.name),
                 .layout = kLayouts[pick[1]],
                 .tokens = 131,
                 .heads = 3 + pick[4],
                 .documents = documents_of(pick[3] == 1, 131),
                 .decay_bound = kBound};
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
    const parallel::TokenLayout runs =
        parallel::scanned_runs(layout_of(c, ranks), c.layout == "balanced" ? 2 : 0);
    const std::vector<double> slopes = slopes_of(c);
    const std::vector<bool> forgets = parallel::forgetting_heads(runs, slopes, kBound);
    if (c.layout != "balanced") {
      EXPECT_EQ(std::ranges::count(forgets, true) > 0, ranks > 2 || c.layout == "zigzag");
    }
    const LinearInputs x = inputs_of(c, 11);
    const LinearOutputs truncated = truncated_truth(c, x, runs, forgets);
    for (double e : errors_of(c, x, truncated, ranks)) EXPECT_LE(e, 1e-10);
    if (HasFailure()) return;

    const LinearOutputs exact = truth_of(c, x);
    const double factor = parallel::decay_error(runs, slopes, kBound).of_output;
    const double q = largest_norm(x.q, c.head_dim), k = largest_norm(x.k, c.head_dim),
                 v = largest_norm(x.v, c.value_dim), dout = largest_norm(x.dout, c.value_dim);
    const auto lacks = [](const std::vector<double>& a, const std::vector<double>& b, int64_t dim) {
      std::vector<double> difference(a.size());
      std::ranges::transform(a, b, difference.begin(), std::minus());
      return largest_norm(difference, dim);
    };
    EXPECT_LE(lacks(exact.out, truncated.out, c.value_dim), factor * q * k * v + kRounding);
    EXPECT_LE(lacks(exact.dq, truncated.dq, c.head_dim), factor * dout * v * k + kRounding);
    EXPECT_LE(lacks(exact.dk, truncated.dk, c.head_dim), factor * v * dout * q + kRounding);
    EXPECT_LE(lacks(exact.dv, truncated.dv, c.value_dim), factor * k * q * dout + kRounding);
    if (pick[3] == 0) {  // one document
      EXPECT_EQ(lacks(exact.out, truncated.out, c.value_dim) > kRounding,
                std::ranges::count(forgets, true) > 0);
    }

    const auto results = results_of(c, x, ranks);
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      for (int r = 0; r < ranks; ++r) {
        const parallel::HeadShape heads{.q_heads = c.heads,
                                        .kv_heads = c.heads,
                                        .head_dim = c.head_dim,
                                        .value_dim = c.value_dim};
        const parallel::Plan plan =
            parallel::plan_scan(method, runs, c.heads, forgets, direction, r);
        EXPECT_EQ(results[static_cast<size_t>(r)].received_bytes[static_cast<size_t>(direction)],
                  parallel::received_bytes(plan, r, heads, c.dtype));
      }
    }
  }
}

// Squares of differences between the ranks' results, over all that they hold.
double squared_distance(const std::vector<LinearResult>& a, const std::vector<LinearResult>& b) {
  double sum = 0;
  const auto add = [&](const std::vector<double>& x, const std::vector<double>& y) {
    for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - y.at(i)) * (x[i] - y.at(i));
  };
  for (size_t r = 0; r < a.size(); ++r) {
    const LinearOutputs &x = a[r].outputs, &y = b.at(r).outputs;
    add(x.out, y.out);
    add(x.dq, y.dq);
    add(x.dk, y.dk);
    add(x.dv, y.dv);
    add(x.final_state, y.final_state);
  }
  return sum;
}

// A bound that no head falls below leaves nothing out, and not a byte of what travels. (Results may
// be rounded otherwise: with a bound all heads are computed in one pass.)
TEST(LinearAttentionRanks, ABoundOfNothingIsExact) {
  constexpr double kRounding = 1e-20;  // square of 1e-10
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    for (const bool causal : {true, false}) {
      LinearCase c = everything(LinearKind::kDecay, method.name, "zigzag", DType::kF64);
      c.causal = causal;
      if (!causal) c.initial_state = c.final_state = false;
      const LinearInputs x = inputs_of(c, 12);
      const auto exact = results_of(c, x, 4);
      c.decay_bound = 1e-300;
      const auto bounded = results_of(c, x, 4);
      EXPECT_LT(squared_distance(bounded, exact), kRounding) << c.name();
      for (size_t r = 0; r < exact.size(); ++r) {
        for (const int direction : {0, 1}) {
          EXPECT_EQ(bounded[r].received_bytes[direction], exact[r].received_bytes[direction]);
        }
      }
      // One that some fall below does.
      c.decay_bound = 0.1;
      EXPECT_GT(squared_distance(results_of(c, x, 4), exact), kRounding) << c.name();
    }
  }
}

// Both ways, and with states from before and after: each token sees its run and one on each side.
TEST(LinearAttentionRanks, DecayBoundsComposeWithTheRest) {
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    LinearCase c = everything(LinearKind::kDecay, method.name, "zigzag", DType::kF64);
    c.documents = parallel::Documents::whole(c.tokens);
    c.decay_bound = 1e-5;
    const LinearInputs x = inputs_of(c, 13);
    // Small, but not zero.
    for (const double e : errors_of(c, x, truth_of(c, x), 4)) EXPECT_LE(e, 1e-4);
    LinearCase both = c;
    both.causal = both.initial_state = both.final_state = false;
    for (const double e : errors_of(both, x, truth_of(both, x), 4)) EXPECT_LE(e, 1e-4);
  }
}

TEST(LinearAttentionRanks, DecayBoundsNeedFixedDecays) {
  for (const LinearKind kind : {LinearKind::kGated, LinearKind::kDeltaRule}) {
    dist::run_local(2, kDeadline, [&](dist::Group& group) {
      const auto error = attempt([&] {
        parallel::LinearAttention(group, parallel::TokenLayout::contiguous(8, 2),
                                  {.kind = kind, .decay_bound = 1e-3});
      });
      ASSERT_TRUE(error && error->code() == ErrorCode::kConfig);
      EXPECT_NE(std::string(error->what()).find("parallel.linear_decay_bound: 0"),
                std::string::npos);
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
