#include "tests/kernels/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace longhaul::kernels::testing {

int64_t Corpus::length() const {
  int64_t sum = 0;
  for (int64_t document : documents) sum += document;
  return sum;
}

int64_t Corpus::document_of(int64_t position) const {
  int64_t end = 0;
  for (size_t d = 0; d < documents.size(); ++d) {
    end += documents[d];
    if (position < end) return static_cast<int64_t>(d);
  }
  return -1;
}

bool Corpus::visible(int64_t q_position, int64_t k_position) const {
  if (document_of(q_position) != document_of(k_position)) return false;
  if (causal && k_position > q_position) return false;
  return window == 0 || q_position - k_position < window;
}

namespace {

int64_t floor_div(int64_t a, int64_t b) {
  return static_cast<int64_t>(std::floor(static_cast<double>(a) / static_cast<double>(b)));
}
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// Rows whose positions lie in [begin, end), as first row and count.
std::pair<int64_t, int64_t> rows_within(const Rows& rows, int64_t begin, int64_t end) {
  int64_t first = -1, count = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    if (rows.position(r) < begin || rows.position(r) >= end) continue;
    if (first < 0) first = r;
    ++count;
  }
  return {first, count};
}

}  // namespace

std::vector<Segment> segments_of(const Corpus& corpus, const Rows& queries, const Rows& keys) {
  std::vector<Segment> result;
  int64_t begin = 0;
  for (int64_t length : corpus.documents) {
    const auto [q_row, q_len] = rows_within(queries, begin, begin + length);
    const auto [k_row, k_len] = rows_within(keys, begin, begin + length);
    begin += length;
    if (q_len == 0 || k_len == 0) continue;
    const int64_t q_pos = queries.position(q_row), k_pos = keys.position(k_row);
    Segment s{.q_row = q_row,
              .q_len = q_len,
              .k_row = k_row,
              .k_len = k_len,
              .band_lo = -kBandOpen,
              .band_hi = kBandOpen,
              .q_pos = q_pos,
              .k_pos = k_pos,
              .stride = queries.stride};
    if (corpus.causal) s.band_hi = floor_div(q_pos - k_pos, queries.stride);
    if (corpus.window > 0) s.band_lo = ceil_div(q_pos - k_pos - corpus.window + 1, queries.stride);
    result.push_back(s);
  }
  return result;
}

bool is_kept(const Dropout& dropout, int64_t global_head, int64_t q_position, int64_t k_position) {
  const auto h = random_bits(dropout.key, static_cast<uint64_t>(global_head));
  RandomKey of_row{.seed = h[0] + h[1] * (uint64_t{1} << 32),
                   .stream = h[2] + h[3] * (uint64_t{1} << 32)};
  of_row.stream += static_cast<uint64_t>(q_position);
  const auto four = random_bits(of_row, static_cast<uint64_t>(k_position / 4));
  return std::ldexp(four[static_cast<size_t>(k_position % 4)], -32) >= dropout.probability;
}

AttentionTruth attention_truth(const Corpus& corpus, const Rows& queries, const Rows& keys,
                               const AttentionShape& shape, const AttentionOptions& options,
                               const std::vector<double>& q, const std::vector<double>& k,
                               const std::vector<double>& v, const std::vector<double>& dout) {
  const double scale = options.scale, cap = options.soft_cap;
  const auto [hq, hkv, d, e, heads] = shape;
  const auto at = [](const std::vector<double>& x, int64_t i) { return x[static_cast<size_t>(i)]; };
  AttentionTruth t;
  t.out.assign(dout.size(), 0.0);
  t.dq.assign(q.size(), 0.0);
  t.dk.assign(k.size(), 0.0);
  t.dv.assign(v.size(), 0.0);
  t.lse.assign(static_cast<size_t>(hq * queries.count), -std::numeric_limits<double>::infinity());
  t.delta.assign(t.lse.size(), 0.0);
  for (int64_t h = 0; h < hq; ++h) {
    const int64_t g = (heads.q_begin + h) / heads.group - heads.kv_begin;
    for (int64_t i = 0; i < queries.count; ++i) {
      const int64_t qi = (i * hq + h) * d, oi = (i * hq + h) * e;
      std::vector<int64_t> seen;
      std::vector<double> p, derivative, factor;  // of the score by scale * q.k, and of p
      for (int64_t j = 0; j < keys.count; ++j) {
        if (!corpus.visible(queries.position(i), keys.position(j))) continue;
        double score = 0;
        for (int64_t c = 0; c < d; ++c) score += at(q, qi + c) * at(k, (j * hkv + g) * d + c);
        score *= scale;
        derivative.push_back(1);
        if (cap > 0) {
          derivative.back() = 1 / std::pow(std::cosh(score / cap), 2);
          score = cap * std::tanh(score / cap);
        }
        if (options.bias_slopes.rank() > 0) {
          const double slope = static_cast<double>(options.bias_slopes.data<float>()[h]);
          score -= slope * static_cast<double>(queries.position(i) - keys.position(j));
        }
        const double keep = 1 - options.dropout.probability;
        factor.push_back(
            is_kept(options.dropout, heads.q_begin + h, queries.position(i), keys.position(j))
                ? 1 / keep
                : 0);
        seen.push_back(j);
        p.push_back(score);
      }
      if (seen.empty()) continue;
      const double max = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& x : p) sum += x = std::exp(x - max);
      for (double& x : p) x /= sum;
      const auto row = static_cast<size_t>(h * queries.count + i);
      t.lse[row] = max + std::log(sum);
      for (size_t n = 0; n < seen.size(); ++n) {
        for (int64_t c = 0; c < e; ++c) {
          t.out[static_cast<size_t>(oi + c)] +=
              p[n] * factor[n] * at(v, (seen[n] * hkv + g) * e + c);
        }
      }
      for (int64_t c = 0; c < e; ++c) {
        const double term = at(t.out, oi + c) * at(dout, oi + c);
        t.delta[row] += term;
        t.delta_terms += term * term;
      }
      for (size_t n = 0; n < seen.size(); ++n) {
        const int64_t kj = (seen[n] * hkv + g) * d, vj = (seen[n] * hkv + g) * e;
        double dp = 0;
        for (int64_t c = 0; c < e; ++c) {
          dp += at(dout, oi + c) * at(v, vj + c);
          t.dv[static_cast<size_t>(vj + c)] += p[n] * factor[n] * at(dout, oi + c);
        }
        dp *= factor[n];
        const double ds = p[n] * (dp - t.delta[row]) * derivative[n] * scale;
        const double parts = p[n] * (std::abs(dp) + std::abs(t.delta[row])) * derivative[n] * scale;
        for (int64_t c = 0; c < d; ++c) {
          t.dq[static_cast<size_t>(qi + c)] += ds * at(k, kj + c);
          t.dk[static_cast<size_t>(kj + c)] += ds * at(q, qi + c);
          t.dq_terms += std::pow(parts * at(k, kj + c), 2);
          t.dk_terms += std::pow(parts * at(q, qi + c), 2);
        }
      }
    }
  }
  t.delta_terms = std::sqrt(t.delta_terms);
  t.dq_terms = std::sqrt(t.dq_terms);
  t.dk_terms = std::sqrt(t.dk_terms);
  return t;
}

}  // namespace longhaul::kernels::testing
