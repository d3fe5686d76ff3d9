#include "dist/mesh.h"

#include <absl/strings/str_cat.h>

namespace longhaul::dist {

Mesh::Mesh(Group& world, MeshShape shape) : world_(world), shape_(shape) {
  if (shape.data < 1 || shape.sequence < 1 ||
      int64_t{shape.data} * shape.sequence != world.size()) {
    fail(ErrorCode::kConfig,
         absl::StrCat("the mesh of data ", shape.data, " x sequence ", shape.sequence, " needs ",
                      int64_t{shape.data} * shape.sequence, " ranks but the job has ", world.size(),
                      ": change one of the axes or the number of ranks"));
  }
  const int data_rank = world.rank() / shape.sequence;
  const int sequence_rank = world.rank() % shape.sequence;
  sequence_ = world.split(data_rank, sequence_rank);
  data_ = world.split(sequence_rank, data_rank);
}

}  // namespace longhaul::dist
