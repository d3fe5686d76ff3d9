// Plans of samples that may come again: those of one document, of validation, of a second epoch.
#pragma once

#include <array>
#include <cstdint>
#include <list>

#include "parallel/layout/documents.h"
#include "parallel/layout/token_layout.h"
#include "parallel/plan/plan.h"

namespace longhaul::parallel {

// What one rank needs to know of a sample.
struct SamplePlans {
  Documents documents;
  TokenLayout layout;
  Plan forward, backward;
  std::array<bool, 2> fits{};  // by direction: there is memory for the plan
};

// Bytes that they take, about.
int64_t memory_bytes(const SamplePlans& plans);

// The samples that were used last. The borders of the documents are the key, all of them, so that
// no two samples are taken for one.
class PlanCache {
 public:
  // At most so many samples, and so many bytes of the host's memory beside the one in use.
  static constexpr int64_t kMostSamples = 256;
  static constexpr int64_t kMostBytes = int64_t{64} << 20;

  explicit PlanCache(int64_t most_samples = kMostSamples, int64_t most_bytes = kMostBytes)
      : most_samples_(most_samples), most_bytes_(most_bytes) {}

  // Of these documents, the one in use from then on; null if there are none. What either returns
  // stays where it is until the next add().
  SamplePlans* find(const Documents& documents);
  // Whether there are some: uses none.
  bool contains(const Documents& documents) const;
  // The one in use from then on. Drops those that were used longest ago, as far as it must.
  SamplePlans& add(SamplePlans plans);

  int64_t samples() const { return static_cast<int64_t>(entries_.size()); }
  int64_t bytes() const { return bytes_; }  // of all

 private:
  struct Entry {
    SamplePlans plans;
    int64_t bytes = 0;
  };

  int64_t most_samples_, most_bytes_;
  std::list<Entry> entries_;  // used last, first
  int64_t bytes_ = 0;
};

}  // namespace longhaul::parallel
