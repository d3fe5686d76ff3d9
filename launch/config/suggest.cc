#include "launch/config/suggest.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace longhaul::launch {
namespace {

// Optimal string alignment distance.
int64_t edit_distance(const std::string& a, const std::string& b) {
  const size_t rows = a.size() + 1, columns = b.size() + 1;
  std::vector<std::vector<int64_t>> d(rows, std::vector<int64_t>(columns));
  for (size_t i = 0; i < rows; ++i) d[i][0] = static_cast<int64_t>(i);
  for (size_t j = 0; j < columns; ++j) d[0][j] = static_cast<int64_t>(j);
  for (size_t i = 1; i < rows; ++i) {
    for (size_t j = 1; j < columns; ++j) {
      const int64_t replaced = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, replaced});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[rows - 1][columns - 1];
}

std::string lower(std::string_view text) { return absl::AsciiStrToLower(std::string(text)); }

}  // namespace

std::optional<std::string> nearest(std::string_view given, const std::vector<std::string>& known) {
  const std::string wanted = lower(given);
  std::optional<std::string> best;
  int64_t best_distance = 0;
  for (const std::string& name : known) {
    const int64_t distance = edit_distance(wanted, lower(name));
    if (!best || distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  const auto longest = best ? static_cast<int64_t>(std::max(best->size(), wanted.size())) : 0;
  if (best_distance * 2 > longest) return std::nullopt;
  return best;
}

std::string suggestion(std::string_view given, const std::vector<std::string>& known) {
  if (const auto near = nearest(given, known)) return absl::StrCat("; did you mean `", *near, "`?");
  return absl::StrCat("; known: ", absl::StrJoin(known, ", "));
}

}  // namespace longhaul::launch
