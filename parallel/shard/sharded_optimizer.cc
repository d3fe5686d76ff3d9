#include "parallel/shard/sharded_optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/pointwise.h"

namespace longhaul::parallel {

ShardedOptimizer::ShardedOptimizer(const Context& ctx, dist::Group& group, ParameterStore& store,
                                   const AdamWOptions& options, Arena& arena)
    : group_(group), store_(store), options_(options) {
  LONGHAUL_CHECK(store.shards() == group.size());
  const DType acc = accumulator(store.dtype());
  for (const ParameterStore::Bucket& bucket : store.buckets()) {
    const int64_t size = bucket.size / store.shards();
    Shard shard;
    if (!bucket.trained) {
      shard.master = own_part(bucket.values);
      shards_.push_back(shard);
      continue;
    }
    shard.gradient = arena.allocate(acc, {size});
    shard.m = arena.allocate(acc, {size});
    shard.v = arena.allocate(acc, {size});
    shard.master = store.dtype() == acc ? own_part(bucket.values) : arena.allocate(acc, {size});
    kernels::fill_zero(ctx, shard.m);
    kernels::fill_zero(ctx, shard.v);
    shards_.push_back(shard);
  }
}

TensorView ShardedOptimizer::own_part(const TensorView& bucket) const {
  const int64_t size = bucket.dim(0) / store_.shards();
  return bucket.rows(group_.rank() * size, size);
}

double ShardedOptimizer::reduce_gradients(const Context& ctx) {
  Stream stream = ctx.stream;
  double squares = 0;
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (!store_.buckets()[i].trained) continue;
    if (!ctx.measuring()) {
      group_.reduce_scatter(stream, store_.buckets()[i].gradients, shards_[i].gradient, "gradients")
          .wait(stream);
    }
    squares += kernels::sum_of_squares(ctx, shards_[i].gradient);
  }
  if (ctx.measuring()) return 0;
  norm_ = std::sqrt(group_.sum(squares, "gradient norm"));
  return norm_;
}

void ShardedOptimizer::step(const Context& ctx, double learning_rate, int64_t step) {
  const double clip =
      options_.clip_norm > 0 && norm_ > options_.clip_norm ? options_.clip_norm / norm_ : 1.0;
  const std::vector<ParameterStore::Bucket>& buckets = store_.buckets();
  for (size_t i = 0; i < buckets.size(); ++i) {
    const int64_t shard_size = buckets[i].size / store_.shards();
    const int64_t shard_begin = group_.rank() * shard_size;
    if (!buckets[i].trained) continue;
    for (size_t e : buckets[i].entries) {
      const ParameterStore::Entry& entry = store_.entries()[e];
      const int64_t begin = std::max(entry.offset, shard_begin) - shard_begin;
      const int64_t end =
          std::min(entry.offset + entry.size(), shard_begin + shard_size) - shard_begin;
      if (begin >= end) continue;
      const auto part = [&](const TensorView& view) { return view.rows(begin, end - begin); };
      kernels::adamw(ctx, {.learning_rate = learning_rate,
                           .beta1 = options_.beta1,
                           .beta2 = options_.beta2,
                           .eps = options_.eps,
                           .weight_decay = entry.spec.weight_decay ? options_.weight_decay : 0.0,
                           .grad_scale = clip,
                           .step = step,
                           .grad = part(shards_[i].gradient),
                           .master = part(shards_[i].master),
                           .m = part(shards_[i].m),
                           .v = part(shards_[i].v),
                           .param = part(own_part(buckets[i].values))});
    }
  }
  if (ctx.measuring()) return;
  Stream stream = ctx.stream;
  for (const ParameterStore::Bucket& bucket : buckets) {
    if (!bucket.trained) continue;
    group_.all_gather(stream, own_part(bucket.values), bucket.values, "parameters").wait(stream);
  }
}

void ShardedOptimizer::adopt_values(const Context& ctx) {
  for (size_t i = 0; i < shards_.size(); ++i) {
    const TensorView values = own_part(store_.buckets()[i].values);
    if (values.raw() != shards_[i].master.raw()) kernels::copy(ctx, values, shards_[i].master);
  }
}

void ShardedOptimizer::publish_values(const Context& ctx) {
  Stream stream = ctx.stream;
  for (size_t i = 0; i < shards_.size(); ++i) {
    const TensorView& bucket = store_.buckets()[i].values;
    const TensorView values = own_part(bucket);
    if (values.raw() != shards_[i].master.raw()) kernels::copy(ctx, shards_[i].master, values);
    group_.all_gather(stream, values, bucket, "parameters").wait(stream);
  }
}

std::vector<ShardedOptimizer::Range> ShardedOptimizer::ranges() const {
  std::vector<Range> result;
  const std::vector<ParameterStore::Bucket>& buckets = store_.buckets();
  for (size_t i = 0; i < buckets.size(); ++i) {
    const int64_t shard_size = buckets[i].size / store_.shards();
    const int64_t shard_begin = group_.rank() * shard_size;
    for (size_t e : buckets[i].entries) {
      const ParameterStore::Entry& entry = store_.entries()[e];
      const int64_t begin = std::max(entry.offset, shard_begin);
      const int64_t end = std::min(entry.offset + entry.size(), shard_begin + shard_size);
      if (begin >= end) continue;
      const auto part = [&](const TensorView& view) {
        return view.rank() == 0 ? view : view.rows(begin - shard_begin, end - begin);
      };
      result.push_back({&entry, begin - entry.offset, end - entry.offset, part(shards_[i].master),
                        part(shards_[i].m), part(shards_[i].v)});
    }
  }
  return result;
}

}  // namespace longhaul::parallel
