// All ranks know the same samples, and none is told twice.
#include "launch/train/sample_exchange.h"

#include <gtest/gtest.h>

#include "dist/local/local.h"
#include "parallel/layout/joint.h"

namespace longhaul::launch {
namespace {

using parallel::Documents;

constexpr std::chrono::seconds kDeadline(60);
constexpr int64_t kTokens = 50;
constexpr dist::MeshShape kShape{.data = 2, .sequence = 2, .servers = 1};

using Sample = std::optional<Documents>;
struct Tell {
  std::vector<Sample> now, next;  // by replica
  Documents expected;
  int64_t messages;
};

TEST(SampleExchange, TellsWhatIsNotKnownInOneMessage) {
  const Documents whole = Documents::whole(kTokens), a(kTokens, {0, 3}), b(kTokens, {0, 7, 9}),
                  c(kTokens, {0, 20}), d(kTokens, {0, 1, 2, 3, 4});
  const auto joint = [](std::initializer_list<Documents> list) {
    return parallel::side_by_side(std::vector<Documents>(list));
  };
  const Sample none;
  const std::vector<Tell> tells{
      {{a, b}, {c, whole}, joint({a, b}), 1},
      {{c, whole}, {d, a}, joint({c, whole}), 1},        // the next ones only
      {{whole, c}, {none, none}, joint({whole, c}), 1},  // others in between
      {{b, none}, {none, none}, joint({b}), 1},
      {{d, a}, {whole, whole}, joint({d, a}), 0},  // known, and one document is not told
      {{whole, whole}, {b, b}, joint({whole, whole}), 1},
      {{b, d}, {none, none}, joint({b, d}), 1},  // not what the second replica had said
      {{whole, whole}, {none, none}, joint({whole, whole}), 0},
  };
  dist::run_local(5, kDeadline, [&](dist::Group& world) {
    SampleExchange exchange(world, kShape, kTokens);
    const bool trainer = world.rank() < kShape.trainers();
    const auto replica = static_cast<size_t>(world.rank() / kShape.sequence);
    for (size_t i = 0; i < tells.size(); ++i) {
      SCOPED_TRACE(i);
      const auto pointer = [&](const std::vector<Sample>& samples) {
        return trainer && samples[replica] ? &*samples[replica] : nullptr;
      };
      const Documents* sample = pointer(tells[i].now);
      const Documents* next = pointer(tells[i].next);
      const std::vector<int64_t> said =
          gather_numbers(world, {exchange.count_of(sample), SampleExchange::count_of_next(next)});
      std::vector<int64_t> counts, next_counts;
      for (size_t rank = 0; rank < static_cast<size_t>(kShape.trainers()); ++rank) {
        counts.push_back(said[2 * rank]);
        next_counts.push_back(said[2 * rank + 1]);
      }
      const int64_t before = world.traffic()["call"].operations;
      exchange.tell(counts, sample, next_counts, next);
      EXPECT_EQ(world.traffic()["call"].operations - before, tells[i].messages);
      EXPECT_EQ(exchange.now(), tells[i].expected);
      if (tells[i].next[0]) {
        EXPECT_EQ(exchange.next(), joint({*tells[i].next[0], *tells[i].next[1]}));
      }
    }
  });
}

}  // namespace
}  // namespace longhaul::launch
