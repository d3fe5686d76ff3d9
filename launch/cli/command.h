// A subcommand of the program. To add one: a file with its Command, a row in launch/main.cc and a
// line in launch/CMakeLists.txt.
#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <span>
#include <string_view>

namespace longhaul::launch {

// Does the work once the options are parsed; returns the exit status. May throw Error: the message
// is printed and the code becomes the exit status.
using Action = std::function<int()>;

struct Command {
  std::string_view name;
  std::string_view help;  // one line
  // Adds the command's options to `app` and returns what to run; the options live in the action.
  // Null for a command that only groups subcommands.
  Action (*add)(CLI::App& app) = nullptr;
  std::span<const Command> subcommands = {};
};

// Parses the arguments and runs the command they name; returns the exit status. Prints every error
// once, as one line on stderr.
int run_program(std::span<const Command> commands, int argc, const char* const* argv);

// "longhaul 0.1.0"
std::string_view version();

}  // namespace longhaul::launch
