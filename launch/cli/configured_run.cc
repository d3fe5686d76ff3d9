#include "launch/cli/configured_run.h"

#include <chrono>
#include <cmath>

#include "launch/cli/ranks.h"

namespace longhaul::launch {

void add_config_options(CLI::App& app, std::string& config, std::vector<std::string>& overrides) {
  app.add_option("--config", config, "Configuration, in Protobuf text format")
      ->required()
      ->type_name("FILE");
  app.add_option("--set", overrides, "Override, e.g. model.layers=8 (repeatable)")
      ->allow_extra_args(false)
      ->type_name("BLOCK.FIELD=VALUE");
}

void add_configured_run(CLI::App& app, ConfiguredRun& options) {
  add_config_options(app, options.config, options.overrides);
  app.add_option("--ranks", options.ranks, "Ranks as threads of this process, without MPI")
      ->type_name("N");
}

int run_configured(const ConfiguredRun& options,
                   const std::function<void(dist::Group& world, const Config& config)>& body) {
  if (options.ranks) check_ranks_option(*options.ranks);
  const int ranks = static_cast<int>(options.ranks.value_or(0));

  // A file may be missing on one node only, so the ranks agree on what they found.
  Config config;
  const auto problem = attempt([&] { config = load_config(options.config, options.overrides); });
  const double timeout = config.parallel().timeout_seconds();
  const bool usable = !problem && std::isfinite(timeout) && timeout > 0 && timeout <= 1e6;
  const std::chrono::milliseconds deadline(usable ? static_cast<int64_t>(std::ceil(timeout * 1e3))
                                                  : int64_t{60'000});
  return run_ranks(ranks, deadline, [&](dist::Group& world) {
    world.agree(problem, "reading the configuration");
    Config resolved = config;
    world.agree(attempt([&] { resolve(resolved, world.size(), threads_per_rank(ranks)); }),
                "checking the configuration");
    body(world, resolved);
  });
}

}  // namespace longhaul::launch
