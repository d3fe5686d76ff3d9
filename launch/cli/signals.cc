#include "launch/cli/signals.h"

#include <atomic>
#include <csignal>

namespace longhaul::launch {
namespace {

// Signals belong to the process, so this is one of the few things that do, too.
std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "or the handler must not touch it");

void request_stop(int) { stop_requested.store(true, std::memory_order_relaxed); }

}  // namespace

void StopRequest::install() {
  struct sigaction action = {};
  action.sa_handler = request_stop;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

bool StopRequest::requested() { return stop_requested.load(std::memory_order_relaxed); }

}  // namespace longhaul::launch
