// Attention, every row of every table, against the truth: forward and backward over masks, shapes,
// head maps, threads and instruction sets.
#include "kernels/attention.h"

#include <algorithm>

#include "tests/kernels/attention_problem.h"
#include "tests/kernels/instruction_sets.h"

namespace longhaul::kernels::testing {
namespace {

struct Mask {
  std::string name;
  Corpus corpus;
  Rows queries, keys;
};

Rows all(const Corpus& corpus) { return {.first = 0, .count = corpus.length()}; }

std::vector<Mask> masks() {
  const Corpus causal{.documents = {211}};
  const Corpus full{.documents = {150}, .causal = false};
  const Corpus window{.documents = {257}, .window = 37};
  const Corpus packed{.documents = {3, 70, 1, 1, 64, 13, 97}};
  const Corpus packed_window{.documents = {90, 2, 131}, .window = 19};
  std::vector<Mask> result{
      {"causal", causal, all(causal), all(causal)},
      {"full", full, all(full), all(full)},
      {"window", window, all(window), all(window)},
      {"packed", packed, all(packed), all(packed)},
      {"packed window", packed_window, all(packed_window), all(packed_window)},
      // Parts of a sequence, as ranks hold them.
      {"later queries, all keys", causal, {.first = 130, .count = 81}, all(causal)},
      {"earlier queries: most rows see nothing",
       causal,
       {.first = 0, .count = 100},
       {.first = 60, .count = 150}},
      {"keys of a neighbour in a window",
       window,
       {.first = 128, .count = 129},
       {.first = 64, .count = 64}},
      {"stripes",
       causal,
       {.first = 2, .count = 53, .stride = 4},
       {.first = 3, .count = 52, .stride = 4}},
      {"striped window",
       window,
       {.first = 1, .count = 86, .stride = 3},
       {.first = 2, .count = 85, .stride = 3}},
      {"packed stripes",
       packed,
       {.first = 0, .count = 125, .stride = 2},
       {.first = 1, .count = 124, .stride = 2}},
      {"one query", full, {.first = 7, .count = 1}, all(full)},
      {"one key", full, all(full), {.first = 9, .count = 1}},
      {"nothing visible", causal, {.first = 0, .count = 20}, {.first = 30, .count = 20}},
      {"no queries", causal, {.first = 0, .count = 0}, all(causal)},
      {"no keys", causal, all(causal), {.first = 0, .count = 0}},
  };
  // Hundreds of tiny documents in one call.
  Corpus tiny;
  for (int n = 0; n < 200; ++n) tiny.documents.push_back(1 + n % 3);
  result.push_back({"tiny documents", tiny, all(tiny), all(tiny)});
  return result;
}

const AttentionShape kPlain{
    .q_heads = 2, .kv_heads = 2, .head_dim = 16, .value_dim = 16, .heads = {}};

void expect_row(const AttentionKernel& row, const AttentionShape& shape, const Mask& mask,
                int threads, int64_t gap = Gapped::kAlignedGap) {
  SCOPED_TRACE(mask.name + ", threads " + std::to_string(threads));
  if (!row.supports(shape.head_dim, shape.value_dim)) {
    // Only rows of pairs may leave shapes to others.
    EXPECT_NE(row.products, accumulator(row.dtype));
    return;
  }
  Rig rig(threads);
  const Problem p(row.dtype, shape, mask.corpus, mask.queries, mask.keys, gap);
  const AttentionTruth truth = p.truth();
  const Forward f = forward(rig, row, p);
  expect_forward(row, truth, f);
  expect_backward(row, truth, backward(rig, row, p, f));
}

TEST(Attention, EveryMask) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    for (const Mask& mask : masks()) {
      for (int threads : numbers_of_threads({1, 3})) expect_row(row, kPlain, mask, threads);
    }
  });
}

// Long enough for blocks of several panels and tiles of several steps. Small heads keep the truth
// quick; on CPUs there are as many as make large blocks.
TEST(Attention, LargeBlocks) {
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    const int64_t heads = test_device().kind == DeviceKind::kCpu ? 4 : 1;
    const AttentionShape shape{
        .q_heads = heads, .kv_heads = heads, .head_dim = 4, .value_dim = 5, .heads = {}};
    for (const Corpus& corpus :
         {Corpus{.documents = {701}}, Corpus{.documents = {410, 3, 320}},
          Corpus{.documents = {650}, .window = 201}, Corpus{.documents = {613}, .causal = false}}) {
      expect_row(row, shape, {"large", corpus, all(corpus), all(corpus)}, 1);
    }
  });
}

TEST(Attention, EveryHeadDimension) {
  const Corpus corpus{.documents = {40, 93}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    for (const auto& [d, e] : std::vector<std::pair<int64_t, int64_t>>{{16, 16},
                                                                       {32, 32},
                                                                       {64, 64},
                                                                       {96, 96},
                                                                       {128, 128},
                                                                       {40, 40},
                                                                       {1, 1},
                                                                       {64, 32},
                                                                       {24, 71},
                                                                       {192, 128}}) {
      SCOPED_TRACE(std::to_string(d) + ", " + std::to_string(e));
      const AttentionShape shape{
          .q_heads = 2, .kv_heads = 1, .head_dim = d, .value_dim = e, .heads = {.group = 2}};
      const Mask mask{"packed", corpus, all(corpus), all(corpus)};
      expect_row(row, shape, mask, 2);
      // Rows that no vector can be loaded from at once.
      if (d == 40 || d == 64) expect_row(row, shape, mask, 2, Gapped::kGap);
    }
  });
}

TEST(Attention, GroupedHeads) {
  const Corpus corpus{.documents = {97}};
  const Mask mask{"causal", corpus, all(corpus), all(corpus)};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    for (const AttentionShape& shape : std::vector<AttentionShape>{
             {8, 2, 16, 16, {.group = 4}},
             {8, 1, 16, 16, {.group = 8}},
             {5, 5, 16, 16, {.group = 1}},
             // Heads 3 to 7 of a model with groups of 4, with kv heads 0 and 1.
             {5, 2, 16, 16, {.q_begin = 3, .kv_begin = 0, .group = 4}},
             // Heads 6 and 7, with kv heads 1 to 3, of which two are not used.
             {2, 3, 16, 16, {.q_begin = 6, .kv_begin = 1, .group = 4}}}) {
      SCOPED_TRACE(std::to_string(shape.q_heads) + "/" + std::to_string(shape.kv_heads));
      for (int threads : numbers_of_threads({1, 4})) expect_row(row, shape, mask, threads);
    }
  });
}

// The vector code of every instruction set that this machine can run, not only of the best one.
TEST(Attention, EveryInstructionSet) {
  const Corpus corpus{.documents = {30, 120}, .window = 70};
  const Mask mask{"packed window", corpus, all(corpus), all(corpus)};
  const AttentionShape shape{
      .q_heads = 4, .kv_heads = 2, .head_dim = 40, .value_dim = 48, .heads = {.group = 2}};
  for_each_row_and_instruction_set(
      &Backend::attention, [&](const AttentionKernel& row) { expect_row(row, shape, mask, 2); });
}

// sum(out * g) along random directions, by central differences of the f64 row.
TEST(Attention, FiniteDifferences) {
  const Corpus corpus{.documents = {21, 50}, .window = 33};
  const AttentionShape shape{
      .q_heads = 2, .kv_heads = 1, .head_dim = 12, .value_dim = 20, .heads = {.group = 2}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    if (row.dtype != DType::kF64) return;
    Rig rig(2);
    const auto loss = [&](int operand, double step) {
      Problem p(row.dtype, shape, corpus, all(corpus), all(corpus));
      const TensorView x = std::vector<TensorView>{p.q, p.k, p.v}[static_cast<size_t>(operand)];
      const std::vector<double> base = values(x), along = values(random(DType::kF64, x.shape(), 9));
      set(x, [&](int64_t n) {
        return base[static_cast<size_t>(n)] + step * along[static_cast<size_t>(n)];
      });
      const std::vector<double> out = values(forward(rig, row, p).out), g = values(p.dout);
      double sum = 0;
      for (size_t n = 0; n < out.size(); ++n) sum += out[n] * g[n];
      return sum;
    };
    const Problem p(row.dtype, shape, corpus, all(corpus), all(corpus));
    const Backward b = backward(rig, row, p, forward(rig, row, p));
    for (int operand : {0, 1, 2}) {
      const DeviceTensor& gradient = operand == 0 ? b.dq : operand == 1 ? b.dk : b.dv;
      const std::vector<double> along = values(random(DType::kF64, gradient.shape(), 9));
      const std::vector<double> got = values(gradient);
      double expected = 0, size = 0;
      for (size_t n = 0; n < got.size(); ++n) {
        expected += got[n] * along[n];
        size += std::abs(got[n] * along[n]);
      }
      // Truncation is of order h^2, cancellation of order eps / h.
      constexpr double kStep = 1e-5;
      EXPECT_NEAR((loss(operand, kStep) - loss(operand, -kStep)) / (2 * kStep), expected,
                  1e-8 * size);
    }
  });
}

void expect_large_scores(const AttentionKernel& row, const Problem& p, double largest) {
  Rig rig(1);
  const AttentionTruth truth = p.truth();
  const Forward f = forward(rig, row, p);
  // Errors of scores are relative, and become errors of out.
  const double of_scores = 4 * largest * epsilon(accumulator(row.dtype));
  const double tolerance = of_scores + attention_tolerance(row);
  expect_near(f.out, truth.out, tolerance, "out");
  expect_near(f.lse, truth.lse, of_scores + attention_tolerance(row.dtype), "lse");
  expect_near(backward(rig, row, p, f).dv, truth.dv, tolerance, "dv");
}

// Scores far beyond the range of exp; the largest ones decide.
TEST(Attention, LargeScores) {
  const Corpus corpus{.documents = {80}};
  for_each_row_and_instruction_set(&Backend::attention, [&](const AttentionKernel& row) {
    for (double scale : {3.0, 10.0, 20.0, 40.0, 80.0, 300.0, -20.0, -300.0}) {
      SCOPED_TRACE("scale " + std::to_string(scale));
      Problem p(row.dtype, kPlain, corpus, all(corpus), all(corpus));
      p.options.scale = scale;
      expect_large_scores(row, p, 25 * std::abs(scale));
    }
  });
}

// Every row sees one score beyond or almost beyond the range of exp, while the others alone would
// make a harmless sum.
TEST(Attention, OneLargeScore) {
  const Corpus corpus{.documents = {80}};
  for_each_row_and_instruction_set(&Backend::attention, [&](const AttentionKernel& row) {
    for (double score :
         {40.0,  68.0,  80.0,  88.0,  88.7,  89.0,  90.0,  104.0, 120.0,  150.0, 177.0,
          178.0, 300.0, 600.0, 708.0, 709.7, 710.0, 745.0, 900.0, 1500.0, 1e5}) {
      SCOPED_TRACE("score " + std::to_string(score));
      Problem p(row.dtype, kPlain, corpus, all(corpus), all(corpus));
      const int64_t of_a_token = kPlain.q_heads * kPlain.head_dim;
      set(p.q, [](int64_t) { return 1; });
      set(p.k, [&](int64_t i) { return i < of_a_token ? 1 : 0; });
      p.options.scale = score / static_cast<double>(kPlain.head_dim);
      expect_large_scores(row, p, score);
    }
  });
}

// Row i of head h of a [T, 2, 16] tensor holds a NaN.
bool has_nan(const DeviceTensor& x, int64_t i, int64_t h) {
  const std::vector<double> row = values(x.view().rows(i, 1).slice(1, h, 1));
  return std::any_of(row.begin(), row.end(), [](double v) { return std::isnan(v); });
}

// A NaN in a key shows in the rows that see it, however many others there are, and in no other.
TEST(Attention, NanInAKey) {
  const Corpus corpus{.documents = {300}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    Rig rig(1);
    const Problem p(row.dtype, kPlain, corpus, all(corpus), all(corpus));
    set(p.k.view().rows(150, 1).slice(1, 1, 1), [](int64_t) { return std::nan(""); });
    const Forward f = forward(rig, row, p);
    for (int64_t i = 0; i < 300; ++i) {
      EXPECT_FALSE(has_nan(f.out, i, 0)) << i;
      EXPECT_EQ(has_nan(f.out, i, 1), i >= 150) << i;
    }
  });
}

// A masked gradient is selected away, not multiplied by P = 0.
TEST(Attention, NanInAValueAndBackward) {
  const Corpus corpus{.documents = {300}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    Rig rig(1);
    const Problem p(row.dtype, kPlain, corpus, all(corpus), all(corpus));
    const Forward f = forward(rig, row, p);
    set(p.v.view().rows(150, 1).slice(1, 1, 1), [](int64_t) { return std::nan(""); });
    const Backward b = backward(rig, row, p, f);
    for (int64_t i = 0; i < 300; ++i) {
      EXPECT_FALSE(has_nan(b.dq, i, 0)) << i;
      EXPECT_EQ(has_nan(b.dq, i, 1), i >= 150) << i;
    }
  });
}

// On CPUs transfers must progress within a long call also when it is a single task; on devices a
// call returns at once.
TEST(Attention, PollsWithinLongTasks) {
  const Corpus corpus{.documents = {6000}, .causal = false};
  const AttentionShape shape{
      .q_heads = 1, .kv_heads = 1, .head_dim = 64, .value_dim = 64, .heads = {}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    if (test_device().kind != DeviceKind::kCpu) return;
    Rig rig(1);
    int polls = 0;
    rig.poll = [&] { ++polls; };
    const Problem p(row.dtype, shape, corpus, {.first = 0, .count = 64}, all(corpus));
    forward(rig, row, p);
    // One after the task, the rest within it: 64 * 6000 * 128 multiply-adds.
    EXPECT_GT(polls, 1);
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
