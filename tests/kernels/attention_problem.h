// One attention call with random operands, for the tests of every row of the table.
#pragma once

#include "tests/kernels/attention_reference.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {

// Bound for the error norm relative to the truth. The operands are rounded before the truth is
// computed and all sums are kept in the accumulator type, so bf16 errs like f32. A score is a sum
// of D products and carries an error of about |score| eps sqrt(D), which exp turns into a relative
// one; |score| stays below 8 here and D below 128: 8 * 11 eps = 88 eps, and sums over up to 300
// keys and exp2's 3 eps add far less. 100 eps leaves no room for a missing key, which costs 1/300.
inline double attention_tolerance(DType dtype) { return 100 * epsilon(accumulator(dtype)); }

// Of results that sum up products of rounded probabilities or their gradients.
inline double attention_tolerance(const AttentionKernel& row) {
  return row.products == accumulator(row.dtype) ? attention_tolerance(row.dtype)
                                                : 0.5 * epsilon(row.products);
}

struct Problem {
  Problem(DType dtype_, const AttentionShape& shape_, const Corpus& corpus_, const Rows& queries_,
          const Rows& keys_, int64_t gap = Gapped::kAlignedGap)
      : dtype(dtype_),
        shape(shape_),
        corpus(corpus_),
        queries(queries_),
        keys(keys_),
        segments(segments_of(corpus_, queries_, keys_)),
        options{.scale = 1 / std::sqrt(static_cast<double>(shape_.head_dim))},
        q(dtype, {queries.count, shape.q_heads, shape.head_dim}, gap),
        k(dtype, {keys.count, shape.kv_heads, shape.head_dim}, gap),
        v(dtype, {keys.count, shape.kv_heads, shape.value_dim}, gap),
        dout(dtype, {queries.count, shape.q_heads, shape.value_dim}, gap) {
    fill_random(q, 1);
    fill_random(k, 2);
    fill_random(v, 3);
    fill_random(dout, 4);
  }

  AttentionTruth truth() const {
    AttentionOptions on_the_host = options;
    Tensor slopes;
    if (options.biased()) {
      slopes = on_host(test_stream(), options.bias_slopes);
      on_the_host.bias_slopes = slopes;
    }
    return attention_truth(corpus, queries, keys, shape, on_the_host, values(q), values(k),
                           values(v), values(dout));
  }

  DType dtype;
  AttentionShape shape;
  Corpus corpus;
  Rows queries, keys;
  std::vector<Segment> segments;
  AttentionOptions options;
  Gapped q, k, v, dout;
};

struct Forward {
  explicit Forward(const Problem& p)
      : out(poisoned(accumulator(p.dtype), {p.queries.count, p.shape.q_heads, p.shape.value_dim})),
        lse(poisoned(accumulator(p.dtype), {p.shape.q_heads, p.queries.count})) {}
  DeviceTensor out, lse;
};

inline void fold(const Context& ctx, const AttentionKernel& row, const Problem& p,
                 std::span<const Segment> segments, const Forward& f) {
  row.forward(ctx, {.segments = segments,
                    .heads = p.shape.heads,
                    .q = p.q,
                    .k = p.k,
                    .v = p.v,
                    .options = p.options,
                    .out_acc = f.out,
                    .lse = f.lse});
}

inline Forward forward(Rig& rig, const AttentionKernel& row, const Problem& p) {
  Forward f(p);
  rig.run([&](const Context& ctx) {
    row.init(ctx, f.out, f.lse);
    fold(ctx, row, p, p.segments, f);
  });
  return f;
}

struct Backward {
  explicit Backward(const Problem& p)
      : delta(poisoned(accumulator(p.dtype), {p.shape.q_heads, p.queries.count})),
        dq(accumulator(p.dtype), p.q.view().shape()),
        dk(accumulator(p.dtype), p.k.view().shape()),
        dv(accumulator(p.dtype), p.v.view().shape()) {}
  DeviceTensor delta, dq, dk, dv;
};

inline void add_gradients(const Context& ctx, const AttentionKernel& row, const Problem& p,
                          std::span<const Segment> segments, const Forward& f, const Backward& b) {
  row.backward(ctx, {.segments = segments,
                     .heads = p.shape.heads,
                     .q = p.q,
                     .k = p.k,
                     .v = p.v,
                     .options = p.options,
                     .dout = p.dout,
                     .lse = f.lse,
                     .delta = b.delta,
                     .dq_acc = b.dq,
                     .dk_acc = b.dk,
                     .dv_acc = b.dv});
}

inline Backward backward(Rig& rig, const AttentionKernel& row, const Problem& p, const Forward& f) {
  Backward b(p);
  rig.run([&](const Context& ctx) {
    row.delta(ctx, f.out, p.dout, b.delta);
    add_gradients(ctx, row, p, p.segments, f, b);
  });
  return b;
}

inline void expect_forward(const AttentionKernel& row, const AttentionTruth& truth,
                           const Forward& f) {
  expect_near(f.out, truth.out, attention_tolerance(row), "out");
  expect_near(f.lse, truth.lse, attention_tolerance(row.dtype), "lse");
}

inline void expect_backward(const AttentionKernel& row, const AttentionTruth& truth,
                            const Backward& b) {
  const double tolerance = attention_tolerance(row);
  expect_near(b.delta, truth.delta, tolerance, "delta", truth.delta_terms);
  expect_near(b.dq, truth.dq, tolerance, "dq", truth.dq_terms);
  expect_near(b.dk, truth.dk, tolerance, "dk", truth.dk_terms);
  expect_near(b.dv, truth.dv, tolerance, "dv");
}

}  // namespace longhaul::kernels::testing
