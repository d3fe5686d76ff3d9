#include "tests/parallel/core_attention_cases.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace longhaul::test {

using parallel::CoreAttention;

std::string AttentionCase::name() const {
  return absl::StrCat(
      strategy, " ", layout, " N=", tokens, " heads ", heads.q_heads, "/", heads.kv_heads, " dims ",
      heads.head_dim, "/", heads.value_dim, mask.causal ? " causal" : " full", " window ",
      mask.window, " documents ", documents.count(), " prefix ", mask.prefix,
      options.soft_cap > 0 ? " soft-cap" : "", options.slopes.empty() ? "" : " ALiBi",
      options.dropout > 0 ? " dropout" : "", options.sink.empty() ? "" : " sink", " ",
      std::string(longhaul::name(dtype)), in_place ? " in place" : " moved", " per node ",
      ranks_per_node, " at once ", gather_heads);
}

std::vector<NamedOptions> score_options(int64_t q_heads) {
  ScoreOptions all{.soft_cap = 1.5,  // scores are about 1 in size: it bends them all
                   .slopes = {},
                   .dropout = 0.25,
                   .dropout_key = {.seed = 0x123456789abcdefu, .stream = 3},
                   .sink = {}};
  for (int64_t h = 0; h < q_heads; ++h) {
    all.slopes.push_back(std::ldexp(0.25, -static_cast<int>(h % 6)));
    all.sink.push_back(0.5 * static_cast<double>(h) - 1);
  }
  std::vector<NamedOptions> list{{"plain", {}}};
  const auto add = [&](const char* name) -> ScoreOptions& {
    list.push_back({name, {}});
    return list.back().options;
  };
  add("soft-cap").soft_cap = all.soft_cap;
  add("ALiBi").slopes = all.slopes;
  ScoreOptions& dropout = add("dropout");
  dropout.dropout = all.dropout;
  dropout.dropout_key = all.dropout_key;
  add("sink").sink = all.sink;
  add("all") = all;
  return list;
}

AttentionTruth truth_of(const AttentionCase& c, uint64_t seed) {
  return attention_truth(c.documents, c.mask, c.heads, seed, c.options, c.dtype);
}

// Small samples are worth no transfer: without this, the balanced layout would be contiguous.
constexpr parallel::BalancedOptions kTight{.row_price = 0};

// The case's servers follow the ranks of the layout.
parallel::TokenLayout with_servers(const AttentionCase& c, const parallel::TokenLayout& layout) {
  std::vector<parallel::RunList> runs;
  for (int r = 0; r < layout.ranks(); ++r) runs.push_back(layout.runs(r));
  runs.resize(runs.size() + c.servers.ranks.size());
  return parallel::TokenLayout(layout.tokens(), std::move(runs));
}
int trainers(const AttentionCase& c, int ranks) {
  return ranks - static_cast<int>(c.servers.ranks.size());
}

parallel::TokenLayout layout_of(const AttentionCase& c, int ranks) {
  return with_servers(c, parallel::layout_kind(c.layout).of_sample(c.documents, c.mask,
                                                                   trainers(c, ranks), kTight));
}

std::optional<std::string> refusal(const AttentionCase& c, int ranks) {
  // A strategy must be able to do any layout that a sample may have.
  const parallel::TokenLayout layout = parallel::layout_kind(c.layout).make_for != nullptr
                                           ? parallel::TokenLayout::zigzag(c.tokens, ranks)
                                           : layout_of(c, ranks);
  return parallel::strategy(c.strategy)
      .refusal({.layout = layout,
                .documents = c.documents,
                .mask = c.mask,
                .heads = c.heads,
                .ranks_per_node = c.ranks_per_node,
                .gather_heads = c.gather_heads});
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

struct Bytes {
  int64_t sent = 0, in_place = 0;
};
// What plans have moved so far, without what ranks agree on besides.
Bytes attention_bytes(dist::Group& group) {
  Bytes bytes;
  for (const char* what : {"attention forward", "attention backward"}) {
    bytes.sent += group.traffic()[what].sent_bytes;
    bytes.in_place += group.traffic()[what].in_place_bytes;
  }
  return bytes;
}

}  // namespace

RankTensors::RankTensors(const AttentionTruth& truth, const std::vector<int64_t>& positions,
                         DType dtype)
    : q(local(truth.q, positions, dtype)),
      k(local(truth.k, positions, dtype)),
      v(local(truth.v, positions, dtype)),
      dout(local(truth.dout, positions, dtype)),
      delta(statistic(local(truth.delta, positions, accumulator(dtype)))),
      out(accumulator(dtype), dout.shape()),
      lse(accumulator(dtype), delta.shape()),
      dq(accumulator(dtype), q.shape()),
      dk(accumulator(dtype), k.shape()),
      dv(accumulator(dtype), v.shape()),
      sink(dtype, {static_cast<int64_t>(truth.options.sink.size())}),
      dsink(accumulator(dtype), sink.shape()) {
  for (const Tensor* t : {&out, &lse, &dq, &dk, &dv}) poison(*t);
  visit_float(dtype, [&]<class T>() {
    for (size_t h = 0; h < truth.options.sink.size(); ++h) {
      sink.span<T>()[h] = static_cast<T>(static_cast<Accumulator<T>>(truth.options.sink[h]));
    }
  });
}

AttentionResult RankTensors::result() const {
  return {.out = values(out),
          .lse = values(lse),
          .dq = values(dq),
          .dk = values(dk),
          .dv = values(dv),
          .dsink = values(dsink)};
}

parallel::CoreAttentionOptions options_of(const AttentionCase& c) {
  parallel::CoreAttentionOptions options{
      .heads = c.heads,
      .mask = c.mask,
      .dtype = c.dtype,
      .scale = 1.0 / std::sqrt(static_cast<double>(c.heads.head_dim)),
      .soft_cap = c.options.soft_cap,
      .bias_slopes = {c.options.slopes.begin(), c.options.slopes.end()},
      .dropout = c.options.dropout,
      .strategy = c.strategy,
      .backward_strategy = c.backward_strategy,
      .in_place = c.in_place,
      .ranks_per_node = c.ranks_per_node,
      .gather_heads = c.gather_heads,
      .servers = c.servers};
  const parallel::LayoutKind& kind = parallel::layout_kind(c.layout);
  if (kind.make_for != nullptr) {
    options.sample_layout = [&kind, c](const parallel::Documents& documents,
                                       const parallel::Mask& mask, int ranks) {
      return with_servers(c, kind.make_for(documents, mask, trainers(c, ranks), kTight));
    };
  }
  return options;
}

void run_passes(CoreAttention& attention, const RankTensors& t, Arena& scratch,
                Arena& communication) {
  ThreadPool pool(1);
  const Context ctx{.pool = &pool, .scratch = &scratch};
  const ConstTensorView sink =
      t.sink.shape().elements() > 0 ? ConstTensorView(t.sink) : ConstTensorView();
  auto pending = attention.begin(ctx, communication,
                                 {.q = t.q,
                                  .k = t.k,
                                  .v = t.v,
                                  .out_acc = t.out,
                                  .lse = t.lse,
                                  .sink = sink,
                                  .dropout_key = t.dropout_key});
  attention.finish(ctx, std::move(pending));
  attention.backward(ctx, communication,
                     {.q = t.q,
                      .k = t.k,
                      .v = t.v,
                      .dout = t.dout,
                      .lse = t.lse,
                      .delta = t.delta,
                      .dq_acc = t.dq,
                      .dk_acc = t.dk,
                      .dv_acc = t.dv,
                      .sink = sink,
                      .dsink = t.dsink,
                      .dropout_key = t.dropout_key});
}

AttentionResult run_core_attention(dist::Group& group, const AttentionCase& c,
                                   const AttentionTruth& truth,
                                   std::span<const parallel::Strategy> table) {
  const parallel::TokenLayout layout = layout_of(c, group.size());
  RankTensors tensors(truth, layout.positions(group.rank()), c.dtype);
  if (c.options.dropout > 0) tensors.dropout_key = c.options.dropout_key;
  const parallel::TokenLayout measured =
      with_servers(c, parallel::layout_kind(c.layout).make(c.tokens, trainers(c, group.size())));
  CoreAttention attention(group, measured, options_of(c), table);
  Arena scratch_plan = Arena::measure("scratch"), communication_plan = Arena::measure("buffers");
  // As in training: measured while the sample is one document. Workspace may depend on the
  // segments.
  run_passes(attention, tensors, scratch_plan, communication_plan);
  attention.prepare(c.documents);
  {
    Arena any = Arena::measure("buffers");
    run_passes(attention, tensors, scratch_plan, any);
  }
  // What was measured must do, and what is in it must not matter.
  Arena scratch("scratch", scratch_plan.peak()), buffers("buffers", communication_plan.peak());
  scratch.poison();
  buffers.poison();
  const Bytes before = attention_bytes(group);
  run_passes(attention, tensors, scratch, buffers);
  const Bytes after = attention_bytes(group);
  AttentionResult result = tensors.result();
  result.sent_bytes = after.sent - before.sent;
  result.in_place_bytes = after.in_place - before.in_place;
  result.buffer_bytes = buffers.peak();
  return result;
}

std::vector<double> errors(dist::Group& group, const AttentionCase& c, const AttentionTruth& truth,
                           const AttentionResult& result) {
  const parallel::TokenLayout layout = layout_of(c, group.size());
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
    return std::sqrt(difference) / std::sqrt(std::max(norm, 1.0));
  };
  double sink_difference = 0, sink_norm = 0;
  for (size_t h = 0; h < truth.dsink.size(); ++h) {
    const double e = truth.dsink[h], d = e - group.sum(result.dsink[h], "test");
    sink_difference += d * d;
    sink_norm += e * e;
  }
  return {relative(truth.out, result.out, false),
          relative(truth.lse, result.lse, true),
          relative(truth.dq, result.dq, false),
          relative(truth.dk, result.dk, false),
          relative(truth.dv, result.dv, false),
          std::sqrt(sink_difference) / std::sqrt(std::max(sink_norm, 1.0))};
}

}  // namespace longhaul::test
