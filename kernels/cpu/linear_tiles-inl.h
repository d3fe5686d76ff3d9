// What the passes of linear attention are made of, on operands in scratch memory. Compiled once per
// instruction set (include after hwy/foreach_target.h).
//
// Rows in scratch are row_width() apart; lanes beyond a row's elements hold anything finite or not,
// as they never meet other lanes.
#if defined(LONGHAUL_KERNELS_CPU_LINEAR_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_LINEAR_TILES_INL_H_
#undef LONGHAUL_KERNELS_CPU_LINEAR_TILES_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_LINEAR_TILES_INL_H_
#endif

#include "kernels/cpu/linear_attention_schedule.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {

// body(vectors, column) with vectors an integral constant, for columns [0, n), n a multiple of the
// vector length: tiles of kTileVectors, then one narrower tile.
template <class D, class F>
HWY_INLINE void for_widths(D d, int64_t n, F&& body) {
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  int64_t c = 0;
  for (; c + tile_columns(d) <= n; c += tile_columns(d)) {
    body(std::integral_constant<int, kTileVectors>(), c);
  }
  const int64_t rest = (n - c) / lanes;
  if constexpr (kTileVectors > 3) {
    if (rest == 3) return body(std::integral_constant<int, 3>(), c);
  }
  if (rest == 2) return body(std::integral_constant<int, 2>(), c);
  if (rest == 1) return body(std::integral_constant<int, 1>(), c);
}

// Both fetch to the second level: blocks of strided rows would fall into a few sets of the first.
HWY_INLINE void ask_to_read(const char* line) { __builtin_prefetch(line, 0, 2); }
#if HWY_ARCH_X86
// The built-in would fetch a copy to read, from which a write has to wait once more.
HWY_INLINE void ask_to_write(const char* line) { asm volatile("prefetchw %0" : : "m"(*line)); }
#else
HWY_INLINE void ask_to_write(const char* line) { __builtin_prefetch(line, 1, 2); }
#endif

// Rows of up to kMost tensors that will be needed soon: heads lie apart in memory, where the
// hardware does not foresee them. They are asked for between tiles, evenly over a block's time, as
// a core can only wait for some twenty lines at once, and its other loads wait behind them.
class Ahead {
 public:
  static constexpr int kMost = 7;

  // Some of the tensors, in order of add(), for one product to ask for.
  struct Part {
    const Ahead* ahead = nullptr;
    int first = 0, last = 0;

    // Rows [row, row + count).
    void fetch(int64_t row, int64_t count) const {
      constexpr int64_t kLine = 64;
      for (int s = first; s < last; ++s) {
        const Stream& stream = ahead->streams_[static_cast<size_t>(s)];
        const int64_t end = std::min(ahead->rows_, row + count);
        for (int64_t r = row; r < end; ++r) {
          const char* line = stream.from + r * stream.stride;
          for (int64_t b = 0; b < stream.bytes; b += kLine) {
            stream.written ? ask_to_write(line + b) : ask_to_read(line + b);
          }
        }
      }
    }
  };

  // Rows of a tensor that will be read, or written, too.
  template <class T>
  void add(const T* from, int64_t stride, int64_t columns, bool written = false) {
    constexpr auto kSize = static_cast<int64_t>(sizeof(T));
    streams_[static_cast<size_t>(count_++)] = {reinterpret_cast<const char*>(from), stride * kSize,
                                               columns * kSize, written};
  }
  void set_rows(int64_t rows) { rows_ = rows; }
  Part part(int first, int last) const {
    return {this, std::min(first, count_), std::min(last, count_)};
  }

 private:
  struct Stream {
    const char* from = nullptr;
    int64_t stride = 0, bytes = 0;
    bool written = false;
  };
  std::array<Stream, kMost> streams_;
  int count_ = 0;
  int64_t rows_ = 0;
};

// to[r, :] = factors[r] from[r, :], widened. Without factors: 1.
template <class T>
void load_rows(const T* from, int64_t stride, int64_t rows, int64_t columns,
               const Accumulator<T>* factors, int64_t width, Accumulator<T>* to) {
  const VectorOf<Accumulator<T>> d;
  for (int64_t r = 0; r < rows; ++r) {
    const T* source = from + r * stride;
    Accumulator<T>* target = to + r * width;
    const auto factor = hn::Set(d, factors == nullptr ? Accumulator<T>(1) : factors[r]);
    for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
      hn::StoreU(hn::Mul(factor, load(d, source + c, part)), d, target + c);
    });
  }
}

template <class A>
void scale_rows(A* x, int64_t rows, int64_t columns, int64_t width, const A* factors) {
  load_rows(x, width, rows, columns, factors, width, x);
}

#if HWY_TARGET == HWY_SCALAR

template <class T>
void load_transposed(const T* from, int64_t stride, int64_t rows, int64_t columns, int64_t width,
                     Accumulator<T>* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      to[c * width + r] = static_cast<Accumulator<T>>(from[r * stride + c]);
    }
  }
}

#else  // there are blocks to turn

// The transpose of the 128-bit blocks' elements: rows x[0], x[1], ... of 4 (f32) or 2 (f64).
template <class D, class V>
HWY_INLINE void turn_elements(D d, V* x) {
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    const auto a = hn::InterleaveLower(d, x[0], x[2]), b = hn::InterleaveLower(d, x[1], x[3]);
    const auto e = hn::InterleaveUpper(d, x[0], x[2]), f = hn::InterleaveUpper(d, x[1], x[3]);
    x[0] = hn::InterleaveLower(d, a, b);
    x[1] = hn::InterleaveUpper(d, a, b);
    x[2] = hn::InterleaveLower(d, e, f);
    x[3] = hn::InterleaveUpper(d, e, f);
  } else {
    const auto a = hn::InterleaveLower(d, x[0], x[1]);
    x[1] = hn::InterleaveUpper(d, x[0], x[1]);
    x[0] = a;
  }
}

// The transpose of whole blocks: x[0], x[kStep], ... hold as many blocks as there are vectors.
template <int kBlocks, int kStep, class D, class V>
HWY_INLINE void turn_blocks(D d, V* x) {
  if constexpr (kBlocks == 2) {
    const auto a = hn::ConcatLowerLower(d, x[kStep], x[0]);
    x[kStep] = hn::ConcatUpperUpper(d, x[kStep], x[0]);
    x[0] = a;
  } else if constexpr (kBlocks == 4) {
    const auto a = hn::ConcatLowerLower(d, x[2 * kStep], x[0]);
    const auto b = hn::ConcatLowerLower(d, x[3 * kStep], x[kStep]);
    const auto e = hn::ConcatUpperUpper(d, x[2 * kStep], x[0]);
    const auto f = hn::ConcatUpperUpper(d, x[3 * kStep], x[kStep]);
    x[0] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(b), a);
    x[kStep] = hn::OddEvenBlocks(b, hn::SwapAdjacentBlocks(a));
    x[2 * kStep] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(f), e);
    x[3 * kStep] = hn::OddEvenBlocks(f, hn::SwapAdjacentBlocks(e));
  }
}

// to[c, r] = from[r, c], widened; the last vector of each row of `to` is filled up with zeros.
template <class T>
void load_transposed(const T* from, int64_t stride, int64_t rows, int64_t columns, int64_t width,
                     Accumulator<T>* to) {
  const VectorOf<Accumulator<T>> d;
  constexpr int kLanes = hn::MaxLanes(d);
  constexpr int kInBlock = 16 / static_cast<int>(sizeof(Accumulator<T>));
  constexpr int kBlocks = kLanes / kInBlock;
  for (int64_t r = 0; r < rows; r += kLanes) {
    for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
      hn::Vec<decltype(d)> x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        x[i] = r + i < rows ? load(d, from + (r + i) * stride + c, part) : hn::Zero(d);
      }
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) turn_elements(d, x + b * kInBlock);
#pragma GCC unroll 4
      for (int i = 0; i < kInBlock; ++i) turn_blocks<kBlocks, kInBlock>(d, x + i);
      // Now x[b * kInBlock + i] is column b * kInBlock + i.
      const int64_t last = std::min<int64_t>(kLanes, columns - c);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (i < last) hn::StoreU(x[i], d, to + (c + i) * width + r);
      }
    });
  }
}

#endif  // HWY_TARGET == HWY_SCALAR

// p(i, j) = a^(i - j) left(i, :) . right(j, :) for j <= i, and 0 for later j up to the end of the
// row tile, in rows of kBlock. right is given transposed. Without a diagonal: a = 1.
template <class A>
void decayed_products(int64_t rows, const A* left, int64_t width, int64_t depth, const A* right,
                      const A* diagonal, A* p, Ahead::Part ahead) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  for_row_tiles(rows, [&](auto n, int64_t i) HWY_ATTR {
    ahead.fetch(i, n);
    for_widths(d, rounded_up(i + n, lanes), [&](auto vectors, int64_t j) HWY_ATTR {
      Tile<n, VectorOf<A>, vectors> tile;
      clear(d, tile);
      multiply(d, left + i * width, width, 1, right + j, kBlock, depth, tile);
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        const int64_t row = i + r, column = j + v * lanes;
        const auto seen =
            hn::Le(hn::Iota(d, static_cast<A>(column)), hn::Set(d, static_cast<A>(row)));
        if (diagonal != nullptr) c = hn::Mul(c, hn::LoadU(d, diagonal + column - row));
        hn::StoreU(hn::IfThenElseZero(seen, c), d, p + row * kBlock + column);
      });
    });
  });
}

// out(r, :) = or += factors[r] x(r, :) state + sum over t of p(r, t) y(t, :), t <= r, or, with the
// transpose of p, t >= r. Either sum may be absent.
template <class A>
struct RowSums {
  int64_t rows = 0, columns = 0;
  const A* x = nullptr;
  int64_t x_width = 0, depth = 0;
  const A* state = nullptr;    // [depth][width]; or null
  const A* factors = nullptr;  // or null: 1
  const A* p = nullptr;        // or null
  bool transposed = false;
  const A* y = nullptr;
  int64_t width = 0;  // of state and y
  bool add = false;
  A* out = nullptr;
  int64_t out_stride = 0;
  Ahead::Part ahead = {}, ahead_between = {};  // asked for before each tile, and halfway
};

template <class A>
void make_rows(const RowSums<A>& s) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  for_widths(d, rounded_up(s.columns, lanes), [&](auto vectors, int64_t column) HWY_ATTR {
    for_row_tiles(s.rows, [&](auto n, int64_t i) HWY_ATTR {
      if (column == 0) s.ahead.fetch(i, n);
      Tile<n, VectorOf<A>, vectors> tile;
      clear(d, tile);
      if (s.state != nullptr) {
        multiply(d, s.x + i * s.x_width, s.x_width, 1, s.state + column, s.width, s.depth, tile);
        if (s.factors != nullptr) {
          for_tile(tile, [&](int r, int, auto& c)
                             HWY_ATTR { c = hn::Mul(c, hn::Set(d, s.factors[i + r])); });
        }
      }
      if (column == 0) s.ahead_between.fetch(i, n);
      if (s.p != nullptr && s.transposed) {
        multiply(d, s.p + i * kBlock + i, 1, kBlock, s.y + i * s.width + column, s.width,
                 s.rows - i, tile);
      } else if (s.p != nullptr) {
        multiply(d, s.p + i * kBlock, kBlock, 1, s.y + column, s.width, i + n, tile);
      }
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        const int64_t at = column + v * lanes;
        A* out = s.out + (i + r) * s.out_stride + at;
        if (at + lanes <= s.columns) {
          hn::StoreU(s.add ? hn::Add(hn::LoadU(d, out), c) : c, d, out);
        } else {
          const Some part{s.columns - at};
          store(d, s.add ? hn::Add(load(d, out, part), c) : c, out, part);
        }
      });
    });
  });
}

// state(l, :) = decay state(l, :) + sum over rows t of left(t, l) right(t, :), for l < depth.
template <class A>
struct StateUpdate {
  int64_t rows = 0;
  const A* left = nullptr;
  int64_t left_width = 0, depth = 0;
  const A* right = nullptr;
  int64_t width = 0, columns = 0;  // width: of right and state
  typename Powers<A>::Pair decay = {};
  bool empty = false;  // the state is all zeros, whatever it holds
  A* state = nullptr;
  Ahead::Part ahead = {};
};

template <class A>
void update_state(const StateUpdate<A>& s) {
  constexpr VectorOf<A> d;
  constexpr auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  const auto first = hn::Set(d, s.decay.first), second = hn::Set(d, s.decay.second);
  for_widths(d, rounded_up(s.columns, lanes), [&](auto vectors, int64_t column) HWY_ATTR {
    for_row_tiles(s.depth, [&](auto n, int64_t l) HWY_ATTR {
      if (column == 0) s.ahead.fetch(l, n);
      A* state = s.state + l * s.width + column;
      Tile<n, VectorOf<A>, vectors> tile;
      clear(d, tile);
      multiply(d, s.left + l, 1, s.left_width, s.right + column, s.width, s.rows, tile);
      for_tile(tile, [&](int r, int v, auto& c) HWY_ATTR {
        A* at = state + r * s.width + v * lanes;
        // The old state comes last: decayed and rounded alone it would err the same way in every
        // block, as its values hardly change.
        if (!s.empty) {
          const auto old = hn::LoadU(d, at);
          c = hn::MulAdd(old, first, hn::MulAdd(old, second, c));
        }
        hn::StoreU(c, d, at);
      });
    });
  });
}

// A state between its dense form and rows in scratch.
template <class A>
void read_state(const A* from, int64_t rows, int64_t columns, int64_t width, A* to) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * columns, columns, to + r * width);
}
template <class A>
void write_state(const A* from, int64_t rows, int64_t columns, int64_t width, bool empty, A* to) {
  if (empty) return void(std::fill_n(to, rows * columns, A(0)));
  for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * width, columns, to + r * columns);
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
