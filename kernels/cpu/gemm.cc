// Matrix products by register tiles (after Goto and van de Geijn, "Anatomy of High-Performance
// Matrix Multiplication", 2008).
//
// A task is a tile of c. It goes through k in chunks, in ascending order. Of each chunk it packs
// its columns of b into panels, which stay in the second cache, and multiplies them with its rows
// of a, six at a time, which stay in the first: in place where k runs along them, else packed, too.
#include "kernels/gemm.h"

#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/gemm_pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class F, class C>
class TileProduct {
  using Element = typename F::Element;
  using Word = typename F::Word;
  using Sum = typename F::Sum;

 public:
  explicit TileProduct(const GemmTask& task)
      : task_(task),
        p_(task.product),
        t_(task.tile),
        a_(task.args.a.data<Element>()),
        b_(task.args.b.data<Element>()),
        c_(task.args.c.data<C>() + t_.i * p_.ldc + t_.j),
        packed_a_{reinterpret_cast<Word*>(task.a[0]), reinterpret_cast<Word*>(task.a[1])},
        packed_b_(reinterpret_cast<Word*>(task.b)),
        sums_(reinterpret_cast<Sum*>(task.sums)),
        add_(task.args.beta != 0.0) {}

  void run() const {
    Block block = block_at(0, 0, packed_a_[0]);
    pack_a(block, block.depth);
    for (int64_t k0 = 0; k0 < p_.k; k0 += task_.depth) {
      const int64_t depth = std::min(task_.depth, p_.k - k0);
      const bool first = k0 == 0, last = k0 + depth == p_.k;
      pack_b(k0, depth);
      // Where c would round them, sums of chunks are kept apart.
      if constexpr (std::is_same_v<C, Sum>) {
        multiply_chunk<C>(block, {c_, p_.ldc, !first || add_, nullptr, 0});
      } else if (last) {
        multiply_chunk<C>(block, {c_, p_.ldc, add_, first ? nullptr : sums_, t_.columns});
      } else {
        multiply_chunk<Sum>(block, {sums_, t_.columns, !first, nullptr, 0});
      }
    }
  }

 private:
  static int64_t words(int64_t depth) { return words_of<F>(depth); }

  void pack_b(int64_t k0, int64_t depth) const {
    const Element* from = b_ + p_.b_at(k0, t_.j);
    if (!p_.transpose_b) {
      return pack_panels_along<F>(from, p_.ldb, depth, t_.columns, packed_b_);
    }
    for (int64_t j = 0; j < t_.columns; j += kGemmColumns<F>) {
      pack_panel_across<F>(from + j * p_.ldb, p_.ldb, depth,
                           std::min(kGemmColumns<F>, t_.columns - j), packed_b_ + j * words(depth));
    }
  }

  // Rows of op(a) in a chunk of k, which are packed together if they cannot be used in place.
  struct Block {
    int64_t i, k0;
    int64_t rows, depth;
    Word* packed;
    int64_t done;  // of depth: packed so far
  };
  Block block_at(int64_t i, int64_t k0, Word* packed) const {
    return {i, k0, std::min(kPackedRows, t_.rows - i), std::min(task_.depth, p_.k - k0), packed, 0};
  }
  // Nothing (no rows) after the last.
  Block block_after(const Block& block) const {
    Word* other = packed_a_[block.packed == packed_a_[0] ? 1 : 0];
    if (block.i + block.rows < t_.rows) return block_at(block.i + block.rows, block.k0, other);
    if (block.k0 + block.depth < p_.k) return block_at(0, block.k0 + block.depth, other);
    return {0, 0, 0, 0, other, 0};
  }

  // Packs k up to `end`, a multiple of whole words or all of the block.
  void pack_a(Block& block, int64_t end) const {
    const int64_t i = t_.i + block.i;
    const Element* from = a_ + p_.a_at(i, block.k0);
    if (p_.transpose_a) {
      pack_rows_along<F>(from, p_.lda, block.depth, block.done, end, block.rows, p_.m - i,
                         block.packed);
    } else if (end == block.depth && !in_place(block)) {
      complete_rows<F>(from, p_.lda, block.depth, block.rows, block.packed);
    }
    block.done = end;
  }

  bool in_place(const Block& block) const {
    return !p_.transpose_a && block.depth % F::kPerWord == 0;
  }

  // The first six rows of a block, and how far it is to the next.
  struct BlockRows {
    WordRows first;
    int64_t tile;  // bytes
  };
  BlockRows rows_of(const Block& block) const {
    constexpr int64_t kWordBytes = sizeof(Word);
    const auto* packed = reinterpret_cast<const std::byte*>(block.packed);
    if (p_.transpose_a) {
      return {{packed, kWordBytes, kPackedStep * kWordBytes},
              words(block.depth) * kPackedStep * kWordBytes};
    }
    if (in_place(block)) {
      const int64_t row = p_.lda * static_cast<int64_t>(sizeof(Element));
      const Element* from = a_ + p_.a_at(t_.i + block.i, block.k0);
      return {{reinterpret_cast<const std::byte*>(from), row, kWordBytes}, kGemmRows * row};
    }
    const int64_t row = words(block.depth) * kWordBytes;
    return {{packed, row, kWordBytes}, kGemmRows * row};
  }

  static int64_t tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile; }

  // While six rows are multiplied with all panels, the next six are fetched, a part per panel.
  NextRows next_rows(const std::byte* tile, const BlockRows& a, int64_t left, int64_t depth) const {
    const int64_t panels = tiles(t_.columns, kGemmColumns<F>);
    const std::byte* next = tile + a.tile;
    if (left <= kGemmRows) return {};
    if (a.first.row < a.first.step) {  // packed: they follow each other
      const int64_t part = tiles(a.tile, panels);
      return {next, panels, part, part, 1};
    }
    return {next, std::min<int64_t>(kGemmRows, left - kGemmRows), words(depth) * a.first.step,
            a.first.row, tiles(kGemmRows, panels)};
  }

  // What is done with each register tile, so that the memory it waits for is not waited for later.
  struct Meanwhile {
    NextRows rows;   // of this block
    Block& next;     // is packed
    int64_t length;  // of k, at once
  };

  // Multiplies all blocks of one chunk, the first of which is packed; so is, then, the next
  // chunk's.
  template <class Out>
  void multiply_chunk(Block& block, const Output<Out, Sum>& out) const {
    const int64_t panels = tiles(t_.columns, kGemmColumns<F>);
    bool more = true;
    while (more) {
      const BlockRows a = rows_of(block);
      Block next = block_after(block);
      const int64_t here = tiles(block.rows, kGemmRows) * panels;
      Meanwhile meanwhile{{}, next, tiles(words(next.depth), here) * F::kPerWord};
      for (int64_t r = 0; r < block.rows; r += kGemmRows) {
        WordRows tile_a = a.first;
        tile_a.data += r / kGemmRows * a.tile;
        Output<Out, Sum> to = out;
        to.c += (block.i + r) * out.ldc;
        if (out.partial != nullptr) to.partial += (block.i + r) * out.ld_partial;
        meanwhile.rows = next_rows(tile_a.data, a, block.rows - r, block.depth);
        multiply_row(std::min<int64_t>(kGemmRows, block.rows - r), tile_a, meanwhile,
                     words(block.depth), to);
      }
      task_.poller.did(block.rows * t_.columns * block.depth);
      if (next.rows > 0) pack_a(next, next.depth);
      more = next.rows > 0 && next.k0 == block.k0;
      block = next;
    }
  }

  template <class Out>
  void multiply_row(int64_t rows, const WordRows& a, Meanwhile& meanwhile, int64_t depth,
                    const Output<Out, Sum>& out) const {
    switch (rows) {
      case 6:
        return multiply_tiles<6>(a, meanwhile, depth, out);
      case 5:
        return multiply_tiles<5>(a, meanwhile, depth, out);
      case 4:
        return multiply_tiles<4>(a, meanwhile, depth, out);
      case 3:
        return multiply_tiles<3>(a, meanwhile, depth, out);
      case 2:
        return multiply_tiles<2>(a, meanwhile, depth, out);
      default:
        return multiply_tiles<1>(a, meanwhile, depth, out);
    }
  }

  template <int kRows, class Out>
  void multiply_tiles(const WordRows& a, Meanwhile& meanwhile, int64_t depth,
                      Output<Out, Sum> out) const {
    const Word* panel = packed_b_;
    for (int64_t j = 0; j < t_.columns; j += kGemmColumns<F>) {
      meanwhile.rows.fetch();
      if (p_.transpose_a && meanwhile.next.rows > 0) {
        Block& next = meanwhile.next;
        pack_a(next, std::min(next.depth, next.done + meanwhile.length));
      }
      tile<F, kRows>(a, panel, depth, std::min(kGemmColumns<F>, t_.columns - j), out);
      panel += depth * kGemmColumns<F>;
      out.c += kGemmColumns<F>;
      if (out.partial != nullptr) out.partial += kGemmColumns<F>;
    }
  }

  const GemmTask& task_;
  const Product& p_;
  const Tiling::Tile& t_;
  const Element *a_, *b_;
  C* c_;
  Word* packed_a_[2];
  Word* packed_b_;
  Sum* sums_;
  bool add_;
};

void GemmF32(const GemmTask& task) { TileProduct<Elements<float>, float>(task).run(); }
void GemmF64(const GemmTask& task) { TileProduct<Elements<double>, double>(task).run(); }

template <class F>
void gemm_bf16(const GemmTask& task) {
  if (task.args.c.dtype() == DType::kF32) return TileProduct<F, float>(task).run();
  TileProduct<F, bf16>(task).run();
}
void GemmBF16(const GemmTask& task) { gemm_bf16<PairsInHardware>(task); }
void GemmBF16AsF32(const GemmTask& task) { gemm_bf16<PairsAsF32>(task); }

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(GemmF32);
HWY_EXPORT(GemmF64);
HWY_EXPORT(GemmBF16);
HWY_EXPORT(GemmBF16AsF32);

namespace {

void clear(const Gemm& args) {
  const int64_t bytes = args.c.dim(1) * size_of(args.c.dtype());
  for (int64_t i = 0; i < args.c.dim(0); ++i) {
    std::byte* row = args.c.raw() + i * args.c.stride(0) * size_of(args.c.dtype());
    std::fill_n(row, bytes, std::byte{0});
  }
}

// Scratch of one worker, in bytes.
struct Workspace {
  Workspace(const Gemm& args, const Product& p, const Tiling& tiling, int64_t depth) {
    const int64_t per_word = args.a.dtype() == DType::kBF16 ? 2 : 1;
    const int64_t words = depth / per_word, word = size_of(args.a.dtype()) * per_word;
    const int64_t tiles = (std::min(kPackedRows, tiling.rows()) + kGemmRows - 1) / kGemmRows;
    const bool in_place = !p.transpose_a && p.k % per_word == 0;
    a = in_place ? 0 : tiles * kPackedStep * words * word;
    b = rounded_up(tiling.columns(), kWidestPanel) * words * word;
    const bool apart = args.c.dtype() != accumulator(args.a.dtype()) && depth < p.k;
    sums = apart ? rounded_up(
                       tiling.rows() * tiling.columns() * size_of(accumulator(args.a.dtype())), 64)
                 : 0;
  }
  int64_t bytes() const { return 2 * a + b + sums; }

  int64_t a, b, sums;
};

template <class Kernel>
void run(const Context& ctx, const Gemm& args, Kernel&& kernel) {
  const Product p(args);
  if (args.c.empty()) return;
  if (p.k == 0) {
    if (!ctx.measuring() && args.beta == 0.0) clear(args);
    return;
  }
  const Tiling tiling(p, ctx.pool->threads());
  const int64_t depth = chunk_depth(p, args.a.dtype() == DType::kBF16 ? 2 : 1);
  const Workspace space(args, p, tiling, depth);
  const Arena::Scope scope(*ctx.scratch);
  const TensorView scratch = ctx.scratch->allocate(
      DType::kI32, {ctx.pool->threads(), space.bytes() / size_of(DType::kI32)});
  if (ctx.measuring()) return;
  ctx.pool->run(
      tiling.tiles(),
      [&](int64_t task, int worker) {
        std::byte* memory = scratch.raw() + worker * space.bytes();
        Poller poller(ctx, worker);
        std::byte* b = memory + 2 * space.a;
        kernel(GemmTask{
            args, p, tiling.tile(task), depth, {memory, memory + space.a}, b, b + space.b, poller});
      },
      ctx.poll);
}

void run_f32(const Context& ctx, const Gemm& args) {
  run(ctx, args, [](const GemmTask& task) { HWY_DYNAMIC_DISPATCH(GemmF32)(task); });
}
void run_f64(const Context& ctx, const Gemm& args) {
  run(ctx, args, [](const GemmTask& task) { HWY_DYNAMIC_DISPATCH(GemmF64)(task); });
}
void run_bf16(const Context& ctx, const Gemm& args) {
  run(ctx, args, [](const GemmTask& task) { HWY_DYNAMIC_DISPATCH(GemmBF16)(task); });
}
void run_bf16_as_f32(const Context& ctx, const Gemm& args) {
  run(ctx, args, [](const GemmTask& task) { HWY_DYNAMIC_DISPATCH(GemmBF16AsF32)(task); });
}

constexpr GemmKernel kTable[] = {{"tiled", DType::kBF16, has_bf16_products, run_bf16},
                                 {"tiled-as-f32", DType::kBF16, always_available, run_bf16_as_f32},
                                 {"tiled", DType::kF32, always_available, run_f32},
                                 {"tiled", DType::kF64, always_available, run_f64}};

}  // namespace

std::span<const GemmKernel> gemm_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
