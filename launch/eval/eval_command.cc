#include "launch/eval/eval_command.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "launch/data/output_file.h"
#include "launch/eval/evaluate.h"
#include "launch/generate/model_command.h"

namespace longhaul::launch {

namespace {

struct Options {
  ModelCommand model;
  std::optional<std::string> data;
  std::optional<int64_t> length;
  int64_t samples = 4;
  int64_t buckets = 8;
  bool passkey = false;
  bool only_passkey = false;
  std::string text;  // file with the haystack
  PasskeyOptions keys;
  bool json = false;
  std::string svg;
};

void at_least_one(const char* option, int64_t value) {
  if (value < 1) {
    fail(ErrorCode::kConfig, absl::StrCat(option, " ", value, " is too small; give 1 or more"));
  }
}

void check(const Options& options) {
  at_least_one("--samples", options.samples);
  at_least_one("--buckets", options.buckets);
  if (options.length) at_least_one("--length", *options.length);
  if (options.only_passkey && !options.passkey) {
    fail(ErrorCode::kConfig, "--no-loss leaves nothing to evaluate; add --passkey");
  }
  if (!options.passkey) return;
  check(options.keys);
  if (options.text.empty()) {
    fail(ErrorCode::kConfig, "--passkey wants --text FILE, the text that keys are hidden in");
  }
}

// The samples of --data, or those that the model's training validates on.
struct Samples {
  std::unique_ptr<const TokenFile> file;  // the loader refers to it
  std::optional<DataLoader> loader;
};
Samples open_samples(const Options& options, const Config& trained, int64_t length) {
  const std::string path = options.data.value_or(trained.data().path());
  if (path.empty()) {
    fail(ErrorCode::kConfig, "the model names no corpus; give --data PREFIX");
  }
  Samples samples{std::make_unique<TokenFile>(TokenFile::open(path)), std::nullopt};
  const int64_t tokens = samples.file->tokens();
  Split split{0, tokens};
  if (!options.data) {
    split =
        held_out(tokens, trained.data().validation_fraction(), trained.data().sequence_length());
    if (split.begin == split.end) {
      fail(ErrorCode::kData,
           absl::StrCat("training has held out nothing of corpus ", path, ", as ",
                        trained.data().validation_fraction(), " (data.validation_fraction) of its ",
                        tokens, " tokens is less than a sample; give --data PREFIX"));
    }
    if (split.end - split.begin < length) {
      fail(ErrorCode::kData, absl::StrCat("corpus ", path, " has ", split.end - split.begin,
                                          " tokens held out of training, fewer than a sample of ",
                                          length, "; give --data PREFIX or a smaller --length"));
    }
  }
  samples.loader.emplace(*samples.file, split, length, trained.data().seed(),
                         trained.model().attention().prefix_length());
  return samples;
}

void write_svg(const std::string& path, const EvalReport& report) {
  OutputFile file(path);
  file.write(to_svg(report));
  file.commit();
}

void run(dist::Group& world, const TrainedModel& model, const Options& options) {
  const int64_t length = options.length.value_or(
      model.config.data().has_sequence_length() ? model.config.data().sequence_length() : 1024);
  Config config;
  std::optional<Samples> samples;
  std::unique_ptr<const Tokenizer> tokenizer;
  std::vector<int32_t> haystack;
  std::string text;
  if (options.passkey) text = read_on_rank_0(world, options.text, "text");
  world.agree(attempt([&] {
                config = inference_config(model.config, options.model.overrides, length,
                                          world.size(), options.model.threads());
                if (!options.only_passkey)
                  samples.emplace(open_samples(options, model.config, length));
                if (!options.passkey) return;
                tokenizer = tokenizer_of(model, options.model.tokenizer);
                haystack = tokenizer->encode(text);
                if (haystack.empty()) {
                  fail(ErrorCode::kData, absl::StrCat("the text ", options.text, " is empty"));
                }
                check_vocabulary(haystack, config, options.text);
                // Finds a length that is too short before an hour is spent on others.
                const int64_t shortest = std::ranges::min(options.keys.lengths);
                check_vocabulary(
                    make_passkey_text(options.keys, *tokenizer, haystack, shortest, 0, 0).prompt,
                    config, "needle and question");
              }),
              "preparing the evaluation");
  Inference inference(world, config, model.checkpoint);
  EvalReport report{.model = model.checkpoint, .ranks = world.size(), .loss = {}, .passkey = {}};
  if (!options.only_passkey) {
    const int64_t count = std::min(options.samples, samples->loader->samples_per_epoch());
    report.loss =
        loss_by_position(world, inference, *samples->loader, length, count, options.buckets);
    report.loss->corpus = samples->file->name();
  }
  if (options.passkey) {
    report.passkey = passkey_retrieval(world, inference, *tokenizer, haystack, options.keys);
  }
  world.agree(attempt([&] {
                if (world.rank() != 0) return;
                if (!options.svg.empty()) write_svg(options.svg, report);
                const std::string said = options.json ? to_json(report) + "\n" : to_table(report);
                std::fwrite(said.data(), 1, said.size(), stdout);
                std::fflush(stdout);
              }),
              "writing the report");
}

}  // namespace

Action add_eval_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_command(app, options->model);
  CLI::Option* no_loss = app.add_flag("--no-loss", options->only_passkey, "Nothing but --passkey");
  app.add_option("--data", options->data,
                 "Token files to measure the loss on; default: what training held out")
      ->type_name("PREFIX")
      ->excludes(no_loss);
  app.add_option("--length", options->length, "Tokens of a sample; default: as in training")
      ->type_name("N");
  app.add_option("--samples", options->samples, "Samples, at most those that there are")
      ->type_name("K")
      ->capture_default_str()
      ->excludes(no_loss);
  app.add_option("--buckets", options->buckets, "Equal parts of a sample's positions")
      ->type_name("B")
      ->capture_default_str()
      ->excludes(no_loss);
  CLI::Option* passkey =
      app.add_flag("--passkey", options->passkey, "Also ask for keys hidden in long texts");
  app.add_option("--text", options->text, "With --passkey: the text that keys are hidden in")
      ->type_name("FILE")
      ->needs(passkey);
  app.add_option("--lengths", options->keys.lengths, "With --passkey: tokens of the texts")
      ->delimiter(',')
      ->type_name("N,N,...")
      ->needs(passkey);
  app.add_option("--depths", options->keys.depths,
                 "With --passkey: where keys are, 0 the beginning, 1 the end")
      ->delimiter(',')
      ->type_name("D,D,...")
      ->capture_default_str()
      ->needs(passkey);
  app.add_option("--trials", options->keys.trials, "With --passkey: texts of each length and depth")
      ->type_name("T")
      ->capture_default_str()
      ->needs(passkey);
  app.add_option("--seed", options->keys.seed, "With --passkey: of keys and texts")
      ->type_name("S")
      ->capture_default_str()
      ->needs(passkey);
  app.add_option("--needle", options->keys.needle, "With --passkey: what says the key, {key}")
      ->type_name("TEXT")
      ->needs(passkey);
  app.add_option("--question", options->keys.question, "With --passkey: what asks for it")
      ->type_name("TEXT")
      ->needs(passkey);
  app.add_flag("--json", options->json, "One JSON object instead of tables");
  app.add_option("--svg", options->svg, "Also draw a picture")->type_name("FILE");
  return [options] {
    check(*options);
    return run_with_model(options->model, [&](dist::Group& world, const TrainedModel& model) {
      run(world, model, *options);
    });
  };
}

}  // namespace longhaul::launch
