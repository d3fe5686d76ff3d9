// Rows of a sample brought from their layout to a contiguous one, and back: for what can only work
// on ranges of tokens. Internal to parallel/scan.
#pragma once

#include <string_view>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

class Relayout {
 public:
  // Of the rows of `rank` here and in TokenLayout::contiguous.
  Relayout(const TokenLayout& layout, int rank);

  int64_t contiguous_rows() const { return contiguous_rows_; }

  // Collective. Tensors [rows, ...], whose rows are dense and have any stride, to as many dense
  // ones of contiguous_rows() rows, and the other way round; pairs by index. Every row goes
  // straight to its new owner: P - 1 messages for each tensor at most. Staging memory, as large as
  // the two sides of a transfer, comes from the arena and is returned.
  void to_contiguous(const Context&, dist::Group& group, Arena& communication,
                     const std::vector<ConstTensorView>& from, const std::vector<TensorView>& to,
                     std::string_view what) const;
  void from_contiguous(const Context&, dist::Group& group, Arena& communication,
                       const std::vector<ConstTensorView>& from, const std::vector<TensorView>& to,
                       std::string_view what) const;

 private:
  // Rows begin, begin + stride, ... that go to or come from a rank, in order of position.
  struct Rows {
    int peer = 0;
    int64_t begin = 0;
    int64_t length = 0;
    int64_t stride = 1;
  };
  static void move(const Context&, dist::Group& group, Arena& communication,
                   const std::vector<Rows>& send, const std::vector<Rows>& receive,
                   const std::vector<ConstTensorView>& from, const std::vector<TensorView>& to,
                   std::string_view what);

  int64_t contiguous_rows_ = 0;
  // Messages between two ranks match in order: by the run, then by position.
  std::vector<Rows> here_;        // by where they go
  std::vector<Rows> contiguous_;  // by where they come from
};

}  // namespace longhaul::parallel
