// A learnable sink: one more logit per query head that every query's softmax has in its sum and
// that has no value, so that a head may attend to nothing ("Efficient Streaming Language Models
// with Attention Sinks", Xiao et al. 2023, section 3.3; gpt-oss, 2025).
//
// It is no option of attention kernels: a softmax is split over calls, ranks and servers, and the
// sink must be counted once. The owner of the queries folds it in after all keys:
//
//     lse' = log(e^lse + e^sink)        out *= e^(lse - lse')
//     dsink[h] += -sum_t e^(sink[h] - lse'[h, t]) * delta[h, t]
//
// A query that sees no key has out = 0 and lse' = sink. Backward of attention takes lse' for its
// final lse, and delta of the final out; nothing else changes there. A sink of -inf is none.
//
// The sum over queries has an order that depends on their number alone: equal arguments give equal
// bits, whatever the number of threads. Both throw Error(kInternal) for shapes that contradict each
// other.
#pragma once

#include <cmath>
#include <limits>
#include <string_view>

#include "kernels/core/context.h"
#include "kernels/core/host_device.h"

namespace longhaul::kernels {

struct AttentionSinkForward {
  ConstTensorView sink;  // [Hq] bf16, f32 or f64: a parameter of the model, dense
  // The attention over all keys, in the accumulator type of sink's; dense.
  TensorView out_acc;  // [Tq, Hq, Dv]
  TensorView lse;      // [Hq, Tq]
};
struct AttentionSinkBackward {
  ConstTensorView sink;        // [Hq]
  ConstTensorView lse, delta;  // [Hq, Tq] accumulator type, dense: lse' and attention_delta()'s
  TensorView dsink;            // [Hq] accumulator type, dense; +=
};

// The share of the sink in a row's softmax; shared by kernels of every device. lse: with the sink.
template <class A>
LONGHAUL_HOST_DEVICE inline A sink_probability(A sink, A lse) {
  // A sink of -inf has none, also in a row that sees no key, whose lse is -inf.
  return sink == -std::numeric_limits<A>::infinity() ? A(0) : std::exp(sink - lse);
}

void attention_sink_forward(const Context&, const AttentionSinkForward&);
void attention_sink_backward(const Context&, const AttentionSinkBackward&);

struct AttentionSinkKernel {
  std::string_view name;
  DType dtype;  // of sink
  bool (*available)();
  void (*forward)(const Context&, const AttentionSinkForward&);
  void (*backward)(const Context&, const AttentionSinkBackward&);
};

}  // namespace longhaul::kernels
