#include "parallel/layout/shard.h"

#include "kernels/core/error.h"

namespace longhaul::parallel {

Shard take(const TokenLayout& layout, const Documents& documents, std::span<const int32_t> tokens,
           std::span<const int32_t> labels, int rank) {
  LONGHAUL_CHECK(static_cast<int64_t>(tokens.size()) == layout.tokens());
  LONGHAUL_CHECK(tokens.size() == labels.size() && documents.tokens() == layout.tokens());
  Shard shard;
  const auto rows = static_cast<size_t>(layout.rows(rank));
  shard.tokens.reserve(rows);
  shard.labels.reserve(rows);
  shard.positions.reserve(rows);
  for (const Run& run : layout.runs(rank)) {
    for (int64_t i = 0; i < run.length; ++i) {
      const int64_t position = run.position(i);
      shard.tokens.push_back(tokens[static_cast<size_t>(position)]);
      shard.labels.push_back(labels[static_cast<size_t>(position)]);
      shard.positions.push_back(documents.local_position(position));
    }
  }
  return shard;
}

}  // namespace longhaul::parallel
