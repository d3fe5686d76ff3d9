// The way of a task of linear attention through its blocks, whatever makes states decay: where
// states enter, pass, end with a document and leave. Compiled once per instruction set (include
// after hwy/foreach_target.h).
#if defined(LONGHAUL_KERNELS_CPU_LINEAR_WALK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_LINEAR_WALK_INL_H_
#undef LONGHAUL_KERNELS_CPU_LINEAR_WALK_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_LINEAR_WALK_INL_H_
#endif

#include "kernels/cpu/linear_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// Rows of one head.
template <class T, class View>
auto* rows_of(const View& x, int64_t row, int64_t h) {
  return x.template data<T>() + row * x.stride(0) + h * x.stride(1);
}
template <class T>
void add_rows_of(const ConstTensorView& x, int64_t row, int64_t h, Ahead& ahead) {
  ahead.add(rows_of<T>(x, row, h), x.stride(0), x.dim(2));
}
template <class A>
void add_results_of(const TensorView& x, int64_t row, int64_t h, Ahead& ahead) {
  ahead.add(rows_of<A>(x, row, h), x.stride(0), x.dim(2), true);
}

// A task's state of a head.
template <class Task>
auto* state_of(const Task& task, int64_t h) {
  return task.scratch.states + (h - task.heads.begin) * task.scratch.state_elements;
}

// What enters a task; false if nothing does.
template <class Task, class A>
bool read_states(const Task& task, const A* from, int64_t head_dim, int64_t value_dim) {
  if (from == nullptr) return false;
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    read_state(from + h * head_dim * value_dim, head_dim, value_dim, task.scratch.value_width,
               state_of(task, h));
  }
  return true;
}
template <class Task, class A>
bool read_transposed_states(const Task& task, const A* from, int64_t head_dim, int64_t value_dim) {
  if (from == nullptr) return false;
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    load_transposed<A>(from + h * head_dim * value_dim, value_dim, head_dim, value_dim,
                       task.scratch.key_width, state_of(task, h));
  }
  return true;
}
// What leaves it, if that is asked for.
template <class Task, class A>
void write_states(const Task& task, int64_t head_dim, int64_t value_dim, bool empty, A* to) {
  if (to == nullptr) return;
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    write_state(state_of(task, h), head_dim, value_dim, task.scratch.value_width, empty,
                to + h * head_dim * value_dim);
  }
}

// A head of a block on the way.
struct Visit {
  const LinearBlock& block;
  int64_t h;
  bool empty;          // the state that enters the block is all zeros
  bool keep;           // the state that leaves it is of use
  const Ahead& ahead;  // the rows of the next visit
};

// visit(Visit) for all blocks from left to right, or from right to left, and in a block all heads.
// ahead(row, head, Ahead&) says what a visit that begins there will need. The result: whether all
// zeros leave.
template <bool kRight, class Task, class AddAhead, class F>
bool walk(const Task& task, bool enters, bool leaves, const AddAhead& add_ahead, const F& visit) {
  const size_t count = task.blocks.size();
  const auto nth = [&](size_t n) -> const LinearBlock& {
    return task.blocks[kRight ? n : count - 1 - n];
  };
  bool empty = !enters;
  for (size_t n = 0; n < count; ++n) {
    const LinearBlock& block = nth(n);
    const bool ends = kRight ? block.last_of_document : block.first_of_document;
    const bool keep = !ends && (n + 1 < count || leaves);
    if (kRight ? block.first_of_document : block.last_of_document) empty = true;
    for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
      Ahead ahead;
      const bool same_block = h + 1 < task.heads.end;
      const size_t next = same_block ? n : n + 1;
      if (next < count) {
        add_ahead(nth(next).begin, same_block ? h + 1 : task.heads.begin, ahead);
        ahead.set_rows(nth(next).rows);
      }
      visit(Visit{.block = block, .h = h, .empty = empty, .keep = keep, .ahead = ahead});
    }
    empty = !keep;
  }
  return empty;
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
