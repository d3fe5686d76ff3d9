#include "launch/cli/signals.h"

#include <gtest/gtest.h>

#include <csignal>

namespace longhaul::launch {
namespace {

// In a child each, since a request cannot be taken back.
void raise_and_report(int signal) {
  StopRequest::install();
  if (StopRequest::requested()) std::exit(2);
  std::raise(signal);
  std::exit(StopRequest::requested() ? 0 : 1);
}

TEST(StopRequestDeathTest, SchedulersSignalsSetTheFlag) {
  for (const int signal : {SIGTERM, SIGUSR1}) {
    EXPECT_EXIT(raise_and_report(signal), testing::ExitedWithCode(0), "") << signal;
  }
}

TEST(StopRequestDeathTest, CtrlCEndsTheProgram) {
  EXPECT_EXIT(raise_and_report(SIGINT), testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace longhaul::launch
