// Times one layer of linear attention over the ranks of a group, on random operands, and the same
// work of each rank without the others.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "kernels/linear_attention.h"
#include "launch/bench/group_timer.h"
#include "launch/bench/sequence_timer.h"
#include "parallel/scan/linear_attention.h"

namespace longhaul::launch {

// Operands of one layer with a scalar decay: the rows of one rank, one document. Slopes are
// 2^(-8 (h + 1) / heads), as usual for lightning attention.
class ScanOperands {
 public:
  ScanOperands(const Context& ctx, const parallel::TokenLayout& layout, int rank, DType dtype,
               int64_t heads, int64_t dim);

 private:
  friend class ScanTimer;
  friend class LoneScanTimer;
  std::vector<kernels::LinearRun> runs_;  // of rows
  std::vector<double> slopes_;
  Tensor q_, k_, v_, dout_, out_, dq_, dk_, dv_;
};

class ScanTimer {
 public:
  // Collective over `group`, as is time(). Runs both passes once, to warm up. `group`, ctx's pool
  // and `operands` must outlive this; ctx's scratch is not used.
  ScanTimer(dist::Group& group, const Context& ctx, const parallel::TokenLayout& layout,
            const parallel::LinearAttentionOptions& options, ScanOperands& operands);

  GroupTiming time(SequencePass pass);

 private:
  void run(const Context& ctx, Arena& communication, SequencePass pass);

  dist::Group& group_;
  Context ctx_;
  ScanOperands& operands_;
  parallel::LinearAttention attention_;
  Tensor states_;
  Arena scratch_, communication_;
};

// What a method is held against: every rank runs the kernels on its own rows, one call a pass, with
// states that are there already.
class LoneScanTimer {
 public:
  LoneScanTimer(dist::Group& group, const Context& ctx, ScanOperands& operands);

  GroupTiming time(SequencePass pass);

 private:
  void run(const Context& ctx, SequencePass pass);

  dist::Group& group_;
  Context ctx_;
  ScanOperands& operands_;
  Tensor states_, dstates_;
  Arena scratch_;
};

}  // namespace longhaul::launch
