#include "launch/bench/pointwise_cases.h"

#include <numeric>
#include <set>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/decay_gate.h"
#include "kernels/embedding.h"
#include "kernels/gated_unit.h"
#include "kernels/lrpe.h"
#include "kernels/pointwise.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"

namespace longhaul::launch {

namespace {

using Operand = std::shared_ptr<Tensor>;

Operand operand(const PointwiseShape& s, DType dtype, const Shape& shape, uint64_t seed) {
  return std::make_shared<Tensor>(random_tensor(dtype, shape, seed, s.stream.device));
}
Operand result(const PointwiseShape& s, DType dtype, const Shape& shape) {
  return std::make_shared<Tensor>(dtype, shape, s.stream.device);
}

// Bytes that are read or written once: every operand as often as it is listed.
double bytes(std::initializer_list<Operand> operands) {
  int64_t sum = 0;
  for (const Operand& each : operands) sum += each->view().bytes();
  return static_cast<double>(sum);
}

KernelCase make(double work, std::function<void(const Context&)> run) {
  return {
      .description = {}, .limit = Limit::kCopy, .work = work, .run = std::move(run), .prepare = {}};
}

KernelCase rms_norm_forward(DType dtype, const PointwiseShape& s) {
  const Operand x = operand(s, dtype, {s.tokens, s.width}, 1),
                weight = operand(s, dtype, {s.width}, 2);
  const Operand y = result(s, dtype, {s.tokens, s.width}),
                rstd = result(s, accumulator(dtype), {s.tokens});
  return make(bytes({x, weight, y, rstd}), [=](const Context& ctx) {
    kernels::rms_norm_forward(ctx, {.x = *x, .weight = *weight, .y = *y, .rstd = *rstd});
  });
}

KernelCase rms_norm_backward(DType dtype, const PointwiseShape& s) {
  const DType acc = accumulator(dtype);
  const Operand dy = operand(s, dtype, {s.tokens, s.width}, 1),
                x = operand(s, dtype, {s.tokens, s.width}, 2),
                weight = operand(s, dtype, {s.width}, 3), rstd = operand(s, acc, {s.tokens}, 4);
  const Operand dx = result(s, dtype, {s.tokens, s.width}), dweight = result(s, acc, {s.width});
  return make(bytes({dy, x, weight, rstd, dx, dx, dweight, dweight}), [=](const Context& ctx) {
    kernels::rms_norm_backward(
        ctx,
        {.dy = *dy, .x = *x, .weight = *weight, .rstd = *rstd, .dx = *dx, .dweight = *dweight});
  });
}

// Every head by itself and without weight, as linear attention normalises what it puts out.
KernelCase head_norm_forward(DType dtype, const PointwiseShape& s) {
  const Shape shape{s.tokens * (s.width / s.head_dim), s.head_dim};
  const Operand x = operand(s, dtype, shape, 1), y = result(s, dtype, shape),
                rstd = result(s, accumulator(dtype), {shape[0]});
  return make(bytes({x, y, rstd}), [=](const Context& ctx) {
    kernels::rms_norm_forward(ctx, {.x = *x, .weight = {}, .y = *y, .rstd = *rstd});
  });
}

KernelCase head_norm_backward(DType dtype, const PointwiseShape& s) {
  const Shape shape{s.tokens * (s.width / s.head_dim), s.head_dim};
  const Operand dy = operand(s, dtype, shape, 1), x = operand(s, dtype, shape, 2),
                rstd = operand(s, accumulator(dtype), {shape[0]}, 3), dx = result(s, dtype, shape);
  return make(bytes({dy, x, rstd, dx, dx}), [=](const Context& ctx) {
    kernels::rms_norm_backward(
        ctx, {.dy = *dy, .x = *x, .weight = {}, .rstd = *rstd, .dx = *dx, .dweight = {}});
  });
}

KernelCase rope(DType dtype, const PointwiseShape& s) {
  const DType acc = accumulator(dtype);
  const Operand cos = result(s, acc, {s.tokens, s.head_dim / 2}),
                sin = result(s, acc, {s.tokens, s.head_dim / 2});
  std::vector<int64_t> positions(static_cast<size_t>(s.tokens));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int64_t>(i);
  kernels::rope_table(s.stream, {}, positions, s.head_dim, *cos, *sin);
  const Operand x = operand(s, dtype, {s.tokens, s.width / s.head_dim, s.head_dim}, 1);
  return make(bytes({x, x, cos, sin}),
              [=](const Context& ctx) { kernels::rope(ctx, {.cos = *cos, .sin = *sin, .x = *x}); });
}

KernelCase gated_unit_forward(DType dtype, const PointwiseShape& s) {
  const Operand gate = operand(s, dtype, {s.tokens, s.width}, 1),
                up = operand(s, dtype, {s.tokens, s.width}, 2),
                y = result(s, dtype, {s.tokens, s.width});
  return make(bytes({gate, up, y}), [=](const Context& ctx) {
    kernels::gated_unit_forward(ctx, {.gate = *gate, .up = *up, .y = *y});
  });
}

KernelCase gated_unit_backward(DType dtype, const PointwiseShape& s) {
  const Operand dy = operand(s, dtype, {s.tokens, s.width}, 1),
                gate = operand(s, dtype, {s.tokens, s.width}, 2),
                up = operand(s, dtype, {s.tokens, s.width}, 3);
  const Operand dgate = result(s, dtype, {s.tokens, s.width}),
                dup = result(s, dtype, {s.tokens, s.width});
  return make(bytes({dy, gate, up, dgate, dup}), [=](const Context& ctx) {
    kernels::gated_unit_backward(
        ctx, {.dy = *dy, .gate = *gate, .up = *up, .dgate = *dgate, .dup = *dup});
  });
}

// The log gates of gated linear attention: from x's type to its accumulator type.
KernelCase log_gate_forward(DType dtype, const PointwiseShape& s) {
  const Operand x = operand(s, dtype, {s.tokens, s.width}, 1),
                y = result(s, accumulator(dtype), {s.tokens, s.width});
  return make(bytes({x, y}), [=](const Context& ctx) {
    kernels::activation_forward(
        ctx, {.activation = kernels::Activation::kLogSigmoid, .scale = 0.0625, .x = *x, .y = *y});
  });
}

KernelCase log_gate_backward(DType dtype, const PointwiseShape& s) {
  const Operand dy = operand(s, accumulator(dtype), {s.tokens, s.width}, 1),
                x = operand(s, dtype, {s.tokens, s.width}, 2),
                dx = result(s, dtype, {s.tokens, s.width});
  return make(bytes({dy, x, dx}), [=](const Context& ctx) {
    kernels::activation_backward(ctx, {.activation = kernels::Activation::kLogSigmoid,
                                       .scale = 0.0625,
                                       .dy = *dy,
                                       .x = *x,
                                       .dx = *dx});
  });
}

// A decay per head: few columns.
KernelCase decay_gate_forward(DType dtype, const PointwiseShape& s) {
  const Shape shape{s.tokens, s.width / s.head_dim};
  const Operand x = operand(s, dtype, shape, 1), a_log = operand(s, dtype, {shape[1]}, 2),
                bias = operand(s, dtype, {shape[1]}, 3), y = result(s, accumulator(dtype), shape);
  return make(bytes({x, a_log, bias, y}), [=](const Context& ctx) {
    kernels::decay_gate_forward(ctx, {.x = *x, .a_log = *a_log, .bias = *bias, .y = *y});
  });
}

KernelCase decay_gate_backward(DType dtype, const PointwiseShape& s) {
  const DType acc = accumulator(dtype);
  const Shape shape{s.tokens, s.width / s.head_dim};
  const Operand dy = operand(s, acc, shape, 1), x = operand(s, dtype, shape, 2),
                a_log = operand(s, dtype, {shape[1]}, 3), bias = operand(s, dtype, {shape[1]}, 4);
  const Operand dx = result(s, dtype, shape), da_log = result(s, acc, {shape[1]}),
                dbias = result(s, acc, {shape[1]});
  const double work = bytes({dy, x, a_log, bias, dx, da_log, da_log, dbias, dbias});
  return make(work, [=](const Context& ctx) {
    kernels::decay_gate_backward(ctx, {.dy = *dy,
                                       .x = *x,
                                       .a_log = *a_log,
                                       .bias = *bias,
                                       .dx = *dx,
                                       .da_log = *da_log,
                                       .dbias = *dbias});
  });
}

struct LrpeTables {
  Operand cos, sin;
};

LrpeTables lrpe_tables(DType dtype, const PointwiseShape& s) {
  const int64_t heads = s.width / s.head_dim;
  const Shape shape{s.tokens, heads, s.head_dim};
  const LrpeTables tables{result(s, accumulator(dtype), shape),
                          result(s, accumulator(dtype), shape)};
  std::vector<int64_t> positions(static_cast<size_t>(s.tokens));
  std::iota(positions.begin(), positions.end(), 0);
  kernels::lrpe_table(s.stream, kernels::lrpe_frequencies(heads, s.head_dim), positions,
                      *tables.cos, *tables.sin);
  return tables;
}

KernelCase lrpe_forward(DType dtype, const PointwiseShape& s) {
  const auto [cos, sin] = lrpe_tables(dtype, s);
  const int64_t heads = s.width / s.head_dim;
  const Operand x = operand(s, dtype, {s.tokens, heads, s.head_dim}, 1),
                y = result(s, dtype, {s.tokens, heads, 2 * s.head_dim});
  return make(bytes({cos, sin, x, y}), [cos = cos, sin = sin, x, y](const Context& ctx) {
    kernels::lrpe_forward(ctx, {.cos = *cos, .sin = *sin, .x = *x, .y = *y});
  });
}

KernelCase lrpe_backward(DType dtype, const PointwiseShape& s) {
  const auto [cos, sin] = lrpe_tables(dtype, s);
  const int64_t heads = s.width / s.head_dim;
  const Operand dy = operand(s, dtype, {s.tokens, heads, 2 * s.head_dim}, 1),
                dx = result(s, dtype, {s.tokens, heads, s.head_dim});
  return make(bytes({cos, sin, dy, dx}), [cos = cos, sin = sin, dy, dx](const Context& ctx) {
    kernels::lrpe_backward(ctx, {.cos = *cos, .sin = *sin, .dy = *dy, .dx = *dx});
  });
}

// As the residual connection does it: the sum takes the place of a summand.
KernelCase residual_add(DType dtype, const PointwiseShape& s) {
  const Operand x = operand(s, dtype, {s.tokens, s.width}, 1),
                y = operand(s, dtype, {s.tokens, s.width}, 2);
  return make(bytes({x, y, y}), [=](const Context& ctx) { kernels::add(ctx, *x, *y, *y); });
}

KernelCase add_to(DType dtype, const PointwiseShape& s) {
  const Operand x = operand(s, dtype, {s.tokens, s.width}, 1),
                y = operand(s, accumulator(dtype), {s.tokens, s.width}, 2);
  return make(bytes({x, y, y}), [=](const Context& ctx) { kernels::add_to(ctx, *x, *y); });
}

KernelCase copy_from_accumulator(DType dtype, const PointwiseShape& s) {
  const Operand x = operand(s, accumulator(dtype), {s.tokens, s.width}, 1),
                y = result(s, dtype, {s.tokens, s.width});
  return make(bytes({x, y}), [=](const Context& ctx) { kernels::copy(ctx, *x, *y); });
}

KernelCase copy_to_accumulator(DType dtype, const PointwiseShape& s) {
  const Operand x = operand(s, dtype, {s.tokens, s.width}, 1),
                y = result(s, accumulator(dtype), {s.tokens, s.width});
  return make(bytes({x, y}), [=](const Context& ctx) { kernels::copy(ctx, *x, *y); });
}

KernelCase fill_zero(DType dtype, const PointwiseShape& s) {
  const Operand x = result(s, dtype, {s.tokens, s.width});
  return make(bytes({x}), [=](const Context& ctx) { kernels::fill_zero(ctx, *x); });
}

KernelCase sum_of_squares(DType dtype, const PointwiseShape& s) {
  const Operand x = operand(s, dtype, {s.tokens, s.width}, 1);
  return make(bytes({x}), [=](const Context& ctx) { kernels::sum_of_squares(ctx, *x); });
}

// Parameters in f32 are their own master copy, as in training.
KernelCase adamw(DType dtype, const PointwiseShape& s) {
  const DType acc = accumulator(dtype);
  const Shape shape{s.tokens * s.width};
  const Operand grad = operand(s, acc, shape, 1), master = operand(s, acc, shape, 2);
  const Operand m = result(s, acc, shape), v = result(s, acc, shape);
  const bool own = dtype == acc;
  const Operand param = own ? master : result(s, dtype, shape);
  const double work = bytes({grad, master, master, m, m, v, v}) + (own ? 0.0 : bytes({param}));
  return make(work, [=](const Context& ctx) {
    kernels::adamw(ctx, {.learning_rate = 1e-3,
                         .weight_decay = 0.1,
                         .grad = *grad,
                         .master = *master,
                         .m = *m,
                         .v = *v,
                         .param = *param});
  });
}

struct Tokens {
  Operand ids;
  int64_t distinct = 0;  // rows of the table that take part
};

Tokens random_tokens(const PointwiseShape& s) {
  Tokens tokens{.ids = result(s, DType::kI32, {s.tokens})};
  const Tensor host(DType::kI32, {s.tokens});
  std::set<int32_t> distinct;
  uint64_t i = 0;
  for (int32_t& id : host.span<int32_t>()) {
    const uint64_t bits = random_u64({.seed = 1, .stream = 0}, i++);
    id = static_cast<int32_t>(bits % static_cast<uint64_t>(s.vocabulary));
    distinct.insert(id);
  }
  upload(s.stream, host, *tokens.ids);
  wait_until_idle(s.stream);
  tokens.distinct = static_cast<int64_t>(distinct.size());
  return tokens;
}

KernelCase embedding_forward(DType dtype, const PointwiseShape& s) {
  const Tokens tokens = random_tokens(s);
  const Operand ids = tokens.ids, table = operand(s, dtype, {s.vocabulary, s.width}, 1),
                out = result(s, dtype, {s.tokens, s.width});
  const auto rows = static_cast<double>(tokens.distinct * s.width * size_of(dtype));
  return make(bytes({ids, out}) + rows, [=](const Context& ctx) {
    kernels::embedding_forward(ctx, {.tokens = *ids, .table = *table, .out = *out});
  });
}

KernelCase embedding_backward(DType dtype, const PointwiseShape& s) {
  const DType acc = accumulator(dtype);
  const Tokens tokens = random_tokens(s);
  const Operand ids = tokens.ids, dout = operand(s, dtype, {s.tokens, s.width}, 1),
                dtable = result(s, acc, {s.vocabulary, s.width});
  const auto rows = static_cast<double>(tokens.distinct * s.width * size_of(acc));
  return make(bytes({ids, dout}) + 2 * rows, [=](const Context& ctx) {
    kernels::embedding_backward(ctx, {.tokens = *ids, .dout = *dout, .dtable = *dtable});
  });
}

Shape heads_of(const PointwiseShape& s) { return {s.tokens, s.width / s.head_dim, s.head_dim}; }

KernelCase attention_init(DType dtype, const PointwiseShape& s) {
  const Operand out = result(s, dtype, heads_of(s)),
                lse = result(s, dtype, {s.width / s.head_dim, s.tokens});
  return make(bytes({out, lse}),
              [=](const Context& ctx) { kernels::attention_init(ctx, *out, *lse); });
}

KernelCase attention_delta(DType dtype, const PointwiseShape& s) {
  const Operand out = operand(s, dtype, heads_of(s), 1), dout = operand(s, dtype, heads_of(s), 2),
                delta = result(s, accumulator(dtype), {s.width / s.head_dim, s.tokens});
  return make(bytes({out, dout, delta}),
              [=](const Context& ctx) { kernels::attention_delta(ctx, *out, *dout, *delta); });
}

KernelCase attention_merge(DType dtype, const PointwiseShape& s) {
  const Shape rows{s.width / s.head_dim, s.tokens};
  const Operand part = operand(s, dtype, heads_of(s), 1), part_lse = operand(s, dtype, rows, 2),
                out = operand(s, dtype, heads_of(s), 3), lse = operand(s, dtype, rows, 4);
  return make(bytes({part, part_lse, out, out, lse, lse}), [=](const Context& ctx) {
    kernels::attention_merge(ctx, *part, *part_lse, *out, *lse);
  });
}

constexpr PointwiseOperation kOperations[] = {{"rms_norm_forward", rms_norm_forward},
                                              {"rms_norm_backward", rms_norm_backward},
                                              {"head_norm_forward", head_norm_forward},
                                              {"head_norm_backward", head_norm_backward},
                                              {"rope", rope},
                                              {"lrpe_forward", lrpe_forward},
                                              {"lrpe_backward", lrpe_backward},
                                              {"gated_unit_forward", gated_unit_forward},
                                              {"gated_unit_backward", gated_unit_backward},
                                              {"log_gate_forward", log_gate_forward},
                                              {"log_gate_backward", log_gate_backward},
                                              {"decay_gate_forward", decay_gate_forward},
                                              {"decay_gate_backward", decay_gate_backward},
                                              {"add", residual_add},
                                              {"add_to", add_to, true},
                                              {"copy_from_accumulator", copy_from_accumulator},
                                              {"copy_to_accumulator", copy_to_accumulator},
                                              {"fill_zero", fill_zero},
                                              {"sum_of_squares", sum_of_squares, true},
                                              {"adamw", adamw},
                                              {"embedding_forward", embedding_forward},
                                              {"embedding_backward", embedding_backward},
                                              {"attention_init", attention_init, true},
                                              {"attention_delta", attention_delta},
                                              {"attention_merge", attention_merge, true}};

}  // namespace

std::span<const PointwiseOperation> pointwise_operations() { return kOperations; }

}  // namespace longhaul::launch
