// What the two passes of the CPU's attention share: sizes of blocks, and progress of transfers.
#pragma once

#include "kernels/attention.h"

namespace longhaul::kernels::cpu {

inline constexpr int64_t kPanel = 64;  // elements side by side in packed operands

// log2(e): scores are kept in units of log 2, since 2^x is cheaper than e^x.
inline constexpr double kLog2E = 1.4426950408889634074;

constexpr int64_t rounded_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Calls Context::poll about once per millisecond from within long tasks of the calling thread.
class Poller {
 public:
  Poller(const Context& ctx, int worker) : ctx_(ctx), active_(worker == 0 && ctx.poll) {}

  void did(int64_t multiply_adds) {
    if (!active_) return;
    since_ += multiply_adds;
    if (since_ < kMultiplyAddsPerPoll) return;
    since_ = 0;
    ctx_.poll();
  }

 private:
  static constexpr int64_t kMultiplyAddsPerPoll = 50'000'000;

  const Context& ctx_;
  bool active_;
  int64_t since_ = 0;
};

// Hands out parts of a worker's scratch memory, each aligned to a cache line. Without memory it
// only counts.
template <class A>
class Carver {
 public:
  explicit Carver(A* memory) : memory_(memory) {}
  A* take(int64_t elements) {
    A* result = memory_ == nullptr ? nullptr : memory_ + taken_;
    taken_ += rounded_up(elements, kPanel);
    return result;
  }
  int64_t taken() const { return taken_; }

 private:
  A* memory_;
  int64_t taken_ = 0;
};

// By products of bf16 pairs (has_bf16_products()).
void attention_forward_pairs(const Context&, const AttentionForward&);
void attention_backward_pairs(const Context&, const AttentionBackward&);

template <class T>
void attention_forward_tiled(const Context&, const AttentionForward&);
template <class T>
void attention_backward_tiled(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cpu
