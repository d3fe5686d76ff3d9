#include "launch/generate/load_weights.h"

#include <algorithm>

#include "checkpoint/checkpoint.h"
#include "kernels/pointwise.h"

namespace longhaul::launch {

void load_weights(dist::Group& group, const Context& ctx, const std::string& checkpoint,
                  const std::map<std::string, std::string>& model,
                  const parallel::ParameterStore& store) {
  LONGHAUL_CHECK(store.shards() == group.size());
  const DType acc = accumulator(store.dtype());
  struct Share {
    TensorView values;  // this rank's part of a bucket
    Tensor wide;      // the same in the accumulator type, if it is saved as that and the store's is
                      // another
    TensorView read;  // of the two, what is read into
  };
  std::vector<Share> shares;
  checkpoint::State state;
  for (const parallel::ParameterStore::Bucket& bucket : store.buckets()) {
    const int64_t size = bucket.size / store.shards(), begin = group.rank() * size;
    Share share{.values = bucket.values.rows(begin, size), .wide = {}, .read = {}};
    if (bucket.trained && store.dtype() != acc) {
      share.wide = Tensor(acc, {size}, ctx.device());
      kernels::fill_zero(ctx, share.wide);  // also what pads a bucket
    }
    share.read = share.wide.view().rank() > 0 ? share.wide.view() : share.values;
    for (const size_t e : bucket.entries) {
      const parallel::ParameterStore::Entry& entry = store.entries()[e];
      const int64_t from = std::max(entry.offset, begin);
      const int64_t to = std::min(entry.offset + entry.size(), begin + size);
      if (from >= to) continue;
      state.push_back({.name = entry.spec.name,
                       .shape = entry.spec.shape,
                       .begin = from - entry.offset,
                       .end = to - entry.offset,
                       .data = share.read.rows(from - begin, to - from)});
    }
    shares.push_back(std::move(share));
  }
  wait_until_idle(ctx.stream);
  checkpoint::load(group, checkpoint, model, state);
  Stream stream = ctx.stream;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i].wide.view().rank() > 0) kernels::copy(ctx, shares[i].read, shares[i].values);
    group.all_gather(stream, shares[i].values, store.buckets()[i].values, "parameters")
        .wait(stream);
  }
}

}  // namespace longhaul::launch
