// Samples of several replicas side by side, as one sample that all their ranks share attention of
// (parallel/server): replica r's tokens follow those of replica r - 1, and a document ends where a
// replica does. Ranks keep their order, replica after replica; ranks without rows may follow.
#pragma once

#include <span>

#include "parallel/layout/documents.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

Documents side_by_side(std::span<const Documents> samples);

// The samples of a joint one, each of `tokens` tokens: the inverse of side_by_side. Throws
// Error(kInternal) if no document begins where a sample does.
std::vector<Documents> samples_of(const Documents& joint, int64_t tokens);

// Each rank has the rows that it has of its own replica's sample, in their order. The last
// `ranks_without_rows` ranks have none.
TokenLayout side_by_side(std::span<const TokenLayout> layouts, int ranks_without_rows);

}  // namespace longhaul::parallel
