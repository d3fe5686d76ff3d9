// What parallel.linear_decay_bound leaves out of the states that ranks exchange.
#pragma once

#include <string>
#include <vector>

#include "launch/config/config.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::launch {

// A line for each group of consecutive linear layers that leave out the same, with the bound of its
// error, for samples of one document; none if the bound is 0 or decays are not fixed. layout: of
// the ranks that share a sample.
std::vector<std::string> decay_report(const Config& config, const parallel::TokenLayout& layout);

}  // namespace longhaul::launch
