#include "launch/generate/generate_command.h"

#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "launch/generate/generate.h"
#include "launch/generate/model_command.h"
#include "launch/generate/text_stream.h"
#include "launch/train/metrics.h"

namespace longhaul::launch {

namespace {

struct Options {
  ModelCommand model;
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;
  bool ids = false;
  bool ignore_end = false;
  GenerateOptions generate;
};

void check(const Options& options) {
  if (options.prompt.has_value() == options.prompt_file.has_value()) {
    fail(ErrorCode::kConfig, options.prompt
                                 ? "--prompt and --prompt-file are both given; leave out one"
                                 : "there is no prompt; give --prompt TEXT or --prompt-file FILE");
  }
  if (options.generate.tokens < 1) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--tokens ", options.generate.tokens, " is too small; give 1 or more"));
  }
  constexpr int64_t kMost = int64_t{1} << 40;
  if (options.generate.tokens > kMost) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--tokens ", options.generate.tokens, " is more than 2^40; give fewer"));
  }
  check(options.generate.sampler);
}

// "12 7 300"
std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> tokens;
  for (const absl::string_view part :
       absl::StrSplit(text, absl::ByAnyChar(" \t\r\n,"), absl::SkipEmpty())) {
    int32_t token = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), token);
    if (error != std::errc() || end != part.data() + part.size() || token < 0) {
      fail(ErrorCode::kConfig,
           absl::StrCat("`", part, "` is no token; with --ids a prompt is numbers, e.g. \"12 7\""));
    }
    tokens.push_back(token);
  }
  return tokens;
}

std::vector<int32_t> prompt_tokens(const Options& options, const std::string& text,
                                   const Tokenizer& tokenizer, const Config& config) {
  std::vector<int32_t> tokens;
  if (options.ids) {
    tokens = parse_ids(text);
  } else {
    const auto before = tokenizer.before_text();
    tokens.assign(before.begin(), before.end());
    tokenizer.encode(text, tokens);
  }
  if (tokens.empty()) {
    fail(ErrorCode::kConfig, "the prompt is empty; give at least one token to go on from");
  }
  check_vocabulary(tokens, config, "the prompt");
  return tokens;
}

// Tokens to the terminal as they come; as text, those for control are left out.
class Printer {
 public:
  Printer(const Tokenizer& tokenizer, bool ids) : tokenizer_(tokenizer), ids_(ids) {}

  void print(int32_t token) {
    if (ids_) {
      write(absl::StrCat(first_ ? "" : " ", token));
    } else if (!tokenizer_.is_special(token)) {
      write(stream_.add(tokenizer_.decode(std::span(&token, 1), /*continues=*/true)));
    }
    first_ = false;
  }
  void finish() { write(stream_.finish() + "\n"); }

 private:
  static void write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  const Tokenizer& tokenizer_;
  bool ids_;
  bool first_ = true;
  TextStream stream_;
};

double per_second(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

void run(dist::Group& world, const TrainedModel& model, const Options& options) {
  const std::string text =
      options.prompt ? *options.prompt : read_on_rank_0(world, *options.prompt_file, "prompt file");
  std::unique_ptr<const Tokenizer> tokenizer;
  std::vector<int32_t> prompt;
  GenerateOptions how = options.generate;
  Config config;
  world.agree(attempt([&] {
                tokenizer = tokenizer_of(model, options.model.tokenizer, !options.ids);
                prompt = prompt_tokens(options, text, *tokenizer, model.config);
                if (!options.ids) how.candidates = tokenizer->vocabulary();
                if (!options.ignore_end) how.end_tokens = end_tokens(model, *tokenizer);
                config = inference_config(model.config, options.model.overrides,
                                          static_cast<int64_t>(prompt.size()), world.size(),
                                          options.model.threads());
              }),
              "reading the prompt");
  const bool first = world.rank() == 0;
  Inference inference(world, config, model.checkpoint);
  Printer printer(*tokenizer, options.ids);
  const Generated done = generate(world, inference, prompt, how, [&](int32_t token) {
    if (first) printer.print(token);
  });
  if (!first) return;
  printer.finish();
  const int64_t length = done.prompt_tokens + static_cast<int64_t>(done.tokens.size());
  const int64_t trained = model.config.data().sequence_length();
  if (trained > 0 && length > trained) {
    std::fprintf(stderr,
                 "longhaul: the text has %lld tokens; the model was trained on %lld at a time\n",
                 static_cast<long long>(length), static_cast<long long>(trained));
  }
  std::fprintf(stderr,
               "longhaul: prefill %lld tokens in %.3f s (%s tokens/s), decode %lld in %.3f s (%s "
               "tokens/s), %d %s\n",
               static_cast<long long>(done.prompt_tokens), done.prompt_seconds,
               human_count(per_second(done.prompt_tokens, done.prompt_seconds)).c_str(),
               static_cast<long long>(done.decoded_tokens), done.decode_seconds,
               human_count(per_second(done.decoded_tokens, done.decode_seconds)).c_str(),
               world.size(), world.size() == 1 ? "rank" : "ranks");
}

}  // namespace

Action add_generate_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_command(app, options->model);
  app.add_option("--prompt", options->prompt, "The text to continue")->type_name("TEXT");
  app.add_option("--prompt-file", options->prompt_file, "The same from a file; - is standard input")
      ->type_name("FILE");
  app.add_option("--tokens", options->generate.tokens, "At most as many new tokens")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--temperature", options->generate.sampler.temperature,
                 "Logits are divided by it; 0: always the likeliest token")
      ->type_name("T")
      ->capture_default_str();
  app.add_option("--top-p", options->generate.sampler.top_p,
                 "Choose among the likeliest tokens that have this much probability together")
      ->type_name("P")
      ->capture_default_str();
  app.add_option("--seed", options->generate.sampler.seed,
                 "Of the choices at a temperature above 0")
      ->type_name("S")
      ->capture_default_str();
  app.add_flag("--ids", options->ids, "Prompt and output are numbers of tokens instead of text");
  app.add_flag("--ignore-end", options->ignore_end, "Go on after an end-of-text token");
  return [options] {
    check(*options);
    return run_with_model(options->model, [&](dist::Group& world, const TrainedModel& model) {
      run(world, model, *options);
    });
  };
}

}  // namespace longhaul::launch
