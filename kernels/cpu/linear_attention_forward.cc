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
#include "kernels/cpu/linear_tiles-inl.h"

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
        value_dim_(args.v.dim(2)),
        empty_(task.entering == nullptr) {}

  void run() {
    for (int64_t h = task_.heads.begin; h < task_.heads.end && !empty_; ++h) {
      read_state(task_.entering + h * head_dim_ * value_dim_, head_dim_, value_dim_, s_.value_width,
                 state_of(h));
    }
    for (size_t b = 0; b < task_.blocks.size(); ++b) {
      const LinearBlock& block = task_.blocks[b];
      const bool last = b + 1 == task_.blocks.size();
      const bool keep = !block.last_of_document && (!last || task_.leaving != nullptr);
      if (block.first_of_document) empty_ = true;
      for (int64_t h = task_.heads.begin; h < task_.heads.end; ++h) {
        run_block(block, h, keep, ahead_of(b, h));
        task_.poller.did(block.rows * (2 * head_dim_ * value_dim_ + kBlock * head_dim_));
      }
      empty_ = !keep;
    }
    for (int64_t h = task_.heads.begin; h < task_.heads.end && task_.leaving != nullptr; ++h) {
      write_state(state_of(h), head_dim_, value_dim_, s_.value_width, empty_,
                  task_.leaving + h * head_dim_ * value_dim_);
    }
  }

 private:
  A* state_of(int64_t h) const { return s_.states + (h - task_.heads.begin) * s_.state_elements; }
  static const T* at(const ConstTensorView& x, int64_t row, int64_t h) {
    return x.data<T>() + row * x.stride(0) + h * x.stride(1);
  }
  A* out_at(int64_t row, int64_t h) const {
    return args_.out_acc.data<A>() + row * args_.out_acc.stride(0) + h * value_dim_;
  }

  // What follows block b of head h in this task.
  Ahead ahead_of(size_t b, int64_t h) const {
    Ahead ahead;
    const bool next_head = h + 1 < task_.heads.end;
    const size_t next = next_head ? b : b + 1;
    if (next == task_.blocks.size()) return ahead;
    const LinearBlock& block = task_.blocks[next];
    const int64_t head = next_head ? h + 1 : task_.heads.begin;
    ahead.add(at(args_.q, block.begin, head), args_.q.stride(0), head_dim_);
    ahead.add(at(args_.k, block.begin, head), args_.k.stride(0), head_dim_);
    ahead.add(at(args_.v, block.begin, head), args_.v.stride(0), value_dim_);
    ahead.add(out_at(block.begin, head), args_.out_acc.stride(0), value_dim_, true);
    ahead.set_rows(block.rows);
    return ahead;
  }

  void run_block(const LinearBlock& block, int64_t h, bool keep, const Ahead& ahead) {
    const Powers<A>& powers = task_.powers[static_cast<size_t>(h)];
    const int64_t rows = block.rows;
    const T* k = at(args_.k, block.begin, h);
    load_rows<T>(at(args_.q, block.begin, h), args_.q.stride(0), rows, head_dim_, nullptr,
                 s_.key_width, s_.q);
    load_rows<T>(at(args_.v, block.begin, h), args_.v.stride(0), rows, value_dim_, nullptr,
                 s_.value_width, s_.v);
    load_transposed<T>(k, args_.k.stride(0), rows, head_dim_, kBlock, s_.kt);
    decayed_products(rows, s_.q, s_.key_width, head_dim_, s_.kt, powers.diagonal(), s_.p,
                     ahead.part(0, 1));
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim_,
                         .x = s_.q,
                         .x_width = s_.key_width,
                         .depth = head_dim_,
                         .state = empty_ ? nullptr : state_of(h),
                         .factors = powers.rising(),
                         .p = s_.p,
                         .y = s_.v,
                         .width = s_.value_width,
                         .out = out_at(block.begin, h),
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
                                .empty = empty_,
                                .state = state_of(h),
                                .ahead = ahead.part(3, 4)});
  }

  const LinearAttentionForward& args_;
  const LinearTask<A>& task_;
  const LinearScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
  bool empty_;  // the state before the block is all zeros
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
      load_rows<T>(args.q.data<T>() + block.begin * args.q.stride(0) + h * args.q.stride(1),
                   args.q.stride(0), block.rows, head_dim, nullptr, s.key_width, s.q);
      const int64_t out_stride = args.out_acc.stride(0);
      make_rows(RowSums<A>{.rows = block.rows,
                           .columns = value_dim,
                           .x = s.q,
                           .x_width = s.key_width,
                           .depth = head_dim,
                           .state = s.states,
                           .factors = factors.data(),
                           .width = s.value_width,
                           .add = true,
                           .out = args.out_acc.data<A>() + block.begin * out_stride + h * value_dim,
                           .out_stride = out_stride});
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
