// A task of gated linear attention on the CPU, and the memory of a worker. Tasks are cut as for a
// scalar decay: kernels/cpu/linear_attention_schedule.h.
#pragma once

#include "kernels/cpu/linear_attention_schedule.h"
#include "kernels/gated_linear_attention.h"

namespace longhaul::kernels::cpu {

inline constexpr int64_t kSubBlock = kGatedSubBlock;

template <class A>
struct GatedScratch {
  GatedScratch(A* memory, int64_t head_dim, int64_t value_dim)
      : key_width(row_width(head_dim)), value_width(row_width(value_dim)) {
    state_elements = std::max(head_dim * value_width, value_dim * key_width);
    Carver<A> carver(memory);
    // Rows of one number in two of these must not lie a multiple of 4096 bytes apart: loads would
    // wait for stores to the other.
    constexpr int64_t kApart = 3 * kPanel;
    for (A** keys : {&q, &k, &moved, &gate, &from_begin, &to_end, &from_border, &to_border}) {
      *keys = carver.take(kBlock * key_width + kApart);
    }
    v = carver.take(kBlock * value_width);
    dout = carver.take(kBlock * value_width);
    kt = carver.take(kBlock * head_dim);
    qt = carver.take(kBlock * head_dim);
    vt = carver.take(kBlock * value_dim);
    p = carver.take(kBlock * kBlock);
    dp = carver.take(kBlock * kBlock);
    square = carver.take(kSubBlock * kSubBlock);
    decay = carver.take(key_width);
    decay_rest = carver.take(key_width);
    outside = carver.take(key_width);
    outside_exact = reinterpret_cast<double*>(carver.take(2 * key_width));
    turned = carver.take(state_elements);
    states = carver.take(state_elements * heads_in_cache(state_elements * int64_t{sizeof(A)}));
    elements = carver.taken();
  }
  static int64_t size(int64_t head_dim, int64_t value_dim) {
    return GatedScratch(nullptr, head_dim, value_dim).elements;
  }

  int64_t key_width, value_width, state_elements;
  A *q, *k, *v, *dout;  // rows of the block
  A* moved;             // rows of q or k, decayed up to some border
  // Gates e^g of the block's rows, and their products: from the block's or sub-block's first row up
  // to and with row r; from after row r up to the block's or sub-block's last.
  A *gate, *from_begin, *to_end, *from_border, *to_border;
  A *kt, *qt, *vt;        // [dim][kBlock]
  A *p, *dp;              // [kBlock][kBlock]
  A* square;              // [kSubBlock][kSubBlock]
  A *decay, *decay_rest;  // the block's, as a sum of two: see Powers::Pair
  // [D] decay between the block and an end of its run, to be rounded only once.
  A* outside;
  double* outside_exact;
  A* turned;  // a state, transposed
  A* states;  // of the heads of a group
  int64_t elements;
};

// One task, for code of the instruction sets. States are [H, D, Dv], null where there is none.
template <class A>
struct GatedTask {
  const LinearPiece& piece;
  std::span<const LinearBlock> blocks;
  Range heads;
  const GatedScratch<A>& scratch;
  Poller& poller;
  const A* entering = nullptr;        // from the left
  A* leaving = nullptr;               // to the right
  const A* right_entering = nullptr;  // gradient, from the right
  A* right_leaving = nullptr;         // gradient, to the left
  // [H, D] sums of gates of the run's rows before the piece and after it, where they are needed.
  const double *gates_before = nullptr, *gates_after = nullptr;
};

// The code of the instruction set in use.
template <class T>
struct GatedForwardTasks {
  void (*forward)(const GatedLinearAttentionForward&, const GatedTask<Accumulator<T>>&);
  void (*add_out)(const GatedLinearAttentionAddOut&, const GatedTask<Accumulator<T>>&);
};
template <class T>
struct GatedBackwardTasks {
  void (*backward)(const GatedLinearAttentionBackward&, const GatedTask<Accumulator<T>>&);
  void (*add_dq)(const GatedLinearAttentionAddDq&, const GatedTask<Accumulator<T>>&);
  void (*add_dk_dv)(const GatedLinearAttentionAddDkDv&, const GatedTask<Accumulator<T>>&);
};
// What a piece adds to the state that leaves it: to the right from k and v, to the left from q and
// dout.
template <class T>
struct GatedSumTasks {
  using Sum = void(const ConstTensorView& log_gate, const ConstTensorView& left,
                   const ConstTensorView& right, const GatedTask<Accumulator<T>>&);
  Sum *to_the_right, *to_the_left;
};

ByDType<GatedForwardTasks> gated_forward_tasks();
ByDType<GatedBackwardTasks> gated_backward_tasks();
ByDType<GatedSumTasks> gated_sum_tasks();

}  // namespace longhaul::kernels::cpu
