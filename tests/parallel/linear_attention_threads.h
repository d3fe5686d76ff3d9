// Cases of linear attention on ranks as threads.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <string_view>
#include <vector>

#include "dist/local/local.h"
#include "tests/parallel/linear_attention_cases.h"

namespace longhaul::test {

inline constexpr std::chrono::seconds kDeadline(60);
inline constexpr const char* kLayouts[] = {"contiguous", "zigzag", "balanced", "striped"};

// One of 7 tokens in the midst of others; all straddle ranks.
inline parallel::Documents documents_of(bool packed, int64_t tokens) {
  std::vector<int64_t> begins{0};
  for (int64_t begin : {tokens / 3, tokens / 3 + 7, tokens / 3 + 8, tokens * 3 / 4}) {
    if (packed && begin > begins.back() && begin < tokens) begins.push_back(begin);
  }
  return parallel::Documents(tokens, begins);
}

inline std::vector<LinearResult> results_of(const LinearCase& c, const LinearInputs& x, int ranks) {
  std::vector<LinearResult> results(static_cast<size_t>(ranks));
  dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
    results[static_cast<size_t>(group.rank())] = run_linear_attention(group, c, x);
  });
  return results;
}

inline std::vector<double> errors_of(const LinearCase& c, const LinearInputs& x,
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

// Everything at once, in each method.
inline LinearCase everything(parallel::LinearKind kind, std::string_view method, const char* layout,
                             DType dtype) {
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

}  // namespace longhaul::test
