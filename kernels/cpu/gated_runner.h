// What the operations of gated linear attention share: their schedule, their memory, and states
// between pieces.
#pragma once

#include <algorithm>

#include "kernels/cpu/gated_schedule.h"

namespace longhaul::kernels::cpu {

inline bool present(const ConstTensorView& view) { return view.rank() > 0; }

// What every operation sets up. State tensors are [R or pieces, H, D, Dv].
template <class T>
class GatedRunner {
  using A = Accumulator<T>;

 public:
  GatedRunner(const Context& ctx, const GatedTokens& tokens, int64_t value_dim, PieceUse use)
      : ctx_(ctx),
        log_gate_(tokens.log_gate),
        head_dim_(log_gate_.dim(2)),
        value_dim_(value_dim),
        schedule_(
            tokens.runs, tokens.document_begins, log_gate_.dim(1),
            GatedScratch<A>(nullptr, head_dim_, value_dim).state_elements * int64_t{sizeof(A)},
            ctx.pool->threads(), use),
        scratch_(ctx.scratch->allocate(
            dtype_of<A>, {ctx.pool->threads(), GatedScratch<A>::size(head_dim_, value_dim)})) {}

  const LinearSchedule& schedule() const { return schedule_; }
  // One state for each piece.
  TensorView allocate_states() const {
    return ctx_.scratch->allocate(dtype_of<A>, {pieces(), schedule_.heads, head_dim_, value_dim_});
  }
  // [pieces, H, D], in f64: gates of long runs add up to a decay that is rounded once.
  TensorView allocate_gates() const {
    return ctx_.scratch->allocate(DType::kF64, {pieces(), schedule_.heads, head_dim_});
  }
  template <class Bytes>
  auto* state(const BasicTensorView<Bytes>& states, int64_t at) const {
    using Pointer = decltype(states.template data<A>());
    return present(states) ? states.template data<A>() + at * schedule_.heads * elements()
                           : Pointer(nullptr);
  }
  const double* gates(const TensorView& sums, int64_t p) const {
    return sums.data<double>() + p * columns();
  }

  // set_states(task, number of the piece) says what enters and leaves, work(task) does the work.
  template <class SetStates, class Work>
  void run(SetStates&& set_states, Work&& work) const {
    ctx_.pool->run(
        schedule_.tasks(),
        [&](int64_t number, int worker) {
          const LinearPiece& piece = schedule_.piece_of(number);
          const GatedScratch<A> memory(scratch_.template data<A>() + worker * scratch_.dim(1),
                                       head_dim_, value_dim_);
          Poller poller(ctx_, worker);
          GatedTask<A> task{.piece = piece,
                            .blocks = schedule_.blocks_of(piece),
                            .heads = schedule_.heads_of(number),
                            .scratch = memory,
                            .poller = poller};
          if (set_states(task, &piece - schedule_.pieces.data())) work(task);
        },
        ctx_.poll);
  }

  // The sum of each piece's gates.
  void sum_gates(const TensorView& to) const {
    constexpr int64_t kGrain = 64;
    ctx_.parallel_for(columns(), kGrain, [&](int64_t begin, int64_t end) {
      for (const LinearPiece& piece : schedule_.pieces) {
        double* sums = to.data<double>() + number_of(piece) * columns();
        std::fill(sums + begin, sums + end, 0.0);
        for (int64_t row = piece.begin; row < piece.end; ++row) {
          const A* gate = log_gate_.data<A>() + row * columns();
          for (int64_t c = begin; c < end; ++c) sums[c] += static_cast<double>(gate[c]);
        }
      }
    });
  }
  // Turns them into the sums of the run's gates outside a piece: before it, or after.
  template <bool kBefore>
  void sum_outside(const TensorView& sums) const {
    for (int64_t c = 0; c < columns(); ++c) {
      double outside = 0;
      for_pieces<kBefore>([&](const LinearPiece& piece, int64_t p) {
        if (kBefore ? piece.first : piece.last) outside = 0;
        double& value = sums.data<double>()[p * columns() + c];
        outside += std::exchange(value, outside);
      });
    }
  }

  // Turns what pieces add up alone into the states that enter them. Before: to[p + 1] (to the left:
  // to[p - 1]) holds the sums of piece p. After: to[p] holds what enters piece p; a run's first
  // piece gets `outside`, or zeros. gates: of sum_gates().
  template <bool kRight>
  void chain(const TensorView& gates, const ConstTensorView& outside, const TensorView& to) const {
    ctx_.parallel_for(schedule_.heads, 1, [&](int64_t begin, int64_t end) {
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
          for_rows(gates, p, h, [&](int64_t i, A decay) { leaving[i] += decay * entering[i]; });
        }
      });
    });
  }

  // The maps of runs from those of their pieces.
  template <bool kRight>
  void join(const TensorView& gates, const ConstTensorView& parts, const TensorView& sums) const {
    ctx_.parallel_for(schedule_.heads, 1, [&](int64_t begin, int64_t end) {
      for_pieces<kRight>([&](const LinearPiece& piece, int64_t p) {
        for (int64_t h = begin; h < end; ++h) {
          const A* from = state(parts, p) + h * elements();
          A* to = state(sums, piece.run) + h * elements();
          if ((kRight ? piece.first : piece.last) || piece.resets) {
            std::copy_n(from, elements(), to);
          } else {
            for_rows(gates, p, h, [&](int64_t i, A decay) { to[i] = to[i] * decay + from[i]; });
          }
        }
      });
    });
  }

  void write_log_decay(const TensorView& gates, const TensorView& to) const {
    A* out = to.data<A>();
    for (int64_t c = 0; c < columns(); ++c) {
      double sum = 0;
      bool resets = false;
      for_pieces<true>([&](const LinearPiece& piece, int64_t p) {
        if (piece.first) {
          sum = 0;
          resets = false;
        }
        sum += gates.data<double>()[p * columns() + c];
        resets |= piece.resets;
        out[piece.run * columns() + c] =
            resets ? -std::numeric_limits<A>::infinity() : static_cast<A>(sum);
      });
    }
  }

 private:
  int64_t pieces() const { return static_cast<int64_t>(schedule_.pieces.size()); }
  int64_t elements() const { return head_dim_ * value_dim_; }
  int64_t columns() const { return schedule_.heads * head_dim_; }
  int64_t number_of(const LinearPiece& piece) const { return &piece - schedule_.pieces.data(); }

  // body(element of the state, its decay over piece p)
  template <class F>
  void for_rows(const TensorView& gates, int64_t p, int64_t h, F&& body) const {
    const double* sums = gates.data<double>() + p * columns() + h * head_dim_;
    for (int64_t l = 0; l < head_dim_; ++l) {
      const auto decay = static_cast<A>(std::exp(sums[l]));
      for (int64_t e = 0; e < value_dim_; ++e) body(l * value_dim_ + e, decay);
    }
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

  const Context& ctx_;
  const ConstTensorView log_gate_;
  const int64_t head_dim_, value_dim_;
  const LinearSchedule schedule_;
  const TensorView scratch_;
};

}  // namespace longhaul::kernels::cpu
