#include "kernels/cpu/attention_few.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_forward.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/attention_tiles.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kStep = 128;  // keys at a time: their values stay in the nearest cache

// One query row of one head, with the running maximum, sum and weighted sum of values.
template <class T>
class FewRow {
 public:
  using A = Accumulator<T>;

  FewRow(const AttentionForward& args, int64_t row, int64_t head)
      : args_(args),
        row_(row),
        head_(head),
        kv_head_(args.heads.kv_head(head)),
        out_(args.out_acc.data<A>() + row * args.out_acc.stride(0) + head * args.v.dim(2)),
        lse_(args.lse.data<A>()[head * args.q.dim(0) + row]),
        slope_(args.options.biased() ? args.options.bias_slopes.data<float>()[head] : 0),
        max_(lse_),
        sum_(lse_ == kNothing ? A(0) : A(1)) {}

  void run(Poller& poller) {
    for (const Segment& segment : args_.segments) {
      const int64_t i = row_ - segment.q_row;
      if (i < 0 || i >= segment.q_len) continue;
      const IndexRange keys = keys_seen(segment, i, i + 1);
      for (int64_t j = keys.begin; j < keys.end; j += kStep) {
        const int64_t count = std::min(kStep, keys.end - j);
        fold(segment, i, j, count);
        poller.did(count * (args_.q.dim(2) + args_.v.dim(2)));
      }
    }
    if (sum_ == A(0)) return;  // has seen nothing, now or before
    lse_ = max_ + std::log(sum_);
    const A scale = A(1) / sum_;
    for (int64_t d = 0; d < args_.v.dim(2); ++d) out_[d] *= scale;
  }

 private:
  static constexpr A kNothing = -std::numeric_limits<A>::infinity();

  void fold(const Segment& segment, int64_t i, int64_t j, int64_t count) {
    const T* q = args_.q.data<T>() + row_ * args_.q.stride(0) + head_ * args_.q.stride(1);
    const auto at = [&](const ConstTensorView& x) {
      return x.data<T>() + (segment.k_row + j) * x.stride(0) + kv_head_ * x.stride(1);
    };
    A scores[kStep];
    dot_rows<T>()(at(args_.k), args_.k.stride(0), count, q, args_.q.dim(2), scores);
    const auto scale = static_cast<A>(args_.options.scale);
    const auto cap = static_cast<A>(args_.options.soft_cap);
    const int64_t distance = segment.q_pos - segment.k_pos + (i - j) * segment.stride;
    A max = max_;
    for (int64_t n = 0; n < count; ++n) {
      A& score = scores[n];
      score *= scale;
      if (cap > 0) score = cap * std::tanh(score / cap);
      score -= slope_ * static_cast<A>(distance - n * segment.stride);
      max = std::max(max, score);
    }
    // Any finite number will do where all scores are -inf.
    const A shift = max == kNothing ? A(0) : max;
    const A keep = max_ == kNothing ? A(0) : std::exp(max_ - shift);
    A added = 0;
    for (int64_t n = 0; n < count; ++n) added += scores[n] = std::exp(scores[n] - shift);
    sum_ = sum_ * keep + added;
    max_ = max;
    add_rows<T>()(at(args_.v), args_.v.stride(0), count, scores, keep, out_, args_.v.dim(2));
  }

  const AttentionForward& args_;
  const int64_t row_, head_, kv_head_;
  A* out_;
  A& lse_;
  const A slope_;
  A max_, sum_;
};

}  // namespace

template <class T>
void attention_forward_few(const Context& ctx, const AttentionForward& args) {
  LONGHAUL_CHECK(args.options.dropout.probability == 0);
  // As the tiled kernels take it for any number of queries: who measures with few may have more.
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  const int64_t elements =
      ForwardScratch<A>::size(args.q.dim(2), args.v.dim(2), !args.options.plain());
  ctx.scratch->allocate(dtype_of<A>, {ctx.pool->threads(), elements});
  if (ctx.measuring() || args.q.empty()) return;
  const int64_t heads = args.q.dim(1);
  ctx.pool->run(
      args.q.dim(0) * heads,
      [&](int64_t task, int worker) {
        Poller poller(ctx, worker);
        FewRow<T>(args, task / heads, task % heads).run(poller);
      },
      ctx.poll);
}

template void attention_forward_few<bf16>(const Context&, const AttentionForward&);
template void attention_forward_few<float>(const Context&, const AttentionForward&);
template void attention_forward_few<double>(const Context&, const AttentionForward&);

}  // namespace longhaul::kernels::cpu
