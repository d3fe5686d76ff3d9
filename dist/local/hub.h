// Where the threads of run_local meet: mailboxes that bring a send and its receive together, a
// board for the rare collective set-ups, and who has ended or failed. Thread-safe.
#pragma once

#include <atomic>
#include <compare>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dist/transport.h"

namespace longhaul::dist::local {

// A message is a meeting of two buffers. Whichever side looks first after both have come copies
// from one to the other, so a message arrives even if one of the sides is busy elsewhere.
struct Message {
  enum State : int {
    kPosted,     // one side is still missing
    kReady,      // both are here
    kCopying,    // one of them copies
    kDone,       //
    kMismatch,   // the sizes differ: an error on both sides
    kAbandoned,  // one side has given up
  };
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  int64_t sent_bytes = 0;
  int64_t wanted_bytes = 0;
  std::atomic<int> state{kPosted};
};

struct Address {
  int64_t group = 0;
  int64_t channel = 0;
  int source = 0;  // world ranks
  int target = 0;
  auto operator<=>(const Address&) const = default;
};

class Hub {
 public:
  explicit Hub(int ranks);
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  std::shared_ptr<Message> post_send(const Address& address, const ConstTensorView& data);
  std::shared_ptr<Message> post_recv(const Address& address, const TensorView& data);
  // Copies if both sides are here; returns the state after that.
  static Message::State advance(Message& message);
  // One side's buffer goes: afterwards nobody touches it.
  void withdraw(const Address& address, const std::shared_ptr<Message>& message);

  // Every one of the group's `members` (world ranks) brings a value and gets all of them, in the
  // members' order. Blocks; fails like a message if one of them has failed or ended.
  std::vector<std::shared_ptr<void>> gather(int64_t group, const std::vector<int>& members,
                                            int index, std::shared_ptr<void> value);
  int64_t new_group() { return next_group_.fetch_add(1); }

  // The first failure counts; later ones are taken for its consequences.
  void abort(std::exception_ptr error, const std::string& message);
  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  [[noreturn]] void throw_aborted() const;
  std::exception_ptr error() const;

  // The rank starts nothing more.
  void end(int rank);
  bool ended(int rank) const;

 private:
  struct Mailbox {
    // Those that wait for their other side; never both kinds at once.
    std::deque<std::shared_ptr<Message>> sends;
    std::deque<std::shared_ptr<Message>> recvs;
  };
  struct Board {
    std::vector<std::shared_ptr<void>> values;
    int arrived = 0;
    int left = 0;
  };

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a board, an end or the abort
  std::map<Address, Mailbox> mailboxes_;
  std::map<int64_t, std::deque<Board>> boards_;  // by group; the last may be incomplete
  std::exception_ptr error_;
  std::string message_;
  std::atomic<bool> aborted_{false};
  std::vector<std::atomic<bool>> ended_;
  std::atomic<int64_t> next_group_{1};
};

}  // namespace longhaul::dist::local
