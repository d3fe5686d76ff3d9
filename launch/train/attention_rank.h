// What a trainer and a server have in common: device, threads, mesh, the strategies that are used,
// and core attention over the ranks that share it.
//
// Under strategy disaggregated these are all ranks of the job, and the replicas' samples side by
// side are one sample (parallel/layout/joint.h). Servers have no corpus and no schedule: whatever
// all ranks do together begins with a call, an exchange in which trainers say what it is and bring
// their documents. Under any other strategy, ranks of a sample share attention; a call is local.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "dist/mesh.h"
#include "kernels/core/context.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "launch/config/config.h"
#include "launch/train/rank_memory.h"
#include "launch/train/sample_exchange.h"
#include "launch/train/strategy_choice.h"
#include "parallel/attention/core_attention.h"
#include "parallel/layout/documents.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::launch {

// What strategy "auto" goes by.
struct EngineOptions {
  std::optional<parallel::Documents> documents = {};  // of a typical sample; default: one
  std::string strategy_record = {};  // where an earlier run has left its choice; "": nowhere
};

enum class Duty : int64_t {
  kForward,             // of all softmax layers
  kForwardAndBackward,  // and back, from the last to the first
  kCheckAttention,      // launch/check
  kMeasurePeak,
  kEnd,
};

struct Call {
  Duty duty = Duty::kEnd;
  // The key of attention dropout is that of this sample; none: a pass without dropout.
  std::optional<int64_t> dropout_sample = {};
};

dist::MeshShape mesh_shape(const Config& config);
// Collective over the mesh's world: as settle_strategies does over trainers. `options` count on
// trainers.
SettledStrategies settle_on(dist::Mesh& mesh, const Stream& stream, ThreadPool& pool,
                            const Config& config, const EngineOptions& options);

class AttentionRank {
 public:
  // Collective over `world`, which must outlive this; `options` count on trainers. Throws the same
  // Error on every rank.
  AttentionRank(dist::Group& world, const Config& config, const EngineOptions& options = {});

  dist::Mesh& mesh() { return mesh_; }
  const Stream& stream() const { return stream_.get(); }
  ThreadPool& pool() { return pool_; }
  const SettledStrategies& strategies() const { return strategies_; }
  parallel::CoreAttention& attention() { return attention_; }
  bool disaggregated() const { return disaggregated_; }
  // The ranks that share attention.
  dist::Group& group() { return disaggregated_ ? mesh_.world() : mesh_.sequence(); }

  // A trainer's: of the sample that its replica has, or had last.
  const parallel::TokenLayout& layout() const {
    return own_layout_ ? *own_layout_ : attention_.layout();
  }
  // Exact (query, key) pairs of the sample times query heads: this rank's share, such that the sum
  // over trainers is right.
  int64_t own_area();

  // For this rank's kernels.
  Context context(Arena& scratch);
  // Collective over all ranks: reserves what `measure` finds on each.
  RankMemory reserve(const std::function<RankMemory()>& measure);

  // A trainer's part of a call, on all of them for the same duty. `sample`: the documents of its
  // replica's sample, for passes; null: its replica has none, as may be the case for the last
  // replicas, and it takes part in the pass by serve(). Then attention is prepared. `next`: the
  // documents of the sample that its replica will call with next, apart from evaluation, if that is
  // known: all ranks plan for it beneath this pass.
  void call(const Call& call, const parallel::Documents* sample,
            const parallel::Documents* next = nullptr);
  // A server's part: what trainers call for.
  Call await();
  // Collective over all ranks, in a call for it: the sum of measured_peak() (peak.h).
  double sum_of_peaks(const Context& ctx, DType dtype);
  // In the last call, a server said that it was asked to stop by a signal.
  bool servers_asked_to_stop() const { return servers_asked_to_stop_; }

  // A trainer's: runs `work`, then sends servers home, also if it throws what trainers have agreed
  // on; that is then thrown on all ranks. A server's part is await() of the end, then end().
  void lead(const std::function<void()>& work);
  void end(const std::optional<Error>& of_trainers) { mesh_.share(of_trainers, "ending"); }

 private:
  void require_buffers();
  Call exchange(const Call& mine, const parallel::Documents* sample,
                const parallel::Documents* next);
  void prepare(const parallel::Documents* sample);

  Config config_;
  bool disaggregated_;
  OwnedStream stream_;
  dist::Mesh mesh_;
  ThreadPool pool_;
  SettledStrategies strategies_;
  SampleExchange samples_;
  parallel::CoreAttention attention_;
  // Of a trainer, if disaggregated.
  std::optional<parallel::TokenLayout> own_layout_;
  std::optional<parallel::Documents> own_documents_;
  bool servers_asked_to_stop_ = false;
};

}  // namespace longhaul::launch
