#include "launch/train/pass_graph.h"

namespace longhaul::launch {

void PassGraph::run(const Stream& stream, const Shape& shape,
                    const std::function<void(const Stream&)>& submit) {
  ++passes_;
  if (shape_ != shape) {
    recording_.reset();
    shape_ = shape;
    return submit(stream);
  }
  if (!recording_) recording_ = std::make_unique<Recording>(stream, submit);
  recording_->replay();
  ++replays_;
}

}  // namespace longhaul::launch
