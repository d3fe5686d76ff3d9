// Asking a run to stop: SIGTERM (schedulers, before they take the machine away) and SIGUSR1.
#pragma once

namespace longhaul::launch {

// The handler only sets a flag. The training loop reads it at the end of every step, agrees over
// the ranks (a signal may reach only some of them), saves and ends with exit status 75, which asks
// the scheduler to start the same command again. Ctrl-C (SIGINT) ends the program at once.
class StopRequest {
 public:
  static void install();
  static bool requested();
};

}  // namespace longhaul::launch
