// One training pass of a model over one sample on a group of ranks: the loss and all gradients.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dist/group.h"
#include "model/model.h"
#include "parallel/layout/documents.h"

namespace longhaul::test {

struct ModelCase {
  model::ModelConfig config;
  model::ModelOptions options;
  std::string layout = "zigzag";
  std::string strategy = "ring";
  std::string linear_method = "all_gather";
  bool in_place = true;
  parallel::Documents documents = parallel::Documents::whole(61);
  // Moves one parameter element away from its initial value, for finite differences.
  std::string moved_parameter = {};
  int64_t moved_element = 0;
  double moved_by = 0;
  std::vector<int32_t> tokens = {};  // empty: random, from a seed
  // Values of parameters in place of their initial ones; for f64.
  std::map<std::string, std::vector<double>> values = {};
};

struct ModelRun {
  double loss = 0;                                       // mean over the targets, of all ranks
  std::map<std::string, std::vector<double>> gradients;  // summed over ranks
  int64_t attention_forwards = 0;
  int64_t linear_forwards = 0;
  int64_t activation_bytes = 0;  // of this rank, measured
};

model::ModelConfig small_model();
// With every option of attention that goes together: window, soft-cap, sinks and dropout, and RoPE
// with a prefix or ALiBi without.
model::ModelConfig model_with_attention_options(bool alibi);
// A token sequence and its labels (the next token within the document).
std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, uint64_t seed);
std::vector<int32_t> labels_of(const std::vector<int32_t>& tokens,
                               const parallel::Documents& documents);

// Collective.
ModelRun run_model(dist::Group& group, const ModelCase& c);
// On one rank, in this thread.
ModelRun run_on_one_rank(const ModelCase& c);

// Largest |a - b| over all gradients, relative to the largest |a| of each tensor.
double largest_deviation(const ModelRun& a, const ModelRun& b);

}  // namespace longhaul::test
