// What layers remember of a text between a prompt and the tokens that follow it: keys and values of
// layers with softmax, on the ranks that made them, and the states of linear layers, on every rank.
//
// The prompt is an ordinary forward pass over all ranks (StepContext::inference set), of any layout
// and strategy. After it, decode() says that passes have one token each, the same on every rank.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/config.h"
#include "model/linear_attentions.h"
#include "parallel/attention/cached_attention.h"

namespace longhaul::model {

class InferenceState {
 public:
  // `group`: the ranks that share the prompt; `alone`: a group of this rank only. Both must outlive
  // this. Throws Error(kConfig), the same on every rank, for what attention of the model refuses.
  InferenceState(dist::Group& group, dist::Group& alone, const parallel::TokenLayout& prompt,
                 const ModelConfig& config, DType dtype, int64_t new_tokens);

  // All its memory; `arena` may be measuring.
  void allocate(Arena& arena);

  // From now on passes are of one token. Each begins with next().
  void decode() { decoding_ = true; }
  bool decoding() const { return decoding_; }
  void next() { softmax_.next(); }
  int64_t tokens() const { return softmax_.tokens(); }

  parallel::CachedAttention& softmax() { return softmax_; }
  // A softmax layer's number among them.
  int64_t softmax_index(int64_t layer) const { return index_[static_cast<size_t>(layer)]; }

  // Linear layers of one token, for StepContext::linear.
  LinearAttentions& recurrence() { return recurrence_; }
  // [H, Dk, D] of a linear layer, accumulator type: what the tokens so far have left.
  const TensorView& linear_state(int64_t layer) const {
    return states_[static_cast<size_t>(index_[static_cast<size_t>(layer)])];
  }

 private:
  ModelConfig config_;
  DType dtype_;
  bool decoding_ = false;
  std::vector<int64_t> index_;  // of each layer, among those of its kind
  parallel::CachedAttention softmax_;
  LinearAttentions recurrence_;
  std::vector<TensorView> states_;
};

}  // namespace longhaul::model
