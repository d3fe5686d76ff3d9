// Attention forward for few queries, as when a text is continued token by token: what the tiled
// kernels compute for a panel of queries at once would be wasted. One pass over the keys of each
// query row, whose scores are inner products and whose values are added to a row.
#pragma once

#include "kernels/attention.h"

namespace longhaul::kernels::cpu {

// Up to so many query rows this is the faster one.
inline constexpr int64_t kFewQueries = 3;

// Any option but dropout. T: of q, k and v. One task per query row and head.
template <class T>
void attention_forward_few(const Context&, const AttentionForward&);

}  // namespace longhaul::kernels::cpu
