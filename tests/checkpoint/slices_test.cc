#include "checkpoint/slices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "kernels/core/error.h"
#include "kernels/core/random.h"
#include "tests/checkpoint/test_state.h"

namespace longhaul::checkpoint {
namespace {

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

// Each rank holds ranges of one tensor of n elements.
std::vector<proto::Holdings> holdings(int64_t n, const std::vector<Ranges>& ranks) {
  std::vector<proto::Holdings> result;
  for (const Ranges& ranges : ranks) {
    proto::Holdings& of_rank = result.emplace_back();
    for (const auto& [begin, end] : ranges) {
      proto::Tensor& tensor = *of_rank.add_tensors();
      tensor.set_name("t");
      tensor.set_dtype("F32");
      tensor.add_shape(n);
      tensor.add_slices()->set_begin(begin);
      tensor.mutable_slices(0)->set_end(end);
    }
  }
  return result;
}

std::string text_of(const std::vector<proto::Tensor>& tensors) {
  std::ostringstream text;
  for (const proto::Slice& slice : tensors.at(0).slices()) {
    text << "[" << slice.begin() << "," << slice.end() << ")@" << slice.file() << " ";
  }
  return text.str();
}

TEST(Slices, TheLowestRankWrites) {
  EXPECT_EQ(text_of(assign_slices(holdings(9, {{{0, 9}}, {{0, 9}}}))), "[0,9)@0 ");
  EXPECT_EQ(text_of(assign_slices(holdings(9, {{{2, 4}}, {{0, 9}}}))), "[0,2)@1 [2,4)@0 [4,9)@1 ");
  EXPECT_EQ(text_of(assign_slices(holdings(9, {{{0, 3}, {6, 7}}, {{2, 6}}, {{5, 9}}}))),
            "[0,3)@0 [3,6)@1 [6,7)@0 [7,9)@2 ");
  EXPECT_EQ(text_of(assign_slices(holdings(9, {{{0, 0}}, {}, {{0, 9}, {3, 3}}}))), "[0,9)@2 ");
  EXPECT_EQ(text_of(assign_slices(holdings(0, {{{0, 0}}}))), "");
}

TEST(Slices, RandomHoldingsAreAssignedElementByElement) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    uint64_t counter = 0;
    const auto next = [&](int64_t n) {
      return static_cast<int64_t>(random_u64({seed, 1}, counter++) % static_cast<uint64_t>(n));
    };
    const int64_t n = 1 + next(40);
    std::vector<Ranges> ranks(static_cast<size_t>(1 + next(5)));
    std::vector<int> owner(static_cast<size_t>(n), -1);
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      for (int64_t i = next(6); i > 0; --i) {
        const int64_t begin = next(n + 1), end = begin + next(n - begin + 1);
        ranks[rank].emplace_back(begin, end);
        for (int64_t e = begin; e < end; ++e) {
          if (owner[static_cast<size_t>(e)] < 0)
            owner[static_cast<size_t>(e)] = static_cast<int>(rank);
        }
      }
    }
    if (std::find(owner.begin(), owner.end(), -1) != owner.end()) {
      // The last rank holds everything, so that nothing is missing.
      ranks.push_back({{0, n}});
      std::replace(owner.begin(), owner.end(), -1, static_cast<int>(ranks.size()) - 1);
    }
    const auto tensors = assign_slices(holdings(n, ranks));
    int64_t end = 0;
    for (const proto::Slice& slice : tensors.at(0).slices()) {
      ASSERT_EQ(slice.begin(), end);
      for (int64_t e = slice.begin(); e < slice.end(); ++e) {
        ASSERT_EQ(owner[static_cast<size_t>(e)], slice.file()) << seed << " " << e;
      }
      end = slice.end();
    }
    ASSERT_EQ(end, n);
  }
}

TEST(Slices, MissingElementsAndDisagreementsAreErrors) {
  const auto message = [](const std::vector<proto::Holdings>& ranks) -> std::string {
    try {
      assign_slices(ranks);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInternal);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message(holdings(9, {{{0, 3}}, {{4, 9}}})),
              ::testing::HasSubstr("[3, 4) of tensor 't'"));
  EXPECT_THAT(message(holdings(9, {{{0, 8}}})), ::testing::HasSubstr("[8, 9)"));
  auto ranks = holdings(9, {{{0, 9}}, {{0, 9}}});
  ranks[1].mutable_tensors(0)->set_shape(0, 10);
  EXPECT_THAT(message(ranks), ::testing::HasSubstr("F32[9] on rank 0 and F32[10] on rank 1"));
}

TEST(Slices, AStateThatContradictsItselfIsNoticed) {
  TestState state;
  state.add({"t", DType::kF32, {8}, Cut::kEven}, {2, 5});
  EXPECT_NO_THROW(holdings_of(state.state));
  state.state[0].end = 6;
  EXPECT_THROW(holdings_of(state.state), Error);
  state.state[0] = {"t", {4}, 2, 5, state.memory[0]};
  EXPECT_THROW(holdings_of(state.state), Error);
}

}  // namespace
}  // namespace longhaul::checkpoint
