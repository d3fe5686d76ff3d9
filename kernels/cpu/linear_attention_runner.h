// What the operations of linear attention share: their schedule, their memory, and states between
// pieces.
#pragma once

#include <algorithm>

#include "kernels/cpu/linear_attention_schedule.h"

namespace longhaul::kernels::cpu {

inline bool present(const ConstTensorView& view) { return view.rank() > 0; }

// What every operation sets up. State tensors are [R or pieces, H, D, Dv], dense but for the first
// dimension.
template <class T>
class Runner {
  using A = Accumulator<T>;

 public:
  Runner(const Context& ctx, const LinearTokens& tokens, int64_t head_dim, int64_t value_dim,
         PieceUse use)
      : ctx_(ctx),
        tokens_(tokens),
        head_dim_(head_dim),
        value_dim_(value_dim),
        schedule_(
            tokens.runs, tokens.document_begins, static_cast<int64_t>(tokens.slopes.size()),
            LinearScratch<A>(nullptr, head_dim, value_dim).state_elements * int64_t{sizeof(A)},
            ctx.pool->threads(), use),
        powers_(powers_of<A>(tokens.slopes)),
        scratch_(ctx.scratch->allocate(
            dtype_of<A>, {ctx.pool->threads(), LinearScratch<A>::size(head_dim, value_dim)})) {}

  const LinearSchedule& schedule() const { return schedule_; }
  int64_t state_elements() const { return schedule_.heads * head_dim_ * value_dim_; }
  // One state for each piece.
  TensorView allocate_states() {
    return ctx_.scratch->allocate(dtype_of<A>, {static_cast<int64_t>(schedule_.pieces.size()),
                                                schedule_.heads, head_dim_, value_dim_});
  }
  template <class Bytes>
  auto* state(const BasicTensorView<Bytes>& states, int64_t at) const {
    using Pointer = decltype(states.template data<A>());
    return present(states) ? states.template data<A>() + at * states.stride(0) : Pointer(nullptr);
  }

  // set_states(task, number of the piece) says what enters and leaves, work(task) does the work.
  template <class SetStates, class Work>
  void run(SetStates&& set_states, Work&& work) {
    ctx_.pool->run(
        schedule_.tasks(),
        [&](int64_t number, int worker) {
          const LinearPiece& piece = schedule_.piece_of(number);
          const LinearScratch<A> memory(scratch_.template data<A>() + worker * scratch_.dim(1),
                                        head_dim_, value_dim_);
          Poller poller(ctx_, worker);
          LinearTask<A> task{.piece = piece,
                             .blocks = schedule_.blocks_of(piece),
                             .heads = schedule_.heads_of(number),
                             .powers = powers_,
                             .scratch = memory,
                             .poller = poller};
          if (set_states(task, &piece - schedule_.pieces.data())) work(task);
        },
        ctx_.poll);
  }

  // Turns what pieces add up alone into the states that enter them. Before: to[p + 1] (to the left:
  // to[p - 1]) holds the sums of piece p. After: to[p] holds what enters piece p; a run's first
  // piece gets `outside`, or zeros.
  void chain_right(ConstTensorView outside, TensorView to) { chain<true>(outside, to); }
  void chain_left(ConstTensorView outside, TensorView to) { chain<false>(outside, to); }

  // The maps of runs from those of their pieces.
  template <bool kRight>
  void join(ConstTensorView parts, TensorView sums) {
    ctx_.parallel_for(schedule_.heads, 1, [&](int64_t begin, int64_t end) {
      const int64_t elements = head_dim_ * value_dim_;
      for_pieces<kRight>([&](const LinearPiece& piece, int64_t p) {
        for (int64_t h = begin; h < end; ++h) {
          const A* from = state(parts, p) + h * elements;
          A* to = state(sums, piece.run) + h * elements;
          if ((kRight ? piece.first : piece.last) || piece.resets) {
            std::copy_n(from, elements, to);
          } else {
            const A decay = static_cast<A>(std::exp(log_decay(piece, h)));
            for (int64_t i = 0; i < elements; ++i) to[i] = to[i] * decay + from[i];
          }
        }
      });
    });
  }

  void write_log_decay(TensorView to) const {
    A* out = to.data<A>();
    std::fill_n(out, to.elements(), A(0));
    for (const LinearPiece& piece : schedule_.pieces) {
      const int64_t length = tokens_.runs[static_cast<size_t>(piece.run)].length;
      for (int64_t h = 0; h < schedule_.heads; ++h) {
        A& value = out[piece.run * schedule_.heads + h];
        if (piece.first) value = static_cast<A>(-slope(h) * static_cast<double>(length));
        if (piece.resets) value = -std::numeric_limits<A>::infinity();
      }
    }
  }

 private:
  double slope(int64_t h) const { return tokens_.slopes[static_cast<size_t>(h)]; }
  double log_decay(const LinearPiece& piece, int64_t h) const {
    return -slope(h) * static_cast<double>(piece.end - piece.begin);
  }

  // body(piece, its number), in the direction of the states.
  template <bool kRight, class F>
  void for_pieces(F&& body) const {
    const size_t count = schedule_.pieces.size();
    for (size_t n = 0; n < count; ++n) {
      const size_t p = kRight ? n : count - 1 - n;
      body(schedule_.pieces[p], static_cast<int64_t>(p));
    }
  }

  template <bool kRight>
  void chain(ConstTensorView outside, TensorView to) {
    ctx_.parallel_for(schedule_.heads, 1, [&](int64_t begin, int64_t end) {
      const int64_t elements = head_dim_ * value_dim_;
      for_pieces<kRight>([&](const LinearPiece& piece, int64_t p) {
        for (int64_t h = begin; h < end; ++h) {
          A* entering = state(to, p) + h * elements;
          if (kRight ? piece.first : piece.last) {
            const A* from = state(outside, piece.run);
            if (from == nullptr) {
              std::fill_n(entering, elements, A(0));
            } else {
              std::copy_n(from + h * elements, elements, entering);
            }
          }
          // After a document's begin the sums are all that leaves.
          if ((kRight ? piece.last : piece.first) || piece.resets) continue;
          const A decay = static_cast<A>(std::exp(log_decay(piece, h)));
          A* leaving = entering + (kRight ? state_elements() : -state_elements());
          for (int64_t i = 0; i < elements; ++i) leaving[i] += decay * entering[i];
        }
      });
    });
  }

  const Context& ctx_;
  const LinearTokens& tokens_;
  const int64_t head_dim_, value_dim_;
  const LinearSchedule schedule_;
  const std::vector<Powers<A>> powers_;
  const TensorView scratch_;
};

}  // namespace longhaul::kernels::cpu
