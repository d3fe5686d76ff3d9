// The table of kernels of the gated delta rule, and how their tasks run on the threads.
#include "kernels/delta_rule.h"

#include "kernels/cpu/delta_schedule.h"
#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

bool present(const ConstTensorView& view) { return view.rank() > 0; }

// Runs in blocks, one task for each run and head. The memory of `threads` workers; kept states only
// where asked for.
template <class T>
class DeltaRunner {
  using A = Accumulator<T>;

 public:
  DeltaRunner(const Context& ctx, const DeltaTokens& tokens, int64_t head_dim, int64_t value_dim,
              bool keeps_states)
      : ctx_(ctx),
        head_dim_(head_dim),
        value_dim_(value_dim),
        schedule_(tokens.runs, tokens.document_begins, tokens.log_gate.dim(1), sizeof(A), 1,
                  PieceUse::kFollow) {
    if (keeps_states) {
      for (const LinearPiece& run : schedule_.pieces) {
        const auto blocks = static_cast<int64_t>(run.block_end - run.block_begin);
        segments_ = std::max(segments_, rounded_up(blocks, kDeltaSegment) / kDeltaSegment);
      }
    }
    const DeltaScratch<A> size(nullptr, head_dim, value_dim, segments_);
    scratch_ = ctx.scratch->allocate(dtype_of<A>, {ctx.pool->threads(), size.elements});
  }

  // One head of one run of a tensor of states [R, H, D, columns]; null if it is absent.
  template <class Bytes>
  static auto* state(const BasicTensorView<Bytes>& states, const DeltaTask<A>& task) {
    using Pointer = decltype(states.template data<A>());
    if (!present(states)) return Pointer(nullptr);
    const int64_t number = task.run.run * states.dim(1) + task.head;
    return states.template data<A>() + number * states.dim(2) * states.dim(3);
  }

  // work(task) sets its states and does the work.
  template <class Work>
  void run(Work&& work) const {
    const auto runs = static_cast<int64_t>(schedule_.pieces.size());
    ctx_.pool->run(
        runs * schedule_.heads,
        [&](int64_t number, int worker) {
          const auto run_number = static_cast<size_t>(number / schedule_.heads);
          const LinearPiece& run = schedule_.pieces[run_number];
          const DeltaScratch<A> memory(scratch_.template data<A>() + worker * scratch_.dim(1),
                                       head_dim_, value_dim_, segments_);
          Poller poller(ctx_, worker);
          DeltaTask<A> task{.run = run,
                            .blocks = schedule_.blocks_of(run),
                            .head = number % schedule_.heads,
                            .scratch = memory,
                            .poller = poller};
          work(task);
        },
        ctx_.poll);
  }

 private:
  const Context& ctx_;
  const int64_t head_dim_, value_dim_;
  const LinearSchedule schedule_;
  int64_t segments_ = 0;
  TensorView scratch_;
};

template <class T>
void forward(const Context& ctx, const DeltaRuleForward& args) {
  const Arena::Scope scope(*ctx.scratch);
  const DeltaRunner<T> runner(ctx, args.tokens, args.q.dim(2), args.v.dim(2), false);
  if (ctx.measuring()) return;
  const auto tasks = std::get<DeltaForwardTasks<T>>(delta_forward_tasks());
  runner.run([&](auto& task) {
    task.entering = runner.state(args.state_in, task);
    task.leaving = runner.state(args.state_out, task);
    tasks.forward(args, task);
  });
}

template <class T>
void backward(const Context& ctx, const DeltaRuleBackward& args) {
  const Arena::Scope scope(*ctx.scratch);
  const DeltaRunner<T> runner(ctx, args.tokens, args.q.dim(2), args.v.dim(2), true);
  if (ctx.measuring()) return;
  const auto tasks = std::get<DeltaBackwardTasks<T>>(delta_backward_tasks());
  runner.run([&](auto& task) {
    task.entering = runner.state(args.state_in, task);
    task.right_entering = runner.state(args.dstate_out, task);
    task.right_leaving = runner.state(args.dstate_in, task);
    tasks.backward(args, task);
  });
}

template <class T>
void maps(const Context& ctx, const DeltaRuleMaps& args) {
  const Arena::Scope scope(*ctx.scratch);
  const DeltaRunner<T> runner(ctx, args.tokens, args.k.dim(2), args.v.dim(2), false);
  if (ctx.measuring()) return;
  const auto tasks = std::get<DeltaForwardTasks<T>>(delta_forward_tasks());
  runner.run([&](auto& task) {
    task.leaving = runner.state(args.sums, task);
    task.transition = runner.state(args.transition, task);
    tasks.to_the_right(args.tokens, args.k, args.v, task);
  });
}

template <class T>
void backward_maps(const Context& ctx, const DeltaRuleBackwardMaps& args) {
  const Arena::Scope scope(*ctx.scratch);
  const DeltaRunner<T> runner(ctx, args.tokens, args.k.dim(2), args.dout.dim(2), false);
  if (ctx.measuring()) return;
  const auto forward_tasks = std::get<DeltaForwardTasks<T>>(delta_forward_tasks());
  const auto tasks = std::get<DeltaBackwardTasks<T>>(delta_backward_tasks());
  runner.run([&](auto& task) {
    task.right_leaving = runner.state(args.sums, task);
    tasks.to_the_left(args, task);
    task.transition = runner.state(args.transition, task);
    if (task.transition == nullptr) return;
    forward_tasks.to_the_right(args.tokens, args.k, args.dout, task);  // no sums, so not of dout
  });
}

bool any_dim(int64_t, int64_t) { return true; }

template <class T>
constexpr DeltaRuleKernel row() {
  return {.name = "blocks",
          .dtype = dtype_of<T>,
          .available = always_available,
          .supports = any_dim,
          .forward = forward<T>,
          .backward = backward<T>,
          .maps = maps<T>,
          .backward_maps = backward_maps<T>};
}

constexpr DeltaRuleKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const DeltaRuleKernel> delta_rule_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
