// One rank's part of a sample.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/layout/documents.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

struct Shard {
  std::vector<int32_t> tokens;     // [rows], in row order
  std::vector<int32_t> labels;     // [rows]; -1: none. Shifted before sharding
  std::vector<int64_t> positions;  // [rows], within their documents: for RoPE
  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

// tokens and labels: [layout.tokens()], the whole sample.
Shard take(const TokenLayout& layout, const Documents& documents, std::span<const int32_t> tokens,
           std::span<const int32_t> labels, int rank);

}  // namespace longhaul::parallel
