// Attention on a sequence of many tiles: every row of forward, sampled rows and columns of
// backward, against sums written out in fp64.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr int64_t kTokens = 1543;         // prime, and several of the largest tiles
constexpr int64_t kHeads = 2, kDim = 64;  // one kv head
constexpr int64_t kSampled = 97;

// Operands and results where the operations run, and copies on the host.
struct Inputs {
  DeviceTensor q = random(DType::kF32, {kTokens, kHeads, kDim}, 1);
  DeviceTensor k = random(DType::kF32, {kTokens, 1, kDim}, 2);
  DeviceTensor v = random(DType::kF32, {kTokens, 1, kDim}, 3);
  DeviceTensor dout = random(DType::kF32, {kTokens, kHeads, kDim}, 4);
};
struct Results {
  DeviceTensor out = poisoned(DType::kF32, {kTokens, kHeads, kDim});
  DeviceTensor lse = poisoned(DType::kF32, {kHeads, kTokens});
  DeviceTensor delta = poisoned(DType::kF32, {kHeads, kTokens});
  DeviceTensor dq{DType::kF32, {kTokens, kHeads, kDim}};
  DeviceTensor dk{DType::kF32, {kTokens, 1, kDim}}, dv{DType::kF32, {kTokens, 1, kDim}};
};
struct OnHost {
  explicit OnHost(const DeviceTensor& x) : tensor(on_host(test_stream(), x)) {}
  const float* row(int64_t i, int64_t heads, int64_t h) const {
    return tensor.view().data<float>() + (i * heads + h) * kDim;
  }
  Tensor tensor;
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

void expect_sums(const AttentionKernel& kernel) {
  const Inputs inputs;
  const Results results;
  const double scale = 1.0 / std::sqrt(static_cast<double>(kDim));
  const Segment causal{.q_row = 0,
                       .q_len = kTokens,
                       .k_row = 0,
                       .k_len = kTokens,
                       .band_lo = -kBandOpen,
                       .band_hi = 0};
  const std::vector<Segment> segments{causal};
  const HeadMap heads{.q_begin = 0, .kv_begin = 0, .group = kHeads};
  Rig(2).run([&](const Context& ctx) {
    kernel.init(ctx, results.out, results.lse);
    kernel.forward(ctx, {.segments = segments,
                         .heads = heads,
                         .q = inputs.q,
                         .k = inputs.k,
                         .v = inputs.v,
                         .options = {.scale = scale},
                         .out_acc = results.out,
                         .lse = results.lse});
    kernel.delta(ctx, results.out, inputs.dout, results.delta);
    kernel.backward(ctx, {.segments = segments,
                          .heads = heads,
                          .q = inputs.q,
                          .k = inputs.k,
                          .v = inputs.v,
                          .options = {.scale = scale},
                          .dout = inputs.dout,
                          .lse = results.lse,
                          .delta = results.delta,
                          .dq_acc = results.dq,
                          .dk_acc = results.dk,
                          .dv_acc = results.dv});
  });

  const OnHost q(inputs.q), k(inputs.k), v(inputs.v), dout(inputs.dout), out(results.out);
  const OnHost dq(results.dq), dk(results.dk), dv(results.dv);
  const std::vector<double> lse = values(results.lse);
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
        p[static_cast<size_t>(j)] = std::exp(scale * dot(q.row(i, kHeads, h), k.row(j, 1, 0)));
        sum += p[static_cast<size_t>(j)];
      }
      lse_true.push_back(std::log(sum));
      lse_is.push_back(lse[static_cast<size_t>(h * kTokens + i)]);
      double o[kDim] = {}, from_out = 0;
      for (int64_t j = 0; j <= i; ++j) {
        for (int64_t d = 0; d < kDim; ++d) {
          o[d] += p[static_cast<size_t>(j)] / sum * v.row(j, 1, 0)[d];
        }
      }
      for (int64_t d = 0; d < kDim; ++d) {
        out_true.push_back(o[d]);
        out_is.push_back(out.row(i, kHeads, h)[d]);
        from_out += o[d] * dout.row(i, kHeads, h)[d];
      }
      const auto ds = [&](int64_t j) {
        const double dp = dot(dout.row(i, kHeads, h), v.row(j, 1, 0));
        return p[static_cast<size_t>(j)] / sum * (dp - from_out) * scale;
      };
      for (size_t c = 0; c < columns.size() && columns[c] <= i; ++c) {
        const double s = ds(columns[c]);
        for (int64_t d = 0; d < kDim; ++d) {
          const size_t at = c * kDim + static_cast<size_t>(d);
          dk_true[at] += s * q.row(i, kHeads, h)[d];
          dv_true[at] += p[static_cast<size_t>(columns[c])] / sum * dout.row(i, kHeads, h)[d];
        }
      }
      if (i % kSampled != 0) continue;
      double gradient[kDim] = {};
      for (int64_t j = 0; j <= i; ++j) {
        const double s = ds(j);
        for (int64_t d = 0; d < kDim; ++d) gradient[d] += s * k.row(j, 1, 0)[d];
      }
      for (int64_t d = 0; d < kDim; ++d) {
        dq_true.push_back(gradient[d]);
        dq_is.push_back(dq.row(i, kHeads, h)[d]);
      }
    }
  }
  std::vector<double> dk_is, dv_is;
  for (int64_t j : columns) {
    for (int64_t d = 0; d < kDim; ++d) {
      dk_is.push_back(dk.row(j, 1, 0)[d]);
      dv_is.push_back(dv.row(j, 1, 0)[d]);
    }
  }
  expect_close(out_true, out_is);
  expect_close(lse_true, lse_is);
  expect_close(dq_true, dq_is);
  expect_close(dk_true, dk_is);
  expect_close(dv_true, dv_is);
}

TEST(AttentionLong, EqualsSumsWrittenOut) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    if (row.dtype == DType::kF32) expect_sums(row);
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
