#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/cli/command.h"
#include "launch/cli/launcher.h"
#include "launch/config/suggest.h"

namespace longhaul::launch {
namespace {

struct Added {
  const CLI::App* app = nullptr;
  Action action;
};

void add_commands(CLI::App& app, std::span<const Command> commands, std::vector<Added>& added) {
  for (const Command& command : commands) {
    CLI::App& sub = *app.add_subcommand(std::string(command.name), std::string(command.help));
    if (command.add != nullptr) added.push_back({&sub, command.add(sub)});
    add_commands(sub, command.subcommands, added);
  }
}

// The subcommand that the arguments reached.
const CLI::App& chosen(const CLI::App& app) {
  const auto parsed = app.get_subcommands();
  return parsed.empty() ? app : chosen(*parsed.back());
}

std::string full_name(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  return parent == nullptr ? app.get_name() : absl::StrCat(full_name(*parent), " ", app.get_name());
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(sub->get_name());
  }
  return names;
}

// What is wrong with the arguments, in our words where the parser's are vague.
Error usage_error(const CLI::App& app, const std::string& parser_message) {
  const CLI::App& at = chosen(app);
  const std::vector<std::string> left = app.remaining(true);
  const std::vector<std::string> subcommands = subcommand_names(at);
  std::string what = parser_message;
  // An unknown name is the cause even if, for want of it, another option is missing.
  for (const std::string& argument : left) {
    if (!absl::StartsWith(argument, "-") || argument == "--") continue;
    const std::string name = argument.substr(0, argument.find('='));
    what = absl::StrCat("unknown option ", name, suggestion(name, option_names(at)));
    return Error(ErrorCode::kConfig, absl::StrCat(full_name(at), ": ", what));
  }
  if (!left.empty()) {
    what = subcommands.empty() ? absl::StrCat("unexpected argument `", left.front(), "`")
                               : absl::StrCat("unknown subcommand `", left.front(), "`",
                                              suggestion(left.front(), subcommands));
  }
  return Error(ErrorCode::kConfig, absl::StrCat(full_name(at), ": ", what));
}

int run_chosen(const CLI::App& app, const std::vector<Added>& added) {
  const CLI::App& at = chosen(app);
  for (const Added& command : added) {
    if (command.app != &at) continue;
    int status = 0;
    const auto error = attempt([&] { status = command.action(); });
    return error ? report_everywhere(*error) : status;
  }
  return report_everywhere(
      Error(ErrorCode::kConfig,
            absl::StrCat(full_name(at), ": no subcommand given; one of: ",
                         absl::StrJoin(subcommand_names(at), ", "), " (--help explains them)")));
}

}  // namespace

std::string_view version() { return "longhaul " LONGHAUL_VERSION; }

int run_program(std::span<const Command> commands, int argc, const char* const* argv) {
  CLI::App app("Trains language models on sequences too long for one device.");
  app.name("longhaul");
  app.set_version_flag("--version", std::string(version()));
  std::vector<Added> added;
  add_commands(app, commands, added);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    return launched_rank() == 0 ? app.exit(request) : 0;
  } catch (const CLI::ParseError& error) {
    return report_everywhere(usage_error(app, error.what()));
  }
  return run_chosen(app, added);
}

}  // namespace longhaul::launch
