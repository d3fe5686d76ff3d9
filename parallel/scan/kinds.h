// What each kind of linear attention computes on a rank's runs, in one table. Internal to
// parallel/scan.
#pragma once

#include <span>
#include <string_view>

#include "parallel/scan/linear_attention.h"

namespace longhaul::parallel {

struct RunRows {
  std::span<const kernels::LinearRun> runs;
  std::span<const int64_t> document_begins;
};

// sums and decay of maps: [R, H, D, Dv] and [R, H, elements]. states, dstates: [R, H, D, Dv], what
// enters each run from the left and from the right. Results are those of the arguments.
struct LinearKindParts {
  LinearKind kind;
  std::string_view name;
  kernels::StateDecay decay;

  void (*maps)(const Context&, const RunRows&, const LinearAttentionForwardArgs&,
               const TensorView& sums, const TensorView& decay);
  // The whole; without states (a view of rank 0) as if zeros entered.
  void (*forward)(const Context&, const RunRows&, const LinearAttentionForwardArgs&,
                  const ConstTensorView& states);
  // What forward() with states has more than one without. Null: no sum of the two.
  void (*add_states)(const Context&, const RunRows&, const LinearAttentionForwardArgs&,
                     const ConstTensorView& states);

  void (*backward_maps)(const Context&, const RunRows&, const LinearAttentionBackwardArgs&,
                        const TensorView& sums, const TensorView& decay);
  // Results, but for those that are made afterwards, are added to.
  void (*backward)(const Context&, const RunRows&, const LinearAttentionBackwardArgs&,
                   const ConstTensorView& states, const ConstTensorView& dstates);
  void (*add_dstates)(const Context&, const RunRows&, const LinearAttentionBackwardArgs&,
                      const ConstTensorView& dstates);
  // What can only be made when all else is complete, from what enters each run and what leaves it
  // to the left. Null: nothing.
  void (*complete)(const Context&, const RunRows&, const LinearAttentionBackwardArgs&,
                   const ConstTensorView& states, const ConstTensorView& leaving);
};

const LinearKindParts& parts_of(LinearKind kind);

}  // namespace longhaul::parallel
