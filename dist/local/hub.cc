#include "dist/local/hub.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "kernels/core/error.h"

namespace longhaul::dist::local {

Hub::Hub(int ranks) : ended_(static_cast<size_t>(ranks)) {}

std::shared_ptr<Message> Hub::post_send(const Address& address, const ConstTensorView& data) {
  const std::lock_guard lock(mutex_);
  Mailbox& box = mailboxes_[address];
  const bool met = !box.recvs.empty();
  const auto message = met ? box.recvs.front() : std::make_shared<Message>();
  message->source = data.raw();
  message->sent_bytes = data.bytes();
  if (!met) {
    box.sends.push_back(message);
    return message;
  }
  box.recvs.pop_front();
  if (box.recvs.empty()) mailboxes_.erase(address);
  message->state.store(Message::kReady, std::memory_order_release);
  return message;
}

std::shared_ptr<Message> Hub::post_recv(const Address& address, const TensorView& data) {
  const std::lock_guard lock(mutex_);
  Mailbox& box = mailboxes_[address];
  const bool met = !box.sends.empty();
  const auto message = met ? box.sends.front() : std::make_shared<Message>();
  message->target = data.raw();
  message->wanted_bytes = data.bytes();
  if (!met) {
    box.recvs.push_back(message);
    return message;
  }
  box.sends.pop_front();
  if (box.sends.empty()) mailboxes_.erase(address);
  message->state.store(Message::kReady, std::memory_order_release);
  return message;
}

Message::State Hub::advance(Message& message) {
  int state = message.state.load(std::memory_order_acquire);
  if (state != Message::kReady) return static_cast<Message::State>(state);
  // Acquire also on failure: the winner's copy is about to be read.
  if (!message.state.compare_exchange_strong(state, Message::kCopying, std::memory_order_acq_rel)) {
    return static_cast<Message::State>(state);
  }
  const bool fits = message.sent_bytes == message.wanted_bytes;
  if (fits && message.sent_bytes > 0) {
    std::memcpy(message.target, message.source, static_cast<size_t>(message.sent_bytes));
  }
  const Message::State result = fits ? Message::kDone : Message::kMismatch;
  message.state.store(result, std::memory_order_release);
  return result;
}

void Hub::withdraw(const Address& address, const std::shared_ptr<Message>& message) {
  {
    const std::lock_guard lock(mutex_);
    int state = Message::kPosted;
    if (message->state.compare_exchange_strong(state, Message::kAbandoned)) {
      Mailbox& box = mailboxes_[address];
      std::erase(box.sends, message);
      std::erase(box.recvs, message);
      if (box.sends.empty() && box.recvs.empty()) mailboxes_.erase(address);
      return;
    }
  }
  int state = Message::kReady;
  if (message->state.compare_exchange_strong(state, Message::kAbandoned)) return;
  while (message->state.load(std::memory_order_acquire) == Message::kCopying) {
    std::this_thread::yield();
  }
}

std::vector<std::shared_ptr<void>> Hub::gather(int64_t group, const std::vector<int>& members,
                                               int index, std::shared_ptr<void> value) {
  const int size = static_cast<int>(members.size());
  std::unique_lock lock(mutex_);
  std::deque<Board>& boards = boards_[group];
  if (boards.empty() || boards.back().arrived == size) boards.emplace_back();
  // References into a deque stay valid while it grows and shrinks at its ends.
  Board& board = boards.back();
  board.values.resize(members.size());
  board.values[static_cast<size_t>(index)] = std::move(value);
  ++board.arrived;
  changed_.notify_all();
  const auto gone = [&]() -> int {
    for (size_t i = 0; i < members.size(); ++i) {
      if (board.values[i] == nullptr && ended(members[i])) return members[i];
    }
    return -1;
  };
  changed_.wait(lock, [&] { return board.arrived == size || aborted() || gone() >= 0; });
  if (board.arrived < size) {
    if (aborted()) {
      lock.unlock();
      throw_aborted();
    }
    fail(ErrorCode::kCommunication, absl::StrCat("rank ", gone(), " has ended"));
  }
  const std::vector<std::shared_ptr<void>> values = board.values;
  // Ranks leave the boards of a group in the order in which these were completed.
  if (++board.left == size) boards.pop_front();
  if (boards.empty()) boards_.erase(group);
  return values;
}

void Hub::abort(std::exception_ptr error, const std::string& message) {
  const std::lock_guard lock(mutex_);
  if (error_ != nullptr) return;
  error_ = std::move(error);
  message_ = message;
  aborted_.store(true, std::memory_order_release);
  changed_.notify_all();
}

void Hub::throw_aborted() const {
  std::string message;
  {
    const std::lock_guard lock(mutex_);
    message = message_;
  }
  fail(ErrorCode::kCommunication, message);
}

std::exception_ptr Hub::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void Hub::end(int rank) {
  const std::lock_guard lock(mutex_);
  ended_[static_cast<size_t>(rank)].store(true, std::memory_order_release);
  changed_.notify_all();
}

bool Hub::ended(int rank) const {
  return ended_[static_cast<size_t>(rank)].load(std::memory_order_acquire);
}

}  // namespace longhaul::dist::local
