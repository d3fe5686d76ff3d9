// The gated delta rule forward on the CPU, and the maps of runs.
//
// Block by block, with the state S before the block and the names of delta_tiles-inl.h: y and u
// from S and v; O = diag(rising) Q S + (D . Q K^T) U; S <- decay S + (diag(falling) K)^T U. The
// transition is the same with v = 0, applied to the identity.
#include <algorithm>

#include "kernels/cpu/delta_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/delta_forward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/delta_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void forward(const DeltaRuleForward& args, const DeltaTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const DeltaScratch<A>& s = task.scratch;
  const int64_t head_dim = args.q.dim(2), value_dim = args.v.dim(2), h = task.head;
  DeltaState<A> state{s.state, value_dim, s.value_width, task.entering == nullptr};
  if (!state.empty) read_state(task.entering, head_dim, value_dim, s.value_width, s.state);
  for (const LinearBlock& block : task.blocks) {
    const int64_t rows = block.rows;
    state.empty |= block.first_of_document;
    const auto decay = load_decays<A>(args.tokens, block, h, s);
    load_delta_keys<T>(args.k, block, h, s);
    load_rows<T>(delta_rows<T>(args.q, block.begin, h), args.q.stride(0), rows, head_dim, nullptr,
                 s.key_width, s.q);
    weighted_products<A>(rows, s.q, s.key_width, head_dim, s.kt, A(1), false, s, s.p);
    load_rows<T>(delta_rows<T>(args.v, block.begin, h), args.v.stride(0), rows, value_dim, nullptr,
                 s.value_width, s.y);
    read_from_state(rows, head_dim, state, s, s.y);
    solve(rows, value_dim, s.value_width, s, s.y, s.u);
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim,
                         .x = s.q,
                         .x_width = s.key_width,
                         .depth = head_dim,
                         .state = state.empty ? nullptr : state.state,
                         .factors = s.rising,
                         .p = s.p,
                         .y = s.u,
                         .width = s.value_width,
                         .out = delta_rows<A>(args.out_acc, block.begin, h),
                         .out_stride = args.out_acc.stride(0)});
    if (!block.last_of_document) write_to_state(rows, head_dim, decay, state, s, s.u);
    task.poller.did(rows * (3 * head_dim * value_dim + 2 * kBlock * head_dim));
  }
  if (task.leaving != nullptr) {
    write_state(s.state, head_dim, value_dim, s.value_width, state.empty, task.leaving);
  }
}

template <class T>
void to_the_right(const DeltaTokens& tokens, const ConstTensorView& k, const ConstTensorView& v,
                  const DeltaTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const DeltaScratch<A>& s = task.scratch;
  const int64_t head_dim = k.dim(2), value_dim = v.dim(2), h = task.head;
  const bool sums = task.leaving != nullptr, moves = task.transition != nullptr;
  DeltaState<A> state{s.state, value_dim, s.value_width};
  DeltaState<A> transition{s.transition, head_dim, s.key_width, task.run.resets};
  for (int64_t l = 0; l < head_dim; ++l) {
    std::fill_n(s.transition + l * s.key_width, s.key_width, A(0));
    s.transition[l * s.key_width + l] = A(1);
  }
  // From the last document that begins in the run, or all of it.
  size_t first = task.blocks.size();
  while (first > 0 && !task.blocks[--first].first_of_document) continue;
  for (size_t b = first; b < task.blocks.size(); ++b) {
    const LinearBlock& block = task.blocks[b];
    const int64_t rows = block.rows;
    const auto decay = load_decays<A>(tokens, block, h, s);
    load_delta_keys<T>(k, block, h, s);
    if (sums) {
      load_rows<T>(delta_rows<T>(v, block.begin, h), v.stride(0), rows, value_dim, nullptr,
                   s.value_width, s.y);
      read_from_state(rows, head_dim, state, s, s.y);
      solve(rows, value_dim, s.value_width, s, s.y, s.u);
      write_to_state(rows, head_dim, decay, state, s, s.u);
    }
    if (moves && !transition.empty) {
      std::fill_n(s.transition_y, kBlock * s.key_width, A(0));
      read_from_state(rows, head_dim, transition, s, s.transition_y);
      solve(rows, head_dim, s.key_width, s, s.transition_y, s.transition_u);
      write_to_state(rows, head_dim, decay, transition, s, s.transition_u);
    }
    task.poller.did(rows * 2 * head_dim * (value_dim + head_dim));
  }
  if (sums) write_state(s.state, head_dim, value_dim, s.value_width, state.empty, task.leaving);
  if (moves) {
    write_state(s.transition, head_dim, head_dim, s.key_width, transition.empty, task.transition);
  }
}

template <class T>
DeltaForwardTasks<T> tasks() {
  return {.forward = forward<T>, .to_the_right = to_the_right<T>};
}

ByDType<DeltaForwardTasks> delta_forward_tasks_here() {
  return {tasks<bf16>(), tasks<float>(), tasks<double>()};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(delta_forward_tasks_here);

ByDType<DeltaForwardTasks> delta_forward_tasks() {
  return HWY_DYNAMIC_DISPATCH(delta_forward_tasks_here)();
}

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
