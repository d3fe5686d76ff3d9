// What schedules of strategy disaggregated come to while a run trains, and a word where they give
// way to the limit of buffers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "parallel/attention/core_attention.h"

namespace longhaul::launch {

class ScheduleReport {
 public:
  explicit ScheduleReport(int nano_batches) : nano_batches_(nano_batches) {}

  // Of the sample that attention is prepared for. Nothing under other strategies.
  void add(const parallel::CoreAttention& attention);
  // The worst of what was added since the last call. max_over_mean = 0: nothing was.
  parallel::Scheduled take();
  // Once, of the first sample that gave way: a sentence with the buffers that would do for it.
  std::optional<std::string> news(int64_t step);

 private:
  int nano_batches_;
  parallel::Scheduled worst_;
  std::optional<parallel::Scheduled> first_;  // that gave way
  int64_t enough_bytes_ = 0;                  // for it
  bool said_ = false;
};

}  // namespace longhaul::launch
