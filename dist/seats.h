// Which rank sits on which GPU.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "dist/group.h"

namespace longhaul::dist {

// What a rank tells the others. Plain bytes, the same on all ranks' machines.
struct Seat {
  std::array<char, 16> gpu = {};    // the GPU's UUID
  std::array<char, 64> node = {};   // its host's name, for messages
  std::array<char, 64> model = {};  // "NVIDIA H100 80GB HBM3", for messages
  int32_t index = 0;                // as the rank counts its GPUs
  int32_t visible = 0;              // GPUs that the rank sees
};

// Why NCCL, which takes one rank a GPU, would refuse these seats (by rank of the group); "" if it
// would not. `world_ranks` are for the message.
std::string doubly_taken(const std::vector<Seat>& seats, const std::vector<int>& world_ranks);

// Collective: the seats of all ranks.
std::vector<Seat> gather_seats(Group& group, const Seat& mine);

}  // namespace longhaul::dist
