#include "launch/tokenizer/merges.h"

#include <algorithm>
#include <bit>

namespace longhaul::launch {
namespace {

constexpr size_t kShort = 48;

}  // namespace

MergeTable::MergeTable(std::span<const Merge> merges) {
  const size_t slots = std::bit_ceil(2 * merges.size() + 2);
  rows_.assign(slots, Merge{-1, -1, 0, 0});
  mask_ = slots - 1;
  shift_ = 64 - std::countr_zero(slots);
  for (const Merge& merge : merges) {
    size_t at = slot(merge.left, merge.right);
    while (rows_[at].left >= 0 &&
           (rows_[at].left != merge.left || rows_[at].right != merge.right)) {
      at = (at + 1) & mask_;
    }
    rows_[at] = merge;
  }
}

void Merger::merge(const MergeTable& table, std::vector<int32_t>& word) {
  if (word.size() < 2) return;
  if (word.size() <= kShort) {
    merge_short(table, word);
  } else {
    merge_long(table, word);
  }
}

void Merger::merge_short(const MergeTable& table, std::vector<int32_t>& word) {
  size_t size = word.size();
  pairs_.resize(size);  // pairs_[i]: of word[i] and word[i + 1]
  for (size_t i = 0; i + 1 < size; ++i) pairs_[i] = table.find(word[i], word[i + 1]);
  while (size > 1) {
    size_t best = size;
    for (size_t i = 0; i + 1 < size; ++i) {
      if (pairs_[i] != nullptr && (best == size || pairs_[i]->rank < pairs_[best]->rank)) best = i;
    }
    if (best == size) break;
    word[best] = pairs_[best]->merged;
    --size;
    for (size_t i = best + 1; i < size; ++i) {
      word[i] = word[i + 1];
      pairs_[i - 1] = pairs_[i];
    }
    if (best > 0) pairs_[best - 1] = table.find(word[best - 1], word[best]);
    if (best + 1 < size) pairs_[best] = table.find(word[best], word[best + 1]);
  }
  word.resize(size);
}

void Merger::enter(const MergeTable& table, int64_t at) {
  const Symbol& left = symbols_[static_cast<size_t>(at)];
  if (left.next < 0) return;
  const Symbol& right = symbols_[static_cast<size_t>(left.next)];
  if (const Merge* merge = table.find(left.token, right.token)) {
    heap_.push_back({merge->rank, merge->merged, at, left.pieces + right.pieces});
    std::push_heap(heap_.begin(), heap_.end());
  }
}

void Merger::merge_long(const MergeTable& table, std::vector<int32_t>& word) {
  const auto size = static_cast<int64_t>(word.size());
  symbols_.clear();
  heap_.clear();
  for (int64_t i = 0; i < size; ++i) {
    symbols_.push_back({word[static_cast<size_t>(i)], 1, i - 1, i + 1 < size ? i + 1 : -1});
  }
  for (int64_t i = 0; i < size; ++i) enter(table, i);
  while (!heap_.empty()) {
    const Candidate top = heap_.front();
    std::pop_heap(heap_.begin(), heap_.end());
    heap_.pop_back();
    Symbol& left = symbols_[static_cast<size_t>(top.at)];
    if (left.pieces == 0 || left.next < 0) continue;
    Symbol& right = symbols_[static_cast<size_t>(left.next)];
    // A symbol only grows: a pair of another length is not the one that was entered.
    if (left.pieces + right.pieces != top.pieces) continue;
    left.token = top.merged;
    left.pieces = top.pieces;
    left.next = right.next;
    right.pieces = 0;
    if (left.next >= 0) symbols_[static_cast<size_t>(left.next)].previous = top.at;
    if (left.previous >= 0) enter(table, left.previous);
    enter(table, top.at);
  }
  word.clear();
  for (int64_t i = 0; i >= 0; i = symbols_[static_cast<size_t>(i)].next) {
    word.push_back(symbols_[static_cast<size_t>(i)].token);
  }
}

}  // namespace longhaul::launch
