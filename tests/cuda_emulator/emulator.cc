#include "tests/cuda_emulator/emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/cuda_emulator/device_memory.h"

namespace longhaul::cuda_emulator {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr unsigned kMostThreads = 1024;
constexpr int kWarp = 32;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

// A fiber starts as a ucontext and changes by jumps from then on, which unlike swapcontext need no
// system call.
struct Fiber {
  ucontext_t context{};
  jmp_buf here;
  bool started = false;
  std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes]};
  Dim3 index;
  bool done = false;
  std::vector<Copy> asked;                  // and not committed
  std::deque<std::vector<Copy>> committed;  // and not waited for
};

// Threads that wait until all that have not ended have come.
struct Meeting {
  int members = 0;
  int arrived = 0;
  uint64_t held = 0;  // meetings so far
};

// The block that this thread runs.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::vector<Slot> slots;
  Meeting all;
  std::vector<std::byte> shared;
  jmp_buf scheduler;
  size_t current = 0;
  uint64_t progress = 0;  // grows whenever a thread ends or a meeting is held
  bool any = false;
  const std::function<void()>* body = nullptr;
};
thread_local Block block;

void pause() {
  if (_setjmp(block.fibers[block.current].here) == 0) _longjmp(block.scheduler, 1);
}

// Runs a fiber until it pauses or ends.
void resume(Fiber& fiber) {
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

bool complete(Meeting& meeting) {
  if (meeting.arrived < meeting.members) return false;
  meeting.arrived = 0;
  ++meeting.held;
  ++block.progress;
  return true;
}

void meet(Meeting& meeting) {
  ++meeting.arrived;
  const uint64_t held = meeting.held;
  if (complete(meeting)) return;
  while (meeting.held == held) pause();
}

void enter() {
  (*block.body)();
  block.fibers[block.current].done = true;
  ++block.progress;
  // Those who wait do not wait for a thread that has ended.
  for (Meeting* meeting : {&block.all, &block.warps[block.current / kWarp]}) {
    --meeting->members;
    if (meeting->members > 0) complete(*meeting);
  }
  _longjmp(block.scheduler, 1);
}

void run_block(size_t threads, size_t shared_bytes) {
  block.shared.assign(shared_bytes, std::byte{0xff});
  block.all = {.members = static_cast<int>(threads)};
  block.warps.assign((threads + kWarp - 1) / kWarp, Meeting{});
  block.slots.resize(block.warps.size() * kWarp);
  while (block.fibers.size() < threads) block.fibers.emplace_back();
  for (size_t t = 0; t < threads; ++t) {
    Fiber& fiber = block.fibers[t];
    ++block.warps[t / kWarp].members;
    fiber.done = false;
    fiber.asked.clear();
    fiber.committed.clear();
    fiber.index = {static_cast<unsigned>(t % blockDim.x),
                   static_cast<unsigned>(t / blockDim.x % blockDim.y),
                   static_cast<unsigned>(t / blockDim.x / blockDim.y)};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.started = false;
    makecontext(&fiber.context, enter, 0);
  }
  // Now forwards, now backwards: code that lacks a barrier should not pass by luck.
  bool forwards = (blockIdx.x + blockIdx.y + blockIdx.z) % 2 == 0;
  for (size_t left = threads; left > 0; forwards = !forwards) {
    const uint64_t before = block.progress;
    left = 0;
    for (size_t n = 0; n < threads; ++n) {
      block.current = forwards ? n : threads - 1 - n;
      Fiber& fiber = block.fibers[block.current];
      if (fiber.done) continue;
      threadIdx = fiber.index;
      resume(fiber);
      if (!fiber.done) ++left;
    }
    if (left > 0 && block.progress == before) {
      std::fprintf(stderr, "CUDA emulator: a barrier is not reached by all threads of a block\n");
      std::abort();
    }
  }
}

std::mutex allowed_mutex;
std::map<const void*, size_t> allowed;

}  // namespace

void allow_shared_memory(const void* kernel, size_t bytes) {
  const std::lock_guard lock(allowed_mutex);
  allowed[kernel] = bytes;
}

size_t allowed_shared_memory(const void* kernel) {
  const std::lock_guard lock(allowed_mutex);
  const auto found = allowed.find(kernel);
  return found == allowed.end() ? 0 : found->second;
}

cudaError_t run_grid(Dim3 grid, Dim3 size, size_t shared_bytes, const std::function<void()>& body) {
  const size_t threads = size_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > kMostThreads || shared_bytes > kMostSharedBytes || grid.x == 0 ||
      grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const DeviceMemoryAccess access;
  block.body = &body;
  gridDim = grid;
  blockDim = size;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(threads, shared_bytes);
    }
  }
  return cudaSuccess;
}

std::byte* shared_memory() { return block.shared.data(); }
int lane() { return static_cast<int>(block.current % kWarp); }
void meet_block() { meet(block.all); }
void meet_warp() { meet(block.warps[block.current / kWarp]); }

bool any_of_block(bool value) {
  block.any = block.any || value;
  meet_block();
  const bool result = block.any;
  meet_block();
  block.any = false;
  meet_block();
  return result;
}

unsigned ballot(bool value) {
  slot_of(lane())[0] = std::byte{value};
  meet_warp();
  unsigned bits = 0;
  for (int n = 0; n < kWarp; ++n) {
    if (slot_of(n)[0] != std::byte{0}) bits |= 1u << n;
  }
  meet_warp();
  return bits;
}

void copy_later(void* to, const void* from, size_t bytes) {
  block.fibers[block.current].asked.push_back({to, from, bytes});
}

void commit_copies() {
  Fiber& fiber = block.fibers[block.current];
  fiber.committed.push_back(std::move(fiber.asked));
  fiber.asked.clear();
}

void wait_copies(size_t groups_left) {
  std::deque<std::vector<Copy>>& groups = block.fibers[block.current].committed;
  for (; groups.size() > groups_left; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
  }
}

Slot& slot_of(int lane) {
  return block.slots[block.current / kWarp * kWarp + static_cast<size_t>(lane)];
}

}  // namespace longhaul::cuda_emulator
