// Outputs divided by their normaliser, as in "Transformers are RNNs" (Katharopoulos et al. 2020):
//
//   o_i = sum over j <= i of a^(i-j) (q_i . k_j) v_j / z_i,    z_i = sum of a^(i-j) (q_i . k_j)
//
// The engine has no code for it: z is the output of a column of values that are 1, and the quotient
// is each row's own. This holds it to that, over ranks, with the gradients.
#include <cmath>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/parallel/linear_attention_threads.h"

namespace longhaul::test {
namespace {

constexpr int64_t kValues = 4;  // columns of values beside that of ones

struct Normalised {
  std::vector<double> out, z;  // [T, H, kValues], [T, H]
};

// Pair by pair.
Normalised naive(const LinearCase& c, const LinearInputs& x) {
  const std::vector<double> slopes = slopes_of(c);
  const auto at = [&](int64_t t, int64_t h, int64_t dim) {
    return static_cast<size_t>((t * c.heads + h) * dim);
  };
  Normalised result{.out = std::vector<double>(at(c.tokens, 0, kValues)),
                    .z = std::vector<double>(at(c.tokens, 0, 1))};
  for (int64_t i = 0; i < c.tokens; ++i) {
    for (int64_t h = 0; h < c.heads; ++h) {
      double* out = &result.out[at(i, h, kValues)];
      double& z = result.z[at(i, h, 1)];
      for (int64_t j = c.documents.begins()[static_cast<size_t>(c.documents.at(i))]; j <= i; ++j) {
        double score = std::exp(-slopes[static_cast<size_t>(h)] * static_cast<double>(i - j));
        double product = 0;
        for (int64_t d = 0; d < c.head_dim; ++d) {
          const auto s = static_cast<size_t>(d);
          product += x.q[at(i, h, c.head_dim) + s] * x.k[at(j, h, c.head_dim) + s];
        }
        score *= product;
        z += score;
        for (int64_t e = 0; e < kValues; ++e) {
          out[e] += score * x.v[at(j, h, c.value_dim) + static_cast<size_t>(e)];
        }
      }
      for (int64_t e = 0; e < kValues; ++e) out[e] /= z;
    }
  }
  return result;
}

// What the rows of all ranks are together, [T, of_row], from each rank's.
std::vector<double> gathered(const LinearCase& c, const std::vector<LinearResult>& results,
                             std::vector<double> LinearOutputs::*member, int64_t of_row) {
  std::vector<double> all(static_cast<size_t>(c.tokens * of_row));
  const parallel::TokenLayout layout = layout_of(c, static_cast<int>(results.size()));
  for (size_t r = 0; r < results.size(); ++r) {
    const std::vector<double>& rows = results[r].outputs.*member;
    int64_t row = 0;
    for (const int64_t position : layout.positions(static_cast<int>(r))) {
      std::copy_n(rows.begin() + row++ * of_row, of_row, all.begin() + position * of_row);
    }
  }
  return all;
}

double product(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

TEST(LinearAttentionNormaliser, IsAColumnOfValues) {
  for (const char* method : {"all_gather", "ring"}) {
    const LinearCase c{.method = method,
                       .tokens = 47,
                       .heads = 3,
                       .head_dim = 5,
                       .value_dim = kValues + 1,
                       .documents = parallel::Documents(47, {0, 9, 31})};
    SCOPED_TRACE(method);
    LinearInputs x = inputs_of(c, 11);
    for (auto* positive : {&x.q, &x.k}) {  // as a feature map makes them, so that no z is 0
      for (double& value : *positive) value = std::abs(value) + 1.0 / 64;
    }
    for (size_t i = kValues; i < x.v.size(); i += kValues + 1) x.v[i] = 1;
    const std::vector<double> dout = x.dout;  // of the quotients; its last column goes unused
    const Normalised truth = naive(c, x);
    // The gradient of quotients, to numerators and denominators.
    for (size_t row = 0; row < truth.z.size(); ++row) {
      double sum = 0;
      for (size_t e = 0; e < kValues; ++e) {
        double& numerator = x.dout[row * (kValues + 1) + e];
        sum += numerator * truth.out[row * kValues + e];
        numerator /= truth.z[row];
      }
      x.dout[row * (kValues + 1) + kValues] = -sum / truth.z[row];
    }
    const std::vector<LinearResult> results = results_of(c, x, 3);

    const std::vector<double> out =
        gathered(c, results, &LinearOutputs::out, c.heads * c.value_dim);
    for (size_t row = 0; row < truth.z.size(); ++row) {
      for (size_t e = 0; e < kValues; ++e) {
        EXPECT_NEAR(out[row * (kValues + 1) + e] / out[row * (kValues + 1) + kValues],
                    truth.out[row * kValues + e], 1e-12);
      }
    }

    // Gradients, by how the naive loss changes in some direction.
    const auto loss = [&](const LinearInputs& at) {
      const Normalised o = naive(c, at);
      double sum = 0;
      for (size_t row = 0; row < o.z.size(); ++row) {
        for (size_t e = 0; e < kValues; ++e) {
          sum += dout[row * (kValues + 1) + e] * o.out[row * kValues + e];
        }
      }
      return sum;
    };
    std::mt19937_64 random(3);
    std::normal_distribution<double> normal;
    const auto check = [&](std::vector<double> LinearInputs::*input,
                           std::vector<double> LinearOutputs::*gradient, int64_t of_row) {
      std::vector<double> direction((x.*input).size());
      for (size_t i = 0; i < direction.size(); ++i) {
        const bool fixed = input == &LinearInputs::v && i % (kValues + 1) == kValues;
        direction[i] = fixed ? 0 : normal(random);
      }
      constexpr double kStep = 1e-5;
      double change = 0;
      for (const double sign : {1.0, -1.0}) {
        LinearInputs moved = x;
        for (size_t i = 0; i < direction.size(); ++i) {
          (moved.*input)[i] += sign * kStep * direction[i];
        }
        change += sign * loss(moved) / (2 * kStep);
      }
      const double expected = product(direction, gathered(c, results, gradient, of_row));
      EXPECT_NEAR(change, expected, 1e-7 * std::max(1.0, std::abs(expected)));
      EXPECT_GT(std::abs(expected), 1e-3);
    };
    check(&LinearInputs::q, &LinearOutputs::dq, c.heads * c.head_dim);
    check(&LinearInputs::k, &LinearOutputs::dk, c.heads * c.head_dim);
    check(&LinearInputs::v, &LinearOutputs::dv, c.heads * c.value_dim);
  }
}

}  // namespace
}  // namespace longhaul::test
