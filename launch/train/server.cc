#include "launch/train/server.h"

#include <optional>

#include "launch/check/check.h"
#include "model/attention_options.h"

namespace longhaul::launch {

namespace {

// A layer's tensors on a rank without rows.
struct NoRows {
  NoRows(const parallel::HeadShape& h, DType dtype, Device device)
      : q(dtype, {0, h.q_heads, h.head_dim}, device),
        k(dtype, {0, h.kv_heads, h.head_dim}, device),
        v(dtype, {0, h.kv_heads, h.value_dim}, device),
        dout(dtype, {0, h.q_heads, h.value_dim}, device),
        out(accumulator(dtype), dout.shape(), device),
        lse(accumulator(dtype), {h.q_heads, 0}, device),
        dq(accumulator(dtype), q.shape(), device),
        dk(accumulator(dtype), k.shape(), device),
        dv(accumulator(dtype), v.shape(), device) {}

  Tensor q, k, v, dout, out, lse, dq, dk, dv;
};

void serve_forward(AttentionRank& rank, const Context& ctx, Arena& communication,
                   const NoRows& rows, const std::optional<RandomKey>& dropout_key) {
  auto pending = rank.attention().begin(ctx, communication,
                                        {.q = rows.q,
                                         .k = rows.k,
                                         .v = rows.v,
                                         .out_acc = rows.out,
                                         .lse = rows.lse,
                                         .dropout_key = dropout_key});
  rank.attention().finish(ctx, std::move(pending));
}

void serve_backward(AttentionRank& rank, const Context& ctx, Arena& communication,
                    const NoRows& rows, const std::optional<RandomKey>& dropout_key) {
  rank.attention().backward(ctx, communication,
                            {.q = rows.q,
                             .k = rows.k,
                             .v = rows.v,
                             .dout = rows.dout,
                             .lse = rows.lse,
                             .delta = rows.lse,
                             .dq_acc = rows.dq,
                             .dk_acc = rows.dk,
                             .dv_acc = rows.dv,
                             .dropout_key = dropout_key});
}

}  // namespace

void serve(AttentionRank& rank, const Context& ctx, Arena& communication,
           const model::ModelConfig& model, const Call& call, uint64_t seed) {
  const NoRows rows(model.head_shape(), rank.attention().dtype(), ctx.device());
  const auto key_of = [&](int64_t layer) -> std::optional<RandomKey> {
    if (!call.dropout_sample) return std::nullopt;
    return model::dropout_key_of_layer(model::dropout_key(seed, *call.dropout_sample), layer);
  };
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    if (model.is_linear(layer)) continue;
    rank.attention().announce(layer, parallel::Direction::kForward);
    serve_forward(rank, ctx, communication, rows, key_of(layer));
  }
  if (call.duty != Duty::kForwardAndBackward) return;
  for (int64_t layer = model.layers; layer-- > 0;) {
    if (model.is_linear(layer)) continue;
    rank.attention().announce(layer, parallel::Direction::kBackward);
    serve_backward(rank, ctx, communication, rows, key_of(layer));
  }
}

Server::Server(dist::Group& world, const Config& config)
    : config_(config),
      model_(model_config(config)),
      rank_(world, config),
      memory_(rank_.reserve([&] {
        RankMemory memory = RankMemory::measure(rank_.stream().device);
        const std::optional<int64_t> sample =
            model_.attention.dropout > 0 ? std::optional<int64_t>(0) : std::nullopt;
        serve(rank_, rank_.context(memory.workspace), memory.communication, model_,
              {.duty = Duty::kForwardAndBackward, .dropout_sample = sample}, 0);
        return memory;
      })) {}

void Server::run() {
  bool ended = false;
  while (!ended) {
    try {
      ended = !serve_call();
    } catch (const SharedError&) {
      // Trainers have it, too: they end with it, and call servers to the end.
    }
  }
  rank_.end(std::nullopt);
}

bool Server::serve_call() {
  const Context ctx = rank_.context(memory_.workspace);
  const Call call = rank_.await();
  switch (call.duty) {
    case Duty::kForward:
    case Duty::kForwardAndBackward:
      serve(rank_, ctx, memory_.communication, model_, call, config_.train().seed());
      break;
    case Duty::kCheckAttention:
      check_attention(rank_.group(), ctx, checked_attention(config_, rank_.strategies()));
      break;
    case Duty::kMeasurePeak:
      rank_.sum_of_peaks(ctx, dtype(config_));
      break;
    case Duty::kEnd:
      return false;
  }
  return true;
}

}  // namespace longhaul::launch
