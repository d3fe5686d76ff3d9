// Training runs, on ranks as threads: what they save, resume, see and refuse.
#include "launch/train/train.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "dist/local/local.h"
#include "kernels/core/random.h"
#include "launch/data/synthetic.h"
#include "launch/train/engine.h"
#include "launch/train/schedule.h"
#include "tests/slow_build.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
constexpr std::chrono::seconds kDeadline(120);

constexpr const char* kModel = R"(
  model { vocabulary: 16 layers: 2 width: 32 heads: 4 kv_heads: 2 head_dim: 8 mlp_width: 48
          norm_eps: 1e-5 rope_theta: 10000 tied_embeddings: true })";

class TrainTest : public testing::Test {
 protected:
  TrainTest() {
    write_copy_task(
        {.output = folder_ / "copy", .documents = 64, .tokens = 61, .vocabulary = 16, .seed = 1});
  }

  // Samples of 97 tokens, so that documents straddle samples and ranks; 4 samples a step.
  std::string text(const std::string& run, int64_t steps = 20) {
    return absl::StrCat(kModel, "data { path: '", folder_ / "copy",
                        "' sequence_length: 97 validation_fraction: 0.1 } train { steps: ", steps,
                        " batch_tokens: 388 warmup_steps: 5 run_directory: '", folder_ / run,
                        "' } checkpoint { every: 10 keep: 0 }");
  }

  void run(int ranks, const std::string& config, const std::vector<std::string>& set = {}) {
    Config parsed = parse_config(config, "test");
    for (const std::string& assignment : set) apply_override(parsed, assignment);
    dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
      Config mine = parsed;
      resolve(mine, world.size(), 1);
      train(world, mine);
    });
  }

  // Loss by step of a run's metrics.jsonl.
  std::map<int64_t, double> losses(const std::string& name) {
    std::map<int64_t, double> result;
    std::istringstream lines(read_all(folder_ / (name + "/metrics.jsonl")));
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line);
      if (!json.contains("loss")) continue;
      EXPECT_EQ(result.count(json["step"]), 0u) << "twice: " << line;
      result[json["step"]] = json["loss"];
    }
    return result;
  }

  std::string checkpoint(const std::string& run, int64_t step) {
    for (const auto& entry : fs::directory_iterator(folder_ / (run + "/checkpoints"))) {
      if (checkpoint::read_info(entry.path()).step == step) return entry.path();
    }
    ADD_FAILURE() << "no checkpoint of step " << step;
    return "";
  }

  // A run folder that has only come to `step`.
  void begin_from(const std::string& run, int64_t step, const std::string& fresh) {
    const fs::path from = checkpoint(run, step);
    fs::create_directories(folder_ / (fresh + "/checkpoints"));
    fs::copy(from, fs::path(folder_ / (fresh + "/checkpoints")) / from.filename(),
             fs::copy_options::recursive);
  }

  TempFolder folder_;
};

TEST_F(TrainTest, AttentionIsCheckedBeforeStepOneUnlessToldNotTo) {
  for (const bool check : {true, false}) {
    testing::internal::CaptureStdout();
    run(2, text(absl::StrCat("check", check), 1),
        {absl::StrCat("train.check_attention=", check ? "true" : "false")});
    const std::string said = testing::internal::GetCapturedStdout();
    const size_t line = said.find("check: strategy ring on layout zigzag equals one rank");
    EXPECT_EQ(line != std::string::npos, check) << said;
    EXPECT_TRUE(!check || line < said.find("1/1")) << said;
  }
}

TEST_F(TrainTest, ResumeOnTheSameRanksIsBitIdentical) {
  run(3, text("whole"));
  begin_from("whole", 10, "resumed");
  run(3, text("resumed"));
  const auto whole = losses("whole"), resumed = losses("resumed");
  ASSERT_EQ(whole.size(), 20u);
  ASSERT_EQ(resumed.size(), 10u);
  for (int64_t step = 11; step <= 20; ++step) EXPECT_EQ(resumed.at(step), whole.at(step)) << step;
  EXPECT_LT(whole.at(20), whole.at(1));
  int shards = 0;
  const fs::path a = checkpoint("whole", 20), b = checkpoint("resumed", 20);
  for (const auto& entry : fs::directory_iterator(a)) {
    if (entry.path().extension() != ".safetensors") continue;
    EXPECT_EQ(read_all(entry.path()), read_all(b / entry.path().filename()));
    ++shards;
  }
  EXPECT_EQ(shards, 3);
}

TEST_F(TrainTest, LayoutsThatChangeResumeBitIdentically) {
  const std::vector<std::string> set{"parallel.layout=balanced", "parallel.row_price=0",
                                     "parallel.strategy=group_cast"};
  run(3, text("whole"), set);
  begin_from("whole", 10, "resumed");
  run(3, text("resumed"), set);
  const auto whole = losses("whole"), resumed = losses("resumed");
  ASSERT_EQ(resumed.size(), 10u);
  for (int64_t step = 11; step <= 20; ++step) EXPECT_EQ(resumed.at(step), whole.at(step)) << step;
}

TEST_F(TrainTest, ResumeOnOtherRanksSeesTheSameTokens) {
  for (const auto& [from, to] : std::vector<std::pair<int, int>>{{4, 2}, {4, 3}, {2, 3}}) {
    const std::string whole = absl::StrCat("on", from);
    if (!fs::exists(folder_ / whole)) run(from, text(whole));
    const auto expected = losses(whole);
    const std::string name = absl::StrCat("from", from, "on", to);
    begin_from(whole, 10, name);
    run(to, text(name));
    const auto resumed = losses(name);
    ASSERT_EQ(resumed.size(), 10u);
    for (const auto& [step, loss] : resumed) {
      EXPECT_NEAR(loss, expected.at(step), 1e-5 * expected.at(step)) << name << " " << step;
    }
  }
}

// Softmax, linear attention and both; ranks, layouts, methods and what is kept change nothing.
TEST_F(TrainTest, HybridsTrainAndResumeOnOtherRanks) {
  for (const char* pattern : test::some_of<const char*>({"LN", "L"}, 2)) {
    const std::string set = absl::StrCat("model.pattern=", pattern), whole = pattern;
    run(2, text(whole), {set});
    const auto expected = losses(whole);
    EXPECT_LT(expected.at(20), expected.at(1)) << pattern;
    begin_from(whole, 10, whole + "again");
    run(2, text(whole + "again"), {set});
    const auto again = losses(whole + "again");
    ASSERT_EQ(again.size(), 10u);
    for (const auto& [step, loss] : again) EXPECT_EQ(loss, expected.at(step)) << step;
    const std::vector<std::pair<int, std::vector<std::string>>> others{
        {3, {"parallel.layout=contiguous", "parallel.linear_method=ring"}},
        {1, {"memory.activations=RECOMPUTE"}},
        {4, {"parallel.data=2", "parallel.linear_method=doubling"}},
        {3, {"parallel.layout=balanced", "parallel.row_price=0"}},
    };
    for (size_t i = 0; i < others.size(); ++i) {
      const std::string name = absl::StrCat(whole, "on", i);
      begin_from(whole, 10, name);
      std::vector<std::string> settings = others[i].second;
      settings.push_back(set);
      run(others[i].first, text(name), settings);
      const auto resumed = losses(name);
      ASSERT_EQ(resumed.size(), 10u) << name;
      for (const auto& [step, loss] : resumed) {
        EXPECT_NEAR(loss, expected.at(step), 1e-5 * expected.at(step)) << name << " " << step;
      }
    }
  }
}

// Frozen weights stay as they are, bit for bit, in checkpoints, too, and have no moments there;
// adapters change. Another number of ranks goes on from there.
TEST_F(TrainTest, AdaptersAreAllThatIsTrained) {
  for (const char* dtype : test::some_of<const char*>({"BF16", "F32"}, 2)) {
    SCOPED_TRACE(dtype);
    const std::vector<std::string> set{"lora.rank=4", absl::StrCat("train.dtype=", dtype)};
    const std::string whole = absl::StrCat("whole", dtype),
                      resumed = absl::StrCat("resumed", dtype);
    run(3, text(whole), set);
    int64_t frozen = 0, adapters = 0;
    for (const auto& entry : fs::directory_iterator(checkpoint(whole, 10))) {
      if (entry.path().extension() != ".safetensors") continue;
      const checkpoint::SafetensorsFile before(entry.path()),
          after(fs::path(checkpoint(whole, 20)) / entry.path().filename());
      for (const auto& [name, slice] : before.header().tensors) {
        const auto dtype_of_slice = checkpoint::dtype_from_safetensors(slice.dtype);
        ASSERT_TRUE(dtype_of_slice);
        const Tensor a(*dtype_of_slice, Shape{slice.shape}), b(*dtype_of_slice, a.shape());
        before.read(name, 0, a);
        after.read(name, 0, b);
        const bool same = std::memcmp(a.view().raw(), b.view().raw(),
                                      static_cast<size_t>(slice.end - slice.begin)) == 0;
        const bool adapter = name.find(".lora_") != std::string::npos;
        EXPECT_EQ(same, !adapter) << name;
        EXPECT_TRUE(adapter || name.find("adam") == std::string::npos) << name;
        ++(adapter ? adapters : frozen);
      }
    }
    EXPECT_GT(frozen, 20);
    EXPECT_GT(adapters, 3 * 28);  // values and two moments
    begin_from(whole, 10, resumed);
    run(2, text(resumed), set);
    for (const auto& [step, loss] : losses(resumed)) {
      EXPECT_NEAR(loss, losses(whole).at(step), std::string(dtype) == "F32" ? 1e-5 : 2e-2) << step;
    }
    EXPECT_LT(losses(whole).at(20), losses(whole).at(1));
  }
}

// What a new run begins with is what the other run ended with, bit for bit: a learning rate this
// small moves nothing.
TEST_F(TrainTest, ANewRunStartsFromTheWeightsOfAnother) {
  // One rank's slices are whole tensors.
  run(1, text("first", 10));
  const auto weights = [&](const std::string& name, int64_t step) {
    std::map<std::string, std::vector<float>> result;
    for (const auto& entry : fs::directory_iterator(checkpoint(name, step))) {
      if (entry.path().extension() != ".safetensors") continue;
      const checkpoint::SafetensorsFile file(entry.path());
      for (const auto& [key, slice] : file.header().tensors) {
        const DType dtype = *checkpoint::dtype_from_safetensors(slice.dtype);
        const Tensor values(dtype, Shape{slice.shape});
        file.read(key, 0, values);
        std::vector<float>& to = result[key];
        visit_float(dtype, [&]<class T>() {
          for (const T value : values.view().span<T>()) to.push_back(static_cast<float>(value));
        });
      }
    }
    return result;
  };
  const auto first = weights("first", 10);
  const std::string other_length = "data.sequence_length=53";
  const std::vector<std::vector<std::string>> others{
      {"model.rope_theta=50000", other_length, "train.batch_tokens=106"},
      {"train.dtype=BF16"},
      {"lora.rank=4", "model.attention.sliding_window=20"}};
  for (size_t i = 0; i < others.size(); ++i) {
    std::vector<std::string> set = others[i];
    const std::string name = absl::StrCat("other", i);
    set.insert(set.end(), {absl::StrCat("checkpoint.initial=", checkpoint("first", 10)),
                           "train.steps=1", "train.learning_rate=1e-30"});
    run(1, text(name, 1), set);
    int64_t compared = 0;
    for (const auto& [key, values] : weights(name, 1)) {
      if (key.find("adam") != std::string::npos || key.find(".lora_") != std::string::npos)
        continue;
      EXPECT_EQ(values, first.at(key)) << key;
      ++compared;
    }
    EXPECT_GT(compared, 15);
    EXPECT_EQ(losses(name).size(), 1u);  // from step 0
  }
  // On other ranks, with the loss that these weights have.
  const std::string from_first = absl::StrCat("checkpoint.initial=", folder_ / "first");
  for (const int ranks : {1, 3}) {
    run(ranks, text(absl::StrCat("on", ranks), 2), {from_first});
  }
  for (int64_t step = 1; step <= 2; ++step) {
    EXPECT_NEAR(losses("on3").at(step), losses("on1").at(step), 1e-5 * losses("on1").at(step));
  }
  // A run with a checkpoint of its own goes on from that.
  run(1, text("first", 12), {absl::StrCat("checkpoint.initial=", folder_ / "nowhere")});
  EXPECT_EQ(losses("first").size(), 12u);
}

TEST_F(TrainTest, WeightsThatDoNotFitAreRefused) {
  run(2, text("first", 2));
  run(1, text("adapted", 2), {"lora.rank=4"});
  const auto refused = [&](const std::string& from, const std::string& set) {
    const auto error = attempt([&] {
      run(2, text("new", 2), {absl::StrCat("checkpoint.initial=", folder_ / from), set});
    });
    EXPECT_TRUE(error && error->code() == ErrorCode::kCheckpoint) << set;
    return error ? std::string(error->what()) : "nothing was refused";
  };
  const auto names = [](const std::string& said, const std::string& what) {
    EXPECT_NE(said.find(what), std::string::npos) << said;
  };
  names(refused("nowhere", "train.steps=2"), "there is no");
  names(refused("first", "model.mlp_width=64"), "model.mlp_width is '48' in the checkpoint");
  // As many elements.
  names(refused("first", "model.norm_eps=1e-3"), "model.norm_eps");
  names(refused("adapted", "train.steps=2"), "lora.");
}

TEST_F(TrainTest, CheckpointsOfOtherPatternsAreRefused) {
  run(2, text("run", 10), {"model.pattern=LN"});
  const auto error = attempt([&] { run(2, text("run"), {"model.pattern=NL"}); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kCheckpoint);
  EXPECT_NE(std::string(error->what()).find("model.pattern"), std::string::npos) << error->what();
}

TEST_F(TrainTest, RunAgainRedoesOnlyWhatIsMissingAndEachStepStandsOnce) {
  run(2, text("run"));
  fs::remove_all(checkpoint("run", 20));  // as if killed after step 15
  run(2, text("run"));
  EXPECT_EQ(losses("run").size(), 20u);
  const auto before = fs::last_write_time(checkpoint("run", 20));
  run(2, text("run"));  // nothing left to do
  EXPECT_EQ(fs::last_write_time(checkpoint("run", 20)), before);
}

TEST_F(TrainTest, DataAxisAccumulationAndLayoutsDoNotChangeTheLoss) {
  run(1, text("one"));
  const auto expected = losses("one");
  const std::vector<std::pair<int, std::vector<std::string>>> cases{
      {4, {"parallel.data=2", "parallel.layout=striped"}},
      {2, {"parallel.data=2"}},
      {5, {"parallel.layout=contiguous", "memory.activations=RECOMPUTE"}},
      {3, {"parallel.strategy=ulysses"}},
      {4, {"parallel.data=4", "parallel.in_place=false"}},
      {3, {"parallel.layout=balanced", "parallel.row_price=0"}},
      {4, {"parallel.data=2", "parallel.layout=balanced", "parallel.in_place=false"}},
  };
  for (size_t i = 0; i < cases.size(); i += test::slow_build() ? 3 : 1) {
    const std::string name = absl::StrCat("case", i);
    run(cases[i].first, text(name), cases[i].second);
    for (const auto& [step, loss] : losses(name)) {
      EXPECT_NEAR(loss, expected.at(step), 1e-5 * expected.at(step)) << i << " step " << step;
    }
  }
}

// Window, soft-cap, sinks and dropout: the same on any ranks, through checkpoints, too.
TEST_F(TrainTest, OptionsOfAttentionDoNotDependOnRanks) {
  const std::vector<std::string> options{
      "model.attention.sliding_window=20", "model.attention.prefix_length=5",
      "model.attention.soft_cap=2", "model.attention.sinks=true", "model.attention.dropout=0.2"};
  run(1, text("one"), options);
  const auto expected = losses("one");
  std::vector<std::string> replicas = options;
  replicas.emplace_back("parallel.data=2");
  replicas.emplace_back("memory.activations=RECOMPUTE");
  run(4, text("four"), replicas);
  begin_from("four", 10, "resumed");
  run(3, text("resumed"), options);
  for (const char* name : {"four", "resumed"}) {
    for (const auto& [step, loss] : losses(name)) {
      EXPECT_NEAR(loss, expected.at(step), 1e-5 * expected.at(step)) << name << " step " << step;
    }
  }
  // A model without them is another one.
  try {
    run(3, text("four", 30));
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCheckpoint);
    EXPECT_NE(std::string(error.what()).find("model.attention."), std::string::npos)
        << error.what();
  }
}

TEST_F(TrainTest, CheckpointOfAnotherModelIsRefused) {
  run(2, text("run", 10));
  try {
    run(2, text("run", 20), {"model.layers=3"});
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCheckpoint);
    EXPECT_NE(std::string(error.what()).find("model.layers"), std::string::npos) << error.what();
  }
}

TEST_F(TrainTest, NanStopsNamingRankAndTensorAndKeepsTheCheckpoint) {
  run(3, text("run", 10));
  const std::string saved = read_all(checkpoint("run", 10) + "/COMPLETE");
  try {
    // Parameters so large that the next backward overflows.
    run(3, text("run", 20), {"train.learning_rate=1e30", "train.warmup_steps=1"});
    FAIL() << "trained";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNumerics);
    const std::string message = error.what();
    EXPECT_NE(message.find("step 12: loss "), std::string::npos) << message;
    EXPECT_NE(message.find("rank 0 in gradient of model."), std::string::npos) << message;
  }
  EXPECT_EQ(read_all(checkpoint("run", 10) + "/COMPLETE"), saved);
}

// A sample of the copy task with `tokens` tokens.
Sample copy_sample(int64_t tokens, uint64_t seed, const std::vector<int64_t>& document_begins) {
  Sample sample;
  for (int64_t i = 0; i < tokens; ++i) {
    const uint64_t bits =
        random_u64({.seed = seed, .stream = 9}, static_cast<uint64_t>(i % (tokens / 2)));
    sample.tokens.push_back(static_cast<int32_t>(bits % 16));
  }
  sample.labels.assign(sample.tokens.begin() + 1, sample.tokens.end());
  sample.labels.push_back(-1);
  sample.targets = tokens - 1;
  sample.documents = parallel::Documents(tokens, document_begins);
  return sample;
}

// Trains on fresh samples; returns the loss of the second half of unseen ones. A source lies half a
// sample back, so on 4 contiguous shards always on another rank.
double second_half_loss(bool cut_between_ranks) {
  constexpr int64_t kTokens = 128;
  constexpr int kRanks = 4;
  constexpr int kStepSamples = 8;
  // Cut: the same tokens and labels, but attention ends at the ranks' borders.
  const std::vector<int64_t> begins =
      cut_between_ranks ? std::vector<int64_t>{0, 32, 64, 96} : std::vector<int64_t>{0};
  const Config config = parse_config(
      R"(model { vocabulary: 16 layers: 2 width: 64 heads: 4 kv_heads: 2 head_dim: 16 mlp_width: 64
                 norm_eps: 1e-5 rope_theta: 10000 tied_embeddings: false }
         data { path: "none" sequence_length: 128 } parallel { layout: "contiguous" }
         train { steps: 200 weight_decay: 0.01 })",
      "test");
  const Schedule schedule{.peak = 3e-3, .minimum = 3e-4, .warmup_steps = 20, .steps = 200};
  double result = 0;
  dist::run_local(kRanks, kDeadline, [&](dist::Group& world) {
    Config mine = config;
    resolve(mine, world.size(), 1);
    Engine engine(world, mine);
    uint64_t seed = 0;
    for (int64_t step = 1; step <= schedule.steps; ++step) {
      for (int i = 0; i < kStepSamples; ++i) {
        engine.accumulate(copy_sample(kTokens, ++seed, begins),
                          1.0 / (kStepSamples * (kTokens - 1)));
      }
      engine.reduce_gradients();
      engine.update(schedule(step), step);
    }
    Engine::PositionLoss loss{std::vector<double>(2), std::vector<double>(2)};
    for (int i = 0; i < 4; ++i) engine.evaluate(copy_sample(kTokens, ++seed, begins), loss);
    const double sum = world.sum(loss.sum[1], "test"), count = world.sum(loss.count[1], "test");
    if (world.rank() == 0) result = sum / count;
  });
  return result;
}

TEST(CopyTask, IsLearnedFromOtherRanks) { EXPECT_LT(second_half_loss(false), 0.3); }

TEST(CopyTask, CannotBeLearnedWithAttentionCutBetweenRanks) {
  EXPECT_GT(second_half_loss(true), 2.0);
}

TEST(Engine, UsesTheMemoryThatWasMeasured) {
  for (const char* activations : {"KEEP", "RECOMPUTE"}) {
    for (const char* dtype : {"F32", "BF16"}) {
      const bool options = std::string_view(dtype) == "BF16";
      Config config =
          parse_config(absl::StrCat(kModel,
                                    "data { path: 'none' sequence_length: 64 } memory { "
                                    "activations: ",
                                    activations, " } train { steps: 1 dtype: ", dtype, " }"),
                       "test");
      if (options) {
        for (const char* assignment : {"model.attention.dropout=0.1", "model.attention.sinks=true",
                                       "model.attention.soft_cap=5"}) {
          apply_override(config, assignment);
        }
      }
      dist::run_local(3, kDeadline, [&](dist::Group& world) {
        Config mine = config;
        resolve(mine, world.size(), 2);
        Engine engine(world, mine);
        engine.accumulate(copy_sample(64, 1, {0, 30}), 1.0 / 63);
        EXPECT_TRUE(std::isfinite(engine.reduce_gradients()));
        engine.update(1e-3, 1);
        EXPECT_FALSE(engine.find_non_finite(copy_sample(64, 1, {0, 30})).has_value());
        EXPECT_EQ(engine.memory().peaks(), engine.memory().capacities());
      });
    }
  }
}

// What one engine makes of samples with other documents each: losses, work, losses by position.
struct SampleResults {
  std::vector<double> losses, flops, by_position;
  std::set<std::vector<std::vector<int64_t>>> layouts;  // first tokens of all ranks' runs
};
SampleResults run_samples(int ranks, const std::string& parallel) {
  constexpr int64_t kTokens = 131;
  const Config config = parse_config(
      absl::StrCat(kModel,
                   "data { path: 'none' sequence_length: 131 } train { steps: 1 dtype: F64 "
                   "} parallel { threads: 1 ",
                   parallel, " }"),
      "test");
  SampleResults results;
  dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
    Config mine = config;
    resolve(mine, world.size(), 1);
    Engine engine(world, mine);
    Engine::PositionLoss position{std::vector<double>(4), std::vector<double>(4)};
    SampleResults all;
    for (uint64_t seed = 1; seed <= 12; ++seed) {
      std::vector<int64_t> begins;
      for (int64_t at = 0; at < kTokens;) {
        begins.push_back(at);
        const uint64_t bits = random_u64({.seed = seed, .stream = 3}, static_cast<uint64_t>(at));
        at += 1 + static_cast<int64_t>(bits % (seed % 3 == 0 ? 120 : 25));
      }
      const Sample sample = copy_sample(kTokens, seed, begins);
      const double loss = engine.accumulate(sample, 1.0 / kTokens);
      all.losses.push_back(world.sum(loss, "test"));
      all.flops.push_back(world.sum(engine.sample_flops(), "test"));
      engine.evaluate(sample, position);
      std::vector<std::vector<int64_t>> layout;
      for (int r = 0; r < engine.layout().ranks(); ++r) {
        layout.emplace_back();
        for (const auto& run : engine.layout().runs(r)) layout.back().push_back(run.global_begin);
      }
      all.layouts.insert(layout);
    }
    all.losses.push_back(engine.reduce_gradients());
    for (const double sum : position.sum) all.by_position.push_back(world.sum(sum, "test"));
    if (world.rank() == 0) results = all;
  });
  return results;
}

TEST(Engine, MakesTheLayoutOfEachSampleWithinTheSameMemory) {
  const SampleResults one = run_samples(1, "");
  for (const char* more : {"", "in_place: false", "strategy: 'ulysses'", "strategy: 'group_cast'",
                           "strategy: 'group_cast' in_place: false"}) {
    SCOPED_TRACE(more);
    const SampleResults many =
        run_samples(5, absl::StrCat("layout: 'balanced' row_price: 0 ", more));
    EXPECT_GE(many.layouts.size(), 10u);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(many.losses[i], one.losses[i], 1e-11 * one.losses[i]) << i;
    }
    for (size_t i = 0; i < one.flops.size(); ++i) {
      EXPECT_NEAR(many.flops[i], one.flops[i], 1e-9 * one.flops[i]) << i;
    }
    for (size_t i = 0; i < one.by_position.size(); ++i) {
      EXPECT_NEAR(many.by_position[i], one.by_position[i], 1e-9 * one.by_position[i]) << i;
    }
  }
}

TEST(Engine, EvaluatesWithoutDropout) {
  constexpr const char* kText = "data { path: 'none' sequence_length: 64 } train { steps: 1 }";
  double training[2], evaluation[2];
  for (int dropout : {0, 1}) {
    Config config = parse_config(absl::StrCat(kModel, kText), "test");
    if (dropout == 1) apply_override(config, "model.attention.dropout=0.5");
    dist::run_local(1, kDeadline, [&](dist::Group& world) {
      Config mine = config;
      resolve(mine, 1, 1);
      Engine engine(world, mine);
      Engine::PositionLoss loss{{0.0}, {0.0}};
      engine.evaluate(copy_sample(64, 1, {0}), loss);
      evaluation[dropout] = loss.sum[0];
      training[dropout] = engine.accumulate(copy_sample(64, 1, {0}), 1.0);
      Sample next = copy_sample(64, 1, {0});
      next.index = 1;  // the same tokens again, later in the run
      const double again = engine.accumulate(copy_sample(64, 1, {0}), 1.0);
      EXPECT_EQ(again, training[dropout]);
      EXPECT_EQ(engine.accumulate(next, 1.0) == training[dropout], dropout == 0);
    });
  }
  EXPECT_EQ(evaluation[0], evaluation[1]);
  EXPECT_NE(training[0], training[1]);
}

TEST(Engine, FindsTheLayerInWhichNanBegins) {
  const Config config = parse_config(
      absl::StrCat(kModel, "data { path: 'none' sequence_length: 64 } train { steps: 1 }"), "test");
  dist::run_local(2, kDeadline, [&](dist::Group& world) {
    Config mine = config;
    resolve(mine, world.size(), 1);
    Engine engine(world, mine);
    for (const checkpoint::Slice& slice : engine.state()) {
      if (slice.name != "model.layers.1.self_attn.v_proj.weight") continue;
      for (float& value : slice.data.span<float>()) value = std::nanf("");
    }
    engine.state_loaded();
    const auto finding = engine.find_non_finite(copy_sample(64, 1, {0}));
    ASSERT_TRUE(finding.has_value());
    EXPECT_EQ(finding->find("layer 1, attention output, row 0"), 0u) << *finding;
  });
}

}  // namespace
}  // namespace longhaul::launch
