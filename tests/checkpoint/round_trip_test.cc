#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/save.h"
#include "dist/local/local.h"
#include "tests/checkpoint/test_state.h"
#include "tests/temp_folder.h"

namespace longhaul::checkpoint {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
constexpr std::chrono::seconds kDeadline(60);

Info info_at(int64_t step) { return {step, 10 * step, test_model(), "model { layers: 2 }\n"}; }

void save_on(int ranks, const std::string& directory, int64_t step, int keep = 0) {
  dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
    const TestState mine = make_state(world.rank(), ranks);
    fill(mine.state, static_cast<uint64_t>(step));
    save(world, directory, info_at(step), mine.state, keep);
  });
}

void expect_loads_on(int ranks, const std::string& path, int64_t step) {
  dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
    const TestState mine = make_state(world.rank(), ranks);
    const Info info = load(world, path, test_model(), mine.state);
    EXPECT_EQ(info.step, step);
    expect_filled(mine.state, static_cast<uint64_t>(step));
  });
}

class Ranks : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Saved, Ranks, ::testing::Range(1, 5));

TEST_P(Ranks, LoadsBitByBitOnAnyNumberOfRanks) {
  const TempFolder folder;
  save_on(GetParam(), folder / "a/b/checkpoints", 7);
  const auto path = latest(folder / "a/b/checkpoints");
  ASSERT_TRUE(path);
  EXPECT_THAT(*path, ::testing::EndsWith("/step-00000007"));
  for (int ranks = 1; ranks <= 4; ++ranks) expect_loads_on(ranks, *path, 7);
  const Info info = read_info(*path);
  EXPECT_EQ(info.step, 7);
  EXPECT_EQ(info.samples, 70);
  EXPECT_EQ(info.model, test_model());
  EXPECT_EQ(info.config, "model { layers: 2 }\n");
}

TEST_P(Ranks, EveryElementIsStoredOnceInReadableFiles) {
  const TempFolder folder;
  save_on(GetParam(), folder.path(), 3);
  int64_t bytes = 0, files = 0, expected = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "step-00000003")) {
    if (entry.path().extension() != ".safetensors") continue;
    ++files;
    const SafetensorsFile file(entry.path().string());
    for (const auto& [name, tensor] : file.header().tensors) {
      EXPECT_EQ(name.substr(name.find('[')).back(), ']');
      bytes += tensor.end - tensor.begin;
    }
  }
  for (const TestTensor& tensor : test_tensors()) {
    expected += tensor.shape.elements() * size_of(tensor.dtype);
  }
  EXPECT_EQ(files, GetParam());
  EXPECT_EQ(bytes, expected);
}

TEST(Checkpoint, APartOfTheStateMayBeLoaded) {
  const TempFolder folder;
  save_on(3, folder.path(), 1);
  dist::run_local(1, kDeadline, [&](dist::Group& world) {
    TestState some;
    some.add(test_tensors()[8], {123'456, 1'234'567});
    some.add(test_tensors()[1], {7, 8});
    some.add(test_tensors()[1], {0, 105});  // overlaps the one before
    load(world, folder / "step-00000001", test_model(), some.state);
    expect_filled(some.state, 1);
  });
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Checkpoint, KeepsTheNewest) {
  const TempFolder folder;
  EXPECT_EQ(latest(folder / "nowhere"), std::nullopt);
  EXPECT_EQ(latest(folder.path()), std::nullopt);
  for (const int64_t step : {1, 2, 3, 10}) save_on(2, folder.path(), step, 3);
  EXPECT_THAT(names_in(folder.path()),
              ElementsAre("step-00000002", "step-00000003", "step-00000010"));
  EXPECT_EQ(latest(folder.path()), folder / "step-00000010");
  // A lower step than those that are there (resumed from an older one): never removes itself.
  save_on(1, folder.path(), 1, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001"));
  save_on(1, folder.path(), 123'456'789'012, 0);
  EXPECT_EQ(latest(folder.path()), folder / "step-123456789012");
  EXPECT_EQ(names_in(folder.path()).size(), 2u);
}

TEST(Checkpoint, SavingAStepAgainReplacesIt) {
  const TempFolder folder;
  save_on(4, folder.path(), 5);
  save_on(2, folder.path(), 5);
  expect_loads_on(3, folder / "step-00000005", 5);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000005"));
  EXPECT_THAT(names_in(folder / "step-00000005"),
              ElementsAre("COMPLETE", "manifest.pb", "shard-00000-of-00002.safetensors",
                          "shard-00001-of-00002.safetensors"));
}

TEST(Checkpoint, ForeignFilesAreLeftAlone) {
  const TempFolder folder;
  for (const char* name :
       {"notes.txt", "step-1/x", "step-final/x", ".step-x.partial/x", "best/x"}) {
    write_all(folder / name, "mine");
  }
  write_all(folder / "step-00000009/shard", "a save that was killed");
  write_all(folder / ".step-00000008.partial/shard", "another");
  EXPECT_EQ(latest(folder.path()), std::nullopt);
  save_on(1, folder.path(), 10, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre(".step-x.partial", "best", "notes.txt",
                                                   "step-00000010", "step-1", "step-final"));
}

// The messages of all ranks, which must be equal up to the name of the rank.
std::vector<std::string> errors_of(int ranks, const std::function<void(dist::Group&)>& body) {
  std::vector<std::string> messages(static_cast<size_t>(ranks));
  dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
    try {
      body(world);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCheckpoint);
      messages[static_cast<size_t>(world.rank())] = error.what();
    }
  });
  for (const std::string& message : messages) EXPECT_EQ(message, messages[0]);
  return messages;
}

TEST(Checkpoint, AnErrorOnOneRankIsEveryRanksAndLeavesNothing) {
  const TempFolder folder;
  save_on(3, folder.path(), 1);
  for (const int failing : {0, 1, 2}) {
    for (const std::string event : {"shard created", "part of shard written", "shard synced"}) {
      const auto messages = errors_of(3, [&](dist::Group& world) {
        const TestState mine = make_state(world.rank(), 3);
        save(world, folder.path(), info_at(2), mine.state,
             SaveOptions{1, [&](std::string_view now) {
                           if (now == event && world.rank() == failing)
                             fail(ErrorCode::kCheckpoint, "disk is full");
                         }});
      });
      EXPECT_THAT(messages[0], HasSubstr("disk is full"));
      EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001"));
    }
  }
  expect_loads_on(2, *latest(folder.path()), 1);
}

TEST(Checkpoint, ADirectoryThatCannotBeMadeIsNamed) {
  const TempFolder folder;
  write_all(folder / "file", "not a folder");
  const auto messages = errors_of(2, [&](dist::Group& world) {
    const TestState mine = make_state(world.rank(), 2);
    save(world, folder / "file/checkpoints", info_at(1), mine.state, 0);
  });
  EXPECT_THAT(messages[0], HasSubstr(folder / "file"));
}

TEST(Checkpoint, AnotherModelIsRefusedWithBothValues) {
  const TempFolder folder;
  save_on(2, folder.path(), 1);
  const std::string path = folder / "step-00000001";
  const auto message = [&](const std::map<std::string, std::string>& model,
                           const std::vector<TestTensor>& tensors = test_tensors()) {
    return errors_of(3, [&](dist::Group& world) {
      const TestState mine = make_state(world.rank(), 3, tensors);
      fill(mine.state, 77);
      try {
        load(world, path, model, mine.state);
      } catch (const Error&) {
        expect_filled(mine.state, 77);  // a state that does not fit is not touched
        throw;
      }
    })[0];
  };
  EXPECT_EQ(message(test_model()), "");
  auto model = test_model();
  model["width"] = "128";
  EXPECT_THAT(message(model), HasSubstr("width is '64' in the checkpoint and '128' in this run"));
  model = test_model();
  model["heads"] = "4";
  EXPECT_THAT(message(model), HasSubstr("heads is not set in the checkpoint and '4' in this run"));
  model.clear();
  EXPECT_THAT(message(model), HasSubstr("layers is '2' in the checkpoint and not set in this run"));

  auto tensors = test_tensors();
  tensors[1].name = "layers.9.attention.wq";
  EXPECT_THAT(message(test_model(), tensors), HasSubstr("has no tensor 'layers.9.attention.wq'"));
  tensors = test_tensors();
  tensors[1].shape = {105};
  EXPECT_THAT(message(test_model(), tensors), HasSubstr("is F32[5, 7, 3] in checkpoint"));
  EXPECT_THAT(message(test_model(), tensors), HasSubstr("and F32[105] in this run"));
  tensors = test_tensors();
  tensors[1].dtype = DType::kF64;
  EXPECT_THAT(message(test_model(), tensors), HasSubstr("and F64[5, 7, 3] in this run"));
}

}  // namespace
}  // namespace longhaul::checkpoint
