// The linear attention of a model's layers over the ranks that share a sample: one
// parallel::LinearAttention for each shape of state that layers have.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "model/config.h"
#include "parallel/scan/linear_attention.h"

namespace longhaul::model {

class LinearAttentions {
 public:
  struct Options {
    DType dtype = DType::kF32;
    std::string method = "all_gather";  // a row of parallel::scan_methods()
    int64_t most_runs = 0;              // see parallel::LinearAttentionOptions
    double decay_bound = 0;             // likewise
  };

  // None if the model has no linear layer. `group` must outlive this. Throws Error(kConfig) on
  // every rank for what the method or the kind of attention refuses.
  LinearAttentions(dist::Group& group, const parallel::TokenLayout& layout,
                   const ModelConfig& config, const Options& options);

  bool empty() const { return by_key_dim_.empty(); }
  parallel::LinearAttention& of(int64_t key_dim);
  // For a sample, the same on every rank.
  void prepare(const parallel::Documents& documents, const parallel::TokenLayout& of_sample);
  // Forwards run since construction, over all layers: proves that recomputation redoes none.
  int64_t forward_count() const;

 private:
  std::map<int64_t, std::unique_ptr<parallel::LinearAttention>> by_key_dim_;
};

// How a layer with keys of this size reaches parallel/scan.
parallel::LinearAttentionOptions linear_attention_options(const ModelConfig& config, DType dtype,
                                                          int64_t key_dim);

}  // namespace longhaul::model
