// The doors refuse arguments that contradict each other, pick rows by dtype, and touch nothing
// while measuring.
#include <functional>

#include "kernels/core/cuda_runtime.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

void expect_refused(const std::function<void(const Context&)>& call, const std::string& message) {
  try {
    Rig(1).run(call);
    ADD_FAILURE() << "accepted: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
    EXPECT_THAT(error.what(), ::testing::HasSubstr(message));
  }
}

DeviceTensor f32(const Shape& shape) { return DeviceTensor(DType::kF32, shape); }

TEST(Doors, Gemm) {
  const DeviceTensor a = f32({3, 4}), b = f32({4, 5}), c = f32({3, 5});
  Rig(1).run([&](const Context& ctx) { gemm(ctx, {.a = a, .b = b, .c = c}); });
  expect_refused([&](const Context& ctx) { gemm(ctx, {.a = a, .b = a, .c = c}); }, "gemm: b");
  expect_refused([&](const Context& ctx) { gemm(ctx, {.a = a, .b = b, .c = a}); }, "gemm: c");
  expect_refused([&](const Context& ctx) { gemm(ctx, {.a = a, .b = b, .c = c, .beta = 0.5}); },
                 "beta");
  const DeviceTensor wide(DType::kF64, {4, 5});
  expect_refused([&](const Context& ctx) { gemm(ctx, {.a = a, .b = wide, .c = c}); }, "gemm: b");
}

TEST(Doors, RmsNorm) {
  const DeviceTensor x = f32({3, 4}), w = f32({4}), rstd = f32({3});
  expect_refused(
      [&](const Context& ctx) {
        rms_norm_forward(ctx, {.x = x, .weight = rstd, .y = x, .rstd = rstd});
      },
      "rms_norm: weight is f32 [3] and must be f32 [4]");
  const DeviceTensor bf(DType::kBF16, {3, 4});
  expect_refused(
      [&](const Context& ctx) {
        rms_norm_forward(ctx, {.x = x, .weight = w, .y = bf, .rstd = rstd});
      },
      "rms_norm: y");
  expect_refused(
      [&](const Context& ctx) {
        rms_norm_backward(ctx,
                          {.dy = x, .x = x, .weight = w, .rstd = rstd, .dx = x, .dweight = rstd});
      },
      "rms_norm: dweight");
  expect_refused(
      [&](const Context& ctx) {
        rms_norm_backward(ctx,
                          {.dy = x, .x = x, .weight = {}, .rstd = rstd, .dx = x, .dweight = w});
      },
      "both absent");
}

TEST(Doors, RopeEmbedding) {
  const DeviceTensor table = f32({2, 3}), x = f32({2, 1, 6}), odd = f32({2, 1, 5});
  expect_refused([&](const Context& ctx) { rope(ctx, {.cos = table, .sin = table, .x = odd}); },
                 "even");
  expect_refused([&](const Context& ctx) { rope(ctx, {.cos = table, .sin = odd, .x = x}); },
                 "rope: sin");
  EXPECT_THROW(rope_table(test_stream(), {}, std::vector<int64_t>{1, 2, 3}, 6, table, table),
               Error);
  expect_refused(
      [&](const Context& ctx) {
        embedding_forward(ctx, {.tokens = f32({5}), .table = table, .out = f32({5, 3})});
      },
      "embedding: tokens");
}

TEST(Doors, GatesAndActivations) {
  const DeviceTensor x = f32({2, 3}), other = f32({3, 2}), w = f32({3}), wide(DType::kF64, {2, 3});
  expect_refused(
      [&](const Context& ctx) { gated_unit_forward(ctx, {.gate = x, .up = other, .y = x}); },
      "gated_unit: up");
  expect_refused(
      [&](const Context& ctx) {
        gated_unit_forward(ctx,
                           {.activation = Activation::kLogSigmoid, .gate = x, .up = x, .y = x});
      },
      "the activation is");
  expect_refused([&](const Context& ctx) { activation_forward(ctx, {.x = x, .y = wide}); },
                 "activation: y is f64");
  expect_refused(
      [&](const Context& ctx) { activation_forward(ctx, {.scale = std::nan(""), .x = x, .y = x}); },
      "activation: scale");
  expect_refused(
      [&](const Context& ctx) { activation_backward(ctx, {.dy = x, .x = x, .dx = other}); },
      "activation: dx");
  expect_refused(
      [&](const Context& ctx) {
        decay_gate_forward(ctx, {.x = x, .a_log = w, .bias = f32({2}), .y = x});
      },
      "decay_gate: bias");
  expect_refused(
      [&](const Context& ctx) {
        decay_gate_backward(
            ctx, {.dy = x, .x = x, .a_log = w, .bias = w, .dx = x, .da_log = w, .dbias = f32({2})});
      },
      "decay_gate: dbias");
  const DeviceTensor table = f32({2, 1, 3}), doubled = f32({2, 1, 6});
  expect_refused(
      [&](const Context& ctx) {
        lrpe_forward(ctx, {.cos = table, .sin = table, .x = table, .y = table});
      },
      "lrpe: y");
  expect_refused(
      [&](const Context& ctx) {
        lrpe_backward(ctx, {.cos = table, .sin = doubled, .dy = doubled, .dx = table});
      },
      "lrpe: sin");
}

TEST(Doors, LinearAttention) {
  const DeviceTensor qk = f32({6, 2, 4}), v = f32({6, 2, 3}), state = f32({1, 2, 4, 3});
  const std::vector<double> slopes{0.5, 0};
  const std::vector<LinearRun> runs{{.begin = 1, .length = 5}};
  const std::vector<int64_t> documents{2, 4};
  LinearAttentionForward args{
      .tokens = {.runs = runs, .document_begins = documents, .slopes = slopes},
      .q = qk,
      .k = qk,
      .v = v,
      .state_in = state,
      .out_acc = v,
      .state_out = state};
  const auto call = [&](const Context& ctx) { linear_attention_forward(ctx, args); };
  Rig(1).run(call);
  const LinearAttentionForward good = args;
  args.state_in = f32({1, 2, 3, 4});
  expect_refused(call, "state_in");
  args = good;
  args.out_acc = qk;
  expect_refused(call, "out_acc");
  args = good;
  const std::vector<LinearRun> overlapping{{.begin = 0, .length = 3}, {.begin = 2, .length = 4}};
  args.tokens.runs = overlapping;
  expect_refused(call, "run [2, +4)");
  args = good;
  const std::vector<int64_t> falling{4, 2};
  args.tokens.document_begins = falling;
  expect_refused(call, "document begins at row 2");
  args = good;
  const std::vector<double> growth{0.5, -1};
  args.tokens.slopes = growth;
  expect_refused(call, "a slope of -1");
  args.tokens.slopes = std::span(growth).first(1);
  expect_refused(call, "1 slopes for 2 heads");
  expect_refused(
      [&](const Context& ctx) {
        linear_attention_maps(ctx, {good.tokens, qk, v, state, f32({2, 1})});
      },
      "log_decay");
  expect_refused(
      [&](const Context& ctx) {
        linear_attention_add_dq(ctx, {good.tokens, v, state, v});
      },
      "state_in");
}

TEST(Doors, GatedLinearAttention) {
  const DeviceTensor qk = f32({6, 2, 4}), v = f32({6, 2, 3}), state = f32({1, 2, 4, 3}),
                     gates = f32({6, 2, 4}), per_head = f32({6, 2});
  const std::vector<LinearRun> runs{{.begin = 1, .length = 5}};
  const std::vector<int64_t> documents{2, 4}, falling{4, 2};
  GatedLinearAttentionForward args{
      .tokens = {.runs = runs, .document_begins = documents, .log_gate = gates},
      .q = qk,
      .k = qk,
      .v = v,
      .state_in = state,
      .out_acc = v,
      .state_out = state};
  const auto call = [&](const Context& ctx) { gated_linear_attention_forward(ctx, args); };
  Rig(1).run(call);
  const GatedLinearAttentionForward good = args;
  args.tokens.log_gate = per_head;
  expect_refused(call, "gated linear attention: log_gate");
  args.tokens.log_gate = DeviceTensor(DType::kF64, {6, 2, 4});
  expect_refused(call, "gated linear attention: log_gate");
  args = good;
  args.tokens.document_begins = falling;
  expect_refused(call, "document begins at row 2");
  args = good;
  args.state_out = f32({2, 2, 4, 3});
  expect_refused(call, "state_out");
  expect_refused(
      [&](const Context& ctx) {
        gated_linear_attention_maps(ctx, {good.tokens, qk, v, state, f32({1, 2})});
      },
      "log_decay");
  expect_refused(
      [&](const Context& ctx) {
        gated_linear_attention_backward_maps(ctx, {good.tokens, v, qk, state, f32({1, 2, 4})});
      },
      "log_gate");
  expect_refused(
      [&](const Context& ctx) {
        gated_linear_attention_add_dq(ctx, {good.tokens, v, state, v});
      },
      "gated linear attention");
  expect_refused(
      [&](const Context& ctx) {
        gated_linear_attention_gate_gradient(ctx, {.tokens = good.tokens,
                                                   .q = qk,
                                                   .k = qk,
                                                   .dq = qk,
                                                   .dk = qk,
                                                   .state_in = state,
                                                   .dstate_in = f32({1, 2, 4, 5}),
                                                   .dlog_gate = gates});
      },
      "dstate_in");
}

TEST(Doors, DeltaRule) {
  const DeviceTensor qk = f32({6, 2, 4}), v = f32({6, 2, 3}), state = f32({1, 2, 4, 3}),
                     gates = f32({6, 2});
  const std::vector<LinearRun> runs{{.begin = 1, .length = 5}};
  DeltaRuleBackward args{
      .tokens = {.runs = runs, .document_begins = {}, .log_gate = gates, .beta = gates},
      .q = qk,
      .k = qk,
      .v = v,
      .dout = v,
      .dq_acc = qk,
      .dk_acc = f32({6, 2, 4}),
      .dv_acc = f32({6, 2, 3}),
      .dlog_gate = f32({6, 2}),
      .dbeta = f32({6, 2})};
  const auto call = [&](const Context& ctx) { delta_rule_backward(ctx, args); };
  const DeltaRuleBackward good = args;
  args.tokens.beta = qk;
  expect_refused(call, "delta rule: beta");
  args = good;
  args.tokens.log_gate = f32({5, 2});
  expect_refused(call, "delta rule: log_gate");
  args = good;
  args.dbeta = {};
  expect_refused(call, "delta rule: dbeta");
  args = good;
  args.dout = qk;
  expect_refused(call, "delta rule: dout");
  const std::vector<LinearRun> beyond{{.begin = 1, .length = 6}};
  args = good;
  args.tokens.runs = beyond;
  expect_refused(call, "run [1, +6)");
  expect_refused(
      [&](const Context& ctx) {
        delta_rule_maps(ctx, {good.tokens, qk, v, state, f32({1, 2, 4, 3})});
      },
      "delta rule: transition");
  expect_refused(
      [&](const Context& ctx) {
        delta_rule_backward_maps(ctx, {good.tokens, qk, v, v, state});
      },
      "delta rule: k");
}

TEST(Doors, LossAndOptimizer) {
  const DeviceTensor x = f32({2, 3}), w = f32({5, 3}), loss = f32({2});
  LinearCrossEntropy args{.x = x, .weight = w, .labels = integers({1, 2}), .row_loss = loss};
  args.with_gradients = true;  // and no room for them
  expect_refused([&](const Context& ctx) { linear_cross_entropy(ctx, args); }, "dx");
  expect_refused(
      [&](const Context& ctx) {
        adamw(ctx, {.step = 0, .grad = loss, .master = loss, .m = loss, .v = loss, .param = loss});
      },
      "step");
  expect_refused(
      [&](const Context& ctx) {
        adamw(ctx, {.grad = x, .master = loss, .m = loss, .v = loss, .param = loss});
      },
      "adamw: grad");
}

TEST(Doors, Attention) {
  const DeviceTensor q = f32({8, 4, 16}), k = f32({6, 2, 16}), out = f32({8, 4, 16}),
                     lse = f32({4, 8});
  const Segment segment{.q_len = 8, .k_len = 6, .band_lo = -kBandOpen, .band_hi = 0};
  const AttentionForward good{.segments = {&segment, 1},
                              .heads = {.group = 2},
                              .q = q,
                              .k = k,
                              .v = k,
                              .options = {},
                              .out_acc = out,
                              .lse = lse};
  Rig(2).run([&](const Context& ctx) { attention_forward(ctx, good); });
  const auto refused = [&](const std::function<void(AttentionForward&)>& damage,
                           const std::string& message) {
    AttentionForward bad = good;
    damage(bad);
    expect_refused([&](const Context& ctx) { attention_forward(ctx, bad); }, message);
  };
  const Segment too_long{.q_row = 1, .q_len = 8, .k_len = 6};
  const Segment beyond_keys{.q_len = 8, .k_row = 3, .k_len = 4};
  refused([&](AttentionForward& a) { a.segments = {&too_long, 1}; }, "outside the 8 rows of q");
  refused([&](AttentionForward& a) { a.segments = {&beyond_keys, 1}; }, "outside the 6 rows of k");
  refused([&](AttentionForward& a) { a.heads.group = 1; }, "kv heads 0 to 3 of 2");
  refused([&](AttentionForward& a) { a.heads.kv_begin = 1; }, "kv heads -1");
  refused([&](AttentionForward& a) { a.lse = out; }, "attention: lse");
  refused([&](AttentionForward& a) { a.v = q; }, "attention: v");
  const DeviceTensor bf(DType::kBF16, {8, 4, 16});
  refused([&](AttentionForward& a) { a.out_acc = bf; }, "attention: out_acc");
  refused([&](AttentionForward& a) { a.options.soft_cap = -1; }, "soft_cap is -1");
  refused([&](AttentionForward& a) { a.options.soft_cap = std::nan(""); }, "soft_cap is nan");
  refused([&](AttentionForward& a) { a.options.dropout.probability = 1; }, "probability is 1");
  refused([&](AttentionForward& a) { a.options.dropout.probability = -0.1; },
          "probability is -0.1");
  const DeviceTensor slopes = f32({2});
  refused([&](AttentionForward& a) { a.options.bias_slopes = slopes; }, "attention: bias_slopes");
}

// The same call measures and runs; while measuring, memory that does not exist is not touched.
void expect_measured(Device device) {
  ThreadPool pool(2);
  Arena scratch = Arena::measure("scratch", device);
  const Context ctx{.stream = {.device = device}, .pool = &pool, .scratch = &scratch, .poll = {}};
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    const DType acc = accumulator(dtype);
    const auto view = [&](DType type, const Shape& shape) {
      return TensorView(nullptr, type, shape, device);
    };
    const TensorView x = view(dtype, {90, 64}), w = view(dtype, {64}), per_row = view(acc, {90});
    const TensorView square = view(dtype, {64, 64}), ids = view(DType::kI32, {90});
    const TensorView heads = x.split_last(4, 16), kv = view(dtype, {90, 2, 16});
    const TensorView out = view(acc, {90, 4, 16}), lse = view(acc, {4, 90});
    const TensorView dkv = view(acc, {90, 2, 16}), flat = view(acc, {64});
    const Segment segment{.q_len = 90, .k_len = 90, .band_lo = -kBandOpen, .band_hi = 0};
    rms_norm_forward(ctx, {.x = x, .weight = w, .y = x, .rstd = per_row});
    rms_norm_backward(ctx,
                      {.dy = x, .x = x, .weight = w, .rstd = per_row, .dx = x, .dweight = flat});
    gemm(ctx, {.a = x, .b = square, .c = x});
    rope_table(ctx.stream, {}, std::vector<int64_t>(90), 16, view(acc, {90, 8}),
               view(acc, {90, 8}));
    rope(ctx, {.cos = view(acc, {90, 8}), .sin = view(acc, {90, 8}), .x = heads});
    gated_unit_forward(ctx, {.gate = x, .up = x, .y = x});
    gated_unit_backward(ctx, {.dy = x, .gate = x, .up = x, .dgate = x, .dup = x});
    const TensorView gates = view(acc, {90, 64});
    activation_forward(ctx, {.x = x, .y = gates});
    activation_backward(ctx, {.dy = gates, .x = x, .dx = x});
    decay_gate_forward(ctx, {.x = x, .a_log = w, .bias = w, .y = gates});
    decay_gate_backward(
        ctx, {.dy = gates, .x = x, .a_log = w, .bias = w, .dx = x, .da_log = flat, .dbias = flat});
    const TensorView angles = view(acc, {90, 4, 16}), twice = view(dtype, {90, 4, 32});
    lrpe_table(ctx.stream, lrpe_frequencies(4, 16), std::vector<int64_t>(90), angles, angles);
    lrpe_forward(ctx, {.cos = angles, .sin = angles, .x = heads, .y = twice});
    lrpe_backward(ctx, {.cos = angles, .sin = angles, .dy = twice, .dx = heads});
    embedding_forward(ctx, {.tokens = ids, .table = square, .out = x});
    embedding_backward(ctx, {.tokens = ids, .dout = x, .dtable = view(acc, {64, 64})});
    linear_cross_entropy(ctx, {.x = x,
                               .weight = square,
                               .labels = ids,
                               .row_loss = per_row,
                               .tile_rows = 40,
                               .with_gradients = true,
                               .dx = x,
                               .dweight = view(acc, {64, 64})});
    adamw(ctx, {.grad = flat, .master = flat, .m = flat, .v = flat, .param = w});
    fill_zero(ctx, x);
    copy(ctx, x, x);
    add_to(ctx, x, x);
    add(ctx, x, x, x);
    EXPECT_EQ(sum_of_squares(ctx, x), 0.0);
    EXPECT_EQ(sum(ctx, x), 0.0);
    EXPECT_EQ(find_non_finite(ctx, x), -1);
    if (backend(device).attention.empty()) continue;
    attention_init(ctx, out, lse);
    attention_forward(ctx, {.segments = {&segment, 1},
                            .heads = {.group = 2},
                            .q = heads,
                            .k = kv,
                            .v = kv,
                            .options = {},
                            .out_acc = out,
                            .lse = lse});
    attention_delta(ctx, out, heads, lse);
    attention_backward(ctx, {.segments = {},
                             .heads = {.group = 2},
                             .q = heads,
                             .k = kv,
                             .v = kv,
                             .options = {},
                             .dout = heads,
                             .lse = lse,
                             .delta = lse,
                             .dq_acc = out,
                             .dk_acc = dkv,
                             .dv_acc = dkv});
    attention_merge(ctx, out, lse, out, lse);
  }
  EXPECT_GT(scratch.peak(), 0);
  EXPECT_EQ(scratch.used(), 0);
}

TEST(Doors, MeasureWithoutData) {
  expect_measured(kCpu);
  if (cuda::device_count() > 0) expect_measured({.kind = DeviceKind::kCuda});
}

TEST(Doors, NameTheMissingKernel) {
  // Nothing runs on a device whose backend was not built.
  if (!cuda_backend().gemm.empty()) GTEST_SKIP() << "this binary has a CUDA backend";
  ThreadPool pool(1);
  Arena scratch("scratch", 0);
  const Context ctx{.stream = {.device = {.kind = DeviceKind::kCuda}},
                    .pool = &pool,
                    .scratch = &scratch,
                    .poll = {}};
  const DeviceTensor a = f32({2, 2}), c = f32({2, 2});
  try {
    gemm(ctx, {.a = a, .b = a, .c = c});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kEnvironment);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("gemm"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("cuda:0"));
  }
  const DeviceTensor x = f32({2, 1, 3}), gates = f32({2, 1});
  const std::vector<LinearRun> runs{{.begin = 0, .length = 2}};
  try {
    delta_rule_forward(
        ctx, {.tokens = {.runs = runs, .document_begins = {}, .log_gate = gates, .beta = gates},
              .q = x,
              .k = x,
              .v = x,
              .out_acc = x});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kEnvironment);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("delta rule with head dimensions 3 and 3"));
  }
}

}  // namespace
}  // namespace longhaul::kernels::testing
