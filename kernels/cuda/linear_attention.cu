// The operations of linear attention as passes over rows (linear_attention_passes.h), parallel over
// pieces of runs, heads and columns: first the states that pieces add up alone, then a scan over
// the pieces, which gives what enters each, then the pieces' rows. So one long run fills a GPU.
// Where a run is one piece, only the last is left.
//
// Traffic per token and head in bytes, with b of an operand's element (2 in bf16), g = 4 of an
// accumulator's and m tokens a piece: forward (2 D + 2 Dv) b of k and v, which are read twice, D b
// of q, Dv g of results, and 4 D Dv g / m of states; at D = Dv = 128 in bf16 some 1.8 kB for 82
// kFLOP. Tensor cores have time for more than that while memory delivers it, so memory is the
// bound. (A block has 32 columns of z; that others of its head read x and y too is left to the L2
// cache.)
#include <limits>

#include "kernels/core/transfer.h"
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/linear_attention_place.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <class A>
struct Scan {
  A* states;             // [P, H, D, Dv]: sums of pieces; on return what enters them
  const A* in;           // [R, H, D, Dv] what enters the runs; zeros if none
  A* out = nullptr;      // [R, H, D, Dv] what leaves them, if wanted
  int64_t elements = 0;  // D Dv
};

// A thread has one element of one head's states and walks through a run's pieces.
template <class A, bool kRight>
__global__ void scan_kernel(LinearWork work, Scan<A> scan, int64_t blocks_per_head) {
  const int64_t head = blockIdx.x / blocks_per_head % work.heads;
  const int64_t run = blockIdx.x / blocks_per_head / work.heads;
  const int64_t e = blockIdx.x % blocks_per_head * blockDim.x + threadIdx.x;
  if (e >= scan.elements) return;
  const auto at = [&](int64_t number) { return (number * work.heads + head) * scan.elements + e; };
  A state = scan.in != nullptr ? scan.in[at(run)] : A(0);
  const int64_t begin = work.run_begins[run], count = work.run_begins[run + 1] - begin;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t number = kRight ? begin + n : begin + count - 1 - n;
    // Nothing follows the last piece's, and nothing has added it up, unless it is wanted.
    const bool follows = n + 1 < count || scan.out != nullptr;
    const A sum = follows ? scan.states[at(number)] : A(0);
    scan.states[at(number)] = state;
    const LinearPiece& piece = work.pieces[number];
    // The power to twice the precision: its rounding error would add up over the pieces.
    const double decay = exp(-work.slopes[head] * static_cast<double>(piece.end - piece.begin));
    const A rounded = static_cast<A>(decay);
    const A rest = static_cast<A>(decay - static_cast<double>(rounded));
    state = piece.resets ? sum : rounded * state + (rest * state + sum);
  }
  if (scan.out != nullptr) scan.out[at(run)] = state;
}

// What all operations set up. Passes is LinearSimt<T>, or another with its members.
template <class Passes>
class Call {
 public:
  using T = typename Passes::Element;
  using A = Accumulator<T>;

  Call(const Context& ctx, const LinearTokens& tokens, int64_t rows, int64_t head_dim,
       int64_t value_dim)
      : ctx_(ctx),
        tokens_(tokens),
        rows_(rows),
        heads_(static_cast<int64_t>(tokens.slopes.size())),
        head_dim_(head_dim),
        value_dim_(value_dim),
        piece_rows_(linear_piece_rows(
            rows, heads_ * column_tiles(static_cast<int>(std::min(head_dim, value_dim))))),
        memory_(linear_work_memory(ctx, tokens, rows, Passes::kChunkRows, piece_rows_)) {}

  // Room for a state of each piece; none where a run is one piece at most.
  TensorView allocate_states() const {
    if (rows_ <= piece_rows_) return {};
    const int64_t pieces =
        most_pieces(rows_, static_cast<int64_t>(tokens_.runs.size()), piece_rows_);
    return ctx_.scratch->allocate(dtype_of<A>, {pieces, heads_, head_dim_, value_dim_});
  }

  // After all scratch was allocated.
  void start() {
    const LinearWorkList list = linear_work(tokens_, Passes::kChunkRows, piece_rows_);
    chained_ = list.pieces.size() > tokens_.runs.size();
    work_ = place(ctx_, tokens_, list, memory_);
  }

  const LinearWork& work() const { return work_; }

  // What enters every piece, from what enters the runs: y is k or, to the left, q.
  template <bool kRight>
  LinearStates<const A> entering(const ConstTensorView& y, const ConstTensorView& z,
                                 const ConstTensorView& of_runs, const TensorView& of_pieces) {
    const A* in = of_runs.rank() > 0 ? of_runs.data<A>() : nullptr;
    if (!chained_) return {.p = in, .by_run = true};
    A* states = of_pieces.data<A>();
    Passes::template sums<kRight>(
        ctx_, work_, {.y = operand<T>(y), .z = operand<T>(z), .states = states, .all = false});
    scan<kRight>({.states = states, .in = in, .elements = head_dim_ * value_dim_});
    return {.p = states};
  }

  // The maps of all runs. The scratch is for pieces, if there are more of them than runs.
  template <bool kRight>
  void maps(const ConstTensorView& y, const ConstTensorView& z, const TensorView& of_pieces,
            const TensorView& sums, const TensorView& log_decay) {
    A* states = (chained_ ? of_pieces : sums).template data<A>();
    Passes::template sums<kRight>(
        ctx_, work_, {.y = operand<T>(y), .z = operand<T>(z), .states = states, .all = true});
    if (chained_) {
      scan<kRight>({.states = states,
                    .in = nullptr,
                    .out = sums.data<A>(),
                    .elements = head_dim_ * value_dim_});
    }
    write_log_decay(log_decay);
  }

 private:
  template <bool kRight>
  void scan(const Scan<A>& scan) {
    constexpr int kThreadsOfScan = 256;
    const int64_t blocks = (scan.elements + kThreadsOfScan - 1) / kThreadsOfScan;
    launch(ctx_, "linear attention: scan", scan_kernel<A, kRight>,
           {.blocks = dim3(static_cast<unsigned>(blocks * heads_ * work_.run_count)),
            .threads = dim3(kThreadsOfScan)},
           work_, scan, blocks);
  }

  void write_log_decay(const TensorView& to) const {
    const Tensor host(dtype_of<A>, to.shape());
    A* out = host.view().data<A>();
    for (const LinearRun& run : tokens_.runs) {
      const auto starts = tokens_.document_begins;
      const auto start = std::lower_bound(starts.begin(), starts.end(), run.begin);
      const bool resets = start != starts.end() && *start < run.begin + run.length;
      for (const double slope : tokens_.slopes) {
        *out++ = resets ? -std::numeric_limits<A>::infinity()
                        : static_cast<A>(-slope * static_cast<double>(run.length));
      }
    }
    upload(ctx_.stream, host, to);
  }

  const Context& ctx_;
  const LinearTokens& tokens_;
  int64_t rows_, heads_, head_dim_, value_dim_, piece_rows_;
  TensorView memory_;
  LinearWork work_;
  bool chained_ = false;
};

// A state or gradient by run that a pass leaves behind.
template <class A>
LinearStates<A> by_run(const TensorView& states) {
  return {.p = states.rank() > 0 ? states.data<A>() : nullptr, .by_run = true};
}

template <class A>
LinearStates<A> turned(LinearStates<A> states) {
  states.turned = true;
  return states;
}

template <class Passes>
void forward(const Context& ctx, const LinearAttentionForward& args) {
  using T = typename Passes::Element;
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  Call<Passes> call(ctx, args.tokens, args.q.dim(0), args.q.dim(2), args.v.dim(2));
  const TensorView states = call.allocate_states();
  if (ctx.measuring()) return;
  call.start();
  Passes::template follow<true>(
      ctx, call.work(),
      {.x = operand<T>(args.q),
       .y = operand<T>(args.k),
       .z = operand<T>(args.v),
       .entering = call.template entering<true>(args.k, args.v, args.state_in, states),
       .leaving = by_run<A>(args.state_out),
       .result = args.out_acc.data<A>(),
       .add = false});
}

template <class Passes>
void backward(const Context& ctx, const LinearAttentionBackward& args) {
  using T = typename Passes::Element;
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  Call<Passes> call(ctx, args.tokens, args.q.dim(0), args.q.dim(2), args.v.dim(2));
  // States first, then gradients: they are not needed at the same time.
  const TensorView states = call.allocate_states();
  if (ctx.measuring()) return;
  call.start();
  const Operand<T> q = operand<T>(args.q), k = operand<T>(args.k), v = operand<T>(args.v),
                   dout = operand<T>(args.dout);
  Passes::template follow<true>(
      ctx, call.work(),
      {.x = dout,
       .y = v,
       .z = k,
       .entering = turned(call.template entering<true>(args.k, args.v, args.state_in, states)),
       .leaving = {},
       .result = args.dq_acc.data<A>(),
       .add = true});
  const LinearStates<const A> gradients =
      call.template entering<false>(args.q, args.dout, args.dstate_out, states);
  Passes::template follow<false>(ctx, call.work(),
                                 {.x = v,
                                  .y = dout,
                                  .z = q,
                                  .entering = turned(gradients),
                                  .leaving = {},
                                  .result = args.dk_acc.data<A>(),
                                  .add = true});
  // The last one, since dstate_in may lie where dstate_out or state_in does.
  Passes::template follow<false>(ctx, call.work(),
                                 {.x = k,
                                  .y = q,
                                  .z = dout,
                                  .entering = gradients,
                                  .leaving = by_run<A>(args.dstate_in),
                                  .result = args.dv_acc.data<A>(),
                                  .add = true});
}

// Both kinds of maps. `kRight`: to the right.
template <class Passes, bool kRight>
void write_maps(const Context& ctx, const LinearTokens& tokens, const ConstTensorView& y,
                const ConstTensorView& z, const TensorView& sums, const TensorView& log_decay) {
  const Arena::Scope scope(*ctx.scratch);
  Call<Passes> call(ctx, tokens, y.dim(0), y.dim(2), z.dim(2));
  const TensorView states = call.allocate_states();
  if (ctx.measuring()) return;
  call.start();
  call.template maps<kRight>(y, z, states, sums, log_decay);
}

template <class Passes>
void maps(const Context& ctx, const LinearAttentionMaps& args) {
  write_maps<Passes, true>(ctx, args.tokens, args.k, args.v, args.sums, args.log_decay);
}
template <class Passes>
void backward_maps(const Context& ctx, const LinearAttentionBackwardMaps& args) {
  write_maps<Passes, false>(ctx, args.tokens, args.q, args.dout, args.sums, args.log_decay);
}

// result += a^enter x S, with the states of runs; `turned_state`: S^T.
template <class Passes, bool kRight>
void add(const Context& ctx, const Call<Passes>& call, const ConstTensorView& x,
         const ConstTensorView& states, bool turned_state, const TensorView& result) {
  using T = typename Passes::Element;
  using A = Accumulator<T>;
  Passes::template add<kRight>(
      ctx, call.work(),
      {.x = operand<T>(x),
       .columns = static_cast<int>(result.dim(2)),
       .entering = {.p = states.data<A>(), .by_run = true, .turned = turned_state},
       .result = result.data<A>()});
}

template <class Passes>
void add_out(const Context& ctx, const LinearAttentionAddOut& args) {
  const Arena::Scope scope(*ctx.scratch);
  Call<Passes> call(ctx, args.tokens, args.q.dim(0), args.q.dim(2), args.out_acc.dim(2));
  if (ctx.measuring()) return;
  call.start();
  add<Passes, true>(ctx, call, args.q, args.state_in, false, args.out_acc);
}

template <class Passes>
void add_dq(const Context& ctx, const LinearAttentionAddDq& args) {
  const Arena::Scope scope(*ctx.scratch);
  Call<Passes> call(ctx, args.tokens, args.dout.dim(0), args.dq_acc.dim(2), args.dout.dim(2));
  if (ctx.measuring()) return;
  call.start();
  add<Passes, true>(ctx, call, args.dout, args.state_in, true, args.dq_acc);
}

template <class Passes>
void add_dk_dv(const Context& ctx, const LinearAttentionAddDkDv& args) {
  const Arena::Scope scope(*ctx.scratch);
  Call<Passes> call(ctx, args.tokens, args.k.dim(0), args.k.dim(2), args.v.dim(2));
  if (ctx.measuring()) return;
  call.start();
  add<Passes, false>(ctx, call, args.v, args.dstate_out, true, args.dk_acc);
  add<Passes, false>(ctx, call, args.k, args.dstate_out, false, args.dv_acc);
}

bool up_to_most(int64_t head_dim, int64_t value_dim) {
  return head_dim <= kMostLinearDim && value_dim <= kMostLinearDim;
}
template <class Passes>
constexpr LinearAttentionKernel row() {
  return {.name = "cuda-simt",
          .dtype = dtype_of<typename Passes::Element>,
          .available = available,
          .supports = up_to_most,
          .forward = forward<Passes>,
          .backward = backward<Passes>,
          .maps = maps<Passes>,
          .backward_maps = backward_maps<Passes>,
          .add_out = add_out<Passes>,
          .add_dq = add_dq<Passes>,
          .add_dk_dv = add_dk_dv<Passes>};
}

// f.operator()<Passes>() with the padded size that both dimensions fit into; wider heads do without
// tensor cores.
template <class F>
void with_mma(const ConstTensorView& key_like, const ConstTensorView& value_like, F&& f) {
  const int64_t dim = std::max(key_like.dim(2), value_like.dim(2));
  if (dim <= 64) return f.template operator()<LinearMma<64>>();
  if (dim <= 128) return f.template operator()<LinearMma<128>>();
  f.template operator()<LinearSimt<bf16>>();
}

constexpr LinearAttentionKernel mma_row() {
  return {
      .name = "cuda-mma",
      .dtype = DType::kBF16,
      .available = available,
      .supports = up_to_most,
      .forward =
          [](const Context& ctx, const LinearAttentionForward& args) {
            with_mma(args.q, args.v, [&]<class Passes>() { forward<Passes>(ctx, args); });
          },
      .backward =
          [](const Context& ctx, const LinearAttentionBackward& args) {
            with_mma(args.q, args.v, [&]<class Passes>() { backward<Passes>(ctx, args); });
          },
      .maps =
          [](const Context& ctx, const LinearAttentionMaps& args) {
            with_mma(args.k, args.v, [&]<class Passes>() { maps<Passes>(ctx, args); });
          },
      .backward_maps =
          [](const Context& ctx, const LinearAttentionBackwardMaps& args) {
            with_mma(args.q, args.dout, [&]<class Passes>() { backward_maps<Passes>(ctx, args); });
          },
      .add_out =
          [](const Context& ctx, const LinearAttentionAddOut& args) {
            with_mma(args.q, args.out_acc, [&]<class Passes>() { add_out<Passes>(ctx, args); });
          },
      .add_dq =
          [](const Context& ctx, const LinearAttentionAddDq& args) {
            with_mma(args.dq_acc, args.dout, [&]<class Passes>() { add_dq<Passes>(ctx, args); });
          },
      .add_dk_dv =
          [](const Context& ctx, const LinearAttentionAddDkDv& args) {
            with_mma(args.k, args.v, [&]<class Passes>() { add_dk_dv<Passes>(ctx, args); });
          }};
}

constexpr LinearAttentionKernel kTable[] = {mma_row(), row<LinearSimt<float>>(),
                                            row<LinearSimt<double>>()};

}  // namespace

std::span<const LinearAttentionKernel> linear_attention_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
