#include "parallel/server/placement.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/error.h"
#include "parallel/cost/cluster.h"
#include "parallel/plan/parts.h"

namespace longhaul::parallel {

namespace {

auto first_after(const std::vector<Interval>& rows, int64_t begin) {
  return std::partition_point(rows.begin(), rows.end(),
                              [begin](const Interval& i) { return i.end <= begin; });
}

}  // namespace

void RowSet::add(int64_t begin, int64_t end) {
  const auto first = std::partition_point(rows_.begin(), rows_.end(),
                                          [begin](const Interval& i) { return i.end < begin; });
  auto last = first;
  for (; last != rows_.end() && last->begin <= end; ++last) {
    begin = std::min(begin, last->begin);
    end = std::max(end, last->end);
  }
  if (first == last) {
    rows_.insert(first, {begin, end});
  } else {
    *first = {begin, end};
    rows_.erase(first + 1, last);
  }
}

int64_t RowSet::missing(int64_t begin, int64_t end) const {
  int64_t count = end - begin;
  for (auto i = first_after(rows_, begin); i != rows_.end() && i->begin < end; ++i) {
    count -= std::min(end, i->end) - std::max(begin, i->begin);
  }
  return count;
}

std::vector<Interval> RowSet::gaps(int64_t begin, int64_t end) const {
  std::vector<Interval> result;
  for (auto i = first_after(rows_, begin); i != rows_.end() && i->begin < end; ++i) {
    if (begin < i->begin) result.push_back({begin, i->begin});
    begin = i->end;
  }
  if (begin < end) result.push_back({begin, end});
  return result;
}

Interval RowSet::longest_in(int64_t begin, int64_t end) const {
  Interval longest;
  for (auto i = first_after(rows_, begin); i != rows_.end() && i->begin < end; ++i) {
    const Interval part{std::max(begin, i->begin), std::min(end, i->end)};
    if (part.end - part.begin > longest.end - longest.begin) longest = part;
  }
  return longest;
}

Placement::Placement(const Problem& problem, Direction direction)
    : problem_(problem), direction_(direction), keys_(key_lists(problem.layout)) {
  const HeadShape& heads = problem_.heads;
  const Servers& servers = problem_.servers;
  const int ranks = problem_.layout.ranks();
  ranks_ = servers.ranks;
  if (ranks_.empty()) {
    ranks_.resize(static_cast<size_t>(ranks));
    std::iota(ranks_.begin(), ranks_.end(), 0);
  }
  server_of_.assign(static_cast<size_t>(ranks), -1);
  for (int s = 0; s < this->servers(); ++s) server_of_[static_cast<size_t>(rank(s))] = s;
  int64_t rows = 0;
  for (int r = 0; r < ranks; ++r) {
    first_row_.push_back(rows);
    rows += problem_.layout.rows(r);
  }
  rows = 0;
  for (const KeyList& list : keys_) {
    first_key_.push_back(rows);
    rows += list.run.length;
  }

  row_bytes_ = row_bytes(heads, servers.dtype, direction, servers.nano_batches);
  // As Execution reserves for aligning parts.
  const int64_t margin =
      staging_blocks(servers.nano_batches) * 16 * 192 * ranks + 2 * kSlotMargin * ranks;
  memory_.assign(static_cast<size_t>(ranks), ranks == 1 ? 0 : margin);
  work_.resize(ranks_.size());
  load_.assign(ranks_.size(), 0);
  bytes_.assign(ranks_.size(), 0);
  rows_.assign(ranks_.size(), {{{0, heads.kv_heads}, {}, {}}});
  for (int s = 0; s < this->servers(); ++s) {  // what it owns lies there
    const int64_t begin = first_row_[static_cast<size_t>(rank(s))];
    const int64_t own = problem_.layout.rows(rank(s));
    if (own == 0) continue;
    rows_[static_cast<size_t>(s)].front().queries.add(begin, begin + own);
  }
  for (size_t i = 0; i < keys_.size(); ++i) {
    for (const KeyList::Part& part : keys_[i].parts) {
      const int s = server_of(part.owner);
      if (s < 0) continue;
      const int64_t begin = first_key_[i] + part.row;
      rows_[static_cast<size_t>(s)].front().keys.add(begin, begin + part.length);
    }
  }
}

double Placement::rate(const WorkPiece& piece) const {
  if (problem_.servers.profile == nullptr) return 1;
  const Task one_head{.q_slot = 0, .k_slot = 0, .q_heads = {0, 1}, .segments = {piece.band}};
  return task_seconds(one_head, direction_, Cluster{}, *problem_.servers.profile) /
         static_cast<double>(area(piece.band));
}

std::vector<Work> Placement::all() const {
  std::vector<Work> list;
  for (const WorkPiece& piece : all_work(problem_, keys_)) list.push_back({piece, rate(piece)});
  return list;
}

Span Placement::kv_heads(const WorkPiece& piece) const {
  return kv_heads_of(piece.heads, problem_.heads);
}
Interval Placement::query_rows(const WorkPiece& piece) const {
  const int64_t begin = first_row_[static_cast<size_t>(piece.q_owner)] + piece.band.q_row;
  return {begin, begin + piece.band.q_len};
}
Interval Placement::key_rows(const WorkPiece& piece) const {
  const int64_t begin = first_key_[static_cast<size_t>(piece.keys)] + piece.band.k_row;
  return {begin, begin + piece.band.k_len};
}

int64_t Placement::added_bytes(const WorkPiece& piece, int server) const {
  const Interval q = query_rows(piece), k = key_rows(piece);
  const Span heads = kv_heads(piece);
  int64_t bytes = 0;
  for (const HeadRows& rows : rows_[static_cast<size_t>(server)]) {
    const int64_t count =
        std::min(rows.heads.end(), heads.end()) - std::max(rows.heads.begin, heads.begin);
    if (count <= 0) continue;
    bytes += count * (rows.queries.missing(q.begin, q.end) * query_bytes() +
                      rows.keys.missing(k.begin, k.end) * key_bytes());
  }
  return bytes;
}

std::vector<Placement::Added> Placement::added_memory(const WorkPiece& piece, int server) const {
  const Interval q = query_rows(piece), k = key_rows(piece);
  const KeyList& list = keys_[static_cast<size_t>(piece.keys)];
  const int64_t first = first_key_[static_cast<size_t>(piece.keys)];
  const Span heads = kv_heads(piece);
  std::vector<Added> added;
  int64_t here = 0;
  // Rows that continue others share their ranges.
  const auto margin = [](const RowSet& set, const Interval& gap) {
    const bool continues =
        set.missing(gap.begin - 1, gap.begin) == 0 || set.missing(gap.end, gap.end + 1) == 0;
    return continues ? 0 : kRangeMargin;
  };
  for (const HeadRows& rows : rows_[static_cast<size_t>(server)]) {
    const int64_t count =
        std::min(rows.heads.end(), heads.end()) - std::max(rows.heads.begin, heads.begin);
    if (count <= 0) continue;
    // What is packed at home, and what comes back and is folded from a copy.
    for (const Interval& gap : rows.queries.gaps(q.begin, q.end)) {
      const int64_t elements = count * (gap.end - gap.begin), room = margin(rows.queries, gap);
      here += elements * row_bytes_.query.at_server + room;
      added.push_back({piece.q_owner, elements * row_bytes_.query.at_home + room});
    }
    for (const Interval& gap : rows.keys.gaps(k.begin, k.end)) {
      const int64_t room = margin(rows.keys, gap);
      here += count * (gap.end - gap.begin) * row_bytes_.key.at_server + room;
      for (size_t i = list.at(gap.begin - first);
           i < list.parts.size() && first + list.parts[i].row < gap.end; ++i) {
        const int64_t begin = first + list.parts[i].row;
        const int64_t length =
            std::min(gap.end, begin + list.parts[i].length) - std::max(gap.begin, begin);
        added.push_back({list.parts[i].owner, count * length * row_bytes_.key.at_home + room});
      }
    }
  }
  // Heads that go alone have slots of their own, and so have those beside them.
  if (here > 0 && piece.heads.length < problem_.heads.q_heads) {
    const size_t owners =
        1 + list.at(piece.band.k_row + piece.band.k_len - 1) - list.at(piece.band.k_row);
    here += 2 * static_cast<int64_t>(1 + owners) * kSlotMargin;
  }
  if (here > 0) added.push_back({rank(server), here});
  return added;
}

bool Placement::fits(const WorkPiece& piece, int server) const {
  const int64_t limit = problem_.servers.buffer_bytes;
  if (limit == 0) return true;
  std::vector<Added> added = added_memory(piece, server);
  std::ranges::sort(added, {}, &Added::rank);
  for (size_t i = 0; i < added.size();) {
    const int rank = added[i].rank;
    int64_t bytes = memory(rank);
    for (; i < added.size() && added[i].rank == rank; ++i) bytes += added[i].bytes;
    if (bytes > limit) return false;
  }
  return true;
}

IndexRange Placement::resident_keys(const WorkPiece& piece, int server) const {
  const Interval k = key_rows(piece);
  const int64_t head = kv_heads(piece).begin;
  const std::vector<HeadRows>& of_server = rows_[static_cast<size_t>(server)];
  const auto rows =
      std::ranges::find_if(of_server, [head](const HeadRows& r) { return head < r.heads.end(); });
  const Interval part = rows->keys.longest_in(k.begin, k.end);
  return {part.begin - k.begin, part.end - k.begin};
}

// Lets a range of heads begin at `head`.
void Placement::cut_heads(int server, int64_t head) {
  std::vector<HeadRows>& of_server = rows_[static_cast<size_t>(server)];
  for (size_t i = 0; i < of_server.size(); ++i) {
    const Span heads = of_server[i].heads;
    if (head <= heads.begin || head >= heads.end()) continue;
    HeadRows second = of_server[i];
    second.heads = {head, heads.end() - head};
    of_server[i].heads.length = head - heads.begin;
    of_server.insert(of_server.begin() + static_cast<std::ptrdiff_t>(i) + 1, std::move(second));
    return;
  }
}

void Placement::place(const Work& work, int server) {
  for (const Added& added : added_memory(work.piece, server)) {
    memory_[static_cast<size_t>(added.rank)] += added.bytes;
  }
  bytes_[static_cast<size_t>(server)] += added_bytes(work.piece, server);
  const Interval q = query_rows(work.piece), k = key_rows(work.piece);
  const Span heads = kv_heads(work.piece);
  cut_heads(server, heads.begin);
  cut_heads(server, heads.end());
  for (HeadRows& rows : rows_[static_cast<size_t>(server)]) {
    if (rows.heads.begin < heads.begin || rows.heads.begin >= heads.end()) continue;
    rows.queries.add(q.begin, q.end);
    rows.keys.add(k.begin, k.end);
  }
  load_[static_cast<size_t>(server)] += work.cost();
  work_[static_cast<size_t>(server)].push_back(work);
}

Work Placement::take(int server, size_t index) {
  std::vector<Work>& list = work_[static_cast<size_t>(server)];
  const Work work = list[index];
  list[index] = list.back();
  list.pop_back();
  load_[static_cast<size_t>(server)] -= work.cost();
  return work;
}

std::vector<PlacedTask> Placement::tasks() const {
  std::vector<PlacedTask> result;
  for (int s = 0; s < servers(); ++s) {
    for (const Work& w : work(s)) {
      append_tasks(w.piece, keys_[static_cast<size_t>(w.piece.keys)], rank(s), result);
    }
  }
  return result;
}

}  // namespace longhaul::parallel
