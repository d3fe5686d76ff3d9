// An error that all ranks of a group have agreed on which is not the whole job (Group::agree).
// Whoever knows what the other ranks wait for tells them: dist/mesh.h. Else it is an error like one
// that a rank alone has met.
#pragma once

#include "kernels/core/error.h"

namespace longhaul::dist {

class AgreedError : public Error {
 public:
  AgreedError(const Error& error, int ranks) : Error(error), ranks_(ranks) {}
  int ranks() const { return ranks_; }  // of the group

 private:
  int ranks_;
};

}  // namespace longhaul::dist
