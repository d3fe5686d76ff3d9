// Device tensors over NCCL: GPU to GPU, without the host's memory.
//
// One communicator per group, made with an id that travels over the group's own transport, and one
// high-priority stream per communicator, so that transfers overlap with what the caller's streams
// compute: an operation waits there for the caller's stream as it was at the start, and the stream
// given to Request::wait waits for the operation, both on the device. group.h says what differs
// from the host's transports; in particular
//   - a group's operations run in the order of their start, one after the other. Exchanges that are
//     started without a test, wait or poll between them are one NCCL group, in which all messages
//     move together: so a plan step may start its sends and its receives apart. Messages to oneself
//     must have both their sides in one such group.
//   - sums are made in an order of NCCL's, the same for the same ranks, topology and NCCL version.
//   - the counters hold the bytes that dist/ALGORITHMS.md gives for the operation, which is what
//     the plan counts; what NCCL puts on the wires may differ. Time in which a stream waits on the
//     device is not among the waited seconds.
//
// Communicators are non-blocking and are asked for errors by everything that polls. An operation
// has the job's deadline from when its turn has come on the device. At the deadline, or when NCCL
// reports an error, the communicator is aborted and Error(kCommunication) names the rank, the step,
// the place, the operation and its peers.
#pragma once

#include <memory>
#include <string>

#include "dist/device_transport.h"
#include "dist/group.h"

namespace longhaul::dist {

// "" where this binary can use NCCL, else the reason: it was built without, or there is no GPU.
std::string why_no_nccl();
// "NCCL 2.28.9", or "" in builds without.
std::string nccl_version();

// Collective over `group`, which must outlive the transport; then Group::use(). Every rank passes
// its own device. Throws Error(kEnvironment), the same on all ranks, if NCCL cannot be used or if
// two ranks have the same GPU, naming them; Error(kCommunication) if the communicator cannot be
// made by the job's deadline.
std::unique_ptr<DeviceTransport> make_nccl_transport(Group& group, Device device);

}  // namespace longhaul::dist
