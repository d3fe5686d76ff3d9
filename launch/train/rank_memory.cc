#include "launch/train/rank_memory.h"

namespace longhaul::launch {

RankMemory RankMemory::measure(Device device) {
  const auto arena = [device](const char* name) { return Arena::measure(name, device); };
  return {arena("parameters"),  arena("gradients"), arena("optimizer"),
          arena("activations"), arena("workspace"), arena("communication")};
}

RankMemory RankMemory::reserve(const RankMemory& measured) {
  const auto arena = [](const Arena& m) { return Arena(m.name(), m.peak(), m.device()); };
  return {arena(measured.parameters),  arena(measured.gradients), arena(measured.optimizer),
          arena(measured.activations), arena(measured.workspace), arena(measured.communication)};
}

namespace {

RankMemory::Classes classes(const RankMemory& m, int64_t (Arena::*bytes)() const) {
  RankMemory::Classes result;
  size_t i = 0;
  for (const Arena* arena : {&m.parameters, &m.gradients, &m.optimizer, &m.activations,
                             &m.workspace, &m.communication}) {
    result[i++] = {arena->name(), (arena->*bytes)()};
  }
  return result;
}

int64_t total(const RankMemory::Classes& classes) {
  int64_t sum = 0;
  for (const auto& [name, bytes] : classes) sum += bytes;
  return sum;
}

}  // namespace

RankMemory::Classes RankMemory::peaks() const { return classes(*this, &Arena::peak); }
RankMemory::Classes RankMemory::capacities() const { return classes(*this, &Arena::capacity); }
int64_t RankMemory::peak() const { return total(peaks()); }
int64_t RankMemory::capacity() const { return total(capacities()); }

}  // namespace longhaul::launch
