// Gated linear attention forward on the CPU, and the part of it that waits for other ranks.
//
// Block by block, with the state S before the block, and f and t the products of gates from the
// block's begin up to a row, and from after it up to the block's end:
//
//     O = (F . Q) S + P V          S <- diag(f_c) S + (T . K)^T V
//
// with P as gated_products() makes it.
#include <algorithm>

#include "kernels/cpu/gated_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gated_forward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/gated_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
class GatedForwardTask {
  using A = Accumulator<T>;

 public:
  GatedForwardTask(const GatedLinearAttentionForward& args, const GatedTask<A>& task)
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
      add_rows_of<A>(args_.tokens.log_gate, row, h, to);
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
    const int64_t rows = block.rows;
    const ConstTensorView& log_gate = args_.tokens.log_gate;
    load_gates<A>(rows_of<A>(log_gate, block.begin, h), log_gate.stride(0), rows, head_dim_, s_);
    load_rows<T>(rows_of<T>(args_.q, block.begin, h), args_.q.stride(0), rows, head_dim_, nullptr,
                 s_.key_width, s_.q);
    load_rows<T>(rows_of<T>(args_.k, block.begin, h), args_.k.stride(0), rows, head_dim_, nullptr,
                 s_.key_width, s_.k);
    load_rows<T>(rows_of<T>(args_.v, block.begin, h), args_.v.stride(0), rows, value_dim_, nullptr,
                 s_.value_width, s_.v);
    pad_rows(rows, s_.key_width, s_.q);
    pad_rows(rows, s_.key_width, s_.k);
    gated_products(rows, head_dim_, s_, ahead.part(0, 1));
    if (!empty) multiply_rows(s_.q, s_.from_begin, rows, head_dim_, s_.key_width, s_.moved);
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim_,
                         .x = s_.moved,
                         .x_width = s_.key_width,
                         .depth = head_dim_,
                         .state = empty ? nullptr : state_of(task_, h),
                         .p = s_.p,
                         .y = s_.v,
                         .width = s_.value_width,
                         .out = rows_of<A>(args_.out_acc, block.begin, h),
                         .out_stride = args_.out_acc.stride(0),
                         .ahead = ahead.part(1, 2),
                         .ahead_between = ahead.part(2, 3)});
    if (!keep) return;
    update_gated_state(GatedUpdate<A>{.rows = rows,
                                      .left = s_.kt,
                                      .left_l = kBlock,
                                      .left_t = 1,
                                      .depth = head_dim_,
                                      .right = s_.v,
                                      .width = s_.value_width,
                                      .columns = value_dim_,
                                      .decay = s_.decay,
                                      .decay_rest = s_.decay_rest,
                                      .empty = empty,
                                      .state = state_of(task_, h),
                                      .ahead = ahead.part(3, 5)});
  }

  const GatedLinearAttentionForward& args_;
  const GatedTask<A>& task_;
  const GatedScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
};

template <class T>
void forward(const GatedLinearAttentionForward& args, const GatedTask<Accumulator<T>>& task) {
  GatedForwardTask<T>(args, task).run();
}

// out += (F . Q) S for rows that the incoming state reaches, f counted from the run's begin.
template <class T>
void add_out(const GatedLinearAttentionAddOut& args, const GatedTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const GatedScratch<A>& s = task.scratch;
  const ConstTensorView& log_gate = args.tokens.log_gate;
  const int64_t head_dim = args.q.dim(2), value_dim = args.out_acc.dim(2);
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    read_state(task.entering + h * head_dim * value_dim, head_dim, value_dim, s.value_width,
               s.states);
    begin_outside(task.gates_before + h * head_dim, head_dim, s);
    for (const LinearBlock& block : task.blocks) {
      if (block.first_of_document || !any(s.outside, head_dim)) break;
      load_gates<A>(rows_of<A>(log_gate, block.begin, h), log_gate.stride(0), block.rows, head_dim,
                    s);
      load_rows<T>(rows_of<T>(args.q, block.begin, h), args.q.stride(0), block.rows, head_dim,
                   nullptr, s.key_width, s.q);
      multiply_columns(s.outside, block.rows, head_dim, s.key_width, s.from_begin);
      multiply_rows(s.q, s.from_begin, block.rows, head_dim, s.key_width, s.q);
      make_product(Product<A>{.rows = block.rows,
                              .columns = value_dim,
                              .depth = head_dim,
                              .x = s.q,
                              .x_row = s.key_width,
                              .y = s.states,
                              .width = s.value_width,
                              .add = true,
                              .out = rows_of<A>(args.out_acc, block.begin, h),
                              .out_stride = args.out_acc.stride(0)});
      pass_block(head_dim, s);
      task.poller.did(block.rows * head_dim * value_dim);
    }
  }
}

template <class T>
GatedForwardTasks<T> tasks() {
  return {.forward = forward<T>, .add_out = add_out<T>};
}

ByDType<GatedForwardTasks> gated_forward_tasks_here() {
  return {tasks<bf16>(), tasks<float>(), tasks<double>()};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(gated_forward_tasks_here);

ByDType<GatedForwardTasks> gated_forward_tasks() {
  return HWY_DYNAMIC_DISPATCH(gated_forward_tasks_here)();
}

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
