// Training with core attention disaggregation: attention of all replicas together, in place and on
// dedicated servers, trains as one rank does.
#include "launch/train/server.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "checkpoint/checkpoint.h"
#include "dist/local/local.h"
#include "kernels/core/random.h"
#include "launch/config/cluster.h"
#include "launch/data/synthetic.h"
#include "launch/train/engine.h"
#include "launch/train/train.h"
#include "tests/slow_build.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
constexpr std::chrono::seconds kDeadline(120);
constexpr int64_t kTokens = 263;  // prime, and more than a tile
constexpr const char* kModel = R"(
  model { vocabulary: 16 layers: 3 width: 32 heads: 4 kv_heads: 2 head_dim: 8 mlp_width: 48
          norm_eps: 1e-5 tied_embeddings: true } )";

// Samples that are unlike: one document, a few, many.
Sample sample_of(int64_t index) {
  Sample sample;
  sample.index = index;
  const auto seed = static_cast<uint64_t>(index);
  for (int64_t i = 0; i <= kTokens; ++i) {
    const uint64_t bits = random_u64({.seed = seed, .stream = 1}, static_cast<uint64_t>(i));
    sample.tokens.push_back(static_cast<int32_t>(bits % 16));
  }
  sample.labels.assign(sample.tokens.begin() + 1, sample.tokens.end());
  sample.tokens.pop_back();
  sample.targets = kTokens;
  std::vector<int64_t> begins;
  const uint64_t longest = std::array<uint64_t, 3>{100'000, 90, 11}[seed % 3];
  for (int64_t at = 0; at < kTokens;) {
    begins.push_back(at);
    const uint64_t bits = random_u64({.seed = seed, .stream = 2}, static_cast<uint64_t>(at));
    at += 1 + static_cast<int64_t>(longest > kTokens ? kTokens : bits % longest);
  }
  sample.documents = parallel::Documents(kTokens, std::move(begins));
  return sample;
}

struct Result {
  std::vector<double> numbers;  // losses, norms, losses of evaluation
  std::map<std::string, std::vector<double>> gradients, values;  // by parameter
  std::vector<int64_t> planned, planned_ahead;                   // by rank
};

// The trainers' sums of gradients, or the values, by parameter.
std::map<std::string, std::vector<double>> by_parameter(Engine& engine, bool gradients) {
  std::map<std::string, std::vector<double>> result;
  const parallel::ParameterStore& store = engine.parameters();
  for (const auto& entry : store.entries()) {
    const auto& bucket = store.bucket_of(entry);
    const TensorView from =
        (gradients ? bucket.gradients : bucket.values).rows(entry.offset, entry.size());
    Tensor copy(DType::kF64, {entry.size()});
    std::copy_n(from.data<double>(), entry.size(), copy.span<double>().begin());
    Stream stream;
    if (gradients) {
      engine.mesh().trainers().all_reduce(stream, copy, dist::ReduceOp::kSum, "test").wait(stream);
    }
    result[entry.spec.name] = {copy.span<double>().begin(), copy.span<double>().end()};
  }
  return result;
}

// Two optimizer steps of six samples, each with an evaluation of four. ahead: of each sample it is
// said which one comes next, also of the last one, after which none comes.
Result train_on(int ranks, const std::string& parallel, const std::vector<std::string>& set,
                bool ahead = true) {
  constexpr int64_t kStepSamples = 6, kSteps = 2, kEvaluated = 4;
  Config config = parse_config(
      absl::StrCat(kModel, "data { path: 'none' sequence_length: ", kTokens,
                   " } train { steps: 1 dtype: F64 } parallel { threads: 1 ", parallel, " }"),
      "test");
  for (const std::string& assignment : set) apply_override(config, assignment);
  Result result;
  std::vector<int64_t> planned(static_cast<size_t>(ranks)), planned_ahead = planned;
  dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
    Config mine = config;
    resolve(mine, world.size(), 1);
    const auto count = [&](const parallel::CoreAttention& attention) {
      planned[static_cast<size_t>(world.rank())] = attention.planned_count();
      planned_ahead[static_cast<size_t>(world.rank())] = attention.planned_ahead_count();
    };
    if (world.rank() >= world.size() - mine.parallel().servers()) {
      Server server(world, mine);
      server.run();
      count(server.attention());
      for (const auto& [name, bytes] : server.memory().capacities()) {
        const bool used = name == "workspace" || name == "communication";
        EXPECT_EQ(bytes > 0, used) << name;
      }
      return;
    }
    Engine engine(world, mine);
    Result here;
    engine.attention_rank().lead([&] {
      dist::Group& trainers = engine.mesh().trainers();
      const int replicas = mine.parallel().data(), replica = engine.mesh().data_rank();
      const auto evaluate = [&] {
        Engine::PositionLoss position{std::vector<double>(3), std::vector<double>(3)};
        for (int64_t first = 0; first < kEvaluated; first += replicas) {
          if (first + replica < kEvaluated) {
            engine.evaluate(sample_of(100 + first + replica), position);
          } else {
            engine.evaluate_nothing();
          }
        }
        for (const double sum : position.sum) here.numbers.push_back(trainers.sum(sum, "test"));
      };
      for (int64_t step = 0; step < kSteps; ++step) {
        double loss = 0;
        for (int64_t i = replica; i < kStepSamples; i += replicas) {
          const int64_t index = step * kStepSamples + i;
          const parallel::Documents next = sample_of(index + replicas).documents;
          loss += engine.accumulate(sample_of(index), 1.0 / 1000, nullptr, ahead ? &next : nullptr);
        }
        here.numbers.push_back(trainers.sum(loss, "test"));
        if (step == 0) here.gradients = by_parameter(engine, true);
        here.numbers.push_back(engine.reduce_gradients());
        engine.update(1e-2, step + 1);
        evaluate();
      }
      here.values = by_parameter(engine, false);
    });
    count(engine.attention());
    if (world.rank() == 0) result = here;
  });
  result.planned = planned;
  result.planned_ahead = planned_ahead;
  return result;
}

void expect_equal(const Result& a, const Result& b) {
  ASSERT_EQ(a.numbers.size(), b.numbers.size());
  // AdamW, which divides small gradients by their size, comes after the first step's.
  for (size_t i = 0; i < a.numbers.size(); ++i) {
    EXPECT_NEAR(a.numbers[i], b.numbers[i], (i < 2 ? 1e-12 : 1e-8) * std::abs(b.numbers[i])) << i;
  }
  const auto expect_near = [](const auto& mine, const auto& others, double limit) {
    ASSERT_EQ(mine.size(), others.size());
    for (const auto& [name, values] : mine) {
      const std::vector<double>& expected = others.at(name);
      double most = 0, difference = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        most = std::max(most, std::abs(expected[i]));
        difference = std::max(difference, std::abs(values[i] - expected[i]));
      }
      EXPECT_LE(difference, limit * most) << name;
    }
  };
  expect_near(a.gradients, b.gradients, 1e-11);
  expect_near(a.values, b.values, 1e-8);
}

struct Ranks {
  int ranks;
  std::string parallel;
};

TEST(Servers, TrainAsOneRankAndAsTheRing) {
  const Result one = train_on(1, "", {});
  expect_equal(train_on(4, "data: 2", {}), one);
  const std::vector<Ranks> cases{
      {2, "data: 2"},
      {3, "data: 3"},
      {3, "data: 1"},
      {4, "data: 2 layout: 'contiguous'"},
      {4, "data: 2 layout: 'balanced' row_price: 0"},
      {4, "data: 2 nano_batches: 3"},
      {4, "data: 3 servers: 1"},
      {4, "data: 2 servers: 2 nano_batches: 2 server_buffer_mib: 4"},
      {4, "data: 2 servers: 2"},
      {4, "data: 1 servers: 3 layout: 'striped'"},
      {4, "data: 1 servers: 2"},
      {5, "data: 2 servers: 1 layout: 'balanced' row_price: 0"},
      {7, "data: 2 servers: 3 layout: 'striped'"},
  };
  for (const Ranks& c : test::some_of(cases, 3)) {
    SCOPED_TRACE(absl::StrCat(c.ranks, " ranks, ", c.parallel));
    expect_equal(train_on(c.ranks, absl::StrCat("strategy: 'disaggregated' ", c.parallel), {}),
                 one);
  }
}

// Servers serve softmax layers only; what is kept, and what attention is, changes nothing for them.
TEST(Servers, ServeAnyModel) {
  const std::vector<std::vector<std::string>> models{
      {"model.pattern=LNL"},
      {"model.pattern=NL", "memory.activations=RECOMPUTE"},
      {"model.attention.sliding_window=50", "model.attention.sinks=true",
       "model.attention.soft_cap=3", "model.attention.prefix_length=4"},
      {"model.attention.alibi=true", "memory.activations=RECOMPUTE"},
  };
  for (const std::vector<std::string>& model : models) {
    SCOPED_TRACE(model.front());
    const Result one = train_on(1, "", model);
    if (!test::slow_build()) {
      expect_equal(train_on(3, "strategy: 'disaggregated' data: 3", model), one);
    }
    expect_equal(train_on(5, "strategy: 'disaggregated' data: 2 servers: 1", model), one);
  }
  const std::vector<std::string> dropout{"model.attention.dropout=0.2"};
  expect_equal(train_on(3, "strategy: 'disaggregated' servers: 1", dropout),
               train_on(1, "", dropout));
}

// To the last bit. Every training sample but the first one was planned ahead, on all ranks.
TEST(Servers, PlanAhead) {
  struct Case {
    Ranks ranks;
    int64_t planned_ahead;
  };
  const std::vector<Case> cases{
      {{3, "strategy: 'disaggregated' data: 3"}, 3},
      {{4, "strategy: 'disaggregated' data: 2 layout: 'balanced' row_price: 0"}, 5},
      // Evaluates four samples by three replicas: two have none at the end.
      {{4, "strategy: 'disaggregated' data: 3 servers: 1"}, 3},
      {{4, "strategy: 'disaggregated' data: 2 servers: 2 nano_batches: 2"}, 5},
      {{4, "data: 2 layout: 'balanced' row_price: 0"}, -1},  // local
  };
  for (const Case& c : test::some_of(cases, 3)) {
    SCOPED_TRACE(absl::StrCat(c.ranks.ranks, " ranks, ", c.ranks.parallel));
    const Result ahead = train_on(c.ranks.ranks, c.ranks.parallel, {}, true);
    const Result without = train_on(c.ranks.ranks, c.ranks.parallel, {}, false);
    EXPECT_EQ(ahead.numbers, without.numbers);
    EXPECT_EQ(ahead.gradients, without.gradients);
    EXPECT_EQ(ahead.values, without.values);
    EXPECT_EQ(ahead.planned, without.planned);
    for (const int64_t count : without.planned_ahead) EXPECT_EQ(count, 0);
    for (const int64_t count : ahead.planned_ahead) {
      if (c.planned_ahead >= 0) {
        EXPECT_EQ(count, c.planned_ahead);
      } else {
        EXPECT_GT(count, 0);
      }
    }
  }
}

// As with another C library: one rank schedules otherwise. Nobody waits for its messages, and
// trainers and servers end alike; an error of theirs while a plan is pending is no other.
TEST(Servers, RanksThatPlanDifferentlyEndWithOneError) {
  Config config = parse_config(
      absl::StrCat(kModel, "data { path: 'none' sequence_length: ", kTokens,
                   " } train { steps: 1 } parallel { threads: 1 strategy: 'disaggregated' }"),
      "test");
  for (const int servers : {0, 2}) {
    for (const int other : {0, 3}) {
      SCOPED_TRACE(absl::StrCat(servers, " servers, rank ", other));
      std::vector<std::optional<Error>> errors(4);
      dist::run_local(4, kDeadline, [&](dist::Group& world) {
        Config mine = config;
        mine.mutable_parallel()->set_data(2);
        mine.mutable_parallel()->set_servers(servers);
        if (world.rank() == other) mine.mutable_parallel()->set_nano_batches(2);
        resolve(mine, world.size(), 1);
        errors[static_cast<size_t>(world.rank())] = attempt([&] {
          if (world.rank() >= 4 - servers) {
            Server(world, mine).run();
            return;
          }
          Engine engine(world, mine);
          const int replica = engine.mesh().data_rank();
          const parallel::Documents next = sample_of(3 + replica).documents;
          engine.attention_rank().lead(
              [&] { engine.accumulate(sample_of(1 + replica), 1.0, nullptr, &next); });
        });
      });
      for (const auto& error : errors) {
        ASSERT_TRUE(error);
        EXPECT_EQ(error->code(), ErrorCode::kEnvironment) << error->what();
        EXPECT_TRUE(std::string(error->what())
                        .starts_with(
                            absl::StrCat("ranks planned the same attention in 2 ways: ",
                                         other == 0 ? "rank 0; ranks 1-3;" : "ranks 0-2; rank 3;")))
            << error->what();
      }
    }
  }
}

// A second forward of attention would be a second round of messages, which nobody awaits.
TEST(Servers, RecomputationRunsNoAttentionAgain) {
  Config config = parse_config(
      absl::StrCat(kModel, "data { path: 'none' sequence_length: ", kTokens,
                   " } train { steps: 1 } memory { activations: RECOMPUTE } parallel { threads: 1 "
                   "strategy: 'disaggregated' data: 2 servers: 1 }"),
      "test");
  dist::run_local(3, kDeadline, [&](dist::Group& world) {
    Config mine = config;
    resolve(mine, world.size(), 1);
    if (world.rank() == 2) {
      Server server(world, mine);
      server.run();
      EXPECT_EQ(server.attention().forward_count(), 2 * 3);  // samples x layers
      return;
    }
    Engine engine(world, mine);
    engine.attention_rank().lead([&] {
      for (int64_t i = 0; i < 2; ++i) engine.accumulate(sample_of(2 * i + world.rank()), 1.0);
    });
    EXPECT_EQ(engine.attention().forward_count(), 2 * 3);
  });
}

TEST(Servers, BuffersThatAreTooSmallAreAnErrorBeforeStepOneThatSaysByHowMuch) {
  Config config = parse_config(
      absl::StrCat(kModel,
                   "data { path: 'none' sequence_length: 2500 } train { steps: 1 dtype: F64 } "
                   "parallel { threads: 1 strategy: 'disaggregated' data: 2 servers: 1 "
                   "server_buffer_mib: 0.25 }"),
      "test");
  const auto start = [&] {
    dist::run_local(3, kDeadline, [&](dist::Group& world) {
      Config mine = config;
      resolve(mine, world.size(), 1);
      if (world.rank() == 2) {
        const Server server(world, mine);
      } else {
        const Engine engine(world, mine);
      }
    });
  };
  const auto error = attempt(start);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kConfig) << error->what();
  EXPECT_NE(std::string(error->what()).find("server_buffer_mib"), std::string::npos)
      << error->what();
  EXPECT_NE(std::string(error->what()).find(" more than there are; raise it by as much"),
            std::string::npos)
      << error->what();
  config.mutable_parallel()->clear_server_buffer_mib();
  EXPECT_FALSE(attempt(start));
}

// Whole runs.
class ServerRun : public testing::Test {
 protected:
  ServerRun() {
    write_copy_task(
        {.output = folder_ / "copy", .documents = 64, .tokens = 61, .vocabulary = 16, .seed = 1});
  }

  void run(int ranks, const std::string& name, const std::string& parallel,
           const std::vector<std::string>& set = {}) {
    Config parsed = parse_config(
        absl::StrCat(kModel, "data { path: '", folder_ / "copy",
                     "' sequence_length: 197 validation_fraction: 0.3 } train { steps: 12 dtype: "
                     "F64 batch_tokens: 1182 warmup_steps: 5 run_directory: '",
                     folder_ / name,
                     "' validate_every: 6 validation_samples: 4 } checkpoint { "
                     "every: 6 keep: 0 } parallel { threads: 1 ",
                     parallel, " }"),
        "test");
    for (const std::string& assignment : set) apply_override(parsed, assignment);
    dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
      Config mine = parsed;
      resolve(mine, world.size(), 1);
      train(world, mine);
    });
  }

  // Numbers of metrics.jsonl by step and name.
  std::map<std::string, double> numbers(const std::string& name) {
    std::map<std::string, double> result;
    std::istringstream lines(read_all(folder_ / (name + "/metrics.jsonl")));
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line);
      const std::string step = absl::StrCat(json["step"].get<int64_t>(), " ");
      for (const char* key :
           {"loss", "grad_norm", "validation_loss", "validation_tokens", "trainers", "servers"}) {
        if (json.contains(key)) result[step + key] = json[key];
      }
    }
    return result;
  }

  // A run folder that has only come to step 6.
  void begin_from(const std::string& run, const std::string& fresh) {
    for (const auto& entry : fs::directory_iterator(folder_ / (run + "/checkpoints"))) {
      if (checkpoint::read_info(entry.path()).step != 6) continue;
      const fs::path to = folder_ / (fresh + "/checkpoints");
      fs::create_directories(to);
      fs::copy(entry.path(), to / entry.path().filename(), fs::copy_options::recursive);
    }
  }

  TempFolder folder_;
};

// Batches of 6 samples, validation of 4: not a multiple of 3 replicas.
TEST_F(ServerRun, ValidatesSavesAndResumesWithOtherServers) {
  run(1, "one", "");
  const auto expected = numbers("one");
  EXPECT_EQ(expected.count("6 validation_loss") + expected.count("12 validation_loss"), 2u);
  run(4, "dedicated", "strategy: 'disaggregated' data: 3 servers: 1");
  std::map<std::string, int> servers{{"dedicated", 1}, {"more servers", 2}};
  begin_from("dedicated", "more servers");
  run(4, "more servers", "strategy: 'disaggregated' data: 2 servers: 2");
  if (!test::slow_build()) {
    servers.insert({{"in place", 0}, {"without", 0}});
    begin_from("dedicated", "in place");
    run(4, "in place", "strategy: 'disaggregated' data: 2");
    begin_from("dedicated", "without");
    run(3, "without", "data: 3");
  }
  for (const auto& [name, count] : servers) {
    const auto found = numbers(name);
    EXPECT_GE(found.size(), name == "dedicated" ? 52u : 26u) << name;
    for (const auto& [key, value] : found) {
      if (key.ends_with("servers")) {
        EXPECT_EQ(value, count) << name;
      } else if (!key.ends_with("trainers")) {
        EXPECT_NEAR(value, expected.at(key), 1e-8 * std::abs(expected.at(key)))
            << name << " " << key;
      }
    }
  }
  // The same ranks again: to the last bit.
  begin_from("dedicated", "again");
  run(4, "again", "strategy: 'disaggregated' data: 3 servers: 1");
  const auto first = numbers("dedicated");
  for (const auto& [key, value] : numbers("again")) EXPECT_EQ(value, first.at(key)) << key;
}

TEST_F(ServerRun, ChecksAttentionOfAllRanksAndSaysWhoServes) {
  testing::internal::CaptureStdout();
  run(4, "run", "strategy: 'disaggregated' data: 2 servers: 2", {"train.steps=1"});
  const std::string said = testing::internal::GetCapturedStdout();
  EXPECT_NE(said.find("4 ranks (data 2 x sequence 1 + 2 servers)"), std::string::npos) << said;
  EXPECT_NE(said.find("check: strategy disaggregated on layout zigzag equals one rank"),
            std::string::npos)
      << said;
}

// Two documents of three samples: replicas with one and with halves of two have unlike work.
TEST_F(ServerRun, SaysOnceWhereBuffersAreTooSmallForTheScheduleAndWhatWouldDo) {
  if (test::slow_build()) GTEST_SKIP() << "left to fast builds";
  write_copy_task(
      {.output = folder_ / "long", .documents = 8, .tokens = 2999, .vocabulary = 16, .seed = 1});
  const auto said_by = [&](int ranks, const std::string& name, const std::string& parallel) {
    testing::internal::CaptureStdout();
    const auto error = attempt([&] {
      run(ranks, name, "strategy: 'disaggregated' " + parallel,
          {"train.steps=4", "data.sequence_length=2000", "train.batch_tokens=8000",
           "train.validate_every=0", "train.warmup_steps=1", "model.layers=1",
           absl::StrCat("data.path=", folder_ / "long")});
    });
    const std::string said = testing::internal::GetCapturedStdout();
    EXPECT_FALSE(error) << error->what();
    return said;
  };
  const auto lines_of = [&](const std::string& name) {
    std::vector<nlohmann::json> lines;
    std::istringstream text(read_all(folder_ / (name + "/metrics.jsonl")));
    for (std::string line; std::getline(text, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.contains("grad_norm")) lines.push_back(json);
    }
    return lines;
  };
  const std::string kGaveWay = "gave way to its buffers in step ";
  const auto number_after = [](const std::string& text, const std::string& words) {
    const size_t at = text.find(words);
    return at == std::string::npos ? -1.0 : std::stod(text.substr(at + words.size()));
  };
  const double kBalanced = 1.05 + 0.05;  // and a tile
  struct Case {
    int ranks;
    std::string parallel;
    double mib;
  };
  for (const Case& c :
       {Case{2, "data: 2 ", 0.25}, Case{5, "data: 4 servers: 1 nano_batches: 6 ", 11.85}}) {
    SCOPED_TRACE(c.parallel);
    const std::string small =
        said_by(c.ranks, "small", absl::StrCat(c.parallel, "server_buffer_mib: ", c.mib));
    const size_t first = small.find(kGaveWay);
    ASSERT_NE(first, std::string::npos) << small;
    EXPECT_EQ(small.find(kGaveWay, first + 1), std::string::npos) << small;
    const double step = number_after(small, kGaveWay);
    const double enough = number_after(small, "server_buffer_mib: ");
    EXPECT_GT(enough, c.mib);
    const auto limited = lines_of("small");
    ASSERT_EQ(limited.size(), 4u);
    for (const auto& line : limited) {
      if (c.ranks == 2) {
        EXPECT_EQ(line["limited_by_buffers"], line["planned_max_over_mean"] > kBalanced);
      }
      if (c.ranks == 5) {
        EXPECT_EQ(line["limited_by_buffers"], line["rounds"] < 6);
      }
      if (line["step"] == step) {
        EXPECT_TRUE(line["limited_by_buffers"]);
      }
      if (line["step"] < step) {
        EXPECT_FALSE(line["limited_by_buffers"]);
      }
    }
    // What would do for that sample does.
    said_by(c.ranks, "enough", absl::StrCat(c.parallel, "server_buffer_mib: ", enough));
    for (const auto& line : lines_of("enough")) {
      if (line["step"] == step) {
        EXPECT_FALSE(line["limited_by_buffers"]);
      }
    }
    const std::string unset = said_by(c.ranks, "unset", c.parallel);
    EXPECT_EQ(unset.find(kGaveWay), std::string::npos) << unset;
    for (const auto& line : lines_of("unset")) {
      EXPECT_FALSE(line["limited_by_buffers"]);
      EXPECT_LE(line["planned_max_over_mean"], kBalanced);
    }
    for (const char* name : {"small", "enough", "unset"}) fs::remove_all(folder_ / name);
  }
  run(1, "one", "", {"train.steps=1"});
  EXPECT_FALSE(lines_of("one").front().contains("planned_max_over_mean"));
}

// Costs change who computes what, not what comes out.
TEST_F(ServerRun, TasksWeighWhatTheClusterDescriptionSays) {
  run(1, "one", "", {"train.steps=6"});
  const auto expected = numbers("one");
  parallel::Cluster cluster;
  cluster.memory_bytes_per_second = 1e10;
  cluster.within_node =
      parallel::Link{.seconds_per_message = 1e-6, .bytes_per_second = 1e9, .processor_share = 0};
  for (const int64_t head_dim : {8, 16}) {
    cluster.profiles = {{.dtype = DType::kF64,
                         .head_dim = head_dim,
                         .lengths = {8, 256},
                         .forward = {5e-8, 2e-8, 2e-8, 1e-9},
                         .backward = {9e-8, 4e-8, 4e-8, 3e-9},
                         .forward_border = 8,
                         .backward_border = 8}};
    const std::string path = folder_ / absl::StrCat("cluster", head_dim);
    std::ofstream(path) << list_text(to_message(cluster));
    const std::string name = absl::StrCat("weighed", head_dim);
    testing::internal::CaptureStdout();
    run(4, name, absl::StrCat("strategy: 'disaggregated' data: 2 servers: 2 cluster: '", path, "'"),
        {"train.steps=6"});
    const std::string said = testing::internal::GetCapturedStdout();
    EXPECT_NE(said.find(head_dim == 8 ? "what the attention kernel takes by " + path
                                      : "no kernel for f64 and heads of 8 is in " + path),
              std::string::npos)
        << said;
    for (const auto& [key, value] : numbers(name)) {
      if (key.ends_with("ers")) continue;
      EXPECT_NEAR(value, expected.at(key), 1e-8 * std::abs(expected.at(key))) << key;
    }
  }
}

// What trainers find ends the servers, too, with the same error.
TEST_F(ServerRun, ErrorsOfTrainersEndTheServers) {
  const std::string parallel = "strategy: 'disaggregated' data: 2 servers: 2";
  run(4, "run", parallel, {"train.steps=6"});
  const auto error_of = [&](const std::vector<std::string>& set) {
    return attempt([&] { run(4, "run", parallel, set); });
  };
  auto error = error_of({"model.layers=4"});
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kCheckpoint) << error->what();
  EXPECT_NE(std::string(error->what()).find("model.layers"), std::string::npos) << error->what();
  error = error_of({"train.learning_rate=1e200", "train.min_learning_rate=1e200"});
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kNumerics) << error->what();
  error = error_of({absl::StrCat("data.path=", folder_ / "nowhere")});
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), ErrorCode::kData) << error->what();
}

}  // namespace
}  // namespace longhaul::launch
