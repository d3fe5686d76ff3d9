// A task of the gated delta rule on the CPU: one head of one run, block by block; and the memory of
// a worker.
#pragma once

#include "kernels/cpu/linear_attention_schedule.h"
#include "kernels/delta_rule.h"

namespace longhaul::kernels::cpu {

inline constexpr int64_t kDeltaSubBlock = 16;  // rows that are solved for one by one
// Backward keeps the states before every so many blocks, and within that many blocks all of them.
inline constexpr int64_t kDeltaSegment = 16;

template <class A>
struct DeltaScratch {
  // segments: of the longest run, or 0 where no states are kept.
  DeltaScratch(A* memory, int64_t head_dim, int64_t value_dim, int64_t segments)
      : key_width(row_width(head_dim)),
        value_width(row_width(value_dim)),
        state_elements(head_dim * value_width) {
    Carver<A> carver(memory);
    for (A** keys : {&q, &k, &scaled, &dq, &readers, &writers}) {
      *keys = carver.take(kBlock * key_width);
    }
    for (A** of_values : {&dout, &y, &u, &r, &w}) *of_values = carver.take(kBlock * value_width);
    // The transition's own y and u: rows of D.
    for (A** keys : {&transition_y, &transition_u}) *keys = carver.take(kBlock * key_width);
    kt = carver.take(kBlock * head_dim);
    ut = carver.take(kBlock * value_dim);
    for (A** square : {&decays, &keys_left, &p, &dp, &e}) *square = carver.take(kBlock * kBlock);
    for (A** column : {&beta, &rising, &falling, &minus_rising}) *column = carver.take(kBlock);
    state = carver.take(state_elements);
    gradient = carver.take(state_elements);
    transition = carver.take(head_dim * key_width);
    turned = carver.take(value_dim * key_width);
    segment_states = carver.take(segments * state_elements);
    const int64_t blocks = segments > 0 ? kDeltaSegment : 0;
    block_states = carver.take(blocks * state_elements);
    block_y = carver.take(blocks * kBlock * value_width);
    block_u = carver.take(blocks * kBlock * value_width);
    elements = carver.taken();
  }

  int64_t key_width, value_width, state_elements;
  A *q, *k, *scaled;          // rows of the block
  A *dq, *readers, *writers;  // rows of gradients: of q, of k where it reads and where it writes
  A *dout, *y, *u, *r, *w;    // rows of the block, as named in delta_tiles-inl.h
  A *transition_y, *transition_u;
  A *kt, *ut;                          // [dim][kBlock]
  A *decays, *keys_left, *p, *dp, *e;  // [kBlock][kBlock]
  A *beta, *rising, *falling;          // [kBlock]
  A* minus_rising;
  A *state, *gradient;  // [D][value_width]
  A* transition;        // [D][key_width]
  A* turned;            // a state, transposed
  A *segment_states, *block_states, *block_y, *block_u;
  int64_t elements;
};

// One task, for code of the instruction sets. States are [D, Dv], null where there is none.
template <class A>
struct DeltaTask {
  const LinearPiece& run;
  std::span<const LinearBlock> blocks;
  int64_t head;
  const DeltaScratch<A>& scratch;
  Poller& poller;
  const A* entering = nullptr;        // from the left
  A* leaving = nullptr;               // to the right
  A* transition = nullptr;            // [D, D]
  const A* right_entering = nullptr;  // gradient, from the right
  A* right_leaving = nullptr;         // gradient, to the left
};

// The code of the instruction set in use.
template <class T>
struct DeltaForwardTasks {
  void (*forward)(const DeltaRuleForward&, const DeltaTask<Accumulator<T>>&);
  // Writes what leaves to the right if nothing enters, and the transition. v: only for the former.
  void (*to_the_right)(const DeltaTokens&, const ConstTensorView& k, const ConstTensorView& v,
                       const DeltaTask<Accumulator<T>>&);
};
template <class T>
struct DeltaBackwardTasks {
  void (*backward)(const DeltaRuleBackward&, const DeltaTask<Accumulator<T>>&);
  // Writes what leaves to the left if nothing enters.
  void (*to_the_left)(const DeltaRuleBackwardMaps&, const DeltaTask<Accumulator<T>>&);
};

ByDType<DeltaForwardTasks> delta_forward_tasks();
ByDType<DeltaBackwardTasks> delta_backward_tasks();

}  // namespace longhaul::kernels::cpu
