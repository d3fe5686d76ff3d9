// Linear attention over all ranks of a sequence group. Each rank makes the maps of its own runs of
// tokens (kernels/linear_attention.h), a plan composes them over ranks (parallel/plan/scan.h, run
// by the same executor as softmax attention), and each run is then computed from the state that
// enters it. What the methods send and how long they wait: parallel/ALGORITHMS.md, "Scans".
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "kernels/linear_attention.h"
#include "parallel/plan/scan.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

struct LinearKindParts;
struct RunRows;

enum class LinearKind {
  kDecay,      // a scalar decay per head: lightning attention, retention; slopes of 0: basic
  kGated,      // a gate per token, head and key dimension: gated linear attention (GLA)
  kDeltaRule,  // gated delta rule: a gate and a writing strength per token and head
};

std::string_view name(LinearKind kind);  // "decay", "gated", "delta_rule"

struct LinearAttentionOptions {
  LinearKind kind = LinearKind::kDecay;
  int64_t heads = 1;
  int64_t head_dim = 64;   // D, of queries and keys
  int64_t value_dim = 64;  // Dv
  DType dtype = DType::kF32;
  bool causal = true;  // false: kDecay only; token j counts a^|i-j| for token i of its document
  std::string method = "all_gather";  // a row of scan_methods()
  // For layouts that depend on the sample (balanced): as many runs of tokens as a rank may have.
  // Memory is for these; samples with more are brought to a contiguous layout and back, as striped
  // ones always are. 0: all samples have the layout that is given to LinearAttention.
  int64_t most_runs = 0;
  // Above 0, for kDecay: heads that keep less of a state than this over each run of tokens take
  // states from the neighbouring run only (parallel/plan/decayed_scan.h). Not exact.
  double decay_bound = 0;
};

// Views of rank 0 (default ones) stand for what is absent. q, k [n, H, D], v, dout [n, H, Dv], n
// the rank's rows: any row stride, the last dimension dense. Gates and results are dense and of the
// accumulator type; results are overwritten.
struct LinearAttentionForwardArgs {
  ConstTensorView q, k, v;
  std::span<const double> slopes{};  // kDecay: [H], of this layer, at least 0
  ConstTensorView log_gate{};        // kGated [n, H, D], kDeltaRule [n, H]: at most 0
  ConstTensorView beta{};            // kDeltaRule [n, H]
  TensorView out_acc;                // [n, H, Dv]
  TensorView states;  // [runs(), H, D, Dv], dense: what enters each run; backward reads it
  // The state before the sample's first token, the same on every rank, whose first document then
  // continues the one that it came from. [H, D, Dv] of the accumulator type, dense. Causal only.
  ConstTensorView initial_state{};
  // The state after the sample's last token, on every rank; all ranks ask for it, or none does. It
  // is there after finish().
  TensorView final_state{};
};
struct LinearAttentionBackwardArgs {
  ConstTensorView q, k, v, dout;
  std::span<const double> slopes{};
  ConstTensorView log_gate{}, beta{};
  ConstTensorView states;             // as forward left them
  TensorView dq_acc, dk_acc, dv_acc;  // as q, k, v
  TensorView dlog_gate{}, dbeta{};    // as log_gate, beta
};

class LinearAttention {
 public:
  // Not collective; begin, finish and backward are, over `group` (the ranks that share a sample;
  // must outlive this). Throws Error(kConfig) on every rank for an unknown method, and for what a
  // kind cannot do.
  LinearAttention(dist::Group& group, const TokenLayout& layout,
                  const LinearAttentionOptions& options);
  ~LinearAttention();

  // Says where this rank is, for messages about hangs.
  void announce(int64_t layer, Direction direction);

  // Plans for a sample; layers share them. The same arguments on every rank; as many rows on every
  // rank as in the layout of the constructor. What a measuring run took before the first sample is
  // enough for every sample. Throws Error(kEnvironment), on every rank, for a sample with more runs
  // than there is memory for, if most_runs is 0.
  void prepare(const Documents& documents, const TokenLayout& of_sample);

  // The first dimension of `states`, on every rank and for every sample: a state for each run, or
  // two where attention is not causal. (Of these the first alone is used, the sum over all tokens,
  // where all slopes are 0 and the sample is one document.)
  int64_t runs() const { return options_.causal ? most_runs_ : 2 * most_runs_; }

  // A forward pass under way: its maps travel while the caller does other work; finish() computes
  // what needs none of the others meanwhile.
  class Pending;
  Pending begin(const Context&, Arena& communication, const LinearAttentionForwardArgs&);
  void finish(const Context&, Pending pending);

  void backward(const Context&, Arena& communication, const LinearAttentionBackwardArgs&);

  // Forwards run since construction: proves that recomputation redoes none.
  int64_t forward_count() const { return forward_count_; }
  // Of the prepared sample and, with a decay_bound, of the slopes of the last pass.
  const Plan& plan(Direction direction) const;

 private:
  struct Sample;
  struct Scan;
  struct HeadGroup;
  struct Pass;

  void make_plans(const TokenLayout& runs);
  void use_plans(std::span<const double> slopes);
  bool lands_maps() const;
  RunRows run_rows() const;
  int64_t own() const;  // this rank's runs of the sample
  Shape state_shape() const;
  static TensorView flat(const TensorView& states);
  void allocate_maps(Pass& pass, Scan& scan) const;
  void start(const Context&, Pass& pass, Scan& scan, Direction direction,
             const TensorView& entering);
  void start(const Context&, Pass& pass, Scan& scan, Direction direction,
             const TensorView& entering, const Plan& plan);
  void begin_causal(const Context&, Pass& pass);
  void finish_causal(const Context&, Pass& pass);
  void backward_causal(const Context&, Pass& pass, const LinearAttentionBackwardArgs& args);
  bool sums_suffice(std::span<const double> slopes) const;
  kernels::LinearRun all_rows() const;
  void start_sum(const Context&, Pass& pass, Direction direction, const ConstTensorView& x,
                 const ConstTensorView& y, std::span<const double> slopes);
  void finish_sum(const Context&, Pass& pass);
  void backward_sum(const Context&, Pass& pass, const LinearAttentionBackwardArgs& args);
  std::vector<Span> head_groups() const;
  bool by_heads(const Context&) const;
  void allocate_groups(Pass& pass) const;
  void start_group(const Context&, Pass& pass, size_t g, Direction direction);
  template <class Make, class Compute>
  void run_groups(const Context&, Pass& pass, Direction direction, bool at_once, Make&& make,
                  Compute&& compute);
  static void clear_maps(const Context&, const Scan& scan);
  void make_group(const Context&, Pass& pass, size_t g);
  void compute_group(const Context&, const Pass& pass, size_t g, const ConstTensorView& entering,
                     const TensorView& leaving) const;
  void begin_by_heads(const Context&, Pass& pass);
  void finish_by_heads(const Context&, Pass& pass);
  void backward_by_heads(const Context&, Pass& pass, const LinearAttentionBackwardArgs& args);
  void begin_both(const Context&, Pass& pass);
  void finish_both(const Context&, Pass& pass);
  void backward_both(const Context&, Pass& pass, const LinearAttentionBackwardArgs& args);
  static Context polling(const Context&, Pass& pass);
  TensorView contiguous(Pass& pass, const ConstTensorView& like) const;
  void fetch(const Context&, Pass& pass, std::string_view what,
             std::initializer_list<ConstTensorView*> inputs);
  void give_back(const Context&, Pass& pass, std::string_view what,
                 std::initializer_list<std::pair<TensorView, TensorView>> results);
  void share_final_state(const Context&, const Pass& pass);

  dist::Group& group_;
  LinearAttentionOptions options_;
  const ScanMethod& method_;
  const LinearKindParts& parts_;
  int64_t rows_ = 0;       // of this rank, in every sample
  int64_t most_runs_ = 0;  // of a rank
  int64_t forward_count_ = 0;
  std::optional<Documents> documents_;  // none: the sample is for measuring
  std::vector<RunList> layout_;         // by rank
  std::unique_ptr<Sample> sample_;
};

class LinearAttention::Pending {
 public:
  explicit Pending(std::unique_ptr<Pass> pass);
  Pending(Pending&&) noexcept;
  ~Pending();

 private:
  friend class LinearAttention;
  std::unique_ptr<Pass> pass_;
};

}  // namespace longhaul::parallel
