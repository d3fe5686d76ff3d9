#include "launch/eval/evaluate.h"

#include <algorithm>
#include <chrono>

#include "launch/generate/generate.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

LossReport loss_by_position(dist::Group& world, Inference& inference, const DataLoader& loader,
                            int64_t length, int64_t samples, int64_t buckets) {
  const auto begin = Clock::now();
  world.job().place = "evaluation";
  const auto count = static_cast<size_t>(buckets);
  PositionLoss mine{std::vector<double>(count), std::vector<double>(count)};
  for (int64_t i = 0; i < samples; ++i) inference.evaluate(loader.load(i), mine);
  LossReport report{.corpus = {}, .length = length, .samples = samples, .by_position = {}};
  double sum = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    const auto i = static_cast<size_t>(b);
    const double of_bucket = world.sum(mine.sum[i], "evaluation");
    const double tokens = world.sum(mine.count[i], "evaluation");
    sum += of_bucket;
    report.tokens += static_cast<int64_t>(tokens);
    // A position p is in bucket floor(p * buckets / length).
    report.by_position.push_back({.begin = (b * length + buckets - 1) / buckets,
                                  .end = ((b + 1) * length + buckets - 1) / buckets,
                                  .tokens = static_cast<int64_t>(tokens),
                                  .loss = tokens > 0 ? of_bucket / tokens : 0.0});
  }
  report.loss = report.tokens > 0 ? sum / static_cast<double>(report.tokens) : 0.0;
  report.seconds = seconds_since(begin);
  return report;
}

PasskeyReport passkey_retrieval(dist::Group& world, Inference& inference,
                                const Tokenizer& tokenizer, const std::vector<int32_t>& haystack,
                                const PasskeyOptions& options) {
  const auto begin = Clock::now();
  PasskeyReport report{.lengths = options.lengths, .depths = options.depths, .cells = {}};
  for (const int64_t length : options.lengths) {
    for (const double depth : options.depths) {
      PasskeyCell cell{.length = length, .depth = depth, .trials = options.trials};
      for (int64_t trial = 0; trial < options.trials; ++trial) {
        const PasskeyText text =
            make_passkey_text(options, tokenizer, haystack, length, depth, trial);
        const Generated answer = generate(
            world, inference, text.prompt,
            // One more than the key takes: it may come as " 48213" where the question has no space.
            {.tokens = text.answer_tokens + 1, .candidates = tokenizer.vocabulary()});
        const std::string said = tokenizer.decode(answer.tokens, /*continues=*/true);
        if (answers(said, text.key)) ++cell.found;
      }
      report.cells.push_back(cell);
    }
  }
  report.seconds = seconds_since(begin);
  return report;
}

}  // namespace longhaul::launch
