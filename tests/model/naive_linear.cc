#include "tests/model/naive_linear.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/model/naive_vectors.h"

namespace longhaul::test {

namespace {

using kernels::Activation;
using model::LinearVariant;
using model::OutputNorm;
using model::Slopes;

double act(Activation activation, double x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kLogSigmoid:
      break;
  }
  return std::nan("");
}

// What a state keeps of itself from token to token, by the published formulas.
double kept(const model::ModelConfig& c, int64_t layer, int64_t head, int64_t heads) {
  const auto h = static_cast<double>(head), count = static_cast<double>(heads);
  const auto l = static_cast<double>(layer), layers = static_cast<double>(c.layers);
  switch (c.linear.kind) {
    case LinearVariant::kRetention:
      return 1 - std::pow(2.0, -5 - h);
    case LinearVariant::kLightning:
      break;
    default:
      return 1;
  }
  const double alibi = naive_alibi_slopes(heads)[index(head)];
  switch (c.linear.slopes) {
    case Slopes::kAlibi:
      return std::exp(-alibi);
    case Slopes::kTransNormer:
      return std::exp(-alibi * (1 - (layers > 1 ? l / (layers - 1) : 0) + 1e-5));
    case Slopes::kTransNormerPaper:
      return std::exp(-(8 * h / count) * (1 - l / layers));
  }
  return std::nan("");
}

// TransNormerLLM's relative positions: each element d of head h turns with 10000^(-2 (h D + d) / (H
// D)), and both its coordinates are kept, cosines first.
Vector turned(const Vector& x, int64_t heads, int64_t dim, int64_t position) {
  Vector y(2 * x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t head = i / index(dim), d = i % index(dim);
    const double angle =
        static_cast<double>(position) *
        std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(heads * dim));
    y[head * index(2 * dim) + d] = x[i] * std::cos(angle);
    y[head * index(2 * dim) + index(dim) + d] = x[i] * std::sin(angle);
  }
  return y;
}

// Each head, up to what keeps zeros finite: sqrt(dim x 1e-6).
void unit_length(Vector& x, int64_t dim) {
  for (size_t head = 0; head < x.size(); head += index(dim)) {
    double squares = static_cast<double>(dim) * 1e-6;
    for (size_t d = 0; d < index(dim); ++d) squares += x[head + d] * x[head + d];
    for (size_t d = 0; d < index(dim); ++d) x[head + d] /= std::sqrt(squares);
  }
}

}  // namespace

std::vector<Vector> naive_linear_attention(const model::ModelConfig& c,
                                           const ParameterValues& values, int64_t layer,
                                           const std::vector<Vector>& inputs,
                                           const std::vector<size_t>& first) {
  const auto w = [&](const char* name) -> const Vector& {
    return values(absl::StrCat("model.layers.", layer, ".linear_attn.", name, ".weight"));
  };
  const model::LinearConfig& linear = c.linear;
  const int64_t heads = linear.heads > 0 ? linear.heads : c.heads;
  const int64_t dim = linear.head_dim > 0 ? linear.head_dim : c.head_dim;
  bool lrpe = false;
  for (const int64_t listed : linear.lrpe_layers) lrpe = lrpe || listed == layer;
  const int64_t key_dim = lrpe ? 2 * dim : dim;

  const auto projected = [&](const char* name, const Vector& x, Activation activation) {
    Vector y = times(w(name), x);
    for (double& value : y) value = act(activation, value);
    return y;
  };
  const bool gla = linear.kind == LinearVariant::kGla;
  const bool delta = linear.kind == LinearVariant::kGatedDelta;
  const auto plain = [&](const char* name) -> const Vector& {
    return values(absl::StrCat("model.layers.", layer, ".linear_attn.", name));
  };
  std::vector<Vector> outputs;
  Vector state;
  for (size_t t = 0; t < inputs.size(); ++t) {
    const Vector& x = inputs[t];
    Vector q = projected("q_proj", x, linear.feature), k = projected("k_proj", x, linear.feature);
    const Vector v = projected("v_proj", x, linear.value_feature);
    if (delta) {
      unit_length(q, dim);
      unit_length(k, dim);
    }
    if (lrpe) {
      const auto position = static_cast<int64_t>(t - first[t]);
      q = turned(q, heads, dim, position);
      k = turned(k, heads, dim, position);
    }
    // What each key dimension of a head keeps of the state, and how strongly a token is written.
    Vector keeps(index(heads * key_dim), 1.0), beta(index(heads), 1.0);
    if (gla) {
      keeps = times(w("gk_proj.1"), times(w("gk_proj.0"), x));
      for (size_t i = 0; i < keeps.size(); ++i) {
        const double gate = 1 / (1 + std::exp(-keeps[i] - plain("gk_proj.1.bias")[i]));
        keeps[i] = std::pow(gate, 1.0 / 16);
      }
    }
    if (delta) {
      const Vector a = times(w("a_proj"), x), b = times(w("b_proj"), x);
      for (int64_t h = 0; h < heads; ++h) {
        const size_t i = index(h);
        beta[i] = 1 / (1 + std::exp(-b[i]));
        const double step = std::log(1 + std::exp(a[i] + plain("dt_bias")[i]));
        for (int64_t d = 0; d < key_dim; ++d) {
          keeps[index(h * key_dim + d)] = std::exp(-std::exp(plain("A_log")[i]) * step);
        }
      }
    }
    if (first[t] == t) state.assign(index(heads * key_dim * dim), 0.0);
    Vector out(index(heads * dim));
    for (int64_t h = 0; h < heads; ++h) {
      const double decay = gla || delta ? 1 : kept(c, layer, h, heads);
      const auto at = [&](int64_t i, int64_t j) -> double& {
        return state[index((h * key_dim + i) * dim + j)];
      };
      for (int64_t j = 0; j < dim; ++j) {
        double before = 0;  // what the state holds for this key
        for (int64_t i = 0; i < key_dim; ++i) {
          at(i, j) *= decay * keeps[index(h * key_dim + i)];
          before += at(i, j) * k[index(h * key_dim + i)];
        }
        const double written =
            delta ? beta[index(h)] * (v[index(h * dim + j)] - before) : v[index(h * dim + j)];
        for (int64_t i = 0; i < key_dim; ++i) {
          at(i, j) += k[index(h * key_dim + i)] * written;
          out[index(h * dim + j)] += at(i, j) * q[index(h * key_dim + i)];
        }
      }
    }
    if (linear.norm == OutputNorm::kPerHead) {
      for (int64_t h = 0; h < heads; ++h) {
        const auto begin = out.begin() + h * dim;
        const Vector normed = norm({begin, begin + dim}, w("o_norm"), c.norm_eps);
        std::copy(normed.begin(), normed.end(), begin);
      }
    } else {
      const Vector ones(out.size(), 1.0);
      out = norm(out, linear.norm == OutputNorm::kAllHeads ? w("o_norm") : ones, c.norm_eps);
    }
    if (linear.gate) {
      const Vector gate = projected("g_proj", x, *linear.gate);
      for (size_t i = 0; i < out.size(); ++i) out[i] *= gate[i];
    }
    outputs.push_back(times(w("o_proj"), out));
  }
  return outputs;
}

}  // namespace longhaul::test
