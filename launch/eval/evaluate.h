// How good a model is by position, and whether it finds what stands far away.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/group.h"
#include "launch/data/batch.h"
#include "launch/eval/passkey.h"
#include "launch/eval/report.h"
#include "launch/generate/inference.h"

namespace longhaul::launch {

// Collective over `world`, the inference's ranks: samples 0 to samples - 1 of a loader, in
// `buckets` parts of a sample's positions. The same on every rank.
LossReport loss_by_position(dist::Group& world, Inference& inference, const DataLoader& loader,
                            int64_t length, int64_t samples, int64_t buckets);

// Collective likewise: all lengths and depths, greedily. The same on every rank. `haystack`:
// tokens.
PasskeyReport passkey_retrieval(dist::Group& world, Inference& inference,
                                const Tokenizer& tokenizer, const std::vector<int32_t>& haystack,
                                const PasskeyOptions& options);

}  // namespace longhaul::launch
