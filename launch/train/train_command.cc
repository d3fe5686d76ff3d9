#include "launch/train/train_command.h"

#include <memory>

#include "launch/cli/configured_run.h"
#include "launch/cli/signals.h"
#include "launch/train/train.h"

namespace longhaul::launch {

Action add_train_command(CLI::App& app) {
  auto options = std::make_shared<ConfiguredRun>();
  add_configured_run(app, *options);
  return [options] {
    StopRequest::install();
    return run_configured(*options, train);
  };
}

}  // namespace longhaul::launch
