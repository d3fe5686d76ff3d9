// Naive fp64 attention over a whole sample, and the same computed by the plans of all ranks in the
// plan interpreter. Neither side uses segment helpers: the truth masks by global positions, a task
// by i + lo <= j <= i + hi.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/core/random.h"
#include "parallel/plan/planners.h"
#include "tests/parallel/plan_interpreter.h"

namespace longhaul::test {

// [token][head][dim], dense.
struct Field3 {
  int64_t heads = 0, dim = 0;
  std::vector<double> values;

  Field3() = default;
  Field3(int64_t tokens, int64_t heads_, int64_t dim_, double value = 0)
      : heads(heads_), dim(dim_), values(static_cast<size_t>(tokens * heads_ * dim_), value) {}
  double* at(int64_t token, int64_t head) {
    return &values[static_cast<size_t>((token * heads + head) * dim)];
  }
  const double* at(int64_t token, int64_t head) const {
    return &values[static_cast<size_t>((token * heads + head) * dim)];
  }
};

// Written from the definitions of mask and documents, position by position.
bool allowed(int64_t query, int64_t key, const parallel::Mask& mask,
             const parallel::Documents& documents);

// What attention may do to scores and probabilities beyond softmax, from the definitions in
// kernels/attention.h, kernels/dropout.h and kernels/attention_sink.h.
struct ScoreOptions {
  double soft_cap = 0;         // 0: none
  std::vector<double> slopes;  // of each query head; empty: no bias
  double dropout = 0;
  RandomKey dropout_key;
  std::vector<double> sink;  // of each query head; empty: none
};

struct AttentionTruth {
  parallel::HeadShape heads;
  ScoreOptions options;
  Field3 q, k, v, dout;    // random
  Field3 out, lse, delta;  // of the forward
  Field3 dq, dk, dv;       // of the backward
  std::vector<double> dsink;
};
// The inputs are rounded to `dtype`.
AttentionTruth attention_truth(const parallel::Documents& documents, const parallel::Mask& mask,
                               const parallel::HeadShape& heads, uint64_t seed,
                               const ScoreOptions& options = {}, DType dtype = DType::kF64);

// Runs plans against the truth. Throws PlanViolation if a rule is broken, a pair of the mask is not
// computed exactly once, or a result differs by more than 1e-12 (relative to 1 + the truth).
using Planner = std::function<parallel::Plan(parallel::Direction direction, int rank)>;
void verify_attention(const parallel::Problem& problem, const Planner& planner,
                      const AttentionTruth& truth, uint64_t seed);
// One direction, for plans at hand.
void verify_attention(const parallel::Problem& problem, parallel::Direction direction,
                      std::vector<parallel::Plan> plans, const AttentionTruth& truth,
                      uint64_t seed);

// Documents of random lengths >= 1 with a mean of `mean` tokens.
parallel::Documents random_documents(int64_t tokens, int64_t mean, uint64_t seed);

}  // namespace longhaul::test
