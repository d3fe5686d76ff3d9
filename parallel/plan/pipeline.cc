#include "parallel/plan/pipeline.h"

#include <algorithm>
#include <utility>

#include "kernels/core/error.h"
#include "parallel/plan/parts.h"

namespace longhaul::parallel {

namespace {

// More messages than this for one pair of ranks cost more than the rows between them.
constexpr size_t kMostSpans = 16;

// Rows of one side that take part in any segment.
std::vector<Span> rows_of_side(const std::vector<Segment>& segments, bool keys) {
  std::vector<Span> rows;
  rows.reserve(segments.size());
  for (const Segment& s : segments) {
    rows.push_back(keys ? Span{s.k_row, s.k_len} : Span{s.q_row, s.q_len});
  }
  return joined(std::move(rows), kMostSpans);
}

}  // namespace

struct Pipeline::Parcel {
  bool keys;               // or queries
  std::vector<Span> rows;  // of the owner's home, and of the buffer
  Span heads;
  int origin;
};

Pipeline::Pipeline(const Problem& problem, Direction direction, int rank)
    : problem_(problem), direction_(direction), rank_(rank) {
  plan_.slots.push_back(home_slot(problem, direction, rank));
  step(0).clears.push_back({0, home_outputs(direction)});
}

int Pipeline::add_buffer(const PlacedTask& task) {
  plan_.slots.push_back(buffer_for(task));
  return static_cast<int>(plan_.slots.size()) - 1;
}

Step& Pipeline::step(int index) {
  const auto i = static_cast<size_t>(index);
  if (plan_.steps.size() <= i) plan_.steps.resize(i + 1);
  return plan_.steps[i];
}

Fields Pipeline::results(bool keys) const {
  if (!keys) return query_outputs(direction_);
  return direction_ == Direction::kForward ? Fields{} : kKeyGradients;
}

void Pipeline::add(int round, const PlacedTask& task, int buffer) {
  const bool keys = task.q_owner == task.server;  // are what comes from elsewhere
  const int owner = keys ? task.k_owner : task.q_owner;
  if (rank_ != task.server && rank_ != owner) return;
  LONGHAUL_CHECK(round == 0 ? owner == task.server
                            : owner != task.server && (keys || task.k_owner == task.server),
                 "a task of this round has too many remote sides, or too few");
  // Rows keep their numbers: in a buffer they lie as at home.
  std::vector<Segment> segments = cut_task(problem_, task, task.q_rows.begin, task.k_rows.begin);
  if (segments.empty()) return;
  const Span kv_heads = kv_heads_of(task.q_heads, problem_.heads);
  const bool all_kv_heads = kv_heads.length == problem_.heads.kv_heads;
  const auto parcel = [&](bool of_keys) {
    return Parcel{of_keys, rows_of_side(segments, of_keys), of_keys ? kv_heads : task.q_heads,
                  of_keys && all_kv_heads ? owner : -1};
  };
  if (rank_ != task.server) {
    lend(round, task.server, parcel(keys));
    return;
  }
  LONGHAUL_CHECK((round == 0) == (buffer == 0), "rows of others need a buffer");
  if (round > 0) borrow(round, owner, buffer, parcel(keys));
  step(round).tasks.push_back({.q_slot = keys ? 0 : buffer,
                               .k_slot = keys ? buffer : 0,
                               .q_heads = task.q_heads,
                               .segments = std::move(segments)});
}

Slot Pipeline::buffer_for(const PlacedTask& task) const {
  Slot slot;
  if (task.q_owner == task.server) {
    slot.k_rows = problem_.layout.most_rows();
    slot.kv_heads = kv_heads_of(task.q_heads, problem_.heads);
    slot.fields = key_fields(direction_);
  } else {
    slot.q_rows = problem_.layout.most_rows();
    slot.q_heads = task.q_heads;
    slot.fields = query_inputs(direction_) | query_outputs(direction_);
  }
  return slot;
}

void Pipeline::borrow(int round, int owner, int buffer, const Parcel& parcel) {
  const Fields inputs = parcel.keys ? kKeys : query_inputs(direction_);
  const Fields back = results(parcel.keys);
  if (!back.empty()) step(round).clears.push_back({buffer, back});
  for (Span rows : parcel.rows) {
    add_receive(step(round - 1), {owner, buffer, inputs, rows, parcel.heads, round, parcel.origin},
                Reduce::kStore);
    if (back.empty()) continue;
    add_send(step(round + 1), {owner, buffer, back, rows, parcel.heads, round + 2});
  }
}

void Pipeline::lend(int round, int server, const Parcel& parcel) {
  const Fields inputs = parcel.keys ? kKeys : query_inputs(direction_);
  const Fields back = results(parcel.keys);
  for (Span rows : parcel.rows) {
    add_send(step(round - 1), {server, 0, inputs, rows, parcel.heads, round, parcel.origin});
    if (back.empty()) continue;
    add_receive(step(round + 1), {server, 0, back, rows, parcel.heads, round + 2},
                back == kResults ? Reduce::kMerge : Reduce::kAdd);
  }
  if (parcel.origin == rank_) plan_.home_readers.push_back(server);
}

Plan Pipeline::finish() { return std::move(plan_); }

}  // namespace longhaul::parallel
