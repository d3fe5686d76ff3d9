// One plan under way on real tensors. Internal to parallel/attention.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "dist/group.h"
#include "kernels/attention.h"
#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "parallel/plan/plan.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

// A view per field of a slot; fields that a slot does not hold are empty.
using FieldViews = std::array<TensorView, kFieldCount>;
inline TensorView& at(FieldViews& views, Field field) { return views[static_cast<size_t>(field)]; }

// Shape and dtype of a field in a slot: [rows, heads, dim], or [heads, rows] for lse and delta.
TensorView allocate_field(Arena& arena, const Slot& slot, Field field, const HeadShape& heads,
                          DType dtype);
// Rows x heads (global) of a field of a slot.
TensorView part_of_field(const TensorView& view, const Slot& slot, Field field, Span rows,
                         Span heads);

// Where ranks read each other's keys and values in place: slot `epoch % 2` of the window.
struct InPlace {
  dist::Window* window = nullptr;  // null: everything is moved
  const std::vector<int>* node_of = nullptr;
  uint64_t epoch = 0;

  bool shares(int a, int b) const {
    return window != nullptr &&
           (*node_of)[static_cast<size_t>(a)] == (*node_of)[static_cast<size_t>(b)];
  }
};

// Receive buffers for messages that are not dense in their slot or must be folded into it. Buffers
// are reused once landed, so that memory is bounded by what is under way at a time.
class Staging {
 public:
  explicit Staging(Arena& arena) : arena_(arena) {}
  TensorView take(DType dtype, const Shape& shape);
  void give_back(const TensorView& view);

 private:
  struct Buffer {
    TensorView memory;  // bytes, as f64
    bool taken = false;
  };
  Arena& arena_;
  std::vector<Buffer> buffers_;
};

struct ExecutionSetup {
  dist::Group* group = nullptr;
  const Plan* plan = nullptr;
  Direction direction = Direction::kForward;
  HeadShape heads;
  DType dtype = DType::kF32;
  kernels::AttentionOptions kernel_options;
  InPlace in_place;
  Arena* communication = nullptr;
};

class Execution {
 public:
  // home: the rank's own tensors. Returns memory to the arena on destruction.
  Execution(const Context&, const ExecutionSetup&, const FieldViews& home);

  // Publishes home keys and values and starts the first step's transfers.
  void start(const Context&);
  // Runs everything to the end.
  void finish(const Context&);

 private:
  struct Landing {  // what to do with a received message once it is there
    const Transfer* transfer;
    Field field;
    TensorView staged;  // empty: it was received where it belongs
  };
  struct Pending {
    int done_by = 0;
    dist::Request request;
    std::vector<Landing> landings;
    std::vector<TensorView> sent_copies;
    std::vector<int> published_by;  // ranks whose published keys and values are about to be read
  };

  bool reads_in_place(const Transfer& transfer) const;
  bool replaced_by_reading(const Transfer& transfer) const;
  void publish_home(const Context&);
  void alias(const Transfer& transfer, bool measuring);
  void start_transfers(const Context&, int step);
  void complete_until(const Context&, int step);
  void land(const Context&, Pending& pending);
  void fold(const Context&, const Landing& out, const Landing* lse);
  void clear(const Context&, const Clear& clear);
  void compute(const Context&, const Task& task);
  void poll();
  std::string_view what() const;
  Stream& stream() { return stream_; }

  ExecutionSetup setup_;
  Arena::Scope scope_;
  Staging staging_;
  Stream stream_;
  std::vector<FieldViews> slots_;
  std::vector<Pending> pending_;
  std::vector<int> aliased_;  // ranks whose window slot is being read
  bool started_ = false;
};

}  // namespace longhaul::parallel
