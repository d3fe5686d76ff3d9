// Samples side by side: who owns which token, and where documents end.
#include "parallel/layout/joint.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "kernels/core/random.h"
#include "parallel/layout/segments.h"

namespace longhaul::parallel {
namespace {

Documents random_documents(int64_t tokens, uint64_t seed) {
  std::vector<int64_t> begins;
  for (int64_t at = 0; at < tokens;) {
    begins.push_back(at);
    const uint64_t bits = random_u64({.seed = seed, .stream = 1}, static_cast<uint64_t>(at));
    at += 1 + static_cast<int64_t>(bits % 30);
  }
  return {tokens, std::move(begins)};
}

// Every token of every replica is with the rank that has it in the replica's own layout, in the
// same row; documents are the replicas' own.
TEST(JointLayout, IsEachReplicasOwnForEveryLayoutAndAnyDocuments) {
  for (const LayoutKind& kind : layout_kinds()) {
    for (const int replicas : {1, 2, 3}) {
      for (const int ranks : {1, 2, 5}) {
        for (const int64_t tokens : {1, 3, 61, 64}) {  // also fewer than ranks
          for (const int servers : {0, 1, 3}) {
            SCOPED_TRACE(absl::StrCat(std::string(kind.name), " ", replicas, " x ", ranks, " + ",
                                      servers, ", ", tokens, " tokens"));
            std::vector<Documents> samples;
            std::vector<TokenLayout> layouts;
            for (int r = 0; r < replicas; ++r) {
              samples.push_back(random_documents(tokens, static_cast<uint64_t>(r) + 1));
              layouts.push_back(kind.of_sample(samples.back(), {}, ranks));
            }
            const Documents documents = side_by_side(samples);
            const TokenLayout layout = side_by_side(layouts, servers);
            ASSERT_EQ(documents.tokens(), replicas * tokens);
            ASSERT_EQ(layout.tokens(), replicas * tokens);
            ASSERT_EQ(layout.ranks(), replicas * ranks + servers);
            EXPECT_EQ(samples_of(documents, tokens), samples);
            int64_t rows = 0;
            for (int rank = 0; rank < layout.ranks(); ++rank) rows += layout.rows(rank);
            EXPECT_EQ(rows, layout.tokens());
            for (int s = 0; s < servers; ++s) EXPECT_EQ(layout.rows(replicas * ranks + s), 0);
            for (int r = 0; r < replicas; ++r) {
              const auto at = static_cast<size_t>(r);
              for (int64_t p = 0; p < tokens; ++p) {
                const int64_t joint = r * tokens + p;
                const TokenLayout::Place own = layouts[at].locate(p);
                EXPECT_EQ(layout.locate(joint),
                          (TokenLayout::Place{r * ranks + own.rank, own.row}));
                EXPECT_EQ(layout.position(r * ranks + own.rank, own.row), joint);
                EXPECT_EQ(documents.local_position(joint), samples[at].local_position(p));
              }
            }
          }
        }
      }
    }
  }
}

// No token sees one of another replica, though their documents touch; and all it saw before.
TEST(JointLayout, ReplicasDoNotSeeEachOther) {
  constexpr int64_t kTokens = 24;
  const std::vector<Documents> samples{Documents(kTokens, {0, 5, 20}), Documents::whole(kTokens)};
  const std::vector<TokenLayout> layouts{TokenLayout::zigzag(kTokens, 2),
                                         TokenLayout::zigzag(kTokens, 2)};
  const Documents documents = side_by_side(samples);
  const TokenLayout layout = side_by_side(layouts, 1);
  for (const Mask& mask : {Mask{.causal = true}, Mask{.causal = false}, Mask{.window = 7}}) {
    for (int q = 0; q < layout.ranks(); ++q) {
      for (int k = 0; k < layout.ranks(); ++k) {
        const auto cut = [](const TokenLayout& rows, const Documents& borders, const Mask& seen,
                            int a, int b) {
          int64_t pairs = 0;
          for (const Segment& segment : cut_segments(rows.runs(a), rows.runs(b), borders, seen)) {
            pairs += area(segment);
          }
          return pairs;
        };
        const bool together = q < 4 && k < 4 && q / 2 == k / 2;
        const auto replica = static_cast<size_t>(q / 2);
        const int64_t expected =
            together ? cut(layouts[replica], samples[replica], mask, q % 2, k % 2) : 0;
        EXPECT_EQ(cut(layout, documents, mask, q, k), expected) << q << " " << k;
      }
    }
  }
}

TEST(JointLayout, FewerSamplesThanReplicasAndNone) {
  const std::vector<Documents> one{Documents(6, {0, 2})};
  EXPECT_EQ(side_by_side(one), one.front());
  EXPECT_EQ(samples_of(one.front(), 6), one);
  const std::vector<TokenLayout> layouts{TokenLayout::contiguous(6, 2)};
  const TokenLayout layout = side_by_side(layouts, 3);
  EXPECT_EQ(layout.ranks(), 5);
  EXPECT_EQ(layout.rows(1), 3);
  EXPECT_EQ(layout.rows(2), 0);
  EXPECT_EQ(side_by_side(std::span<const Documents>()), Documents::whole(0));
  EXPECT_EQ(samples_of(Documents::whole(0), 6).size(), 0u);
}

TEST(JointLayout, OfSamplesGoesByEachSamplesDocuments) {
  constexpr int64_t kTokens = 64;
  const LayoutKind& balanced = layout_kind("balanced");
  const SampleLayout of_one = [&](const Documents& documents, const Mask& mask, int ranks) {
    return balanced.of_sample(documents, mask, ranks);
  };
  const SampleLayout joint = joint_layout(of_one, kTokens, 2);
  const std::vector<Documents> samples{random_documents(kTokens, 1), random_documents(kTokens, 2)};
  const std::vector<TokenLayout> layouts{of_one(samples[0], {}, 2), of_one(samples[1], {}, 2)};
  const TokenLayout layout = joint(side_by_side(samples), {}, 5),
                    expected = side_by_side(layouts, 1);
  for (int rank = 0; rank < 5; ++rank) EXPECT_EQ(layout.runs(rank), expected.runs(rank)) << rank;
  const TokenLayout one = joint(samples[0], {}, 5);  // the second replica has no sample
  EXPECT_EQ(one.runs(1), layouts[0].runs(1));
  EXPECT_EQ(one.rows(2) + one.rows(3) + one.rows(4), 0);
  EXPECT_THROW(joint(side_by_side(samples), {}, 3), Error);
}

TEST(JointLayout, RefusesSamplesThatAreNotWhole) {
  EXPECT_THROW(samples_of(Documents(10, {0, 4}), 4), Error);
  EXPECT_THROW(samples_of(Documents(10, {0, 4}), 5), Error);  // a document across the border
  EXPECT_THROW(samples_of(Documents::whole(10), 0), Error);
  EXPECT_THROW(side_by_side(std::span<const TokenLayout>(), 0), Error);
}

}  // namespace
}  // namespace longhaul::parallel
