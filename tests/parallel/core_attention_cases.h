// CoreAttention on a group of ranks against naive attention in fp64.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/group.h"
#include "parallel/attention/core_attention.h"
#include "tests/parallel/attention_world.h"

namespace longhaul::test {

struct AttentionCase {
  std::string strategy = "ring";
  std::string backward_strategy{};  // empty: as strategy
  std::string layout = "zigzag";
  int64_t tokens = 61;
  parallel::HeadShape heads;
  parallel::Mask mask;
  parallel::Documents documents = parallel::Documents::whole(61);
  DType dtype = DType::kF64;
  bool in_place = true;
  int ranks_per_node = 1;
  int64_t gather_heads = 0;
  ScoreOptions options = {};
  parallel::Servers servers = {};  // ranks: without rows, after all others
  std::string name() const;
};

// Why the strategy cannot do the case, if so.
std::optional<std::string> refusal(const AttentionCase& c, int ranks);

// Of the case's documents.
parallel::TokenLayout layout_of(const AttentionCase& c, int ranks);

// Every option alone, none, and all; values that bf16 holds exactly.
struct NamedOptions {
  std::string name;
  ScoreOptions options;
};
std::vector<NamedOptions> score_options(int64_t q_heads);

// Naive attention on inputs of the case's dtype.
AttentionTruth truth_of(const AttentionCase& c, uint64_t seed);

// This rank's results, dense: out, dq, dk, dv [rows, heads, dim]; lse [heads, rows]; dsink [heads],
// if there is a sink.
struct AttentionResult {
  std::vector<double> out, lse, dq, dk, dv, dsink;
  int64_t sent_bytes = 0, in_place_bytes = 0;
  int64_t buffer_bytes = 0;  // measured, of both directions' larger one
  bool operator==(const AttentionResult&) const = default;
};

// The truth's inputs at the positions of a rank, and poisoned results.
struct RankTensors {
  RankTensors(const AttentionTruth& truth, const std::vector<int64_t>& positions, DType dtype);
  AttentionResult result() const;

  Tensor q, k, v, dout, delta;
  Tensor out, lse, dq, dk, dv;
  Tensor sink, dsink;  // no elements: no sink
  std::optional<RandomKey> dropout_key = {};
};
parallel::CoreAttentionOptions options_of(const AttentionCase& c);
// Forward and backward.
void run_passes(parallel::CoreAttention& attention, const RankTensors& tensors, Arena& scratch,
                Arena& communication);

// Collective: forward and backward of the truth's inputs on poisoned memory that was measured for
// one document.
AttentionResult run_core_attention(
    dist::Group& group, const AttentionCase& c, const AttentionTruth& truth,
    std::span<const parallel::Strategy> table = parallel::strategies());

// Collective. Error norms over all ranks, relative to the truth's norms (to 1 where those are
// less: gradients may be zero): out, lse, dq, dk, dv, dsink.
std::vector<double> errors(dist::Group& group, const AttentionCase& c, const AttentionTruth& truth,
                           const AttentionResult& result);

}  // namespace longhaul::test
