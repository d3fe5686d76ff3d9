// The states that pieces of gated linear attention add up alone: sums of k v^T to the right, of
// q dout^T to the left.
#include <algorithm>

#include "kernels/cpu/gated_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gated_sums.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/gated_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// One block: state = diag(decay) state + (gates . left)^T right, gates up to the block's end or
// from its begin.
template <class T, bool kRight>
void add_block(const ConstTensorView& log_gate, const ConstTensorView& left,
               const ConstTensorView& right, const LinearBlock& block, int64_t h, bool empty,
               Accumulator<T>* state, const GatedTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const GatedScratch<A>& s = task.scratch;
  const int64_t head_dim = left.dim(2), rows = block.rows;
  load_gates<A>(rows_of<A>(log_gate, block.begin, h), log_gate.stride(0), rows, head_dim, s);
  load_rows<T>(rows_of<T>(left, block.begin, h), left.stride(0), rows, head_dim, nullptr,
               s.key_width, s.k);
  multiply_rows(s.k, kRight ? s.to_end : s.from_begin, rows, head_dim, s.key_width, s.k);
  load_rows<T>(rows_of<T>(right, block.begin, h), right.stride(0), rows, right.dim(2), nullptr,
               s.value_width, s.v);
  update_gated_state(GatedUpdate<A>{.rows = rows,
                                    .left = s.k,
                                    .left_l = 1,
                                    .left_t = s.key_width,
                                    .depth = head_dim,
                                    .right = s.v,
                                    .width = s.value_width,
                                    .columns = right.dim(2),
                                    .decay = s.decay,
                                    .decay_rest = s.decay_rest,
                                    .empty = empty,
                                    .state = state});
  task.poller.did(rows * head_dim * right.dim(2));
}

// From the last document that begins in the piece, or all of it.
template <class T>
void to_the_right(const ConstTensorView& log_gate, const ConstTensorView& k,
                  const ConstTensorView& v, const GatedTask<Accumulator<T>>& task) {
  size_t first = task.blocks.size();
  while (first > 0 && !task.blocks[--first].first_of_document) continue;
  for (size_t b = first; b < task.blocks.size(); ++b) {
    for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
      add_block<T, true>(log_gate, k, v, task.blocks[b], h, b == first, state_of(task, h), task);
    }
  }
  write_states(task, k.dim(2), v.dim(2), task.blocks.empty(), task.leaving);
}

// Up to the first document that begins in the piece, or all of it.
template <class T>
void to_the_left(const ConstTensorView& log_gate, const ConstTensorView& q,
                 const ConstTensorView& dout, const GatedTask<Accumulator<T>>& task) {
  size_t end = 0;
  while (end < task.blocks.size() && !task.blocks[end].first_of_document) ++end;
  for (size_t b = end; b-- > 0;) {
    for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
      add_block<T, false>(log_gate, q, dout, task.blocks[b], h, b + 1 == end, state_of(task, h),
                          task);
    }
  }
  write_states(task, q.dim(2), dout.dim(2), end == 0, task.right_leaving);
}

template <class T>
GatedSumTasks<T> tasks() {
  return {.to_the_right = to_the_right<T>, .to_the_left = to_the_left<T>};
}

ByDType<GatedSumTasks> gated_sum_tasks_here() {
  return {tasks<bf16>(), tasks<float>(), tasks<double>()};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(gated_sum_tasks_here);

ByDType<GatedSumTasks> gated_sum_tasks() { return HWY_DYNAMIC_DISPATCH(gated_sum_tasks_here)(); }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
