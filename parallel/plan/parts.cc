#include "parallel/plan/parts.h"

#include <algorithm>
#include <utility>

#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

Transfer transfer(const End& end, bool send, Reduce reduce) {
  return {.send = send,
          .peer = end.peer,
          .slot = end.slot,
          .fields = end.fields,
          .rows = end.rows,
          .heads = end.heads,
          .reduce = reduce,
          .done_by = end.done_by,
          .origin = end.origin};
}

}  // namespace

Slot home_slot(const Problem& problem, Direction direction, int rank) {
  const int64_t rows = problem.layout.rows(rank);
  return {.q_rows = rows,
          .k_rows = rows,
          .q_heads = {0, problem.heads.q_heads},
          .kv_heads = {0, problem.heads.kv_heads},
          .fields = query_inputs(direction) | query_outputs(direction) | key_fields(direction)};
}

Slot key_buffer(const Problem& problem, Direction direction) {
  return {.q_rows = 0,
          .k_rows = problem.layout.most_rows(),
          .q_heads = {},
          .kv_heads = {0, problem.heads.kv_heads},
          .fields = key_fields(direction)};
}

void add_send(Step& step, const End& end) {
  step.transfers.push_back(transfer(end, true, Reduce::kStore));
}

void add_receive(Step& step, const End& end, Reduce reduce) {
  step.transfers.push_back(transfer(end, false, reduce));
}

void add_task(Step& step, const Problem& problem, Task task, const RunList& q, const RunList& k) {
  task.segments = cut_segments(q, k, problem.documents, problem.mask);
  if (!task.segments.empty()) step.tasks.push_back(std::move(task));
}

void add_ring_task(Step& step, const Problem& problem, int rank, int key_owner, int key_slot) {
  add_task(step, problem, {0, key_slot, {0, problem.heads.q_heads}, {}}, problem.layout.runs(rank),
           problem.layout.runs(key_owner));
}

std::vector<Span> joined(std::vector<Span> spans, size_t most) {
  LONGHAUL_CHECK(most > 0);
  std::sort(spans.begin(), spans.end(), [](Span a, Span b) { return a.begin < b.begin; });
  size_t count = 0;  // the first `count` are joined where they touch
  for (Span span : spans) {
    if (count > 0 && span.begin <= spans[count - 1].end()) {
      Span& last = spans[count - 1];
      last.length = std::max(last.end(), span.end()) - last.begin;
    } else {
      spans[count++] = span;
    }
  }
  spans.resize(count);
  if (count <= most) return spans;

  // Gaps by width; the widest ones stay.
  std::vector<std::pair<int64_t, size_t>> gaps;  // minus the width, index of the span after it
  for (size_t i = 1; i < count; ++i) gaps.emplace_back(spans[i - 1].end() - spans[i].begin, i);
  std::nth_element(gaps.begin(), gaps.begin() + static_cast<std::ptrdiff_t>(most - 1), gaps.end());
  gaps.resize(most - 1);
  std::sort(gaps.begin(), gaps.end(), [](auto a, auto b) { return a.second < b.second; });
  gaps.emplace_back(0, count);
  std::vector<Span> result;
  size_t first = 0;
  for (const auto& [width, next] : gaps) {
    const int64_t begin = spans[first].begin;
    result.push_back({begin, spans[next - 1].end() - begin});
    first = next;
  }
  return result;
}

Span even_part(int64_t total, int parts, int index) {
  const int64_t base = total / parts, larger = total % parts;
  return {index * base + std::min<int64_t>(index, larger), base + (index < larger ? 1 : 0)};
}

Span kv_heads_of(Span q_heads, const HeadShape& heads) {
  if (q_heads.length == 0) return {};
  const int64_t first = q_heads.begin / heads.group(), last = (q_heads.end() - 1) / heads.group();
  return {first, last - first + 1};
}

std::vector<int> all_other_readers(const Problem& problem, int rank) {
  std::vector<int> readers;
  if (problem.layout.rows(rank) == 0) return readers;
  for (int r = 0; r < problem.layout.ranks(); ++r) {
    if (r != rank) readers.push_back(r);
  }
  return readers;
}

}  // namespace longhaul::parallel
