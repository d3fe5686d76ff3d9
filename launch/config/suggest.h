// "did you mean ...?" for names that a user mistyped.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::launch {

// The known name with the smallest edit distance (Levenshtein, with swaps of neighbours), if it is
// near enough to be what was meant. Case does not count.
std::optional<std::string> nearest(std::string_view given, const std::vector<std::string>& known);

// "; did you mean `layers`?", or "; known: a, b, c" if nothing is near.
std::string suggestion(std::string_view given, const std::vector<std::string>& known);

}  // namespace longhaul::launch
