#include "launch/check/check_command.h"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "launch/check/check.h"
#include "launch/check/linear_check.h"
#include "launch/cli/configured_run.h"
#include "launch/train/device.h"
#include "launch/train/engine.h"

namespace longhaul::launch {
namespace {

struct Options {
  ConfiguredRun run;
  bool json = false;
};

struct Size {
  int ranks, threads;
};
void print(const std::string& what, Size size, std::span<const Deviation> deviations, bool json) {
  if (!json) {
    std::printf("check: %s, %d sequence ranks x %d threads\n%-7s %-5s %12s %12s\n", what.c_str(),
                size.ranks, size.threads, "tensor", "dtype", "deviation", "limit");
  }
  for (const Deviation& d : deviations) {
    if (json) {
      const nlohmann::ordered_json line = {{"of", what},
                                           {"tensor", d.tensor},
                                           {"dtype", std::string(name(d.dtype))},
                                           {"max_relative_error", d.max_relative_error},
                                           {"limit", d.limit}};
      std::printf("%s\n", line.dump().c_str());
    } else {
      std::printf("%-7s %-5s %12.3g %12.3g%s\n", d.tensor.c_str(),
                  std::string(name(d.dtype)).c_str(), d.max_relative_error, d.limit,
                  d.too_large() ? "  too large" : "");
    }
  }
  std::fflush(stdout);
}

void check(dist::Group& world, const Config& config, bool json) {
  const OwnedStream stream = open_device(world, config);
  dist::Mesh mesh(world, mesh_shape(config));
  const int threads = config.parallel().threads();
  ThreadPool pool(threads);
  Arena none("nothing", 0, stream.get().device);
  const Context ctx{.stream = stream.get(), .pool = &pool, .scratch = &none};
  const model::ModelConfig model = model_config(config);
  const SettledStrategies settled = settle_on(mesh, stream.get(), pool, config, {});
  if (model.softmax_layers() > 0) {
    const CheckedAttention attention = checked_attention(config, settled);
    dist::Group& group = is_disaggregated(config) ? world : mesh.sequence();
    const std::vector<Deviation> deviations = check_attention(group, ctx, attention);
    if (world.rank() == 0) {
      print(attention.subject().name, {group.size(), threads}, deviations, json);
    }
    require_small(world, attention.subject(), deviations);
  }
  if (model.linear_layers() > 0) {
    const CheckedLinearAttention attention =
        checked_linear_attention(config, settled.linear_method);
    std::vector<Deviation> deviations;
    if (mesh.is_trainer()) deviations = check_linear_attention(mesh.sequence(), ctx, attention);
    if (world.rank() == 0) {
      print(attention.subject().name, {mesh.sequence().size(), threads}, deviations, json);
    }
    mesh.share(mesh.is_trainer() ? mesh.agreed([&] {
      require_small(mesh.trainers(), attention.subject(), deviations);
    })
                                 : std::nullopt,
               "check");
  }
}

}  // namespace

Action add_check_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_configured_run(app, options->run);
  app.add_flag("--json", options->json, "One JSON object a line for each tensor");
  return [options] {
    return run_configured(options->run, [&](dist::Group& world, const Config& config) {
      check(world, config, options->json);
    });
  };
}

}  // namespace longhaul::launch
