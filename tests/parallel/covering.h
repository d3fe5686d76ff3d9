// Cases of a test over several factors: every combination with the environment variable
// LONGHAUL_FULL=1, else a subset in which every pair of values of two factors occurs.
#pragma once

#include <cstdlib>
#include <random>
#include <set>
#include <string_view>
#include <tuple>
#include <vector>

namespace longhaul::test {

using Case = std::vector<int>;  // one value index per factor

inline bool full_coverage() {
  const char* value = std::getenv("LONGHAUL_FULL");
  return value != nullptr && std::string_view(value) == "1";
}

inline std::vector<Case> all_cases(const std::vector<int>& sizes) {
  std::vector<Case> cases{{}};
  for (int size : sizes) {
    std::vector<Case> longer;
    for (const Case& begun : cases) {
      for (int value = 0; value < size; ++value) {
        longer.push_back(begun);
        longer.back().push_back(value);
      }
    }
    cases = std::move(longer);
  }
  return cases;
}

// Greedy: each case starts from a pair that is still missing and takes, of some random completions,
// the one with the most missing pairs.
inline std::vector<Case> pairwise_cases(const std::vector<int>& sizes) {
  const int factors = static_cast<int>(sizes.size());
  using Pair = std::tuple<int, int, int, int>;  // factor a, its value, factor b > a, its value
  std::set<Pair> missing;
  for (int a = 0; a < factors; ++a) {
    for (int b = a + 1; b < factors; ++b) {
      for (int x = 0; x < sizes[static_cast<size_t>(a)]; ++x) {
        for (int y = 0; y < sizes[static_cast<size_t>(b)]; ++y) missing.insert({a, x, b, y});
      }
    }
  }
  const auto pairs_of = [&](const Case& values) {
    std::vector<Pair> pairs;
    for (int a = 0; a < factors; ++a) {
      for (int b = a + 1; b < factors; ++b) {
        pairs.push_back({a, values[static_cast<size_t>(a)], b, values[static_cast<size_t>(b)]});
      }
    }
    return pairs;
  };
  std::mt19937_64 random(1);
  std::vector<Case> cases;
  while (!missing.empty()) {
    const auto [a, x, b, y] = *missing.begin();
    Case best;
    size_t best_count = 0;
    for (int attempt = 0; attempt < 50; ++attempt) {
      Case values;
      for (int size : sizes)
        values.push_back(static_cast<int>(random() % static_cast<uint64_t>(size)));
      values[static_cast<size_t>(a)] = x;
      values[static_cast<size_t>(b)] = y;
      size_t count = 0;
      for (const Pair& pair : pairs_of(values)) count += missing.count(pair);
      if (count > best_count) {
        best = values;
        best_count = count;
      }
    }
    for (const Pair& pair : pairs_of(best)) missing.erase(pair);
    cases.push_back(best);
  }
  return cases;
}

inline std::vector<Case> cases_of(const std::vector<int>& sizes) {
  return full_coverage() ? all_cases(sizes) : pairwise_cases(sizes);
}

}  // namespace longhaul::test
