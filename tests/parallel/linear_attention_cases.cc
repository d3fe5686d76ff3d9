#include "tests/parallel/linear_attention_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"

namespace longhaul::test {

using kernels::testing::LinearOperands;
using kernels::testing::LinearTruth;
using parallel::Direction;
using parallel::LinearAttention;
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

struct RankTensors {
  RankTensors(const LinearCase& c, const LinearOperands& x, const std::vector<int64_t>& positions,
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
    states = poisoned(acc, {runs, c.heads, c.head_dim, c.value_dim});
    initial_state = tensor_of(acc, state, x.state_in);
    final_state = poisoned(acc, state);
  }

  int64_t n;
  Tensor q, k, v, dout, out, dq, dk, dv, states, initial_state, final_state;
};

void run_passes(LinearAttention& attention, const LinearCase& c, const RankTensors& t,
                Arena& scratch, Arena& communication) {
  ThreadPool pool(1);
  const Context ctx{.pool = &pool, .scratch = &scratch};
  const std::vector<double> slopes = slopes_of(c);
  auto pending = attention.begin(
      ctx, communication,
      {.q = t.q,
       .k = t.k,
       .v = t.v,
       .slopes = slopes,
       .out_acc = t.out,
       .states = t.states,
       .initial_state = c.initial_state ? ConstTensorView(t.initial_state) : ConstTensorView(),
       .final_state = c.final_state ? TensorView(t.final_state) : TensorView()});
  attention.finish(ctx, std::move(pending));
  attention.backward(ctx, communication,
                     {.q = t.q,
                      .k = t.k,
                      .v = t.v,
                      .dout = t.dout,
                      .slopes = slopes,
                      .states = t.states,
                      .dq_acc = t.dq,
                      .dk_acc = t.dk,
                      .dv_acc = t.dv});
}

}  // namespace

std::string LinearCase::name() const {
  return absl::StrCat(method, " ", layout, " N=", tokens, " documents=", documents.count(),
                      " H=", heads, " D=", head_dim, " Dv=", value_dim, " ",
                      std::string(longhaul::name(dtype)), initial_state ? " initial" : "",
                      final_state ? " final" : "");
}

LinearOperands operands_of(const LinearCase& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<int> sixtyfourths(-64, 64);
  const auto draw = [&](int64_t count) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = sixtyfourths(random) / 64.0;
    return values;
  };
  LinearOperands x;
  x.q = draw(c.tokens * c.heads * c.head_dim);
  x.k = draw(c.tokens * c.heads * c.head_dim);
  x.v = draw(c.tokens * c.heads * c.value_dim);
  x.dout = draw(c.tokens * c.heads * c.value_dim);
  const int64_t state = c.heads * c.head_dim * c.value_dim;
  x.state_in = draw(state);
  if (!c.initial_state) std::fill(x.state_in.begin(), x.state_in.end(), 0.0);
  x.dstate_out.assign(static_cast<size_t>(state), 0.0);
  return x;
}

// None, slow ones, and one that forgets within a few tokens.
std::vector<double> slopes_of(const LinearCase& c) {
  std::vector<double> slopes;
  for (int64_t h = 0; h < c.heads; ++h) {
    slopes.push_back(h == 0 ? 0 : std::ldexp(1.0, static_cast<int>(2 * h - 5)));
  }
  return slopes;
}

LinearTruth truth_of(const LinearCase& c, const LinearOperands& x) {
  const kernels::LinearRun whole{0, c.tokens};
  std::vector<int64_t> begins = c.documents.begins();
  if (!begins.empty()) begins.erase(begins.begin());  // the first continues the initial state
  const std::vector<double> slopes = slopes_of(c);
  return kernels::testing::linear_attention_truth(
      {c.tokens, c.heads, c.head_dim, c.value_dim},
      {.runs = {&whole, 1}, .document_begins = begins, .slopes = slopes}, x);
}

TokenLayout layout_of(const LinearCase& c, int ranks) {
  return parallel::layout_kind(c.layout).of_sample(c.documents, {}, ranks);
}

LinearResult run_linear_attention(dist::Group& group, const LinearCase& c,
                                  const LinearOperands& x) {
  const TokenLayout layout = layout_of(c, group.size());
  LinearAttention attention(group, parallel::layout_kind(c.layout).make(c.tokens, group.size()),
                            {.heads = c.heads,
                             .head_dim = c.head_dim,
                             .value_dim = c.value_dim,
                             .dtype = c.dtype,
                             .method = c.method,
                             .most_runs = c.layout == "balanced" ? 2 : 0});
  const RankTensors tensors(c, x, layout.positions(group.rank()), attention.runs());
  Arena scratch_plan = Arena::measure("scratch"), communication_plan = Arena::measure("buffers");
  run_passes(attention, c, tensors, scratch_plan, communication_plan);
  attention.prepare(c.documents, layout);
  // What was measured must do, and what is in it must not matter.
  Arena scratch("scratch", scratch_plan.peak()), buffers("buffers", communication_plan.peak());
  scratch.poison();
  buffers.poison();
  const auto received = [&](const char* what) { return group.traffic()[what].received_bytes; };
  const int64_t before[] = {received("linear attention forward"),
                            received("linear attention backward")};
  run_passes(attention, c, tensors, scratch, buffers);
  LinearResult result{.out = values_of(tensors.out),
                      .dq = values_of(tensors.dq),
                      .dk = values_of(tensors.dk),
                      .dv = values_of(tensors.dv)};
  if (c.final_state) result.final_state = values_of(tensors.final_state);
  result.received_bytes[0] = received("linear attention forward") - before[0];
  result.received_bytes[1] = received("linear attention backward") - before[1];
  return result;
}

std::vector<double> errors(dist::Group& group, const LinearCase& c, const LinearTruth& truth,
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
  const auto of_rows = [&](const std::vector<double>& all, const std::vector<double>& actual,
                           int64_t dim) {
    return relative(rows_of(all, positions, c.heads * dim), actual);
  };
  return {of_rows(truth.out, result.out, c.value_dim), of_rows(truth.dq, result.dq, c.head_dim),
          of_rows(truth.dk, result.dk, c.head_dim), of_rows(truth.dv, result.dv, c.value_dim),
          c.final_state ? relative(truth.state_out, result.final_state) : 0.0};
}

}  // namespace longhaul::test
