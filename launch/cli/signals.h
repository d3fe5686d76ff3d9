// Asking a run to stop: SIGTERM (schedulers, before they take the machine away) and SIGUSR1.
#pragma once

namespace longhaul::launch {

// The training loop reads the request at the end of every step, agrees over the ranks (a signal may
// reach only some of them), saves and ends with exit status 75, which asks the scheduler to start
// the same command again. Ctrl-C (SIGINT) ends the program at once.
//
// There is no handler: the signals are blocked and stay pending. A handler may run on any thread at
// any moment, in the middle of a library that is not prepared for it.
class StopRequest {
 public:
  // From the main thread, before there are others: they inherit what is blocked.
  static void install();
  // From any thread. Once true, always true.
  static bool requested();
};

}  // namespace longhaul::launch
