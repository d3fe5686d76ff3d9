#include "launch/generate/trained_model.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "checkpoint/checkpoint.h"

namespace longhaul::launch {

namespace {

namespace fs = std::filesystem;

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The checkpoint that a path means, or "".
std::string checkpoint_at(const fs::path& path) {
  if (is_file(path / "COMPLETE")) return path;
  for (const fs::path& folder : {path / "checkpoints", path}) {
    if (const auto newest = checkpoint::latest(folder)) return *newest;
  }
  // Checkpoints may be elsewhere.
  if (!is_file(path / "config.txtpb")) return "";
  const Config config = load_config(path / "config.txtpb", {});
  return checkpoint::latest(config.checkpoint().directory()).value_or("");
}

// <run>/checkpoints/step-N -> <run>
std::string run_of(const fs::path& path, const fs::path& checkpoint) {
  if (is_file(path / "config.txtpb")) return path;
  const fs::path above = fs::absolute(checkpoint).parent_path();
  const fs::path run = above.filename() == "checkpoints" ? above.parent_path() : above;
  return is_file(run / "config.txtpb") ? run.string() : "";
}

}  // namespace

TrainedModel find_model(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("there is no ", path,
                      "; give the run folder of `longhaul train` or `longhaul checkpoint import`, "
                      "or one of its checkpoints"));
  }
  // Without a slash at its end, which would be an empty name.
  fs::path given = path;
  if (given.filename().empty()) given = given.parent_path();
  TrainedModel model{.checkpoint = checkpoint_at(given), .run = {}, .config = {}};
  if (model.checkpoint.empty()) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("there is no complete checkpoint in ", path,
                      "; training saves one at its end and every checkpoint.every steps"));
  }
  model.run = run_of(given, model.checkpoint);
  const std::string saved = checkpoint::read_info(model.checkpoint).config;
  if (!saved.empty()) {
    model.config = parse_config(saved, "the configuration in " + model.checkpoint);
  } else if (!model.run.empty()) {
    model.config = load_config(model.run + "/config.txtpb", {});
  } else {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("neither checkpoint ", model.checkpoint,
                      " nor a config.txtpb of its run says what model it is of; put config.txtpb "
                      "beside the folder of checkpoints"));
  }
  return model;
}

Config inference_config(const Config& trained, const std::vector<std::string>& overrides,
                        int64_t tokens, int ranks, int threads) {
  Config config = trained;
  Parallel parallel;
  if (trained.parallel().has_timeout_seconds()) {
    parallel.set_timeout_seconds(trained.parallel().timeout_seconds());
  }
  if (trained.parallel().has_gpu_transport()) {
    parallel.set_gpu_transport(trained.parallel().gpu_transport());
  }
  *config.mutable_parallel() = parallel;
  *config.mutable_memory() = Memory();
  // What only training wants.
  if (!config.data().has_path()) config.mutable_data()->set_path("none");
  config.mutable_train()->set_steps(1);
  config.mutable_train()->set_validate_every(0);
  config.mutable_train()->clear_batch_tokens();
  config.mutable_train()->clear_cuda_graph();
  config.mutable_data()->set_sequence_length(tokens);
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  if (config.parallel().data() != 1 || config.parallel().servers() != 0) {
    fail(ErrorCode::kConfig,
         "parallel.data and parallel.servers: all ranks share one text here; leave them unset");
  }
  resolve(config, ranks, threads);
  return config;
}

std::unique_ptr<const Tokenizer> tokenizer_of(const TrainedModel& model, const std::string& given,
                                              bool for_text) {
  if (!given.empty()) return load_tokenizer(given);
  const fs::path carried = fs::path(model.run) / "huggingface" / "tokenizer.json";
  if (!model.run.empty() && is_file(carried)) return load_tokenizer(carried);
  std::unique_ptr<const Tokenizer> bytes = load_tokenizer("bytes");
  if (!for_text || model.config.model().vocabulary() == bytes->vocabulary()) return bytes;
  fail(ErrorCode::kConfig,
       absl::StrCat("the model in ", model.checkpoint, " has ", model.config.model().vocabulary(),
                    " tokens (model.vocabulary), which are not bytes, and its run folder holds no "
                    "huggingface/tokenizer.json; give --tokenizer the one that it was trained with "
                    "(`bytes`, if a token was a byte all the same), or, to generate, --ids"));
}

std::vector<int32_t> end_tokens(const TrainedModel& model, const Tokenizer& tokenizer) {
  std::vector<int32_t> ends;
  if (const auto end = tokenizer.end_of_text()) ends.push_back(*end);
  const fs::path path = fs::path(model.run) / "huggingface" / "generation_config.json";
  if (model.run.empty() || !is_file(path)) return ends;
  const auto json = nlohmann::json::parse(contents(path), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    fail(ErrorCode::kData, absl::StrCat(path.string(),
                                        " is not a JSON object; remove it, or copy "
                                        "it from the model again"));
  }
  if (!json.contains("eos_token_id") || json["eos_token_id"].is_null()) return ends;
  nlohmann::json ids = json["eos_token_id"];
  if (!ids.is_array()) ids = nlohmann::json::array({ids});
  for (const nlohmann::json& id : ids) {
    if (!id.is_number_integer()) {
      fail(ErrorCode::kData,
           absl::StrCat(path.string(), ": eos_token_id is neither a number nor a list of numbers"));
    }
    const auto token = id.get<int64_t>();
    if (token < 0 || token >= model.config.model().vocabulary()) continue;  // never chosen
    if (std::ranges::find(ends, static_cast<int32_t>(token)) == ends.end()) {
      ends.push_back(static_cast<int32_t>(token));
    }
  }
  return ends;
}

void check_vocabulary(const std::vector<int32_t>& tokens, const Config& config,
                      const std::string& what) {
  const int64_t vocabulary = config.model().vocabulary();
  const auto beyond =
      std::ranges::find_if(tokens, [&](int32_t t) { return t < 0 || t >= vocabulary; });
  if (beyond == tokens.end()) return;
  fail(ErrorCode::kData,
       absl::StrCat("token ", *beyond, " of ", what, " is not among the model's ", vocabulary,
                    " (model.vocabulary); give --tokenizer the one that the model was trained "
                    "with"));
}

}  // namespace longhaul::launch
