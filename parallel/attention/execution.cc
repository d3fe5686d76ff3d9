#include "parallel/attention/execution.h"

#include <algorithm>

#include "kernels/pointwise.h"

namespace longhaul::parallel {

namespace {

bool is_statistic(Field field) { return field == Field::kLse || field == Field::kDelta; }
bool is_accumulator(Field field) {
  return field == Field::kOut || field == Field::kLse || field == Field::kDelta ||
         field == Field::kDQ || field == Field::kDK || field == Field::kDV;
}
constexpr Fields kKeysAndValues{Field::kK, Field::kV};

struct FieldShape {
  DType dtype;
  Shape shape;
};
FieldShape field_shape(const Slot& slot, Field field, const HeadShape& heads, DType dtype) {
  const int64_t rows = on_key_side(field) ? slot.k_rows : slot.q_rows;
  const int64_t count = (on_key_side(field) ? slot.kv_heads : slot.q_heads).length;
  const DType type = is_accumulator(field) ? accumulator(dtype) : dtype;
  if (is_statistic(field)) return {type, {count, rows}};
  const bool of_values =
      field == Field::kOut || field == Field::kDOut || field == Field::kV || field == Field::kDV;
  return {type, {rows, count, of_values ? heads.value_dim : heads.head_dim}};
}

// Another rank's window is read only; a slot view can be written in general. Plans store into
// buffers only, never into what is aliased, and home inputs are never received (checked in start).
TensorView as_slot_view(const ConstTensorView& view) {
  return TensorView(const_cast<std::byte*>(view.raw()), view.dtype(), view.shape(), view.device());
}

}  // namespace

TensorView allocate_field(Arena& arena, const Slot& slot, Field field, const HeadShape& heads,
                          DType dtype) {
  const FieldShape shape = field_shape(slot, field, heads, dtype);
  return arena.allocate(shape.dtype, shape.shape);
}

TensorView part_of_field(const TensorView& view, const Slot& slot, Field field, Span rows,
                         Span heads) {
  const Span held = on_key_side(field) ? slot.kv_heads : slot.q_heads;
  const int rows_dim = is_statistic(field) ? 1 : 0;
  return view.slice(rows_dim, rows.begin, rows.length)
      .slice(1 - rows_dim, heads.begin - held.begin, heads.length);
}

TensorView Staging::take(DType dtype, const Shape& shape) {
  const int64_t bytes = shape.elements() * size_of(dtype);
  for (Buffer& buffer : buffers_) {
    if (buffer.taken || buffer.memory.bytes() < bytes) continue;
    buffer.taken = true;
    return TensorView(buffer.memory.raw(), dtype, shape, arena_.device());
  }
  const TensorView memory = arena_.allocate(DType::kF64, {(bytes + 7) / 8});
  buffers_.push_back({memory, true});
  return TensorView(memory.raw(), dtype, shape, arena_.device());
}

void Staging::give_back(const TensorView& view) {
  for (Buffer& buffer : buffers_) {
    if (buffer.taken && buffer.memory.raw() == view.raw()) {
      buffer.taken = false;
      return;
    }
  }
}

Execution::Execution(const Context& ctx, const ExecutionSetup& setup, const FieldViews& home)
    : setup_(setup),
      scope_(*setup.communication),
      staging_(*setup.communication),
      stream_(ctx.stream) {
  const Plan& plan = *setup_.plan;
  // A slot whose keys and values are always read in place needs no memory for them.
  std::vector<bool> stores_keys(plan.slots.size(), false);
  for (const Step& step : plan.steps) {
    for (const Transfer& t : step.transfers) {
      if (!t.send && t.fields.intersects(kKeysAndValues) && !reads_in_place(t)) {
        stores_keys[static_cast<size_t>(t.slot)] = true;
      }
    }
  }
  slots_.resize(plan.slots.size());
  slots_[0] = home;
  for (size_t i = 1; i < plan.slots.size(); ++i) {
    for (Field field : plan.slots[i].fields.list()) {
      if (kKeysAndValues.has(field) && !stores_keys[i]) continue;
      at(slots_[i], field) =
          allocate_field(*setup_.communication, plan.slots[i], field, setup_.heads, setup_.dtype);
    }
  }
}

std::string_view Execution::what() const {
  return setup_.direction == Direction::kForward ? "attention forward" : "attention backward";
}

bool Execution::reads_in_place(const Transfer& t) const {
  return !t.send && t.origin >= 0 && setup_.in_place.shares(setup_.group->rank(), t.origin);
}

// Whether the two ends agree to skip this transfer, because the receiver reads the origin's memory.
bool Execution::replaced_by_reading(const Transfer& t) const {
  const int receiver = t.send ? t.peer : setup_.group->rank();
  return t.origin >= 0 && setup_.in_place.shares(receiver, t.origin);
}

void Execution::publish_home(const Context& ctx) {
  const InPlace& in_place = setup_.in_place;
  const int me = setup_.group->rank();
  const auto readers = static_cast<int>(
      std::count_if(setup_.plan->home_readers.begin(), setup_.plan->home_readers.end(),
                    [&](int reader) { return in_place.shares(me, reader); }));
  if (readers == 0 || ctx.measuring()) return;
  const auto slot = static_cast<int>(in_place.epoch % 2);
  setup_.group->wait_until([&] { return in_place.window->free(slot); }, what(),
                           [] { return std::string("a reader of this rank's keys and values"); });
  std::byte* memory = in_place.window->local(slot).data();
  for (Field field : kKeysAndValues.list()) {
    const TensorView& source = at(slots_[0], field);
    const TensorView target(memory, source.dtype(), source.shape());
    kernels::copy(ctx, source, target);
    memory += target.bytes();
  }
  in_place.window->publish(slot, in_place.epoch, readers);
}

// Lets the receiving slot's keys and values be the origin's published ones.
void Execution::alias(const Transfer& t, bool measuring) {
  const InPlace& in_place = setup_.in_place;
  const Slot& slot = setup_.plan->slots[static_cast<size_t>(t.slot)];
  // The origin's rows may be fewer than the slot has room for: the slot is used from row 0.
  const Slot filled{.q_rows = 0,
                    .k_rows = t.rows.length,
                    .q_heads = slot.q_heads,
                    .kv_heads = slot.kv_heads,
                    .fields = slot.fields};
  LONGHAUL_CHECK(t.rows.begin == 0 && t.heads == slot.kv_heads && t.fields == kKeysAndValues);
  // A measuring run sees the shapes and nobody's memory.
  const std::byte* memory =
      measuring ? nullptr
                : in_place.window->peer(t.origin, static_cast<int>(in_place.epoch % 2)).data();
  for (Field field : kKeysAndValues.list()) {
    const FieldShape shape = field_shape(filled, field, setup_.heads, setup_.dtype);
    const ConstTensorView view(memory, shape.dtype, shape.shape);
    at(slots_[static_cast<size_t>(t.slot)], field) = as_slot_view(view);
    if (measuring) continue;
    memory += view.bytes();
    setup_.group->traffic()[what()].in_place_bytes += view.bytes();
  }
  if (!measuring) aliased_.push_back(t.origin);
}

void Execution::start_transfers(const Context& ctx, int step) {
  const std::vector<Transfer>& transfers = setup_.plan->steps[static_cast<size_t>(step)].transfers;
  // Neighbours in the list that complete together are one exchange.
  for (size_t begin = 0; begin < transfers.size();) {
    size_t end = begin;
    Pending pending{.done_by = transfers[begin].done_by,
                    .request = {},
                    .landings = {},
                    .sent_copies = {},
                    .published_by = {}};
    std::vector<dist::Send> sends;
    std::vector<dist::Recv> recvs;
    for (; end < transfers.size() && transfers[end].done_by == pending.done_by; ++end) {
      const Transfer& t = transfers[end];
      if (reads_in_place(t) && !ctx.measuring()) pending.published_by.push_back(t.origin);
      if (replaced_by_reading(t)) {
        if (!t.send) pending.landings.push_back({&t, Field::kK, {}});
        continue;
      }
      const Slot& slot = setup_.plan->slots[static_cast<size_t>(t.slot)];
      for (Field field : t.fields.list()) {
        const TensorView part = part_of_field(at(slots_[static_cast<size_t>(t.slot)], field), slot,
                                              field, t.rows, t.heads);
        const bool direct = part.contiguous() && (t.send || t.reduce == Reduce::kStore);
        const TensorView message = direct ? part : staging_.take(part.dtype(), part.shape());
        if (t.send) {
          if (!direct) {
            kernels::copy(ctx, part, message);
            pending.sent_copies.push_back(message);
          }
          sends.push_back({t.peer, message});
        } else {
          LONGHAUL_CHECK(t.slot != 0 || is_accumulator(field));
          recvs.push_back({t.peer, message});
          pending.landings.push_back({&t, field, direct ? TensorView{} : message});
        }
      }
    }
    if (!ctx.measuring() && (!sends.empty() || !recvs.empty())) {
      pending.request = setup_.group->exchange(stream(), sends, recvs, what());
    }
    pending_.push_back(std::move(pending));
    begin = end;
  }
  // Transports that gather what is started together send it now.
  if (!ctx.measuring()) setup_.group->progress();
}

void Execution::complete_until(const Context& ctx, int step) {
  for (Pending& pending : pending_) {
    if (pending.done_by > step) continue;
    pending.request.wait(stream());
    const auto slot = static_cast<int>(setup_.in_place.epoch % 2);
    for (int owner : pending.published_by) {
      setup_.group->wait_until(
          [&] { return setup_.in_place.window->published(owner, slot, setup_.in_place.epoch); },
          what(),
          [&] {
            return "rank " + std::to_string(setup_.group->world_rank(owner)) +
                   " (its keys and values)";
          });
    }
    land(ctx, pending);
  }
  std::erase_if(pending_, [&](const Pending& pending) { return pending.done_by <= step; });
}

void Execution::land(const Context& ctx, Pending& pending) {
  for (size_t i = 0; i < pending.landings.size(); ++i) {
    const Landing& landing = pending.landings[i];
    const Transfer& t = *landing.transfer;
    if (replaced_by_reading(t)) {
      alias(t, ctx.measuring());
      continue;
    }
    if (landing.staged.shape().rank() == 0) continue;
    if (t.reduce == Reduce::kMerge) {
      // out and lse of one transfer are folded together.
      LONGHAUL_CHECK(landing.field == Field::kOut && i + 1 < pending.landings.size());
      fold(ctx, landing, &pending.landings[i + 1]);
      staging_.give_back(pending.landings[i + 1].staged);
      ++i;
    } else {
      fold(ctx, landing, nullptr);
    }
    staging_.give_back(landing.staged);
  }
  for (const TensorView& copy : pending.sent_copies) staging_.give_back(copy);
}

void Execution::fold(const Context& ctx, const Landing& landing, const Landing* lse) {
  const Transfer& t = *landing.transfer;
  const Slot& slot = setup_.plan->slots[static_cast<size_t>(t.slot)];
  const auto target = [&](Field field) {
    return part_of_field(at(slots_[static_cast<size_t>(t.slot)], field), slot, field, t.rows,
                         t.heads);
  };
  const TensorView into = target(landing.field);
  if (t.reduce == Reduce::kStore) {
    kernels::copy(ctx, landing.staged, into);
    return;
  }
  // Folding kernels want dense tensors: parts of a slot go through a dense copy.
  const auto dense = [&](const TensorView& part) {
    if (part.contiguous()) return part;
    const TensorView copy = staging_.take(part.dtype(), part.shape());
    kernels::copy(ctx, part, copy);
    return copy;
  };
  const auto write_back = [&](const TensorView& copy, const TensorView& part) {
    if (copy.raw() == part.raw() && part.contiguous()) return;
    kernels::copy(ctx, copy, part);
    staging_.give_back(copy);
  };
  const TensorView sum = dense(into);
  if (t.reduce == Reduce::kAdd) {
    kernels::add_to(ctx, landing.staged, sum);
  } else {
    LONGHAUL_CHECK(t.reduce == Reduce::kMerge && lse != nullptr);
    const TensorView into_lse = target(Field::kLse);
    const TensorView merged_lse = dense(into_lse);
    kernels::attention_merge(ctx, landing.staged, lse->staged, sum, merged_lse);
    write_back(merged_lse, into_lse);
  }
  write_back(sum, into);
}

void Execution::clear(const Context& ctx, const Clear& clear) {
  FieldViews& slot = slots_[static_cast<size_t>(clear.slot)];
  if (clear.fields.has(Field::kOut)) {
    kernels::attention_init(ctx, at(slot, Field::kOut), at(slot, Field::kLse));
  }
  for (Field field : {Field::kDQ, Field::kDK, Field::kDV}) {
    if (clear.fields.has(field)) kernels::fill_zero(ctx, at(slot, field));
  }
}

void Execution::compute(const Context& ctx, const Task& task) {
  const Slot& q_slot = setup_.plan->slots[static_cast<size_t>(task.q_slot)];
  const Slot& k_slot = setup_.plan->slots[static_cast<size_t>(task.k_slot)];
  FieldViews& qs = slots_[static_cast<size_t>(task.q_slot)];
  FieldViews& ks = slots_[static_cast<size_t>(task.k_slot)];
  const auto q_part = [&](Field field) {
    return part_of_field(at(qs, field), q_slot, field, {0, q_slot.q_rows}, task.q_heads);
  };
  const kernels::HeadMap heads{.q_begin = task.q_heads.begin,
                               .kv_begin = k_slot.kv_heads.begin,
                               .group = setup_.heads.group()};
  if (setup_.direction == Direction::kForward) {
    kernels::attention_forward(ctx, {.segments = task.segments,
                                     .heads = heads,
                                     .q = q_part(Field::kQ),
                                     .k = at(ks, Field::kK),
                                     .v = at(ks, Field::kV),
                                     .options = setup_.kernel_options,
                                     .out_acc = q_part(Field::kOut),
                                     .lse = q_part(Field::kLse)});
  } else {
    // What is read in place has its owner's rows, which may be fewer than the slot has room for.
    const int64_t k_rows = at(ks, Field::kK).dim(0);
    kernels::attention_backward(ctx, {.segments = task.segments,
                                      .heads = heads,
                                      .q = q_part(Field::kQ),
                                      .k = at(ks, Field::kK),
                                      .v = at(ks, Field::kV),
                                      .options = setup_.kernel_options,
                                      .dout = q_part(Field::kDOut),
                                      .lse = q_part(Field::kLse),
                                      .delta = q_part(Field::kDelta),
                                      .dq_acc = q_part(Field::kDQ),
                                      .dk_acc = at(ks, Field::kDK).rows(0, k_rows),
                                      .dv_acc = at(ks, Field::kDV).rows(0, k_rows)});
  }
}

void Execution::poll() {
  for (Pending& pending : pending_) pending.request.test();
}

void Execution::start(const Context& ctx) {
  LONGHAUL_CHECK(!started_);
  started_ = true;
  publish_home(ctx);
  if (setup_.plan->steps.empty()) return;
  for (const Clear& c : setup_.plan->steps[0].clears) clear(ctx, c);
  start_transfers(ctx, 0);
}

void Execution::finish(const Context& caller) {
  LONGHAUL_CHECK(started_);
  Context ctx = caller;
  ctx.poll = [this, outer = caller.poll] {
    poll();
    if (outer) outer();
  };
  const auto steps = static_cast<int>(setup_.plan->steps.size());
  for (int s = 0; s < steps; ++s) {
    const Step& step = setup_.plan->steps[static_cast<size_t>(s)];
    if (s > 0) {
      complete_until(ctx, s);
      for (const Clear& c : step.clears) clear(ctx, c);
      start_transfers(ctx, s);
    }
    for (const Task& task : step.tasks) compute(ctx, task);
  }
  complete_until(ctx, steps);
  LONGHAUL_CHECK(pending_.empty());
  for (int owner : aliased_) {
    setup_.in_place.window->release(owner, static_cast<int>(setup_.in_place.epoch % 2));
  }
  aliased_.clear();
}

}  // namespace longhaul::parallel
