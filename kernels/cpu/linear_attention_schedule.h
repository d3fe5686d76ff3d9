// How the CPU's linear attention is cut into tasks, and the memory of a worker. Nothing here
// depends on the instruction set.
//
// A run is cut into pieces, a piece into blocks, heads into groups. A task is a piece of a group:
// it goes through the piece block by block and, in a block, through the heads, so that rows are
// read as they lie in memory. States pass from block to block within a task. Where heads alone give
// every thread its share, a piece is a whole run. Otherwise the maps of pieces come first, and from
// them the states that enter each piece.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/by_dtype.h"
#include "kernels/linear_attention.h"

namespace longhaul::kernels::cpu {

inline constexpr int64_t kBlock = kLinearBlock;

// At most kBlock rows of one document.
struct LinearBlock {
  int64_t begin = 0;
  int64_t rows = 0;
  bool first_of_document = false;  // no state enters
  bool last_of_document = false;   // within the run: the state after it is of no use
};

struct LinearPiece {
  int64_t run = 0;
  int64_t begin = 0, end = 0;      // rows
  bool first = true, last = true;  // of its run
  size_t block_begin = 0, block_end = 0;
  // A document begins in it, in an earlier piece of its run, in a later one.
  bool resets = false, after_reset = false, before_reset = false;
};

enum class PieceUse {
  kFollow,  // states pass through pieces, so that more than one a run cost another pass
  kFree,    // pieces can be computed alone
};

struct LinearSchedule {
  LinearSchedule(std::span<const LinearRun> runs, std::span<const int64_t> document_begins,
                 int64_t heads, int64_t state_bytes, int threads, PieceUse use);

  bool chained() const { return pieces.size() > runs; }
  int64_t tasks() const { return static_cast<int64_t>(pieces.size()) * groups; }
  const LinearPiece& piece_of(int64_t task) const {
    return pieces[static_cast<size_t>(task / groups)];
  }
  Range heads_of(int64_t task) const { return part_of(heads, task % groups, groups); }
  std::span<const LinearBlock> blocks_of(const LinearPiece& piece) const {
    return std::span(blocks).subspan(piece.block_begin, piece.block_end - piece.block_begin);
  }

  size_t runs;
  int64_t heads;
  int64_t groups = 1;
  std::vector<LinearPiece> pieces;  // by run, in order
  std::vector<LinearBlock> blocks;
};

// The most heads of a group: their states stay in a core's cache.
int64_t heads_in_cache(int64_t state_bytes);

// Width of a row in scratch memory: a multiple of any vector, and for long rows an odd number of
// cache lines, so that a column of tiles does not fall into a few sets of the cache.
constexpr int64_t row_width(int64_t dim) {
  constexpr int64_t kUnit = 16, kDense = 4;
  const int64_t units = rounded_up(dim, kUnit) / kUnit;
  return (units <= kDense ? units : units | 1) * kUnit;
}

// Powers of one head's decay. Those too small for normal numbers are 0.
template <class A>
class Powers {
 public:
  explicit Powers(double slope) : slope_(slope) {
    for (int64_t x = 0; x < kBlock; ++x) at(-x) = rounded(power(x));
    for (int64_t x = 0; x < kBlock; ++x) rising_[static_cast<size_t>(x)] = rounded(power(x + 1));
  }

  // [j - i] = a^(i - j) for -kBlock < j - i <= 0. A vector that begins there may be loaded.
  const A* diagonal() const { return table_.data() + kBlock - 1; }
  // [r] = a^(r + 1): how far a state from before the block has decayed at its row r.
  const A* rising() const { return rising_.data(); }
  // [r] = a^(rows - 1 - r): how far row r has decayed after the last one.
  const A* falling(int64_t rows) const { return diagonal() - (rows - 1); }

  // a^rows = first + second to twice the precision: a rounded power would change the decay of a
  // long sequence by as much as its error times the number of blocks.
  struct Pair {
    A first, second;
  };
  Pair over(int64_t rows) const {
    const double exact = power(rows);
    const A first = rounded(exact);
    return {first, first == A(0) ? A(0) : static_cast<A>(exact - static_cast<double>(first))};
  }
  A over_far(int64_t rows) const { return rounded(power(rows)); }

 private:
  double power(int64_t x) const { return std::exp(-slope_ * static_cast<double>(x)); }
  static A rounded(double x) {
    return x < static_cast<double>(std::numeric_limits<A>::min()) ? A(0) : static_cast<A>(x);
  }
  A& at(int64_t x) { return table_[static_cast<size_t>(kBlock - 1 + x)]; }

  double slope_;
  std::array<A, 3 * kBlock> table_{};
  std::array<A, kBlock> rising_{};
};

template <class A>
std::vector<Powers<A>> powers_of(std::span<const double> slopes) {
  return std::vector<Powers<A>>(slopes.begin(), slopes.end());
}

template <class A>
struct LinearScratch {
  LinearScratch(A* memory, int64_t head_dim, int64_t value_dim)
      : key_width(row_width(head_dim)), value_width(row_width(value_dim)) {
    state_elements = std::max(head_dim * value_width, value_dim * key_width);
    Carver<A> carver(memory);
    q = carver.take(kBlock * key_width);
    k = carver.take(kBlock * key_width);
    v = carver.take(kBlock * value_width);
    dout = carver.take(kBlock * value_width);
    kt = carver.take(kBlock * head_dim);
    vt = carver.take(kBlock * value_dim);
    p = carver.take(kBlock * kBlock);
    dp = carver.take(kBlock * kBlock);
    turned = carver.take(state_elements);
    states = carver.take(state_elements * heads_in_cache(state_elements * int64_t{sizeof(A)}));
    elements = carver.taken();
  }
  static int64_t size(int64_t head_dim, int64_t value_dim) {
    return LinearScratch(nullptr, head_dim, value_dim).elements;
  }

  int64_t key_width, value_width, state_elements;
  A *q, *k, *v, *dout;  // rows of the block
  A *kt, *vt;           // [dim][kBlock]
  A *p, *dp;            // [kBlock][kBlock]
  A* turned;            // a state, transposed
  A* states;            // of the heads of a group
  int64_t elements;
};

// One task, for code of the instruction sets. States are [H, D, Dv], null where there is none.
template <class A>
struct LinearTask {
  const LinearPiece& piece;
  std::span<const LinearBlock> blocks;
  Range heads;
  const LinearScratch<A>& scratch;
  Poller& poller;
  std::span<const Powers<A>> powers = {};  // of all heads
  const A* entering = nullptr;             // from the left
  A* leaving = nullptr;                    // to the right
  const A* right_entering = nullptr;       // gradient, from the right
  A* right_leaving = nullptr;              // gradient, to the left
};

// The code of the instruction set in use.
template <class T>
struct ForwardTasks {
  void (*forward)(const LinearAttentionForward&, const LinearTask<Accumulator<T>>&);
  void (*add_out)(const LinearAttentionAddOut&, const LinearTask<Accumulator<T>>&);
};
template <class T>
struct BackwardTasks {
  void (*backward)(const LinearAttentionBackward&, const LinearTask<Accumulator<T>>&);
  void (*add_dq)(const LinearAttentionAddDq&, const LinearTask<Accumulator<T>>&);
  void (*add_dk_dv)(const LinearAttentionAddDkDv&, const LinearTask<Accumulator<T>>&);
};
// What a piece adds to the state that leaves it: to the right from k and v, to the left from q and
// dout.
template <class T>
struct SumTasks {
  void (*to_the_right)(ConstTensorView k, ConstTensorView v, const LinearTask<Accumulator<T>>&);
  void (*to_the_left)(ConstTensorView q, ConstTensorView dout, const LinearTask<Accumulator<T>>&);
};

ByDType<ForwardTasks> forward_tasks();
ByDType<BackwardTasks> backward_tasks();
ByDType<SumTasks> sum_tasks();

}  // namespace longhaul::kernels::cpu
