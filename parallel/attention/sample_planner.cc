#include "parallel/attention/sample_planner.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

SamplePlanner::SamplePlanner(const CoreAttentionOptions& options, const Strategy& forward,
                             const Strategy& backward, const TokenLayout& layout, int rank)
    : options_(options), forward_(forward), backward_(backward), layout_(layout), rank_(rank) {}

Problem SamplePlanner::problem(const Documents& documents, const TokenLayout& layout,
                               const Mask& mask) const {
  Servers servers = options_.servers;
  servers.dtype = options_.dtype;
  servers.profile = options_.profile ? &*options_.profile : nullptr;
  return {.layout = layout,
          .documents = documents,
          .mask = mask,
          .heads = options_.heads,
          .ranks_per_node = options_.ranks_per_node,
          .gather_heads = options_.gather_heads,
          .servers = std::move(servers)};
}

TokenLayout SamplePlanner::layout_of(const Documents& documents) const {
  TokenLayout layout = options_.sample_layout
                           ? options_.sample_layout(documents, options_.mask, layout_.ranks())
                           : layout_;
  // What was measured and reserved for one sample serves all.
  for (int r = 0; r < layout_.ranks(); ++r) {
    LONGHAUL_CHECK(layout.rows(r) == layout_.rows(r) || layout.rows(r) == 0,
                   absl::StrCat("rank ", r, " has ", layout.rows(r), " rows of this sample and ",
                                layout_.rows(r), " of others"));
  }
  LONGHAUL_CHECK(documents.tokens() == layout.tokens());
  return layout;
}

SamplePlans SamplePlanner::plans(const Documents& documents) const {
  const TokenLayout layout = layout_of(documents);
  const Problem made = problem(documents, layout, options_.mask);
  return {.documents = documents,
          .layout = layout,
          .forward = forward_.plan(made, Direction::kForward, rank_),
          .backward = backward_.plan(made, Direction::kBackward, rank_)};
}

}  // namespace longhaul::parallel
