// Softmax attention on segments (kernels/segment.h), forward and backward.
//
//   q [Tq, Hq, D]   k [Tk, Hkv, D]   v [Tk, Hkv, Dv]    one dtype: bf16, f32 or f64; last dim dense
//   out_acc [Tq, Hq, Dv]   lse [Hq, Tq]                  accumulator type; lse natural-log, dense
//
// out_acc, and dq_acc of backward, may be some heads of a dense tensor of more heads.
//
// Results are folded: out_acc and lse hold the attention over all keys seen so far, and a call adds
// the keys of its segments. An empty row has lse = -inf and out = 0. Online softmax after
// "FlashAttention-2" (Dao 2023, section 3.1); the merge is exact, so any split of the keys over
// calls, ranks or servers gives the same result to rounding.
//
// Reductions have a fixed order: the same arguments and number of threads give the same bits.
// All functions throw Error(kInternal) for shapes that contradict each other.
#pragma once

#include <span>
#include <string_view>

#include "kernels/core/context.h"
#include "kernels/dropout.h"
#include "kernels/segment.h"

namespace longhaul::kernels {

// Which global heads the tensors of a call hold. Tensors may hold any part of the heads: query head
// h of the tensors is global head q_begin + h, and uses kv head (q_begin + h) / group - kv_begin.
struct HeadMap {
  int64_t q_begin = 0;
  int64_t kv_begin = 0;
  int64_t group = 1;  // query heads per kv head in the whole model

  LONGHAUL_HOST_DEVICE int64_t kv_head(int64_t h) const { return (q_begin + h) / group - kv_begin; }
};

// From a query's score with a key to its probability:
//
//     s = scale * q.k
//     s = soft_cap * tanh(s / soft_cap)                            "Gemma 2" (2024), section 2
//     s = s - slope of the head * (query position - key position)  ALiBi (Press et al. 2022)
//     p = softmax(s)          lse and the softmax's sum are of all p, dropped or not
//     p = p / (1 - probability) if kept, else 0                    kernels/dropout.h
//
// Positions are those of the segments. Slopes are constants: no gradient is made for them.
struct AttentionOptions {
  double scale = 1.0;             // of q.k; usually 1/sqrt(D)
  double soft_cap = 0;            // 0: none
  ConstTensorView bias_slopes{};  // f32 [Hq], dense, of the heads of the call's q; no shape: none
  Dropout dropout{};              // of global query head q_begin + h

  bool biased() const { return bias_slopes.rank() > 0; }
  // Scores are only scaled, and every probability is kept.
  bool plain() const { return soft_cap == 0 && !biased() && dropout.probability == 0; }
};

struct AttentionForward {
  std::span<const Segment> segments;  // folded in list order
  HeadMap heads;
  ConstTensorView q, k, v;
  AttentionOptions options;
  TensorView out_acc, lse;
};

struct AttentionBackward {
  std::span<const Segment> segments;
  HeadMap heads;
  ConstTensorView q, k, v;
  AttentionOptions options;
  ConstTensorView dout;               // [Tq, Hq, Dv], dtype of q
  ConstTensorView lse, delta;         // [Hq, Tq]: the FINAL lse over all keys of all calls
  TensorView dq_acc, dk_acc, dv_acc;  // shapes of q, k, v in the accumulator type; +=
};

// lse = -inf, out_acc = 0: what the first fold starts from.
void attention_init(const Context&, TensorView out_acc, TensorView lse);

void attention_forward(const Context&, const AttentionForward&);

// delta[h, t] = sum_d out[t, h, d] * dout[t, h, d]; once per layer, by the owner of the queries.
//   out [Tq, Hq, Dv] accumulator type or dtype of dout, dout [Tq, Hq, Dv], delta [Hq, Tq]
void attention_delta(const Context&, ConstTensorView out, ConstTensorView dout, TensorView delta);

void attention_backward(const Context&, const AttentionBackward&);

// Folds one partial result into another: (out_acc, lse) <- merge((out_acc, lse), (part, part_lse)).
void attention_merge(const Context&, ConstTensorView part, ConstTensorView part_lse,
                     TensorView out_acc, TensorView lse);

// One implementation: a row of a backend's table (kernels/backend.h), the best one first.
struct AttentionKernel {
  std::string_view name;
  DType dtype;
  DType products;       // what probabilities and their gradients are rounded to for products
  bool (*available)();  // can this machine run it?
  bool (*supports)(int64_t head_dim, int64_t value_dim);
  void (*forward)(const Context&, const AttentionForward&);
  void (*backward)(const Context&, const AttentionBackward&);
  void (*init)(const Context&, TensorView out_acc, TensorView lse);
  void (*delta)(const Context&, ConstTensorView out, ConstTensorView dout, TensorView delta);
  void (*merge)(const Context&, ConstTensorView part, ConstTensorView part_lse, TensorView out_acc,
                TensorView lse);
};

}  // namespace longhaul::kernels
