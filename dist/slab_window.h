// The window protocol on plain memory: one slab per rank, its flags first, then its slots. Who
// provides the memory (the heap for threads, shared memory for processes) is the transport's
// affair.
#pragma once

#include <memory>
#include <vector>

#include "dist/window.h"

namespace longhaul::dist {

struct SlabLayout {
  int slots = 0;
  int64_t slot_bytes = 0;

  int64_t flag_bytes() const;
  int64_t stride() const;  // from slot to slot: cache lines of neighbours stay apart
  int64_t bytes() const;   // of a whole slab
};
inline constexpr int64_t kSlabAlignment = 4096;

// Memory of one rank's slab, aligned to kSlabAlignment; the deleter unmaps or frees.
using Slab = std::shared_ptr<std::byte>;

// Prepares the flags of zeroed memory; once, by the owner, before any other rank sees the slab.
void initialise_slab(std::byte* slab, const SlabLayout& layout);

// `slabs` has one entry per rank, null for ranks that cannot be reached; not so for `rank` itself.
std::unique_ptr<Window> slab_window(const SlabLayout& layout, int rank, std::vector<Slab> slabs);

}  // namespace longhaul::dist
