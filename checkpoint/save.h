// save() with everything that can be set; checkpoint.h has the everyday form.
#pragma once

#include "checkpoint/checkpoint.h"
#include "checkpoint/store.h"

namespace longhaul::checkpoint {

struct SaveOptions {
  int keep = 0;
  // Called on every rank before and after each change of the disk. What it throws is treated like
  // an error of the disk.
  Hook hook;
};

void save(dist::Group& world, const std::string& directory, const Info& info, const State& state,
          const SaveOptions& options);

}  // namespace longhaul::checkpoint
