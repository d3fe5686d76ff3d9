#include "launch/check/reduced.h"

#include <algorithm>
#include <set>

#include "kernels/core/random.h"

namespace longhaul::launch {

namespace {

constexpr int64_t kTokens = 192;  // about; more if there are many ranks
constexpr int64_t kLeastRowsOfAChunk = 4;
// Of the scheduler of disaggregated attention, which moves nothing that is less than a tile.
constexpr int64_t kTile = 2;

// Of one replica.
int64_t reduced_tokens(int64_t tokens, const dist::MeshShape& ranks) {
  const int64_t chunks = int64_t{2} * ranks.sequence, all_chunks = chunks * ranks.data;
  const int64_t rows = std::max(kLeastRowsOfAChunk, (kTokens + all_chunks - 1) / all_chunks);
  return std::min(tokens, chunks * rows + tokens % chunks);
}

parallel::HeadShape reduced_heads(parallel::HeadShape heads, int ranks) {
  const int64_t group = heads.group();
  heads.kv_heads = std::min(heads.kv_heads, std::max<int64_t>(2, ranks / group + 1));
  heads.q_heads = heads.kv_heads * group;
  return heads;
}

// For all of a sample at once, and for all that comes back from several servers.
int64_t enough_bytes(const parallel::HeadShape& h, int64_t tokens) {
  constexpr int64_t kServers = 8, kFields = 4;
  return kServers * kFields * tokens * (h.q_heads + h.kv_heads) * (h.head_dim + h.value_dim) * 8;
}

// Lengths from 1 to a third of the sample. No document begins where a run of a rank does.
parallel::Documents straddling(const parallel::TokenLayout& layout, uint64_t seed) {
  const int64_t tokens = layout.tokens();
  std::set<int64_t> chunks;
  for (int r = 0; r < layout.ranks(); ++r) {
    for (const parallel::Run& run : layout.runs(r)) {
      // Of stripes no document straddles less than all.
      if (run.length > 0 && run.stride == 1) chunks.insert(run.global_begin);
    }
  }
  std::vector<int64_t> begins;
  if (tokens > 0) begins.push_back(0);
  const int64_t longest = std::max<int64_t>(2, tokens / 3);
  int64_t begin = 0;
  for (uint64_t i = 0;; ++i) {
    const uint64_t bits = random_u64({.seed = seed, .stream = stream_of("check documents")}, i);
    // One document of a single token, early.
    begin += i == 1 ? 1 : 1 + static_cast<int64_t>(bits % static_cast<uint64_t>(longest));
    if (begin >= tokens) break;
    if (!chunks.contains(begin)) begins.push_back(begin);
  }
  return {tokens, begins};
}

}  // namespace

ReducedProblem reduce(const parallel::LayoutKind& layout, int64_t tokens,
                      const dist::MeshShape& ranks, const parallel::CoreAttentionOptions& attention,
                      const parallel::SampleLayout& of_one) {
  const int64_t n = reduced_tokens(tokens, ranks);
  const parallel::TokenLayout replica = layout.make(n, ranks.sequence);
  const std::vector<parallel::TokenLayout> replicas(static_cast<size_t>(ranks.data), replica);
  ReducedProblem reduced{.layout = parallel::side_by_side(replicas, ranks.servers),
                         .attention = attention,
                         .samples = {}};
  reduced.attention.heads = reduced_heads(attention.heads, ranks.trainers() + ranks.servers);
  if (of_one) {
    reduced.attention.sample_layout = parallel::joint_layout(of_one, n, ranks.sequence);
    reduced.attention.servers.buffer_bytes =
        enough_bytes(reduced.attention.heads, reduced.layout.tokens());
    reduced.attention.servers.tile = kTile;
    reduced.attention.servers.imbalance = 0;
  }
  const auto in_proportion = [&](int64_t length) {
    // A length that the sample does not reach stays out of reach.
    return length >= tokens ? length : std::max<int64_t>(1, length * n / tokens);
  };
  parallel::Mask& mask = reduced.attention.mask;
  if (mask.window > 0) mask.window = in_proportion(mask.window);
  if (mask.prefix > 0) mask.prefix = in_proportion(mask.prefix);
  if (!attention.bias_slopes.empty()) {
    reduced.attention.bias_slopes.resize(static_cast<size_t>(reduced.attention.heads.q_heads));
  }
  std::vector<parallel::Documents> whole, cut;
  for (int r = 0; r < ranks.data; ++r) {
    whole.push_back(parallel::Documents::whole(n));
    cut.push_back(straddling(replica, static_cast<uint64_t>(r) + 1));
  }
  reduced.samples = {parallel::side_by_side(whole), parallel::side_by_side(cut)};
  return reduced;
}

}  // namespace longhaul::launch
