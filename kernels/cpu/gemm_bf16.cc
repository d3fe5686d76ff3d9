// Products of bf16 matrices.
//
// The oneDNN row makes a few primitives a call (inner and edge tiles, first and later chunks of k),
// which oneDNN's own cache makes cheap, and lets all threads run them: with scratch memory handed
// in by us, a primitive is free of state.
#include <array>
#include <map>
#include <tuple>
#include <unordered_map>

#include "dnnl.hpp"
#include "kernels/cpu/gemm_tiles.h"

namespace longhaul::kernels::cpu {

namespace {

using dnnl::memory;

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Primitive {
  dnnl::matmul::primitive_desc description;
  dnnl::matmul run;
};

memory::desc matrix(int64_t rows, int64_t columns, memory::data_type type, int64_t stride,
                    bool transposed) {
  // A vector of one row or column may have any stride; oneDNN wants one that cannot overlap.
  const int64_t ld = std::max(stride, transposed ? rows : columns);
  return memory::desc({rows, columns}, type,
                      transposed ? memory::dims{1, ld} : memory::dims{ld, 1});
}

class Primitives {
 public:
  Primitives(const Product& p, DType c_type)
      : p_(p), c_type_(c_type == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32) {}

  void make(int64_t rows, int64_t columns, int64_t depth, bool add) {
    const Key key{rows, columns, depth, add};
    if (made_.contains(key)) return;
    constexpr auto kBf16 = memory::data_type::bf16;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (add) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::desc operation(matrix(rows, depth, kBf16, p_.lda, p_.transpose_a),
                                       matrix(depth, columns, kBf16, p_.ldb, p_.transpose_b),
                                       matrix(rows, columns, c_type_, p_.ldc, false));
    const dnnl::matmul::primitive_desc description(operation, attributes, cpu_engine());
    scratch_bytes_ =
        std::max(scratch_bytes_, static_cast<int64_t>(description.scratchpad_desc().get_size()));
    made_.emplace(key, Primitive{description, dnnl::matmul(description)});
  }

  const Primitive& at(int64_t rows, int64_t columns, int64_t depth, bool add) const {
    return made_.at(Key{rows, columns, depth, add});
  }

  int64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, bool>;

  Product p_;
  memory::data_type c_type_;
  std::map<Key, Primitive> made_;
  int64_t scratch_bytes_ = 0;
};

void execute(const Primitive& primitive, const void* a, const void* b, void* c, void* scratch) {
  const auto& d = primitive.description;
  dnnl::stream stream(cpu_engine());
  // oneDNN's arguments are not const, though it only reads a and b.
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, memory(d.src_desc(), cpu_engine(), const_cast<void*>(a))},
      {DNNL_ARG_WEIGHTS, memory(d.weights_desc(), cpu_engine(), const_cast<void*>(b))},
      {DNNL_ARG_DST, memory(d.dst_desc(), cpu_engine(), c)},
      {DNNL_ARG_SCRATCHPAD, memory(d.scratchpad_desc(), cpu_engine(), scratch)}};
  primitive.run.execute(stream, arguments);
  stream.wait();
}

// A sum over chunks of k goes through c only where c does not round it.
int64_t chunk_of(const Gemm& args, int64_t k) {
  return args.c.dtype() == DType::kF32 ? std::min(k, Tiling::kChunk) : k;
}

}  // namespace

bool has_onednn_bf16() { return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core; }

void gemm_bf16_onednn(const Context& ctx, const Gemm& args) {
  const Product p(args);
  if (args.c.empty()) return;
  if (p.k == 0) {
    if (!ctx.measuring()) scale_only(args);
    return;
  }
  const OneOpenMpThread caller_guard;
  const Tiling tiling(p, ctx.pool->threads());
  const int64_t chunk = chunk_of(args, p.k), last_chunk = (p.k - 1) % chunk + 1;
  Primitives primitives(p, args.c.dtype());
  // All that will run, so that tasks only look up, and the scratch is known.
  const Tiling::Tile first = tiling.tile(0), last = tiling.tile(tiling.tiles() - 1);
  for (int64_t rows : {first.rows, last.rows}) {
    for (int64_t columns : {first.columns, last.columns}) {
      primitives.make(rows, columns, chunk, args.beta != 0.0);
      if (chunk < p.k) primitives.make(rows, columns, chunk, true);
      if (last_chunk < chunk) primitives.make(rows, columns, last_chunk, true);
    }
  }
  const int64_t scratch_floats = (primitives.scratch_bytes() + 63) / 64 * 16;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView scratch =
      ctx.scratch->allocate(DType::kF32, {ctx.pool->threads(), scratch_floats});
  if (ctx.measuring()) return;
  for (int64_t k0 = 0; k0 < p.k; k0 += chunk) {
    const int64_t depth = std::min(chunk, p.k - k0);
    const bool add = k0 > 0 || args.beta != 0.0;
    ctx.pool->run(
        tiling.tiles(),
        [&](int64_t task, int worker) {
          const OneOpenMpThread guard;
          const Tiling::Tile t = tiling.tile(task);
          execute(primitives.at(t.rows, t.columns, depth, add),
                  args.a.data<bf16>() + p.a_at(t.i, k0), args.b.data<bf16>() + p.b_at(k0, t.j),
                  args.c.raw() + (t.i * p.ldc + t.j) * size_of(args.c.dtype()),
                  scratch.data<float>() + worker * scratch_floats);
        },
        ctx.poll);
  }
}

void gemm_bf16_convert(const Context& ctx, const Gemm& args) {
  const Product p(args);
  constexpr int64_t kTile = Tiling::kTile, kDepth = Tiling::kChunk;
  const int64_t depth_max = std::min(p.k, kDepth);
  // Per worker: a chunk of a, a chunk of b, and the tile of c before it is rounded.
  const int64_t a_floats = kTile * depth_max, b_floats = kTile * depth_max;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView scratch = ctx.scratch->allocate(
      DType::kF32, {ctx.pool->threads(), a_floats + b_floats + kTile * kTile});
  if (ctx.measuring() || args.c.empty()) return;
  if (p.k == 0) return scale_only(args);
  const Tiling tiling(p, ctx.pool->threads());
  const bf16 *a = args.a.data<bf16>(), *b = args.b.data<bf16>();
  ctx.pool->run(
      tiling.tiles(),
      [&](int64_t task, int worker) {
        const OneOpenMpThread guard;
        const Tiling::Tile t = tiling.tile(task);
        float* wide_a = scratch.data<float>() + worker * scratch.dim(1);
        float *wide_b = wide_a + a_floats, *sum = wide_b + b_floats;
        for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
          const int64_t depth = std::min(kDepth, p.k - k0);
          for (int64_t i = 0; i < t.rows; ++i) {
            for (int64_t q = 0; q < depth; ++q) wide_a[i * depth + q] = a[p.a_at(t.i + i, k0 + q)];
          }
          for (int64_t q = 0; q < depth; ++q) {
            for (int64_t j = 0; j < t.columns; ++j) {
              wide_b[q * t.columns + j] = b[p.b_at(k0 + q, t.j + j)];
            }
          }
          const auto status = dnnl::sgemm('N', 'N', t.rows, t.columns, depth, 1.0f, wide_a, depth,
                                          wide_b, t.columns, k0 == 0 ? 0.0f : 1.0f, sum, t.columns);
          LONGHAUL_CHECK(status == dnnl::status::success, "dnnl_sgemm");
        }
        visit_float(args.c.dtype(), [&]<class C>() {
          C* c = args.c.data<C>() + t.i * p.ldc + t.j;
          for (int64_t i = 0; i < t.rows; ++i) {
            for (int64_t j = 0; j < t.columns; ++j) {
              const float old = args.beta == 0.0 ? 0.0f : static_cast<float>(c[i * p.ldc + j]);
              c[i * p.ldc + j] = static_cast<C>(old + sum[i * t.columns + j]);
            }
          }
        });
      },
      ctx.poll);
}

}  // namespace longhaul::kernels::cpu
