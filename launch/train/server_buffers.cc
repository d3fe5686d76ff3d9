#include "launch/train/server_buffers.h"

#include <algorithm>
#include <cmath>

#include "launch/train/engine.h"
#include "parallel/layout/joint.h"
#include "parallel/server/row_bytes.h"
#include "parallel/server/schedule.h"

namespace longhaul::launch {

std::vector<int> server_ranks(const Config& config) {
  const Parallel& parallel = config.parallel();
  std::vector<int> ranks;
  for (int i = 0; i < parallel.servers(); ++i) {
    ranks.push_back(parallel.data() * parallel.sequence() + i);
  }
  return ranks;
}

int64_t least_server_buffer_bytes(const Config& config) {
  const parallel::CoreAttentionOptions options = attention_options(config);
  const parallel::TokenLayout layout = attention_layout(config);
  const parallel::Documents documents = parallel::side_by_side(std::vector<parallel::Documents>(
      static_cast<size_t>(config.parallel().data()),
      parallel::Documents::whole(config.data().sequence_length())));
  parallel::Problem problem{
      .layout = layout, .documents = documents, .mask = options.mask, .heads = options.heads};
  problem.servers.ranks = server_ranks(config);
  problem.servers.dtype = options.dtype;
  problem.servers.nano_batches = config.parallel().nano_batches();
  return parallel::least_buffer_bytes(problem);
}

int64_t server_buffer_bytes(const Config& config) {
  const Parallel& parallel = config.parallel();
  if (parallel.server_buffer_mib() > 0) {
    return static_cast<int64_t>(std::ceil(parallel.server_buffer_mib() * 1048576.0));
  }
  const int64_t tokens = config.data().sequence_length(), all = tokens * parallel.data();
  const int64_t mine = make_layout(config, parallel.sequence()).most_rows();
  const parallel::HeadShape heads = attention_options(config).heads;
  // Backward needs more than forward.
  const parallel::RowBytes bytes = parallel::row_bytes(
      heads, dtype(config), parallel::Direction::kBackward, parallel.nano_batches());
  const bool dedicated = parallel.servers() > 0;
  // Twice the mean of queries, and the keys of a whole document before them.
  const int64_t servers = dedicated ? parallel.servers() : parallel.data() * parallel.sequence();
  const int64_t most_queries = dedicated ? all : all - mine;
  const int64_t queries = std::min(most_queries, 2 * ((all + servers - 1) / servers));
  const int64_t keys = std::min(most_queries, queries + tokens);
  const int64_t held = queries * bytes.query.at_server + keys * bytes.key.at_server;
  // In place, few rows' queries go elsewhere; else all do, cut among some servers. Keys are seen by
  // those of their replica, too.
  const int64_t parts = dedicated ? 2 : 1;
  const int64_t results =
      mine * (std::min(servers, parts) * bytes.query.at_home +
              std::min(servers, parts + parallel.sequence()) * bytes.key.at_home);
  const int64_t of_rows = heads.kv_heads * (dedicated ? std::max(held, results) : held + results);
  // And to align them, which takes most where rounds cut them.
  constexpr int64_t kAlignment = 16;
  return std::max(least_server_buffer_bytes(config), of_rows + of_rows / kAlignment);
}

}  // namespace longhaul::launch
