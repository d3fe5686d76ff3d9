// Measures the kernels of linear attention (parallel/cost/cluster.h).
#pragma once

#include "kernels/core/context.h"
#include "parallel/cost/cluster.h"
#include "parallel/scan/linear_attention.h"

namespace longhaul::parallel {

// How plans see the states of a kind of linear attention.
HeadShape scanned_heads(const LinearAttentionOptions& options);

// Seconds that forward and backward take for a token of a head, on this rank's own: over up to
// `rows` rows, of which some hundred are enough. Takes some tenths of a second at most. Not
// collective, but all ranks of a node should measure at the same time.
LinearProfile measure_linear(const Context& ctx, const LinearAttentionOptions& options,
                             int64_t rows);

}  // namespace longhaul::parallel
