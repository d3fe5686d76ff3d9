// Compares linear attention over ranks with linear attention on one rank, as check.h does softmax
// attention: on the run's own layout, method, decay and dtype at a reduced size.
#pragma once

#include <string>
#include <vector>

#include "launch/check/deviation.h"
#include "launch/config/config.h"
#include "parallel/scan/linear_attention.h"

namespace longhaul::launch {

// A linear layer's attention as it runs, with fewer heads and tokens.
struct CheckedLinearAttention {
  const parallel::LayoutKind& layout;
  parallel::TokenLayout reduced;  // of samples of one document
  std::vector<parallel::Documents> samples;
  std::function<parallel::TokenLayout(const parallel::Documents&)> sample_layout;
  parallel::LinearAttentionOptions options;
  std::vector<double> slopes;

  Subject subject() const;
};
// Of the first linear layer, for as many ranks as share a sample. The model has one. `method`: the
// one that is used, a row of scan_methods().
CheckedLinearAttention checked_linear_attention(const Config& config, const std::string& method);

// Collective over `sequence`, the ranks that share a sample; the same result on all of them. Runs
// on ctx's device and threads; ctx's scratch is not used.
std::vector<Deviation> check_linear_attention(dist::Group& sequence, const Context& ctx,
                                              const CheckedLinearAttention& attention);

}  // namespace longhaul::launch
