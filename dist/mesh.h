// The ranks of a job as a grid with named axes, and roles. Trainers come first: the sequence axis
// varies fastest, so that it lies inside a node first: world rank = data_rank * sequence_size +
// sequence_rank. Servers, which compute attention for trainers and hold no model, come after them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "dist/group.h"

namespace longhaul::dist {

struct MeshShape {
  int data = 1;      // replicas that see different samples
  int sequence = 1;  // ranks that share one sample's tokens
  int servers = 0;   // ranks beside the trainers, data x sequence

  int trainers() const { return data * sequence; }
};

class Mesh {
 public:
  // Collective over `world`, which must outlive the mesh. Throws Error(kConfig) on every rank if
  // data x sequence + servers is not the number of ranks.
  Mesh(Group& world, MeshShape shape);

  Group& world() { return world_; }
  bool is_trainer() const { return world_.rank() < shape_.trainers(); }
  const MeshShape& shape() const { return shape_; }

  // Of a trainer; servers are in none of these.
  Group& trainers();  // all trainers; the world if there are no servers
  Group& data();      // same sequence rank, all data ranks
  Group& sequence();  // the ranks that share this rank's samples
  int data_rank() const;
  int sequence_rank() const;

  // Runs what trainers do among themselves. The error that they agree on, if they do: an
  // AgreedError of trainers(), or a SharedError. Any other is thrown on.
  std::optional<Error> agreed(const std::function<void()>& work_of_trainers);
  // Collective over the world. Throws the error that all trainers bring, if any, on all ranks, as a
  // SharedError.
  void share(const std::optional<Error>& of_trainers, std::string_view what);

 private:
  Group& world_;
  MeshShape shape_;
  std::unique_ptr<Group> trainers_;  // null without servers
  std::unique_ptr<Group> data_;
  std::unique_ptr<Group> sequence_;
};

}  // namespace longhaul::dist
