// The states that pieces of linear attention add up alone: sums of k v^T to the right, of q dout^T
// to the left.
#include <algorithm>

#include "kernels/cpu/linear_attention_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_attention_sums.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/linear_walk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// One block: state = a^rows state + (diag(factors) left)^T right.
template <class T>
void add_block(const ConstTensorView& left, const ConstTensorView& right, const LinearBlock& block,
               int64_t h, const Accumulator<T>* factors, bool empty, Accumulator<T>* state,
               const LinearTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const LinearScratch<A>& s = task.scratch;
  load_rows<T>(left.data<T>() + block.begin * left.stride(0) + h * left.stride(1), left.stride(0),
               block.rows, left.dim(2), factors, s.key_width, s.k);
  load_rows<T>(right.data<T>() + block.begin * right.stride(0) + h * right.stride(1),
               right.stride(0), block.rows, right.dim(2), nullptr, s.value_width, s.v);
  update_state(StateUpdate<A>{.rows = block.rows,
                              .left = s.k,
                              .left_width = s.key_width,
                              .depth = left.dim(2),
                              .right = s.v,
                              .width = s.value_width,
                              .columns = right.dim(2),
                              .decay = task.powers[static_cast<size_t>(h)].over(block.rows),
                              .empty = empty,
                              .state = state});
  task.poller.did(block.rows * left.dim(2) * right.dim(2));
}

// What decays to nothing before it leaves the piece is not added up at all: with many heads, whose
// slopes reach from steep to flat, that is most of a long piece.

// From the last document that begins in the piece, or all of it.
template <class T>
void to_the_right(ConstTensorView k, ConstTensorView v, const LinearTask<Accumulator<T>>& task) {
  size_t first = task.blocks.size();
  while (first > 0 && !task.blocks[--first].first_of_document) continue;
  const int64_t piece_end =
      task.blocks.empty() ? 0 : task.blocks.back().begin + task.blocks.back().rows;
  for (size_t b = first; b < task.blocks.size(); ++b) {
    const LinearBlock& block = task.blocks[b];
    for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
      const Powers<Accumulator<T>>& powers = task.powers[static_cast<size_t>(h)];
      const auto fades = [&](const LinearBlock& one) {
        return powers.over_far(piece_end - (one.begin + one.rows)) == 0;
      };
      if (fades(block)) continue;
      add_block<T>(k, v, block, h, powers.falling(block.rows),
                   b == first || fades(task.blocks[b - 1]), state_of(task, h), task);
    }
  }
  write_states(task, k.dim(2), v.dim(2), task.blocks.empty(), task.leaving);
}

// Up to the first document that begins in the piece, or all of it.
template <class T>
void to_the_left(ConstTensorView q, ConstTensorView dout, const LinearTask<Accumulator<T>>& task) {
  size_t end = 0;
  while (end < task.blocks.size() && !task.blocks[end].first_of_document) ++end;
  for (size_t b = end; b-- > 0;) {
    const LinearBlock& block = task.blocks[b];
    for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
      const Powers<Accumulator<T>>& powers = task.powers[static_cast<size_t>(h)];
      const auto fades = [&](const LinearBlock& one) {
        return powers.over_far(one.begin - task.blocks.front().begin) == 0;
      };
      if (fades(block)) continue;
      add_block<T>(q, dout, block, h, powers.rising(), b + 1 == end || fades(task.blocks[b + 1]),
                   state_of(task, h), task);
    }
  }
  write_states(task, q.dim(2), dout.dim(2), end == 0, task.right_leaving);
}

template <class T>
SumTasks<T> tasks() {
  return {.to_the_right = to_the_right<T>, .to_the_left = to_the_left<T>};
}

ByDType<SumTasks> sum_tasks_here() { return {tasks<bf16>(), tasks<float>(), tasks<double>()}; }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(sum_tasks_here);

ByDType<SumTasks> sum_tasks() { return HWY_DYNAMIC_DISPATCH(sum_tasks_here)(); }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
