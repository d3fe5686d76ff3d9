// A rank that computes attention for trainers (core attention disaggregation) and holds no model:
// no parameters, no optimizer, no corpus. What it does, trainers call for (attention_rank.h).
#pragma once

#include <cstdint>

#include "launch/config/config.h"
#include "launch/train/attention_rank.h"
#include "launch/train/rank_memory.h"
#include "model/config.h"

namespace longhaul::launch {

// The part in a pass of a rank that has no rows in it: forward of every softmax layer, and backward
// if the call is for it. Nothing is kept in between: backward's inputs are sent again. In a
// measuring context takes what any pass may take.
void serve(AttentionRank& rank, const Context& ctx, Arena& communication,
           const model::ModelConfig& model, const Call& call, uint64_t seed);

class Server {
 public:
  // Collective over `world`, in which trainers make an Engine meanwhile; must outlive this.
  Server(dist::Group& world, const Config& config);

  // Until trainers end. Throws the SharedError that they end with, if any.
  void run();

  const RankMemory& memory() const { return memory_; }
  parallel::CoreAttention& attention() { return rank_.attention(); }

 private:
  // Until it is done; false: it was the end.
  bool serve_call();

  Config config_;
  model::ModelConfig model_;
  AttentionRank rank_;
  RankMemory memory_;
};

}  // namespace longhaul::launch
