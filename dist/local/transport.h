// The transport of run_local: one rank's door to the hub.
#pragma once

#include <memory>
#include <vector>

#include "dist/local/hub.h"
#include "dist/transport.h"

namespace longhaul::dist::local {

// `members` are the group's world ranks; `index` is this rank's place among them.
std::unique_ptr<Transport> make_transport(std::shared_ptr<Hub> hub, int64_t group,
                                          std::vector<int> members, int index);

}  // namespace longhaul::dist::local
