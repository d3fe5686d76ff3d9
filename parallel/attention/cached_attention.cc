#include "parallel/attention/cached_attention.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/attention.h"
#include "kernels/attention_sink.h"
#include "kernels/core/transfer.h"
#include "kernels/pointwise.h"

namespace longhaul::parallel {

namespace {

// Keys of a run at positions [begin, end), for the one query at `position`. `row`: of the run's
// first key in the cache.
void add_visible(const Run& run, int64_t row, int64_t begin, int64_t end, int64_t position,
                 std::vector<Segment>& segments) {
  // Of the run's keys, how many lie before a position.
  const auto before = [&](int64_t bound) {
    const int64_t distance = bound - run.global_begin;
    return std::clamp<int64_t>((distance + run.stride - 1) / run.stride, 0, run.length);
  };
  const int64_t first = begin <= run.global_begin ? 0 : before(begin);
  const int64_t last = end <= run.global_begin ? 0 : before(end);
  if (first >= last) return;
  segments.push_back({.q_row = 0,
                      .q_len = 1,
                      .k_row = row + first,
                      .k_len = last - first,
                      .band_lo = -kBandOpen,
                      .band_hi = kBandOpen,
                      .q_pos = position,
                      .k_pos = run.position(first),
                      .stride = run.stride});
}

}  // namespace

CachedAttention::CachedAttention(dist::Group& group, const TokenLayout& prompt,
                                 const CoreAttentionOptions& options, int64_t layers,
                                 int64_t new_tokens)
    : group_(group),
      prompt_(prompt),
      options_(options),
      new_tokens_(new_tokens),
      layers_(static_cast<size_t>(layers)) {
  LONGHAUL_CHECK(prompt.ranks() == group.size() && options.mask.causal && new_tokens >= 0);
  if (prompt.tokens() < options.mask.prefix && new_tokens > 0) {
    fail(ErrorCode::kConfig,
         absl::StrCat("the prompt has ", prompt.tokens(),
                      " tokens, fewer than model.attention.prefix_length ", options.mask.prefix,
                      ": a prefix is given whole, since its tokens see each other; give a longer "
                      "prompt"));
  }
}

void CachedAttention::allocate(Arena& arena) {
  const int64_t ranks = group_.size();
  const int64_t rows = prompt_.rows(group_.rank()) + (new_tokens_ + ranks - 1) / ranks;
  const HeadShape& h = options_.heads;
  for (LayerCache& layer : layers_) {
    layer.k = arena.allocate(options_.dtype, {rows, h.kv_heads, h.head_dim});
    layer.v = arena.allocate(options_.dtype, {rows, h.kv_heads, h.value_dim});
  }
}

void CachedAttention::keep(const Context& ctx, int64_t layer, const ConstTensorView& k,
                           const ConstTensorView& v) {
  const LayerCache& cache = layers_[static_cast<size_t>(layer)];
  LONGHAUL_CHECK(k.dim(0) == prompt_.rows(group_.rank()) && v.dim(0) == k.dim(0));
  kernels::copy(ctx, k, cache.k.rows(0, k.dim(0)));
  kernels::copy(ctx, v, cache.v.rows(0, v.dim(0)));
}

void CachedAttention::next() {
  LONGHAUL_CHECK(added_ < new_tokens_, "there is memory for as many tokens as were announced");
  ++added_;
}

// In turn, from rank 0 on: ranks of a layout differ by a chunk at most.
int64_t CachedAttention::own_added() const {
  const int64_t ranks = group_.size();
  return (added_ + ranks - 1 - group_.rank()) / ranks;
}

std::vector<Segment> CachedAttention::visible() const {
  const int64_t position = tokens() - 1;
  const Mask& mask = options_.mask;
  const int64_t recent = mask.window > 0 ? std::max<int64_t>(0, position - mask.window + 1) : 0;
  const int64_t prefix = std::min(mask.prefix, recent);  // what of it is not recent
  std::vector<Segment> segments;
  int64_t row = 0;
  const auto add = [&](const Run& run) {
    if (prefix > 0) add_visible(run, row, 0, prefix, position, segments);
    add_visible(run, row, recent, position + 1, position, segments);
    row += run.length;
  };
  for (const Run& run : prompt_.runs(group_.rank())) add(run);
  add({.global_begin = prompt_.tokens() + group_.rank(),
       .length = own_added(),
       .stride = group_.size()});
  return segments;
}

// parts: [P, elements], of which `mine` is this rank's.
void CachedAttention::share(const Context& ctx, const TensorView& parts, const TensorView& mine) {
  if (group_.size() == 1 || ctx.measuring()) return;
  Stream stream = ctx.stream;
  group_.all_gather(stream, mine, parts, "attention to kept tokens").wait(stream);
}

void CachedAttention::attend(const Context& ctx, Arena& communication, int64_t layer,
                             const Token& token) {
  const LayerCache& cache = layers_[static_cast<size_t>(layer)];
  const HeadShape& h = options_.heads;
  group_.job().place = absl::StrCat("softmax layer ", layer, " of token ", tokens() - 1);

  LONGHAUL_CHECK(added_ > 0, "next() first");
  if ((added_ - 1) % group_.size() == group_.rank()) {
    const int64_t row = prompt_.rows(group_.rank()) + own_added() - 1;
    kernels::copy(ctx, token.k, cache.k.rows(row, 1));
    kernels::copy(ctx, token.v, cache.v.rows(row, 1));
  }

  if (!options_.bias_slopes.empty() && bias_slopes_.view().rank() == 0) {
    bias_slopes_ = Tensor(DType::kF32, {h.q_heads}, ctx.device());
    upload(ctx.stream, std::as_bytes(std::span(options_.bias_slopes)), bias_slopes_.view().raw());
  }
  kernels::AttentionOptions kernel_options{.scale = options_.scale, .soft_cap = options_.soft_cap};
  if (!options_.bias_slopes.empty()) kernel_options.bias_slopes = bias_slopes_;

  Arena::Scope scope(communication);
  const int64_t values = h.q_heads * h.value_dim, elements = values + h.q_heads;
  const TensorView parts =
      communication.allocate(accumulator(options_.dtype), {group_.size(), elements});
  const auto part = [&](int64_t rank) { return parts.rows(rank, 1).reshape({elements}); };
  const auto out_of = [&](int64_t rank) {
    return part(rank).rows(0, values).reshape({1, h.q_heads, h.value_dim});
  };
  const auto lse_of = [&](int64_t rank) {
    return part(rank).rows(values, h.q_heads).reshape({h.q_heads, 1});
  };

  const int64_t own = group_.rank();
  kernels::attention_init(ctx, out_of(own), lse_of(own));
  const std::vector<Segment> segments = visible();
  kernels::attention_forward(ctx, {.segments = segments,
                                   .heads = {.q_begin = 0, .kv_begin = 0, .group = h.group()},
                                   .q = token.q,
                                   .k = cache.k,
                                   .v = cache.v,
                                   .options = kernel_options,
                                   .out_acc = out_of(own),
                                   .lse = lse_of(own)});
  share(ctx, parts, parts.rows(own, 1));
  for (int64_t rank = 1; rank < group_.size(); ++rank) {
    kernels::attention_merge(ctx, out_of(rank), lse_of(rank), out_of(0), lse_of(0));
  }
  if (token.sink.rank() > 0) {
    kernels::attention_sink_forward(ctx,
                                    {.sink = token.sink, .out_acc = out_of(0), .lse = lse_of(0)});
  }
  kernels::copy(ctx, out_of(0), token.out_acc);
}

}  // namespace longhaul::parallel
