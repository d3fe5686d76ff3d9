// The table of linear attention kernels, and how their tasks run on the threads.
#include "kernels/linear_attention.h"

#include "kernels/cpu/linear_attention_runner.h"
#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

template <class T>
void forward(const Context& ctx, const LinearAttentionForward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const Runner<T> runner(ctx, args.tokens, args.q.dim(2), args.v.dim(2), PieceUse::kFollow);
  const bool chained = runner.schedule().chained();
  const TensorView entering = chained ? runner.allocate_states() : TensorView();
  if (ctx.measuring()) return;
  if (chained) {
    const auto sums = std::get<SumTasks<T>>(sum_tasks());
    runner.run(
        [&](LinearTask<A>& task, int64_t p) {
          task.leaving = runner.state(entering, p + 1);
          return !task.piece.last;
        },
        [&](const LinearTask<A>& task) { sums.to_the_right(args.k, args.v, task); });
    runner.template chain<true>(args.state_in, entering);
  }
  const auto tasks = std::get<ForwardTasks<T>>(forward_tasks());
  runner.run(
      [&](LinearTask<A>& task, int64_t p) {
        task.entering =
            chained ? runner.state(entering, p) : runner.state(args.state_in, task.piece.run);
        task.leaving = task.piece.last ? runner.state(args.state_out, task.piece.run) : nullptr;
        return true;
      },
      [&](const LinearTask<A>& task) { tasks.forward(args, task); });
}

template <class T>
void backward(const Context& ctx, const LinearAttentionBackward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const Runner<T> runner(ctx, args.tokens, args.q.dim(2), args.v.dim(2), PieceUse::kFollow);
  const bool chained = runner.schedule().chained();
  const TensorView entering = chained ? runner.allocate_states() : TensorView();
  const TensorView gradients = chained ? runner.allocate_states() : TensorView();
  if (ctx.measuring()) return;
  if (chained) {
    const auto sums = std::get<SumTasks<T>>(sum_tasks());
    runner.run(
        [&](LinearTask<A>& task, int64_t p) {
          task.leaving = runner.state(entering, p + 1);
          task.right_leaving = runner.state(gradients, p - 1);
          return true;
        },
        [&](const LinearTask<A>& task) {
          if (!task.piece.last) sums.to_the_right(args.k, args.v, task);
          if (!task.piece.first) sums.to_the_left(args.q, args.dout, task);
        });
    runner.template chain<true>(args.state_in, entering);
    runner.template chain<false>(args.dstate_out, gradients);
  }
  const auto tasks = std::get<BackwardTasks<T>>(backward_tasks());
  runner.run(
      [&](LinearTask<A>& task, int64_t p) {
        const int64_t run = task.piece.run;
        task.entering = chained ? runner.state(entering, p) : runner.state(args.state_in, run);
        task.right_entering =
            chained ? runner.state(gradients, p) : runner.state(args.dstate_out, run);
        task.right_leaving = task.piece.first ? runner.state(args.dstate_in, run) : nullptr;
        return true;
      },
      [&](const LinearTask<A>& task) { tasks.backward(args, task); });
}

// Both kinds of maps. `kRight`: to the right.
template <class T, bool kRight>
void write_maps(const Context& ctx, const LinearTokens& tokens, const ConstTensorView& left,
                const ConstTensorView& right, const TensorView& sums, const TensorView& log_decay) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const Runner<T> runner(ctx, tokens, left.dim(2), right.dim(2), PieceUse::kFree);
  const LinearSchedule& schedule = runner.schedule();
  const TensorView parts = schedule.chained() ? runner.allocate_states() : sums;
  if (ctx.measuring()) return;
  const auto tasks = std::get<SumTasks<T>>(sum_tasks());
  runner.run(
      [&](LinearTask<A>& task, int64_t p) {
        (kRight ? task.leaving : task.right_leaving) = runner.state(parts, p);
        return true;
      },
      [&](const LinearTask<A>& task) {
        (kRight ? tasks.to_the_right : tasks.to_the_left)(left, right, task);
      });
  if (schedule.chained()) runner.template join<kRight>(parts, sums);
  runner.write_log_decay(log_decay);
}

template <class T>
void maps(const Context& ctx, const LinearAttentionMaps& args) {
  write_maps<T, true>(ctx, args.tokens, args.k, args.v, args.sums, args.log_decay);
}

template <class T>
void backward_maps(const Context& ctx, const LinearAttentionBackwardMaps& args) {
  write_maps<T, false>(ctx, args.tokens, args.q, args.dout, args.sums, args.log_decay);
}

// Adds what reaches the rows of a run from the state at its left or the gradient at its right.
template <class T, bool kFromLeft, class Add>
void add_from(const Context& ctx, const LinearTokens& tokens, int64_t head_dim, int64_t value_dim,
              const ConstTensorView& states, const Add& add) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const Runner<T> runner(ctx, tokens, head_dim, value_dim, PieceUse::kFree);
  if (ctx.measuring()) return;
  runner.run(
      [&](LinearTask<A>& task, int64_t) {
        (kFromLeft ? task.entering : task.right_entering) = runner.state(states, task.piece.run);
        return !(kFromLeft ? task.piece.after_reset : task.piece.before_reset);
      },
      add);
}

template <class T>
void add_out(const Context& ctx, const LinearAttentionAddOut& args) {
  const auto tasks = std::get<ForwardTasks<T>>(forward_tasks());
  add_from<T, true>(ctx, args.tokens, args.q.dim(2), args.out_acc.dim(2), args.state_in,
                    [&](const auto& task) { tasks.add_out(args, task); });
}

template <class T>
void add_dq(const Context& ctx, const LinearAttentionAddDq& args) {
  const auto tasks = std::get<BackwardTasks<T>>(backward_tasks());
  add_from<T, true>(ctx, args.tokens, args.dq_acc.dim(2), args.dout.dim(2), args.state_in,
                    [&](const auto& task) { tasks.add_dq(args, task); });
}

template <class T>
void add_dk_dv(const Context& ctx, const LinearAttentionAddDkDv& args) {
  const auto tasks = std::get<BackwardTasks<T>>(backward_tasks());
  add_from<T, false>(ctx, args.tokens, args.k.dim(2), args.v.dim(2), args.dstate_out,
                     [&](const auto& task) { tasks.add_dk_dv(args, task); });
}

bool any_dim(int64_t, int64_t) { return true; }

template <class T>
constexpr LinearAttentionKernel row() {
  return {.name = "blocks",
          .dtype = dtype_of<T>,
          .available = always_available,
          .supports = any_dim,
          .forward = forward<T>,
          .backward = backward<T>,
          .maps = maps<T>,
          .backward_maps = backward_maps<T>,
          .add_out = add_out<T>,
          .add_dq = add_dq<T>,
          .add_dk_dv = add_dk_dv<T>,
          .head_slices = true,
          .overwrites = true};
}

constexpr LinearAttentionKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const LinearAttentionKernel> linear_attention_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
