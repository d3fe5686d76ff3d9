#include "model/linear_config.h"

#include <array>
#include <bit>
#include <cmath>

#include "kernels/core/error.h"

namespace longhaul::model {

namespace {

using kernels::Activation;

constexpr std::array kVariants{
    Named<LinearVariant>{"lightning", LinearVariant::kLightning},
    Named<LinearVariant>{"retention", LinearVariant::kRetention},
    Named<LinearVariant>{"basic", LinearVariant::kBasic},
    Named<LinearVariant>{"gla", LinearVariant::kGla},
    Named<LinearVariant>{"gated_delta", LinearVariant::kGatedDelta},
};
constexpr std::array kSlopes{
    Named<Slopes>{"alibi", Slopes::kAlibi},
    Named<Slopes>{"transnormer", Slopes::kTransNormer},
    Named<Slopes>{"transnormer_paper", Slopes::kTransNormerPaper},
};
constexpr std::array kFeatures{
    Named<Activation>{"none", Activation::kIdentity},
    Named<Activation>{"silu", Activation::kSilu},
};
constexpr std::array kGates{
    Named<std::optional<Activation>>{"none", std::nullopt},
    Named<std::optional<Activation>>{"silu", Activation::kSilu},
    Named<std::optional<Activation>>{"sigmoid", Activation::kSigmoid},
    Named<std::optional<Activation>>{"identity", Activation::kIdentity},
};
constexpr std::array kNorms{
    Named<OutputNorm>{"per_head", OutputNorm::kPerHead},
    Named<OutputNorm>{"all_heads", OutputNorm::kAllHeads},
    Named<OutputNorm>{"simple", OutputNorm::kSimple},
};

// 2^(-8 i / n) for i = 1 .. n, n a power of two; else those of the power below, then every other
// one of the power above, from the first on.
std::vector<double> geometric(int64_t heads) {
  const auto below = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<double> slopes;
  const auto add = [&](int64_t index, int64_t of) {
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(index) / static_cast<double>(of)));
  };
  for (int64_t i = 1; i <= below; ++i) add(i, below);
  for (int64_t i = 1; static_cast<int64_t>(slopes.size()) < heads; i += 2) add(i, 2 * below);
  return slopes;
}

std::vector<double> lightning_slopes(Slopes formula, int64_t heads, int64_t layer, int64_t layers) {
  const auto l = static_cast<double>(layer), all = static_cast<double>(layers);
  if (formula == Slopes::kTransNormerPaper) {
    std::vector<double> slopes;
    for (int64_t h = 0; h < heads; ++h) {
      slopes.push_back(8.0 * static_cast<double>(h) / static_cast<double>(heads) * (1 - l / all));
    }
    return slopes;
  }
  std::vector<double> slopes = geometric(heads);
  if (formula == Slopes::kTransNormer) {
    const double before = layers > 1 ? l / (all - 1) : 0.0;
    for (double& slope : slopes) slope *= 1 - before + 1e-5;
  }
  return slopes;
}

}  // namespace

std::span<const Named<LinearVariant>> linear_variants() { return kVariants; }
std::span<const Named<Slopes>> slope_formulas() { return kSlopes; }
std::span<const Named<Activation>> features() { return kFeatures; }
std::span<const Named<std::optional<Activation>>> output_gates() { return kGates; }
std::span<const Named<OutputNorm>> output_norms() { return kNorms; }

std::vector<double> linear_slopes(const LinearConfig& config, int64_t heads, int64_t layer,
                                  int64_t layers) {
  switch (config.kind) {
    case LinearVariant::kLightning:
      return lightning_slopes(config.slopes, heads, layer, layers);
    case LinearVariant::kRetention: {
      std::vector<double> slopes;
      for (int64_t h = 0; h < heads; ++h) {
        slopes.push_back(-std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
      }
      return slopes;
    }
    case LinearVariant::kBasic:
      return std::vector<double>(static_cast<size_t>(heads), 0.0);
    case LinearVariant::kGla:
    case LinearVariant::kGatedDelta:
      break;
  }
  check_failed(__FILE__, __LINE__, "gated variants have no slopes");
}

}  // namespace longhaul::model
