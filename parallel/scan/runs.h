// The runs of tokens that linear attention computes on each rank, one affine map each. Internal to
// parallel/scan.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/linear_attention.h"
#include "parallel/layout/documents.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

// Runs with tokens; those that continue each other on a rank are one.
TokenLayout joined_runs(const TokenLayout& layout);
// The ranges of tokens that are scanned of a sample: the layout's, or, for stripes and where a rank
// has more than `most` (0: no limit), those of a contiguous layout, to which rows are then brought.
TokenLayout scanned_runs(const TokenLayout& of_sample, int64_t most);
bool has_stripes(const TokenLayout& layout);
int64_t most_runs(const TokenLayout& layout);  // of any rank

// As many runs on every rank, dealt there and back as zigzag does: for measuring.
TokenLayout runs_on_every_rank(int64_t runs, int ranks);

// A rank's runs of a sample.
struct OwnRuns {
  std::vector<kernels::LinearRun> rows;  // ascending
  // Rows where a document begins; but for the sample's first one, which continues what went before.
  std::vector<int64_t> document_begins;
  int64_t maps = 0;               // of all ranks
  int64_t first = -1, last = -1;  // of the sample's runs, if this rank's: its index
  int last_owner = 0;             // the rank of the sample's last run
  bool entered = false;           // a document of the sample goes on into one of the runs,
  bool left = false;              // or out of it
};
// layout: as joined_runs() makes it.
OwnRuns own_runs(const TokenLayout& layout, const Documents& documents, int rank);
// For measuring: `runs` of all `rows`, with everything that a run may need.
OwnRuns any_runs(int64_t rows, int64_t runs);

}  // namespace longhaul::parallel
