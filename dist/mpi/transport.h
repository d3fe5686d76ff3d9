// The MPI transport: nonblocking messages on communicators of our own.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "dist/slab_window.h"
#include "dist/transport.h"

namespace longhaul::dist::mpi {

// MPI counts in int: a message travels in chunks of at most this many bytes. A message ends with
// the first chunk that is not full (possibly empty), which is how a difference in size is noticed
// even between whole multiples.
inline constexpr int64_t kChunkBytes = int64_t{1} << 30;

// Over a duplicate of `communicator`; collective.
std::unique_ptr<Transport> make_transport(MPI_Comm communicator, int64_t chunk_bytes = kChunkBytes);

// Error(kCommunication) with MPI's description if `code` is not MPI_SUCCESS.
void check(int code, const char* call);

// Shared memory of the ranks on this node; collective over `communicator`. Null for ranks on other
// nodes. If one rank of a node fails, it throws and the others of the node return no slabs at all.
std::vector<Slab> share_slabs(MPI_Comm communicator, const SlabLayout& layout);

}  // namespace longhaul::dist::mpi
