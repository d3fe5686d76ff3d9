// What a transport has to offer; everything else (collectives, deadlines, counters) is built on it
// once, in Group. Transports: dist/local (ranks as threads), dist/mpi, dist/null (measuring). They
// move host memory; tensors of devices: device_transport.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dist/request.h"
#include "dist/window.h"
#include "kernels/core/tensor.h"

namespace longhaul::dist {

struct Send {
  int peer = 0;          // rank in the group; may be this rank
  ConstTensorView data;  // contiguous
};
struct Recv {
  int peer = 0;
  TensorView data;  // contiguous; its bytes must equal those of the matching send
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Rank in the whole job of a rank of this group, for messages.
  virtual int world_rank(int rank) const = 0;

  // Whether messages carry data. The measuring transport only pretends, on views without memory.
  virtual bool moves_data() const { return true; }

  // A set of messages that progress together. Messages from one rank to another within a group and
  // a channel match in the order in which they were started; empty ones (0 bytes) are legal and
  // match too. Sizes that differ are an Error(kCommunication) on the receiver, never a cut message.
  //
  // Channels keep apart operations that are in flight together: a collective of several stages
  // starts its later messages whenever its rank happens to test it, so their order relative to
  // other operations differs from rank to rank. Group uses 0 for exchanges, whose messages are all
  // started by the call itself, and 1, 2, ... for its collectives in the order of their calls.
  class Messages {
   public:
    // Must not be destroyed unfinished, unless the job is ending: gives up what it can.
    virtual ~Messages() = default;
    virtual bool test() = 0;                       // see Request::Operation::test
    virtual std::vector<int> missing() const = 0;  // peers whose messages have not completed
  };
  virtual std::unique_ptr<Messages> start(Stream&, std::span<const Send>, std::span<const Recv>,
                                          int64_t channel) = 0;

  // Lets everything in flight move on, for ranks that wait for something other than messages.
  // Throws Error(kCommunication) if another rank has ended the job.
  virtual void progress() = 0;

  // Collective over the group. Ranks of equal color form a group, ordered by key, then by rank.
  virtual std::unique_ptr<Transport> split(int color, int key) = 0;

  // Collective; see window.h. Every rank passes the same arguments. Where a rank throws, the others
  // return (possibly null); Group then makes the error everybody's.
  virtual std::unique_ptr<Window> make_window(int slots, int64_t slot_bytes) = 0;

  // Ends the job on all ranks, now: other ranks' waits fail or their processes are killed.
  // Where ranks are processes, prints the message, which names the rank; run_local throws instead.
  virtual void abort(int exit_status, const std::string& message) = 0;
};

}  // namespace longhaul::dist
