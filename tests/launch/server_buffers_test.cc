// The default of parallel.server_buffer_mib: enough that neither balance nor rounds give way.
#include "launch/train/server_buffers.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "launch/bench/layout_mixes.h"
#include "launch/train/engine.h"
#include "parallel/layout/joint.h"
#include "parallel/server/schedule.h"

namespace longhaul::launch {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Schedule;

constexpr int64_t kTokens = 65536;

// On as many ranks.
Config config_of(const std::string& heads, const std::string& parallel, int ranks) {
  Config config = parse_config(
      absl::StrCat("model { vocabulary: 16 layers: 2 width: 32 mlp_width: 48 norm_eps: 1e-5 ",
                   heads, " } data { path: 'none' sequence_length: ", kTokens,
                   " } train { steps: 1 } parallel { strategy: 'disaggregated' row_price: 0 ",
                   parallel, " }"),
      "test");
  resolve(config, ranks, 1);
  return config;
}

// A sample of each replica; `long_ones` of them are one document.
std::vector<Documents> samples_of(const LengthMix& mix, int replicas, int long_ones,
                                  uint64_t seed) {
  std::vector<Documents> samples;
  for (int r = 0; r < replicas; ++r) {
    samples.push_back(
        r < long_ones ? Documents::whole(kTokens)
                      : mixed_documents(mix, kTokens, 1, 100 * seed + static_cast<uint64_t>(r)));
  }
  return samples;
}

void expect_room(const Config& config, const std::vector<Documents>& samples) {
  SettledStrategies settled;
  settled.forward = config.parallel().strategy();
  const parallel::CoreAttentionOptions options = attention_options(config, settled);
  const int ranks =
      config.parallel().data() * config.parallel().sequence() + config.parallel().servers();
  const Documents documents = parallel::side_by_side(samples);
  const parallel::TokenLayout layout = options.sample_layout(documents, options.mask, ranks);
  parallel::Problem problem{.layout = layout,
                            .documents = documents,
                            .mask = options.mask,
                            .heads = options.heads,
                            .servers = options.servers};
  problem.servers.dtype = options.dtype;
  ASSERT_EQ(problem.servers.buffer_bytes, server_buffer_bytes(config));
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const Schedule schedule = schedule_tasks(problem, direction);
    EXPECT_FALSE(schedule.limited_by_memory);
    EXPECT_EQ(schedule.rounds, problem.servers.nano_batches);
  }
}

TEST(ServerBuffers, TheDefaultLeavesRoomForBalanceAndRounds) {
  struct Ranks {
    int data, sequence, servers;
  };
  const Ranks all_ranks[] = {{2, 1, 0}, {8, 1, 0}, {4, 2, 0}, {2, 4, 0},
                             {3, 1, 1}, {6, 1, 2}, {8, 1, 4}, {2, 2, 2}};
  for (const char* heads :
       {"heads: 32 kv_heads: 8 head_dim: 128", "heads: 4 kv_heads: 1 head_dim: 64"}) {
    for (const Ranks& ranks : all_ranks) {
      for (const char* layout : {"zigzag", "balanced"}) {
        for (const int rounds : {1, 2, 4}) {
          const std::string text = absl::StrCat("data: ", ranks.data, " servers: ", ranks.servers,
                                                " layout: '", layout, "' nano_batches: ", rounds);
          const Config config = config_of(heads, text, ranks.data * ranks.sequence + ranks.servers);
          for (const LengthMix& mix : length_mixes()) {
            for (const int long_ones : {0, 1, (ranks.data + 1) / 2}) {
              SCOPED_TRACE(absl::StrCat(heads, " ", text, " sequence ", ranks.sequence, " ",
                                        std::string(mix.name), ", ", long_ones, " long"));
              expect_room(config, samples_of(mix, ranks.data, long_ones, 1));
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::launch
