#include "tests/dist/suite.h"

#include <absl/strings/str_cat.h>

#include <stdexcept>

namespace longhaul::dist::testing {
namespace {

[[noreturn]] void fail_case(const std::source_location& where, const std::string& detail) {
  throw std::runtime_error(
      absl::StrCat(where.file_name(), ":", where.line(), ": expectation failed: ", detail));
}

}  // namespace

std::vector<Case> all_cases() {
  std::vector<Case> all;
  for (const auto& cases : {collective_cases(), reduction_cases(), exchange_cases(), group_cases(),
                            failure_cases(), window_cases(), traffic_cases()}) {
    all.insert(all.end(), cases.begin(), cases.end());
  }
  return all;
}

void run_case(Group& world, const Case& test) {
  const auto group = world.split(0, world.rank());
  test.run(*group);
  expect(group->job().running.empty(), "operations left over");
  world.barrier("end of case");
}

void expect(bool ok, const std::string& detail, std::source_location where) {
  if (!ok) fail_case(where, detail);
}

std::string expect_error(ErrorCode code, const std::function<void()>& work,
                         std::source_location where) {
  const auto error = attempt(work);
  if (!error) fail_case(where, "no error");
  if (error->code() != code) fail_case(where, absl::StrCat("other error: ", error->what()));
  return error->what();
}

void expect_contains(const std::string& text, std::string_view part, std::source_location where) {
  if (text.find(part) == std::string::npos) {
    fail_case(where, absl::StrCat("'", std::string(part), "' is not in '", text, "'"));
  }
}

}  // namespace longhaul::dist::testing
