#include "launch/train/server_buffers.h"

#include <algorithm>
#include <cmath>

#include "launch/train/engine.h"
#include "parallel/layout/joint.h"
#include "parallel/server/schedule.h"

namespace longhaul::launch {

namespace {

// In backward, which needs more than forward.
struct RowBytes {
  int64_t query = 0, key = 0;                // that a server holds of another rank's
  int64_t query_result = 0, key_result = 0;  // that comes back and is added at home
};
RowBytes row_bytes(const parallel::HeadShape& h, DType dtype) {
  const int64_t b = size_of(dtype), g = size_of(accumulator(dtype));
  const int64_t q = h.q_heads, k = h.kv_heads, d = h.head_dim, e = h.value_dim;
  return {.query = q * ((d + e) * b + d * g + 4 * g),  // q, dout, dq; lse and delta, also staged
          .key = k * (d + e) * (b + g),                // k, v, dk, dv
          .query_result = q * (d * g + 2 * g),         // dq; and lse, delta on their way out
          .key_result = k * (d + e) * g};
}

}  // namespace

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
  const RowBytes bytes = row_bytes(attention_options(config).heads, dtype(config));
  const bool dedicated = parallel.servers() > 0;
  // Twice the mean of queries, and the keys of a whole document before them.
  const int64_t servers = dedicated ? parallel.servers() : parallel.data() * parallel.sequence();
  const int64_t most_queries = dedicated ? all : all - mine;
  const int64_t queries = std::min(most_queries, 2 * ((all + servers - 1) / servers));
  const int64_t keys = std::min(most_queries, queries + tokens);
  const int64_t held = queries * bytes.query + keys * bytes.key;
  // A row's queries may be cut among some servers, and its keys be seen by those of its replica.
  constexpr int64_t kParts = 3;
  // With rounds, results of one may return while those of another are folded.
  const int64_t blocks = parallel.nano_batches() > 1 ? 2 : 1;
  const int64_t results = blocks * mine *
                          (std::min(servers, kParts) * bytes.query_result +
                           std::min(servers, kParts + parallel.sequence()) * bytes.key_result);
  return std::max(least_server_buffer_bytes(config),
                  dedicated ? std::max(held, results) : held + results);
}

}  // namespace longhaul::launch
