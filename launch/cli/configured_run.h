// What subcommands that run a configuration on ranks share: --config, --set and --ranks.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dist/group.h"
#include "launch/config/config.h"

namespace longhaul::launch {

// --config and --set, also of subcommands that start ranks otherwise or none.
void add_config_options(CLI::App& app, std::string& config, std::vector<std::string>& overrides);

struct ConfiguredRun {
  std::string config;
  std::vector<std::string> overrides;
  std::optional<int64_t> ranks;  // as threads
};
void add_configured_run(CLI::App& app, ConfiguredRun& options);

// Calls `body` once per rank with the resolved configuration; returns the exit status. An error in
// the configuration is one message and every rank's.
int run_configured(const ConfiguredRun& options,
                   const std::function<void(dist::Group& world, const Config& config)>& body);

}  // namespace longhaul::launch
