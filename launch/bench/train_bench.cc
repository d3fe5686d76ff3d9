#include "launch/bench/train_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/random.h"
#include "kernels/peak.h"
#include "launch/cli/ranks.h"
#include "launch/config/config.h"
#include "launch/train/engine.h"
#include "launch/train/metrics.h"
#include "launch/train/server.h"
#include "launch/train/step_report.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;

struct CaseResult {
  int64_t steps = 0;
  double tokens_per_second = 0;
  double seconds = 0;        // of the median step
  double flops = 0;          // of a step
  double peak_flops = 0;     // of all ranks, mean of before and after
  double peak_drift = 0;     // between before and after, relative
  double communication = 0;  // share of the step in which a rank could only wait
  double memory_bytes = 0;   // of the fullest rank
  int64_t attention_sent_bytes =
      0;  // in forward and backward of a step, by the rank that sends most
  double mfu() const { return flops / (seconds * peak_flops); }
};

// One document of random tokens: throughput does not depend on what they are.
Sample random_sample(const Config& config) {
  const int64_t tokens = config.data().sequence_length();
  Sample sample;
  const auto vocabulary = static_cast<uint64_t>(config.model().vocabulary());
  for (int64_t i = 0; i <= tokens; ++i) {
    const uint64_t bits = random_u64({.seed = 1, .stream = 0}, static_cast<uint64_t>(i));
    sample.tokens.push_back(static_cast<int32_t>(bits % vocabulary));
  }
  sample.labels.assign(sample.tokens.begin() + 1, sample.tokens.end());
  sample.tokens.pop_back();
  sample.documents = parallel::Documents::whole(tokens);
  sample.targets = tokens;
  return sample;
}

// Collective over trainers. A first step warms caches and pages and is not counted.
CaseResult run_case(Engine& engine, const Config& config, int64_t steps) {
  dist::Group& trainers = engine.mesh().trainers();
  const Sample sample = random_sample(config);
  const auto peak = [&] {
    trainers.barrier("bench");
    return engine.measured_peak();
  };
  const int64_t samples =
      config.train().batch_tokens() / config.data().sequence_length() / config.parallel().data();
  const double scale = 1.0 / static_cast<double>(config.train().batch_tokens());

  const double before = peak();
  std::vector<StepReport> reports;
  int64_t attention_sent = 0;  // the same in every step
  for (int64_t step = 1; step <= steps + 1; ++step) {
    trainers.barrier("bench");
    RankStep mine;
    const dist::Traffic::Counter traffic = trainers.traffic().total();
    const auto begin = Clock::now();
    for (int64_t i = 0; i < samples; ++i) {
      mine.loss_sum += engine.accumulate(sample, scale);
      mine.flops += engine.sample_flops();
    }
    attention_sent = trainers.traffic().total().sent_bytes - traffic.sent_bytes;
    engine.reduce_gradients();
    engine.update(1e-4, step);
    mine.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    mine.waited_seconds = trainers.traffic().total().waited_seconds - traffic.waited_seconds;
    mine.memory_peak_bytes = static_cast<double>(engine.memory().peak());
    const StepReport report = gather(trainers, mine);
    if (step > 1) reports.push_back(report);
  }
  const double after = peak();
  attention_sent = trainers.max(attention_sent, "bench");

  std::ranges::sort(reports, {}, &StepReport::seconds);
  const StepReport& median = reports[reports.size() / 2];
  return {.steps = steps,
          .tokens_per_second = static_cast<double>(config.train().batch_tokens()) / median.seconds,
          .seconds = median.seconds,
          .flops = median.flops,
          .peak_flops = 0.5 * (before + after),
          .peak_drift = std::abs(after - before) / std::max(before, after),
          .communication = median.exposed_communication,
          .memory_bytes = median.memory_peak_bytes,
          .attention_sent_bytes = attention_sent};
}

// Collective; the result on trainers, of the others only what decides whether to repeat it.
CaseResult run_case(dist::Group& world, const Config& config, int64_t steps) {
  CaseResult result;
  if (world.rank() < world.size() - config.parallel().servers()) {
    Engine engine(world, config);
    engine.attention_rank().lead([&] { result = run_case(engine, config, steps); });
  } else {
    Server(world, config).run();
  }
  result.peak_drift = world.sum(world.rank() == 0 ? result.peak_drift : 0, "bench");
  return result;
}

void print_json(const Config& config, int ranks, const CaseResult& r) {
  const nlohmann::ordered_json json = {
      {"bench", "train"},
      {"case",
       {{"op", "step"},
        {"layers", config.model().layers()},
        {"width", config.model().width()},
        {"dtype", std::string(name(dtype(config)))},
        {"n", config.data().sequence_length()},
        {"ranks", ranks},
        {"data", config.parallel().data()},
        {"sequence", config.parallel().sequence()},
        {"servers", config.parallel().servers()},
        {"threads", config.parallel().threads()},
        {"layout", config.parallel().layout()},
        {"pattern", config.model().pattern()},
        {"strategy", config.parallel().strategy()},
        {"activations", Memory::Activations_Name(config.memory().activations())},
        {"cuda_graph", config.train().cuda_graph()},
        {"batch_tokens", config.train().batch_tokens()},
        {"steps", r.steps}}},
      {"value", r.tokens_per_second},
      {"unit", "tokens/s"},
      {"limit", r.tokens_per_second / r.mfu()},
      {"limit_name", absl::StrCat("all model FLOPs at the measured ",
                                  std::string(name(kernels::multiply_add_type(dtype(config)))),
                                  " multiply-add peak")},
      {"ratio", r.mfu()},
      {"seconds", r.seconds},
      {"exposed_communication", r.communication},
      {"attention_sent_bytes", r.attention_sent_bytes},
      {"memory_peak_bytes", static_cast<int64_t>(r.memory_bytes)},
      {"peak_flops", r.peak_flops},
      {"peak_drift", r.peak_drift}};
  std::printf("%s\n", json.dump().c_str());
}

void print_header() {
  std::printf("%5s %7s %9s %10s %10s %9s %9s %6s %6s %9s %11s\n", "ranks", "threads", "tokens",
              "layout", "strategy", "s/step", "tokens/s", "MFU", "comm", "memory", "peak GFLOP/s");
}

void print_row(const Config& config, int ranks, const CaseResult& r) {
  std::printf(
      "%s\n",
      absl::StrFormat(
          "%5d %7d %9d %10s %10s %9.3f %9s %5.1f%% %5.1f%% %9s %7.0f%s", ranks,
          config.parallel().threads(), config.data().sequence_length(), config.parallel().layout(),
          config.parallel().strategy(), r.seconds, human_count(r.tokens_per_second), 100 * r.mfu(),
          100 * r.communication, human_bytes(r.memory_bytes), r.peak_flops / 1e9,
          r.peak_drift > 0.05 ? absl::StrFormat(" (moved %.0f%%)", 100 * r.peak_drift) : "")
          .c_str());
}

}  // namespace

int bench_train(const BenchTrainOptions& options) {
  const Config base = load_config(options.config, options.overrides);
  const std::vector<int> ranks = options.ranks.empty() ? std::vector<int>{0} : options.ranks;
  const std::vector<int64_t> lengths = options.lengths.empty()
                                           ? std::vector<int64_t>{base.data().sequence_length()}
                                           : options.lengths;
  bool first = true;
  for (int as_threads : ranks) {
    const int status = run_ranks(as_threads, std::chrono::minutes(10), [&](dist::Group& world) {
      for (int64_t length : lengths) {
        Config config = base;
        config.mutable_data()->set_sequence_length(length);
        world.agree(attempt([&] { resolve(config, world.size(), threads_per_rank(as_threads)); }),
                    "checking the configuration");
        // A machine that changes its speed during a case is measured again, at most twice.
        constexpr double kDrift = 0.05;
        CaseResult result = run_case(world, config, options.steps);
        for (int again = 0; again < 2 && result.peak_drift > kDrift; ++again) {
          const CaseResult repeated = run_case(world, config, options.steps);
          if (repeated.peak_drift < result.peak_drift) result = repeated;
        }
        if (world.rank() != 0) continue;
        if (options.json) {
          print_json(config, world.size(), result);
        } else {
          if (first) print_header();
          print_row(config, world.size(), result);
        }
        std::fflush(stdout);
        first = false;
      }
    });
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace longhaul::launch
