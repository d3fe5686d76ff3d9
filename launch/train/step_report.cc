#include "launch/train/step_report.h"

#include <algorithm>
#include <array>

#include "kernels/core/tensor.h"

namespace longhaul::launch {

StepReport gather(dist::Group& world, const RankStep& mine) {
  constexpr size_t kFields = 7;
  Tensor send(DType::kF64, {static_cast<int64_t>(kFields)});
  Tensor all(DType::kF64, {world.size(), static_cast<int64_t>(kFields)});
  const std::array<double, kFields> fields{mine.loss_sum,
                                           mine.seconds,
                                           mine.waited_seconds,
                                           mine.flops,
                                           mine.memory_peak_bytes,
                                           mine.memory_plan_bytes,
                                           mine.stop_requested ? 1.0 : 0.0};
  std::ranges::copy(fields, send.span<double>().begin());
  Stream stream;
  world.all_gather(stream, send, all, "metrics").wait(stream);

  StepReport report;
  double longest = -1;
  for (int rank = 0; rank < world.size(); ++rank) {
    const double* row = all.span<double>().data() + static_cast<size_t>(rank) * kFields;
    const double seconds = row[1], waited = row[2];
    report.loss_sum += row[0];
    report.seconds = std::max(report.seconds, seconds);
    report.flops += row[3];
    report.exposed_communication += seconds > 0 ? waited / seconds / world.size() : 0;
    report.memory_peak_bytes = std::max(report.memory_peak_bytes, row[4]);
    report.memory_plan_bytes = std::max(report.memory_plan_bytes, row[5]);
    report.stop_requested = report.stop_requested || row[6] != 0;
    if (seconds - waited > longest) {
      longest = seconds - waited;
      report.slowest_rank = rank;
    }
  }
  return report;
}

}  // namespace longhaul::launch
