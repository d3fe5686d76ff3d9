#include "launch/bench/layout_mixes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/core/random.h"

namespace longhaul::launch {

namespace {

struct Quantile {
  double percent, tokens;
};

// Quantiles of document lengths of two public long-context mixes, as published with DistCA
// (core attention disaggregation; Apache-2.0).
constexpr std::array<Quantile, 31> kProlong{
    {{0, 575},     {1, 678},    {2, 715},      {5, 801},      {10, 919},      {15, 1025},
     {20, 1130},   {25, 1237},  {30, 1347},    {35, 1464},    {40, 1594},     {45, 1742},
     {50, 1914},   {55, 2116},  {60, 2362},    {65, 2656},    {70, 3018},     {75, 3467},
     {80, 4050},   {85, 4834},  {90, 6051},    {95, 8378},    {96, 9208},     {97, 10430},
     {98, 12309},  {99, 16270}, {99.5, 21358}, {99.9, 47398}, {99.95, 74672}, {99.99, 239610},
     {100, 340149}}};
constexpr std::array<Quantile, 31> kWlb{
    {{0, 1},       {1, 63},     {2, 129},      {5, 324},       {10, 646},       {15, 961},
     {20, 1283},   {25, 1606},  {30, 1932},    {35, 2257},     {40, 2582},      {45, 2909},
     {50, 3227},   {55, 3543},  {60, 3861},    {65, 4181},     {70, 4514},      {75, 4832},
     {80, 5156},   {85, 5470},  {90, 5784},    {95, 6110},     {96, 6173},      {97, 6236},
     {98, 10078},  {99, 26058}, {99.5, 69098}, {99.9, 119794}, {99.95, 122617}, {99.99, 124236},
     {100, 124913}}};

// Log-linear between quantiles.
double draw(std::span<const Quantile> quantiles, double u) {
  const double percent = 100 * u;
  const auto above = std::ranges::upper_bound(quantiles, percent, {}, &Quantile::percent);
  if (above == quantiles.end()) return quantiles.back().tokens;
  const Quantile &b = *above, &a = *(above - 1);
  const double t = (percent - a.percent) / (b.percent - a.percent);
  return std::exp((1 - t) * std::log(a.tokens) + t * std::log(b.tokens));
}

double uniform(double u, int64_t, int64_t) { return 1 + u * 32767; }
double prolong(double u, int64_t, int64_t) { return draw(kProlong, u); }
double wlb(double u, int64_t, int64_t) { return draw(kWlb, u); }
double one_long(double u, int64_t index, int64_t tokens) {
  return index == 0 ? static_cast<double>(tokens) / 4 : 500 + u * 3500;
}

}  // namespace

std::span<const LengthMix> length_mixes() {
  static constexpr std::array<LengthMix, 4> kMixes{
      {{"uniform", uniform}, {"prolong", prolong}, {"wlb", wlb}, {"long", one_long, false}}};
  return kMixes;
}

parallel::Documents mixed_documents(const LengthMix& mix, int64_t tokens, int64_t scale,
                                    uint64_t seed) {
  std::vector<int64_t> begins;
  for (int64_t at = 0, index = 0; at < tokens; ++index) {
    begins.push_back(at);
    const double u = random_uniform({.seed = seed, .stream = 5}, static_cast<uint64_t>(index));
    const double factor = index == 0 && !mix.scaled_first ? 1.0 : static_cast<double>(scale);
    at += std::max<int64_t>(1, std::llround(factor * mix.length(u, index, tokens)));
  }
  return parallel::Documents(tokens, std::move(begins));
}

}  // namespace longhaul::launch
