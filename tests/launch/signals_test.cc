#include "launch/cli/signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <thread>

namespace longhaul::launch {
namespace {

// In a child each, since a request cannot be taken back. The signal is for the process, as from a
// scheduler; the one who asks is a thread that was made after install(), as a rank may be.
void signal_and_report(int signal) {
  StopRequest::install();
  bool before = true, after = false;
  std::thread rank([&] {
    before = StopRequest::requested();
    kill(getpid(), signal);
    after = StopRequest::requested() && StopRequest::requested();
  });
  rank.join();
  std::exit(before ? 2 : after ? 0 : 1);
}

TEST(StopRequestDeathTest, SchedulersSignalsAreRequests) {
  for (const int signal : {SIGTERM, SIGUSR1}) {
    EXPECT_EXIT(signal_and_report(signal), testing::ExitedWithCode(0), "") << signal;
  }
}

TEST(StopRequestDeathTest, CtrlCEndsTheProgram) {
  EXPECT_EXIT(signal_and_report(SIGINT), testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace longhaul::launch
