// From products of queries and keys to probabilities (kernels/attention.h), for every attention
// kernel. Scores are in units of log 2, since 2^x is cheaper than e^x.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <limits>

#include "kernels/attention.h"

namespace longhaul::kernels::cuda {

inline constexpr double kLog2E = 1.4426950408889634074;

// AttentionOptions for the device.
template <class A>
struct ScoreOptions {
  A factor = 0;  // of q.k
  A scale = 0;
  A cap = 0;
  const float* slopes = nullptr;  // or null
  RandomKey key{};
  uint64_t threshold = 0;  // of dropout; 0: none
  A kept = 1;
};
template <class A>
ScoreOptions<A> score_options(const AttentionOptions& options) {
  return {.factor = static_cast<A>(options.scale * kLog2E),
          .scale = static_cast<A>(options.scale),
          .cap = static_cast<A>(options.soft_cap * kLog2E),
          .slopes = options.biased() ? options.bias_slopes.data<float>() : nullptr,
          .key = options.dropout.key,
          .threshold = dropout_threshold(options.dropout.probability),
          .kept = static_cast<A>(1 / (1 - options.dropout.probability))};
}

// The options of one query head. Without kGeneral scores are only scaled.
template <class A, bool kGeneral>
class HeadScores {
 public:
  __device__ HeadScores(const ScoreOptions<A>& options, const HeadMap& heads, int64_t head)
      : factor_(options.factor), cap_(options.cap) {
    if constexpr (kGeneral) {
      slope_ = options.slopes == nullptr
                   ? A(0)
                   : static_cast<A>(kLog2E) * static_cast<A>(options.slopes[head]);
      threshold_ = options.threshold;
      kept_ = options.kept;
      if (threshold_ > 0) stream_ = dropout_stream(options.key, heads.q_begin + head);
    }
  }

  // The score of a product. `distance`: query minus key position. `derivative` is the soft-cap's.
  __device__ __forceinline__ A score(A product, int64_t distance, A& derivative) const {
    A x = product * factor_;
    if constexpr (kGeneral) {
      derivative = A(1);
      if (cap_ != A(0)) {
        const A t = std::tanh(x / cap_);
        derivative = A(1) - t * t;
        x = cap_ * t;
      }
      x -= slope_ * static_cast<A>(distance);
    }
    return x;
  }
  __device__ __forceinline__ A score(A product, int64_t distance) const {
    A unused;
    return score(product, distance, unused);
  }

  // Of dropout: whether it keeps an element, and what it multiplies that by.
  __device__ __forceinline__ bool keeps(int64_t q_position, int64_t k_position) const {
    return threshold_ == 0 || dropout_word(stream_, q_position, k_position) >= threshold_;
  }
  __device__ __forceinline__ A kept_factor() const { return kept_; }
  __device__ __forceinline__ A kept(int64_t q_position, int64_t k_position) const {
    if constexpr (kGeneral) return keeps(q_position, k_position) ? kept_ : A(0);
    return A(1);
  }

 private:
  A factor_, cap_;
  A slope_ = 0, kept_ = 1;
  RandomKey stream_{};
  uint64_t threshold_ = 0;
};

// The lse, in units of log 2, from which probabilities are made again. A row that sees nothing has
// lse = -inf, and P = 0 as if it were +inf.
template <class A>
__device__ __forceinline__ A lse_for_backward(A lse) {
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  return lse == -kInfinity ? kInfinity : lse * static_cast<A>(kLog2E);
}

}  // namespace longhaul::kernels::cuda
