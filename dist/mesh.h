// The ranks of a job as a grid with named axes. The sequence axis varies fastest, so that it lies
// inside a node first: world rank = data_rank * sequence_size + sequence_rank.
#pragma once

#include <memory>

#include "dist/group.h"

namespace longhaul::dist {

struct MeshShape {
  int data = 1;      // replicas that see different samples
  int sequence = 1;  // ranks that share one sample's tokens
};

class Mesh {
 public:
  // Collective over `world`, which must outlive the mesh. Throws Error(kConfig) on every rank if
  // data x sequence is not the number of ranks.
  Mesh(Group& world, MeshShape shape);

  Group& world() { return world_; }
  Group& data() { return *data_; }          // same sequence rank, all data ranks
  Group& sequence() { return *sequence_; }  // the ranks that share this rank's samples
  const MeshShape& shape() const { return shape_; }
  int data_rank() const { return data_->rank(); }
  int sequence_rank() const { return sequence_->rank(); }

 private:
  Group& world_;
  MeshShape shape_;
  std::unique_ptr<Group> data_;
  std::unique_ptr<Group> sequence_;
};

}  // namespace longhaul::dist
