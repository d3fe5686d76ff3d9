// Attention on a sequence of many tiles: every row of forward, sampled rows and columns of
// backward, against sums written out in fp64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/attention.h"

namespace longhaul::kernels {
namespace {

constexpr int64_t kTokens = 1543;         // prime, and several of the largest tiles
constexpr int64_t kHeads = 2, kDim = 64;  // one kv head
constexpr int64_t kSampled = 97;

struct Inputs {
  DeviceTensor q{DType::kF32, {kTokens, kHeads, kDim}}, k{DType::kF32, {kTokens, 1, kDim}},
      v{DType::kF32, {kTokens, 1, kDim}}, dout{DType::kF32, {kTokens, kHeads, kDim}};
  Inputs() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (const DeviceTensor* t : {&q, &k, &v, &dout}) {
      for (float& value : t->span<float>()) value = normal(random);
    }
  }
};

double dot(const float* a, const float* b) {
  double sum = 0;
  for (int64_t d = 0; d < kDim; ++d) sum += static_cast<double>(a[d]) * static_cast<double>(b[d]);
  return sum;
}

// Relative to the largest value: f32 sums of thousands of terms, in any order, err by some units in
// the last place of the largest partial sum; 2e-5 is about 170 of them.
void expect_close(const std::vector<double>& expected, const std::vector<double>& actual) {
  double scale = 0;
  for (double e : expected) scale = std::max(scale, std::abs(e));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], 2e-5 * scale) << i;
  }
}

TEST(AttentionLong, EqualsSumsWrittenOut) {
  const Inputs in;
  const double scale = 1.0 / std::sqrt(static_cast<double>(kDim));
  const Segment causal{.q_row = 0,
                       .q_len = kTokens,
                       .k_row = 0,
                       .k_len = kTokens,
                       .band_lo = -kBandOpen,
                       .band_hi = 0};
  const std::vector<Segment> segments{causal};
  const DeviceTensor out(DType::kF32, {kTokens, kHeads, kDim}), lse(DType::kF32, {kHeads, kTokens}),
      delta(DType::kF32, {kHeads, kTokens}), dq(DType::kF32, {kTokens, kHeads, kDim}),
      dk(DType::kF32, {kTokens, 1, kDim}), dv(DType::kF32, {kTokens, 1, kDim});
  ThreadPool pool(2);
  Arena scratch("scratch", int64_t{64} << 20);
  scratch.poison();
  const Context ctx{.pool = &pool, .scratch = &scratch};
  const HeadMap heads{.q_begin = 0, .kv_begin = 0, .group = kHeads};
  attention_init(ctx, out, lse);
  attention_forward(ctx, {.segments = segments,
                          .heads = heads,
                          .q = in.q,
                          .k = in.k,
                          .v = in.v,
                          .options = {.scale = scale},
                          .out_acc = out,
                          .lse = lse});
  attention_delta(ctx, out, in.dout, delta);
  attention_backward(ctx, {.segments = segments,
                           .heads = heads,
                           .q = in.q,
                           .k = in.k,
                           .v = in.v,
                           .options = {.scale = scale},
                           .dout = in.dout,
                           .lse = lse,
                           .delta = delta,
                           .dq_acc = dq,
                           .dk_acc = dk,
                           .dv_acc = dv});

  const auto row = [](const DeviceTensor& t, int64_t i, int64_t heads_of, int64_t h) {
    return t.view().data<float>() + (i * heads_of + h) * kDim;
  };
  std::vector<double> out_true, out_is, lse_true, lse_is, dq_true, dq_is;
  // Columns of dk and dv that are checked.
  std::vector<int64_t> columns;
  for (int64_t j = 5; j < kTokens; j += kSampled) columns.push_back(j);
  std::vector<double> dk_true(columns.size() * kDim), dv_true(columns.size() * kDim);
  std::vector<double> p(kTokens);
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t i = 0; i < kTokens; ++i) {
      double sum = 0;
      for (int64_t j = 0; j <= i; ++j) {
        p[static_cast<size_t>(j)] =
            std::exp(scale * dot(row(in.q, i, kHeads, h), row(in.k, j, 1, 0)));
        sum += p[static_cast<size_t>(j)];
      }
      lse_true.push_back(std::log(sum));
      lse_is.push_back(lse.view().data<float>()[h * kTokens + i]);
      double o[kDim] = {}, from_out = 0;
      for (int64_t j = 0; j <= i; ++j) {
        for (int64_t d = 0; d < kDim; ++d) {
          o[d] += p[static_cast<size_t>(j)] / sum * row(in.v, j, 1, 0)[d];
        }
      }
      for (int64_t d = 0; d < kDim; ++d) {
        out_true.push_back(o[d]);
        out_is.push_back(row(out, i, kHeads, h)[d]);
        from_out += o[d] * row(in.dout, i, kHeads, h)[d];
      }
      const auto ds = [&](int64_t j) {
        const double dp = dot(row(in.dout, i, kHeads, h), row(in.v, j, 1, 0));
        return p[static_cast<size_t>(j)] / sum * (dp - from_out) * scale;
      };
      for (size_t c = 0; c < columns.size() && columns[c] <= i; ++c) {
        const double s = ds(columns[c]);
        for (int64_t d = 0; d < kDim; ++d) {
          const size_t at = c * kDim + static_cast<size_t>(d);
          dk_true[at] += s * row(in.q, i, kHeads, h)[d];
          dv_true[at] += p[static_cast<size_t>(columns[c])] / sum * row(in.dout, i, kHeads, h)[d];
        }
      }
      if (i % kSampled != 0) continue;
      double gradient[kDim] = {};
      for (int64_t j = 0; j <= i; ++j) {
        const double s = ds(j);
        for (int64_t d = 0; d < kDim; ++d) gradient[d] += s * row(in.k, j, 1, 0)[d];
      }
      for (int64_t d = 0; d < kDim; ++d) {
        dq_true.push_back(gradient[d]);
        dq_is.push_back(row(dq, i, kHeads, h)[d]);
      }
    }
  }
  std::vector<double> dk_is, dv_is;
  for (int64_t j : columns) {
    for (int64_t d = 0; d < kDim; ++d) {
      dk_is.push_back(row(dk, j, 1, 0)[d]);
      dv_is.push_back(row(dv, j, 1, 0)[d]);
    }
  }
  expect_close(out_true, out_is);
  expect_close(lse_true, lse_is);
  expect_close(dq_true, dq_is);
  expect_close(dk_true, dk_is);
  expect_close(dv_true, dv_is);
}

}  // namespace
}  // namespace longhaul::kernels
