#include "parallel/layout/documents.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace longhaul::parallel {
namespace {

TEST(Documents, NamesBordersAndPositions) {
  const Documents documents(10, {0, 3, 4, 9});
  ASSERT_EQ(documents.count(), 4);
  EXPECT_EQ(documents.tokens(), 10);
  const int64_t of_token[] = {0, 0, 0, 1, 2, 2, 2, 2, 2, 3};
  const int64_t in_document[] = {0, 1, 2, 0, 0, 1, 2, 3, 4, 0};
  for (int64_t p = 0; p < 10; ++p) {
    EXPECT_EQ(documents.at(p), of_token[p]) << p;
    EXPECT_EQ(documents.local_position(p), in_document[p]) << p;
  }
  EXPECT_EQ(documents.begin(2), 4);
  EXPECT_EQ(documents.end(2), 9);
  EXPECT_EQ(documents.end(3), 10);
}

TEST(Documents, WholeIsOneOrNone) {
  EXPECT_EQ(Documents::whole(5).count(), 1);
  EXPECT_EQ(Documents::whole(5).end(0), 5);
  EXPECT_EQ(Documents::whole(0).count(), 0);
}

TEST(Documents, RefusesWhatIsNoPacking) {
  EXPECT_THROW(Documents(10, {}), Error);
  EXPECT_THROW(Documents(0, {0}), Error);
  EXPECT_THROW(Documents(10, {1}), Error);
  EXPECT_THROW(Documents(10, {0, 5, 5}), Error);
  EXPECT_THROW(Documents(10, {0, 7, 5}), Error);
  EXPECT_THROW(Documents(10, {0, 10}), Error);
  EXPECT_THROW(Documents(-1, {}), Error);
  EXPECT_THROW(Documents::whole(10).at(10), Error);
  EXPECT_THROW(Documents::whole(10).at(-1), Error);
}

}  // namespace
}  // namespace longhaul::parallel
