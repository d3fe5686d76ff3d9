// Forward and backward over a sample as one CUDA graph (train.cuda_graph): hundreds of kernels are
// submitted with one call. A graph holds addresses and numbers as they were when it was recorded;
// engines have the same addresses in every pass, so it serves samples that agree in Shape.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "kernels/core/recording.h"
#include "parallel/layout/documents.h"

namespace longhaul::launch {

class PassGraph {
 public:
  struct Shape {
    parallel::Documents documents;
    double grad_scale = 0;
    bool operator==(const Shape&) const = default;
  };

  // Has `submit` submit its work to a stream: as it is for a shape that the call before did not
  // have, since samples of changing documents are not worth recording and a first pass makes what
  // is made once; recorded, and replayed, the second time; replayed without a call after that.
  void run(const Stream& stream, const Shape& shape,
           const std::function<void(const Stream&)>& submit);

  int64_t passes() const { return passes_; }
  int64_t replays() const { return replays_; }  // of them

 private:
  std::optional<Shape> shape_;  // of the last call
  std::unique_ptr<Recording> recording_;
  int64_t passes_ = 0, replays_ = 0;
};

}  // namespace longhaul::launch
