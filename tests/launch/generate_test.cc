// Generation and evaluation with models that were trained for it, on ranks as threads.
#include "launch/generate/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "launch/data/token_file_writer.h"
#include "launch/eval/evaluate.h"
#include "launch/generate/text_stream.h"
#include "launch/generate/trained_model.h"
#include "launch/train/train.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
constexpr std::chrono::seconds kDeadline(120);

constexpr const char* kSentence =
    "The quick brown fox jumps over the lazy dog while seven wizards brew a potion of mulberries "
    "under the pale moon. ";

PasskeyOptions memorised_keys() {
  return {.lengths = {150}, .depths = {0, 1}, .trials = 2, .seed = 7};
}

std::vector<int32_t> bytes_of(const std::string& text) {
  return load_tokenizer("bytes")->encode(text);
}
std::string text_of(const std::vector<int32_t>& tokens) {
  return load_tokenizer("bytes")->decode(tokens, true);
}

void train_model(const std::string& config) {
  dist::run_local(1, kDeadline, [&](dist::Group& world) {
    Config mine = parse_config(config, "test");
    resolve(mine, world.size(), 1);
    train(world, mine);
  });
}

std::string error_of(const std::function<void()>& work, ErrorCode code) {
  const auto error = attempt(work);
  if (!error) return "no error";
  EXPECT_EQ(error->code(), code) << error->what();
  return error->what();
}

class Trained : public testing::Test {
 protected:
  // A hybrid that knows one sentence, and a model that knows four keys, by heart.
  static void SetUpTestSuite() {
    folder_ = new TempFolder;
    testing::internal::CaptureStdout();
    TokenFileWriter sentences(*folder_ / "sentence", 256);
    std::string text;
    for (int i = 0; i < 40; ++i) text += kSentence;
    sentences.append(bytes_of(text));
    sentences.finish();
    train_model(config("sentence", 256, 120, "pattern: 'LN' linear { kind: 'gla' }"));
    TokenFileWriter keys(*folder_ / "keys", 256);
    const PasskeyOptions options = memorised_keys();
    for (int repeat = 0; repeat < 10; ++repeat) {
      for (const double depth : options.depths) {
        for (int64_t trial = 0; trial < options.trials; ++trial) {
          const PasskeyText one = make_passkey_text(options, *load_tokenizer("bytes"),
                                                    bytes_of(text), 150, depth, trial);
          std::vector<int32_t> document = one.prompt;
          for (const int32_t token : bytes_of(one.key + ".")) document.push_back(token);
          keys.append(document);
        }
      }
    }
    keys.finish();
    train_model(config("keys", 151, 250, ""));
    testing::internal::GetCapturedStdout();
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }

  static std::string config(const std::string& name, int64_t length, int64_t steps,
                            const std::string& more) {
    return absl::StrCat(
        "model { vocabulary: 256 layers: 2 width: 48 heads: 4 kv_heads: 2 "
        "head_dim: 12 mlp_width: 96 norm_eps: 1e-5 rope_theta: 10000 ",
        more, "} data { path: '", *folder_ / name, "' sequence_length: ", length,
        " validation_fraction: 0.2 } train { steps: ", steps, " batch_tokens: ", 2 * length,
        " warmup_steps: 10 learning_rate: 5e-3 check_attention: false "
        "run_directory: '",
        *folder_ / (name + "_run"), "' }");
  }

  // What each rank does with a model; `work` returns rank 0's result.
  template <class Work>
  static auto on_ranks(int ranks, const std::string& run, int64_t length,
                       const std::vector<std::string>& set, Work&& work) {
    const TrainedModel model = find_model(*folder_ / run);
    std::optional<std::invoke_result_t<Work, dist::Group&, Inference&>> result;
    dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
      Inference inference(world, inference_config(model.config, set, length, world.size(), 1),
                          model.checkpoint);
      auto mine = work(world, inference);
      if (world.rank() == 0) result.emplace(std::move(mine));
    });
    return *result;
  }

  static std::string continued(int ranks, const std::string& prompt, GenerateOptions options,
                               const std::vector<std::string>& set = {}) {
    const std::vector<int32_t> tokens = bytes_of(prompt);
    return on_ranks(ranks, "sentence_run", static_cast<int64_t>(tokens.size()), set,
                    [&](dist::Group& world, Inference& inference) {
                      return text_of(generate(world, inference, tokens, options).tokens);
                    });
  }

  static TempFolder* folder_;
};
TempFolder* Trained::folder_ = nullptr;

TEST_F(Trained, AMemorisedTextGoesOnOnAnyRanksAndStrategy) {
  const std::string text = std::string(kSentence) + kSentence + kSentence;
  const std::string prompt = text.substr(0, 30), expected = text.substr(30, 150);
  for (const int ranks : {1, 2, 3}) {
    for (const std::vector<std::string>& set : std::vector<std::vector<std::string>>{
             {},
             {"parallel.strategy=all_gather", "parallel.layout=striped"},
             {"parallel.strategy=auto", "parallel.linear_method=ring"}}) {
      EXPECT_EQ(continued(ranks, prompt, {.tokens = 150}, set), expected) << ranks;
    }
  }
  // bf16 rounds otherwise, and knows it no less.
  EXPECT_EQ(continued(2, prompt, {.tokens = 60}, {"train.dtype=BF16"}), expected.substr(0, 60));
}

TEST_F(Trained, SampledTextsDependOnTheSeedAlone) {
  const GenerateOptions once{.tokens = 60, .sampler = {.temperature = 1.5, .top_p = 0.95}};
  GenerateOptions other = once;
  other.sampler.seed = 2;
  const std::string prompt = "The quick";
  const std::string text = continued(2, prompt, once);
  EXPECT_EQ(text.size(), 60u);
  EXPECT_EQ(continued(2, prompt, once), text);
  EXPECT_NE(continued(2, prompt, other), text);
}

TEST_F(Trained, GenerationEndsAtTheModelsEndTokens) {
  const fs::path carried = *folder_ / "sentence_run/huggingface";
  fs::create_directories(carried);
  const auto ends = [&](const std::string& json) {
    std::ofstream(carried / "generation_config.json") << json;
    return end_tokens(find_model(*folder_ / "sentence_run"), *load_tokenizer("bytes"));
  };
  EXPECT_EQ(ends("{}"), std::vector<int32_t>());
  EXPECT_EQ(ends("{\"eos_token_id\": 46}"), std::vector<int32_t>{'.'});
  EXPECT_EQ(ends("{\"eos_token_id\": [122, 9999]}"), std::vector<int32_t>{'z'});
  for (const char* damaged : {"[", "3", "{\"eos_token_id\": \"x\"}", "{\"eos_token_id\": [1.5]}"}) {
    EXPECT_NE(error_of([&] { ends(damaged); }, ErrorCode::kData).find("generation_config.json"),
              std::string::npos);
  }
  fs::remove_all(carried);
  const std::string text = std::string(kSentence);
  EXPECT_EQ(continued(2, text.substr(0, 40), {.tokens = 300, .end_tokens = {'.'}}),
            text.substr(40, text.find('.') - 40));
}

TEST_F(Trained, LossEqualsTheValidationOfTraining) {
  nlohmann::json validation;
  std::istringstream lines(read_all(*folder_ / "sentence_run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.contains("validation_loss")) validation = json;
  }
  const TokenFile file = TokenFile::open(*folder_ / "sentence");
  const auto held_out = static_cast<int64_t>(0.2 * static_cast<double>(file.tokens()));
  const DataLoader loader(file, {file.tokens() - held_out, file.tokens()}, 256, 1);
  for (const int ranks : {1, 2, 3}) {
    const LossReport report =
        on_ranks(ranks, "sentence_run", 256, {}, [&](dist::Group& world, Inference& inference) {
          return loss_by_position(world, inference, loader, 256,
                                  std::min<int64_t>(4, loader.samples_per_epoch()), 8);
        });
    const double trained = validation["validation_loss"];
    EXPECT_EQ(report.tokens, validation["validation_tokens"]);
    EXPECT_NEAR(report.loss, trained, 1e-5 * trained) << ranks;
    for (size_t b = 0; b < 8; ++b) {
      const double bucket = validation["loss_by_position"][b];
      EXPECT_NEAR(report.by_position[b].loss, bucket, 1e-5 * bucket);
      EXPECT_EQ(report.by_position[b].begin, static_cast<int64_t>(32 * b));
      EXPECT_EQ(report.by_position[b].end, static_cast<int64_t>(32 * (b + 1)));
    }
  }
}

TEST_F(Trained, AGrowingBaseOfRopeGoesByTheText) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += kSentence;
  const auto logits = [&](int64_t configured, const std::vector<std::string>& set) {
    return on_ranks(1, "sentence_run", configured, set, [&](dist::Group&, Inference& inference) {
      return inference.read(bytes_of(text), 0);
    });
  };
  const std::vector<std::string> dynamic{"model.rope_scaling.kind=dynamic",
                                         "model.rope_scaling.factor=4",
                                         "model.rope_scaling.original_length=64"};
  EXPECT_EQ(logits(100, dynamic), logits(4000, dynamic));
  EXPECT_NE(logits(100, dynamic), logits(100, {}));
}

TEST_F(Trained, KeysThatAModelKnowsAreFoundAndOthersAreNot) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += kSentence;
  for (const int ranks : {1, 2}) {
    for (const bool known : {true, false}) {
      PasskeyOptions options = memorised_keys();
      if (!known) options.seed = 8;
      const PasskeyReport report =
          on_ranks(ranks, "keys_run", 150, {}, [&](dist::Group& world, Inference& inference) {
            return passkey_retrieval(world, inference, *load_tokenizer("bytes"), bytes_of(text),
                                     options);
          });
      ASSERT_EQ(report.cells.size(), 2u);
      for (const PasskeyCell& cell : report.cells) {
        EXPECT_EQ(cell.trials, 2);
        EXPECT_EQ(cell.found, known ? 2 : 0) << cell.depth;
      }
      EXPECT_EQ(report.accuracy(), known ? 1.0 : 0.0);
    }
  }
}

TEST_F(Trained, ATextThatMemoryIsTooSmallForIsRefusedOnEveryRank) {
  const std::string said =
      error_of([&] { continued(2, "The", {.tokens = int64_t{1} << 40}); }, ErrorCode::kEnvironment);
  EXPECT_NE(said.find("a text of 3 tokens and 1099511627775 more takes"), std::string::npos)
      << said;
  EXPECT_NE(said.find("use more ranks or a shorter text"), std::string::npos) << said;
}

TEST_F(Trained, ModelsAreFoundByRunByFolderAndByCheckpoint) {
  const std::string run = *folder_ / "sentence_run";
  const TrainedModel by_run = find_model(run);
  EXPECT_EQ(by_run.run, run);
  for (const std::string& path : {run + "/", run + "/checkpoints", by_run.checkpoint}) {
    const TrainedModel model = find_model(path);
    EXPECT_EQ(fs::canonical(model.checkpoint), fs::canonical(by_run.checkpoint)) << path;
    EXPECT_EQ(fs::canonical(model.run), fs::canonical(run)) << path;
  }
  EXPECT_NE(error_of([&] { find_model(run + "x"); }, ErrorCode::kCheckpoint).find("there is no"),
            std::string::npos);
  fs::create_directories(*folder_ / "empty/checkpoints");
  EXPECT_NE(error_of([&] { find_model(*folder_ / "empty"); }, ErrorCode::kCheckpoint)
                .find("no complete checkpoint"),
            std::string::npos);
  EXPECT_NE(error_of([&] { inference_config(by_run.config, {"parallel.data=2"}, 5, 2, 1); },
                     ErrorCode::kConfig)
                .find("share one text"),
            std::string::npos);
  EXPECT_NE(error_of(
                [&] {
                  check_vocabulary({5, 256}, by_run.config, "it");
                },
                ErrorCode::kData)
                .find("token 256 of it is not among the model's 256"),
            std::string::npos);
}

TEST(Sampler, GreedyTakesTheFirstOfTheLikeliest) {
  EXPECT_EQ(choose({}, std::vector<double>{1, 3, 3, 2}, 0), 1);
  const double nan = std::nan("");
  EXPECT_NE(error_of(
                [&] {
                  choose({}, std::vector<double>{1, nan}, 0);
                },
                ErrorCode::kNumerics)
                .find("token 1 is nan"),
            std::string::npos);
  for (const SamplerOptions& bad :
       {SamplerOptions{.temperature = -1}, {.temperature = nan}, {.top_p = 0}, {.top_p = 1.5}}) {
    EXPECT_NE(error_of([&] { check(bad); }, ErrorCode::kConfig), "no error");
  }
}

// Shares of many choices against probabilities written out.
TEST(Sampler, ChoicesHaveTheirProbabilities) {
  const std::vector<double> p{0.1, 0.4, 0.2, 0.3};
  std::vector<double> logits;
  for (const double x : p) logits.push_back(std::log(x) + 5);
  const auto shares = [&](const SamplerOptions& options) {
    std::vector<double> counts(p.size());
    constexpr uint64_t kDraws = 20000;
    for (uint64_t i = 0; i < kDraws; ++i) {
      counts[static_cast<size_t>(choose(options, logits, i))] += 1.0 / kDraws;
    }
    return counts;
  };
  const auto expect = [&](const SamplerOptions& options, const std::vector<double>& expected) {
    const std::vector<double> actual = shares(options);
    for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 0.015) << i;
  };
  expect({.temperature = 1}, p);
  // 0.4 + 0.3 is enough for 0.65; 0.4 alone for 0.4.
  expect({.temperature = 1, .top_p = 0.65}, {0, 4.0 / 7, 0, 3.0 / 7});
  expect({.temperature = 1, .top_p = 0.3}, {0, 1, 0, 0});
  // Half the temperature squares the ratios.
  expect({.temperature = 0.5}, {0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3});
}

TEST(TextStream, CharactersComeWhole) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z";  // a é € 😀 z
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    TextStream stream;
    std::string all;
    for (size_t i = 0; i < text.size(); i += piece) {
      const std::string now = stream.add(text.substr(i, piece));
      // Whole: it does not end within a character.
      TextStream again;
      EXPECT_EQ(again.add(now), now);
      EXPECT_EQ(again.finish(), "");
      all += now;
    }
    EXPECT_EQ(all + stream.finish(), text);
  }
}

TEST(TextStream, WhatIsNoUtf8IsReplaced) {
  const std::string r = "\xEF\xBF\xBD";
  const std::map<std::string, std::string> cases{
      {"\xFFx", r + "x"},
      {"\xC3x", r + "x"},
      {"\xC0\xAF", r + r},                  // overlong
      {"\xED\xA0\x80", r + r + r},          // a surrogate
      {"\xF0\x9F\x98x", r + "x"},           // a maximal part is one
      {"\xF4\x90\x80\x80", r + r + r + r},  // above U+10FFFF
      {"\xE2\x82\xE2\x82\xAC", r + "\xE2\x82\xAC"},
  };
  for (const auto& [bytes, expected] : cases) {
    TextStream stream;
    EXPECT_EQ(stream.add(bytes) + stream.finish(), expected);
  }
  TextStream cut;
  EXPECT_EQ(cut.add("a\xE2\x82"), "a");
  EXPECT_EQ(cut.finish(), r);
}

TEST(Passkey, TextsAreAsLongAsAskedForAndHaveTheKeyAtItsDepth) {
  const auto tokenizer = load_tokenizer("bytes");
  const std::vector<int32_t> haystack = bytes_of("one two three four. ");
  PasskeyOptions options{.lengths = {300}, .depths = {0, 0.5, 1}};
  std::vector<std::string> keys;
  for (const double depth : options.depths) {
    for (int64_t trial = 0; trial < 3; ++trial) {
      const PasskeyText text = make_passkey_text(options, *tokenizer, haystack, 300, depth, trial);
      EXPECT_EQ(static_cast<int64_t>(text.prompt.size()) + text.answer_tokens, 300);
      ASSERT_EQ(text.key.size(), 5u);
      const std::string all = text_of(text.prompt);
      const std::string needle =
          "\nThe pass key is " + text.key + ". Remember it. " + text.key + " is the pass key.\n";
      const size_t at = all.find(needle);
      ASSERT_NE(at, std::string::npos);
      EXPECT_EQ(all.find(needle, at + 1), std::string::npos);
      EXPECT_EQ(static_cast<int64_t>(at), text.needle_token);
      EXPECT_TRUE(all.ends_with("\nWhat is the pass key? The pass key is "));
      // At a word's border, not farther from its depth than a word.
      const double filler = 300 - 5 - static_cast<double>(needle.size()) - 40;
      EXPECT_NEAR(static_cast<double>(at), depth * filler, 7);
      if (at > 0 && depth < 1) {
        EXPECT_TRUE(all[at - 1] == ' ' || all[at + needle.size()] == ' ');
      }
      keys.push_back(text.key);
      EXPECT_EQ(make_passkey_text(options, *tokenizer, haystack, 300, depth, trial).prompt,
                text.prompt);
    }
  }
  std::ranges::sort(keys);
  EXPECT_TRUE(std::ranges::adjacent_find(keys) == keys.end());
  EXPECT_NE(error_of([&] { make_passkey_text(options, *tokenizer, haystack, 90, 0, 0); },
                     ErrorCode::kConfig)
                .find("90 tokens are too few"),
            std::string::npos);
}

TEST(Passkey, AnAnswerIsTheKeyAndNoLongerNumber) {
  for (const char* right : {"12345", " 12345", "12345.", "\n12345 is"}) {
    EXPECT_TRUE(answers(right, "12345")) << right;
  }
  for (const char* wrong : {"", "1234", "123456", "x12345", "54321"}) {
    EXPECT_FALSE(answers(wrong, "12345")) << wrong;
  }
}

}  // namespace
}  // namespace longhaul::launch
