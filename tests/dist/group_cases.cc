// Host values, agree, split, Mesh.
#include <absl/strings/str_cat.h>

#include "dist/mesh.h"
#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

void host_values(Group& group) {
  const int size = group.size();
  expect(group.max(-5 - group.rank(), "max") == -5);
  expect(group.max(int64_t{1} << (40 + group.rank()), "max") == int64_t{1} << (39 + size));
  expect(group.sum(0.5 * (group.rank() + 1), "sum") == 0.25 * size * (size + 1));
  using namespace std::string_literals;
  for (int root = 0; root < size; ++root) {
    for (const std::string& text : {""s, "a"s, "with\0zero"s, std::string(70'001, 'x') + "end"}) {
      const std::string mine = group.rank() == root ? text : "to be replaced";
      expect(group.broadcast(mine, root, "text") == text);
    }
  }
}

void agree(Group& group) {
  const int size = group.size(), last = size - 1;
  group.agree(std::nullopt, "agree");

  const auto failing = [&](auto has_error) {
    std::optional<Error> mine;
    if (has_error(group.rank())) {
      mine.emplace(group.rank() == 0 ? ErrorCode::kData : ErrorCode::kNumerics,
                   absl::StrCat("broken at ", group.rank()));
    }
    return mine;
  };
  const auto one = failing([&](int rank) { return rank == last; });
  const ErrorCode code = last == 0 ? ErrorCode::kData : ErrorCode::kNumerics;
  std::string message = expect_error(code, [&] { group.agree(one, "agree"); });
  expect(message == (size == 1 ? "broken at 0" : absl::StrCat("rank ", last, ": broken at ", last)),
         message);

  if (size >= 3) {
    const auto two = failing([&](int rank) { return rank == 1 || rank == 2; });
    message = expect_error(ErrorCode::kNumerics, [&] { group.agree(two, "agree"); });
    expect(message == "rank 1: broken at 1", message);
  }
  const auto all = failing([](int) { return true; });
  message = expect_error(ErrorCode::kData, [&] { group.agree(all, "agree"); });
  expect(message == "broken at 0", message);

  group.agree(std::nullopt, "agree");  // still in step
}

void split(Group& group) {
  Stream stream;
  const int columns = 3, row = group.rank() / columns, column = group.rank() % columns;
  const auto in_row = group.split(row, -column);  // turned round by the key
  const auto in_column = group.split(column, 0);  // equal keys: by rank

  const int row_size = std::min(columns, group.size() - row * columns);
  expect(in_row->size() == row_size && in_row->rank() == row_size - 1 - column);
  for (int i = 0; i < row_size; ++i) {
    expect(in_row->world_rank(i) == group.world_rank(row * columns + row_size - 1 - i));
  }
  expect(in_column->rank() == row);
  expect(&in_row->job() == &group.job());

  // All three at once; equal operations on different groups must not meet.
  Tensor a = filled<float>(group.rank(), 30'001), b = filled<float>(group.rank(), 30'001),
         c = filled<float>(group.rank(), 30'001);
  Request in_all = group.all_reduce(stream, a, ReduceOp::kSum, "all");
  Request row_sum = in_row->all_reduce(stream, b, ReduceOp::kSum, "row");
  Request column_sum = in_column->all_reduce(stream, c, ReduceOp::kSum, "column");
  column_sum.wait(stream);
  row_sum.wait(stream);
  in_all.wait(stream);
  for (int64_t i = 0; i < 30'001; ++i) {
    int all = 0, rows = 0, cols = 0;
    for (int rank = 0; rank < group.size(); ++rank) {
      const int value = predictable(rank, i);
      all += value;
      if (rank / columns == row) rows += value;
      if (rank % columns == column) cols += value;
    }
    const size_t at = static_cast<size_t>(i);
    expect(a.span<float>()[at] == static_cast<float>(all));
    expect(b.span<float>()[at] == static_cast<float>(rows));
    expect(c.span<float>()[at] == static_cast<float>(cols));
  }

  const auto alone = in_row->split(in_row->rank(), 0);  // a split of a split
  expect(alone->size() == 1 && alone->world_rank(0) == group.world_rank(group.rank()));
  expect(alone->sum(2.0, "alone") == 2.0);
}

void mesh(Group& group) {
  const int size = group.size();
  for (int sequence = 1; sequence <= size; ++sequence) {
    if (size % sequence != 0) {
      const std::string message = expect_error(ErrorCode::kConfig, [&] {
        Mesh(group, {.data = size / sequence, .sequence = sequence});
      });
      expect_contains(message, absl::StrCat("sequence ", sequence));
      expect_contains(message, absl::StrCat("has ", size));
      continue;
    }
    Mesh mesh(group, {.data = size / sequence, .sequence = sequence});
    expect(&mesh.world() == &group);
    expect(mesh.sequence().size() == sequence && mesh.data().size() == size / sequence);
    expect(group.rank() == mesh.data_rank() * sequence + mesh.sequence_rank());
    for (int i = 0; i < sequence; ++i) {
      expect(mesh.sequence().world_rank(i) == group.world_rank(mesh.data_rank() * sequence + i));
    }
    for (int i = 0; i < size / sequence; ++i) {
      expect(mesh.data().world_rank(i) == group.world_rank(i * sequence + mesh.sequence_rank()));
    }
  }
  expect_error(ErrorCode::kConfig, [&] { Mesh(group, {.data = 0, .sequence = size}); });
}

void errors_of_trainers_reach_servers(Group& group) {
  const int size = group.size();
  for (int trainers = 1; trainers <= size; ++trainers) {
    Mesh mesh(group, {.data = 1, .sequence = trainers, .servers = size - trainers});
    std::optional<Error> error;
    if (mesh.is_trainer()) {
      error = mesh.agreed([&] {
        std::optional<Error> mine;
        if (mesh.trainers().rank() == trainers - 1) mine = Error(ErrorCode::kData, "no 7 tokens");
        mesh.trainers().agree(mine, "reading");
      });
      expect(error.has_value());
    }
    try {
      mesh.share(error, "reading");
      expect(false);
    } catch (const SharedError& shared) {
      expect(shared.code() == ErrorCode::kData);
      expect_contains(shared.what(), "no 7 tokens");
    }
    mesh.share(std::nullopt, "reading");
    // What a trainer meets alone is its own.
    if (mesh.is_trainer()) {
      expect_error(ErrorCode::kData,
                   [&] { mesh.agreed([] { fail(ErrorCode::kData, "mine alone"); }); });
    }
  }
}

// Trainers first, then servers: all that trainers do among themselves leaves servers alone.
void mesh_with_servers(Group& group) {
  const int size = group.size();
  for (int trainers = 1; trainers <= size; ++trainers) {
    const int sequence = trainers % 2 == 0 ? 2 : 1, servers = size - trainers;
    Mesh mesh(group, {.data = trainers / sequence, .sequence = sequence, .servers = servers});
    expect(mesh.is_trainer() == (group.rank() < trainers));
    expect(&mesh.world() == &group && mesh.shape().trainers() == trainers);
    if (!mesh.is_trainer()) {
      expect_error(ErrorCode::kInternal, [&] { mesh.trainers(); });
      expect_error(ErrorCode::kInternal, [&] { mesh.sequence(); });
      continue;
    }
    expect((&mesh.trainers() == &group) == (servers == 0));
    expect(mesh.trainers().size() == trainers && mesh.trainers().rank() == group.rank());
    expect(mesh.sequence().size() == sequence && mesh.data().size() == trainers / sequence);
    expect(group.rank() == mesh.data_rank() * sequence + mesh.sequence_rank());
    expect(mesh.trainers().sum(1.0, "trainers") == trainers);
    for (int i = 0; i < sequence; ++i) {
      expect(mesh.sequence().world_rank(i) == group.world_rank(mesh.data_rank() * sequence + i));
    }
    if (group.rank() == 0) expect(!mesh.agreed([] {}));
  }
  const std::string message = expect_error(
      ErrorCode::kConfig, [&] { Mesh(group, {.data = size, .sequence = 1, .servers = 3}); });
  expect_contains(message, "3 servers");
  expect_error(ErrorCode::kConfig,
               [&] { Mesh(group, {.data = size + 1, .sequence = 1, .servers = -1}); });
  expect_error(ErrorCode::kConfig,
               [&] { Mesh(group, {.data = 0, .sequence = 1, .servers = size}); });
}

}  // namespace

std::vector<Case> group_cases() {
  return {{"host_values", host_values},
          {"agree", agree},
          {"split", split},
          {"mesh", mesh},
          {"mesh_with_servers", mesh_with_servers},
          {"errors_of_trainers_reach_servers", errors_of_trainers_reach_servers}};
}

}  // namespace longhaul::dist::testing
