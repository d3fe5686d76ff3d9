// Linear attention backward on the CPU, and the parts of it that wait for other ranks.
//
// Two passes through the blocks of a piece. To the right, with the state S, which is not kept from
// forward but summed again (transposed, as dQ wants it):
//
//     dQ += diag(a^r) dO S^T                      S^T <- a^c S^T + (diag(a^(c-r)) V)^T K
//
// and to the left, with its gradient G:
//
//     dQ += dP K                                  G <- a^c G + (diag(a^r) Q)^T dO
//     dK += diag(a^(c-r)) V G^T + dP^T Q
//     dV += diag(a^(c-r)) K G + P^T dO
//
// where P = (Q K^T) . D and dP = (dO V^T) . D. All that needs dP is in one pass: to compute it
// again costs more than to read and write dQ twice.
#include <algorithm>

#include "kernels/cpu/linear_attention_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_attention_backward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/linear_walk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
class BackwardTask {
  using A = Accumulator<T>;

 public:
  BackwardTask(const LinearAttentionBackward& args, const LinearTask<A>& task)
      : args_(args),
        task_(task),
        s_(task.scratch),
        head_dim_(args.q.dim(2)),
        value_dim_(args.v.dim(2)) {}

  void run() {
    to_the_right();
    to_the_left();
  }

 private:
  const Powers<A>& powers_of(int64_t h) const { return task_.powers[static_cast<size_t>(h)]; }

  void to_the_right() const {
    const bool enters = read_transposed_states(task_, task_.entering, head_dim_, value_dim_);
    const auto ahead = [&](int64_t row, int64_t h, Ahead& to) {
      add_rows_of<T>(args_.k, row, h, to);
      add_rows_of<T>(args_.v, row, h, to);
      add_rows_of<T>(args_.dout, row, h, to);
      add_results_of<A>(args_.dq_acc, row, h, to);
    };
    walk<true>(task_, enters, false, ahead, [&](const Visit& at) {
      add_dq(at);
      task_.poller.did(at.block.rows * 2 * head_dim_ * value_dim_);
    });
  }

  void add_dq(const Visit& at) const {
    const auto& [block, h, empty, keep, ahead] = at;
    const Powers<A>& powers = powers_of(h);
    const int64_t rows = block.rows;
    if (!empty) {
      load_rows<T>(rows_of<T>(args_.dout, block.begin, h), args_.dout.stride(0), rows, value_dim_,
                   nullptr, s_.value_width, s_.dout);
      make_rows(RowSums<A>{.rows = rows,
                           .columns = head_dim_,
                           .x = s_.dout,
                           .x_width = s_.value_width,
                           .depth = value_dim_,
                           .state = state_of(task_, h),
                           .factors = powers.rising(),
                           .width = s_.key_width,
                           .add = !args_.overwrite,
                           .out = rows_of<A>(args_.dq_acc, block.begin, h),
                           .out_stride = args_.dq_acc.stride(0),
                           .ahead = ahead.part(0, 1),
                           .ahead_between = ahead.part(1, 2)});
    } else if (args_.overwrite) {
      for (int64_t row = block.begin; row < block.begin + rows; ++row) {
        std::fill_n(rows_of<A>(args_.dq_acc, row, h), head_dim_, A(0));
      }
    }
    if (!keep) return;
    load_rows<T>(rows_of<T>(args_.k, block.begin, h), args_.k.stride(0), rows, head_dim_, nullptr,
                 s_.key_width, s_.k);
    load_rows<T>(rows_of<T>(args_.v, block.begin, h), args_.v.stride(0), rows, value_dim_,
                 powers.falling(rows), s_.value_width, s_.v);
    update_state(StateUpdate<A>{.rows = rows,
                                .left = s_.v,
                                .left_width = s_.value_width,
                                .depth = value_dim_,
                                .right = s_.k,
                                .width = s_.key_width,
                                .columns = head_dim_,
                                .decay = powers.over(rows),
                                .empty = empty,
                                .state = state_of(task_, h),
                                .ahead = ahead.part(2, 4)});
  }

  void to_the_left() const {
    const bool enters = read_states(task_, task_.right_entering, head_dim_, value_dim_);
    const auto ahead = [&](int64_t row, int64_t h, Ahead& to) {
      add_rows_of<T>(args_.q, row, h, to);
      add_rows_of<T>(args_.k, row, h, to);
      add_rows_of<T>(args_.v, row, h, to);
      add_rows_of<T>(args_.dout, row, h, to);
      add_results_of<A>(args_.dq_acc, row, h, to);
      add_results_of<A>(args_.dv_acc, row, h, to);
      add_results_of<A>(args_.dk_acc, row, h, to);
    };
    const bool empty =
        walk<false>(task_, enters, task_.right_leaving != nullptr, ahead, [&](const Visit& at) {
          add_dk_dv(at);
          task_.poller.did(at.block.rows *
                           (3 * head_dim_ * value_dim_ + 2 * kBlock * (head_dim_ + value_dim_)));
        });
    write_states(task_, head_dim_, value_dim_, empty, task_.right_leaving);
  }

  void add_dk_dv(const Visit& at) const {
    const auto& [block, h, empty, keep, ahead] = at;
    const Powers<A>& powers = powers_of(h);
    const int64_t rows = block.rows;
    const T* k = rows_of<T>(args_.k, block.begin, h);
    const T* v = rows_of<T>(args_.v, block.begin, h);
    load_rows<T>(rows_of<T>(args_.q, block.begin, h), args_.q.stride(0), rows, head_dim_, nullptr,
                 s_.key_width, s_.q);
    load_rows<T>(rows_of<T>(args_.dout, block.begin, h), args_.dout.stride(0), rows, value_dim_,
                 nullptr, s_.value_width, s_.dout);
    load_transposed<T>(k, args_.k.stride(0), rows, head_dim_, kBlock, s_.kt);
    load_transposed<T>(v, args_.v.stride(0), rows, value_dim_, kBlock, s_.vt);
    decayed_products(rows, s_.q, s_.key_width, head_dim_, s_.kt, powers.diagonal(), s_.p,
                     ahead.part(0, 1));
    decayed_products(rows, s_.dout, s_.value_width, value_dim_, s_.vt, powers.diagonal(), s_.dp,
                     ahead.part(1, 2));
    load_rows<T>(k, args_.k.stride(0), rows, head_dim_, nullptr, s_.key_width, s_.k);
    make_rows(RowSums<A>{.rows = rows,
                         .columns = head_dim_,
                         .p = s_.dp,
                         .y = s_.k,
                         .width = s_.key_width,
                         .add = true,
                         .out = rows_of<A>(args_.dq_acc, block.begin, h),
                         .out_stride = args_.dq_acc.stride(0),
                         .ahead = ahead.part(2, 3)});
    if (!empty) {
      load_rows<T>(v, args_.v.stride(0), rows, value_dim_, nullptr, s_.value_width, s_.v);
      load_transposed<A>(state_of(task_, h), s_.value_width, head_dim_, value_dim_, s_.key_width,
                         s_.turned);
    }
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim_,
                         .x = s_.k,
                         .x_width = s_.key_width,
                         .depth = head_dim_,
                         .state = empty ? nullptr : state_of(task_, h),
                         .factors = powers.falling(rows),
                         .p = s_.p,
                         .transposed = true,
                         .y = s_.dout,
                         .width = s_.value_width,
                         .add = !args_.overwrite,
                         .out = rows_of<A>(args_.dv_acc, block.begin, h),
                         .out_stride = args_.dv_acc.stride(0),
                         .ahead = ahead.part(3, 4),
                         .ahead_between = ahead.part(4, 5)});
    make_rows(RowSums<A>{.rows = rows,
                         .columns = head_dim_,
                         .x = s_.v,
                         .x_width = s_.value_width,
                         .depth = value_dim_,
                         .state = empty ? nullptr : s_.turned,
                         .factors = powers.falling(rows),
                         .p = s_.dp,
                         .transposed = true,
                         .y = s_.q,
                         .width = s_.key_width,
                         .add = !args_.overwrite,
                         .out = rows_of<A>(args_.dk_acc, block.begin, h),
                         .out_stride = args_.dk_acc.stride(0),
                         .ahead = ahead.part(5, 6)});
    if (!keep) return;
    scale_rows(s_.q, rows, head_dim_, s_.key_width, powers.rising());
    update_state(StateUpdate<A>{.rows = rows,
                                .left = s_.q,
                                .left_width = s_.key_width,
                                .depth = head_dim_,
                                .right = s_.dout,
                                .width = s_.value_width,
                                .columns = value_dim_,
                                .decay = powers.over(rows),
                                .empty = empty,
                                .state = state_of(task_, h),
                                .ahead = ahead.part(6, 7)});
  }

  const LinearAttentionBackward& args_;
  const LinearTask<A>& task_;
  const LinearScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
};

template <class T>
void backward(const LinearAttentionBackward& args, const LinearTask<Accumulator<T>>& task) {
  BackwardTask<T>(args, task).run();
}

// sums(r, :) += scale factors[r] x(r, :) state, for one block of rows of x.
template <class T>
void add_rows(const LinearBlock& block, int64_t h, const ConstTensorView& x,
              const Accumulator<T>* state, int64_t width, Accumulator<T> scale,
              const Accumulator<T>* factors, const TensorView& sums,
              const LinearTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  std::array<A, kBlock> scaled;
  for (int64_t r = 0; r < block.rows; ++r) scaled[static_cast<size_t>(r)] = scale * factors[r];
  A* rows = task.scratch.q;  // large enough for either kind
  const int64_t x_width = row_width(x.dim(2));
  load_rows<T>(rows_of<T>(x, block.begin, h), x.stride(0), block.rows, x.dim(2), nullptr, x_width,
               rows);
  make_rows(RowSums<A>{.rows = block.rows,
                       .columns = sums.dim(2),
                       .x = rows,
                       .x_width = x_width,
                       .depth = x.dim(2),
                       .state = state,
                       .factors = scaled.data(),
                       .width = width,
                       .add = true,
                       .out = rows_of<A>(sums, block.begin, h),
                       .out_stride = sums.stride(0)});
  task.poller.did(block.rows * x.dim(2) * sums.dim(2));
}

// dq += diag(a^r) dout S^T for rows that the incoming state reaches, r counted from the run's
// begin.
template <class T>
void add_dq(const LinearAttentionAddDq& args, const LinearTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const LinearScratch<A>& s = task.scratch;
  const int64_t head_dim = args.dq_acc.dim(2), value_dim = args.dout.dim(2);
  const int64_t run_begin = args.tokens.runs[static_cast<size_t>(task.piece.run)].begin;
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    const Powers<A>& powers = task.powers[static_cast<size_t>(h)];
    load_transposed<A>(task.entering + h * head_dim * value_dim, value_dim, head_dim, value_dim,
                       s.key_width, s.turned);
    for (const LinearBlock& block : task.blocks) {
      const A before = powers.over_far(block.begin - run_begin);
      if (block.first_of_document || before == A(0)) break;
      add_rows<T>(block, h, args.dout, s.turned, s.key_width, before, powers.rising(), args.dq_acc,
                  task);
    }
  }
}

// dk += diag(a^(n-r)) v G^T and dv += diag(a^(n-r)) k G for rows whose state reaches the end of the
// run, n - r rows away.
template <class T>
void add_dk_dv(const LinearAttentionAddDkDv& args, const LinearTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const LinearScratch<A>& s = task.scratch;
  const int64_t head_dim = args.k.dim(2), value_dim = args.v.dim(2);
  const LinearRun& run = args.tokens.runs[static_cast<size_t>(task.piece.run)];
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    const Powers<A>& powers = task.powers[static_cast<size_t>(h)];
    const A* gradient = task.right_entering + h * head_dim * value_dim;
    read_state(gradient, head_dim, value_dim, s.value_width, s.states);
    load_transposed<A>(gradient, value_dim, head_dim, value_dim, s.key_width, s.turned);
    for (size_t b = task.blocks.size(); b-- > 0;) {
      const LinearBlock& block = task.blocks[b];
      const A after = powers.over_far(run.begin + run.length - block.begin - block.rows);
      if (after == A(0)) break;
      const A* factors = powers.falling(block.rows);
      add_rows<T>(block, h, args.k, s.states, s.value_width, after, factors, args.dv_acc, task);
      add_rows<T>(block, h, args.v, s.turned, s.key_width, after, factors, args.dk_acc, task);
      if (block.first_of_document) break;
    }
  }
}

template <class T>
BackwardTasks<T> tasks() {
  return {.backward = backward<T>, .add_dq = add_dq<T>, .add_dk_dv = add_dk_dv<T>};
}

ByDType<BackwardTasks> backward_tasks_here() {
  return {tasks<bf16>(), tasks<float>(), tasks<double>()};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(backward_tasks_here);

ByDType<BackwardTasks> backward_tasks() { return HWY_DYNAMIC_DISPATCH(backward_tasks_here)(); }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
