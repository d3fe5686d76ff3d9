#include "launch/cli/signals.h"

#include <pthread.h>

#include <csignal>

namespace longhaul::launch {

void StopRequest::install() {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
}

bool StopRequest::requested() {
  sigset_t pending;
  return sigpending(&pending) == 0 &&
         (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGUSR1) == 1);
}

}  // namespace longhaul::launch
