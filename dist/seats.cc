#include "dist/seats.h"

#include <absl/strings/str_cat.h>

#include <cstring>
#include <map>

namespace longhaul::dist {
namespace {

std::string text(const std::array<char, 64>& chars) {
  return std::string(chars.data(), strnlen(chars.data(), chars.size()));
}

}  // namespace

std::string doubly_taken(const std::vector<Seat>& seats, const std::vector<int>& world_ranks) {
  std::map<std::array<char, 16>, size_t> taken;
  for (size_t i = 0; i < seats.size(); ++i) {
    const auto [other, first] = taken.emplace(seats[i].gpu, i);
    if (first) continue;
    const Seat& seat = seats[i];
    return absl::StrCat("ranks ", world_ranks[other->second], " and ", world_ranks[i],
                        " both use GPU ", seat.index, " (", text(seat.model), ") of node ",
                        text(seat.node), ", and NCCL takes one rank per GPU: start at most ",
                        seat.visible, seat.visible == 1 ? " rank" : " ranks",
                        " per node, or set parallel.gpu_transport: HOST");
  }
  return "";
}

std::vector<Seat> gather_seats(Group& group, const Seat& mine) {
  static_assert(sizeof(Seat) % sizeof(int32_t) == 0);
  constexpr auto kWords = static_cast<int64_t>(sizeof(Seat) / sizeof(int32_t));
  Stream stream;
  std::vector<Seat> seats(static_cast<size_t>(group.size()));
  const ConstTensorView send(reinterpret_cast<const std::byte*>(&mine), DType::kI32, {kWords});
  const TensorView recv(reinterpret_cast<std::byte*>(seats.data()), DType::kI32,
                        {group.size() * kWords});
  group.all_gather(stream, send, recv, "GPUs").wait(stream);
  return seats;
}

}  // namespace longhaul::dist
