#include "tests/parallel/plan_interpreter.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"

namespace longhaul::test {

using parallel::Field;
using parallel::Fields;
using parallel::Plan;
using parallel::Reduce;
using parallel::Slot;
using parallel::Span;
using parallel::Step;
using parallel::Transfer;

namespace {

constexpr double kPoison = std::numeric_limits<double>::quiet_NaN();

int64_t rows_on_side(const Slot& slot, Field field) {
  return parallel::on_key_side(field) ? slot.k_rows : slot.q_rows;
}
Span heads_on_side(const Slot& slot, Field field) {
  return parallel::on_key_side(field) ? slot.kv_heads : slot.q_heads;
}

void require(bool condition, const std::string& what) {
  if (!condition) throw PlanViolation(what);
}

bool within(Span inner, Span outer) {
  return inner.begin >= outer.begin && inner.end() <= outer.end();
}

std::string describe(int rank, const Transfer& t) {
  std::string fields;
  for (Field field : t.fields.list()) absl::StrAppend(&fields, " ", std::string(name(field)));
  return absl::StrCat("rank ", rank, t.send ? " sends to " : " receives from ", t.peer, fields,
                      ", slot ", t.slot, ", rows ", t.rows.begin, "+", t.rows.length, ", heads ",
                      t.heads.begin, "+", t.heads.length, ", done by ", t.done_by);
}

}  // namespace

PlanInterpreter::PlanInterpreter(std::vector<Plan> plans, Dims dims, Operations operations)
    : plans_(std::move(plans)), dims_(dims), operations_(std::move(operations)) {
  for (const Plan& plan : plans_) {
    std::vector<SlotMemory> memory(plan.slots.size());
    for (size_t s = 0; s < plan.slots.size(); ++s) {
      for (Field field : plan.slots[s].fields.list()) {
        const int64_t elements =
            rows_on_side(plan.slots[s], field) * heads_on_side(plan.slots[s], field).length;
        FieldMemory& m = memory[s].fields[static_cast<size_t>(field)];
        m.values.assign(static_cast<size_t>(elements * dims_[static_cast<size_t>(field)]), kPoison);
        m.sending.assign(static_cast<size_t>(elements), 0);
        m.storing.assign(static_cast<size_t>(elements), 0);
      }
    }
    slots_.push_back(std::move(memory));
  }
  ranks_.resize(plans_.size());
}

int64_t PlanInterpreter::index(int rank, int slot, Field field, int64_t row, int64_t head) const {
  const Plan& plan = plans_[static_cast<size_t>(rank)];
  const auto refuse = [&](const char* what) {
    throw PlanViolation(absl::StrCat("rank ", rank, " slot ", slot, " ", std::string(name(field)),
                                     " row ", row, " head ", head, ": ", what));
  };
  if (slot < 0 || slot >= static_cast<int>(plan.slots.size())) refuse("no such slot");
  const Slot& s = plan.slots[static_cast<size_t>(slot)];
  const Span heads = heads_on_side(s, field);
  if (!s.fields.has(field)) refuse("the slot has no such field");
  if (row < 0 || row >= rows_on_side(s, field)) refuse("no such row");
  if (head < heads.begin || head >= heads.end()) refuse("no such head");
  return row * heads.length + head - heads.begin;
}

PlanInterpreter::FieldMemory& PlanInterpreter::memory(int rank, int slot, Field field) {
  return slots_[static_cast<size_t>(rank)][static_cast<size_t>(slot)]
      .fields[static_cast<size_t>(field)];
}

std::span<double> PlanInterpreter::at(int rank, int slot, Field field, int64_t row, int64_t head) {
  const int64_t i = index(rank, slot, field, row, head);
  const int64_t dim = dims_[static_cast<size_t>(field)];
  return std::span(memory(rank, slot, field).values)
      .subspan(static_cast<size_t>(i * dim), static_cast<size_t>(dim));
}

std::span<const double> PlanInterpreter::read(int rank, int slot, Field field, int64_t row,
                                              int64_t head) {
  const auto i = static_cast<size_t>(index(rank, slot, field, row, head));
  if (memory(rank, slot, field).storing[i] != 0) {
    throw PlanViolation(absl::StrCat("rank ", rank, " reads slot ", slot, " ",
                                     std::string(name(field)), " row ", row,
                                     " while it is stored into"));
  }
  return at(rank, slot, field, row, head);
}

std::span<double> PlanInterpreter::write(int rank, int slot, Field field, int64_t row,
                                         int64_t head) {
  const auto i = static_cast<size_t>(index(rank, slot, field, row, head));
  const FieldMemory& m = memory(rank, slot, field);
  if (m.storing[i] != 0 || m.sending[i] != 0) {
    throw PlanViolation(absl::StrCat("rank ", rank, " writes slot ", slot, " ",
                                     std::string(name(field)), " row ", row, " while it is ",
                                     m.sending[i] != 0 ? "sent" : "stored into"));
  }
  return at(rank, slot, field, row, head);
}

void PlanInterpreter::require_still(int rank, int slot, Field field, bool written) {
  const FieldMemory& m = memory(rank, slot, field);
  const auto busy = [](int count) { return count != 0; };
  require(
      !std::ranges::any_of(m.storing, busy) && !(written && std::ranges::any_of(m.sending, busy)),
      absl::StrCat("rank ", rank, " computes on slot ", slot, " ", std::string(name(field)),
                   " while rows of it travel"));
}

template <class F>
void PlanInterpreter::for_each_element(const Transfer& transfer, F&& visit) {
  for (Field field : transfer.fields.list()) {
    for (int64_t row = transfer.rows.begin; row < transfer.rows.end(); ++row) {
      for (int64_t head = transfer.heads.begin; head < transfer.heads.end(); ++head) {
        visit(field, row, head);
      }
    }
  }
}

void PlanInterpreter::check_transfer(int rank, int step, const Transfer& t) const {
  const Plan& plan = plans_[static_cast<size_t>(rank)];
  const std::string what = describe(rank, t) + " in step " + std::to_string(step);
  require(t.peer >= 0 && t.peer < static_cast<int>(plans_.size()), what + ": no such peer");
  require(t.slot >= 0 && t.slot < static_cast<int>(plan.slots.size()), what + ": no such slot");
  require(!t.fields.empty(), what + ": no fields");
  require(t.rows.length > 0 && t.heads.length > 0, what + ": nothing to move");
  require(t.done_by > step && t.done_by <= static_cast<int>(plan.steps.size()),
          what + ": done_by out of range");
  const Slot& slot = plan.slots[static_cast<size_t>(t.slot)];
  const Field first = t.fields.list().front();
  for (Field field : t.fields.list()) {
    require(on_key_side(field) == on_key_side(first), what + ": fields of both sides");
    require(slot.fields.has(field), what + ": the slot has no such field");
  }
  require(within(t.rows, {0, rows_on_side(slot, first)}), what + ": rows out of bounds");
  require(within(t.heads, heads_on_side(slot, first)), what + ": heads out of bounds");
  const Fields gradients{Field::kDQ, Field::kDK, Field::kDV};
  switch (t.reduce) {
    case Reduce::kStore:
      break;
    case Reduce::kAdd:
      require((t.fields | gradients) == gradients, what + ": adds what is no sum");
      break;
    case Reduce::kMerge:
      require(t.fields == Fields{Field::kOut, Field::kLse}, what + ": merges other than out, lse");
      break;
    case Reduce::kCompose:
      require(
          t.fields == Fields{Field::kState} || t.fields == (Fields{Field::kState, Field::kDecay}),
          what + ": composes what is no state");
      require(slot.fields.has(Field::kDecay), what + ": composes with a slot without decay");
      break;
  }
  require(!t.send || t.reduce == Reduce::kStore, what + ": a send reduces");
  require(t.origin == -1 || (t.fields == Fields{Field::kK, Field::kV}),
          what + ": an origin of other than k, v");
}

void PlanInterpreter::check_plan(int rank) const {
  const Plan& plan = plans_[static_cast<size_t>(rank)];
  require(!plan.slots.empty(), absl::StrCat("rank ", rank, " has no home"));
  for (size_t s = 0; s < plan.slots.size(); ++s) {
    const Slot& slot = plan.slots[s];
    if (slot.memory_of == -1) continue;
    const std::string what =
        absl::StrCat("rank ", rank, " slot ", s, " in memory of slot ", slot.memory_of);
    require(slot.memory_of > 0 && slot.memory_of < static_cast<int>(s), what + ": not one before");
    const Slot& owner = plan.slots[static_cast<size_t>(slot.memory_of)];
    require(owner.memory_of == -1, what + ": it has none of its own");
    for (Field field : slot.fields.list()) {
      require(owner.fields.has(field) &&
                  rows_on_side(slot, field) * heads_on_side(slot, field).length <=
                      rows_on_side(owner, field) * heads_on_side(owner, field).length,
              absl::StrCat(what, ": too little for ", std::string(name(field))));
    }
  }
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    for (const Transfer& t : plan.steps[s].transfers) check_transfer(rank, static_cast<int>(s), t);
  }
  check_home_readers(rank);
  // A reader in place replaces the slot's memory: nothing else may be stored there.
  for (size_t s = 1; s < plan.slots.size(); ++s) {
    std::set<bool> has_origin;
    for (const Step& step : plan.steps) {
      for (const Transfer& t : step.transfers) {
        if (!t.send && t.slot == static_cast<int>(s) && t.fields.has(Field::kK)) {
          has_origin.insert(t.origin >= 0);
        }
      }
    }
    require(has_origin.size() <= 1, absl::StrCat("rank ", rank, " receives keys into slot ", s,
                                                 " with an origin and without"));
  }
}

// They are exactly the ranks that receive rows of this home by its origin, each once.
void PlanInterpreter::check_home_readers(int rank) const {
  std::vector<int> readers;
  for (int r = 0; r < static_cast<int>(plans_.size()); ++r) {
    const auto& steps = plans_[static_cast<size_t>(r)].steps;
    if (std::any_of(steps.begin(), steps.end(), [&](const Step& step) {
          return std::any_of(step.transfers.begin(), step.transfers.end(),
                             [&](const Transfer& t) { return !t.send && t.origin == rank; });
        })) {
      readers.push_back(r);
    }
  }
  std::vector<int> declared = plans_[static_cast<size_t>(rank)].home_readers;
  std::sort(declared.begin(), declared.end());
  require(readers == declared, absl::StrCat("rank ", rank, ": home_readers are not who reads"));
}

// The rows must be that home's, at the same row numbers, for readers that skip the transfer.
void PlanInterpreter::check_origin(int rank, const Transfer& t) {
  const Slot& home = plans_[static_cast<size_t>(t.origin)].slots[0];
  const std::string what = describe(rank, t) + ": origin " + std::to_string(t.origin);
  require(within(t.rows, {0, home.k_rows}), what + " has no such rows");
  require(t.heads == home.kv_heads, what + " has other heads");
  for_each_element(t, [&](Field field, int64_t row, int64_t head) {
    const auto here = at(rank, t.slot, field, row, head);
    const auto there = at(t.origin, 0, field, row, head);
    if (!std::equal(here.begin(), here.end(), there.begin())) {
      throw PlanViolation(what + " has other data");
    }
  });
}

void PlanInterpreter::start(int rank, const Transfer& t) {
  ranks_[static_cast<size_t>(rank)].in_flight.push_back({t, false, {}});
  Message& message = ranks_[static_cast<size_t>(rank)].in_flight.back();
  if (t.send) {
    for_each_element(t, [&](Field field, int64_t row, int64_t head) {
      read(rank, t.slot, field, row, head);
      ++memory(rank, t.slot, field)
            .sending[static_cast<size_t>(index(rank, t.slot, field, row, head))];
    });
    sends_[{rank, t.peer}].push_back(&message);
    match(rank, t.peer);
    return;
  }
  if (t.reduce == Reduce::kStore) {
    for (Field field : t.fields.list()) take_over(rank, t.slot, field);
    for_each_element(t, [&](Field field, int64_t row, int64_t head) {
      const auto values = write(rank, t.slot, field, row, head);
      std::fill(values.begin(), values.end(), kPoison);
    });
    // May be replaced by a view of the origin's rows: nothing of another origin is there then.
    int& origin = slots_[static_cast<size_t>(rank)][static_cast<size_t>(t.slot)].origin;
    if (t.origin >= 0 && t.origin != origin) {
      for (Field field : t.fields.list()) {
        std::vector<double>& values = memory(rank, t.slot, field).values;
        std::fill(values.begin(), values.end(), kPoison);
      }
      origin = t.origin;
    }
    for_each_element(t, [&](Field field, int64_t row, int64_t head) {
      ++memory(rank, t.slot, field)
            .storing[static_cast<size_t>(index(rank, t.slot, field, row, head))];
    });
  }
  receives_[{t.peer, rank}].push_back(&message);
  match(t.peer, rank);
}

void PlanInterpreter::match(int from, int to) {
  auto &sends = sends_[{from, to}], &receives = receives_[{from, to}];
  while (!sends.empty() && !receives.empty()) {
    Message &send = *sends.front(), &receive = *receives.front();
    sends.pop_front();
    receives.pop_front();
    const Transfer &s = send.transfer, &r = receive.transfer;
    require(s.fields == r.fields && s.rows.length == r.rows.length && s.heads == r.heads &&
                s.origin == r.origin,
            absl::StrCat("ends do not match: ", describe(from, s), "; ", describe(to, r)));
    if (s.origin >= 0) {
      check_origin(from, s);
      require(s.rows == r.rows, describe(to, r) + ": not the rows of its origin");
    }
    for_each_element(s, [&](Field field, int64_t row, int64_t head) {
      const auto values = at(from, s.slot, field, row, head);
      receive.payload.insert(receive.payload.end(), values.begin(), values.end());
    });
    send.matched = receive.matched = true;
  }
}

void PlanInterpreter::fold(int rank, const Message& message) {
  const Transfer& t = message.transfer;
  size_t offset = 0;
  if (t.reduce == Reduce::kMerge) {  // all of out, then all of lse
    const auto dim = static_cast<size_t>(dims_[static_cast<size_t>(Field::kOut)]);
    size_t lse_offset = static_cast<size_t>(t.rows.length * t.heads.length) * dim;
    for (int64_t row = t.rows.begin; row < t.rows.end(); ++row) {
      for (int64_t head = t.heads.begin; head < t.heads.end(); ++head, offset += dim) {
        const auto out = write(rank, t.slot, Field::kOut, row, head);
        double& lse = write(rank, t.slot, Field::kLse, row, head)[0];
        const double part_lse = message.payload[lse_offset++];
        const double top = std::max(lse, part_lse);
        if (top == -std::numeric_limits<double>::infinity()) continue;
        const double a = std::exp(lse - top), b = std::exp(part_lse - top);
        for (size_t d = 0; d < dim; ++d) {
          out[d] = (a * out[d] + b * message.payload[offset + d]) / (a + b);
        }
        lse = top + std::log(a + b);
      }
    }
    return;
  }
  if (t.reduce == Reduce::kCompose) {  // all of state, then all of decay
    const auto state_dim = static_cast<size_t>(dims_[static_cast<size_t>(Field::kState)]);
    const bool map = t.fields.has(Field::kDecay);
    const auto decay_dim = map ? static_cast<size_t>(dims_[static_cast<size_t>(Field::kDecay)]) : 0;
    const std::span<const double> payload(message.payload);
    size_t decay_offset = static_cast<size_t>(t.rows.length * t.heads.length) * state_dim;
    for (int64_t row = t.rows.begin; row < t.rows.end(); ++row) {
      for (int64_t head = t.heads.begin; head < t.heads.end(); ++head) {
        read(rank, t.slot, Field::kDecay, row, head);
        if (map) write(rank, t.slot, Field::kDecay, row, head);
        operations_.compose(write(rank, t.slot, Field::kState, row, head),
                            at(rank, t.slot, Field::kDecay, row, head),
                            payload.subspan(offset, state_dim),
                            payload.subspan(decay_offset, decay_dim));
        offset += state_dim;
        decay_offset += decay_dim;
      }
    }
    return;
  }
  for_each_element(t, [&](Field field, int64_t row, int64_t head) {
    const auto values = write(rank, t.slot, field, row, head);
    const auto part = std::span<const double>(message.payload).subspan(offset, values.size());
    offset += values.size();
    if (t.reduce == Reduce::kAdd) {
      for (size_t d = 0; d < values.size(); ++d) values[d] += part[d];
    } else {
      std::copy(part.begin(), part.end(), values.begin());
    }
  });
}

void PlanInterpreter::finish(int rank, Message& message) {
  const Transfer& t = message.transfer;
  if (!t.send && t.reduce != Reduce::kStore) return;  // folded after everything has arrived
  for_each_element(t, [&](Field field, int64_t row, int64_t head) {
    FieldMemory& m = memory(rank, t.slot, field);
    const auto i = static_cast<size_t>(index(rank, t.slot, field, row, head));
    --(t.send ? m.sending : m.storing)[i];
  });
  if (!t.send) fold(rank, message);
}

void PlanInterpreter::clear(int rank, const parallel::Clear& clear) {
  const Plan& plan = plans_[static_cast<size_t>(rank)];
  require(clear.slot >= 0 && clear.slot < static_cast<int>(plan.slots.size()),
          absl::StrCat("rank ", rank, " clears slot ", clear.slot, ": no such slot"));
  const Slot& slot = plan.slots[static_cast<size_t>(clear.slot)];
  const Fields clearable{Field::kOut, Field::kLse, Field::kDQ,
                         Field::kDK,  Field::kDV,  Field::kState};
  for (Field field : clear.fields.list()) {
    require(clearable.has(field) && slot.fields.has(field),
            absl::StrCat("rank ", rank, " clears ", std::string(name(field)), " of slot ",
                         clear.slot, ": not an accumulator there"));
    take_over(rank, clear.slot, field);
    const Span heads = heads_on_side(slot, field);
    for (int64_t row = 0; row < rows_on_side(slot, field); ++row) {
      for (int64_t head = heads.begin; head < heads.end(); ++head) {
        const auto values = write(rank, clear.slot, field, row, head);
        std::fill(values.begin(), values.end(),
                  field == Field::kLse ? -std::numeric_limits<double>::infinity() : 0.0);
      }
    }
  }
}

// The slot's field is written anew: what shares its memory is lost, and must not be on its way.
void PlanInterpreter::take_over(int rank, int slot, Field field) {
  const std::vector<Slot>& slots = plans_[static_cast<size_t>(rank)].slots;
  const auto memory_slot = [&](int s) {
    const int memory_of = slots[static_cast<size_t>(s)].memory_of;
    return memory_of == -1 ? s : memory_of;
  };
  const auto busy = [](const std::vector<int>& counts) {
    return std::any_of(counts.begin(), counts.end(), [](int count) { return count != 0; });
  };
  for (int other = 0; other < static_cast<int>(slots.size()); ++other) {
    if (other == slot || memory_slot(other) != memory_slot(slot)) continue;
    FieldMemory& m = memory(rank, other, field);
    require(!busy(m.sending) && !busy(m.storing),
            absl::StrCat("rank ", rank, " takes over the memory of slot ", other, " ",
                         std::string(name(field)), " for slot ", slot, " while it travels"));
    std::fill(m.values.begin(), m.values.end(), kPoison);
  }
}

bool PlanInterpreter::may_enter(int rank) const {
  const Rank& state = ranks_[static_cast<size_t>(rank)];
  if (state.finished) return false;
  return std::all_of(state.in_flight.begin(), state.in_flight.end(), [&](const Message& message) {
    return message.matched || message.transfer.done_by > state.next_step;
  });
}

// What a rank composes with rows of its own may be read as late as it is folded.
void PlanInterpreter::check_unchanged(int rank, const Transfer& send,
                                      std::span<const double> payload) {
  size_t offset = 0;
  for_each_element(send, [&](Field field, int64_t row, int64_t head) {
    for (const double value : at(rank, send.slot, field, row, head)) {
      const double sent = payload[offset++];
      require(value == sent || (std::isnan(value) && std::isnan(sent)),
              describe(rank, send) + ": changed before it is composed");
    }
  });
}

void PlanInterpreter::enter(int rank) {
  Rank& state = ranks_[static_cast<size_t>(rank)];
  const Plan& plan = plans_[static_cast<size_t>(rank)];
  const int s = state.next_step++;
  const auto due = [&](const Message& message) { return message.transfer.done_by == s; };
  // Messages keep their place in memory while others point to them: finished ones are only marked.
  for (Message& message : state.in_flight) {
    if (due(message)) finish(rank, message);
  }
  for (size_t i = 0; i < state.in_flight.size(); ++i) {
    const Message& message = state.in_flight[i];
    if (!due(message) || message.transfer.send || message.transfer.reduce == Reduce::kStore)
      continue;
    if (message.transfer.reduce == Reduce::kCompose && message.transfer.peer == rank) {
      require(i > 0 && state.in_flight[i - 1].transfer.send &&
                  state.in_flight[i - 1].transfer.peer == rank,
              describe(rank, message.transfer) + ": not directly after its send");
      check_unchanged(rank, state.in_flight[i - 1].transfer, message.payload);
    }
    fold(rank, message);
  }
  while (!state.in_flight.empty() && state.in_flight.front().transfer.done_by <= s) {
    state.in_flight.pop_front();
  }
  if (s == static_cast<int>(plan.steps.size())) {
    state.finished = true;
    return;
  }
  const Step& step = plan.steps[static_cast<size_t>(s)];
  for (const parallel::Clear& c : step.clears) clear(rank, c);
  for (const Transfer& t : step.transfers) start(rank, t);
  for (const parallel::Task& task : step.tasks) operations_.run_task(rank, task);
}

std::string PlanInterpreter::waiting() const {
  std::string text = "deadlock:";
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (ranks_[r].finished) continue;
    absl::StrAppend(&text, " rank ", r, " before step ", ranks_[r].next_step, ";");
  }
  return text;
}

void PlanInterpreter::run(uint64_t seed) {
  for (int r = 0; r < static_cast<int>(plans_.size()); ++r) check_plan(r);
  std::mt19937_64 random(seed);
  while (true) {
    std::vector<int> ready;
    for (int r = 0; r < static_cast<int>(plans_.size()); ++r) {
      if (may_enter(r)) ready.push_back(r);
    }
    if (ready.empty()) break;
    enter(ready[random() % ready.size()]);
  }
  require(std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& r) { return r.finished; }),
          waiting());
  for (const auto* queues : {&sends_, &receives_}) {
    for (const auto& [pair, queue] : *queues) {
      require(queue.empty(), absl::StrCat("a transfer from ", pair.first, " to ", pair.second,
                                          " has one end only"));
    }
  }
}

}  // namespace longhaul::test
