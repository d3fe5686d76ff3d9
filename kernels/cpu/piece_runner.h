// What the operations of linear attention share, whatever makes states decay: their schedule, the
// memory of workers, and states between pieces.
#pragma once

#include <algorithm>

#include "kernels/cpu/linear_attention_schedule.h"

namespace longhaul::kernels::cpu {

inline bool present(const ConstTensorView& view) { return view.rank() > 0; }

// State tensors are [R or pieces, H, D, Dv], dense but for the first dimension.
template <class T, template <class> class Scratch, template <class> class Task>
class PieceRunner {
 public:
  using A = Accumulator<T>;

  const LinearSchedule& schedule() const { return schedule_; }

  // One state for each piece.
  TensorView allocate_states() const {
    return ctx_.scratch->allocate(dtype_of<A>, {pieces(), heads(), head_dim_, value_dim_});
  }
  template <class Bytes>
  static auto* state(const BasicTensorView<Bytes>& states, int64_t at) {
    using Pointer = decltype(states.template data<A>());
    return present(states) ? states.template data<A>() + at * states.stride(0) : Pointer(nullptr);
  }

  // set_states(task, number of the piece) says what enters and leaves, and whether there is work;
  // work(task) does it.
  template <class SetStates, class Work>
  void run(SetStates&& set_states, Work&& work) const {
    ctx_.pool->run(
        schedule_.tasks(),
        [&](int64_t number, int worker) {
          const LinearPiece& piece = schedule_.piece_of(number);
          const Scratch<A> memory(scratch_.template data<A>() + worker * scratch_.dim(1), head_dim_,
                                  value_dim_);
          Poller poller(ctx_, worker);
          Task<A> task{.piece = piece,
                       .blocks = schedule_.blocks_of(piece),
                       .heads = schedule_.heads_of(number),
                       .scratch = memory,
                       .poller = poller};
          if (set_states(task, &piece - schedule_.pieces.data())) work(task);
        },
        ctx_.poll);
  }

 protected:
  PieceRunner(const Context& ctx, std::span<const LinearRun> runs,
              std::span<const int64_t> document_begins, int64_t heads, int64_t head_dim,
              int64_t value_dim, PieceUse use)
      : ctx_(ctx),
        head_dim_(head_dim),
        value_dim_(value_dim),
        schedule_(runs, document_begins, heads,
                  Scratch<A>(nullptr, head_dim, value_dim).state_elements * int64_t{sizeof(A)},
                  ctx.pool->threads(), use),
        scratch_(ctx.scratch->allocate(
            dtype_of<A>, {ctx.pool->threads(), Scratch<A>::size(head_dim, value_dim)})) {}

  const Context& ctx() const { return ctx_; }
  int64_t heads() const { return schedule_.heads; }
  int64_t head_dim() const { return head_dim_; }
  int64_t pieces() const { return static_cast<int64_t>(schedule_.pieces.size()); }

  // body(piece, its number), in the direction of the states.
  template <bool kRight, class F>
  void for_pieces(F&& body) const {
    const size_t count = schedule_.pieces.size();
    for (size_t n = 0; n < count; ++n) {
      const size_t p = kRight ? n : count - 1 - n;
      body(schedule_.pieces[p], static_cast<int64_t>(p));
    }
  }

  // Turns what pieces add up alone into the states that enter them. Before: to[p + 1] (to the left:
  // to[p - 1]) holds the sums of piece p. After: to[p] holds what enters piece p; a run's first
  // piece gets `outside`, or zeros. decay(piece, its number, head)(row of the state) is how much of
  // a state is left after a piece.
  template <bool kRight, class Decay>
  void chain(const ConstTensorView& outside, const TensorView& to, const Decay& decay) const {
    ctx_.parallel_for(heads(), 1, [&](int64_t begin, int64_t end) {
      for_pieces<kRight>([&](const LinearPiece& piece, int64_t p) {
        for (int64_t h = begin; h < end; ++h) {
          A* entering = state(to, p) + h * elements();
          if (kRight ? piece.first : piece.last) {
            const A* from = state(outside, piece.run);
            if (from == nullptr) {
              std::fill_n(entering, elements(), A(0));
            } else {
              std::copy_n(from + h * elements(), elements(), entering);
            }
          }
          // After a document's begin the sums are all that leaves.
          if ((kRight ? piece.last : piece.first) || piece.resets) continue;
          A* leaving = state(to, p + (kRight ? 1 : -1)) + h * elements();
          const auto left = decay(piece, p, h);
          for (int64_t l = 0; l < head_dim_; ++l) {
            const A factor = left(l);
            for (int64_t i = l * value_dim_; i < (l + 1) * value_dim_; ++i) {
              leaving[i] += factor * entering[i];
            }
          }
        }
      });
    });
  }

  // The maps of runs from those of their pieces.
  template <bool kRight, class Decay>
  void join(const ConstTensorView& parts, const TensorView& sums, const Decay& decay) const {
    ctx_.parallel_for(heads(), 1, [&](int64_t begin, int64_t end) {
      for_pieces<kRight>([&](const LinearPiece& piece, int64_t p) {
        for (int64_t h = begin; h < end; ++h) {
          const A* from = state(parts, p) + h * elements();
          A* to = state(sums, piece.run) + h * elements();
          if ((kRight ? piece.first : piece.last) || piece.resets) {
            std::copy_n(from, elements(), to);
            continue;
          }
          const auto left = decay(piece, p, h);
          for (int64_t l = 0; l < head_dim_; ++l) {
            const A factor = left(l);
            for (int64_t i = l * value_dim_; i < (l + 1) * value_dim_; ++i) {
              to[i] = to[i] * factor + from[i];
            }
          }
        }
      });
    });
  }

 private:
  int64_t elements() const { return head_dim_ * value_dim_; }

  const Context& ctx_;
  const int64_t head_dim_, value_dim_;
  const LinearSchedule schedule_;
  const TensorView scratch_;
};

}  // namespace longhaul::kernels::cpu
