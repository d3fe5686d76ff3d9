// The operations of gated linear attention as passes over rows (gated_linear_attention_passes.h),
// parallel over pieces of runs, heads and columns as those of a scalar decay are: first the states
// that pieces add up alone, then a scan over the pieces, then the pieces' rows.
#include "kernels/cuda/gated_linear_attention_passes.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_attention_place.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <class A>
struct GatedScan {
  A* states;             // [P, H, D, Dv]: sums of pieces; on return what enters them
  const double* decays;  // [P, H, D], of pieces
  const A* in;           // [R, H, D, Dv] what enters the runs; zeros if none
  A* out;                // [R, H, D, Dv] what leaves them, if wanted
  int64_t head_dim, value_dim;
};

// A thread has one element of one head's states and walks through a run's pieces.
template <class A, bool kRight>
__global__ void scan_kernel(LinearWork work, GatedScan<A> scan, int64_t blocks_per_head) {
  const int64_t elements = scan.head_dim * scan.value_dim;
  const int64_t head = blockIdx.x / blocks_per_head % work.heads;
  const int64_t run = blockIdx.x / blocks_per_head / work.heads;
  const int64_t e = blockIdx.x % blocks_per_head * blockDim.x + threadIdx.x;
  if (e >= elements) return;
  const auto at = [&](int64_t number) { return (number * work.heads + head) * elements + e; };
  A state = scan.in != nullptr ? scan.in[at(run)] : A(0);
  const int64_t begin = work.run_begins[run], count = work.run_begins[run + 1] - begin;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t number = kRight ? begin + n : begin + count - 1 - n;
    // Nothing follows the last piece's, and nothing has added it up, unless it is wanted.
    const bool follows = n + 1 < count || scan.out != nullptr;
    const A sum = follows ? scan.states[at(number)] : A(0);
    scan.states[at(number)] = state;
    // To twice the precision: its rounding error would add up over the pieces.
    const double decay =
        scan.decays[(number * work.heads + head) * scan.head_dim + e / scan.value_dim];
    const A rounded = static_cast<A>(decay);
    const A rest = static_cast<A>(decay - static_cast<double>(rounded));
    state = work.pieces[number].resets ? sum : rounded * state + (rest * state + sum);
  }
  if (scan.out != nullptr) scan.out[at(run)] = state;
}

template <class T>
class Call : public GatedCall {
 public:
  using A = Accumulator<T>;
  using Passes = GatedPasses<T>;

  Call(const Context& ctx_, const GatedTokens& of, int64_t value_dim_)
      : GatedCall(ctx_, of, value_dim_, kGatedRows), log_gate_(of.log_gate.data<A>()) {}

  // Room for what pieces add up to and their decays; none where a run is one piece at most.
  void allocate_scan() {
    if (rows <= piece_rows) return;
    const int64_t pieces = most_pieces(rows, static_cast<int64_t>(tokens.runs.size()), piece_rows);
    states_ = ctx.scratch->allocate(dtype_of<A>, {pieces, heads, head_dim, value_dim});
    decays_ = allocate_gates();
  }
  void allocate_sums() { sums_ = allocate_gates(); }

  // After all scratch was allocated.
  void begin() {
    work_ = start();
    if (sums_.rank() == 0 || tokens.runs.empty()) return;
    sum_gates(ctx, work_, log_gate_, static_cast<int>(head_dim), sums_.template data<double>(),
              decays_.rank() > 0 ? decays_.template data<double>() : nullptr);
  }

  GatedPass<T> pass() const {
    GatedPass<T> pass;
    pass.log_gate = log_gate_;
    pass.head_dim = static_cast<int>(head_dim);
    pass.value_dim = static_cast<int>(value_dim);
    if (sums_.rank() > 0) pass.gate_sums = sums_.template data<double>();
    return pass;
  }
  template <bool kRight, GatedUse kUse>
  void values(const GatedPass<T>& pass) const {
    Passes::template values<kRight, kUse>(ctx, work_, pass);
  }
  template <bool kRight, GatedUse kUse>
  void keys(const GatedPass<T>& pass) const {
    Passes::template keys<kRight, kUse>(ctx, work_, pass);
  }

  // What enters every piece, from what enters the runs and the operands in `pass`.
  template <bool kRight>
  LinearStates<const A> entering(const GatedPass<T>& pass, const ConstTensorView& of_runs) const {
    const A* in = of_runs.rank() > 0 ? of_runs.data<A>() : nullptr;
    if (!chained) return {.p = in, .by_run = true};
    sums<kRight>(pass, states_.template data<A>(), false);
    scan<kRight>(in, nullptr);
    return {.p = states_.template data<A>()};
  }

  template <bool kRight>
  void maps(const GatedPass<T>& pass, const TensorView& to, const TensorView& log_decay) const {
    sums<kRight>(pass, (chained ? states_ : to).template data<A>(), true);
    if (chained) scan<kRight>(nullptr, to.data<A>());
    write_log_decay(ctx, work_, sums_.template data<double>(), static_cast<int>(head_dim),
                    log_decay.data<A>());
  }

 private:
  template <bool kRight>
  void sums(GatedPass<T> pass, A* to, bool all) const {
    pass.entering = {};
    pass.leaving = {.p = to};
    pass.all = all;
    values<kRight, GatedUse::kSums>(pass);
  }
  template <bool kRight>
  void scan(const A* in, A* out) const {
    constexpr int kThreadsOfScan = 256;
    const int64_t blocks = (head_dim * value_dim + kThreadsOfScan - 1) / kThreadsOfScan;
    launch(ctx, "gated linear attention: scan", scan_kernel<A, kRight>,
           {.blocks = dim3(static_cast<unsigned>(blocks * heads * work_.run_count)),
            .threads = dim3(kThreadsOfScan)},
           work_,
           GatedScan<A>{.states = states_.template data<A>(),
                        .decays = decays_.template data<double>(),
                        .in = in,
                        .out = out,
                        .head_dim = head_dim,
                        .value_dim = value_dim},
           blocks);
  }

  const A* log_gate_;
  LinearWork work_;
  TensorView states_, decays_, sums_;
};

// A state or gradient by run that a pass leaves behind.
template <class A>
LinearStates<A> by_run(const TensorView& states) {
  return {.p = states.rank() > 0 ? states.data<A>() : nullptr, .by_run = true};
}

template <class T>
void forward(const Context& ctx, const GatedLinearAttentionForward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.v.dim(2));
  call.allocate_scan();
  if (call.rows > call.piece_rows) call.allocate_sums();
  if (ctx.measuring()) return;
  call.begin();
  GatedPass<T> pass = call.pass();
  pass.q = operand<T>(args.q);
  pass.k = operand<T>(args.k);
  pass.v = operand<T>(args.v);
  pass.entering = call.template entering<true>(pass, args.state_in);
  pass.leaving = by_run<A>(args.state_out);
  pass.result = args.out_acc.data<A>();
  call.template values<true, GatedUse::kFollow>(pass);
}

template <class T>
void backward(const Context& ctx, const GatedLinearAttentionBackward& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.v.dim(2));
  // States first, then gradients: they are not needed at the same time.
  call.allocate_scan();
  if (call.rows > call.piece_rows) call.allocate_sums();
  if (ctx.measuring()) return;
  call.begin();
  GatedPass<T> pass = call.pass();
  pass.q = operand<T>(args.q);
  pass.k = operand<T>(args.k);
  pass.v = operand<T>(args.v);
  pass.dout = operand<T>(args.dout);
  pass.add = true;
  pass.entering = call.template entering<true>(pass, args.state_in);
  pass.result = args.dq_acc.data<A>();
  call.template keys<true, GatedUse::kFollow>(pass);
  pass.entering = call.template entering<false>(pass, args.dstate_out);
  pass.result = args.dk_acc.data<A>();
  call.template keys<false, GatedUse::kFollow>(pass);
  // The last one, since dstate_in may lie where dstate_out or state_in does.
  pass.leaving = by_run<A>(args.dstate_in);
  pass.result = args.dv_acc.data<A>();
  call.template values<false, GatedUse::kFollow>(pass);
}

template <class T>
void maps(const Context& ctx, const GatedLinearAttentionMaps& args) {
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.v.dim(2));
  call.allocate_scan();
  call.allocate_sums();
  if (ctx.measuring()) return;
  call.begin();
  GatedPass<T> pass = call.pass();
  pass.k = operand<T>(args.k);
  pass.v = operand<T>(args.v);
  call.template maps<true>(pass, args.sums, args.log_decay);
}

template <class T>
void backward_maps(const Context& ctx, const GatedLinearAttentionBackwardMaps& args) {
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, args.tokens, args.dout.dim(2));
  call.allocate_scan();
  call.allocate_sums();
  if (ctx.measuring()) return;
  call.begin();
  GatedPass<T> pass = call.pass();
  pass.q = operand<T>(args.q);
  pass.dout = operand<T>(args.dout);
  call.template maps<false>(pass, args.sums, args.log_decay);
}

// body(call, pass) with the states of runs in the pass.
template <class T, class Body>
void add(const Context& ctx, const GatedTokens& tokens, int64_t value_dim,
         const ConstTensorView& states, Body&& body) {
  const Arena::Scope scope(*ctx.scratch);
  Call<T> call(ctx, tokens, value_dim);
  call.allocate_sums();
  if (ctx.measuring()) return;
  call.begin();
  GatedPass<T> pass = call.pass();
  pass.entering = {.p = states.data<Accumulator<T>>(), .by_run = true};
  body(call, pass);
}

template <class T>
void add_out(const Context& ctx, const GatedLinearAttentionAddOut& args) {
  add<T>(ctx, args.tokens, args.out_acc.dim(2), args.state_in,
         [&](const Call<T>& call, GatedPass<T>& pass) {
           pass.q = operand<T>(args.q);
           pass.result = args.out_acc.data<Accumulator<T>>();
           call.template values<true, GatedUse::kAdd>(pass);
         });
}

template <class T>
void add_dq(const Context& ctx, const GatedLinearAttentionAddDq& args) {
  add<T>(ctx, args.tokens, args.dout.dim(2), args.state_in,
         [&](const Call<T>& call, GatedPass<T>& pass) {
           pass.dout = operand<T>(args.dout);
           pass.result = args.dq_acc.data<Accumulator<T>>();
           call.template keys<true, GatedUse::kAdd>(pass);
         });
}

template <class T>
void add_dk_dv(const Context& ctx, const GatedLinearAttentionAddDkDv& args) {
  add<T>(ctx, args.tokens, args.v.dim(2), args.dstate_out,
         [&](const Call<T>& call, GatedPass<T>& pass) {
           pass.k = operand<T>(args.k);
           pass.v = operand<T>(args.v);
           pass.result = args.dk_acc.data<Accumulator<T>>();
           call.template keys<false, GatedUse::kAdd>(pass);
           pass.result = args.dv_acc.data<Accumulator<T>>();
           call.template values<false, GatedUse::kAdd>(pass);
         });
}

bool up_to_most(int64_t head_dim, int64_t value_dim) {
  return head_dim <= kMostLinearDim && value_dim <= kMostLinearDim;
}

template <class T>
constexpr GatedLinearAttentionKernel row() {
  return {.name = "cuda-simt",
          .dtype = dtype_of<T>,
          .available = available,
          .supports = up_to_most,
          .forward = forward<T>,
          .backward = backward<T>,
          .maps = maps<T>,
          .backward_maps = backward_maps<T>,
          .add_out = add_out<T>,
          .add_dq = add_dq<T>,
          .add_dk_dv = add_dk_dv<T>,
          .gate_gradient = gated_gate_gradient<T>};
}

constexpr GatedLinearAttentionKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const GatedLinearAttentionKernel> gated_linear_attention_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
