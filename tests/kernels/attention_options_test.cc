// Soft-cap, bias and dropout: every row of every table against the truth, and that dropout depends
// on nothing but key, head and positions.
#include <algorithm>
#include <functional>

#include "tests/kernels/attention_problem.h"
#include "tests/kernels/instruction_sets.h"

namespace longhaul::kernels::testing {
namespace {

constexpr int64_t kHeads = 4;
const AttentionShape kShape{.q_heads = kHeads,
                            .kv_heads = 2,
                            .head_dim = 24,
                            .value_dim = 18,
                            .heads = {.q_begin = 4, .kv_begin = 2, .group = 2}};
constexpr Dropout kDropout{.probability = 0.3, .key = {.seed = 0x123456789abcdefu, .stream = 77}};

Rows all(const Corpus& corpus) { return {.first = 0, .count = corpus.length()}; }

DeviceTensor slopes() {
  DeviceTensor x(DType::kF32, {kHeads});
  set(x, [](int64_t h) { return std::ldexp(0.1, static_cast<int>(-h)); });
  return x;
}

// Every option alone, and all of them.
struct Choice {
  std::string name;
  bool cap, bias, dropout;
};
const std::vector<Choice>& choices() {
  static const std::vector<Choice> list{{"soft-cap", true, false, false},
                                        {"bias", false, true, false},
                                        {"dropout", false, false, true},
                                        {"all", true, true, true}};
  return list;
}

Problem problem(DType dtype, const Choice& choice, const DeviceTensor& slopes, const Corpus& corpus,
                const Rows& queries, const Rows& keys) {
  Problem p(dtype, kShape, corpus, queries, keys);
  // Scores are about 1 in size: the cap bends them all.
  if (choice.cap) p.options.soft_cap = 1.5;
  if (choice.bias) p.options.bias_slopes = slopes;
  if (choice.dropout) p.options.dropout = kDropout;
  return p;
}

void expect_options(const AttentionKernel& row, const Corpus& corpus, const Rows& queries,
                    const Rows& keys, int threads) {
  const DeviceTensor s = slopes();
  for (const Choice& choice : choices()) {
    SCOPED_TRACE(choice.name);
    Rig rig(threads);
    const Problem p = problem(row.dtype, choice, s, corpus, queries, keys);
    const AttentionTruth truth = p.truth();
    const Forward f = forward(rig, row, p);
    expect_forward(row, truth, f);
    expect_backward(row, truth, backward(rig, row, p, f));
  }
}

TEST(AttentionOptions, EveryMask) {
  const Corpus causal{.documents = {193}}, full{.documents = {130}, .causal = false};
  const Corpus window{.documents = {210}, .window = 37}, packed{.documents = {3, 70, 1, 97}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    for (const Corpus& corpus : {causal, full, window, packed}) {
      expect_options(row, corpus, all(corpus), all(corpus), 3);
    }
    // Stripes, as ranks hold them, and a neighbour's keys.
    expect_options(row, causal, {.first = 2, .count = 48, .stride = 4},
                   {.first = 3, .count = 47, .stride = 4}, 1);
    expect_options(row, window, {.first = 1, .count = 69, .stride = 3},
                   {.first = 2, .count = 69, .stride = 3}, 2);
    expect_options(row, window, {.first = 128, .count = 82}, {.first = 61, .count = 67}, 1);
  });
}

// Long enough for blocks of several panels and tiles of several steps.
TEST(AttentionOptions, LargeBlocks) {
  const Corpus corpus{.documents = {601}};
  const Choice every = choices().back();
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    const DeviceTensor s = slopes();
    Rig rig(2);
    const Problem p = problem(row.dtype, every, s, corpus, all(corpus), all(corpus));
    const AttentionTruth truth = p.truth();
    const Forward f = forward(rig, row, p);
    expect_forward(row, truth, f);
    expect_backward(row, truth, backward(rig, row, p, f));
  });
}

TEST(AttentionOptions, EveryInstructionSet) {
  const Corpus corpus{.documents = {30, 120}, .window = 70};
  for_each_row_and_instruction_set(&Backend::attention, [&](const AttentionKernel& row) {
    expect_options(row, corpus, all(corpus), all(corpus), 2);
  });
}

// A whole call and its parts drop the same elements, or both could not agree with the truth.
TEST(AttentionOptions, DropoutDoesNotDependOnCalls) {
  const Corpus corpus{.documents = {101}};
  const Choice every = choices().back();
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    const DeviceTensor s = slopes();
    Rig rig(2);
    const Problem p = problem(row.dtype, every, s, corpus, all(corpus), all(corpus));
    const AttentionTruth truth = p.truth();
    const Segment whole = p.segments.at(0);
    const auto keys_of = [&](int64_t begin, int64_t end) {
      Segment part = whole;
      part.k_row = begin;
      part.k_pos += begin;
      part.k_len = end - begin;
      part.band_hi -= begin;
      return part;
    };
    const auto queries_of = [&](int64_t begin, int64_t end) {
      Segment part = whole;
      part.q_row = begin;
      part.q_pos += begin;
      part.q_len = end - begin;
      part.band_hi += begin;
      return part;
    };
    for (const std::vector<Segment>& calls :
         {std::vector<Segment>{keys_of(0, 45), keys_of(45, 101)},
          std::vector<Segment>{queries_of(0, 38), queries_of(38, 101)}}) {
      const Forward f(p);
      const Backward b(p);
      rig.run([&](const Context& ctx) {
        row.init(ctx, f.out, f.lse);
        for (const Segment& call : calls) fold(ctx, row, p, {&call, 1}, f);
        row.delta(ctx, f.out, p.dout, b.delta);
        for (const Segment& call : calls) add_gradients(ctx, row, p, {&call, 1}, f, b);
      });
      expect_forward(row, truth, f);
      expect_backward(row, truth, b);
    }
  });
}

// Far from the origin, where positions need more than 32 bits.
TEST(AttentionOptions, DistantPositions) {
  constexpr int64_t kFar = (int64_t{5} << 32) + 3;
  constexpr int64_t kTokens = 40;
  const Corpus corpus{.documents = {kTokens}, .causal = false};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    Rig rig(1);
    Problem p(row.dtype, kShape, corpus, all(corpus), all(corpus));
    p.options.dropout = kDropout;
    p.options.scale = 0;
    // All probabilities are 1/40 and all values 1, so that out counts the keys that are kept: one
    // more or less would change it by 0.036.
    set(p.v, [](int64_t) { return 1.0; });
    p.segments.at(0).q_pos = kFar;
    p.segments.at(0).k_pos = 2 * kFar;
    const std::vector<double> out = values(forward(rig, row, p).out);
    for (int64_t i = 0; i < kTokens; ++i) {
      for (int64_t h = 0; h < kHeads; ++h) {
        int64_t kept = 0;
        for (int64_t j = 0; j < kTokens; ++j) {
          kept += is_kept(kDropout, kShape.heads.q_begin + h, kFar + i, 2 * kFar + j);
        }
        EXPECT_NEAR(out[static_cast<size_t>((i * kHeads + h) * kShape.value_dim)],
                    static_cast<double>(kept) / kTokens / (1 - kDropout.probability), 0.01);
      }
    }
  });
}

TEST(AttentionOptions, KeepRate) {
  constexpr int64_t kRows = 200;
  for (double probability : {0.0, 0.1, 0.5, 0.9}) {
    const Dropout dropout{.probability = probability, .key = kDropout.key};
    int64_t kept = 0;
    for (int64_t q = 0; q < kRows; ++q) {
      for (int64_t k = 0; k < kRows; ++k) {
        const uint32_t word = dropout_word(dropout_stream(dropout.key, 3), q, k);
        const bool keep = word >= dropout_threshold(probability);
        EXPECT_EQ(keep, is_kept(dropout, 3, q, k));
        kept += keep;
      }
    }
    // 5 standard errors.
    constexpr auto kDraws = static_cast<double>(kRows * kRows);
    EXPECT_NEAR(static_cast<double>(kept) / kDraws, 1 - probability,
                5 * std::sqrt(probability * (1 - probability) / kDraws));
  }
  EXPECT_EQ(dropout_threshold(0x1p-32), 1u);
  EXPECT_EQ(dropout_threshold(0x1.8p-32), 2u);
  EXPECT_EQ(dropout_threshold(1 - 0x1p-40), uint64_t{1} << 32);
}

// Heads, neighbouring queries and keys, and keys drop different elements.
TEST(AttentionOptions, DropoutOfOthersDiffers) {
  constexpr int64_t kDraws = 10000;
  const RandomKey here = dropout_stream(kDropout.key, 0);
  const uint64_t threshold = dropout_threshold(0.5);
  const std::vector<std::function<uint32_t(int64_t)>> others{
      [&](int64_t n) { return dropout_word(dropout_stream(kDropout.key, 1), n / 100, n % 100); },
      [&](int64_t n) { return dropout_word(here, n / 100 + 1, n % 100); },
      [&](int64_t n) { return dropout_word(here, n / 100, n % 100 + 1); },
      [&](int64_t n) { return dropout_word(here, n % 100, n / 100); },
      [&](int64_t n) {
        const RandomKey next{.seed = kDropout.key.seed, .stream = kDropout.key.stream + 1};
        return dropout_word(dropout_stream(next, 0), n / 100, n % 100);
      }};
  for (const auto& other : others) {
    int64_t equal = 0;
    for (int64_t n = 0; n < kDraws; ++n) {
      equal += (dropout_word(here, n / 100, n % 100) < threshold) == (other(n) < threshold);
    }
    EXPECT_NEAR(static_cast<double>(equal) / kDraws, 0.5, 5 * 0.5 / std::sqrt(kDraws));
  }
}

// What is not asked for changes no bit: slopes of 0 need the general instance, which agrees.
TEST(AttentionOptions, NothingAskedForIsPlain) {
  const Corpus corpus{.documents = {30, 120}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    Rig rig(2);
    const Problem plain(row.dtype, kShape, corpus, all(corpus), all(corpus));
    Problem zero(row.dtype, kShape, corpus, all(corpus), all(corpus));
    zero.options.soft_cap = 0;
    zero.options.dropout = {.probability = 0, .key = kDropout.key};
    EXPECT_TRUE(zero.options.plain());
    const Forward f = forward(rig, row, plain), g = forward(rig, row, zero);
    EXPECT_TRUE(same_bits(f.out, g.out));
    EXPECT_TRUE(same_bits(f.lse, g.lse));
    const Backward b = backward(rig, row, plain, f), c = backward(rig, row, zero, g);
    EXPECT_TRUE(same_bits(b.dq, c.dq));
    EXPECT_TRUE(same_bits(b.dk, c.dk));
    EXPECT_TRUE(same_bits(b.dv, c.dv));
    const DeviceTensor no_slopes = filled(DType::kF32, {kHeads}, 0);
    zero.options.bias_slopes = no_slopes;
    EXPECT_FALSE(zero.options.plain());
    const AttentionTruth truth = plain.truth();
    const Forward general = forward(rig, row, zero);
    expect_forward(row, truth, general);
    expect_backward(row, truth, backward(rig, row, zero, general));
  });
}

TEST(AttentionOptions, RerunsAreBitIdentical) {
  const Corpus corpus{.documents = {30, 120}};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    const DeviceTensor s = slopes();
    Rig rig(3);
    const Problem p = problem(row.dtype, choices().back(), s, corpus, all(corpus), all(corpus));
    const Forward f = forward(rig, row, p), f2 = forward(rig, row, p);
    const Backward b = backward(rig, row, p, f), b2 = backward(rig, row, p, f2);
    EXPECT_TRUE(same_bits(f.out, f2.out));
    EXPECT_TRUE(same_bits(b.dq, b2.dq));
    EXPECT_TRUE(same_bits(b.dk, b2.dk));
    EXPECT_TRUE(same_bits(b.dv, b2.dv));
  });
}

// sum(out * g) along random directions, by central differences of the f64 row.
TEST(AttentionOptions, FiniteDifferences) {
  const Corpus corpus{.documents = {21, 50}, .window = 33};
  for_each_row(&Backend::attention, [&](const AttentionKernel& row) {
    const DeviceTensor s = slopes();
    if (row.dtype != DType::kF64) return;
    Rig rig(2);
    for (const Choice& choice : choices()) {
      SCOPED_TRACE(choice.name);
      const Problem p = problem(row.dtype, choice, s, corpus, all(corpus), all(corpus));
      const std::vector<double> g = values(p.dout);
      const auto loss = [&](int operand, double step) {
        const Problem moved = problem(row.dtype, choice, s, corpus, all(corpus), all(corpus));
        const TensorView x =
            std::vector<TensorView>{moved.q, moved.k, moved.v}[static_cast<size_t>(operand)];
        const std::vector<double> base = values(x);
        const std::vector<double> along = values(random(DType::kF64, x.shape(), 9));
        set(x, [&](int64_t n) {
          return base[static_cast<size_t>(n)] + step * along[static_cast<size_t>(n)];
        });
        const std::vector<double> out = values(forward(rig, row, moved).out);
        return std::inner_product(out.begin(), out.end(), g.begin(), 0.0);
      };
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
    }
  });
}

// A NaN in a key shows in the queries that see it, soft-capped or not.
TEST(AttentionOptions, NanIsNotCapped) {
  const Corpus corpus{.documents = {80}};
  for_each_row_and_instruction_set(&Backend::attention, [&](const AttentionKernel& row) {
    const DeviceTensor s = slopes();
    Rig rig(1);
    const Problem p = problem(row.dtype, choices().front(), s, corpus, all(corpus), all(corpus));
    set(p.k.view().rows(50, 1), [](int64_t) { return std::nan(""); });
    const std::vector<double> lse = values(forward(rig, row, p).lse);
    for (int64_t i = 0; i < 80; ++i) {
      EXPECT_EQ(std::isnan(lse[static_cast<size_t>(i)]), i >= 50) << i;
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
