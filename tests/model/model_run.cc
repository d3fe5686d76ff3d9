#include "tests/model/model_run.h"

#include <algorithm>
#include <cmath>

#include "dist/local/local.h"
#include "kernels/core/random.h"
#include "kernels/pointwise.h"
#include "model/attention_options.h"

namespace longhaul::test {

model::ModelConfig small_model() {
  return {.vocabulary = 19,
          .layers = 2,
          .width = 12,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 6,
          .mlp_width = 20,
          .norm_eps = 1e-5,
          .tied_embeddings = true};
}

model::ModelConfig model_with_attention_options(bool alibi) {
  model::ModelConfig config = small_model();
  config.attention = {.sliding_window = 9,
                      .prefix_length = alibi ? 0 : 4,
                      .soft_cap = 0.7,
                      .alibi = alibi,
                      .sinks = true,
                      .dropout = 0.2};
  return config;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, uint64_t seed) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = random_u64({.seed = seed, .stream = 1}, static_cast<uint64_t>(i));
    tokens.push_back(static_cast<int32_t>(bits % static_cast<uint64_t>(vocabulary)));
  }
  return tokens;
}

std::vector<int32_t> labels_of(const std::vector<int32_t>& tokens,
                               const parallel::Documents& documents) {
  std::vector<int32_t> labels(tokens.size(), -1);
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const auto position = static_cast<int64_t>(i);
    if (documents.at(position) == documents.at(position + 1)) labels[i] = tokens[i + 1];
  }
  return labels;
}

// Small samples are worth no transfer: without this, the balanced layout would be contiguous.
constexpr parallel::BalancedOptions kTight{.row_price = 0};

ModelRun run_model(dist::Group& group, const ModelCase& c) {
  const int64_t tokens = c.documents.tokens();
  const parallel::LayoutKind& kind = parallel::layout_kind(c.layout);
  const std::vector<int32_t> sample =
      c.tokens.empty() ? random_tokens(tokens, c.config.vocabulary, 7) : c.tokens;
  const std::vector<int32_t> labels = labels_of(sample, c.documents);
  const auto targets = std::max<int64_t>(
      1, std::count_if(labels.begin(), labels.end(), [](int32_t l) { return l >= 0; }));

  parallel::CoreAttentionOptions attention_options =
      model::attention_options(c.config, c.options.dtype);
  attention_options.strategy = c.strategy;
  attention_options.in_place = c.in_place;
  attention_options.sample_layout = [&](const auto&... of) {
    return kind.of_sample(of..., kTight);
  };
  parallel::CoreAttention attention(group, kind.make(tokens, group.size()), attention_options);
  attention.prepare(c.documents);
  // Few enough that some samples of balanced layouts have more.
  model::LinearAttentions linear(group, kind.make(tokens, group.size()), c.config,
                                 {.dtype = c.options.dtype,
                                  .method = c.linear_method,
                                  .most_runs = kind.make_for == nullptr ? 0 : 2});
  const parallel::Shard shard =
      parallel::take(attention.layout(), c.documents, sample, labels, group.rank());

  ThreadPool pool(1);
  ModelRun result;
  // A measuring run, then one in poisoned memory of just that size.
  const auto pass = [&](Arena& values, Arena& gradients, Arena& activations, Arena& workspace,
                        Arena& communication) {
    const Context ctx{.pool = &pool, .scratch = &workspace};
    parallel::ParameterStore store(c.options.dtype, group.size());
    const auto network =
        model::architecture(c.config.architecture).make(c.config, c.options, store);
    store.allocate(ctx, values, gradients);
    store.initialize(ctx, 3);
    for (const auto& entry : store.entries()) {
      if (ctx.measuring()) break;
      if (const auto given = c.values.find(entry.spec.name); given != c.values.end()) {
        LONGHAUL_CHECK(static_cast<int64_t>(given->second.size()) == entry.size());
        std::ranges::copy(given->second,
                          store.bucket_of(entry).values.data<double>() + entry.offset);
      }
      if (entry.spec.name != c.moved_parameter) continue;
      store.bucket_of(entry).values.data<double>()[entry.offset + c.moved_element] += c.moved_by;
    }
    model::StepContext step{ctx, activations, communication, attention, linear, nullptr, {}};
    if (c.config.attention.dropout > 0) step.dropout_key = model::dropout_key(1, 5);
    Arena::Scope scope(activations);
    network->load(step, shard);
    network->forward(step, {.training = true, .grad_scale = 1.0 / static_cast<double>(targets)});
    network->backward(step);
    const double loss = kernels::sum(ctx, network->row_loss());
    if (ctx.measuring()) return;
    result.loss = group.sum(loss, "test") / static_cast<double>(targets);
    Stream stream;
    for (const auto& bucket : store.buckets()) {
      if (!bucket.trained) continue;
      group.all_reduce(stream, bucket.gradients, dist::ReduceOp::kSum, "test").wait(stream);
    }
    for (const auto& entry : store.entries()) {
      if (!entry.spec.trained) continue;
      const TensorView gradient = store.bucket_of(entry).gradients.rows(entry.offset, entry.size());
      std::vector<double>& to = result.gradients[entry.spec.name];
      visit_float(gradient.dtype(), [&]<class T>() {
        for (T value : gradient.span<T>()) to.push_back(static_cast<double>(value));
      });
    }
  };
  Arena plan[] = {Arena::measure("v"), Arena::measure("g"), Arena::measure("a"),
                  Arena::measure("w"), Arena::measure("c")};
  pass(plan[0], plan[1], plan[2], plan[3], plan[4]);
  linear.prepare(c.documents, attention.layout());
  std::vector<Arena> real;
  for (const Arena& arena : plan) {
    real.emplace_back(arena.name(), arena.peak());
    real.back().poison();
  }
  pass(real[0], real[1], real[2], real[3], real[4]);
  for (size_t i = 0; i < real.size(); ++i) {
    // Of scans and of scheduled tasks, workspace and buffers are measured for any sample.
    const bool exact = (linear.empty() && c.strategy != "disaggregated") || i < 3;
    LONGHAUL_CHECK(exact ? real[i].peak() == plan[i].peak() : real[i].peak() <= plan[i].peak(),
                   real[i].name());
  }
  result.attention_forwards = attention.forward_count();
  result.linear_forwards = linear.forward_count();
  result.activation_bytes = plan[2].peak();
  return result;
}

ModelRun run_on_one_rank(const ModelCase& c) {
  ModelRun result;
  dist::run_local(1, std::chrono::seconds(60),
                  [&](dist::Group& group) { result = run_model(group, c); });
  return result;
}

double largest_deviation(const ModelRun& a, const ModelRun& b) {
  double worst = 0;
  for (const auto& [name, expected] : a.gradients) {
    const std::vector<double>& actual = b.gradients.at(name);
    double scale = 0, difference = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      scale = std::max(scale, std::abs(expected[i]));
      // A NaN must not disappear in max().
      const double d = std::abs(expected[i] - actual[i]);
      if (!(d <= difference)) difference = d;
    }
    const double relative = scale > 0 ? difference / scale : difference;
    if (!(relative <= worst)) worst = relative;
  }
  return worst;
}

}  // namespace longhaul::test
