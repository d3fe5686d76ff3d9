// What all groups of one rank share: where the rank is in its run (for messages about hangs), the
// deadline of every wait, and the traffic counters.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dist/request.h"

namespace longhaul::dist {

// Bytes and waiting time per operation name ("ring kv", "gradients", ...).
class Traffic {
 public:
  struct Counter {
    int64_t operations = 0;
    int64_t sent_bytes = 0;
    int64_t received_bytes = 0;
    int64_t in_place_bytes = 0;  // read from a neighbour's memory without a copy
    double waited_seconds = 0;   // time in which this rank could do nothing else
    bool operator==(const Counter&) const = default;
  };

  Counter& operator[](std::string_view what);
  const std::map<std::string, Counter, std::less<>>& counters() const { return counters_; }
  Counter total() const;
  void reset() { counters_.clear(); }

 private:
  std::map<std::string, Counter, std::less<>> counters_;
};

class HostBuffers;

// Something that has to be asked now and then whether it still works.
class Watched {
 public:
  virtual ~Watched() = default;
  // Never blocks; throws Error(kCommunication) if it does not.
  virtual void progress() = 0;
};

struct Job {
  int world_rank = 0;
  int world_size = 1;
  // No wait lasts longer. Long enough for the slowest rank's compute between two operations.
  std::chrono::milliseconds deadline{std::chrono::minutes(10)};

  // Kept up to date by the training loop and the layers; shown when a wait passes its deadline.
  int64_t step = -1;
  std::string place;  // "layer 3 attention forward"

  Traffic traffic;

  // Operations that have not ended; they enter and leave by themselves.
  std::vector<Request::Operation*> running;
  // Transports of their own kind; they enter and leave by themselves.
  std::vector<Watched*> watched;
  // Where operations on a device's tensors have their host copies; made by the first of them.
  std::shared_ptr<HostBuffers> host_buffers;
  // An operation has failed: those that are dropped now are given up, not waited for.
  bool communication_failed = false;
};

// "rank 3, step 17, layer 2 attention forward": where the rank is.
std::string whereabouts(const Job& job);

}  // namespace longhaul::dist
