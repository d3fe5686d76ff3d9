#include "kernels/embedding.h"

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

// Tokens that repeat, so that gradients of one row come from many.
std::vector<int32_t> tokens(int64_t count, int64_t vocabulary) {
  std::vector<int32_t> result;
  for (int64_t t = 0; t < count; ++t) {
    result.push_back(
        static_cast<int32_t>(random_u64({.seed = 1, .stream = 2}, static_cast<uint64_t>(t)) %
                             static_cast<uint64_t>(vocabulary)));
  }
  return result;
}

TEST(Embedding, ForwardCopiesRows) {
  for_each_row(&Backend::embedding, [](const EmbeddingKernel& row) {
    for (int64_t count : {0, 1, 333}) {
      Rig rig(3);
      const int64_t gap = count == 333 ? Gapped::kAlignedGap : Gapped::kGap;
      Gapped table(row.dtype, {11, 70}, gap), out(row.dtype, {count, 70}, gap);
      fill_random(table, 3);
      const std::vector<int32_t> ids = tokens(count, 11);
      rig.run([&](const Context& ctx) {
        row.forward(ctx, {.tokens = integers(ids), .table = table, .out = out});
      });
      const std::vector<double> got = values(out), rows = values(table);
      for (size_t t = 0; t < ids.size(); ++t) {
        for (size_t c = 0; c < 70; ++c) {
          ASSERT_EQ(got[t * 70 + c], rows[static_cast<size_t>(ids[t]) * 70 + c]);
        }
      }
      EXPECT_TRUE(out.gaps_intact());
    }
  });
}

void expect_token_order(const EmbeddingKernel& row, int64_t count, int64_t channels,
                        int64_t gap = Gapped::kGap) {
  SCOPED_TRACE(::testing::Message() << count << " x " << channels);
  const DType acc = accumulator(row.dtype);
  const std::vector<int32_t> ids = tokens(count, 11);
  Gapped dout(row.dtype, {count, channels}, gap);
  fill_random(dout, 4);
  std::vector<DeviceTensor> results;
  for (int threads : {1, 3}) {
    Rig rig(threads);
    Gapped dtable(acc, {11, channels}, gap);
    fill_random(dtable, 5);
    std::vector<double> expected = values(dtable);
    const std::vector<double> g = values(dout);
    const auto width = static_cast<size_t>(channels);
    for (size_t t = 0; t < ids.size(); ++t) {
      for (size_t c = 0; c < width; ++c) {
        expected[static_cast<size_t>(ids[t]) * width + c] += g[t * width + c];
      }
    }
    rig.run([&](const Context& ctx) {
      row.backward(ctx, {.tokens = integers(ids), .dout = dout, .dtable = dtable});
    });
    // About 45 terms a row.
    expect_near(dtable, expected, 45 * epsilon(acc), "dtable");
    EXPECT_TRUE(dtable.gaps_intact());
    DeviceTensor dense(acc, {11, channels});
    const std::vector<double> got = values(dtable);
    set(dense, [&](int64_t i) { return got[static_cast<size_t>(i)]; });
    results.push_back(std::move(dense));
  }
  // Token order, whatever the threads.
  EXPECT_TRUE(same_bits(results[0], results[1]));
}

TEST(Embedding, BackwardAddsInTokenOrder) {
  for_each_row_and_instruction_set(&Backend::embedding, [](const EmbeddingKernel& row) {
    expect_token_order(row, 500, 70);
    expect_token_order(row, 500, 500);  // several threads' columns
    for (int64_t channels : short_lengths()) {
      for (int64_t gap : {Gapped::kGap, Gapped::kAlignedGap}) {
        expect_token_order(row, 40, channels, gap);
      }
    }
  });
}

void expect_named(int32_t bad, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error for token " << bad;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("token " + std::to_string(bad) + " at row 1 "));
  }
}

TEST(Embedding, NamesATokenOutsideTheVocabulary) {
  check_tokens(std::vector<int32_t>{0, 10, 2}, 11);
  for (int32_t bad : {-1, 11}) {
    expect_named(bad, [&] { check_tokens(std::vector<int32_t>{0, bad, 2}, 11); });
  }
}

// On CPUs an error; on devices NaN forward, nothing backward, and other tokens as ever.
TEST(Embedding, ATokenOutsideTheVocabularyDoesNotGoUnnoticed) {
  for_each_row(&Backend::embedding, [](const EmbeddingKernel& row) {
    Rig rig(1);
    for (int32_t bad : {-1, 11}) {
      const DType acc = accumulator(row.dtype);
      const DeviceTensor table = filled(row.dtype, {11, 40}, 3), ids = integers({0, bad, 2});
      const DeviceTensor out = poisoned(row.dtype, {3, 40}), dtable(acc, {11, 40});
      const DeviceTensor dout = filled(row.dtype, {3, 40}, 2);
      const auto forward = [&] {
        rig.run([&](const Context& ctx) {
          row.forward(ctx, {.tokens = ids, .table = table, .out = out});
        });
      };
      const auto backward = [&] {
        rig.run([&](const Context& ctx) {
          row.backward(ctx, {.tokens = ids, .dout = dout, .dtable = dtable});
        });
      };
      if (test_device() == kCpu) {
        expect_named(bad, forward);
        expect_named(bad, backward);
        continue;
      }
      forward();
      backward();
      const std::vector<double> rows = values(out), gradients = values(dtable);
      for (size_t i = 0; i < rows.size(); ++i) {
        if (i / 40 == 1) {
          EXPECT_TRUE(std::isnan(rows[i])) << i;
        } else {
          EXPECT_EQ(rows[i], 3) << i;
        }
      }
      for (size_t i = 0; i < gradients.size(); ++i) {
        EXPECT_EQ(gradients[i], i / 40 == 0 || i / 40 == 2 ? 2 : 0) << i;
      }
    }
  });
}

// More tokens than are noted at a time, and most of them the same; a vocabulary of more rows than
// blocks.
TEST(Embedding, BackwardOfManyTokens) {
  for_each_row(&Backend::embedding, [](const EmbeddingKernel& row) {
    constexpr int64_t kVocabulary = 600, kTokens = 1700, kWidth = 24;
    std::vector<int32_t> ids = tokens(kTokens, kVocabulary);
    for (size_t t = 0; t < ids.size(); ++t) ids[t] = t % 3 == 0 ? ids[t] : 599;
    const DeviceTensor dout = random(row.dtype, {kTokens, kWidth}, 1);
    const DeviceTensor dtable(accumulator(row.dtype), {kVocabulary, kWidth});
    Rig(2).run([&](const Context& ctx) {
      row.backward(ctx, {.tokens = integers(ids), .dout = dout, .dtable = dtable});
    });
    const std::vector<double> g = values(dout);
    // In token order and in the accumulator: the same bits.
    visit_float(row.dtype, [&]<class T>() {
      using A = Accumulator<T>;
      std::vector<A> expected(kVocabulary * kWidth);
      for (size_t i = 0; i < g.size(); ++i) {
        expected[static_cast<size_t>(ids[i / kWidth]) * kWidth + i % kWidth] +=
            static_cast<A>(g[i]);
      }
      const std::vector<double> got = values(dtable);
      for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], static_cast<double>(expected[i]));
    });
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
