// A Plan says, for one rank, what is moved and what is computed, and when. It is data: the executor
// runs it, `longhaul plan` prices it, tests prove it without any rank.
//
// Vocabulary
//   Slot      a place on this rank for some rows x heads. Slot 0 is home: the rank's own rows, all
//             heads. Other slots are buffers. A slot has a query side (q, out, lse, dout, delta,
//             dq) and a key side (k, v, dk, dv; state, decay), each with its own rows and heads.
//   Transfer  rows x heads of some fields between a slot here and a slot of a peer (or of this
//             rank). The two ends match in order, per pair of ranks, so no names travel.
//   Task      attention of a query slot against a key slot: a list of segments for a head range.
//   Step      what may happen at the same time.
//
// Meaning of step s, in this order:
//   1. transfers with done_by == s are complete; received fields with a reduction are folded into
//      their slots, in the order in which the transfers are listed;
//   2. clears: accumulators start empty (out = 0, lse = -inf; dq, dk, dv = 0; state = 0);
//   3. the transfers of step s are started;
//   4. its tasks are computed, in order, while the transfers progress.
// Until it is done, a send's rows must not be written, and a storing receive's rows must be neither
// read nor written, by tasks or other transfers. A receive with a reduction lands in staging memory
// and touches its slot only when folded. What a rank composes with rows of its own (a composing
// receive from itself, directly after its send) is read only then, without staging memory: nothing
// folded before it at that step may write these rows. After the last step, everything is complete.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/segment.h"
#include "kernels/state_maps.h"

namespace longhaul::parallel {

// kState and kDecay are affine maps of linear attention's state, S -> decay S + state, whose rows
// are runs of tokens; kState alone is a state (kernels/state_maps.h).
enum class Field : uint8_t { kQ, kOut, kLse, kDOut, kDelta, kDQ, kK, kV, kDK, kDV, kState, kDecay };
inline constexpr int kFieldCount = 12;
std::string_view name(Field field);

// A set of fields, moved in enumeration order.
class Fields {
 public:
  constexpr Fields() = default;
  constexpr Fields(std::initializer_list<Field> fields) {
    for (Field field : fields) bits_ |= bit(field);
  }
  constexpr bool has(Field field) const { return (bits_ & bit(field)) != 0; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr Fields operator|(Fields other) const { return Fields(bits_ | other.bits_); }
  constexpr bool intersects(Fields other) const { return (bits_ & other.bits_) != 0; }
  std::vector<Field> list() const;
  bool operator==(const Fields&) const = default;

 private:
  explicit constexpr Fields(uint32_t bits) : bits_(bits) {}
  static constexpr uint32_t bit(Field field) { return 1u << static_cast<int>(field); }
  uint32_t bits_ = 0;
};
constexpr bool on_key_side(Field field) { return field >= Field::kK; }

struct Span {  // rows of a slot, or global heads
  int64_t begin = 0;
  int64_t length = 0;
  int64_t end() const { return begin + length; }
  bool operator==(const Span&) const = default;
};

struct Slot {
  int64_t q_rows = 0;
  int64_t k_rows = 0;
  Span q_heads;   // global query heads held
  Span kv_heads;  // global kv heads held
  Fields fields;  // what is ever stored here
  // An earlier slot whose memory this one takes over, field by field (each as large there), for
  // other heads or rows: storing into or clearing a field of one of them undoes it in the others.
  // -1: memory of its own.
  int memory_of = -1;
  bool operator==(const Slot&) const = default;
};

enum class Reduce : uint8_t {
  kStore,    // overwrite
  kAdd,      // dq, dk, dv
  kMerge,    // (out, lse) by log-sum-exp
  kCompose,  // state, decay: slot <- received, then slot (an affine map followed by a later one);
             // state alone: what is received is a state, and the slot's decay stays as it is
};

struct Transfer {
  bool send = false;  // or receive
  int peer = 0;
  int slot = 0;   // on this rank
  Fields fields;  // all of one side of the slot
  Span rows;
  Span heads;                      // global heads of that side
  Reduce reduce = Reduce::kStore;  // of a receive
  int done_by = 0;                 // step at whose start it is complete; > its own step
  // For k and v: the rank whose unchanged home rows these are, lying in the slot at the same row
  // numbers as at home, all kv heads; and everything the slot then holds is of that origin. A rank
  // of the same node may read the home in place of the slot, all its rows. -1: no; a slot that is
  // received into both with and without an origin is not allowed.
  int origin = -1;
  bool operator==(const Transfer&) const = default;
};

struct Task {
  int q_slot = 0;
  int k_slot = 0;
  Span q_heads;  // global query heads to compute; their kv heads must be in k_slot
  std::vector<Segment> segments;
  bool operator==(const Task&) const = default;
};

struct Clear {
  int slot = 0;
  Fields fields;
  bool operator==(const Clear&) const = default;
};

struct Step {
  std::vector<Clear> clears;
  std::vector<Transfer> transfers;
  std::vector<Task> tasks;
  bool operator==(const Step&) const = default;
};

// What a scheduler has come to, the same on every rank (parallel/server/schedule.h).
struct Scheduled {
  double max_over_mean = 0;  // load of the most loaded server; 0: no scheduler
  int rounds = 1;
  // Memory kept balance from its goal, or rounds from their number.
  bool gave_way = false;
  bool operator==(const Scheduled&) const = default;
};

struct Plan {
  std::vector<Slot> slots;  // slots[0] is home
  std::vector<Step> steps;
  // Ranks that receive rows of this rank's home k and v with `origin` set, each once: the possible
  // in-place readers.
  std::vector<int> home_readers;
  // Of what all ranks must have decided alike for their plans to match, where ranks may decide
  // otherwise: costs in floating point (plan_disaggregated). 0: nothing of the kind.
  uint64_t digest = 0;
  Scheduled scheduled{};
  bool operator==(const Plan&) const = default;
};

// Sizes of what is moved.
struct HeadShape {
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t head_dim = 64;
  int64_t value_dim = 64;
  kernels::StateDecay state_decay = kernels::StateDecay::kScalar;  // of kDecay
  int64_t group() const { return q_heads / kv_heads; }
  bool operator==(const HeadShape&) const = default;
};
// Bytes of one row of one head of a field. Results that are merged or summed (out, dq, dk, dv),
// lse, delta and states (head_dim x value_dim) are held in the accumulator type.
int64_t field_bytes(Field field, const HeadShape& heads, DType dtype);
// Bytes a transfer puts on the wire (0 to itself).
int64_t transfer_bytes(const Transfer& transfer, int rank, const HeadShape& heads, DType dtype);
// Sums over a plan.
int64_t received_bytes(const Plan& plan, int rank, const HeadShape& heads, DType dtype);
int64_t sent_bytes(const Plan& plan, int rank, const HeadShape& heads, DType dtype);

}  // namespace longhaul::parallel
