// Decay-aware scans (parallel/plan/decayed_scan.h) on ranks as threads: what they leave out, and
// what they send.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "parallel/plan/decayed_scan.h"
#include "parallel/scan/runs.h"
#include "tests/parallel/covering.h"
#include "tests/parallel/linear_attention_threads.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::LinearKind;

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
  return truth_of_pairs(c, x, [&](int64_t i, int64_t j, int64_t h) {
    const int64_t apart = run_of[static_cast<size_t>(i)] - run_of[static_cast<size_t>(j)];
    return j <= i && (apart <= 1 || !forgets[static_cast<size_t>(h)]);
  });
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
TEST(LinearAttentionDecay, DecayBoundsLeaveOutWhatTheySay) {
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
TEST(LinearAttentionDecay, ABoundOfNothingIsExact) {
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
TEST(LinearAttentionDecay, DecayBoundsComposeWithTheRest) {
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

TEST(LinearAttentionDecay, DecayBoundsNeedFixedDecays) {
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

}  // namespace
}  // namespace longhaul::test
