// Shared memory between processes without a name that could stay behind: each rank makes anonymous
// memory (memfd) and its neighbours open it through /proc/<pid>/fd. Nothing is left after kill -9,
// and the size of /dev/shm, often tiny in containers, does not matter.
#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <random>

#include "dist/mpi/transport.h"
#include "kernels/core/error.h"

namespace longhaul::dist::mpi {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

// What a rank tells its node about its slab.
struct Offer {
  int64_t pid = 0;
  int64_t fd = -1;     // -1: the rank has failed
  uint64_t token = 0;  // also the slab's last word: proves that the pid means the same process here
  int64_t rank = 0;    // in the group
};

std::string error_text() { return std::strerror(errno); }

// Kilobytes of a field of /proc/meminfo.
std::optional<int64_t> available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  int64_t kilobytes = 0;
  while (file >> name >> kilobytes) {
    if (name == "MemAvailable:") return kilobytes * 1024;
    std::getline(file, unit);
  }
  return std::nullopt;
}

// The token lies behind the slots, so that it moves nothing.
int64_t mapped_bytes(const SlabLayout& layout) {
  return layout.bytes() + static_cast<int64_t>(sizeof(uint64_t));
}
uint64_t& token(std::byte* slab, const SlabLayout& layout) {
  return *reinterpret_cast<uint64_t*>(slab + layout.bytes());
}

Slab map(int fd, int64_t bytes) {
  const size_t length = static_cast<size_t>(bytes);
  void* const memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("cannot map a window of ", bytes, " bytes: ", error_text()));
  }
  return Slab(static_cast<std::byte*>(memory), [length](std::byte* p) { munmap(p, length); });
}

// All pages are taken now: later there is no error that could be handled.
void reserve(int fd, int64_t bytes, int ranks_on_node) {
  const auto available = available_bytes();
  if (available && bytes > *available / ranks_on_node) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("a window of ", bytes, " bytes on each of ", ranks_on_node,
                      " ranks of this node does not fit the available memory of ", *available,
                      " bytes: use more nodes or fewer tokens per rank"));
  }
  const int code = posix_fallocate(fd, 0, bytes);
  if (code != 0) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("no memory for a window of ", bytes, " bytes: ", std::strerror(code)));
  }
}

Slab open_offer(const Offer& offer, const SlabLayout& layout) {
  const std::string path = absl::StrCat("/proc/", offer.pid, "/fd/", offer.fd);
  const FileDescriptor fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (fd.get() < 0) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("cannot open the window of rank ", offer.rank, " at ", path, ": ",
                      error_text(),
                      ": start all ranks of a node as one user in one container, or set "
                      "parallel.in_place: false"));
  }
  // Checked before it is mapped: reading beyond another process's smaller file would be fatal.
  const bool size_fits = lseek(fd.get(), 0, SEEK_END) == mapped_bytes(layout);
  Slab slab = size_fits ? map(fd.get(), mapped_bytes(layout)) : nullptr;
  if (slab == nullptr || token(slab.get(), layout) != offer.token) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat(path, " is not the window of rank ", offer.rank,
                      ": start all ranks of a node in one container, or set "
                      "parallel.in_place: false"));
  }
  return slab;
}

class NodeCommunicator {
 public:
  explicit NodeCommunicator(MPI_Comm group) {
    check(MPI_Comm_split_type(group, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &communicator_),
          "MPI_Comm_split_type");
  }
  ~NodeCommunicator() { MPI_Comm_free(&communicator_); }
  NodeCommunicator(const NodeCommunicator&) = delete;
  NodeCommunicator& operator=(const NodeCommunicator&) = delete;

  MPI_Comm get() const { return communicator_; }
  int size() const {
    int size = 0;
    check(MPI_Comm_size(communicator_, &size), "MPI_Comm_size");
    return size;
  }

 private:
  MPI_Comm communicator_ = MPI_COMM_NULL;
};

}  // namespace

std::vector<Slab> share_slabs(MPI_Comm communicator, const SlabLayout& layout) {
  int rank = 0, size = 0;
  check(MPI_Comm_rank(communicator, &rank), "MPI_Comm_rank");
  check(MPI_Comm_size(communicator, &size), "MPI_Comm_size");
  const NodeCommunicator node(communicator);

  // A rank that fails still takes part in the node's collectives below.
  const FileDescriptor fd(memfd_create("longhaul-window", MFD_CLOEXEC));
  Slab mine;
  Offer offer{getpid(), -1, 0, rank};
  std::optional<Error> error = attempt([&] {
    if (fd.get() < 0) {
      fail(ErrorCode::kEnvironment, absl::StrCat("cannot make shared memory: ", error_text()));
    }
    reserve(fd.get(), mapped_bytes(layout), node.size());
    mine = map(fd.get(), mapped_bytes(layout));
    initialise_slab(mine.get(), layout);
    std::random_device random;
    offer.token = (uint64_t{random()} << 32) | random();
    token(mine.get(), layout) = offer.token;
    offer.fd = fd.get();
  });

  std::vector<Offer> offers(static_cast<size_t>(node.size()));
  check(MPI_Allgather(&offer, sizeof(Offer), MPI_BYTE, offers.data(), sizeof(Offer), MPI_BYTE,
                      node.get()),
        "MPI_Allgather");
  const bool complete =
      std::none_of(offers.begin(), offers.end(), [](const Offer& other) { return other.fd < 0; });
  std::vector<Slab> slabs(static_cast<size_t>(size));
  if (complete) {
    error = attempt([&] {
      for (const Offer& other : offers) {
        slabs[static_cast<size_t>(other.rank)] =
            other.rank == rank ? mine : open_offer(other, layout);
      }
    });
  }
  // Descriptors stay open until all neighbours have opened them.
  check(MPI_Barrier(node.get()), "MPI_Barrier");
  if (error) throw *error;
  if (!complete) slabs.clear();
  return slabs;
}

}  // namespace longhaul::dist::mpi
