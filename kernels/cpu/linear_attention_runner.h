// What the operations of linear attention with a scalar decay share.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "kernels/cpu/piece_runner.h"

namespace longhaul::kernels::cpu {

template <class T>
class Runner : public PieceRunner<T, LinearScratch, LinearTask> {
  using Base = PieceRunner<T, LinearScratch, LinearTask>;
  using A = Accumulator<T>;

 public:
  Runner(const Context& ctx, const LinearTokens& tokens, int64_t head_dim, int64_t value_dim,
         PieceUse use)
      : Base(ctx, tokens.runs, tokens.document_begins, static_cast<int64_t>(tokens.slopes.size()),
             head_dim, value_dim, use),
        tokens_(tokens),
        powers_(powers_of<A>(tokens.slopes)) {}

  template <class SetStates, class Work>
  void run(SetStates&& set_states, Work&& work) const {
    Base::run(
        [&](LinearTask<A>& task, int64_t p) {
          task.powers = powers_;
          return set_states(task, p);
        },
        std::forward<Work>(work));
  }

  template <bool kRight>
  void chain(const ConstTensorView& outside, const TensorView& to) const {
    Base::template chain<kRight>(outside, to, decays());
  }
  template <bool kRight>
  void join(const ConstTensorView& parts, const TensorView& sums) const {
    Base::template join<kRight>(parts, sums, decays());
  }

  void write_log_decay(const TensorView& to) const {
    A* out = to.data<A>();
    std::fill_n(out, to.elements(), A(0));
    for (const LinearPiece& piece : this->schedule().pieces) {
      const int64_t length = tokens_.runs[static_cast<size_t>(piece.run)].length;
      for (int64_t h = 0; h < this->heads(); ++h) {
        A& value = out[piece.run * this->heads() + h];
        if (piece.first) value = static_cast<A>(-slope(h) * static_cast<double>(length));
        if (piece.resets) value = -std::numeric_limits<A>::infinity();
      }
    }
  }

 private:
  double slope(int64_t h) const { return tokens_.slopes[static_cast<size_t>(h)]; }
  auto decays() const {
    return [this](const LinearPiece& piece, int64_t, int64_t h) {
      const double rows = static_cast<double>(piece.end - piece.begin);
      return [decay = static_cast<A>(std::exp(-slope(h) * rows))](int64_t) { return decay; };
    };
  }

  const LinearTokens& tokens_;
  const std::vector<Powers<A>> powers_;
};

}  // namespace longhaul::kernels::cpu
