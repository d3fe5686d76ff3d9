// kill -9 at every point of a save, and disks that refuse: the old state or the new one loads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint/save.h"
#include "dist/local/local.h"
#include "tests/checkpoint/test_state.h"
#include "tests/temp_folder.h"

namespace longhaul::checkpoint {
namespace {

constexpr std::chrono::seconds kDeadline(60);

std::vector<TestTensor> tensors() {
  return {{"a", DType::kF32, {300'000}, Cut::kEven}, {"b", DType::kBF16, {77}, Cut::kEven}};
}

void save_step(const std::string& directory, int64_t step, uint64_t seed, int keep,
               const Hook& hook = {}) {
  dist::run_local(1, kDeadline, [&](dist::Group& world) {
    const TestState state = make_state(0, 1, tensors());
    fill(state.state, seed);
    save(world, directory, {step, 0, test_model(), std::to_string(seed)}, state.state,
         SaveOptions{keep, hook});
  });
}

// Loads the newest checkpoint, verifies every bit and returns the seed of its content.
uint64_t newest_seed(const std::string& directory) {
  const auto path = latest(directory);
  EXPECT_TRUE(path);
  if (!path) return 0;
  uint64_t seed = 0;
  dist::run_local(1, kDeadline, [&](dist::Group& world) {
    const TestState state = make_state(0, 1, tensors());
    seed = std::stoull(load(world, *path, test_model(), state.state).config);
    expect_filled(state.state, seed);
  });
  return seed;
}

// How a child process that runs `work` ended, as waitpid says.
int in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      work();
    } catch (const std::exception& error) {
      ::_exit(9);
    }
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Steps 1 and 2 with seeds 101 and 102. Saved once and copied: every save waits for the disk.
void copy_steps_1_and_2(const TempFolder& folder) {
  static const TempFolder saved;
  if (names_in(saved.path()).empty()) {
    save_step(saved.path(), 1, 101, 0);
    save_step(saved.path(), 2, 102, 0);
  }
  std::filesystem::copy(saved.path(), folder.path(), std::filesystem::copy_options::recursive);
}

struct Case {
  const char* name;
  int64_t step;  // of the save that is killed; steps 1 and 2 are there, with seeds 101 and 102
  int keep;
};

class Killed : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Save, Killed,
                         ::testing::Values(Case{"NewStep", 3, 2}, Case{"SameStepAgain", 2, 2},
                                           Case{"KeepsOne", 3, 1}),
                         [](const auto& test) { return test.param.name; });

TEST_P(Killed, AtEveryPointLeavesTheOldOrTheNewState) {
  std::vector<std::string> events;
  {
    const TempFolder folder;
    copy_steps_1_and_2(folder);
    save_step(folder.path(), GetParam().step, 103, GetParam().keep,
              [&](std::string_view event) { events.emplace_back(event); });
  }
  ASSERT_GT(events.size(), 15u);
  bool was_new = false;
  for (size_t at = 0; at < events.size(); ++at) {
    SCOPED_TRACE(std::to_string(at) + ": " + events[at]);
    const TempFolder folder;
    copy_steps_1_and_2(folder);
    const int status = in_child([&] {
      size_t count = 0;
      save_step(folder.path(), GetParam().step, 103, GetParam().keep, [&](std::string_view) {
        if (count++ == at) ::kill(::getpid(), SIGKILL);
      });
    });
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    const uint64_t seed = newest_seed(folder.path());
    const bool is_new = seed == 103;
    ASSERT_TRUE(is_new || seed == 102) << seed;
    ASSERT_TRUE(is_new || !was_new) << "once the new one counts it must stay";
    was_new = is_new;
    ASSERT_EQ(is_new,
              at >= static_cast<size_t>(std::find(events.begin(), events.end(), "marker written") -
                                        events.begin()));

    // The next save works and leaves nothing of the killed one.
    save_step(folder.path(), 4, 104, 1);
    EXPECT_EQ(newest_seed(folder.path()), 104u);
    EXPECT_THAT(names_in(folder.path()), ::testing::ElementsAre("step-00000004"));
  }
  EXPECT_TRUE(was_new);
}

// A save that fails without being killed cleans up behind itself.
TEST_P(Killed, AnErrorAtEveryPointLeavesTheDirectoryAsItWas) {
  std::vector<std::string> events;
  for (size_t at = 0; at == 0 || at < events.size(); ++at) {
    const TempFolder folder;
    copy_steps_1_and_2(folder);
    if (at == 0) {
      save_step(folder.path(), GetParam().step, 103, GetParam().keep,
                [&](std::string_view event) { events.emplace_back(event); });
      continue;
    }
    SCOPED_TRACE(std::to_string(at) + ": " + events[at]);
    size_t count = 0;
    EXPECT_THROW(save_step(folder.path(), GetParam().step, 103, GetParam().keep,
                           [&](std::string_view) {
                             if (count++ == at) fail(ErrorCode::kCheckpoint, "refused");
                           }),
                 Error);
    for (const std::string& name : names_in(folder.path())) {
      // A checkpoint beyond `keep` that could not be removed whole waits for the next save.
      const bool removing = events[at] == "set aside for removal" && name.ends_with(".partial");
      EXPECT_TRUE(name.starts_with("step-") || removing) << name;
    }
    const bool marked =
        at >= static_cast<size_t>(std::find(events.begin(), events.end(), "marker written") -
                                  events.begin());
    EXPECT_EQ(newest_seed(folder.path()), marked ? 103u : 102u);
  }
}

// There is no disk to fill in a test, but a limit on file sizes fails at the same place.
TEST(Disk, AWriteThatFailsIsOneClearErrorAndLeavesNothing) {
  for (const rlim_t limit : {rlim_t{0}, rlim_t{100}, rlim_t{500'000}}) {
    const TempFolder folder;
    save_step(folder.path(), 1, 101, 0);
    const int status = in_child([&] {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit limits{limit, limit};
      if (::setrlimit(RLIMIT_FSIZE, &limits) != 0) ::_exit(8);
      try {
        save_step(folder.path(), 2, 102, 1);
      } catch (const Error& error) {
        const bool clear =
            error.code() == ErrorCode::kCheckpoint &&
            std::string(error.what()).find("shard-00000-of-00001.safetensors': File too large") !=
                std::string::npos;
        ::_exit(clear ? 77 : 7);
      }
    });
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 77) << limit;
    EXPECT_THAT(names_in(folder.path()), ::testing::ElementsAre("step-00000001"));
    EXPECT_EQ(newest_seed(folder.path()), 101u);
  }
}

}  // namespace
}  // namespace longhaul::checkpoint
