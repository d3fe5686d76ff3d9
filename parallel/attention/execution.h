// One plan under way on real tensors. Internal to parallel/attention and parallel/scan.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "dist/group.h"
#include "kernels/attention.h"
#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "parallel/attention/activity.h"
#include "parallel/plan/plan.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

// A view per field of a slot; fields that a slot does not hold are empty.
using FieldViews = std::array<TensorView, kFieldCount>;
inline TensorView& at(FieldViews& views, Field field) { return views[static_cast<size_t>(field)]; }

// Shape and dtype of a field in a slot: [rows, heads, dim], or [heads, rows] for lse and delta; dim
// is D * Dv for states.
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

// Memory for one exchange's messages that are not dense in their slot or are folded into it.
class StagingBlock {
 public:
  StagingBlock() = default;  // holds nothing
  explicit StagingBlock(const TensorView& memory) : memory_(memory) {}

  // The next part of the block.
  TensorView take(DType dtype, const Shape& shape);
  int64_t mark() const { return used_; }
  void release(int64_t mark) { used_ = mark; }  // what was taken since

 private:
  TensorView memory_;  // bytes, as f64
  int64_t used_ = 0;
};

// Equal blocks, one for each exchange with staged messages that is under way: of the size that the
// largest exchange of the plan needs, and as many as the plan has in flight at most. Sizes count
// bytes and leave room to align kMessages parts for each rank, so that of two plans the one whose
// exchanges stage fewer bytes needs no more memory, however many ranges of rows its messages have.
class Staging {
 public:
  // Messages of one exchange from and to a peer; planners keep to 16 ranges of rows of 6 fields.
  static constexpr int64_t kMessages = 2 * 16 * 6;
  static constexpr int64_t kAlignment = 16;  // of a part, in bytes

  void reserve(Arena& arena, int64_t block_bytes, int64_t blocks);
  StagingBlock take();
  void give_back(const StagingBlock& block) { free_.push_back(block); }

 private:
  std::vector<StagingBlock> free_;
};

struct ExecutionSetup {
  dist::Group* group = nullptr;
  const Plan* plan = nullptr;
  const TokenLayout* layout = nullptr;  // whose rows a rank's published keys are
  Direction direction = Direction::kForward;
  std::string_view what = "attention";  // for traffic counters and errors
  HeadShape heads;
  DType dtype = DType::kF32;
  kernels::AttentionOptions kernel_options;  // bias_slopes: of all query heads
  InPlace in_place;
  Arena* communication = nullptr;
  ActivityLog* log = nullptr;  // of what is done, if anybody wants to know
};

class Execution {
 public:
  // home: the rank's own tensors. kept: of slot 1, what is to outlive this (a scan's states);
  // fields without a view there, and all other slots, take their memory from the arena, which gets
  // it back on destruction.
  Execution(const Context&, const ExecutionSetup&, const FieldViews& home,
            const FieldViews& kept = {});

  // Publishes home keys and values and starts the first step's transfers.
  void start(const Context&);
  // For a caller that computes something else between start() and finish().
  // Lets what has started progress.
  void poll();
  // And, in a plan without tasks, goes on to the next steps once what is due there has arrived:
  // when, differs from rank to rank. So no other operation of the group may start between the first
  // call and finish(). Folds and copies on the caller's thread: may be called from within a kernel.
  void advance();
  // Runs everything to the end.
  void finish(const Context&);

 private:
  struct Landing {  // what to do with a received message once it is there
    const Transfer* transfer;
    Field field;
    TensorView staged;  // what is to be folded or copied; empty: it was received where it belongs
  };
  struct Packed {  // dense copy of a part of a slot, to be sent
    const Transfer* transfer;
    Field field;
    TensorView copy;
  };
  struct Pending {
    int done_by = 0;
    dist::Request request;
    std::vector<Landing> landings;
    std::optional<StagingBlock> staging;  // taken by the first message that needs it
    std::vector<Packed> packed;
    std::vector<int> published_by;  // ranks whose published keys and values are about to be read
    double started = -1;            // to be logged once it is complete
  };

  bool reads_in_place(const Transfer& transfer) const;
  bool replaced_by_reading(const Transfer& transfer) const;
  bool composes_own(std::span<const Transfer> exchange, size_t i) const;
  void publish_home(const Context&);
  void alias(const Transfer& transfer, bool measuring);
  void reserve_staging();
  int64_t staged_bytes(std::span<const Transfer> exchange) const;
  TensorView stage(Pending& pending, const TensorView& part);
  TensorView pack(const Context&, Pending& pending, const Transfer& t, Field field,
                  const TensorView& part);
  void start_transfers(const Context&, int step);
  void complete_until(const Context&, int step);
  void log_if_complete(Pending& pending);
  void land(const Context&, Pending& pending);
  void fold(const Context&, const Landing& out, const Landing* lse, StagingBlock& staging);
  void compose(const Context&, const Landing& state, const Landing* decay);
  void clear(const Context&, const Clear& clear);
  void compute(const Context&, const Task& task);
  void enter(const Context&, int step);
  bool may_enter(int step) const;
  ActivityLog::Recording recording(Activity::Kind kind) {
    return {setup_.log, kind, setup_.direction, entered_ < 0 ? 0 : entered_};
  }
  Stream& stream() { return stream_; }

  ExecutionSetup setup_;
  Arena::Scope scope_;
  Staging staging_;
  Stream stream_;
  std::vector<FieldViews> slots_;    // as they are now: keys and values may be another rank's
  std::vector<FieldViews> buffers_;  // the slots' own memory
  std::vector<Pending> pending_;
  std::vector<int> aliased_;  // ranks whose window slot is being read, once each
  int entered_ = -1;          // the last step whose transfers have started
  bool has_tasks_ = false;
  ThreadPool own_thread_{1};  // the caller's, for advance()
  Context advancing_;
};

}  // namespace longhaul::parallel
