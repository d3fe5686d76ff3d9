#include "dist/mesh.h"

#include <absl/strings/str_cat.h>

#include <cstdlib>

#include "dist/agreed_error.h"

namespace longhaul::dist {

Mesh::Mesh(Group& world, MeshShape shape) : world_(world), shape_(shape) {
  const int64_t wanted = int64_t{shape.data} * shape.sequence + shape.servers;
  if (shape.data < 1 || shape.sequence < 1 || shape.servers < 0 || wanted != world.size()) {
    fail(ErrorCode::kConfig,
         absl::StrCat("the mesh of data ", shape.data, " x sequence ", shape.sequence,
                      shape.servers != 0 ? absl::StrCat(" + ", shape.servers, " servers") : "",
                      " needs ", wanted, " ranks but the job has ", world.size(),
                      ": change one of the axes or the number of ranks"));
  }
  Group* trainers = &world;
  if (shape.servers > 0) {
    auto role = world.split(is_trainer() ? 0 : 1, world.rank());
    if (!is_trainer()) return;
    trainers_ = std::move(role);
    trainers = trainers_.get();
  }
  const int data_rank = world.rank() / shape.sequence;
  const int sequence_rank = world.rank() % shape.sequence;
  sequence_ = trainers->split(data_rank, sequence_rank);
  data_ = trainers->split(sequence_rank, data_rank);
}

Group& Mesh::trainers() {
  LONGHAUL_CHECK(is_trainer(), "a server is no trainer");
  return trainers_ ? *trainers_ : world_;
}

Group& Mesh::data() {
  LONGHAUL_CHECK(is_trainer(), "a server has no replica");
  return *data_;
}

Group& Mesh::sequence() {
  LONGHAUL_CHECK(is_trainer(), "a server has no sample");
  return *sequence_;
}

int Mesh::data_rank() const {
  LONGHAUL_CHECK(is_trainer(), "a server has no replica");
  return data_->rank();
}

int Mesh::sequence_rank() const {
  LONGHAUL_CHECK(is_trainer(), "a server has no sample");
  return sequence_->rank();
}

std::optional<Error> Mesh::agreed(const std::function<void()>& work_of_trainers) {
  try {
    work_of_trainers();
    return std::nullopt;
  } catch (const SharedError& error) {
    return error;
  } catch (const AgreedError& error) {
    if (error.ranks() != shape_.trainers()) throw;
    return error;
  }
}

void Mesh::share(const std::optional<Error>& of_trainers, std::string_view what) {
  if (shape_.servers == 0) {
    if (of_trainers) throw SharedError(*of_trainers);
    return;
  }
  const std::string mine =
      of_trainers ? absl::StrCat(of_trainers->exit_status(), " ", of_trainers->what()) : "";
  const std::string text = world_.broadcast(mine, 0, what);
  if (text.empty()) return;
  char* message = nullptr;
  const auto code = static_cast<ErrorCode>(std::strtol(text.c_str(), &message, 10));
  throw SharedError(Error(code, message + 1));
}

}  // namespace longhaul::dist
