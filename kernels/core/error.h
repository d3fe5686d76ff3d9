// How Longhaul fails: every error a user can meet is an Error with a code and one sentence that
// names the value, the limit and the fix. The code is also the process's exit status (see README).
#pragma once

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>

namespace longhaul {

enum class ErrorCode : int {
  kInternal = 1,       // a broken promise inside Longhaul: please report it
  kConfig = 2,         // command line or configuration
  kData = 3,           // corpus or token files
  kCheckpoint = 4,     // a checkpoint that is missing, damaged or of another model
  kEnvironment = 5,    // memory, disk, MPI launch, device
  kCommunication = 6,  // a deadline passed or a peer is gone
  kNumerics = 7,       // a NaN or infinity in training, or attention that `check` found wrong
  kInterrupted = 75,   // stopped by a signal after saving a checkpoint: start again to go on
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }
  int exit_status() const { return static_cast<int>(code_); }

 private:
  ErrorCode code_;
};

// An error that every rank of the job throws, as dist::Group::agree does: rank 0 reports it, and
// the job ends without being aborted.
class SharedError : public Error {
 public:
  using Error::Error;
  explicit SharedError(const Error& error) : Error(error) {}
};

[[noreturn]] void fail(ErrorCode code, const std::string& message);

// For promises between parts of the program, not for user input: throws Error(kInternal).
#define LONGHAUL_CHECK(condition, ...)                                         \
  do {                                                                         \
    if (!(condition)) [[unlikely]]                                             \
      ::longhaul::check_failed(__FILE__, __LINE__, #condition, ##__VA_ARGS__); \
  } while (false)
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& detail = "");

// Runs `work` and returns the Error it threw, if any; other exceptions become kInternal.
// Pairs with dist::Group::agree, which turns one rank's error into every rank's.
std::optional<Error> attempt(const std::function<void()>& work);

}  // namespace longhaul
