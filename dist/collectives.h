// The collectives as stages of messages; ALGORITHMS.md has their rounds and bytes. Every stage is a
// function of (rank, size, shapes) alone, so that all ranks make the same ones.
#pragma once

#include <memory>
#include <span>

#include "dist/reduce.h"
#include "dist/staged_operation.h"

namespace longhaul::dist {

// Which rank makes the stages, of how many.
struct Place {
  int rank = 0;
  int size = 1;
};

// A reduction's staging memory (what it has received and not yet summed) is at most this much, or
// 8 KiB per peer where there are very many.
inline constexpr int64_t kStagingBytes = int64_t{16} << 20;

std::unique_ptr<Stages> exchange(std::span<const Send> sends, std::span<const Recv> recvs);
std::unique_ptr<Stages> all_gather(Place place, ConstTensorView send, TensorView recv);
std::unique_ptr<Stages> reduce_scatter(Place place, ConstTensorView send, TensorView recv);
std::unique_ptr<Stages> all_reduce(Place place, TensorView data, ReduceOp op);
std::unique_ptr<Stages> all_to_all(Place place, std::span<const ConstTensorView> send,
                                   std::span<const TensorView> recv);
std::unique_ptr<Stages> broadcast(Place place, TensorView data, int root);
std::unique_ptr<Stages> barrier(Place place);

}  // namespace longhaul::dist
