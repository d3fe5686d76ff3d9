#include "launch/generate/generate.h"

#include <algorithm>
#include <chrono>

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Rank 0 has the logits and chooses.
int32_t choose_for_all(dist::Group& world, const GenerateOptions& options,
                       const std::vector<double>& logits, uint64_t index) {
  constexpr int64_t kFailed = -1;
  int64_t token = kFailed;
  std::optional<Error> problem;
  if (world.rank() == 0) {
    std::span<const double> candidates = logits;
    const auto most = static_cast<size_t>(options.candidates);
    if (most > 0 && most < candidates.size()) candidates = candidates.first(most);
    problem = attempt([&] { token = choose(options.sampler, candidates, index); });
  }
  token = world.max(token, "next token");
  if (token == kFailed) world.agree(problem, "next token");
  return static_cast<int32_t>(token);
}

}  // namespace

Generated generate(dist::Group& world, Inference& inference, const std::vector<int32_t>& prompt,
                   const GenerateOptions& options, const std::function<void(int32_t token)>& emit) {
  Generated result{.tokens = {}, .prompt_tokens = static_cast<int64_t>(prompt.size())};
  const auto begin = Clock::now();
  world.job().place = "prompt";
  // The last token is followed by none.
  std::vector<double> logits = inference.read(prompt, options.tokens - 1);
  result.prompt_seconds = seconds_since(begin);
  const auto decoding = Clock::now();
  while (true) {
    const auto index = static_cast<uint64_t>(result.tokens.size());
    const int32_t token = choose_for_all(world, options, logits, index);
    if (std::ranges::find(options.end_tokens, token) != options.end_tokens.end()) break;
    result.tokens.push_back(token);
    if (emit) emit(token);
    if (static_cast<int64_t>(result.tokens.size()) == options.tokens) break;
    logits = inference.next(token);
    ++result.decoded_tokens;
  }
  result.decode_seconds = seconds_since(decoding);
  return result;
}

}  // namespace longhaul::launch
