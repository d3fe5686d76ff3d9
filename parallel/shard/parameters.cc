#include "parallel/shard/parameters.h"

#include <algorithm>

#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/pointwise.h"

namespace longhaul::parallel {

namespace {
// Parameters begin at multiples of this many elements (64 bytes of f32), so that views are aligned.
constexpr int64_t kAlignment = 16;
int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
}  // namespace

ConstTensorView Parameter::use() const {
  const ParameterStore::Entry& entry = store_->entries_[index_];
  return store_->bucket_of(entry).values.rows(entry.offset, entry.size()).reshape(entry.spec.shape);
}

TensorView Parameter::grad() const {
  LONGHAUL_CHECK(trained(), "a frozen parameter has no gradient");
  const ParameterStore::Entry& entry = store_->entries_[index_];
  return store_->bucket_of(entry)
      .gradients.rows(entry.offset, entry.size())
      .reshape(entry.spec.shape);
}

TensorView Parameter::grad_or(Arena& scratch) const {
  if (trained()) return grad();
  return scratch.allocate(accumulator(store_->dtype()), spec().shape);
}

const ParameterSpec& Parameter::spec() const { return store_->entries_[index_].spec; }

Parameter ParameterStore::declare(ParameterSpec spec) {
  LONGHAUL_CHECK(spec.bucket <= (buckets_.empty() ? 0 : buckets_.back().number + 1),
                 "buckets are declared in order");
  const auto found = std::ranges::find_if(buckets_, [&](const Bucket& b) {
    return b.number == spec.bucket && b.trained == spec.trained;
  });
  const auto bucket = static_cast<size_t>(found - buckets_.begin());
  if (found == buckets_.end()) {
    buckets_.push_back({.number = spec.bucket, .trained = spec.trained});
  }
  Entry entry{.spec = std::move(spec), .bucket = bucket, .offset = buckets_[bucket].size};
  buckets_[bucket].size += round_up(entry.size(), kAlignment);
  buckets_[bucket].entries.push_back(entries_.size());
  entries_.push_back(std::move(entry));
  return Parameter(this, entries_.size() - 1);
}

void ParameterStore::allocate_values(const Context& ctx, Arena& values) {
  for (Bucket& bucket : buckets_) {
    bucket.size = round_up(bucket.size, shards_ * kAlignment);
    bucket.values = values.allocate(dtype_, {bucket.size});
    kernels::fill_zero(ctx, bucket.values);
  }
}

void ParameterStore::allocate(const Context& ctx, Arena& values, Arena& gradients) {
  allocate_values(ctx, values);
  for (Bucket& bucket : buckets_) {
    if (bucket.trained) bucket.gradients = gradients.allocate(accumulator(dtype_), {bucket.size});
  }
  zero_gradients(ctx);
}

void ParameterStore::zero_gradients(const Context& ctx) {
  for (Bucket& bucket : buckets_) {
    if (bucket.trained) kernels::fill_zero(ctx, bucket.gradients);
  }
}

void ParameterStore::initialize(const Context& ctx, uint64_t seed) {
  if (ctx.measuring()) return;
  for (const Entry& entry : entries_) {
    const RandomKey key{.seed = seed, .stream = stream_of(entry.spec.name)};
    const Initializer& init = entry.spec.initializer;
    const TensorView values = bucket_of(entry).values.rows(entry.offset, entry.size());
    // Made on the host, so that every device starts from the same bits.
    const Tensor made = values.device() == kCpu ? Tensor() : Tensor(dtype_, values.shape());
    const TensorView host = values.device() == kCpu ? values : made.view();
    visit_float(dtype_, [&]<class T>() {
      T* out = host.data<T>();
      constexpr int64_t kGrain = 1 << 14;
      ctx.parallel_for(entry.size(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const double normal =
              init.standard_deviation == 0 ? 0.0 : random_normal(key, static_cast<uint64_t>(i));
          // Through f32, so that every dtype starts from the same model.
          out[i] = T(static_cast<float>(init.constant + init.standard_deviation * normal));
        }
      });
    });
    upload(ctx.stream, host, values);
  }
}

int64_t ParameterStore::elements() const {
  int64_t total = 0;
  for (const Entry& entry : entries_) total += entry.size();
  return total;
}

int64_t ParameterStore::trained_elements() const {
  int64_t total = 0;
  for (const Entry& entry : entries_) total += entry.spec.trained ? entry.size() : 0;
  return total;
}

}  // namespace longhaul::parallel
