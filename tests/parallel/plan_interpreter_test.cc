// The judge is judged: plans broken in one place each must be refused for the right reason.
#include "tests/parallel/plan_interpreter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/parallel/attention_world.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Field;
using parallel::Fields;
using parallel::HeadShape;
using parallel::Plan;
using parallel::Problem;
using parallel::Reduce;
using parallel::TokenLayout;
using parallel::Transfer;

class Refusal : public testing::Test {
 protected:
  // Breaks a sound set of plans and returns why it is refused ("" if it is not).
  std::string refusal(Direction direction, const std::function<void(std::vector<Plan>&)>& damage,
                      const char* strategy = "ring") {
    std::vector<Plan> plans;
    for (int r = 0; r < 4; ++r) {
      plans.push_back(parallel::strategy(strategy).plan(problem_, direction, r));
    }
    damage(plans);
    try {
      verify_attention(problem_, direction, std::move(plans), truth_, 1);
    } catch (const PlanViolation& violation) {
      return violation.what();
    }
    return "";
  }
  static Transfer& first(Plan& plan, size_t step, bool send,
                         Fields fields = {Field::kK, Field::kV}) {
    for (Transfer& t : plan.steps.at(step).transfers) {
      if (t.send == send && t.fields == fields) return t;
    }
    throw std::logic_error("no such transfer");
  }
  static constexpr Fields kGradients{Field::kDK, Field::kDV};

  TokenLayout layout_ = TokenLayout::zigzag(24, 4);
  Documents documents_ = Documents::whole(24);
  Problem problem_{layout_,
                   documents_,
                   {true, 0},
                   HeadShape{.q_heads = 4, .kv_heads = 2, .head_dim = 3, .value_dim = 2}};
  AttentionTruth truth_ = attention_truth(documents_, problem_.mask, problem_.heads, 9);
};

using testing::HasSubstr;

TEST_F(Refusal, SoundPlansPass) {
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    EXPECT_EQ(refusal(direction, [](std::vector<Plan>&) {}), "");
  }
}

TEST_F(Refusal, OneEnd) {
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        auto& list = plans[2].steps[2].transfers;
                        std::erase_if(list, [](const Transfer& t) { return t.send; });
                      }),
              HasSubstr("deadlock"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {  // due only after the last step
                        Transfer extra = first(plans[0], 2, true);
                        extra.slot = 0;
                        extra.origin = -1;
                        extra.done_by = 4;
                        plans[0].steps[3].transfers.push_back(extra);
                      }),
              HasSubstr("deadlock"));
}

TEST_F(Refusal, RendezvousDeadlock) {
  // Everybody waits for its send before it posts its receive: fine if sends were buffered.
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        for (Plan& plan : plans) {
                          auto& from = plan.steps[0].transfers;
                          Transfer receive = first(plan, 0, false);
                          std::erase_if(from, [](const Transfer& t) { return !t.send; });
                          receive.done_by = 2;
                          plan.steps[1].transfers.insert(plan.steps[1].transfers.begin(), receive);
                        }
                      }),
              HasSubstr("deadlock"));
}

TEST_F(Refusal, EndsThatDiffer) {
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { first(plans[1], 0, false).rows.length = 5; }),
              HasSubstr("ends do not match"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        first(plans[1], 0, false).heads = {0, 1};
                      }),
              HasSubstr("ends do not match"));
  EXPECT_THAT(refusal(Direction::kBackward,
                      [](std::vector<Plan>& plans) {  // keys and gradients in another order
                        auto& list = plans[1].steps[2].transfers;
                        std::reverse(list.begin(), list.end());
                      }),
              HasSubstr("ends do not match"));
}

TEST_F(Refusal, ReadsWhatIsStoredInto) {
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { first(plans[1], 0, false).done_by = 2; }),
              HasSubstr("while it is stored into"));
}

TEST_F(Refusal, WritesWhatIsSent) {
  EXPECT_THAT(
      refusal(Direction::kBackward,
              [](std::vector<Plan>& plans) { first(plans[1], 2, true, kGradients).done_by = 4; }),
      HasSubstr("while it is sent"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { first(plans[1], 1, true).done_by = 3; }),
              HasSubstr("while it is sent"));
}

TEST_F(Refusal, ForgottenClear) {
  EXPECT_NE(refusal(Direction::kBackward,
                    [](std::vector<Plan>& plans) { plans[1].steps[1].clears.clear(); }),
            "");
  EXPECT_NE(refusal(Direction::kForward,
                    [](std::vector<Plan>& plans) { plans[1].steps[0].clears.clear(); }),
            "");
}

TEST_F(Refusal, LateClear) {
  EXPECT_NE(refusal(Direction::kBackward,
                    [](std::vector<Plan>& plans) {
                      plans[1].steps[2].clears.push_back({0, kGradients});
                    }),
            "");
}

TEST_F(Refusal, WorkMissingOrTwice) {
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { plans[3].steps[2].tasks.clear(); }),
              HasSubstr("computed 0 times"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        auto& tasks = plans[3].steps[2].tasks;
                        tasks.push_back(tasks[0]);
                      }),
              HasSubstr("computed 2 times"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        plans[3].steps[0].tasks[0].segments[0].band_hi += 1;
                      }),
              HasSubstr("computed 1 times, not 0"));
}

TEST_F(Refusal, WrongPositions) {
  EXPECT_THAT(
      refusal(Direction::kForward,
              [](std::vector<Plan>& plans) { plans[3].steps[2].tasks[0].segments[0].k_pos += 1; }),
      HasSubstr("a segment says positions"));
}

TEST_F(Refusal, WrongReduction) {
  EXPECT_THAT(refusal(Direction::kBackward,
                      [](std::vector<Plan>& plans) {
                        first(plans[1], 2, false, kGradients).reduce = Reduce::kMerge;
                      }),
              HasSubstr("merges other than"));
  EXPECT_NE(refusal(Direction::kBackward,
                    [](std::vector<Plan>& plans) {
                      first(plans[1], 4, false, kGradients).reduce = Reduce::kStore;
                    }),
            "");
}

TEST_F(Refusal, OutOfBounds) {
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { first(plans[1], 0, true).done_by = 0; }),
              HasSubstr("done_by out of range"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { first(plans[1], 2, true).done_by = 9; }),
              HasSubstr("done_by out of range"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        first(plans[1], 0, true).rows = {1, 6};
                      }),
              HasSubstr("rows out of bounds"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        first(plans[1], 0, true).heads = {1, 2};
                      }),
              HasSubstr("heads out of bounds"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { plans[1].slots[1].fields = {Field::kK}; }),
              HasSubstr("no such field"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        plans[1].slots[1].kv_heads = {0, 1};
                      }),
              HasSubstr("heads out of bounds"));
}

// Ring plans whose second buffer takes over the first one's memory, where that is wrong.
TEST_F(Refusal, MemoryTakenOver) {
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { plans[1].slots[2].memory_of = 1; }),
              HasSubstr("while it travels"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { plans[1].slots[1].memory_of = 2; }),
              HasSubstr("not one before"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { plans[1].slots[1].memory_of = 0; }),
              HasSubstr("not one before"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {
                        plans[1].slots[1].k_rows -= 1;
                        plans[1].slots[2].memory_of = 1;
                      }),
              HasSubstr("too little for k"));
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) {  // a chain
                        plans[1].slots[2].memory_of = 1;
                        plans[1].slots.push_back(plans[1].slots[2]);
                        plans[1].slots[3].memory_of = 2;
                      }),
              HasSubstr("none of its own"));
  // Nothing is on its way, but what was there is lost: the keys are gathered before others are
  // computed on.
  Problem gathered = problem_;
  gathered.heads = HeadShape{.q_heads = 4, .kv_heads = 4, .head_dim = 3, .value_dim = 2};
  gathered.gather_heads = 1;
  const AttentionTruth truth = attention_truth(documents_, gathered.mask, gathered.heads, 9);
  for (const bool damaged : {false, true}) {
    std::vector<Plan> plans;
    for (int r = 0; r < 4; ++r) {
      plans.push_back(plan_all_gather(gathered, Direction::kForward, r));
      if (damaged && r == 2) {  // computed one step late
        std::vector<parallel::Step>& steps = plans.back().steps;
        steps[2].tasks.insert(steps[2].tasks.begin(), steps[1].tasks.begin(), steps[1].tasks.end());
        steps[1].tasks.clear();
      }
    }
    const auto run = [&] {
      verify_attention(gathered, Direction::kForward, std::move(plans), truth, 1);
    };
    if (damaged) {
      EXPECT_THROW(run(), PlanViolation);
    } else {
      EXPECT_NO_THROW(run());
    }
  }
}

TEST_F(Refusal, FalseOrigin) {
  EXPECT_THAT(refusal(Direction::kForward,
                      [](std::vector<Plan>& plans) { plans[1].home_readers.pop_back(); }),
              HasSubstr("home_readers"));
  EXPECT_NE(refusal(Direction::kForward,
                    [](std::vector<Plan>& plans) {  // passes on home instead of what it received
                      first(plans[1], 1, true).slot = 0;
                    }),
            "");
}

// Chunks of 3 rows: rank 0 has 0-2 and 21-23, rank 3 has 9-14. Rank 0 needs all keys of rank 3, and
// rank 3 needs rows 0-2 of rank 0, at step 3.
TEST_F(Refusal, FalseOriginOfPartOfAHome) {
  EXPECT_EQ(refusal(
                Direction::kBackward, [](std::vector<Plan>&) {}, "group_cast"),
            "");
  const auto receive = [](Plan& plan) -> Transfer& { return first(plan, 2, false); };
  const auto send = [](Plan& plan) -> Transfer& { return first(plan, 2, true); };
  EXPECT_THAT(refusal(
                  Direction::kForward,
                  [&](std::vector<Plan>& plans) {  // whoever reads in place sees other rows
                    ASSERT_EQ(receive(plans[3]).rows, (parallel::Span{0, 3}));
                    receive(plans[3]).rows.begin = 1;
                  },
                  "group_cast"),
              HasSubstr("not the rows of its origin"));
  EXPECT_THAT(refusal(
                  Direction::kForward,
                  [&](std::vector<Plan>& plans) {
                    receive(plans[3]).heads = send(plans[0]).heads = {0, 1};
                  },
                  "group_cast"),
              HasSubstr("has other heads"));
  EXPECT_THAT(refusal(
                  Direction::kForward,
                  [&](std::vector<Plan>& plans) {
                    receive(plans[3]).origin = send(plans[0]).origin = 1;
                    plans[0].home_readers = {1, 2};
                    plans[1].home_readers = {0, 2, 3};
                  },
                  "group_cast"),
              HasSubstr("has other data"));
  EXPECT_THAT(refusal(
                  Direction::kForward,
                  [&](std::vector<Plan>& plans) {
                    receive(plans[3]).origin = send(plans[0]).origin = -1;
                    plans[0].home_readers = {1, 2};
                  },
                  "group_cast"),
              HasSubstr("with an origin and without"));
  // Rows of an earlier origin are gone, whether or not the later one's transfer covers them.
  EXPECT_NE(refusal(
                Direction::kForward,
                [&](std::vector<Plan>& plans) {
                  auto& late = plans[3].steps.at(3).tasks;
                  auto& early = plans[3].steps.at(1).tasks;
                  late.insert(late.end(), early.begin(), early.end());
                  early.clear();
                },
                "group_cast"),
            "");
}

}  // namespace
}  // namespace longhaul::test
