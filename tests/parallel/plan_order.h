// Whether plans come to their end over a transport that takes a rank's exchanges one after the
// other, in the order of their start, and completes one only when all its messages have moved.
#pragma once

#include <string>
#include <vector>

#include "parallel/plan/plan.h"

namespace longhaul::test {

// What becomes one exchange. The executor starts neighbouring transfers of a step that are due
// together as one; a transport may make one of all that are started without a wait in between.
enum class Grouping { kByDueStep, kByStep, kUntilWait };
inline constexpr Grouping kGroupings[] = {Grouping::kByDueStep, Grouping::kByStep,
                                          Grouping::kUntilWait};

// "" if every rank comes to its end, else who is left with what.
std::string stuck(const std::vector<parallel::Plan>& plans, Grouping grouping);

}  // namespace longhaul::test
