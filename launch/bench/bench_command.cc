#include "launch/bench/bench_command.h"

#include <array>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/train_bench.h"
#include "launch/cli/configured_run.h"
#include "launch/cli/ranks.h"

namespace longhaul::launch {
namespace {

int run_train_bench(const BenchTrainOptions& options) {
  for (const int ranks : options.ranks) check_ranks_option(ranks);
  for (const int64_t length : options.lengths) {
    if (length < 1) {
      fail(ErrorCode::kConfig,
           absl::StrCat("--lengths ", length, ": a sequence has 1 token or more"));
    }
  }
  if (options.steps < 1) {
    fail(ErrorCode::kConfig, absl::StrCat("--steps ", options.steps, ": time 1 step or more"));
  }
  return bench_train(options);
}

Action add_train_bench(CLI::App& app) {
  auto options = std::make_shared<BenchTrainOptions>();
  add_config_options(app, options->config, options->overrides);
  app.add_option("--ranks", options->ranks, "Ranks as threads, a case each, e.g. 1,2")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("LIST");
  app.add_option("--lengths", options->lengths, "Sequence lengths, a case each, e.g. 4096,8192")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("LIST");
  app.add_option("--steps", options->steps, "Timed steps a case")
      ->capture_default_str()
      ->type_name("N");
  app.add_flag("--json", options->json, "One JSON object a line instead of the table");
  return [options] { return run_train_bench(*options); };
}

}  // namespace

std::span<const Command> bench_commands() {
  static constexpr std::array<Command, 11> kCommands = {
      Command{.name = "train",
              .help = "Throughput, MFU and memory of training steps",
              .add = add_train_bench},
      Command{.name = "attention",
              .help = "Attention forward and backward, against the multiply-add peak",
              .add = add_attention_bench},
      Command{.name = "gemm",
              .help = "Matrix products of linear layers, against the multiply-add peak",
              .add = add_gemm_bench},
      Command{.name = "layout",
              .help = "Balance and remote keys of layouts for packed documents, planned",
              .add = add_layout_bench},
      Command{
          .name = "cad",
          .help = "Core attention disaggregation of packed documents: planned, simulated, timed",
          .add = add_cad_bench},
      Command{.name = "linear",
              .help = "Linear attention forward and backward, against the multiply-add peak",
              .add = add_linear_bench},
      Command{.name = "pointwise",
              .help = "All other operations of a step, against the copy bandwidth",
              .add = add_pointwise_bench},
      Command{.name = "comm",
              .help = "Latency and bandwidth between ranks, against memcpy",
              .add = add_comm_bench},
      Command{.name = "sequence",
              .help = "Attention over all ranks, against the kernel alone on every core",
              .add = add_sequence_bench},
      Command{.name = "scan",
              .help = "Linear attention over all ranks, against the same without other ranks",
              .add = add_scan_bench},
      Command{.name = "auto",
              .help = "What strategy \"auto\" takes, against the fastest one",
              .add = add_auto_bench}};
  return kCommands;
}

}  // namespace longhaul::launch
