// Ranks that share attention of all replicas' samples tell each other the documents of these, and
// of the samples after them, so that all plan alike. What was told as the next one is not told
// again.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dist/group.h"
#include "dist/mesh.h"
#include "parallel/layout/documents.h"

namespace longhaul::launch {

// What each rank brings, one after the other. Collective.
std::vector<int64_t> gather_numbers(dist::Group& group, const std::vector<int64_t>& mine);

class SampleExchange {
 public:
  // Collective calls are over `world`, which must outlive this. tokens: of a sample.
  SampleExchange(dist::Group& world, const dist::MeshShape& shape, int64_t tokens);

  // What a trainer says beforehand of a sample of its replica, or of none (null): how many
  // documents it has, or that all ranks know them. Servers say kNone.
  static constexpr int64_t kNone = -1, kAsTold = -2;
  int64_t count_of(const parallel::Documents* sample) const;
  static int64_t count_of_next(const parallel::Documents* next);

  // Collective: with what each trainer has said; not a message if nothing is left to be told, as
  // where every sample is one document. Where no replica has a next one, the last ones told stay.
  void tell(std::span<const int64_t> counts, const parallel::Documents* sample,
            std::span<const int64_t> next_counts, const parallel::Documents* next);

  // Of all replicas, side by side; the first replicas have samples, or all.
  parallel::Documents now() const { return joint(now_); }
  parallel::Documents next() const { return joint(next_); }

 private:
  using Samples = std::vector<std::optional<parallel::Documents>>;  // by replica; none: has none

  // Numbers of `words` of each rank, from `first` on.
  struct Told {
    std::vector<int64_t> numbers;
    size_t words = 0, first = 0;
  };
  Samples samples(std::span<const int64_t> counts, const Told& told) const;
  static parallel::Documents joint(const Samples& samples);

  dist::Group& world_;
  dist::MeshShape shape_;
  int64_t tokens_;
  Samples now_, next_;
};

}  // namespace longhaul::launch
