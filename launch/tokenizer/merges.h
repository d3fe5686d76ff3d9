// Byte-pair encoding of one word: neighbours are merged, the pair with the least rank first, the
// leftmost of several, until no pair has one (Sennrich et al. 2016, "Neural Machine Translation of
// Rare Words with Subword Units").
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace longhaul::launch {

struct Merge {
  int32_t left = 0, right = 0;  // tokens
  int32_t rank = 0;
  int32_t merged = 0;  // token
};

// Pairs of tokens to what they become. Reading is thread-safe.
class MergeTable {
 public:
  // Of two rows for one pair the later one counts.
  explicit MergeTable(std::span<const Merge> merges);

  const Merge* find(int32_t left, int32_t right) const {
    for (size_t at = slot(left, right);; at = (at + 1) & mask_) {
      const Merge& row = rows_[at];
      if (row.left == left && row.right == right) return &row;
      if (row.left < 0) return nullptr;
    }
  }

 private:
  size_t slot(int32_t left, int32_t right) const {
    const uint64_t key = uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15U) >> shift_);
  }

  std::vector<Merge> rows_;  // open addressing; left < 0: empty
  size_t mask_ = 0;
  int shift_ = 0;
};

// Merges words; keeps memory between them. One per thread.
class Merger {
 public:
  // Replaces the tokens of a word by what they merge to.
  void merge(const MergeTable& table, std::vector<int32_t>& word);

 private:
  // Quadratic, but without overhead.
  void merge_short(const MergeTable& table, std::vector<int32_t>& word);
  // n log n.
  void merge_long(const MergeTable& table, std::vector<int32_t>& word);

  struct Symbol {
    int32_t token = 0;
    int64_t pieces = 0;               // of the word, that it consists of; 0: merged away
    int64_t previous = 0, next = -1;  // symbols; -1: none
  };
  struct Candidate {
    int32_t rank = 0;
    int32_t merged = 0;
    int64_t at = 0;
    int64_t pieces = 0;  // that the pair had when it was entered
    // For a heap whose top is the next to merge.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  void enter(const MergeTable& table, int64_t at);

  std::vector<const Merge*> pairs_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace longhaul::launch
