// The `longhaul` program: the table of its subcommands.
#include <array>

#include "launch/bench/bench_command.h"
#include "launch/check/check_command.h"
#include "launch/cli/checkpoint_command.h"
#include "launch/cli/command.h"
#include "launch/cli/data_command.h"
#include "launch/doctor/doctor_command.h"
#include "launch/eval/eval_command.h"
#include "launch/generate/generate_command.h"
#include "launch/plan/plan_command.h"
#include "launch/train/train_command.h"

int main(int argc, char** argv) {
  using namespace longhaul::launch;
  const std::array<Command, 9> commands = {
      Command{.name = "train", .help = "Train a model", .add = add_train_command},
      Command{.name = "plan",
              .help = "What each strategy would cost on N ranks, without starting any",
              .add = add_plan_command},
      Command{.name = "check",
              .help = "Compare attention over the ranks with one rank's, before a run",
              .add = add_check_command},
      Command{.name = "data",
              .help = "Prepare, inspect or synthesize token files",
              .subcommands = data_commands()},
      Command{.name = "generate",
              .help = "Continue a text with a trained model",
              .add = add_generate_command},
      Command{.name = "eval",
              .help = "Loss by position and passkey retrieval of a trained model",
              .add = add_eval_command},
      Command{.name = "checkpoint",
              .help = "Import and export Hugging Face models",
              .subcommands = checkpoint_commands()},
      Command{.name = "bench",
              .help = "Measure, beside the machine's limits",
              .subcommands = bench_commands()},
      Command{.name = "doctor",
              .help = "Check the machine, the launch and the build",
              .add = add_doctor_command}};
  return run_program(commands, argc, argv);
}
