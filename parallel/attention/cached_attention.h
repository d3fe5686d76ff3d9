// Softmax attention of one new token at a time to all tokens before it, whose keys and values stay
// on the ranks that made them: those of a prompt where its layout has put them, new ones on all
// ranks in turn. Each rank attends to what it keeps; the partial results travel to all ranks in one
// all-gather of Hq * (Dv + 1) numbers and are merged by log-sum-exp in the order of ranks (Split-KV
// decoding, "Flash-Decoding", Dao et al. 2023, over ranks).
#pragma once

#include <cstdint>
#include <vector>

#include "dist/group.h"
#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "parallel/attention/core_attention.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

class CachedAttention {
 public:
  // `group`: the ranks that keep tokens; must outlive this. `prompt`: where the first tokens are,
  // one document. `layers`: that attend, numbered from 0. Of the options, heads, mask, dtype,
  // scale, soft cap and slopes count. Throws Error(kConfig), the same on every rank, for a prompt
  // shorter than the mask's prefix, whose tokens would have seen the new ones.
  CachedAttention(dist::Group& group, const TokenLayout& prompt,
                  const CoreAttentionOptions& options, int64_t layers, int64_t new_tokens);

  // Keys and values of all layers on this rank; `arena` may be measuring.
  void allocate(Arena& arena);

  // The prompt's rows of this rank. k [n, Hkv, D], v [n, Hkv, Dv].
  void keep(const Context&, int64_t layer, const ConstTensorView& k, const ConstTensorView& v);

  // One token more, the same on every rank; attend() of each layer is then of this token. At most
  // new_tokens times.
  void next();
  // Of the prompt, and those that next() has added: the last one's position plus one.
  int64_t tokens() const { return prompt_.tokens() + added_; }

  // q [1, Hq, D], k [1, Hkv, D], v [1, Hkv, Dv] of the new token, the same bits on every rank;
  // out_acc [1, Hq, Dv] of the accumulator type, the same bits on every rank. sink: see
  // CoreAttentionForward.
  struct Token {
    ConstTensorView q, k, v;
    TensorView out_acc;
    ConstTensorView sink{};  // [Hq]
  };
  // Collective.
  void attend(const Context&, Arena& communication, int64_t layer, const Token&);

 private:
  struct LayerCache {
    TensorView k, v;  // [rows of the prompt + most new ones, Hkv, D or Dv]
  };
  int64_t own_added() const;  // of the added tokens, on this rank
  std::vector<Segment> visible() const;
  void share(const Context&, const TensorView& parts, const TensorView& mine);

  dist::Group& group_;
  TokenLayout prompt_;
  CoreAttentionOptions options_;
  int64_t new_tokens_;
  int64_t added_ = 0;
  std::vector<LayerCache> layers_;
  Tensor bias_slopes_;  // on the device, from the first token on
};

}  // namespace longhaul::parallel
