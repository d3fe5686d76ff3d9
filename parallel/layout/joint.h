// Samples of several replicas side by side, as one sample that all their ranks share attention of
// (parallel/server): replica r's tokens follow those of replica r - 1, and a document ends where a
// replica does. Ranks keep their order, replica after replica; ranks without rows may follow.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "parallel/layout/documents.h"
#include "parallel/layout/segments.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

Documents side_by_side(std::span<const Documents> samples);

// The samples of a joint one, each of `tokens` tokens: the inverse of side_by_side. Throws
// Error(kInternal) if no document begins where a sample does.
std::vector<Documents> samples_of(const Documents& joint, int64_t tokens);

// Each rank has the rows that it has of its own replica's sample, in their order. The last
// `ranks_without_rows` ranks have none.
TokenLayout side_by_side(std::span<const TokenLayout> layouts, int ranks_without_rows);

// How samples are laid out over so many ranks.
using SampleLayout = std::function<TokenLayout(const Documents&, const Mask&, int ranks)>;
// Of joint samples: each of their samples, of `tokens` tokens, as by `of_one` over
// `ranks_of_sample`. There may be fewer samples than replicas: the ranks of the last ones, and
// those after them, then have no rows.
SampleLayout joint_layout(SampleLayout of_one, int64_t tokens, int ranks_of_sample);

}  // namespace longhaul::parallel
