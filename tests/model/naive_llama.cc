#include "tests/model/naive_llama.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace longhaul::test {

namespace {

using Vector = std::vector<double>;

size_t index(int64_t i) { return static_cast<size_t>(i); }

// y = W x, W [out, in] row-major.
Vector times(const Vector& w, const Vector& x) {
  Vector y(w.size() / x.size());
  for (size_t o = 0; o < y.size(); ++o) {
    for (size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
  }
  return y;
}

Vector norm(const Vector& x, const Vector& weight, double eps) {
  double squares = 0;
  for (double value : x) squares += value * value;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

// Rotates each head's pairs (d, d + dim/2) as complex numbers.
void rotate(Vector& x, int64_t dim, int64_t position, double theta) {
  const int64_t half = dim / 2;
  for (size_t head = 0; head < x.size() / index(dim); ++head) {
    for (int64_t d = 0; d < half; ++d) {
      const double angle =
          static_cast<double>(position) *
          std::exp(-std::log(theta) * 2.0 * static_cast<double>(d) / static_cast<double>(dim));
      double& re = x[head * index(dim) + index(d)];
      double& im = x[head * index(dim) + index(d + half)];
      const double r = re * std::cos(angle) - im * std::sin(angle);
      im = re * std::sin(angle) + im * std::cos(angle);
      re = r;
    }
  }
}

// ALiBi's slopes as the paper's code makes them, by recursion.
Vector slopes(int64_t heads) {
  const auto log = static_cast<int64_t>(std::log2(static_cast<double>(heads)));
  const int64_t power = int64_t{1} << log;
  Vector list;
  if (power == heads) {
    const double start = std::pow(2.0, -std::pow(2.0, -(static_cast<double>(log) - 3)));
    for (int64_t i = 0; i < heads; ++i) {
      list.push_back(start * std::pow(start, static_cast<double>(i)));
    }
    return list;
  }
  list = slopes(power);
  const Vector longer = slopes(2 * power);
  for (size_t i = 0; i < longer.size() && list.size() < index(heads); i += 2) {
    list.push_back(longer[i]);
  }
  return list;
}

void add(Vector& x, const Vector& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace

std::vector<double> naive_llama_loss(const model::ModelConfig& c, const ParameterValues& values,
                                     const std::vector<int32_t>& tokens,
                                     const std::vector<int32_t>& labels,
                                     const parallel::Documents& documents) {
  // First token of each token's document.
  std::vector<size_t> first(tokens.size());
  for (size_t t = 0, begin = 0; t < tokens.size(); ++t) {
    for (int64_t b : documents.begins()) {
      if (index(b) == t) begin = t;
    }
    first[t] = begin;
  }
  const Vector bias = slopes(c.heads);
  const auto sinks = [&](int64_t layer) -> const Vector& {
    return values(absl::StrCat("model.layers.", layer, ".self_attn.sinks"));
  };
  std::vector<Vector> x;
  const Vector& table = values("model.embed_tokens.weight");
  for (int32_t token : tokens) {
    const auto* row = &table[index(token * c.width)];
    x.emplace_back(row, row + c.width);
  }
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const auto w = [&](const char* name) -> const Vector& {
      return values(absl::StrCat("model.layers.", layer, ".", name, ".weight"));
    };
    std::vector<Vector> q, k, v;
    for (size_t t = 0; t < x.size(); ++t) {
      const Vector h = norm(x[t], w("input_layernorm"), c.norm_eps);
      q.push_back(times(w("self_attn.q_proj"), h));
      k.push_back(times(w("self_attn.k_proj"), h));
      v.push_back(times(w("self_attn.v_proj"), h));
      const auto position = static_cast<int64_t>(t - first[t]);
      if (c.attention.alibi) continue;
      rotate(q.back(), c.head_dim, position, c.rope.theta);
      rotate(k.back(), c.head_dim, position, c.rope.theta);
    }
    for (size_t t = 0; t < x.size(); ++t) {
      Vector out(index(c.heads * c.head_dim));
      for (int64_t head = 0; head < c.heads; ++head) {
        const size_t qo = index(head * c.head_dim);
        const size_t ko = index(head / (c.heads / c.kv_heads) * c.head_dim);
        Vector p;  // of the tokens from first[t] on
        double sum = c.attention.sinks ? std::exp(sinks(layer)[index(head)]) : 0;
        for (size_t s = first[t]; s < x.size() && first[s] == first[t]; ++s) {
          const auto window = index(c.attention.sliding_window);
          const bool recent = s <= t && (window == 0 || t - s < window);
          if (!recent && s - first[t] >= index(c.attention.prefix_length)) {
            p.push_back(0);
            continue;
          }
          double score = 0;
          for (size_t d = 0; d < index(c.head_dim); ++d) score += q[t][qo + d] * k[s][ko + d];
          score /= std::sqrt(static_cast<double>(c.head_dim));
          if (const double cap = c.attention.soft_cap; cap > 0)
            score = cap * std::tanh(score / cap);
          if (c.attention.alibi) score -= bias[index(head)] * static_cast<double>(t - s);
          p.push_back(std::exp(score));
          sum += p.back();
        }
        for (size_t s = 0; s < p.size(); ++s) {
          for (size_t d = 0; d < index(c.head_dim); ++d) {
            out[qo + d] += p[s] / sum * v[first[t] + s][ko + d];
          }
        }
      }
      add(x[t], times(w("self_attn.o_proj"), out));
      const Vector h = norm(x[t], w("post_attention_layernorm"), c.norm_eps);
      Vector gate = times(w("mlp.gate_proj"), h);
      const Vector up = times(w("mlp.up_proj"), h);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
      add(x[t], times(w("mlp.down_proj"), gate));
    }
  }
  const Vector& output = values(c.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  std::vector<double> losses(tokens.size());
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (labels[t] < 0) continue;
    const Vector logits = times(output, norm(x[t], values("model.norm.weight"), c.norm_eps));
    double sum = 0;
    for (double logit : logits) sum += std::exp(logit);
    losses[t] = std::log(sum) - logits[index(labels[t])];
  }
  return losses;
}

}  // namespace longhaul::test
