#include "parallel/server/rounds.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "parallel/plan/parts.h"
#include "parallel/server/placement.h"

namespace longhaul::parallel {

namespace {

bool is_remote(const PlacedTask& task) {
  return task.server != task.q_owner || task.server != task.k_owner;
}

// Equally many pairs of each server to each round. A task in which a round ends is cut there by
// heads, which takes no more bytes; one of a single kv head goes whole.
std::vector<PlacedTask> in_rounds(const Problem& problem, int rounds,
                                  const std::vector<PlacedTask>& tasks) {
  const auto ranks = static_cast<size_t>(problem.layout.ranks());
  const int64_t group = problem.heads.group();
  std::vector<double> of_head;  // by task: pairs of one query head
  std::vector<double> all(ranks, 0), done(ranks, 0);
  for (const PlacedTask& task : tasks) {
    double pairs = 0;
    if (is_remote(task)) {
      for (const Segment& s : cut_task(problem, task, 0, 0)) pairs += static_cast<double>(area(s));
    }
    of_head.push_back(pairs);
    all[static_cast<size_t>(task.server)] += pairs * static_cast<double>(task.q_heads.length);
  }
  std::vector<PlacedTask> result;
  for (size_t i = 0; i < tasks.size(); ++i) {
    PlacedTask rest = tasks[i];
    if (of_head[i] == 0) {
      result.push_back(rest);
      continue;
    }
    double& before = done[static_cast<size_t>(rest.server)];
    const double a_round = all[static_cast<size_t>(rest.server)] / rounds;
    while (rest.q_heads.length > 0) {
      // The round in which the next kv head's middle lies, and the kv heads whose middles it has.
      const double of_group =
          of_head[i] * static_cast<double>(std::min(group, rest.q_heads.length));
      const auto round_at = [&](double pairs) {
        return std::min(rounds - 1, static_cast<int>(pairs / a_round));
      };
      PlacedTask part = rest;
      part.round = round_at(before + of_group / 2);
      part.q_heads.length = 0;
      while (part.q_heads.length < rest.q_heads.length &&
             round_at(before + of_group / 2) == part.round) {
        part.q_heads.length += std::min(group, rest.q_heads.length - part.q_heads.length);
        before += of_group;
      }
      rest.q_heads = {part.q_heads.end(), rest.q_heads.end() - part.q_heads.end()};
      result.push_back(part);
    }
  }
  return result;
}

// By rank: bytes to align what rounds cut rows into, from above. Rows lie in a slot for each range
// of heads and each first and last round in which they are needed; a need begins and ends one range
// of rows at most, in each range of heads.
std::vector<int64_t> alignment_bytes(const Problem& problem, int rounds,
                                     const std::vector<PlacedTask>& tasks) {
  struct Needs {
    int64_t count = 0;
    std::set<int64_t> heads;  // at which one begins or ends
  };
  std::map<std::tuple<int, int, bool>, Needs> all;  // by server, owner and side
  for (const PlacedTask& task : tasks) {
    for (const bool keys : {false, true}) {
      const int owner = keys ? task.k_owner : task.q_owner;
      if (owner == task.server) continue;
      Needs& needs = all[{task.server, owner, keys}];
      ++needs.count;
      const Span heads = keys ? kv_heads_of(task.q_heads, problem.heads) : task.q_heads;
      needs.heads.insert({heads.begin, heads.end()});
    }
  }
  std::vector<int64_t> bytes(static_cast<size_t>(problem.layout.ranks()), 0);
  const int64_t slots = int64_t{rounds} * (rounds + 1) / 2;
  for (const auto& [key, needs] : all) {
    const auto [server, owner, keys] = key;
    const auto head_ranges = static_cast<int64_t>(needs.heads.size()) - 1;
    const int64_t of_ranges = 2 * staging_blocks(rounds) * head_ranges * needs.count * kRangeMargin;
    bytes[static_cast<size_t>(server)] += of_ranges + head_ranges * slots * kSlotMargin;
    bytes[static_cast<size_t>(owner)] += of_ranges;
  }
  return bytes;
}

}  // namespace

void set_rounds(const Problem& problem, Schedule& schedule) {
  const int64_t limit = problem.servers.buffer_bytes;
  for (int rounds = problem.servers.nano_batches; rounds > 1; --rounds) {
    std::vector<PlacedTask> tasks = in_rounds(problem, rounds, schedule.tasks);
    std::vector<int64_t> memory = alignment_bytes(problem, rounds, tasks);
    for (size_t r = 0; r < memory.size(); ++r) memory[r] += schedule.memory[r];
    if (limit > 0 && std::ranges::max(memory) > limit) continue;
    schedule.tasks = std::move(tasks);
    schedule.memory = std::move(memory);
    schedule.rounds = rounds;
    return;
  }
  schedule.rounds = 1;
}

}  // namespace longhaul::parallel
