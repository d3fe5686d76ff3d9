#include "checkpoint/slices.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "checkpoint/safetensors.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint {
namespace {

// Disjoint ranges: begin -> end.
using Covered = std::map<int64_t, int64_t>;

// The parts of [begin, end) that are not covered yet; they are then.
std::vector<std::pair<int64_t, int64_t>> take_missing(Covered& covered, int64_t begin,
                                                      int64_t end) {
  std::vector<std::pair<int64_t, int64_t>> missing;
  auto it = covered.upper_bound(begin);
  if (it != covered.begin()) begin = std::max(begin, std::prev(it)->second);
  while (begin < end) {
    const bool last = it == covered.end() || it->first >= end;
    const int64_t stop = last ? end : it->first;
    if (stop > begin) missing.emplace_back(begin, stop);
    begin = last ? end : it->second;
    if (!last) ++it;
  }
  for (const auto& [from, to] : missing) covered.emplace(from, to);
  return missing;
}

std::string shape_text(const proto::Tensor& tensor) {
  return Shape(std::span<const int64_t>(tensor.shape().data(),
                                        static_cast<size_t>(tensor.shape_size())))
      .to_string();
}

bool same_kind(const proto::Tensor& a, const proto::Tensor& b) {
  return a.dtype() == b.dtype() &&
         std::equal(a.shape().begin(), a.shape().end(), b.shape().begin(), b.shape().end());
}

void check_complete(const proto::Tensor& tensor) {
  int64_t elements = 1, end = 0;
  for (const int64_t dim : tensor.shape()) elements *= dim;
  const auto missing = [&](int64_t from, int64_t to) {
    fail(ErrorCode::kInternal, absl::StrCat("no rank holds elements [", from, ", ", to,
                                            ") of tensor '", tensor.name(), "'"));
  };
  for (const proto::Slice& slice : tensor.slices()) {
    if (slice.begin() != end) missing(end, slice.begin());
    end = slice.end();
  }
  if (end != elements) missing(end, elements);
}

}  // namespace

std::string slice_key(const std::string& tensor, int64_t begin, int64_t end) {
  return absl::StrCat(tensor, "[", begin, ":", end, "]");
}

proto::Holdings holdings_of(const State& state) {
  proto::Holdings holdings;
  for (const Slice& slice : state) {
    LONGHAUL_CHECK(!slice.name.empty(), "a slice of a checkpoint has a name");
    LONGHAUL_CHECK(
        slice.begin >= 0 && slice.begin <= slice.end && slice.end <= slice.shape.elements(),
        slice.name);
    LONGHAUL_CHECK(slice.source || (slice.data.elements() == slice.end - slice.begin &&
                                    slice.data.contiguous()),
                   slice.name);
    proto::Tensor& tensor = *holdings.add_tensors();
    tensor.set_name(slice.name);
    tensor.set_dtype(std::string(safetensors_name(slice.dtype())));
    for (const int64_t dim : slice.shape.dims()) tensor.add_shape(dim);
    proto::Slice& held = *tensor.add_slices();
    held.set_begin(slice.begin);
    held.set_end(slice.end);
  }
  return holdings;
}

std::vector<proto::Tensor> assign_slices(const std::vector<proto::Holdings>& ranks) {
  struct Assigned {
    proto::Tensor tensor;
    int first_rank = 0;
    Covered covered;
    std::vector<proto::Slice> slices;
  };
  std::map<std::string, Assigned> by_name;
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    for (const proto::Tensor& held : ranks[static_cast<size_t>(rank)].tensors()) {
      Assigned& assigned = by_name[held.name()];
      if (assigned.tensor.name().empty()) {
        assigned.tensor = held;
        assigned.tensor.clear_slices();
        assigned.first_rank = rank;
      } else if (!same_kind(assigned.tensor, held)) {
        fail(ErrorCode::kInternal,
             absl::StrCat("tensor '", held.name(), "' is ", assigned.tensor.dtype(),
                          shape_text(assigned.tensor), " on rank ", assigned.first_rank, " and ",
                          held.dtype(), shape_text(held), " on rank ", rank));
      }
      for (const proto::Slice& slice : held.slices()) {
        for (const auto& [begin, end] :
             take_missing(assigned.covered, slice.begin(), slice.end())) {
          proto::Slice piece;
          piece.set_begin(begin);
          piece.set_end(end);
          piece.set_file(rank);
          assigned.slices.push_back(piece);
        }
      }
    }
  }
  std::vector<proto::Tensor> tensors;
  for (auto& [name, assigned] : by_name) {
    std::sort(assigned.slices.begin(), assigned.slices.end(),
              [](const auto& a, const auto& b) { return a.begin() < b.begin(); });
    for (const proto::Slice& slice : assigned.slices) *assigned.tensor.add_slices() = slice;
    check_complete(assigned.tensor);
    tensors.push_back(std::move(assigned.tensor));
  }
  return tensors;
}

}  // namespace longhaul::checkpoint
