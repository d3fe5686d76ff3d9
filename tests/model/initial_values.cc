#include "tests/model/initial_values.h"

#include <algorithm>
#include <numeric>

#include "tests/model/naive_llama.h"

namespace longhaul::test {

// Read from a store of its own.
std::map<std::string, std::vector<double>> initial_values(const ModelCase& c) {
  ThreadPool pool(1);
  Arena workspace("workspace", 1 << 20), values("values", 1 << 20), gradients("grads", 1 << 20);
  const Context ctx{.pool = &pool, .scratch = &workspace};
  parallel::ParameterStore store(c.options.dtype, 1);
  const auto network = model::architecture("llama").make(c.config, c.options, store);
  store.allocate(ctx, values, gradients);
  store.initialize(ctx, 3);
  std::map<std::string, std::vector<double>> result;
  for (const auto& entry : store.entries()) {
    const auto span = store.bucket_of(entry).values.rows(entry.offset, entry.size()).span<double>();
    result[entry.spec.name] = {span.begin(), span.end()};
    if (entry.spec.name != c.moved_parameter) continue;
    result[entry.spec.name][static_cast<size_t>(c.moved_element)] += c.moved_by;
  }
  return result;
}

double naive_loss(const ModelCase& c) {
  const auto values = initial_values(c);
  const auto tokens = random_tokens(c.documents.tokens(), c.config.vocabulary, 7);
  const auto labels = labels_of(tokens, c.documents);
  const auto losses = naive_llama_loss(
      c.config,
      [&](const std::string& name) -> const std::vector<double>& { return values.at(name); },
      tokens, labels, c.documents);
  const auto targets =
      std::count_if(labels.begin(), labels.end(), [](int32_t l) { return l >= 0; });
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(targets);
}

}  // namespace longhaul::test
