#include "parallel/attention/execution.h"

#include <algorithm>

#include "kernels/pointwise.h"

namespace longhaul::parallel {

namespace {

bool is_statistic(Field field) { return field == Field::kLse || field == Field::kDelta; }
bool is_map(Field field) { return field == Field::kState || field == Field::kDecay; }
bool is_accumulator(Field field) {
  return field == Field::kOut || field == Field::kLse || field == Field::kDelta ||
         field == Field::kDQ || field == Field::kDK || field == Field::kDV || is_map(field);
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
  if (is_map(field)) {
    const int64_t of_decay = kernels::decay_elements(heads.state_decay, heads.head_dim);
    const int64_t of_state = heads.head_dim * heads.value_dim;
    return {type, {rows, count, field == Field::kState ? of_state : of_decay}};
  }
  const bool of_values =
      field == Field::kOut || field == Field::kDOut || field == Field::kV || field == Field::kDV;
  return {type, {rows, count, of_values ? heads.value_dim : heads.head_dim}};
}

int64_t aligned(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Neighbours in a step's list that complete together are one exchange.
std::vector<std::span<const Transfer>> exchanges_of(const Step& step) {
  const std::span<const Transfer> all = step.transfers;
  std::vector<std::span<const Transfer>> result;
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    while (end < all.size() && all[end].done_by == all[begin].done_by) ++end;
    result.push_back(all.subspan(begin, end - begin));
  }
  return result;
}

// Whether two transfers send the same part of a field: one copy of it serves both.
bool packed_alike(const Transfer& a, const Transfer& b, Field field) {
  return a.send && b.send && a.slot == b.slot && a.fields.has(field) && b.fields.has(field) &&
         a.rows == b.rows && a.heads == b.heads;
}

size_t memory_slot(const Plan& plan, int slot) {
  const int memory_of = plan.slots[static_cast<size_t>(slot)].memory_of;
  return static_cast<size_t>(memory_of >= 0 ? memory_of : slot);
}
// The same memory in another shape.
TensorView taken_over(const TensorView& view, const FieldShape& field) {
  LONGHAUL_CHECK(field.shape.elements() * size_of(field.dtype) <= view.bytes());
  return TensorView(view.raw(), field.dtype, field.shape, view.device());
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

TensorView StagingBlock::take(DType dtype, const Shape& shape) {
  const int64_t bytes = aligned(shape.elements() * size_of(dtype), Staging::kAlignment);
  LONGHAUL_CHECK(used_ + bytes <= memory_.bytes(), "an exchange stages what was counted before");
  // A measuring run has no memory to point into.
  std::byte* const begin = memory_.raw() == nullptr ? nullptr : memory_.raw() + used_;
  used_ += bytes;
  return TensorView(begin, dtype, shape, memory_.device());
}

void Staging::reserve(Arena& arena, int64_t block_bytes, int64_t blocks) {
  for (int64_t i = 0; i < blocks; ++i) {
    free_.emplace_back(
        arena.allocate(DType::kF64, {aligned(block_bytes, size_of(DType::kF64)) / 8}));
  }
}

StagingBlock Staging::take() {
  LONGHAUL_CHECK(!free_.empty(), "more exchanges are in flight than were counted");
  StagingBlock block = free_.back();
  free_.pop_back();
  return block;
}

Execution::Execution(const Context& ctx, const ExecutionSetup& setup, const FieldViews& home,
                     const FieldViews& kept)
    : setup_(setup), scope_(*setup.communication), stream_(ctx.stream) {
  const Plan& plan = *setup_.plan;
  // A slot whose keys and values are always read in place needs no memory for them.
  std::vector<bool> stores_keys(plan.slots.size(), false);
  for (const Step& step : plan.steps) {
    for (const Transfer& t : step.transfers) {
      if (!t.send && t.fields.intersects(kKeysAndValues) && !reads_in_place(t)) {
        stores_keys[memory_slot(plan, t.slot)] = true;
      }
    }
  }
  slots_.resize(plan.slots.size());
  slots_[0] = home;  // its inputs are never received: checked where transfers start
  for (size_t i = 1; i < plan.slots.size(); ++i) {
    for (Field field : plan.slots[i].fields.list()) {
      const size_t memory = memory_slot(plan, static_cast<int>(i));
      if (kKeysAndValues.has(field) && !stores_keys[memory]) continue;
      if (i == 1 && kept[static_cast<size_t>(field)].rank() > 0) {
        at(slots_[i], field) = kept[static_cast<size_t>(field)];
        continue;
      }
      if (memory != i) {
        at(slots_[i], field) =
            taken_over(at(slots_[memory], field),
                       field_shape(plan.slots[i], field, setup_.heads, setup_.dtype));
        continue;
      }
      at(slots_[i], field) =
          allocate_field(*setup_.communication, plan.slots[i], field, setup_.heads, setup_.dtype);
    }
  }
  buffers_ = slots_;
  reserve_staging();
}

// What start_transfers will take of a block for this exchange, and land besides.
int64_t Execution::staged_bytes(std::span<const Transfer> exchange) const {
  int64_t bytes = 0, largest_fold = 0;
  for (size_t i = 0; i < exchange.size(); ++i) {
    const Transfer& t = exchange[i];
    if (replaced_by_reading(t) || composes_own(exchange, i)) continue;
    const std::span<const Transfer> before = exchange.first(i);
    const Slot& slot = setup_.plan->slots[static_cast<size_t>(t.slot)];
    int64_t fold = 0;
    for (Field field : t.fields.list()) {
      // Home tensors may have any strides. Others are dense, whoever's memory they are.
      const FieldShape shape = field_shape(slot, field, setup_.heads, setup_.dtype);
      const TensorView whole = t.slot == 0 ? slots_[0][static_cast<size_t>(field)]
                                           : TensorView(nullptr, shape.dtype, shape.shape);
      if (std::ranges::any_of(before, [&](const Transfer& u) {
            return !replaced_by_reading(u) && packed_alike(u, t, field);
          })) {
        continue;
      }
      const TensorView part = part_of_field(whole, slot, field, t.rows, t.heads);
      // Statistics, [heads, rows], are dense only where a message has all rows: another sample's
      // messages may have less.
      const bool dense = part.contiguous() && !is_statistic(field);
      const bool folded = !t.send && t.reduce != Reduce::kStore;
      if (!dense || folded) bytes += part.bytes();
      if (!dense && folded && !is_map(field)) fold += part.bytes();
    }
    largest_fold = std::max(largest_fold, fold);
  }
  return bytes + largest_fold;
}

void Execution::reserve_staging() {
  const std::vector<Step>& steps = setup_.plan->steps;
  int64_t largest = 0, most = 0;
  std::vector<int64_t> in_flight(steps.size(), 0);  // exchanges that stage, by step
  for (size_t s = 0; s < steps.size(); ++s) {
    for (std::span<const Transfer> exchange : exchanges_of(steps[s])) {
      const int64_t bytes = staged_bytes(exchange);
      if (bytes == 0) continue;
      largest = std::max(largest, bytes);
      const auto end = std::min(steps.size(), static_cast<size_t>(exchange.front().done_by));
      for (size_t during = s; during < end; ++during) most = std::max(most, ++in_flight[during]);
    }
  }
  const int64_t margin = Staging::kAlignment * Staging::kMessages * setup_.group->size();
  if (most > 0) staging_.reserve(*setup_.communication, largest + margin, most);
}

TensorView Execution::stage(Pending& pending, const TensorView& part) {
  if (!pending.staging) pending.staging = staging_.take();
  return pending.staging->take(part.dtype(), part.shape());
}

bool Execution::reads_in_place(const Transfer& t) const {
  return !t.send && t.origin >= 0 && setup_.in_place.shares(setup_.group->rank(), t.origin);
}

// Whether the two ends agree to skip this transfer, because the receiver reads the origin's memory.
bool Execution::replaced_by_reading(const Transfer& t) const {
  const int receiver = t.send ? t.peer : setup_.group->rank();
  return t.origin >= 0 && setup_.in_place.shares(receiver, t.origin);
}

// Whether transfer i is an end of a composition with rows of the rank's own, which is read where it
// lies: a composing receive from itself, or the send before it.
bool Execution::composes_own(std::span<const Transfer> exchange, size_t i) const {
  const Transfer& t = exchange[i];
  if (t.peer != setup_.group->rank()) return false;
  if (!t.send) return t.reduce == Reduce::kCompose;
  return i + 1 < exchange.size() && !exchange[i + 1].send && composes_own(exchange, i + 1);
}

void Execution::publish_home(const Context& ctx) {
  const InPlace& in_place = setup_.in_place;
  const int me = setup_.group->rank();
  const auto readers = static_cast<int>(
      std::count_if(setup_.plan->home_readers.begin(), setup_.plan->home_readers.end(),
                    [&](int reader) { return in_place.shares(me, reader); }));
  if (readers == 0 || ctx.measuring()) return;
  const auto slot = static_cast<int>(in_place.epoch % 2);
  {
    const auto waiting = recording(Activity::Kind::kWait);
    setup_.group->wait_until([&] { return in_place.window->free(slot); }, setup_.what,
                             [] { return std::string("a reader of this rank's keys and values"); });
  }
  const auto copying = recording(Activity::Kind::kCopy);
  std::byte* memory = in_place.window->local(slot).data();
  for (Field field : kKeysAndValues.list()) {
    const TensorView& source = at(slots_[0], field);
    const TensorView target(memory, source.dtype(), source.shape());
    kernels::copy(ctx, source, target);
    memory += target.bytes();
  }
  in_place.window->publish(slot, in_place.epoch, readers);
}

// Lets the receiving slot's keys and values be all that the origin has published: rows lie there at
// the same numbers, so that any part of them may be meant.
void Execution::alias(const Transfer& t, bool measuring) {
  const InPlace& in_place = setup_.in_place;
  Slot filled = setup_.plan->slots[static_cast<size_t>(t.slot)];
  LONGHAUL_CHECK(filled.kv_heads == (Span{0, setup_.heads.kv_heads}) &&
                 t.heads == filled.kv_heads && t.fields == kKeysAndValues);
  filled.k_rows = setup_.layout->rows(t.origin);
  LONGHAUL_CHECK(t.rows.end() <= filled.k_rows);
  // A measuring run sees the shapes and nobody's memory.
  const std::byte* memory =
      measuring ? nullptr
                : in_place.window->peer(t.origin, static_cast<int>(in_place.epoch % 2)).data();
  for (Field field : kKeysAndValues.list()) {
    const FieldShape shape = field_shape(filled, field, setup_.heads, setup_.dtype);
    const ConstTensorView view(memory, shape.dtype, shape.shape);
    at(slots_[static_cast<size_t>(t.slot)], field) = as_slot_view(view);
    if (!measuring) memory += view.bytes();
  }
  if (measuring) return;
  setup_.group->traffic()[setup_.what].in_place_bytes +=
      transfer_bytes(t, setup_.group->rank(), setup_.heads, setup_.dtype);
  if (std::ranges::find(aliased_, t.origin) == aliased_.end()) aliased_.push_back(t.origin);
}

// What goes to several peers at once is copied once.
TensorView Execution::pack(const Context& ctx, Pending& pending, const Transfer& t, Field field,
                           const TensorView& part) {
  for (const Packed& packed : pending.packed) {
    if (packed.field == field && packed_alike(*packed.transfer, t, field)) return packed.copy;
  }
  const TensorView copy = stage(pending, part);
  kernels::copy(ctx, part, copy);
  pending.packed.push_back({&t, field, copy});
  return copy;
}

void Execution::start_transfers(const Context& ctx, int step) {
  for (std::span<const Transfer> exchange :
       exchanges_of(setup_.plan->steps[static_cast<size_t>(step)])) {
    Pending pending{.done_by = exchange.front().done_by,
                    .request = {},
                    .landings = {},
                    .staging = {},
                    .packed = {},
                    .published_by = {}};
    std::vector<dist::Send> sends;
    std::vector<dist::Recv> recvs;
    for (size_t i = 0; i < exchange.size(); ++i) {
      const Transfer& t = exchange[i];
      if (reads_in_place(t) && !ctx.measuring()) pending.published_by.push_back(t.origin);
      if (replaced_by_reading(t)) {
        if (!t.send) pending.landings.push_back({&t, Field::kK, {}});
        continue;
      }
      const Slot& slot = setup_.plan->slots[static_cast<size_t>(t.slot)];
      FieldViews& views = slots_[static_cast<size_t>(t.slot)];
      if (composes_own(exchange, i)) {
        if (!t.send) continue;
        const Transfer& receive = exchange[i + 1];
        LONGHAUL_CHECK(receive.fields == t.fields && receive.rows.length == t.rows.length &&
                       receive.heads == t.heads);
        for (Field field : t.fields.list()) {
          const TensorView part = part_of_field(at(views, field), slot, field, t.rows, t.heads);
          pending.landings.push_back({&receive, field, part});
        }
        continue;
      }
      for (Field field : t.fields.list()) {
        if (!t.send) {
          LONGHAUL_CHECK(t.slot != 0 || is_accumulator(field));
          // What lay there may have been read in place; this is received.
          at(views, field) = at(buffers_[static_cast<size_t>(t.slot)], field);
        }
        const TensorView part = part_of_field(at(views, field), slot, field, t.rows, t.heads);
        const bool direct = part.contiguous() && (t.send || t.reduce == Reduce::kStore);
        if (t.send) {
          sends.push_back({t.peer, direct ? part : pack(ctx, pending, t, field, part)});
        } else {
          const TensorView message = direct ? part : stage(pending, part);
          recvs.push_back({t.peer, message});
          pending.landings.push_back({&t, field, direct ? TensorView{} : message});
        }
      }
    }
    if (!ctx.measuring() && (!sends.empty() || !recvs.empty())) {
      pending.request = setup_.group->exchange(stream(), sends, recvs, setup_.what);
      if (setup_.log != nullptr) pending.started = ActivityLog::now();
    }
    pending_.push_back(std::move(pending));
  }
  // Transports that gather what is started together send it now.
  if (!ctx.measuring()) setup_.group->progress();
}

void Execution::complete_until(const Context& ctx, int step) {
  for (Pending& pending : pending_) {
    if (pending.done_by > step) continue;
    {
      const auto waiting = recording(Activity::Kind::kWait);
      pending.request.wait(stream());
      log_if_complete(pending);
      const auto slot = static_cast<int>(setup_.in_place.epoch % 2);
      for (int owner : pending.published_by) {
        setup_.group->wait_until(
            [&] { return setup_.in_place.window->published(owner, slot, setup_.in_place.epoch); },
            setup_.what,
            [&] {
              return "rank " + std::to_string(setup_.group->world_rank(owner)) +
                     " (its keys and values)";
            });
      }
    }
    const auto folding = recording(Activity::Kind::kCopy);
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
      fold(ctx, landing, &pending.landings[i + 1], *pending.staging);
      ++i;
    } else if (t.reduce == Reduce::kCompose) {
      const bool map = t.fields.has(Field::kDecay);
      LONGHAUL_CHECK(landing.field == Field::kState && (!map || i + 1 < pending.landings.size()));
      compose(ctx, landing, map ? &pending.landings[i + 1] : nullptr);
      if (map) ++i;
    } else {
      fold(ctx, landing, nullptr, *pending.staging);
    }
  }
  if (!pending.staging) return;
  pending.staging->release(0);
  staging_.give_back(*pending.staging);
}

void Execution::fold(const Context& ctx, const Landing& landing, const Landing* lse,
                     StagingBlock& staging) {
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
  const int64_t mark = staging.mark();
  const auto dense = [&](const TensorView& part) {
    if (part.contiguous()) return part;
    const TensorView copy = staging.take(part.dtype(), part.shape());
    kernels::copy(ctx, part, copy);
    return copy;
  };
  const auto write_back = [&](const TensorView& copy, const TensorView& part) {
    if (!part.contiguous()) kernels::copy(ctx, copy, part);
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
  staging.release(mark);
}

void Execution::compose(const Context& ctx, const Landing& state, const Landing* decay) {
  const Transfer& t = *state.transfer;
  const Slot& slot = setup_.plan->slots[static_cast<size_t>(t.slot)];
  FieldViews& views = slots_[static_cast<size_t>(t.slot)];
  const auto target = [&](Field field) {
    return part_of_field(at(views, field), slot, field, t.rows, t.heads);
  };
  kernels::state_maps_compose(
      ctx, {.kind = setup_.heads.state_decay,
            .head_dim = setup_.heads.head_dim,
            .transposed = setup_.direction == Direction::kBackward,
            .earlier_sums = state.staged,
            .earlier_decay = decay != nullptr ? decay->staged : ConstTensorView(),
            .sums = target(Field::kState),
            .decay = target(Field::kDecay)});
}

void Execution::clear(const Context& ctx, const Clear& clear) {
  FieldViews& slot = slots_[static_cast<size_t>(clear.slot)];
  if (clear.fields.has(Field::kOut)) {
    kernels::attention_init(ctx, at(slot, Field::kOut), at(slot, Field::kLse));
  }
  for (Field field : {Field::kDQ, Field::kDK, Field::kDV, Field::kState}) {
    if (clear.fields.has(field)) kernels::fill_zero(ctx, at(slot, field));
  }
}

void Execution::compute(const Context& ctx, const Task& task) {
  const auto computing = recording(Activity::Kind::kCompute);
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
  kernels::AttentionOptions options = setup_.kernel_options;
  if (options.biased()) {
    options.bias_slopes = options.bias_slopes.rows(task.q_heads.begin, task.q_heads.length);
  }
  if (setup_.direction == Direction::kForward) {
    kernels::attention_forward(ctx, {.segments = task.segments,
                                     .heads = heads,
                                     .q = q_part(Field::kQ),
                                     .k = at(ks, Field::kK),
                                     .v = at(ks, Field::kV),
                                     .options = options,
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
                                      .options = options,
                                      .dout = q_part(Field::kDOut),
                                      .lse = q_part(Field::kLse),
                                      .delta = q_part(Field::kDelta),
                                      .dq_acc = q_part(Field::kDQ),
                                      .dk_acc = at(ks, Field::kDK).rows(0, k_rows),
                                      .dv_acc = at(ks, Field::kDV).rows(0, k_rows)});
  }
}

void Execution::poll() {
  const ActivityLog::Polling polling(setup_.log);
  for (Pending& pending : pending_) {
    pending.request.test();
    log_if_complete(pending);
  }
}

void Execution::log_if_complete(Pending& pending) {
  if (pending.started < 0 || !pending.request.done()) return;
  setup_.log->add({.kind = Activity::Kind::kMessages,
                   .direction = setup_.direction,
                   .step = entered_,
                   .begin = pending.started,
                   .end = ActivityLog::now(),
                   .processor = 0});
  pending.started = -1;
}

// Completes what is due at the step and starts its transfers.
void Execution::enter(const Context& ctx, int step) {
  entered_ = step;
  if (step > 0) complete_until(ctx, step);
  const auto preparing = recording(Activity::Kind::kCopy);
  for (const Clear& c : setup_.plan->steps[static_cast<size_t>(step)].clears) clear(ctx, c);
  start_transfers(ctx, step);
}

// Whether entering would not wait.
bool Execution::may_enter(int step) const {
  return step < static_cast<int>(setup_.plan->steps.size()) &&
         std::ranges::all_of(pending_, [step](const Pending& pending) {
           return pending.done_by > step ||
                  (pending.request.done() && pending.published_by.empty());
         });
}

void Execution::start(const Context& ctx) {
  LONGHAUL_CHECK(entered_ == -1);
  has_tasks_ =
      std::ranges::any_of(setup_.plan->steps, [](const Step& step) { return !step.tasks.empty(); });
  advancing_ = {.stream = ctx.stream, .pool = &own_thread_, .scratch = ctx.scratch, .poll = {}};
  publish_home(ctx);
  if (!setup_.plan->steps.empty()) enter(ctx, 0);
}

void Execution::advance() {
  poll();
  while (!has_tasks_ && entered_ >= 0 && may_enter(entered_ + 1)) enter(advancing_, entered_ + 1);
}

void Execution::finish(const Context& caller) {
  Context ctx = caller;
  ctx.poll = [this, outer = caller.poll] {
    poll();
    if (outer) outer();
  };
  const auto steps = static_cast<int>(setup_.plan->steps.size());
  LONGHAUL_CHECK(steps == 0 || entered_ >= 0);
  for (int s = std::max(entered_, 0); s < steps; ++s) {
    if (s > entered_) enter(ctx, s);
    for (const Task& task : setup_.plan->steps[static_cast<size_t>(s)].tasks) compute(ctx, task);
  }
  complete_until(ctx, steps);
  LONGHAUL_CHECK(pending_.empty());
  for (int owner : aliased_) {
    setup_.in_place.window->release(owner, static_cast<int>(setup_.in_place.epoch % 2));
  }
  aliased_.clear();
}

}  // namespace longhaul::parallel
