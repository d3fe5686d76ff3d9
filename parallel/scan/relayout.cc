#include "parallel/scan/relayout.h"

#include <algorithm>

#include "kernels/pointwise.h"

namespace longhaul::parallel {

namespace {

// Every stride-th row of a tensor.
template <class View>
View strided_rows(const View& view, int64_t begin, int64_t length, int64_t stride) {
  const View first = view.rows(begin, length > 0 ? 1 : 0);
  Shape shape = view.shape(), strides = view.shape();
  for (int i = 0; i < view.rank(); ++i) strides[i] = view.stride(i);
  shape[0] = length;
  strides[0] *= stride;
  return View(first.raw(), view.dtype(), shape, strides, view.device());
}

}  // namespace

Relayout::Relayout(const TokenLayout& layout, int rank) {
  const TokenLayout target = TokenLayout::contiguous(layout.tokens(), layout.ranks());
  contiguous_rows_ = target.rows(rank);
  for (int r = 0; r < layout.ranks(); ++r) {
    int64_t row = 0;
    for (const Run& run : layout.runs(r)) {
      // The part of the run that each rank's range of positions holds.
      for (int64_t i = 0; i < run.length;) {
        const TokenLayout::Place place = target.locate(run.position(i));
        const Run& range = target.runs(place.rank)[0];
        const int64_t room = range.global_begin + range.length - run.position(i);
        const int64_t length = std::min(run.length - i, (room + run.stride - 1) / run.stride);
        if (r == rank) here_.push_back({place.rank, row + i, length, 1});
        if (place.rank == rank) contiguous_.push_back({r, place.row, length, run.stride});
        i += length;
      }
      row += run.length;
    }
  }
}

void Relayout::to_contiguous(const Context& ctx, dist::Group& group, Arena& communication,
                             const std::vector<ConstTensorView>& from,
                             const std::vector<TensorView>& to, std::string_view what) const {
  move(ctx, group, communication, here_, contiguous_, from, to, what);
}

void Relayout::from_contiguous(const Context& ctx, dist::Group& group, Arena& communication,
                               const std::vector<ConstTensorView>& from,
                               const std::vector<TensorView>& to, std::string_view what) const {
  move(ctx, group, communication, contiguous_, here_, from, to, what);
}

void Relayout::move(const Context& ctx, dist::Group& group, Arena& communication,
                    const std::vector<Rows>& send, const std::vector<Rows>& receive,
                    const std::vector<ConstTensorView>& from, const std::vector<TensorView>& to,
                    std::string_view what) {
  LONGHAUL_CHECK(from.size() == to.size());
  const Arena::Scope scope(communication);
  std::vector<dist::Send> sends;
  std::vector<dist::Recv> receives;
  struct Landing {
    TensorView message, rows;
  };
  std::vector<Landing> landings;
  for (size_t tensor = 0; tensor < from.size(); ++tensor) {
    // One piece of memory for all messages of a tensor, whatever their number.
    const auto dense = [&](const Shape& shape, DType dtype, int64_t rows) {
      Shape all = shape;
      all[0] = rows;
      return communication.allocate(dtype, all);
    };
    const TensorView packed =
        dense(from[tensor].shape(), from[tensor].dtype(), from[tensor].dim(0));
    const TensorView landed = dense(to[tensor].shape(), to[tensor].dtype(), to[tensor].dim(0));
    int64_t used = 0;
    for (const Rows& rows : send) {
      const TensorView message = packed.rows(used, rows.length);
      kernels::copy(ctx, strided_rows(from[tensor], rows.begin, rows.length, rows.stride), message);
      sends.push_back({rows.peer, message});
      used += rows.length;
    }
    used = 0;
    for (const Rows& rows : receive) {
      const TensorView message = landed.rows(used, rows.length);
      receives.push_back({rows.peer, message});
      landings.push_back({message, strided_rows(to[tensor], rows.begin, rows.length, rows.stride)});
      used += rows.length;
    }
  }
  if (ctx.measuring()) return;
  Stream stream = ctx.stream;
  group.exchange(stream, sends, receives, what).wait(stream);
  for (const Landing& landing : landings) kernels::copy(ctx, landing.message, landing.rows);
}

}  // namespace longhaul::parallel
