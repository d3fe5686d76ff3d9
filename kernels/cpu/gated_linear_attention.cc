// The table of gated linear attention kernels, and how their tasks run on the threads.
#include "kernels/gated_linear_attention.h"

#include "kernels/cpu/gated_runner.h"
#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

template <class T>
void forward(const Context& ctx, const GatedLinearAttentionForward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const GatedRunner<T> runner(ctx, args.tokens, args.v.dim(2), PieceUse::kFollow);
  const bool chained = runner.schedule().chained();
  const TensorView entering = chained ? runner.allocate_states() : TensorView();
  const TensorView gates = chained ? runner.allocate_gates() : TensorView();
  if (ctx.measuring()) return;
  if (chained) {
    const auto sums = std::get<GatedSumTasks<T>>(gated_sum_tasks());
    runner.sum_gates(gates);
    runner.run(
        [&](GatedTask<A>& task, int64_t p) {
          task.leaving = runner.state(entering, p + 1);
          return !task.piece.last;
        },
        [&](const GatedTask<A>& task) {
          sums.to_the_right(args.tokens.log_gate, args.k, args.v, task);
        });
    runner.template chain<true>(gates, args.state_in, entering);
  }
  const auto tasks = std::get<GatedForwardTasks<T>>(gated_forward_tasks());
  runner.run(
      [&](GatedTask<A>& task, int64_t p) {
        task.entering =
            chained ? runner.state(entering, p) : runner.state(args.state_in, task.piece.run);
        task.leaving = task.piece.last ? runner.state(args.state_out, task.piece.run) : nullptr;
        return true;
      },
      [&](const GatedTask<A>& task) { tasks.forward(args, task); });
}

template <class T>
void backward(const Context& ctx, const GatedLinearAttentionBackward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const GatedRunner<T> runner(ctx, args.tokens, args.v.dim(2), PieceUse::kFollow);
  const bool chained = runner.schedule().chained();
  const TensorView entering = chained ? runner.allocate_states() : TensorView();
  const TensorView gradients = chained ? runner.allocate_states() : TensorView();
  const TensorView gates = chained ? runner.allocate_gates() : TensorView();
  if (ctx.measuring()) return;
  if (chained) {
    const auto sums = std::get<GatedSumTasks<T>>(gated_sum_tasks());
    runner.sum_gates(gates);
    runner.run(
        [&](GatedTask<A>& task, int64_t p) {
          task.leaving = runner.state(entering, p + 1);
          task.right_leaving = runner.state(gradients, p - 1);
          return true;
        },
        [&](const GatedTask<A>& task) {
          const ConstTensorView& log_gate = args.tokens.log_gate;
          if (!task.piece.last) sums.to_the_right(log_gate, args.k, args.v, task);
          if (!task.piece.first) sums.to_the_left(log_gate, args.q, args.dout, task);
        });
    runner.template chain<true>(gates, args.state_in, entering);
    runner.template chain<false>(gates, args.dstate_out, gradients);
  }
  const auto tasks = std::get<GatedBackwardTasks<T>>(gated_backward_tasks());
  runner.run(
      [&](GatedTask<A>& task, int64_t p) {
        const int64_t run = task.piece.run;
        task.entering = chained ? runner.state(entering, p) : runner.state(args.state_in, run);
        task.right_entering =
            chained ? runner.state(gradients, p) : runner.state(args.dstate_out, run);
        task.right_leaving = task.piece.first ? runner.state(args.dstate_in, run) : nullptr;
        return true;
      },
      [&](const GatedTask<A>& task) { tasks.backward(args, task); });
}

// Both kinds of maps. `kRight`: to the right.
template <class T, bool kRight>
void write_maps(const Context& ctx, const GatedTokens& tokens, const ConstTensorView& left,
                const ConstTensorView& right, const TensorView& sums, const TensorView& log_decay) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const GatedRunner<T> runner(ctx, tokens, right.dim(2), PieceUse::kFree);
  const LinearSchedule& schedule = runner.schedule();
  const TensorView parts = schedule.chained() ? runner.allocate_states() : sums;
  const TensorView gates = runner.allocate_gates();
  if (ctx.measuring()) return;
  const auto tasks = std::get<GatedSumTasks<T>>(gated_sum_tasks());
  runner.sum_gates(gates);
  runner.run(
      [&](GatedTask<A>& task, int64_t p) {
        (kRight ? task.leaving : task.right_leaving) = runner.state(parts, p);
        return true;
      },
      [&](const GatedTask<A>& task) {
        (kRight ? tasks.to_the_right : tasks.to_the_left)(tokens.log_gate, left, right, task);
      });
  if (schedule.chained()) runner.template join<kRight>(gates, parts, sums);
  runner.write_log_decay(gates, log_decay);
}

template <class T>
void maps(const Context& ctx, const GatedLinearAttentionMaps& args) {
  write_maps<T, true>(ctx, args.tokens, args.k, args.v, args.sums, args.log_decay);
}

template <class T>
void backward_maps(const Context& ctx, const GatedLinearAttentionBackwardMaps& args) {
  write_maps<T, false>(ctx, args.tokens, args.q, args.dout, args.sums, args.log_decay);
}

// Adds what reaches the rows of a run from the state at its left or the gradient at its right.
template <class T, bool kFromLeft, class Add>
void add_from(const Context& ctx, const GatedTokens& tokens, int64_t value_dim,
              const ConstTensorView& states, const Add& add) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const GatedRunner<T> runner(ctx, tokens, value_dim, PieceUse::kFree);
  const TensorView gates = runner.allocate_gates();
  if (ctx.measuring()) return;
  runner.sum_gates(gates);
  runner.template sum_outside<kFromLeft>(gates);
  runner.run(
      [&](GatedTask<A>& task, int64_t p) {
        (kFromLeft ? task.entering : task.right_entering) = runner.state(states, task.piece.run);
        (kFromLeft ? task.gates_before : task.gates_after) = runner.gates(gates, p);
        return !(kFromLeft ? task.piece.after_reset : task.piece.before_reset);
      },
      add);
}

template <class T>
void add_out(const Context& ctx, const GatedLinearAttentionAddOut& args) {
  const auto tasks = std::get<GatedForwardTasks<T>>(gated_forward_tasks());
  add_from<T, true>(ctx, args.tokens, args.out_acc.dim(2), args.state_in,
                    [&](const auto& task) { tasks.add_out(args, task); });
}

template <class T>
void add_dq(const Context& ctx, const GatedLinearAttentionAddDq& args) {
  const auto tasks = std::get<GatedBackwardTasks<T>>(gated_backward_tasks());
  add_from<T, true>(ctx, args.tokens, args.dout.dim(2), args.state_in,
                    [&](const auto& task) { tasks.add_dq(args, task); });
}

template <class T>
void add_dk_dv(const Context& ctx, const GatedLinearAttentionAddDkDv& args) {
  const auto tasks = std::get<GatedBackwardTasks<T>>(gated_backward_tasks());
  add_from<T, false>(ctx, args.tokens, args.v.dim(2), args.dstate_out,
                     [&](const auto& task) { tasks.add_dk_dv(args, task); });
}

// state_in . dstate_in, for columns from `first` on.
template <class A>
void begin_sums(const GatedLinearAttentionGateGradient& args, int64_t run, int64_t first,
                std::vector<double>& sums) {
  std::fill(sums.begin(), sums.end(), 0.0);
  if (!present(args.state_in) || !present(args.dstate_in)) return;
  const int64_t value_dim = args.state_in.dim(3), columns = args.q.dim(1) * args.q.dim(2);
  for (size_t c = 0; c < sums.size(); ++c) {
    const int64_t at = (run * columns + first + static_cast<int64_t>(c)) * value_dim;
    const A* state = args.state_in.data<A>() + at;
    const A* gradient = args.dstate_in.data<A>() + at;
    for (int64_t e = 0; e < value_dim; ++e) {
      sums[c] += static_cast<double>(state[e]) * static_cast<double>(gradient[e]);
    }
  }
}

// One row of columns [begin, end) of [H, D], all of one head.
template <class T>
void add_columns(const GatedLinearAttentionGateGradient& args, int64_t row, int64_t begin,
                 int64_t end, double* sums) {
  using A = Accumulator<T>;
  const int64_t dim = args.q.dim(2), columns = args.q.dim(1) * dim;
  const int64_t h = begin / dim, at = row * columns + begin;
  const auto of_head = [&](const ConstTensorView& x) {
    return x.data<T>() + row * x.stride(0) + h * x.stride(1) + begin % dim;
  };
  // Below, e^gate is less than a normal number.
  constexpr double kLog2 = 0.69314718055994530942;
  constexpr A kClosed = static_cast<A>((std::numeric_limits<A>::min_exponent - 1) * kLog2);
  const T *q = of_head(args.q), *k = of_head(args.k);
  const A* gate = args.tokens.log_gate.data<A>() + at;
  const A *dq = args.dq.data<A>() + at, *dk = args.dk.data<A>() + at;
  A* out = args.dlog_gate.data<A>() + at;
  for (int64_t c = 0; c < end - begin; ++c) {
    const double sum = gate[c] < kClosed ? 0.0 : sums[c];
    out[c] = static_cast<A>(sum);
    sums[c] = sum + (static_cast<double>(static_cast<A>(k[c])) * static_cast<double>(dk[c]) -
                     static_cast<double>(static_cast<A>(q[c])) * static_cast<double>(dq[c]));
  }
}

template <class T>
void gate_gradient(const Context& ctx, const GatedLinearAttentionGateGradient& args) {
  using A = Accumulator<T>;
  if (ctx.measuring()) return;
  constexpr int64_t kGrain = 128;  // rows in parts as long as that are read fast
  const int64_t heads = args.q.dim(1), dim = args.q.dim(2), columns = heads * dim;
  const auto documents = args.tokens.document_begins;
  ctx.parallel_for(columns, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(end - begin));
    for (size_t r = 0; r < args.tokens.runs.size(); ++r) {
      const LinearRun& run = args.tokens.runs[r];
      auto document = std::lower_bound(documents.begin(), documents.end(), run.begin);
      for (int64_t row = run.begin; row < run.begin + run.length; ++row) {
        if (document != documents.end() && *document == row) {
          std::fill(sums.begin(), sums.end(), 0.0);
          ++document;
        } else if (row == run.begin) {
          begin_sums<A>(args, static_cast<int64_t>(r), begin, sums);
        }
        for (int64_t c = begin; c < end;) {
          const int64_t next = std::min(end, (c / dim + 1) * dim);
          add_columns<T>(args, row, c, next, sums.data() + (c - begin));
          c = next;
        }
      }
    }
  });
}

bool any_dim(int64_t, int64_t) { return true; }

template <class T>
constexpr GatedLinearAttentionKernel row() {
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
          .gate_gradient = gate_gradient<T>};
}

constexpr GatedLinearAttentionKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const GatedLinearAttentionKernel> gated_linear_attention_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
