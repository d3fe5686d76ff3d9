// Who owns which tokens: a bijection between global positions [0, N) and (rank, local row).
//
// Each rank's rows are a short list of runs; a run is an arithmetic sequence of global positions.
//   contiguous  one run per rank
//   zigzag      2P chunks; rank r owns chunks r and 2P-1-r: causal work is balanced
//   striped     one run of stride P per rank (Brandon et al. 2023, Striped Attention)
//   balanced    some runs per rank, for the documents of each sample (balanced.h)
// Nothing divides anything: chunk sizes differ by at most one. Empty runs are kept, so that every
// rank has equally many (one, zigzag two, balanced some).
// Positions for RoPE, labels, masks, loss and data loading read the layout and nothing else.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace longhaul::parallel {

class Documents;
struct Mask;

struct Run {
  int64_t global_begin = 0;
  int64_t length = 0;
  int64_t stride = 1;

  int64_t position(int64_t i) const { return global_begin + i * stride; }
  bool operator==(const Run&) const = default;
};

// Rows of a rank, or of several ranks one after the other: row i is in the run that covers i.
using RunList = std::vector<Run>;
int64_t rows_of(const RunList& runs);
// Rows [row, row + length) of a list, as runs of their own.
RunList slice(const RunList& runs, int64_t row, int64_t length);

class TokenLayout {
 public:
  static TokenLayout contiguous(int64_t tokens, int ranks);
  static TokenLayout zigzag(int64_t tokens, int ranks);
  static TokenLayout striped(int64_t tokens, int ranks);
  // Any bijection whose runs of more than one row share one stride; throws Error(kInternal) if the
  // runs are none.
  TokenLayout(int64_t tokens, std::vector<RunList> runs_of_ranks);

  int64_t tokens() const { return tokens_; }
  int ranks() const { return static_cast<int>(runs_.size()); }
  const RunList& runs(int rank) const { return runs_[static_cast<size_t>(rank)]; }
  int64_t rows(int rank) const { return rows_of(runs(rank)); }
  int64_t most_rows() const;  // of any rank

  struct Place {
    int rank = 0;
    int64_t row = 0;
    bool operator==(const Place&) const = default;
  };
  Place locate(int64_t position) const;
  int64_t position(int rank, int64_t row) const;
  // Global positions of all rows of a rank, in row order.
  std::vector<int64_t> positions(int rank) const;

 private:
  struct Piece {          // a non-empty run, by where it lies
    int64_t residue = 0;  // of its positions modulo stride_
    Run run;
    Place first;
  };

  int64_t tokens_ = 0;
  int64_t stride_ = 1;
  std::vector<RunList> runs_;
  std::vector<Piece> pieces_;  // sorted by residue, then position
};

// What the balanced layout goes by: balanced.h.
struct BalancedOptions {
  // Hard limit: the area of a rank is at most this times its share (as of its tokens) of all area,
  // plus the most keys that a single query sees, since the work of a token cannot be cut. Reached
  // for any documents and mask. At least 1.
  double bound = 2.0;
  // What receiving a row of keys and values costs, in pairs (query, key) of attention. Within the
  // bound the layout is taken whose costliest rank, area + row_price x remote rows, is cheapest.
  // A row takes K (d+e) b bytes and a pair 2 H (d+e) FLOPs, so for R FLOP/s and B bytes/s of a rank
  // the price is (K b / 2 H) (R / B); by measured figures: parallel/cost/row_price.h. Default:
  // bf16, 4 query heads a kv head, 400 TFLOP/s, 50 GB/s. Below 0: no choice; the layout at the
  // bound.
  double row_price = 2000;
  // Places for each rank where its tokens may begin or end: borders of equal chunks, moved to a
  // document's border where one is at most half a chunk away.
  int64_t chunks_per_rank = 32;
};

// The layouts by name, for configurations and tests.
struct LayoutKind {
  std::string_view name;  // "contiguous"
  // For samples of one document, or of which nothing is known yet.
  TokenLayout (*make)(int64_t tokens, int ranks);
  // For a sample with these documents; every rank has as many rows as by `make`, so that memory
  // does not depend on the sample. Null: as `make`, whatever the documents are.
  TokenLayout (*make_for)(const Documents& documents, const Mask& mask, int ranks,
                          const BalancedOptions& options) = nullptr;

  TokenLayout of_sample(const Documents& documents, const Mask& mask, int ranks,
                        const BalancedOptions& options = {}) const;
};
std::span<const LayoutKind> layout_kinds();
// Throws Error(kConfig) with the known names if there is none of this name.
const LayoutKind& layout_kind(std::string_view name);

}  // namespace longhaul::parallel
