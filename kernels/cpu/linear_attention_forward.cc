// Linear attention forward on the CPU, and the part of it that waits for other ranks.
//
// Block by block, of c rows, with the state S before the block:
//
//     P = (Q K^T) . D          O = diag(a^r) Q S + P V          S <- a^c S + (diag(a^(c-r)) K)^T V
//
// O is one sum in registers. Q and K are broadcast or packed, V and S lie as they are, so that only
// K is transposed.
#include <algorithm>

#include "kernels/cpu/linear_attention_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_attention_forward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/linear_walk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
class ForwardTask {
  using A = Accumulator<T>;

 public:
  ForwardTask(const LinearAttentionForward& args, const LinearTask<A>& task)
      : args_(args),
        task_(task),
        s_(task.scratch),
        head_dim_(args.q.dim(2)),
        value_dim_(args.v.dim(2)) {}

  void run() {
    const bool enters = read_states(task_, task_.entering, head_dim_, value_dim_);
    const auto ahead = [&](int64_t row, int64_t h, Ahead& to) {
      add_rows_of<T>(args_.q, row, h, to);
      add_rows_of<T>(args_.k, row, h, to);
      add_rows_of<T>(args_.v, row, h, to);
      add_results_of<A>(args_.out_acc, row, h, to);
    };
    const bool empty =
        walk<true>(task_, enters, task_.leaving != nullptr, ahead, [&](const Visit& at) {
          add_block(at);
          task_.poller.did(at.block.rows * (2 * head_dim_ * value_dim_ + kBlock * head_dim_));
        });
    write_states(task_, head_dim_, value_dim_, empty, task_.leaving);
  }

 private:
  void add_block(const Visit& at) const {
    const auto& [block, h, empty, keep, ahead] = at;
    const Powers<A>& powers = task_.powers[static_cast<size_t>(h)];
    const int64_t rows = block.rows;
    const T* k = rows_of<T>(args_.k, block.begin, h);
    load_rows<T>(rows_of<T>(args_.q, block.begin, h), args_.q.stride(0), rows, head_dim_, nullptr,
                 s_.key_width, s_.q);
    load_rows<T>(rows_of<T>(args_.v, block.begin, h), args_.v.stride(0), rows, value_dim_, nullptr,
                 s_.value_width, s_.v);
    load_transposed<T>(k, args_.k.stride(0), rows, head_dim_, kBlock, s_.kt);
    decayed_products(rows, s_.q, s_.key_width, head_dim_, s_.kt, powers.diagonal(), s_.p,
                     ahead.part(0, 1));
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim_,
                         .x = s_.q,
                         .x_width = s_.key_width,
                         .depth = head_dim_,
                         .state = empty ? nullptr : state_of(task_, h),
                         .factors = powers.rising(),
                         .p = s_.p,
                         .y = s_.v,
                         .width = s_.value_width,
                         .out = rows_of<A>(args_.out_acc, block.begin, h),
                         .out_stride = args_.out_acc.stride(0),
                         .ahead = ahead.part(1, 2),
                         .ahead_between = ahead.part(2, 3)});
    if (!keep) return;
    load_rows<T>(k, args_.k.stride(0), rows, head_dim_, powers.falling(rows), s_.key_width, s_.k);
    update_state(StateUpdate<A>{.rows = rows,
                                .left = s_.k,
                                .left_width = s_.key_width,
                                .depth = head_dim_,
                                .right = s_.v,
                                .width = s_.value_width,
                                .columns = value_dim_,
                                .decay = powers.over(rows),
                                .empty = empty,
                                .state = state_of(task_, h),
                                .ahead = ahead.part(3, 4)});
  }

  const LinearAttentionForward& args_;
  const LinearTask<A>& task_;
  const LinearScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
};

// out += diag(a^r) q S for rows that the incoming state reaches, r counted from the run's begin.
template <class T>
void add_out(const LinearAttentionAddOut& args, const LinearTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const LinearScratch<A>& s = task.scratch;
  const int64_t head_dim = args.q.dim(2), value_dim = args.out_acc.dim(2);
  const int64_t run_begin = args.tokens.runs[static_cast<size_t>(task.piece.run)].begin;
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    const Powers<A>& powers = task.powers[static_cast<size_t>(h)];
    read_state(task.entering + h * head_dim * value_dim, head_dim, value_dim, s.value_width,
               s.states);
    for (const LinearBlock& block : task.blocks) {
      const A before = powers.over_far(block.begin - run_begin);
      if (block.first_of_document || before == A(0)) break;
      std::array<A, kBlock> factors;
      for (size_t r = 0; r < factors.size(); ++r) factors[r] = before * powers.rising()[r];
      load_rows<T>(rows_of<T>(args.q, block.begin, h), args.q.stride(0), block.rows, head_dim,
                   nullptr, s.key_width, s.q);
      make_rows(RowSums<A>{.rows = block.rows,
                           .columns = value_dim,
                           .x = s.q,
                           .x_width = s.key_width,
                           .depth = head_dim,
                           .state = s.states,
                           .factors = factors.data(),
                           .width = s.value_width,
                           .add = true,
                           .out = rows_of<A>(args.out_acc, block.begin, h),
                           .out_stride = args.out_acc.stride(0)});
      task.poller.did(block.rows * head_dim * value_dim);
    }
  }
}

template <class T>
void forward(const LinearAttentionForward& args, const LinearTask<Accumulator<T>>& task) {
  ForwardTask<T>(args, task).run();
}

template <class T>
ForwardTasks<T> tasks() {
  return {.forward = forward<T>, .add_out = add_out<T>};
}

ByDType<ForwardTasks> forward_tasks_here() {
  return {tasks<bf16>(), tasks<float>(), tasks<double>()};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(forward_tasks_here);

ByDType<ForwardTasks> forward_tasks() { return HWY_DYNAMIC_DISPATCH(forward_tasks_here)(); }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
