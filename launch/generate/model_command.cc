#include "launch/generate/model_command.h"

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "launch/cli/ranks.h"

namespace longhaul::launch {

int ModelCommand::threads() const { return threads_per_rank(static_cast<int>(ranks.value_or(0))); }

void add_model_command(CLI::App& app, ModelCommand& options) {
  app.add_option("MODEL", options.model, "Run folder, or one of its checkpoints")
      ->required()
      ->type_name("PATH");
  app.add_option("--tokenizer", options.tokenizer,
                 "tokenizer.json, *.tiktoken or \"bytes\"; default: the model's, or bytes")
      ->type_name("FILE");
  app.add_option("--set", options.overrides,
                 "Override, e.g. parallel.strategy=ulysses or train.dtype=BF16 (repeatable)")
      ->allow_extra_args(false)
      ->type_name("BLOCK.FIELD=VALUE");
  app.add_option("--ranks", options.ranks, "Ranks as threads of this process, without MPI")
      ->type_name("N");
}

int run_with_model(const ModelCommand& options,
                   const std::function<void(dist::Group& world, const TrainedModel& model)>& body) {
  if (options.ranks) check_ranks_option(*options.ranks);
  // A file may be missing on one node only, so the ranks agree on what they found.
  TrainedModel model;
  double timeout = 0;
  const auto problem = attempt([&] {
    model = find_model(options.model);
    Config config = model.config;
    for (const std::string& assignment : options.overrides) apply_override(config, assignment);
    timeout = config.parallel().timeout_seconds();
  });
  const bool usable = !problem && std::isfinite(timeout) && timeout > 0 && timeout <= 1e6;
  const std::chrono::milliseconds deadline(usable ? static_cast<int64_t>(std::ceil(timeout * 1e3))
                                                  : int64_t{60'000});
  return run_ranks(static_cast<int>(options.ranks.value_or(0)), deadline, [&](dist::Group& world) {
    world.agree(problem, "finding the model");
    body(world, model);
  });
}

std::string read_on_rank_0(dist::Group& world, const std::string& path, const std::string& what) {
  std::string text;
  world.agree(attempt([&] {
                if (world.rank() != 0) return;
                if (path == "-") {
                  text.assign(std::istreambuf_iterator<char>(std::cin), {});
                  return;
                }
                std::error_code ignored;
                const bool folder = std::filesystem::is_directory(path, ignored);
                errno = 0;
                std::ifstream file(path, std::ios::binary);
                if (file && !folder) text.assign(std::istreambuf_iterator<char>(file), {});
                if (!file || folder) {
                  fail(ErrorCode::kData,
                       absl::StrCat("cannot read the ", what, " ", path, ": ",
                                    folder ? "it is a folder" : std::strerror(errno)));
                }
              }),
              "reading a file");
  return world.broadcast(std::move(text), 0, "text of a file");
}

}  // namespace longhaul::launch
