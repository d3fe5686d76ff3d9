#include "dist/local/transport.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <tuple>

#include "dist/slab_window.h"
#include "kernels/core/error.h"

namespace longhaul::dist::local {
namespace {

class LocalMessages final : public Transport::Messages {
 public:
  struct Pending {
    Address address;
    int peer;        // in the group
    int peer_world;  // in the job
    std::shared_ptr<Message> message;
  };

  LocalMessages(std::shared_ptr<Hub> hub, std::vector<Pending> pending)
      : hub_(std::move(hub)), pending_(std::move(pending)) {}

  ~LocalMessages() override {
    for (const Pending& pending : pending_) {
      if (pending.message != nullptr) hub_->withdraw(pending.address, pending.message);
    }
  }

  bool test() override {
    const bool aborted = hub_->aborted();
    for (Pending& pending : pending_) {
      // Read before the message, so that one that came just before its sender's end counts.
      const bool ended = hub_->ended(pending.peer_world);
      const Message::State state = Hub::advance(*pending.message);
      if (state == Message::kDone) {
        pending.message.reset();
      } else if (state == Message::kMismatch) {
        fail_mismatch(pending);
      } else if (ended && !hub_->aborted()) {  // an abort's message says more
        fail(ErrorCode::kCommunication, absl::StrCat("rank ", pending.peer_world, " has ended"));
      }
      // A peer that has abandoned the message is about to fail or to end, and then has a reason.
    }
    std::erase_if(pending_, [](const Pending& pending) { return pending.message == nullptr; });
    if (pending_.empty()) return true;
    if (aborted) hub_->throw_aborted();
    return false;
  }

  std::vector<int> missing() const override {
    std::vector<int> peers;
    for (const Pending& pending : pending_) {
      if (pending.message != nullptr) peers.push_back(pending.peer);
    }
    return peers;
  }

 private:
  [[noreturn]] static void fail_mismatch(const Pending& pending) {
    fail(ErrorCode::kCommunication,
         absl::StrCat("rank ", pending.address.target, " expects ", pending.message->wanted_bytes,
                      " bytes from rank ", pending.address.source, ", which sends ",
                      pending.message->sent_bytes, ": the ranks disagree about the operation"));
  }

  const std::shared_ptr<Hub> hub_;
  std::vector<Pending> pending_;
};

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<Hub> hub, int64_t group, std::vector<int> members, int index)
      : hub_(std::move(hub)), group_(group), members_(std::move(members)), index_(index) {}

  int rank() const override { return index_; }
  int size() const override { return static_cast<int>(members_.size()); }
  int world_rank(int rank) const override {
    LONGHAUL_CHECK(rank >= 0 && rank < size());
    return members_[static_cast<size_t>(rank)];
  }

  std::unique_ptr<Messages> start(Stream&, std::span<const Send> sends, std::span<const Recv> recvs,
                                  int64_t channel) override {
    const int me = world_rank(index_);
    std::vector<LocalMessages::Pending> pending;
    pending.reserve(sends.size() + recvs.size());
    for (const Send& send : sends) {
      const int peer = world_rank(send.peer);
      const Address address{group_, channel, me, peer};
      pending.push_back({address, send.peer, peer, hub_->post_send(address, send.data)});
    }
    for (const Recv& recv : recvs) {
      const int peer = world_rank(recv.peer);
      const Address address{group_, channel, peer, me};
      pending.push_back({address, recv.peer, peer, hub_->post_recv(address, recv.data)});
    }
    return std::make_unique<LocalMessages>(hub_, std::move(pending));
  }

  void progress() override {
    if (hub_->aborted()) hub_->throw_aborted();
  }

  std::unique_ptr<Transport> split(int color, int key) override {
    struct Choice {
      int color;
      int key;
      int64_t group;  // a number for the new group, if this rank becomes its first
    };
    const auto choices = hub_->gather(
        group_, members_, index_, std::make_shared<Choice>(Choice{color, key, hub_->new_group()}));
    const auto choice = [&](int rank) -> const Choice& {
      return *static_cast<const Choice*>(choices[static_cast<size_t>(rank)].get());
    };
    std::vector<int> mine;
    for (int rank = 0; rank < size(); ++rank) {
      if (choice(rank).color == color) mine.push_back(rank);
    }
    std::sort(mine.begin(), mine.end(), [&](int a, int b) {
      return std::tuple(choice(a).key, a) < std::tuple(choice(b).key, b);
    });
    const auto index = std::find(mine.begin(), mine.end(), index_) - mine.begin();
    const int64_t group = choice(mine.front()).group;
    for (int& rank : mine) rank = world_rank(rank);
    return make_transport(hub_, group, std::move(mine), static_cast<int>(index));
  }

  std::unique_ptr<Window> make_window(int slots, int64_t slot_bytes) override {
    const SlabLayout layout{slots, slot_bytes};
    // At least the flags' page, so that no rank brings a null pointer.
    const int64_t bytes = std::max(layout.bytes(), kSlabAlignment);
    constexpr auto alignment = std::align_val_t{static_cast<size_t>(kSlabAlignment)};
    auto* memory = static_cast<std::byte*>(
        ::operator new(static_cast<size_t>(bytes), alignment, std::nothrow));
    const Slab slab(memory, [](std::byte* p) { ::operator delete(p, alignment); });
    if (memory != nullptr) initialise_slab(memory, layout);

    // A rank without memory still comes to the board, where the others expect it.
    const auto brought = hub_->gather(group_, members_, index_, std::make_shared<Slab>(slab));
    if (memory == nullptr) {
      fail(ErrorCode::kEnvironment,
           absl::StrCat("no memory for a window of ", slots, " x ", slot_bytes, " bytes"));
    }
    std::vector<Slab> slabs;
    for (const auto& other : brought) slabs.push_back(*static_cast<const Slab*>(other.get()));
    return slab_window(layout, index_, std::move(slabs));
  }

  void abort(int exit_status, const std::string& message) override {
    hub_->abort(std::make_exception_ptr(Error(static_cast<ErrorCode>(exit_status), message)),
                absl::StrCat("rank ", world_rank(index_), " ended the job: ", message));
  }

 private:
  const std::shared_ptr<Hub> hub_;
  const int64_t group_;
  const std::vector<int> members_;
  const int index_;
};

}  // namespace

std::unique_ptr<Transport> make_transport(std::shared_ptr<Hub> hub, int64_t group,
                                          std::vector<int> members, int index) {
  return std::make_unique<LocalTransport>(std::move(hub), group, std::move(members), index);
}

}  // namespace longhaul::dist::local
