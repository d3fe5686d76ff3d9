// Attention over all ranks of a sequence group: the one executor of plans (parallel/plan/plan.h).
//
// It moves what the plan's transfers say and calls the attention kernel for the plan's tasks; it
// knows no strategy. On one node, keys and values are read where their owner published them
// (dist/window.h) instead of being moved, wherever the plan allows.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "dist/group.h"
#include "kernels/attention.h"
#include "kernels/core/context.h"
#include "kernels/core/random.h"
#include "parallel/attention/activity.h"
#include "parallel/attention/plan_cache.h"
#include "parallel/cost/cluster.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

class Execution;
class SamplePlanner;
struct ExecutionSetup;

struct CoreAttentionOptions {
  HeadShape heads;
  Mask mask;
  DType dtype = DType::kF32;
  double scale = 1.0;  // of q.k
  // What kernels/attention.h does to scores and probabilities beyond that.
  double soft_cap = 0;               // 0: none
  std::vector<float> bias_slopes{};  // ALiBi: one for each query head of the model; empty: none
  double dropout = 0;                // probability of being dropped, in passes that have a key
  std::string strategy = "ring";
  std::string backward_strategy = {};  // empty: as strategy
  bool in_place = true;                // read neighbours' keys and values where they lie
  int ranks_per_node = 1;              // for strategies with two levels
  int64_t gather_heads = 0;            // kv heads that all_gather fetches at a time; 0: chosen
  // The layout of a sample, with as many rows on every rank as the layout given to CoreAttention,
  // on which memory is measured (LayoutKind::of_sample). Empty: every sample has that one.
  std::function<TokenLayout(const Documents&, const Mask&, int ranks)> sample_layout = {};
  // Of strategy disaggregated. dtype is the options' own, and costs are those of `profile`.
  Servers servers = {};
  std::optional<KernelProfile> profile = {};  // measured costs of attention; none: by pairs
};

// Local rows x all heads: q [n, Hq, D], k [n, Hkv, D], v [n, Hkv, Dv]; accumulators dense, in the
// accumulator type: out_acc [n, Hq, Dv], lse [Hq, n]. Overwritten.
//
// sink, the same on every rank: a learnable sink (kernels/attention_sink.h), counted once in every
// row; out_acc and lse are then with it. No shape: none.
//
// dropout_key: of this sample, layer and step, the same on every rank and for forward and backward;
// what is dropped depends on it, the head and the positions in the sample alone. None: nothing is
// dropped, as in evaluation.
struct CoreAttentionForward {
  ConstTensorView q, k, v;
  TensorView out_acc, lse;
  ConstTensorView sink{};  // [Hq] dtype of q
  std::optional<RandomKey> dropout_key{};
};
// delta as by kernels::attention_delta; dq_acc, dk_acc, dv_acc dense accumulators. Overwritten.
// dsink is added to: this rank's queries' share of the gradient.
struct CoreAttentionBackward {
  ConstTensorView q, k, v, dout, lse, delta;
  TensorView dq_acc, dk_acc, dv_acc;
  ConstTensorView sink{};
  TensorView dsink{};  // [Hq] accumulator type; with a sink
  std::optional<RandomKey> dropout_key{};
};

class CoreAttention {
 public:
  // Collective over `group` (the ranks that share a sample; must outlive this), as are begin,
  // finish and backward. `communication` holds the plans' buffers while they run. Throws
  // Error(kConfig) on every rank if the strategy refuses the problem. The strategy is looked up in
  // `table`.
  CoreAttention(dist::Group& group, const TokenLayout& layout, const CoreAttentionOptions& options,
                std::span<const Strategy> table = strategies());
  ~CoreAttention();

  // Passes from now on are recorded in it; null: none are. Must outlive them.
  void record(ActivityLog* log) { log_ = log; }

  // Says where this rank is, for messages about hangs.
  void announce(int64_t layer, Direction direction);

  // Where the options' servers bound buffers: the bytes of buffers that this rank takes for a
  // sample, in the direction that takes more. In a measuring context, without communication. Throws
  // Error(kConfig) if the limit rules the sample out.
  int64_t buffer_bytes(const Context& measuring, const Documents& documents) const;
  // What is reserved for them where servers' limit says it.
  int64_t reserved_bytes() const;
  // The limit with which the schedule of the sample in use would give nothing away.
  int64_t enough_buffer_bytes() const;

  // Layout and plans for a sample; layers share them, and so do samples with the same documents as
  // long as these are remembered (plan_cache.h). The same arguments on every rank. What a measuring
  // run took before the first sample is enough for every sample: what any sample's plan may need,
  // or the limit that servers' buffers are given. If a plan needs more after all, begin and
  // backward throw Error(kEnvironment) on that rank. A sample may have fewer rows than others, also
  // none, on ranks that bring none then.
  //
  // Of strategy disaggregated: collective, and ranks make sure that they plan a sample alike
  // (plan_agreement.h), once; throws Error(kEnvironment) on every rank if they do not.
  void prepare(const Documents& documents);
  // Plans for a sample that comes later, on a thread of its own beneath what this rank does until
  // that sample's prepare(), which has what planning throws. Other samples may come in between.
  // Local; one sample at a time: waits for the last one if that has not come.
  void prefetch(const Documents& documents);

  // A forward pass under way: its first transfers move while the caller does other work.
  class Pending {
   public:
    Pending(std::unique_ptr<Execution> execution, const CoreAttentionForward& args);
    Pending(Pending&&) noexcept;
    ~Pending();

   private:
    friend class CoreAttention;
    std::unique_ptr<Execution> execution_;
    CoreAttentionForward args_;
  };
  Pending begin(const Context&, Arena& communication, const CoreAttentionForward&);
  void finish(const Context&, Pending pending);

  void backward(const Context&, Arena& communication, const CoreAttentionBackward&);

  // Attention forwards run since construction: proves that recomputation redoes none.
  int64_t forward_count() const { return forward_count_; }
  // Samples that plans were made for since construction: proves that those of a sample that comes
  // again are not made again.
  int64_t planned_count() const { return planned_count_; }
  // Of these, the ones that prefetch() made.
  int64_t planned_ahead_count() const { return planned_ahead_count_; }
  // Exact (query, key) pairs of this rank's forward tasks, times query heads: the causal work.
  int64_t forward_area() const;

  DType dtype() const { return options_.dtype; }
  const TokenLayout& layout() const { return sample_->layout; }  // of the prepared sample
  const Plan& plan(Direction direction) const;

 private:
  // A sample's plans that are being made.
  struct Ahead {
    Documents documents;
    std::future<SamplePlans> plans;  // of std::async: joins
  };

  bool is_ahead(const Documents& documents) const;
  SamplePlans make_plans(const Documents& documents);
  // Whether ranks have yet to compare what they planned for these; they do then.
  bool must_agree(const Documents& documents);
  ExecutionSetup setup(const Context&, Direction direction, Arena& communication,
                       const std::optional<RandomKey>& dropout_key);
  void check_memory(Direction direction, int64_t needed, int64_t free);
  const Strategy& strategy_for(Direction direction) const;
  // Whether memory is given by servers' limit, not by a plan.
  bool bounded(Direction direction) const;
  void measure_bounded(const Context&, Arena& communication, Direction direction) const;

  dist::Group& group_;
  CoreAttentionOptions options_;
  const Strategy& strategy_;
  const Strategy& backward_strategy_;
  Tensor bias_slopes_;                    // on the device, from the first pass on
  std::vector<int> node_of_;              // a node number per rank; equal: shared memory
  std::unique_ptr<dist::Window> window_;  // k and v of the running operation
  ActivityLog* log_ = nullptr;
  uint64_t epoch_ = 0;  // attention operations begun; equal on all ranks
  int64_t forward_count_ = 0, planned_count_ = 0, planned_ahead_count_ = 0;
  SamplePlans measured_;  // memory is measured on these
  PlanCache plans_;       // of samples
  SamplePlans* sample_;   // in use
  std::shared_ptr<const SamplePlanner> planner_;
  std::optional<Ahead> ahead_;
  // Digests of the documents that ranks agree on the plans of. Not what plans_ holds: that goes by
  // the sizes of a rank's own plans, and all ranks must compare at the same samples.
  std::unordered_set<uint64_t> agreed_;
};

}  // namespace longhaul::parallel
