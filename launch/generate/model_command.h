// What subcommands that use a trained model share: which one, its tokenizer, --set and --ranks.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dist/group.h"
#include "launch/generate/trained_model.h"

namespace longhaul::launch {

struct ModelCommand {
  std::string model;  // path
  std::string tokenizer;
  std::vector<std::string> overrides;
  std::optional<int64_t> ranks;  // as threads

  int threads() const;  // of a rank
};
void add_model_command(CLI::App& app, ModelCommand& options);

// Calls `body` once per rank; returns the exit status. That there is no model is one message and
// every rank's.
int run_with_model(const ModelCommand& options,
                   const std::function<void(dist::Group& world, const TrainedModel& model)>& body);

// What rank 0 reads, on all ranks; `path` may be "-", its standard input. Throws Error(kData) on
// every rank. `what` is for messages: "prompt file".
std::string read_on_rank_0(dist::Group& world, const std::string& path, const std::string& what);

}  // namespace longhaul::launch
