#include "tests/parallel/core_attention_cases.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace longhaul::test {

using parallel::CoreAttention;

std::string AttentionCase::name() const {
  return absl::StrCat(strategy, " ", layout, " N=", tokens, " heads ", heads.q_heads, "/",
                      heads.kv_heads, " dims ", heads.head_dim, "/", heads.value_dim,
                      mask.causal ? " causal" : " full", " window ", mask.window, " documents ",
                      documents.count(), " ", std::string(longhaul::name(dtype)),
                      in_place ? " in place" : " moved");
}

parallel::TokenLayout layout_of(const std::string& name, int64_t tokens, int ranks) {
  for (const parallel::LayoutKind& kind : parallel::layout_kinds()) {
    if (kind.name == name) return kind.make(tokens, ranks);
  }
  fail(ErrorCode::kInternal, name);
}

namespace {

// Rows of this rank, in its row order, in the given dtype.
Tensor local(const Field3& field, const std::vector<int64_t>& positions, DType dtype) {
  Tensor tensor(dtype, {static_cast<int64_t>(positions.size()), field.heads, field.dim});
  visit_float(dtype, [&]<class T>() {
    T* to = tensor.view().data<T>();
    for (int64_t position : positions) {
      const double* from = field.at(position, 0);
      for (int64_t i = 0; i < field.heads * field.dim; ++i) *to++ = T(from[i]);
    }
  });
  return tensor;
}

std::vector<double> values(const TensorView& view) {
  std::vector<double> result;
  visit_float(view.dtype(), [&]<class T>() {
    for (T value : view.span<T>()) result.push_back(static_cast<double>(value));
  });
  return result;
}

// [heads, rows] from the truth's [rows, heads].
Tensor statistic(const Tensor& rows_first) {
  const int64_t rows = rows_first.shape()[0], heads = rows_first.shape()[1];
  Tensor tensor(rows_first.view().dtype(), {heads, rows});
  visit_float(rows_first.view().dtype(), [&]<class T>() {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        tensor.view().data<T>()[h * rows + r] = rows_first.view().data<T>()[r * heads + h];
      }
    }
  });
  return tensor;
}

void poison(const Tensor& tensor) {
  visit_float(tensor.view().dtype(), [&]<class T>() {
    for (T& value : tensor.view().span<T>()) value = T(std::nanf(""));
  });
}

}  // namespace

AttentionResult run_core_attention(dist::Group& group, const AttentionCase& c,
                                   const AttentionTruth& truth) {
  const parallel::TokenLayout layout = layout_of(c.layout, c.tokens, group.size());
  const std::vector<int64_t> positions = layout.positions(group.rank());
  const auto rows = static_cast<int64_t>(positions.size());
  const DType acc = accumulator(c.dtype);
  const Tensor q = local(truth.q, positions, c.dtype), k = local(truth.k, positions, c.dtype),
               v = local(truth.v, positions, c.dtype), dout = local(truth.dout, positions, c.dtype);
  const Tensor delta = statistic(local(truth.delta, positions, acc));
  const Tensor out(acc, {rows, c.heads.q_heads, c.heads.value_dim});
  const Tensor lse(acc, {c.heads.q_heads, rows});
  const Tensor dq(acc, q.shape()), dk(acc, k.shape()), dv(acc, v.shape());
  for (const Tensor* t : {&out, &lse, &dq, &dk, &dv}) poison(*t);

  CoreAttention attention(group, layout,
                          {.heads = c.heads,
                           .mask = c.mask,
                           .dtype = c.dtype,
                           .scale = 1.0 / std::sqrt(static_cast<double>(c.heads.head_dim)),
                           .strategy = c.strategy,
                           .in_place = c.in_place,
                           .ranks_per_node = c.ranks_per_node});
  attention.prepare(c.documents);
  ThreadPool pool(1);
  const auto pass = [&](Arena& scratch, Arena& communication) {
    const Context ctx{.pool = &pool, .scratch = &scratch};
    auto pending =
        attention.begin(ctx, communication, {.q = q, .k = k, .v = v, .out_acc = out, .lse = lse});
    attention.finish(ctx, std::move(pending));
    attention.backward(ctx, communication,
                       {.q = q,
                        .k = k,
                        .v = v,
                        .dout = dout,
                        .lse = lse,
                        .delta = delta,
                        .dq_acc = dq,
                        .dk_acc = dk,
                        .dv_acc = dv});
  };
  Arena scratch_plan = Arena::measure("scratch"), communication_plan = Arena::measure("buffers");
  pass(scratch_plan, communication_plan);
  // What was measured must do, and what is in it must not matter.
  Arena scratch("scratch", scratch_plan.peak()), buffers("buffers", communication_plan.peak());
  scratch.poison();
  buffers.poison();
  const dist::Traffic::Counter before = group.traffic().total();
  pass(scratch, buffers);
  const dist::Traffic::Counter after = group.traffic().total();
  LONGHAUL_CHECK(buffers.peak() == communication_plan.peak());
  return {.out = values(out),
          .lse = values(lse),
          .dq = values(dq),
          .dk = values(dk),
          .dv = values(dv),
          .sent_bytes = after.sent_bytes - before.sent_bytes,
          .in_place_bytes = after.in_place_bytes - before.in_place_bytes};
}

std::vector<double> errors(dist::Group& group, const AttentionCase& c, const AttentionTruth& truth,
                           const AttentionResult& result) {
  const parallel::TokenLayout layout = layout_of(c.layout, c.tokens, group.size());
  const std::vector<int64_t> positions = layout.positions(group.rank());
  const auto relative = [&](const Field3& expected, const std::vector<double>& actual,
                            bool heads_first) {
    double difference = 0, norm = 0;
    const auto rows = static_cast<int64_t>(positions.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < expected.heads; ++h) {
        for (int64_t d = 0; d < expected.dim; ++d) {
          const double e = expected.at(positions[static_cast<size_t>(r)], h)[d];
          const int64_t index =
              heads_first ? h * rows + r : (r * expected.heads + h) * expected.dim + d;
          const double a = actual[static_cast<size_t>(index)];
          // Both may be -inf: a query that sees no key.
          if (e != a) difference += (e - a) * (e - a);
          if (std::isfinite(e)) norm += e * e;
        }
      }
    }
    difference = group.sum(difference, "test");
    norm = group.sum(norm, "test");
    return std::sqrt(difference) / std::sqrt(norm > 0 ? norm : 1.0);
  };
  return {relative(truth.out, result.out, false), relative(truth.lse, result.lse, true),
          relative(truth.dq, result.dq, false), relative(truth.dk, result.dk, false),
          relative(truth.dv, result.dv, false)};
}

}  // namespace longhaul::test
