// Attention of one layer over one sample on a cluster: what every strategy would cost.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/config/config.h"
#include "launch/plan/linear_plan.h"
#include "parallel/cost/choose.h"
#include "parallel/cost/row_price.h"

namespace longhaul::launch {

struct AttentionPlan {
  int ranks = 1;  // that share a sample
  int ranks_per_node = 1;
  int64_t documents = 1;  // of the sample that was planned for
  // With a layout that goes by documents: as configured, or by the figures of the cluster.
  std::optional<parallel::RowPrice> row_price;
  double balance = 1;  // pairs of the fullest rank / mean, by who owns the queries
  parallel::Cluster cluster;
  std::vector<std::string> sources;  // where the figures and the documents come from, for people
  parallel::Choice forward, backward;
};

// `config` is resolved. Reads parallel.cluster; without one, and for kernels that it leaves out,
// measures kernels and memory here and assumes links. The documents are those of the corpus's
// first sample, or one if there is no corpus.
AttentionPlan plan_attention(const Config& config);

// Of what the model's layers have: softmax attention, linear attention, or both.
struct LayerPlans {
  std::optional<AttentionPlan> softmax;
  std::optional<LinearPlan> linear;
};
void print_table(const Config& config, const LayerPlans& plans);
void print_json(const Config& config, const LayerPlans& plans);

}  // namespace longhaul::launch
