#include "launch/data/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "kernels/core/error.h"
#include "kernels/core/random.h"
#include "launch/data/token_file_writer.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SampleOrder, EveryEpochVisitsEveryWindowOnce) {
  for (const int64_t windows : {1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 65, 1000, 4097}) {
    for (const uint64_t seed : {1, 2}) {
      const SampleOrder order(windows * 3 + 2, 3, seed);
      ASSERT_EQ(order.samples_per_epoch(), windows);
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        std::set<int64_t> begins;
        for (int64_t i = 0; i < windows; ++i) {
          const int64_t begin = order.begin(epoch * windows + i);
          ASSERT_EQ(begin % 3, 0);
          ASSERT_GE(begin, 0);
          ASSERT_LT(begin, windows * 3);
          begins.insert(begin);
        }
        ASSERT_EQ(static_cast<int64_t>(begins.size()), windows) << seed << " " << epoch;
      }
    }
  }
}

std::vector<int64_t> begins(const SampleOrder& order, int64_t from, int64_t count) {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < count; ++i) result.push_back(order.begin(from + i));
  return result;
}

TEST(SampleOrder, DependsOnSeedAndEpochAndNothingElse) {
  const SampleOrder one(1000, 10, 1), same(1009, 10, 1), other(1000, 10, 2);
  EXPECT_EQ(begins(one, 0, 300), begins(same, 0, 300));
  EXPECT_NE(begins(one, 0, 100), begins(other, 0, 100));
  EXPECT_NE(begins(one, 0, 100), begins(one, 100, 100));
}

// Which window comes first should be uniform over seeds: chi-squared with 6 degrees of freedom
// exceeds 22.5 with a probability of 0.001, and the seeds are fixed.
TEST(SampleOrder, IsUniformAlsoForFewWindows) {
  for (const int64_t place : {0, 3, 6}) {
    std::vector<int> counts(7, 0);
    constexpr int kSeeds = 7000;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      ++counts[static_cast<size_t>(SampleOrder(7, 1, seed).begin(place))];
    }
    double chi = 0;
    for (const int count : counts) chi += std::pow(count - kSeeds / 7.0, 2) / (kSeeds / 7.0);
    EXPECT_LT(chi, 22.5) << place;
  }
}

// Written down so that a change of the order, which would change resumed runs, does not go
// unnoticed.
TEST(SampleOrder, NeverChanges) {
  EXPECT_THAT(begins(SampleOrder(10, 1, 1), 0, 20),
              ElementsAre(0, 1, 7, 4, 8, 5, 6, 2, 9, 3, 9, 5, 2, 3, 0, 8, 1, 6, 7, 4));
}

TEST(SampleOrder, HugeCorpora) {
  const SampleOrder order((int64_t{1} << 62) - 1, 1, 9);
  std::set<int64_t> seen;
  for (int64_t i = 0; i < 1000; ++i) seen.insert(order.begin((int64_t{1} << 61) + i));
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_GE(*seen.begin(), 0);
}

TEST(SampleOrder, ImpossibleSizes) {
  EXPECT_THROW(SampleOrder(10, 0, 1), Error);
  EXPECT_THROW(SampleOrder(10, -1, 1), Error);
  EXPECT_THROW(SampleOrder(10, 11, 1), Error);
  EXPECT_EQ(SampleOrder(10, 10, 1).begin(5), 0);
}

// Token i of the corpus is i + 1.
TokenFile corpus(const TempFolder& folder, const std::vector<int64_t>& lengths) {
  TokenFileWriter writer(folder / "c", 1000);
  int32_t next = 1;
  for (const int64_t length : lengths) {
    std::vector<int32_t> document(static_cast<size_t>(length));
    std::iota(document.begin(), document.end(), next);
    next += static_cast<int32_t>(length);
    writer.append(document);
  }
  writer.finish();
  return TokenFile::open(folder / "c");
}

// The sample whose tokens begin with `token`.
Sample sample_at(const DataLoader& loader, int32_t token) {
  for (int64_t i = 0; i < loader.samples_per_epoch(); ++i) {
    Sample sample = loader.load(i);
    if (sample.tokens.front() == token) return sample;
  }
  ADD_FAILURE() << "no sample begins with " << token;
  return {};
}

TEST(HeldOut, IsATailOfAtLeastASample) {
  const auto begins_at = [](double fraction, int64_t length) {
    const Split tail = held_out(1000, fraction, length);
    EXPECT_EQ(tail.end, 1000);
    return tail.begin;
  };
  EXPECT_EQ(begins_at(0.25, 250), 750);
  EXPECT_EQ(begins_at(0.25, 251), 1000);
  EXPECT_EQ(begins_at(0, 1), 1000);
}

TEST(DataLoader, LabelsEndWithDocuments) {
  const TempFolder folder;
  const TokenFile file = corpus(folder, {3, 1, 7, 0, 2});
  const DataLoader loader(file, {0, file.tokens()}, 6, 1);
  ASSERT_EQ(loader.samples_per_epoch(), 2);
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(loader.documents(i), loader.load(i).documents);
  const Sample first = sample_at(loader, 1);
  EXPECT_THAT(first.tokens, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(first.labels, ElementsAre(2, 3, -1, -1, 6, 7));  // the last from outside the window
  EXPECT_THAT(first.documents.begins(), ElementsAre(0, 3, 4));
  EXPECT_EQ(first.targets, 4);
  const Sample second = sample_at(loader, 7);
  EXPECT_THAT(second.tokens, ElementsAre(7, 8, 9, 10, 11, 12));
  EXPECT_THAT(second.labels, ElementsAre(8, 9, 10, 11, -1, 13));
  EXPECT_THAT(second.documents.begins(), ElementsAre(0, 5));  // the first straddles the border
  EXPECT_EQ(second.targets, 5);
}

TEST(DataLoader, APrefixIsNotPredicted) {
  const TempFolder folder;
  const TokenFile file = corpus(folder, {3, 1, 7, 0, 2});
  const DataLoader loader(file, {0, file.tokens()}, 6, 1, 3);
  const Sample first = sample_at(loader, 1);
  // Token 3 ends its document; 6 is the second of a document of which the sample has two.
  EXPECT_THAT(first.labels, ElementsAre(-1, -1, -1, -1, -1, 7));
  EXPECT_EQ(first.targets, 1);
  const Sample second = sample_at(loader, 7);
  EXPECT_THAT(second.labels, ElementsAre(-1, -1, 10, 11, -1, 13));
  EXPECT_EQ(second.targets, 3);
}

TEST(DataLoader, ASplitEndsTheLabels) {
  const TempFolder folder;
  const TokenFile file = corpus(folder, {20});
  const DataLoader loader(file, {4, 16}, 4, 3);
  ASSERT_EQ(loader.samples_per_epoch(), 3);
  EXPECT_THAT(sample_at(loader, 5).labels, ElementsAre(6, 7, 8, 9));
  EXPECT_THAT(sample_at(loader, 13).labels, ElementsAre(14, 15, 16, -1));
  const DataLoader longer(file, {4, 17}, 4, 3);
  EXPECT_THAT(sample_at(longer, 13).labels, ElementsAre(14, 15, 16, 17));
}

TEST(DataLoader, MatchesADirectReadingOfRandomCorpora) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const TempFolder folder;
    uint64_t counter = 0;
    const auto next = [&](int64_t n) {
      return static_cast<int64_t>(random_u64({seed, 7}, counter++) % static_cast<uint64_t>(n));
    };
    std::vector<int64_t> lengths{9};
    for (int64_t i = next(30); i > 0; --i) lengths.push_back(next(9));
    const TokenFile file = corpus(folder, lengths);
    std::vector<int64_t> document_of;
    for (size_t d = 0; d < lengths.size(); ++d) {
      document_of.insert(document_of.end(), static_cast<size_t>(lengths[d]),
                         static_cast<int64_t>(d));
    }
    const Split split{next(3), file.tokens() - next(3)};
    const int64_t n = 1 + next(split.end - split.begin);
    const int64_t prefix = seed % 2 == 0 ? 0 : next(7);
    const DataLoader loader(file, split, n, seed, prefix);
    for (int64_t index = 0; index < 2 * loader.samples_per_epoch(); ++index) {
      const Sample sample = loader.load(index);
      const int64_t begin = sample.tokens.front() - 1;
      ASSERT_EQ(begin, split.begin + SampleOrder(split.end - split.begin, n, seed).begin(index));
      int64_t targets = 0, first = 0;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = begin + i;
        if (i > 0 &&
            document_of[static_cast<size_t>(at)] != document_of[static_cast<size_t>(at - 1)]) {
          first = i;
        }
        ASSERT_EQ(sample.tokens[static_cast<size_t>(i)], at + 1);
        // A query of the prefix sees the prefix's tokens in the sample: the next one, too.
        const bool seen = i + 1 < n && i + 1 - first < prefix;
        const bool has_label =
            !seen && at + 1 < split.end &&
            document_of[static_cast<size_t>(at)] == document_of[static_cast<size_t>(at + 1)];
        ASSERT_EQ(sample.labels[static_cast<size_t>(i)], has_label ? at + 2 : -1);
        targets += has_label ? 1 : 0;
        if (i > 0) {
          ASSERT_EQ(
              sample.documents.at(i) == sample.documents.at(i - 1),
              document_of[static_cast<size_t>(at)] == document_of[static_cast<size_t>(at - 1)]);
        }
      }
      ASSERT_EQ(sample.targets, targets);
      ASSERT_EQ(loader.targets(index), targets);
      ASSERT_EQ(sample.index, index);
      ASSERT_EQ(sample.documents.tokens(), n);
    }
  }
}

TEST(DataLoader, ACorpusShorterThanASequenceNamesBothSizes) {
  const TempFolder folder;
  const TokenFile file = corpus(folder, {20});
  const auto message = [&](Split split) -> std::string {
    try {
      const DataLoader loader(file, split, 21, 1);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message({0, 20}), HasSubstr("has 20 tokens, fewer than one sequence of 21: set "
                                          "data.sequence_length to at most 20"));
  EXPECT_THAT(message({15, 20}), HasSubstr("has 5 tokens in the part [15, 20)"));
}

}  // namespace
}  // namespace longhaul::launch
