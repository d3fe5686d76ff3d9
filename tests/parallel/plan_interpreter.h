// Runs the plans of all ranks in one thread on fp64 data, following the meaning of a step in
// parallel/plan/plan.h to the letter, and refuses whatever that meaning does not allow:
//
// - a transfer without its other end, or with other fields, heads or numbers of rows;
// - an order that deadlocks when a rank enters a step only once its transfers due there are
//   complete, and a transfer completes only once both ends have been started (rendezvous);
// - a write to rows that are being sent; a read or write of rows that are being stored into;
// - memory of another slot taken over while that one's rows travel, or too little of it;
// - rows of its own that a rank composes and that are changed before, or listed elsewhere;
// - slots, rows, heads or fields out of bounds; an origin that is not what it says, or a slot that
//   receives keys both with and without one.
//
// Memory starts as NaN, and so does the destination of a storing receive until it is done, and what
// lies in memory that another slot takes over.
// It shares no code with the executor and none with the kernels.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "parallel/plan/plan.h"

namespace longhaul::test {

struct PlanViolation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class PlanInterpreter {
 public:
  using Dims = std::array<int64_t, parallel::kFieldCount>;  // doubles per row and head of a field

  struct Operations {
    // Computes a task of a rank through read() and write().
    std::function<void(int rank, const parallel::Task& task)> run_task;
    // slot <- received, then slot. No received decay: a state is received, and the slot's decay is
    // not to be written.
    std::function<void(std::span<double> state, std::span<double> decay,
                       std::span<const double> received_state,
                       std::span<const double> received_decay)>
        compose;
  };

  PlanInterpreter(std::vector<parallel::Plan> plans, Dims dims, Operations operations);

  // Ranks take turns in an order drawn from the seed: each order must give the same result.
  // Throws PlanViolation.
  void run(uint64_t seed);

  // One row and head (global) of a field, unchecked: to fill and to inspect homes.
  std::span<double> at(int rank, int slot, parallel::Field field, int64_t row, int64_t head);
  // The same for tasks: throws PlanViolation where a rule forbids it.
  std::span<const double> read(int rank, int slot, parallel::Field field, int64_t row,
                               int64_t head);
  std::span<double> write(int rank, int slot, parallel::Field field, int64_t row, int64_t head);

  // Throws PlanViolation if any row of a buffer's field travels in a way that forbids reading it
  // (or writing): kernels read and write whole blocks of rows, also beside those of a task. Nothing
  // of home is received, and its inputs are sent while they are read.
  void require_still(int rank, int slot, parallel::Field field, bool written);

  const std::vector<parallel::Plan>& plans() const { return plans_; }

 private:
  struct FieldMemory {
    std::vector<double> values;
    std::vector<int> sending;  // per row and head: transfers in flight
    std::vector<int> storing;
  };
  struct SlotMemory {
    std::array<FieldMemory, parallel::kFieldCount> fields;
    int origin = -1;  // whose home rows its keys and values are
  };
  struct Message;  // one end of a transfer in flight
  struct Rank;

  void check_plan(int rank) const;
  void check_transfer(int rank, int step, const parallel::Transfer& transfer) const;
  void check_home_readers(int rank) const;
  void check_origin(int rank, const parallel::Transfer& transfer);
  void enter(int rank);
  void start(int rank, const parallel::Transfer& transfer);
  void match(int from, int to);
  void finish(int rank, Message& message);
  void clear(int rank, const parallel::Clear& clear);
  void take_over(int rank, int slot, parallel::Field field);
  void fold(int rank, const Message& message);
  void check_unchanged(int rank, const parallel::Transfer& send, std::span<const double> payload);
  bool may_enter(int rank) const;
  std::string waiting() const;

  int64_t index(int rank, int slot, parallel::Field field, int64_t row, int64_t head) const;
  FieldMemory& memory(int rank, int slot, parallel::Field field);
  template <class F>
  void for_each_element(const parallel::Transfer& transfer, F&& visit);

  std::vector<parallel::Plan> plans_;
  Dims dims_;
  Operations operations_;
  std::vector<std::vector<SlotMemory>> slots_;  // [rank][slot]

  struct Message {
    parallel::Transfer transfer;
    bool matched = false;
    std::vector<double> payload;  // of a receive
  };
  struct Rank {
    int next_step = 0;
    bool finished = false;
    std::deque<Message> in_flight;  // in the order in which they were listed
  };
  std::vector<Rank> ranks_;
  // Unmatched messages of a pair (from, to), in order; pointers into in_flight.
  std::map<std::pair<int, int>, std::deque<Message*>> sends_, receives_;
};

}  // namespace longhaul::test
