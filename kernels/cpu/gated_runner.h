// What the operations of gated linear attention share.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "kernels/cpu/gated_schedule.h"
#include "kernels/cpu/piece_runner.h"

namespace longhaul::kernels::cpu {

// `gates` are f64, [pieces, H, D]: gates of long runs add up to a decay that is rounded once.
template <class T>
class GatedRunner : public PieceRunner<T, GatedScratch, GatedTask> {
  using Base = PieceRunner<T, GatedScratch, GatedTask>;
  using A = Accumulator<T>;

 public:
  GatedRunner(const Context& ctx, const GatedTokens& tokens, int64_t value_dim, PieceUse use)
      : Base(ctx, tokens.runs, tokens.document_begins, tokens.log_gate.dim(1),
             tokens.log_gate.dim(2), value_dim, use),
        log_gate_(tokens.log_gate) {}

  TensorView allocate_gates() const {
    return this->ctx().scratch->allocate(DType::kF64,
                                         {this->pieces(), this->heads(), this->head_dim()});
  }
  const double* gates(const TensorView& sums, int64_t p) const {
    return sums.data<double>() + p * columns();
  }

  // The sum of each piece's gates.
  void sum_gates(const TensorView& to) const {
    constexpr int64_t kGrain = 64;
    this->ctx().parallel_for(columns(), kGrain, [&](int64_t begin, int64_t end) {
      Base::template for_pieces<true>([&](const LinearPiece& piece, int64_t p) {
        double* sums = to.data<double>() + p * columns();
        std::fill(sums + begin, sums + end, 0.0);
        for (int64_t row = piece.begin; row < piece.end; ++row) {
          const A* gate = log_gate_.data<A>() + row * columns();
          for (int64_t c = begin; c < end; ++c) sums[c] += static_cast<double>(gate[c]);
        }
      });
    });
  }
  // Turns them into the sums of the run's gates outside a piece: before it, or after.
  template <bool kBefore>
  void sum_outside(const TensorView& sums) const {
    for (int64_t c = 0; c < columns(); ++c) {
      double outside = 0;
      Base::template for_pieces<kBefore>([&](const LinearPiece& piece, int64_t p) {
        if (kBefore ? piece.first : piece.last) outside = 0;
        double& value = sums.data<double>()[p * columns() + c];
        outside += std::exchange(value, outside);
      });
    }
  }

  // gates: of sum_gates().
  template <bool kRight>
  void chain(const TensorView& gates, const ConstTensorView& outside, const TensorView& to) const {
    Base::template chain<kRight>(outside, to, decays(gates));
  }
  template <bool kRight>
  void join(const TensorView& gates, const ConstTensorView& parts, const TensorView& sums) const {
    Base::template join<kRight>(parts, sums, decays(gates));
  }

  void write_log_decay(const TensorView& gates, const TensorView& to) const {
    A* out = to.data<A>();
    for (int64_t c = 0; c < columns(); ++c) {
      double sum = 0;
      bool resets = false;
      Base::template for_pieces<true>([&](const LinearPiece& piece, int64_t p) {
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
  int64_t columns() const { return this->heads() * this->head_dim(); }
  auto decays(const TensorView& gates) const {
    return [this, &gates](const LinearPiece&, int64_t p, int64_t h) {
      return [sums = this->gates(gates, p) + h * this->head_dim()](int64_t l) {
        return static_cast<A>(std::exp(sums[l]));
      };
    };
  }

  const ConstTensorView log_gate_;
};

}  // namespace longhaul::kernels::cpu
