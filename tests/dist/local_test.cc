// The shared suite over threads, and what only threads have: how run_local fails.
#include "dist/local/local.h"

#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "tests/dist/suite.h"
#include "tests/slow_build.h"

namespace longhaul::dist {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

class LocalSuite : public ::testing::TestWithParam<std::tuple<int, testing::Case>> {};

TEST_P(LocalSuite, Passes) {
  const auto& [ranks, test] = GetParam();
  try {
    run_local(ranks, 60s, [&](Group& world) { testing::run_case(world, test); });
  } catch (const std::exception& error) {
    FAIL() << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ranks, LocalSuite,
    ::testing::Combine(::testing::ValuesIn(test::some_of<int>({3, 1, 2, 5, 4, 6, 8, 7, 9}, 3)),
                       ::testing::ValuesIn(testing::all_cases())),
    [](const auto& param_info) {
      return absl::StrCat(std::get<1>(param_info.param).name, "_", std::get<0>(param_info.param));
    });

// The error that run_local ends with. The deadline is beyond ctest's own, so a hang is noticed.
Error error_of(int ranks, const std::function<void(Group& world)>& body) {
  const auto error = attempt([&] { run_local(ranks, 10min, body); });
  EXPECT_TRUE(error.has_value());
  return error.value_or(Error(ErrorCode::kInternal, "none"));
}

TEST(RunLocal, RanksAndJob) {
  std::atomic<int> mask = 0;
  run_local(3, 1234ms, [&](Group& world) {
    mask |= 1 << world.rank();
    testing::expect(world.job().world_rank == world.rank() && world.job().world_size == 3);
    testing::expect(world.job().deadline == 1234ms);
    world.job().step = 4;
    testing::expect(world.whereabouts() == absl::StrCat("rank ", world.rank(), ", step 4"));
  });
  EXPECT_EQ(mask, 7);
  EXPECT_EQ(error_of(0, [](Group&) {}).code(), ErrorCode::kConfig);
}

// Whatever the others wait for, they end, and the cause is reported, not its consequences.
TEST(RunLocal, FirstErrorWins) {
  Stream stream;
  const std::vector<std::function<void(Group&)>> waits = {
      [](Group& world) { world.barrier("barrier"); },
      [](Group& world) { world.split(0, 0); },
      [](Group& world) { world.wait_until([] { return false; }, "never"); },
      [&](Group& world) {
        Tensor data(DType::kF32, {10});
        const Recv recv{2, data};
        world.exchange(stream, {}, {&recv, 1}, "from rank 2").wait(stream);
      },
      [&](Group& world) {
        // From a rank that is still there and waits itself.
        Tensor data(DType::kF32, {10});
        const Recv recv{1 - world.rank(), data};
        world.exchange(stream, {}, {&recv, 1}, "from the other").wait(stream);
      },
  };
  for (const auto& wait : waits) {
    std::atomic<int> consequences = 0;
    const Error error = error_of(3, [&](Group& world) {
      if (world.rank() == 2) {
        std::this_thread::sleep_for(1ms);
        fail(ErrorCode::kData, "the cause");
      }
      try {
        wait(world);
      } catch (const Error& consequence) {
        ++consequences;
        EXPECT_EQ(consequence.code(), ErrorCode::kCommunication);
        EXPECT_THAT(consequence.what(), HasSubstr("rank 2 failed: the cause"));
        throw;
      }
    });
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_STREQ(error.what(), "the cause");
    EXPECT_EQ(consequences, 2);
  }
}

TEST(RunLocal, OtherExceptions) {
  const auto throwing = [](Group& world) {
    if (world.rank() == 0) throw std::out_of_range("far out");
    world.barrier("barrier");
  };
  EXPECT_THROW(run_local(2, 10min, throwing), std::out_of_range);
}

// A rank that is done while others still need it.
TEST(RunLocal, EndedRankIsNamed) {
  Stream stream;
  for (int round = 0; round < 50; ++round) {
    const Error error = error_of(3, [&](Group& world) {
      if (world.rank() == 1) return;
      Tensor data(DType::kF32, {10});
      const Recv recv{1, data};
      const Send send{1, data};
      if (round % 3 == 0) world.exchange(stream, {}, {&recv, 1}, "kv").wait(stream);
      if (round % 3 == 1) world.exchange(stream, {&send, 1}, {}, "kv").wait(stream);
      if (round % 3 == 2) world.barrier("kv");
    });
    EXPECT_EQ(error.code(), ErrorCode::kCommunication);
    EXPECT_THAT(error.what(), HasSubstr("'kv'"));
    EXPECT_THAT(error.what(), HasSubstr("rank 1 has ended"));
  }
}

// The waiting side of a send is as impatient as that of a receive, and takes its buffer with it.
TEST(RunLocal, SendHasADeadline) {
  Stream stream;
  const Error error = error_of(2, [&](Group& world) {
    if (world.rank() == 1) return world.barrier("for ever");
    Tensor data(DType::kF32, {1000});
    const Send send{1, data};
    world.job().deadline = 50ms;
    world.exchange(stream, {&send, 1}, {}, "kv").wait(stream);
  });
  EXPECT_EQ(error.code(), ErrorCode::kCommunication);
  EXPECT_THAT(error.what(), HasSubstr("rank 0 waited 0.05 s for 'kv' from rank 1"));
}

// What a rank sent before its end still counts.
TEST(RunLocal, LastMessageArrives) {
  Stream stream;
  for (int round = 0; round < 200; ++round) {
    run_local(2, 1min, [&](Group& world) {
      Tensor data = testing::filled<int32_t>(world.rank(), 1000);
      const Send send{1, data};
      const Recv recv{0, data};
      if (world.rank() == 0) world.exchange(stream, {&send, 1}, {}, "last").wait(stream);
      if (world.rank() == 1) {
        Request request = world.exchange(stream, {}, {&recv, 1}, "last");
        if (round % 2 == 0) std::this_thread::sleep_for(100us);
        request.wait(stream);
        testing::expect(data.span<int32_t>()[999] == testing::predictable(0, 999));
      }
    });
  }
}

TEST(RunLocal, AbortEndsAll) {
  const Error error = error_of(4, [](Group& world) {
    if (world.rank() == 3) {
      world.abort(static_cast<int>(ErrorCode::kNumerics), "loss is NaN");
      return;
    }
    world.barrier("barrier");
  });
  EXPECT_EQ(error.code(), ErrorCode::kNumerics);
  EXPECT_STREQ(error.what(), "loss is NaN");
}

// A rank that fails with messages under way takes its buffers with it; nobody may touch them later.
TEST(RunLocal, FailsWithMessagesInFlight) {
  Stream stream;
  for (int round = 0; round < 200; ++round) {
    const Error error = error_of(3, [&](Group& world) {
      Tensor in(DType::kF32, {20'000}), out(DType::kF32, {20'000});
      const Send send{(world.rank() + 1) % 3, out};
      const Recv recv{(world.rank() + 2) % 3, in};
      Request ring = world.exchange(stream, {&send, 1}, {&recv, 1}, "ring");
      Request sum = world.all_reduce(stream, out, ReduceOp::kSum, "sum");
      if (world.rank() == round % 3) fail(ErrorCode::kNumerics, "in the middle");
      ring.wait(stream);
      sum.wait(stream);
      world.barrier("never complete");
    });
    EXPECT_STREQ(error.what(), "in the middle");
  }
}

// Dropping a request is an internal error, but one that keeps the memory safe.
TEST(RunLocal, DroppedRequestIsFinished) {
  Stream stream;
  run_local(2, 1min, [&](Group& world) {
    Tensor data = testing::filled<int32_t>(world.rank(), 1000);
    if (world.rank() == 0) {
      const Send send{1, data};
      { Request dropped = world.exchange(stream, {&send, 1}, {}, "dropped"); }
      std::ranges::fill(data.span<int32_t>(), -1);
    } else {
      std::this_thread::sleep_for(5ms);
      const Recv recv{0, data};
      world.exchange(stream, {}, {&recv, 1}, "dropped").wait(stream);
      testing::expect(data.span<int32_t>()[999] == testing::predictable(0, 999));
    }
  });
}

}  // namespace
}  // namespace longhaul::dist
