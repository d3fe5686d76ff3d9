// Who writes which elements: pure functions from what the ranks hold to the manifest's tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/manifest.pb.h"
#include "checkpoint/state.h"

namespace longhaul::checkpoint {

// What this rank holds, for rank 0. Verifies the state: LONGHAUL_CHECK.
proto::Holdings holdings_of(const State& state);

// The tensors of the manifest, sorted by name: every element of every tensor once, written by the
// lowest rank that holds it (Slice::file is that rank). Throws Error(kInternal) if ranks disagree
// on a shape or dtype or if nobody holds an element.
std::vector<proto::Tensor> assign_slices(const std::vector<proto::Holdings>& ranks);

// "name[begin:end]": what a slice is called in its file.
std::string slice_key(const std::string& tensor, int64_t begin, int64_t end);

}  // namespace longhaul::checkpoint
