#include "tests/parallel/linear_attention_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/kernels/delta_rule_reference.h"
#include "tests/kernels/gated_linear_attention_reference.h"
#include "tests/kernels/linear_attention_reference.h"

namespace longhaul::test {

using parallel::Direction;
using parallel::LinearAttention;
using parallel::LinearKind;
using parallel::TokenLayout;

namespace {

template <class T>
void fill(const Tensor& tensor, const std::vector<double>& values) {
  const std::span<T> to = tensor.span<T>();
  for (size_t i = 0; i < to.size(); ++i) to[i] = static_cast<T>(static_cast<float>(values[i]));
}

Tensor tensor_of(DType dtype, const Shape& shape, const std::vector<double>& values) {
  Tensor tensor(dtype, shape);
  switch (dtype) {
    case DType::kBF16:
      fill<bf16>(tensor, values);
      break;
    case DType::kF32:
      fill<float>(tensor, values);
      break;
    default:
      std::copy(values.begin(), values.end(), tensor.span<double>().begin());
  }
  return tensor;
}

Tensor poisoned(DType dtype, const Shape& shape) {
  const auto elements = static_cast<size_t>(shape.elements());
  return tensor_of(dtype, shape,
                   std::vector<double>(elements, std::numeric_limits<double>::quiet_NaN()));
}

std::vector<double> values_of(const Tensor& tensor) {
  if (tensor.view().dtype() == DType::kF64) {
    return {tensor.span<double>().begin(), tensor.span<double>().end()};
  }
  return {tensor.span<float>().begin(), tensor.span<float>().end()};
}

std::vector<double> rows_of(const std::vector<double>& all, const std::vector<int64_t>& positions,
                            int64_t of_row) {
  std::vector<double> rows;
  for (const int64_t position : positions) {
    rows.insert(rows.end(), all.begin() + position * of_row, all.begin() + (position + 1) * of_row);
  }
  return rows;
}

// Elements of a gate and of beta for one token; 0: the kind has none.
int64_t gate_elements(const LinearCase& c) {
  if (c.kind == LinearKind::kDecay) return 0;
  return c.kind == LinearKind::kGated ? c.heads * c.head_dim : c.heads;
}
int64_t beta_elements(const LinearCase& c) {
  return c.kind == LinearKind::kDeltaRule ? c.heads : 0;
}

struct RankTensors {
  RankTensors(const LinearCase& c, const LinearInputs& x, const std::vector<int64_t>& positions,
              int64_t runs)
      : n(static_cast<int64_t>(positions.size())) {
    const DType acc = accumulator(c.dtype);
    const Shape keys{n, c.heads, c.head_dim}, values{n, c.heads, c.value_dim};
    const Shape state{c.heads, c.head_dim, c.value_dim};
    const auto of = [&](const std::vector<double>& all, const Shape& shape) {
      return tensor_of(c.dtype, shape, rows_of(all, positions, shape[1] * shape[2]));
    };
    q = of(x.q, keys);
    k = of(x.k, keys);
    v = of(x.v, values);
    dout = of(x.dout, values);
    out = poisoned(acc, values);
    dv = poisoned(acc, values);
    dq = poisoned(acc, keys);
    dk = poisoned(acc, keys);
    const Shape gates = c.kind == LinearKind::kGated ? keys : Shape{n, c.heads};
    if (gate_elements(c) > 0) {
      log_gate = tensor_of(acc, gates, rows_of(x.log_gate, positions, gate_elements(c)));
      dlog_gate = poisoned(acc, gates);
    }
    if (beta_elements(c) > 0) {
      beta = tensor_of(acc, gates, rows_of(x.beta, positions, beta_elements(c)));
      dbeta = poisoned(acc, gates);
    }
    states = poisoned(acc, {runs, c.heads, c.head_dim, c.value_dim});
    initial_state = tensor_of(acc, state, x.state_in);
    final_state = poisoned(acc, state);
  }

  int64_t n;
  Tensor q, k, v, dout, out, dq, dk, dv, states, initial_state, final_state;
  Tensor log_gate, beta, dlog_gate, dbeta;  // without a shape: the kind has none
};

void run_passes(LinearAttention& attention, const LinearCase& c, const RankTensors& t,
                Arena& scratch, Arena& communication,
                const std::function<void(Direction)>& before) {
  ThreadPool pool(1);
  const Context ctx{.pool = &pool, .scratch = &scratch};
  const std::vector<double> slopes = slopes_of(c);
  const auto announce = [&](Direction direction) {
    attention.announce(3, direction);
    if (before) before(direction);
  };
  announce(Direction::kForward);
  auto pending = attention.begin(
      ctx, communication,
      {.q = t.q,
       .k = t.k,
       .v = t.v,
       .slopes = slopes,
       .log_gate = t.log_gate,
       .beta = t.beta,
       .out_acc = t.out,
       .states = t.states,
       .initial_state = c.initial_state ? ConstTensorView(t.initial_state) : ConstTensorView(),
       .final_state = c.final_state ? TensorView(t.final_state) : TensorView()});
  attention.finish(ctx, std::move(pending));
  announce(Direction::kBackward);
  attention.backward(ctx, communication,
                     {.q = t.q,
                      .k = t.k,
                      .v = t.v,
                      .dout = t.dout,
                      .slopes = slopes,
                      .log_gate = t.log_gate,
                      .beta = t.beta,
                      .states = t.states,
                      .dq_acc = t.dq,
                      .dk_acc = t.dk,
                      .dv_acc = t.dv,
                      .dlog_gate = t.dlog_gate,
                      .dbeta = t.dbeta});
}

}  // namespace

std::string LinearCase::name() const {
  constexpr const char* kKinds[] = {"decay ", "gated ", "delta rule "};
  return absl::StrCat(kKinds[static_cast<int>(kind)], method, " ", layout, " N=", tokens,
                      " documents=", documents.count(), " H=", heads, " D=", head_dim,
                      " Dv=", value_dim, " ", std::string(longhaul::name(dtype)),
                      causal ? "" : " bidirectional", decays ? "" : " undecayed",
                      initial_state ? " initial" : "", final_state ? " final" : "");
}

LinearInputs inputs_of(const LinearCase& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<int> sixtyfourths(-64, 64);
  const auto draw = [&](int64_t count) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = sixtyfourths(random) / 64.0;
    return values;
  };
  LinearInputs x;
  x.q = draw(c.tokens * c.heads * c.head_dim);
  x.k = draw(c.tokens * c.heads * c.head_dim);
  x.v = draw(c.tokens * c.heads * c.value_dim);
  x.dout = draw(c.tokens * c.heads * c.value_dim);
  const int64_t state = c.heads * c.head_dim * c.value_dim;
  x.state_in = draw(state);
  if (!c.initial_state) std::fill(x.state_in.begin(), x.state_in.end(), 0.0);
  // From 0, which forgets nothing, down to what forgets within a few tokens.
  x.log_gate = draw(c.tokens * gate_elements(c));
  for (double& value : x.log_gate) value = std::min(value, 0.0);
  x.beta = draw(c.tokens * beta_elements(c));
  for (double& value : x.beta) value = std::abs(value);
  if (c.kind == LinearKind::kDeltaRule) {
    for (double& value : x.k) value *= 0.25;  // states stay bounded
  }
  return x;
}

// None, slow ones, and one that forgets within a few tokens.
std::vector<double> slopes_of(const LinearCase& c) {
  std::vector<double> slopes;
  for (int64_t h = 0; h < c.heads; ++h) {
    slopes.push_back(h == 0 || !c.decays ? 0 : std::ldexp(1.0, static_cast<int>(2 * h - 5)));
  }
  return slopes;
}

LinearOutputs truth_of_pairs(const LinearCase& c, const LinearInputs& x,
                             const std::function<bool(int64_t, int64_t, int64_t)>& counts) {
  const std::vector<double> slopes = slopes_of(c);
  LinearOutputs truth{.out = std::vector<double>(x.v.size()),
                      .dq = std::vector<double>(x.q.size()),
                      .dk = std::vector<double>(x.q.size()),
                      .dv = std::vector<double>(x.v.size())};
  const auto dim = static_cast<size_t>(c.head_dim), width = static_cast<size_t>(c.value_dim);
  for (int64_t i = 0; i < c.tokens; ++i) {
    for (int64_t j = 0; j < c.tokens; ++j) {
      if (c.documents.at(i) != c.documents.at(j)) continue;
      for (int64_t h = 0; h < c.heads; ++h) {
        if (!counts(i, j, h)) continue;
        const double decay =
            std::exp(-slopes[static_cast<size_t>(h)] * static_cast<double>(std::abs(i - j)));
        const auto qi = static_cast<size_t>(i * c.heads + h) * dim;
        const auto kj = static_cast<size_t>(j * c.heads + h) * dim;
        const auto oi = static_cast<size_t>(i * c.heads + h) * width;
        const auto vj = static_cast<size_t>(j * c.heads + h) * width;
        double score = 0, dscore = 0;
        for (size_t d = 0; d < dim; ++d) score += decay * x.q[qi + d] * x.k[kj + d];
        for (size_t e = 0; e < width; ++e) dscore += decay * x.dout[oi + e] * x.v[vj + e];
        for (size_t e = 0; e < width; ++e) {
          truth.out[oi + e] += score * x.v[vj + e];
          truth.dv[vj + e] += score * x.dout[oi + e];
        }
        for (size_t d = 0; d < dim; ++d) {
          truth.dq[qi + d] += dscore * x.k[kj + d];
          truth.dk[kj + d] += dscore * x.q[qi + d];
        }
      }
    }
  }
  return truth;
}

LinearOutputs truth_of(const LinearCase& c, const LinearInputs& x) {
  const kernels::LinearRun whole{0, c.tokens};
  std::vector<int64_t> begins = c.documents.begins();
  if (!begins.empty()) begins.erase(begins.begin());  // the first continues the initial state
  const std::vector<double> no_gradient(x.state_in.size(), 0.0);
  if (c.kind == LinearKind::kDeltaRule) {
    const auto truth = kernels::testing::delta_rule_truth(
        {c.tokens, c.heads, c.head_dim, c.value_dim}, {&whole, 1}, begins,
        {x.q, x.k, x.v, x.dout, x.log_gate, x.beta, x.state_in, no_gradient});
    return {.out = truth.out,
            .dq = truth.dq,
            .dk = truth.dk,
            .dv = truth.dv,
            .dlog_gate = truth.dlog_gate,
            .dbeta = truth.dbeta,
            .final_state = truth.state_out};
  }
  if (c.kind == LinearKind::kGated) {
    const auto truth = kernels::testing::gated_linear_attention_truth(
        {c.tokens, c.heads, c.head_dim, c.value_dim}, {&whole, 1}, begins,
        {x.q, x.k, x.v, x.dout, x.log_gate, x.state_in, no_gradient});
    return {.out = truth.out,
            .dq = truth.dq,
            .dk = truth.dk,
            .dv = truth.dv,
            .dlog_gate = truth.dlog_gate,
            .final_state = truth.state_out};
  }
  const std::vector<double> slopes = slopes_of(c);
  if (!c.causal) return truth_of_pairs(c, x, [](int64_t, int64_t, int64_t) { return true; });
  const auto truth = kernels::testing::linear_attention_truth(
      {c.tokens, c.heads, c.head_dim, c.value_dim},
      {.runs = {&whole, 1}, .document_begins = begins, .slopes = slopes},
      {x.q, x.k, x.v, x.dout, x.state_in, no_gradient});
  return {.out = truth.out,
          .dq = truth.dq,
          .dk = truth.dk,
          .dv = truth.dv,
          .final_state = truth.state_out};
}

TokenLayout layout_of(const LinearCase& c, int ranks) {
  return parallel::layout_kind(c.layout).of_sample(c.documents, {}, ranks);
}

LinearResult run_linear_attention(dist::Group& group, const LinearCase& c, const LinearInputs& x,
                                  const std::function<void(Direction)>& before_pass) {
  const TokenLayout layout = layout_of(c, group.size());
  LinearAttention attention(group, parallel::layout_kind(c.layout).make(c.tokens, group.size()),
                            {.kind = c.kind,
                             .heads = c.heads,
                             .head_dim = c.head_dim,
                             .value_dim = c.value_dim,
                             .dtype = c.dtype,
                             .causal = c.causal,
                             .method = c.method,
                             .most_runs = c.layout == "balanced" ? 2 : 0,
                             .decay_bound = c.decay_bound});
  const RankTensors tensors(c, x, layout.positions(group.rank()), attention.runs());
  Arena scratch_plan = Arena::measure("scratch"), communication_plan = Arena::measure("buffers");
  run_passes(attention, c, tensors, scratch_plan, communication_plan, {});
  // The plans of a layout serve all documents.
  attention.prepare(parallel::Documents::whole(c.tokens), layout);
  attention.prepare(c.documents, layout);
  // What was measured must do, and what is in it must not matter.
  Arena scratch("scratch", scratch_plan.peak()), buffers("buffers", communication_plan.peak());
  scratch.poison();
  buffers.poison();
  const auto received = [&](const char* what) { return group.traffic()[what].received_bytes; };
  const int64_t before[] = {received("linear attention forward"),
                            received("linear attention backward")};
  run_passes(attention, c, tensors, scratch, buffers, before_pass);
  LinearResult result{.outputs = {.out = values_of(tensors.out),
                                  .dq = values_of(tensors.dq),
                                  .dk = values_of(tensors.dk),
                                  .dv = values_of(tensors.dv)}};
  if (gate_elements(c) > 0) result.outputs.dlog_gate = values_of(tensors.dlog_gate);
  if (beta_elements(c) > 0) result.outputs.dbeta = values_of(tensors.dbeta);
  if (c.final_state) result.outputs.final_state = values_of(tensors.final_state);
  result.received_bytes[0] = received("linear attention forward") - before[0];
  result.received_bytes[1] = received("linear attention backward") - before[1];
  return result;
}

std::vector<double> errors(dist::Group& group, const LinearCase& c, const LinearOutputs& truth,
                           const LinearResult& result) {
  const std::vector<int64_t> positions = layout_of(c, group.size()).positions(group.rank());
  const auto relative = [&](const std::vector<double>& expected,
                            const std::vector<double>& actual) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      difference += (expected[i] - actual[i]) * (expected[i] - actual[i]);
      norm += expected[i] * expected[i];
    }
    difference = group.sum(difference, "test");
    norm = group.sum(norm, "test");
    return std::sqrt(difference) / std::sqrt(std::max(norm, 1.0));
  };
  const LinearOutputs& got = result.outputs;
  const auto of_rows = [&](const std::vector<double>& all, const std::vector<double>& actual,
                           int64_t of_row) {
    return relative(rows_of(all, positions, of_row), actual);
  };
  return {of_rows(truth.out, got.out, c.heads * c.value_dim),
          of_rows(truth.dq, got.dq, c.heads * c.head_dim),
          of_rows(truth.dk, got.dk, c.heads * c.head_dim),
          of_rows(truth.dv, got.dv, c.heads * c.value_dim),
          of_rows(truth.dlog_gate, got.dlog_gate, gate_elements(c)),
          of_rows(truth.dbeta, got.dbeta, beta_elements(c)),
          c.final_state ? relative(truth.final_state, got.final_state) : 0.0};
}

}  // namespace longhaul::test
