#include "launch/check/reduced.h"

#include <algorithm>
#include <set>

#include "kernels/core/random.h"

namespace longhaul::launch {

namespace {

constexpr int64_t kTokens = 192;  // about; more if there are many ranks
constexpr int64_t kLeastRowsOfAChunk = 4;

int64_t reduced_tokens(int64_t tokens, int ranks) {
  const int64_t chunks = int64_t{2} * ranks;
  const int64_t rows = std::max(kLeastRowsOfAChunk, (kTokens + chunks - 1) / chunks);
  return std::min(tokens, chunks * rows + tokens % chunks);
}

parallel::HeadShape reduced_heads(parallel::HeadShape heads, int ranks) {
  const int64_t group = heads.group();
  heads.kv_heads = std::min(heads.kv_heads, std::max<int64_t>(2, ranks / group + 1));
  heads.q_heads = heads.kv_heads * group;
  return heads;
}

// Lengths from 1 to a third of the sample. No document begins where a run of a rank does.
parallel::Documents straddling(const parallel::TokenLayout& layout) {
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
    const uint64_t bits = random_u64({.seed = 1, .stream = stream_of("check documents")}, i);
    // One document of a single token, early.
    begin += i == 1 ? 1 : 1 + static_cast<int64_t>(bits % static_cast<uint64_t>(longest));
    if (begin >= tokens) break;
    if (!chunks.contains(begin)) begins.push_back(begin);
  }
  return {tokens, begins};
}

}  // namespace

ReducedProblem reduce(const parallel::LayoutKind& layout, int64_t tokens, int ranks,
                      const parallel::CoreAttentionOptions& attention) {
  const int64_t n = reduced_tokens(tokens, ranks);
  ReducedProblem reduced{.layout = layout.make(n, ranks), .attention = attention, .samples = {}};
  reduced.attention.heads = reduced_heads(attention.heads, ranks);
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
  reduced.samples = {parallel::Documents::whole(n), straddling(reduced.layout)};
  return reduced;
}

}  // namespace longhaul::launch
