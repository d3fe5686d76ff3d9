// The planners, one file each; their steps and bytes in prose: parallel/ALGORITHMS.md.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

// Keys and values travel once around the ring; in backward their gradients follow, starting at the
// first neighbour (P-1 hops). Ring Attention (Liu et al. 2023); balanced by a zigzag layout.
Plan plan_ring(const Problem& problem, Direction direction, int rank);

// Forward as the ring. Backward: keys stay home with their gradients; queries, dout, lse and delta
// travel, and dq follows (P-1 hops). Fewer bytes than the ring's backward if K/H > (2b+g)/(2b+2g),
// that is 2/3 in bf16, 3/4 in f32.
Plan plan_query_ring(const Problem& problem, Direction direction, int rank);

// Keys and values of all ranks are gathered, a range of kv heads after the other: one segment list,
// nothing to merge. Backward gathers again and reduce-scatters dk, dv in the accumulator type.
// LASP-2H (Sun et al. 2025), Llama 3 (Dubey et al. 2024, section 3.3.2).
Plan plan_all_gather(const Problem& problem, Direction direction, int rank);
std::optional<std::string> all_gather_refusal(const Problem& problem);

// Two nested rings: nodes x ranks of a node. A transfer between nodes has a whole inner ring's
// time. DoubleRing attention (LoongTrain, Gu et al. 2024).
Plan plan_double_ring(const Problem& problem, Direction direction, int rank);
std::optional<std::string> double_ring_refusal(const Problem& problem);

// All-to-all: rows are exchanged for heads, attention is local, and back. DeepSpeed Ulysses (Jacobs
// et al. 2023), without its divisibility rules: heads divide unevenly, kv heads go to every rank
// whose query heads need them.
Plan plan_ulysses(const Problem& problem, Direction direction, int rank);

// Pairwise, straight from the owner: in round after round a rank gets the key rows of one other
// that its queries see, and only those; gradients go straight back. Rounds follow who needs whom.
// On a zigzag layout with a causal mask: the needed halves only. Group-cast and group-reduce
// (MagiAttention, Tao and Huang 2025) in rounds.
Plan plan_group_cast(const Problem& problem, Direction direction, int rank);

// Ranks that causality leaves idle compute for those with more to do: DistFlashAttn (LightSeq, Li
// et al. 2023), its load-balanced schedule, for any number of ranks.
Plan plan_lightseq(const Problem& problem, Direction direction, int rank);
std::optional<std::string> lightseq_refusal(const Problem& problem);

// Ulysses within groups of ranks_per_node consecutive ranks, a ring of keys across the groups among
// ranks with the same heads. USP (Fang & Zhao 2024); 2D attention (LoongTrain, Gu et al. 2024). One
// group: ulysses; groups of one rank: ring.
Plan plan_usp(const Problem& problem, Direction direction, int rank);
std::optional<std::string> usp_refusal(const Problem& problem);

// One attention task of core attention disaggregation (DistCA): queries of one rank against some
// keys of another, computed by any rank; partial results are merged at the queries' home. Rows are
// home rows of the owners. Tasks together must cover the mask (cut by the caller).
struct PlacedTask {
  int q_owner = 0;
  Span q_rows;
  int k_owner = 0;
  Span k_rows;
  Span q_heads;
  int server = 0;
  int round = 0;  // of plan_tasks; nothing to tasks whose rows are all the server's own
};
// The bands of a task, its rows being q_row and k_row onward.
std::vector<Segment> cut_task(const Problem& problem, const PlacedTask& task, int64_t q_row,
                              int64_t k_row);
// Rows of a head go to a server once, in the first round that needs them, and results come back
// after the last. While a round is computed, the rows of the next one travel there and the results
// of the one before travel back.
Plan plan_tasks(const Problem& problem, Direction direction, const std::vector<PlacedTask>& tasks,
                int rank);

// Core attention disaggregation: tasks as the scheduler places them on servers, which may be ranks
// without rows (parallel/server/schedule.h). DistCA (Zhuang et al. 2025).
Plan plan_disaggregated(const Problem& problem, Direction direction, int rank);
std::vector<Plan> all_plans_disaggregated(const Problem& problem, Direction direction);
std::optional<std::string> disaggregated_refusal(const Problem& problem);

}  // namespace longhaul::parallel
