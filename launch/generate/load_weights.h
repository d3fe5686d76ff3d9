// The parameters of a checkpoint, without the optimizer's state.
#pragma once

#include <map>
#include <string>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "parallel/shard/parameters.h"

namespace longhaul::launch {

// Collective over `group`. Each rank reads its share of every bucket as checkpoints have them (the
// accumulator type; frozen ones in the store's) and gathers the others' in the store's; the store
// is allocated, with shards() == group.size(). Throws the errors of checkpoint::load; `model`: see
// there.
void load_weights(dist::Group& group, const Context& ctx, const std::string& checkpoint,
                  const std::map<std::string, std::string>& model,
                  const parallel::ParameterStore& store);

}  // namespace longhaul::launch
