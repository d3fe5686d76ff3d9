// The operations of the gated delta rule as passes over rows (delta_rule_passes.h).
#include <vector>

#include "kernels/cuda/delta_rule_passes.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

int64_t rounded_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

template <class T>
class Call {
 public:
  using A = Accumulator<T>;

  // piece_rows 0: runs in one piece.
  Call(const Context& ctx, const DeltaTokens& tokens, int64_t head_dim, int64_t value_dim,
       int64_t piece_rows)
      : ctx_(ctx),
        tokens_(tokens),
        slopes_(static_cast<size_t>(tokens.log_gate.dim(1))),
        linear_{.runs = tokens.runs, .document_begins = tokens.document_begins, .slopes = slopes_},
        rows_(tokens.log_gate.dim(0)),
        head_dim_(head_dim),
        value_dim_(value_dim),
        piece_rows_(piece_rows > 0 ? piece_rows
                                   : rounded_up(std::max<int64_t>(rows_, 1), kDeltaRows)),
        memory_(linear_work_memory(ctx, linear_, rows_, kDeltaRows, piece_rows_)) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // After all scratch was allocated.
  void start() {
    const LinearWorkList list = linear_work(linear_, kDeltaRows, piece_rows_);
    for (int64_t r = 0; r < runs(); ++r) {
      const auto at = static_cast<size_t>(r);
      steps_ = std::max(steps_, list.run_begins[at + 1] - list.run_begins[at]);
    }
    work_ = place(ctx_, linear_, list, memory_);
  }

  const LinearWork& work() const { return work_; }
  int64_t runs() const { return static_cast<int64_t>(tokens_.runs.size()); }
  int64_t heads() const { return tokens_.log_gate.dim(1); }
  int64_t steps() const { return steps_; }  // the most pieces of a run
  int64_t state_elements() const { return head_dim_ * value_dim_; }

  DeltaPass<T> pass() const {
    DeltaPass<T> pass;
    pass.log_gate = tokens_.log_gate.data<A>();
    pass.beta = tokens_.beta.data<A>();
    pass.head_dim = static_cast<int>(head_dim_);
    pass.columns = static_cast<int>(value_dim_);
    return pass;
  }

  // A state for each piece, or each run.
  TensorView allocate_pieces() const {
    return ctx_.scratch->allocate(
        dtype_of<A>, {most_pieces(rows_, runs(), piece_rows_), heads(), head_dim_, value_dim_});
  }
  TensorView allocate_runs() const {
    return ctx_.scratch->allocate(dtype_of<A>, {runs(), heads(), head_dim_, value_dim_});
  }
  DeltaKept<A> allocate_kept() const {
    const int64_t chunks = std::min(piece_rows_, rounded_up(rows_, kDeltaRows)) / kDeltaRows;
    const int64_t slots = runs() * chunks;
    const auto states = [&] {
      return ctx_.scratch->allocate(dtype_of<A>, {slots, heads(), head_dim_, value_dim_})
          .template data<A>();
    };
    const auto values = [&] {
      return ctx_.scratch->allocate(dtype_of<A>, {slots * kDeltaRows, heads(), value_dim_})
          .template data<A>();
    };
    const auto numbers = [&](int64_t dim, int64_t each) {
      const int64_t tiles = rounded_up(dim, kDeltaRows) / kDeltaRows;
      return ctx_.scratch->allocate(DType::kF64, {slots, heads(), tiles * each})
          .template data<double>();
    };
    return {.states = states(),
            .gradients = states(),
            .y = values(),
            .r = values(),
            .products = numbers(value_dim_, 1),
            .terms = numbers(head_dim_, kDeltaRows),
            .chunks = chunks};
  }

 private:
  const Context& ctx_;
  const DeltaTokens& tokens_;
  const std::vector<double> slopes_;  // zeros, one a head
  const LinearTokens linear_;
  int64_t rows_, head_dim_, value_dim_, piece_rows_, steps_ = 0;
  TensorView memory_;
  LinearWork work_;
};

template <class A>
LinearStates<const A> states_from(const ConstTensorView& states, bool by_run = true) {
  return {.p = states.rank() > 0 ? states.data<A>() : nullptr, .by_run = by_run};
}
template <class A>
LinearStates<A> states_to(const TensorView& states, bool by_run = true) {
  return {.p = states.rank() > 0 ? states.data<A>() : nullptr, .by_run = by_run};
}

template <class T>
void forward(const Context& ctx, const DeltaRuleForward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.q.dim(2), args.v.dim(2), 0);
  if (ctx.measuring()) return;
  call.start();
  DeltaPass<T> pass = call.pass();
  pass.q = operand<T>(args.q);
  pass.k = operand<T>(args.k);
  pass.v = operand<T>(args.v);
  pass.entering_run = states_from<A>(args.state_in);
  pass.leaving_run = states_to<A>(args.state_out);
  pass.out = args.out_acc.data<A>();
  DeltaPasses<T>::right(ctx, call.work(), pass);
}

template <class T>
void backward(const Context& ctx, const DeltaRuleBackward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.q.dim(2), args.v.dim(2), kDeltaPieceRows);
  const TensorView states = call.allocate_pieces(), gradients = call.allocate_runs();
  const DeltaKept<A> kept = call.allocate_kept();
  if (ctx.measuring()) return;
  call.start();
  DeltaPass<T> right = call.pass();
  right.k = operand<T>(args.k);
  right.v = operand<T>(args.v);
  right.entering_run = states_from<A>(args.state_in);
  right.entering = states_from<A>(states, false);
  // What leaves a piece enters the next one.
  right.leaving = {.p = states.data<A>() + call.heads() * call.state_elements()};
  for (right.step = 0; right.step + 1 < call.steps(); ++right.step) {
    DeltaPasses<T>::right(ctx, call.work(), right);
  }
  right.leaving = {};
  right.kept = kept;
  DeltaPass<T> left = call.pass();
  left.q = operand<T>(args.q);
  left.k = operand<T>(args.k);
  left.dout = operand<T>(args.dout);
  left.entering_run = states_from<A>(args.dstate_out);
  left.entering = states_from<A>(gradients);
  left.leaving_run = states_to<A>(args.dstate_in);
  left.leaving = states_to<A>(gradients);
  left.dq = args.dq_acc.data<A>();
  left.dk = args.dk_acc.data<A>();
  left.dv = args.dv_acc.data<A>();
  left.dlog_gate = args.dlog_gate.data<A>();
  left.dbeta = args.dbeta.data<A>();
  left.kept = kept;
  for (int64_t step = call.steps(); step-- > 0;) {
    right.step = left.step = step;
    DeltaPasses<T>::right(ctx, call.work(), right);
    DeltaPasses<T>::left(ctx, call.work(), left);
    DeltaPasses<T>::keys(ctx, call.work(), left);
  }
}

template <class T>
void write_transition(const Context& ctx, const Call<T>& call, const ConstTensorView& k,
                      const TensorView& transition) {
  DeltaPass<T> pass = call.pass();
  pass.k = operand<T>(k);
  pass.columns = pass.head_dim;
  pass.identity = true;
  pass.leaving_run = states_to<Accumulator<T>>(transition);
  DeltaPasses<T>::right(ctx, call.work(), pass);
}

template <class T>
void maps(const Context& ctx, const DeltaRuleMaps& args) {
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.k.dim(2), args.v.dim(2), 0);
  if (ctx.measuring()) return;
  call.start();
  DeltaPass<T> pass = call.pass();
  pass.k = operand<T>(args.k);
  pass.v = operand<T>(args.v);
  pass.leaving_run = states_to<Accumulator<T>>(args.sums);
  DeltaPasses<T>::right(ctx, call.work(), pass);
  write_transition(ctx, call, args.k, args.transition);
}

template <class T>
void backward_maps(const Context& ctx, const DeltaRuleBackwardMaps& args) {
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.k.dim(2), args.dout.dim(2), 0);
  if (ctx.measuring()) return;
  call.start();
  DeltaPass<T> pass = call.pass();
  pass.q = operand<T>(args.q);
  pass.k = operand<T>(args.k);
  pass.dout = operand<T>(args.dout);
  pass.leaving_run = states_to<Accumulator<T>>(args.sums);
  DeltaPasses<T>::left(ctx, call.work(), pass);
  if (args.transition.rank() > 0) write_transition(ctx, call, args.k, args.transition);
}

bool up_to_most(int64_t head_dim, int64_t value_dim) {
  return head_dim <= kMostLinearDim && value_dim <= kMostLinearDim;
}

template <class T>
constexpr DeltaRuleKernel row() {
  return {.name = "cuda-simt",
          .dtype = dtype_of<T>,
          .available = available,
          .supports = up_to_most,
          .forward = forward<T>,
          .backward = backward<T>,
          .maps = maps<T>,
          .backward_maps = backward_maps<T>};
}

constexpr DeltaRuleKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const DeltaRuleKernel> delta_rule_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
