#include "tests/model/inference_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "dist/null/null.h"
#include "model/attention_options.h"
#include "model/inference_state.h"
#include "model/model.h"
#include "tests/model/hybrid_cases.h"
#include "tests/model/initial_values.h"
#include "tests/model/naive_llama.h"

namespace longhaul::test {

std::vector<int32_t> tokens_of(const InferenceCase& c) {
  return random_tokens(c.prompt + c.decoded, c.config.vocabulary, 7);
}

Rows run_inference(dist::Group& group, const InferenceCase& c) {
  const std::vector<int32_t> tokens = tokens_of(c);
  const std::vector<int32_t> prompt(tokens.begin(), tokens.begin() + c.prompt);
  const parallel::LayoutKind& kind = parallel::layout_kind(c.layout);
  const parallel::TokenLayout layout = kind.make(c.prompt, group.size());
  const parallel::Documents documents = parallel::Documents::whole(c.prompt);
  parallel::CoreAttentionOptions options = model::attention_options(c.config, c.dtype);
  options.strategy = c.strategy;
  parallel::CoreAttention attention(group, layout, options);
  attention.prepare(documents);
  model::LinearAttentions linear(group, layout, c.config,
                                 {.dtype = c.dtype, .method = c.linear_method});
  const std::unique_ptr<dist::Group> alone = dist::null_group(0, 1);
  std::optional<model::InferenceState> state;

  const parallel::Shard shard = parallel::take(
      layout, documents, prompt, std::vector<int32_t>(prompt.size(), -1), group.rank());
  const parallel::TokenLayout::Place last = layout.locate(c.prompt - 1);
  ThreadPool pool(1);
  Rows rows;
  // A measuring run of a prompt and one token, then all in poisoned memory of just that size.
  const auto run = [&](std::vector<Arena>& arenas, int64_t decoded) {
    Arena &values = arenas[0], &cache = arenas[1], &activations = arenas[2];
    Arena &workspace = arenas[3], &communication = arenas[4];
    const Context ctx{.pool = &pool, .scratch = &workspace};
    parallel::ParameterStore store(c.dtype, 1);
    const auto network =
        model::architecture(c.config.architecture).make(c.config, {.dtype = c.dtype}, store);
    store.allocate_values(ctx, values);
    store.initialize(ctx, 3);
    state.emplace(group, *alone, layout, c.config, c.dtype, c.decoded);
    state->allocate(cache);
    const auto pass = [&](const parallel::Shard& of, bool wanted, int64_t row) {
      Arena::Scope scope(activations);
      model::StepContext step{ctx, activations, communication, attention,
                              state->decoding() ? state->recurrence() : linear};
      step.inference = &*state;
      network->load(step, of);
      network->forward(step, {.training = false, .loss = false});
      const TensorView logits = activations.allocate(accumulator(c.dtype), {c.config.vocabulary});
      if (wanted || (ctx.measuring() && of.rows() > 0)) network->logits(step, row, logits);
      if (ctx.measuring()) return;
      if (!state->decoding()) {
        Stream stream;
        group.broadcast(stream, logits, last.rank, "logits").wait(stream);
      }
      rows.emplace_back();
      visit_float(logits.dtype(), [&]<class T>() {
        for (T value : logits.span<T>()) rows.back().push_back(static_cast<double>(value));
      });
    };
    pass(shard, group.rank() == last.rank, ctx.measuring() ? 0 : last.row);
    state->decode();
    for (int64_t t = c.prompt; t < c.prompt + decoded; ++t) {
      state->next();
      pass({.tokens = {tokens[static_cast<size_t>(t)]}, .labels = {-1}, .positions = {t}}, true, 0);
    }
  };
  std::vector<Arena> plan;
  for (const char* name : {"values", "cache", "activations", "workspace", "communication"}) {
    plan.push_back(Arena::measure(name));
  }
  run(plan, 1);
  linear.prepare(documents, layout);
  std::vector<Arena> real;
  for (const Arena& arena : plan) {
    real.emplace_back(arena.name(), arena.peak());
    real.back().poison();
  }
  run(real, c.decoded);
  return rows;
}

Rows naive_log_probabilities(const InferenceCase& c) {
  const auto values = initial_values({.config = c.config, .options = {.dtype = DType::kF64}});
  const std::vector<int32_t> tokens = tokens_of(c);
  Rows rows(static_cast<size_t>(c.decoded) + 1);
  for (int32_t word = 0; word < c.config.vocabulary; ++word) {
    const std::vector<double> loss = naive_llama_loss(
        c.config,
        [&](const std::string& name) -> const std::vector<double>& { return values.at(name); },
        tokens, std::vector<int32_t>(tokens.size(), word),
        parallel::Documents::whole(static_cast<int64_t>(tokens.size())));
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].push_back(-loss[static_cast<size_t>(c.prompt) - 1 + i]);
    }
  }
  return rows;
}

Rows log_softmax(const Rows& logits) {
  Rows result = logits;
  for (std::vector<double>& row : result) {
    const double most = *std::ranges::max_element(row);
    double sum = 0;
    for (double x : row) sum += std::exp(x - most);
    for (double& x : row) x -= most + std::log(sum);
  }
  return result;
}

double largest_difference(const Rows& a, const Rows& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size()) return std::numeric_limits<double>::infinity();
    for (size_t j = 0; j < a[i].size(); ++j) {
      const double difference = std::abs(a[i][j] - b[i][j]);
      if (!(difference <= worst)) worst = difference;
    }
  }
  return worst;
}

std::vector<InferenceCase> inference_cases(int ranks) {
  std::vector<InferenceCase> cases;
  // Every layout that does not go by the sample's documents.
  for (const char* layout : {"contiguous", "zigzag", "striped"}) {
    cases.push_back({.config = small_model(), .layout = layout});
    cases.push_back({.config = hybrid_cases()[1].config, .layout = layout});
  }
  for (const char* strategy : {"ulysses", "all_gather", "disaggregated"}) {
    cases.push_back({.config = small_model(), .layout = "zigzag", .strategy = strategy});
  }
  for (const bool alibi : {false, true}) {
    model::ModelConfig config = model_with_attention_options(alibi);
    config.attention.dropout = 0;
    cases.push_back({.config = config});
    // A window that reaches over the prompt's end, and a prompt that is its prefix.
    cases.push_back({.config = config, .layout = "striped", .prompt = 4, .decoded = 15});
  }
  for (const HybridCase& hybrid : hybrid_cases()) cases.push_back({.config = hybrid.config});
  // Ranks without a token of the prompt, until they get new ones.
  cases.push_back({.config = small_model(), .prompt = 1, .decoded = 2 * ranks + 1});
  cases.push_back({.config = hybrid_cases()[1].config, .prompt = 1, .decoded = ranks + 1});
  cases.push_back({.config = hybrid_cases().back().config, .prompt = 2, .decoded = ranks + 1});
  return cases;
}

}  // namespace longhaul::test
