#include "launch/train/position_loss.h"

namespace longhaul::launch {

void add_by_position(const ConstTensorView& row_loss, const parallel::Shard& shard,
                     const parallel::TokenLayout& layout, int rank, PositionLoss& buckets) {
  const auto count = static_cast<int64_t>(buckets.sum.size());
  visit_float(row_loss.dtype(), [&]<class T>() {
    const T* loss = row_loss.data<T>();
    for (int64_t row = 0; row < shard.rows(); ++row) {
      if (shard.labels[static_cast<size_t>(row)] < 0) continue;
      const int64_t position = layout.position(rank, row);
      const auto bucket = static_cast<size_t>(position * count / layout.tokens());
      buckets.sum[bucket] += static_cast<double>(loss[row]);
      buckets.count[bucket] += 1;
    }
  });
}

}  // namespace longhaul::launch
