#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "nccl.h"
#include "tests/cuda_emulator/device_memory.h"

namespace {

enum class Kind { kSend, kRecv, kAllGather, kReduceScatter, kAllReduce, kBroadcast };

struct Call {
  Kind kind;
  const void* from;
  void* to;
  size_t count;
  ncclDataType_t type;
  ncclRedOp_t op;
  int peer;  // or root
  bool done = false;
};

// What all communicators of one id share; under `mutex`.
struct Clique {
  explicit Clique(int ranks) : members(static_cast<size_t>(ranks)) {}
  std::vector<ncclComm*> members;  // null: not there yet, or gone
  int joined = 0;
  int finalized = 0;
};

std::mutex mutex;
std::map<uint64_t, std::shared_ptr<Clique>> cliques;
uint64_t next_id = 1;

thread_local int group_depth = 0;
thread_local std::vector<std::pair<ncclComm*, Call>> group_calls;

size_t size_of(ncclDataType_t type) {
  if (type == ncclInt8) return 1;
  return type == ncclInt32 || type == ncclFloat32 ? 4 : 8;
}

void copy(const void* from, void* to, size_t bytes) {
  const longhaul::cuda_emulator::DeviceMemoryAccess access;
  if (bytes > 0) std::memmove(to, from, bytes);
}

std::vector<char> fetch(const void* from, size_t bytes) {
  std::vector<char> data(bytes);
  copy(from, data.data(), bytes);
  return data;
}

template <class T>
void reduce(std::vector<char>& into, const std::vector<char>& other, ncclRedOp_t op) {
  for (size_t i = 0; i < into.size(); i += sizeof(T)) {
    T a, b;
    std::memcpy(&a, &into[i], sizeof(T));
    std::memcpy(&b, &other[i], sizeof(T));
    a = op == ncclSum ? a + b : std::max(a, b);
    std::memcpy(&into[i], &a, sizeof(T));
  }
}

void reduce(std::vector<char>& into, const std::vector<char>& other, const Call& call) {
  switch (call.type) {
    case ncclInt32:
      return reduce<int32_t>(into, other, call.op);
    case ncclInt64:
      return reduce<int64_t>(into, other, call.op);
    case ncclFloat32:
      return reduce<float>(into, other, call.op);
    default:
      return reduce<double>(into, other, call.op);
  }
}

}  // namespace

struct ncclComm {
  std::shared_ptr<Clique> clique;
  int rank = 0;
  std::vector<Call> calls;  // of the group in progress
  bool finalizing = false;
  ncclResult_t error = ncclSuccess;

  int ranks() const { return static_cast<int>(clique->members.size()); }
  bool in_progress() const {
    if (clique->joined < ranks()) return true;
    if (finalizing) return clique->finalized < ranks();
    return std::any_of(calls.begin(), calls.end(), [](const Call& call) { return !call.done; });
  }
};

namespace {

bool is_collective(const Call& call) { return call.kind > Kind::kRecv; }

void fail(ncclComm& a, ncclComm& b) { a.error = b.error = ncclInvalidUsage; }

// Sends of one rank meet receives of another in their order.
void match_messages(ncclComm& sender, ncclComm& receiver) {
  const auto next = [](ncclComm& comm, Kind kind, int peer) {
    return std::find_if(comm.calls.begin(), comm.calls.end(), [&](const Call& call) {
      return call.kind == kind && call.peer == peer && !call.done;
    });
  };
  for (;;) {
    const auto send = next(sender, Kind::kSend, receiver.rank);
    const auto recv = next(receiver, Kind::kRecv, sender.rank);
    if (send == sender.calls.end() || recv == receiver.calls.end()) return;
    if (send->count != recv->count) return fail(sender, receiver);
    copy(send->from, recv->to, send->count);
    send->done = recv->done = true;
  }
}

void run_collective(Clique& clique) {
  std::vector<Call*> calls;
  for (ncclComm* member : clique.members) {
    if (member == nullptr || member->calls.size() != 1) return;
    Call& call = member->calls[0];
    if (!is_collective(call) || call.done) return;
    calls.push_back(&call);
  }
  const Call& first = *calls[0];
  for (size_t i = 1; i < calls.size(); ++i) {
    if (calls[i]->kind != first.kind || calls[i]->count != first.count ||
        calls[i]->type != first.type || calls[i]->op != first.op || calls[i]->peer != first.peer) {
      return fail(*clique.members[0], *clique.members[i]);
    }
  }
  const size_t ranks = calls.size(), bytes = first.count * size_of(first.type);
  const size_t whole = first.kind == Kind::kReduceScatter ? bytes * ranks : bytes;
  std::vector<std::vector<char>> inputs;
  for (const Call* call : calls) inputs.push_back(fetch(call->from, whole));
  // Not the order of the ranks.
  std::vector<char> total = inputs.back();
  if (first.kind == Kind::kAllReduce || first.kind == Kind::kReduceScatter) {
    for (size_t i = ranks - 1; i-- > 0;) reduce(total, inputs[i], first);
  }
  for (size_t i = 0; i < ranks; ++i) {
    char* const to = static_cast<char*>(calls[i]->to);
    if (first.kind == Kind::kAllReduce) copy(total.data(), to, bytes);
    if (first.kind == Kind::kReduceScatter) copy(total.data() + i * bytes, to, bytes);
    if (first.kind == Kind::kBroadcast) {
      copy(inputs[static_cast<size_t>(first.peer)].data(), to, bytes);
    }
    for (size_t j = 0; first.kind == Kind::kAllGather && j < ranks; ++j) {
      copy(inputs[j].data(), to + j * bytes, bytes);
    }
    calls[i]->done = true;
  }
}

void advance(Clique& clique) {
  for (ncclComm* sender : clique.members) {
    for (ncclComm* receiver : clique.members) {
      if (sender != nullptr && receiver != nullptr) match_messages(*sender, *receiver);
    }
  }
  run_collective(clique);
}

ncclResult_t add(ncclComm* comm, const Call& call) {
  if (group_depth == 0) return ncclInvalidUsage;
  group_calls.emplace_back(comm, call);
  return ncclSuccess;
}

// Messages to oneself must be complete within their group.
bool self_messages_fit(const ncclComm& comm) {
  size_t sends = 0, recvs = 0;
  for (const Call& call : comm.calls) {
    if (is_collective(call) || call.peer != comm.rank) continue;
    (call.kind == Kind::kSend ? sends : recvs) += 1;
  }
  return sends == recvs;
}

void leave(ncclComm* comm) {
  const std::lock_guard lock(mutex);
  comm->clique->members[static_cast<size_t>(comm->rank)] = nullptr;
  delete comm;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(mutex);
  std::memcpy(id->internal, &next_id, sizeof(next_id));
  ++next_id;
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidArgument;
  const std::lock_guard lock(mutex);
  uint64_t number = 0;
  std::memcpy(&number, id.internal, sizeof(number));
  auto& clique = cliques[number];
  if (clique == nullptr) clique = std::make_shared<Clique>(ranks);
  *comm = new ncclComm;
  (*comm)->clique = clique;
  (*comm)->rank = rank;
  clique->members[static_cast<size_t>(rank)] = *comm;
  if (++clique->joined == ranks) cliques.erase(number);
  return ncclInProgress;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard lock(mutex);
  if (comm->in_progress()) return ncclInvalidUsage;
  comm->finalizing = true;
  ++comm->clique->finalized;
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  leave(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  leave(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  const std::lock_guard lock(mutex);
  advance(*comm->clique);
  *error = comm->error != ncclSuccess ? comm->error
                                      : (comm->in_progress() ? ncclInProgress : ncclSuccess);
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t code) {
  return code == ncclInvalidUsage ? "invalid usage" : "another error";
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  const std::lock_guard lock(mutex);
  const auto calls = std::move(group_calls);
  group_calls.clear();
  for (const auto& [comm, call] : calls) {
    if (comm->in_progress() || comm->finalizing) return ncclInvalidUsage;
  }
  for (const auto& [comm, call] : calls) comm->calls.clear();
  for (const auto& [comm, call] : calls) comm->calls.push_back(call);
  for (const auto& [comm, call] : calls) {
    if (!self_messages_fit(*comm)) return ncclInvalidUsage;
  }
  return calls.empty() ? ncclSuccess : ncclInProgress;
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::kSend, from, nullptr, count, type, ncclSum, peer});
}
ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
  return add(comm, {Kind::kRecv, nullptr, to, count, type, ncclSum, peer});
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::kAllGather, from, to, count, type, ncclSum, 0});
}
ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::kReduceScatter, from, to, count, type, op, 0});
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::kAllReduce, from, to, count, type, op, 0});
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::kBroadcast, from, to, count, type, ncclSum, root});
}
