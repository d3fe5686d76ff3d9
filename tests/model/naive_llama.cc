#include "tests/model/naive_llama.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/model/naive_linear.h"
#include "tests/model/naive_vectors.h"

namespace longhaul::test {

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

Vector naive_alibi_slopes(int64_t heads) {
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
  list = naive_alibi_slopes(power);
  const Vector longer = naive_alibi_slopes(2 * power);
  for (size_t i = 0; i < longer.size() && list.size() < index(heads); i += 2) {
    list.push_back(longer[i]);
  }
  return list;
}

namespace {

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

void add_to(Vector& x, const Vector& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

void norm_heads(Vector& x, const Vector& weight, double eps) {
  const auto dim = static_cast<std::ptrdiff_t>(weight.size());
  for (auto head = x.begin(); head != x.end(); head += dim) {
    std::ranges::copy(norm(Vector(head, head + dim), weight, eps), head);
  }
}

// What a layer with softmax adds to the residual stream, from its normed inputs.
std::vector<Vector> softmax_attention(const model::ModelConfig& c, const ParameterValues& values,
                                      int64_t layer, const std::vector<Vector>& inputs,
                                      const std::vector<size_t>& first) {
  const auto w = [&](const char* name) -> const Vector& {
    return values(absl::StrCat("model.layers.", layer, ".self_attn.", name));
  };
  const Vector bias = naive_alibi_slopes(c.heads);
  std::vector<Vector> q, k, v;
  for (size_t t = 0; t < inputs.size(); ++t) {
    q.push_back(times(w("q_proj.weight"), inputs[t]));
    k.push_back(times(w("k_proj.weight"), inputs[t]));
    v.push_back(times(w("v_proj.weight"), inputs[t]));
    if (c.attention.qkv_bias) {
      add_to(q.back(), w("q_proj.bias"));
      add_to(k.back(), w("k_proj.bias"));
      add_to(v.back(), w("v_proj.bias"));
    }
    if (c.attention.qk_norm) {
      norm_heads(q.back(), w("q_norm.weight"), c.norm_eps);
      norm_heads(k.back(), w("k_norm.weight"), c.norm_eps);
    }
    const auto position = static_cast<int64_t>(t - first[t]);
    if (c.attention.alibi) continue;
    rotate(q.back(), c.head_dim, position, c.rope.theta);
    rotate(k.back(), c.head_dim, position, c.rope.theta);
  }
  std::vector<Vector> outputs;
  for (size_t t = 0; t < inputs.size(); ++t) {
    Vector out(index(c.heads * c.head_dim));
    for (int64_t head = 0; head < c.heads; ++head) {
      const size_t qo = index(head * c.head_dim);
      const size_t ko = index(head / (c.heads / c.kv_heads) * c.head_dim);
      Vector p;  // of the tokens from first[t] on
      double sum = c.attention.sinks ? std::exp(w("sinks")[index(head)]) : 0;
      for (size_t s = first[t]; s < inputs.size() && first[s] == first[t]; ++s) {
        const auto window = index(c.attention.sliding_window);
        const bool recent = s <= t && (window == 0 || t - s < window);
        if (!recent && s - first[t] >= index(c.attention.prefix_length)) {
          p.push_back(0);
          continue;
        }
        double score = 0;
        for (size_t d = 0; d < index(c.head_dim); ++d) score += q[t][qo + d] * k[s][ko + d];
        score /= std::sqrt(static_cast<double>(c.head_dim));
        if (const double cap = c.attention.soft_cap; cap > 0) score = cap * std::tanh(score / cap);
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
    outputs.push_back(times(w("o_proj.weight"), out));
    if (c.attention.output_bias) add_to(outputs.back(), w("o_proj.bias"));
  }
  return outputs;
}

Vector mlp(const model::ModelConfig& c, const ParameterValues& values, int64_t layer,
           const Vector& x) {
  const auto w = [&](const char* name) -> const Vector& {
    return values(absl::StrCat("model.layers.", layer, ".mlp.", name, ".weight"));
  };
  const Vector up = times(w("up_proj"), x);
  Vector gate = times(w("gate_proj"), x);
  for (size_t i = 0; i < gate.size(); ++i) {
    const bool silu = c.mlp_gate == kernels::Activation::kSilu;
    gate[i] *= up[i] / (silu ? 1.0 + std::exp(-gate[i]) : 1.0);
  }
  return times(w("down_proj"), gate);
}

// x + f(norm(x)), or with a residual scale norm(x) * scale + f(norm(x)).
void add_branch(const model::ModelConfig& c, Vector& x, const Vector& normed,
                const Vector& branch) {
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = (c.residual_scale > 0 ? c.residual_scale * normed[i] : x[i]) + branch[i];
  }
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
  const auto normed = [&](const Vector& x, const std::string& name) {
    const bool weighted = c.norm == model::NormKind::kRms;
    return norm(x, weighted ? values(name) : Vector(x.size(), 1.0), c.norm_eps);
  };
  std::vector<Vector> x;
  const Vector& table = values("model.embed_tokens.weight");
  for (int32_t token : tokens) {
    const auto* row = &table[index(token * c.width)];
    x.emplace_back(row, row + c.width);
    if (!c.scale_embeddings) continue;
    for (double& value : x.back()) value *= std::sqrt(static_cast<double>(c.width));
  }
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const bool linear = !c.pattern.empty() && c.pattern[index(layer) % c.pattern.size()] == 'L';
    std::vector<Vector> inputs;
    for (const Vector& token : x)
      inputs.push_back(normed(token, prefix + "input_layernorm.weight"));
    const std::vector<Vector> mixed = linear
                                          ? naive_linear_attention(c, values, layer, inputs, first)
                                          : softmax_attention(c, values, layer, inputs, first);
    for (size_t t = 0; t < x.size(); ++t) {
      add_branch(c, x[t], inputs[t], mixed[t]);
      const Vector h = normed(x[t], prefix + "post_attention_layernorm.weight");
      add_branch(c, x[t], h, mlp(c, values, layer, h));
    }
  }
  const Vector& output = values(c.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  std::vector<double> losses(tokens.size());
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (labels[t] < 0) continue;
    const Vector logits = times(output, normed(x[t], "model.norm.weight"));
    double sum = 0;
    for (double logit : logits) sum += std::exp(logit);
    losses[t] = std::log(sum) - logits[index(labels[t])];
  }
  return losses;
}

}  // namespace longhaul::test
