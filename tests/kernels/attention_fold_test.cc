// Folding: keys may come in any number of calls, in any order, or through attention_merge, and the
// same call gives the same bits again.
#include <algorithm>

#include "tests/kernels/attention_problem.h"

namespace longhaul::kernels::testing {
namespace {

const AttentionShape kShape{
    .q_heads = 4, .kv_heads = 2, .head_dim = 24, .value_dim = 16, .heads = {.group = 2}};
const Corpus kCorpus{.documents = {31, 170}};

Problem problem(DType dtype) {
  const Rows rows{.first = 0, .count = kCorpus.length()};
  return Problem(dtype, kShape, kCorpus, rows, rows);
}

// The same mask with every segment's keys cut at odd places.
std::vector<Segment> cut(const std::vector<Segment>& segments) {
  std::vector<Segment> result;
  for (const Segment& s : segments) {
    for (int64_t j = 0; j < s.k_len; j += 37) {
      Segment part = s;
      part.k_row += j;
      part.k_pos += j;
      part.k_len = std::min<int64_t>(37, s.k_len - j);
      part.band_hi -= j;
      if (part.band_lo != -kBandOpen) part.band_lo -= j;
      result.push_back(part);
    }
  }
  return result;
}

TEST(AttentionFold, AnySplitInAnyOrder) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(3);
    const Problem p = problem(row.dtype);
    const AttentionTruth truth = p.truth();
    std::vector<Segment> parts = cut(p.segments);
    for (int order = 0; order < 3; ++order) {
      if (order == 1) std::reverse(parts.begin(), parts.end());
      if (order == 2) {
        std::sort(parts.begin(), parts.end(), [](const Segment& a, const Segment& b) {
          return a.k_row * 7 % 11 < b.k_row * 7 % 11;
        });
      }
      const Forward f(p);
      const Backward b(p);
      rig.run([&](const Context& ctx) {
        row.init(ctx, f.out, f.lse);
        for (const Segment& part : parts) fold(ctx, row, p, {&part, 1}, f);
        row.delta(ctx, f.out, p.dout, b.delta);
        for (const Segment& part : parts) add_gradients(ctx, row, p, {&part, 1}, f, b);
      });
      expect_forward(row, truth, f);
      expect_backward(row, truth, b);
    }
  });
}

// One call may have many segments for the same rows, and all of them are folded.
TEST(AttentionFold, ManySegmentsForTheSameRows) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(3);
    Problem p = problem(row.dtype);
    const AttentionTruth truth = p.truth();
    p.segments = cut(p.segments);
    for (int order = 0; order < 2; ++order) {
      if (order == 1) std::reverse(p.segments.begin(), p.segments.end());
      const Forward f = forward(rig, row, p), f2 = forward(rig, row, p);
      expect_forward(row, truth, f);
      EXPECT_TRUE(same_bits(f.out, f2.out));
      const Backward b = backward(rig, row, p, f), b2 = backward(rig, row, p, f);
      expect_backward(row, truth, b);
      EXPECT_TRUE(same_bits(b.dq, b2.dq));
      EXPECT_TRUE(same_bits(b.dk, b2.dk));
      EXPECT_TRUE(same_bits(b.dv, b2.dv));
    }
  });
}

TEST(AttentionFold, MergeEqualsFolding) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(2);
    const Problem p = problem(row.dtype);
    const std::vector<Segment> parts = cut(p.segments);
    const Forward total(p), part(p);
    rig.run([&](const Context& ctx) {
      row.init(ctx, total.out, total.lse);
      for (const Segment& s : parts) {
        row.init(ctx, part.out, part.lse);
        fold(ctx, row, p, {&s, 1}, part);
        row.merge(ctx, part.out, part.lse, total.out, total.lse);
      }
    });
    expect_forward(row, p.truth(), total);
  });
}

// Calls for some of the heads, whose accumulators lie among those of the others; the borders cut
// through heads that share keys.
TEST(AttentionFold, SomeHeadsAtATime) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(3);
    const Problem p = problem(row.dtype);
    const AttentionTruth truth = p.truth();
    const Forward f(p);
    const Backward b(p);
    const auto heads = [&](int64_t begin) {
      return HeadMap{.q_begin = begin, .kv_begin = 0, .group = kShape.heads.group};
    };
    const std::pair<int64_t, int64_t> ranges[] = {{3, 1}, {0, 1}, {1, 2}};  // first, count
    rig.run([&](const Context& ctx) {
      row.init(ctx, f.out, f.lse);
      for (const auto& [first, count] : ranges) {
        row.forward(ctx, {.segments = p.segments,
                          .heads = heads(first),
                          .q = p.q.view().slice(1, first, count),
                          .k = p.k,
                          .v = p.v,
                          .options = p.options,
                          .out_acc = f.out.view().slice(1, first, count),
                          .lse = f.lse.view().slice(0, first, count)});
      }
      row.delta(ctx, f.out, p.dout, b.delta);
      for (const auto& [first, count] : ranges) {
        row.backward(ctx, {.segments = p.segments,
                           .heads = heads(first),
                           .q = p.q.view().slice(1, first, count),
                           .k = p.k,
                           .v = p.v,
                           .options = p.options,
                           .dout = p.dout.view().slice(1, first, count),
                           .lse = f.lse.view().slice(0, first, count),
                           .delta = b.delta.view().slice(0, first, count),
                           .dq_acc = b.dq.view().slice(1, first, count),
                           .dk_acc = b.dk,
                           .dv_acc = b.dv});
      }
    });
    expect_forward(row, truth, f);
    expect_backward(row, truth, b);
  });
}

// A call that adds no key to a row leaves its bits alone.
TEST(AttentionFold, UntouchedRowsKeepTheirBits) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(2);
    const Problem p = problem(row.dtype);
    const Forward before = forward(rig, row, p), after = forward(rig, row, p);
    // Rows 90 and 91 only.
    const Segment s{.q_row = 90,
                    .q_len = 2,
                    .k_row = 0,
                    .k_len = 31,
                    .band_lo = -kBandOpen,
                    .band_hi = kBandOpen};
    rig.run([&](const Context& ctx) { fold(ctx, row, p, {&s, 1}, after); });
    for (int64_t t = 0; t < kCorpus.length(); ++t) {
      EXPECT_EQ(same_bits(before.out.view().rows(t, 1), after.out.view().rows(t, 1)),
                t != 90 && t != 91)
          << t;
    }
  });
}

TEST(AttentionFold, RowsThatSeeNothing) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(2);
    // Queries before every key, then queries after them.
    const Corpus corpus{.documents = {200}};
    const Problem p(row.dtype, kShape, corpus, {.first = 0, .count = 150},
                    {.first = 100, .count = 100});
    const Forward f = forward(rig, row, p);
    const Backward b = backward(rig, row, p, f);
    const std::vector<double> out = values(f.out), lse = values(f.lse), dq = values(b.dq);
    for (int64_t t = 0; t < 150; ++t) {
      const bool empty = t < 100;
      EXPECT_EQ(lse[static_cast<size_t>(t)] == -std::numeric_limits<double>::infinity(), empty);
      EXPECT_EQ(out[static_cast<size_t>(t * 4 * 16)] == 0.0, empty) << t;
      const double gradient = dq[static_cast<size_t>(t * 4 * 24)];
      // Key 100 alone: softmax of one score has no gradient, but for the rounding of products.
      if (t == 100) {
        EXPECT_LT(std::abs(gradient), 16 * attention_tolerance(row));
      } else {
        EXPECT_EQ(gradient == 0.0, empty) << t;
      }
    }
  });
}

TEST(AttentionFold, RerunsAreBitIdentical) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    for (int threads : numbers_of_threads({1, 3})) {
      Rig rig(threads);
      const Problem p = problem(row.dtype);
      const Forward f = forward(rig, row, p);
      const Backward b = backward(rig, row, p, f);
      for (int rerun = 0; rerun < 5; ++rerun) {
        const Forward f2 = forward(rig, row, p);
        EXPECT_TRUE(same_bits(f.out, f2.out));
        EXPECT_TRUE(same_bits(f.lse, f2.lse));
        const Backward b2 = backward(rig, row, p, f2);
        EXPECT_TRUE(same_bits(b.dq, b2.dq));
        EXPECT_TRUE(same_bits(b.dk, b2.dk));
        EXPECT_TRUE(same_bits(b.dv, b2.dv));
      }
    }
  });
}

// Results are views into buffers of many parts.
TEST(AttentionFold, ResultsBeginAnywhere) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(2);
    const Problem p = problem(row.dtype);
    const Forward f = forward(rig, row, p);
    const Backward b = backward(rig, row, p, f);
    const DType sums = accumulator(row.dtype);
    const AtOddElement out(sums, f.out.view().shape()), lse(sums, f.lse.view().shape());
    const AtOddElement dq(sums, b.dq.view().shape()), dk(sums, b.dk.view().shape());
    const AtOddElement dv(sums, b.dv.view().shape());
    rig.run([&](const Context& ctx) {
      row.init(ctx, out, lse);
      row.forward(ctx, {.segments = p.segments,
                        .heads = p.shape.heads,
                        .q = p.q,
                        .k = p.k,
                        .v = p.v,
                        .options = p.options,
                        .out_acc = out,
                        .lse = lse});
    });
    rig.run([&](const Context& ctx) {
      row.backward(ctx, {.segments = p.segments,
                         .heads = p.shape.heads,
                         .q = p.q,
                         .k = p.k,
                         .v = p.v,
                         .options = p.options,
                         .dout = p.dout,
                         .lse = lse,
                         .delta = b.delta,
                         .dq_acc = dq,
                         .dk_acc = dk,
                         .dv_acc = dv});
    });
    EXPECT_TRUE(same_bits(f.out, out));
    EXPECT_TRUE(same_bits(f.lse, lse));
    EXPECT_TRUE(same_bits(b.dq, dq));
    EXPECT_TRUE(same_bits(b.dk, dk));
    EXPECT_TRUE(same_bits(b.dv, dv));
    const Forward part = forward(rig, row, p);
    rig.run([&](const Context& ctx) { row.merge(ctx, part.out, part.lse, out, lse); });
    rig.run([&](const Context& ctx) { row.merge(ctx, part.out, part.lse, f.out, f.lse); });
    EXPECT_TRUE(same_bits(f.out, out));
  });
}

// delta takes the output in the storage type too.
TEST(AttentionFold, DeltaOfRoundedOutput) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    Rig rig(2);
    Gapped out(row.dtype, {57, 3, 20}), dout(row.dtype, {57, 3, 20});
    fill_random(out, 5);
    fill_random(dout, 6);
    const DeviceTensor delta = poisoned(accumulator(row.dtype), {3, 57});
    rig.run([&](const Context& ctx) { row.delta(ctx, out, dout, delta); });
    const std::vector<double> o = values(out), g = values(dout);
    std::vector<double> expected(3 * 57, 0.0);
    for (size_t t = 0; t < 57; ++t) {
      for (size_t h = 0; h < 3; ++h) {
        for (size_t c = 0; c < 20; ++c) {
          expected[h * 57 + t] += o[(t * 3 + h) * 20 + c] * g[(t * 3 + h) * 20 + c];
        }
      }
    }
    expect_near(delta, expected, attention_tolerance(row), "delta");
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
