#include "launch/plan/plan_command.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/cli/configured_run.h"
#include "launch/cli/ranks.h"
#include "launch/doctor/host.h"
#include "launch/plan/attention_plan.h"

namespace longhaul::launch {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  int64_t ranks = 1;
  bool json = false;
};

// Planned for as many ranks as one likes to have, within reason: every rank's plan is made.
constexpr int64_t kMostRanks = 4096;

int run(const Options& options) {
  if (options.ranks < 1 || options.ranks > kMostRanks) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--ranks ", options.ranks, ": 1 to ", kMostRanks, " can be planned"));
  }
  Config config = load_config(options.config, options.overrides);
  resolve(config, static_cast<int>(options.ranks), available_cores().usable);
  const model::ModelConfig model = model_config(config);
  LayerPlans plans;
  if (model.softmax_layers() > 0) plans.softmax = plan_attention(config);
  if (model.linear_layers() > 0) plans.linear = plan_linear_attention(config);
  options.json ? print_json(config, plans) : print_table(config, plans);
  return 0;
}

}  // namespace

Action add_plan_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_config_options(app, options->config, options->overrides);
  app.add_option("--ranks", options->ranks, "Ranks to plan for; none are started")
      ->capture_default_str()
      ->type_name("N");
  app.add_flag("--json", options->json, "One JSON object instead of the tables");
  return [options] { return run(*options); };
}

}  // namespace longhaul::launch
