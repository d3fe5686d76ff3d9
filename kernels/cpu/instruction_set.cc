#include "kernels/instruction_set.h"

#include <atomic>

#include "hwy/targets.h"
#include "kernels/core/error.h"
#include "kernels/cpu/instruction_set.h"

namespace longhaul::kernels {

namespace {

struct Level {
  std::string_view name;
  int64_t targets;  // Highway's, best and everything below it
  bool bf16;        // with products of bf16 pairs, which Debian's Highway does not know
};

// Highway gives better targets lower bits.
constexpr int64_t and_below(int64_t target) { return ~(target - 1); }

constexpr Level kLevels[] = {{"AVX512_BF16", and_below(HWY_AVX3), true},
                             {"AVX512", and_below(HWY_AVX3), false},
                             {"AVX2", and_below(HWY_AVX2), false},
                             {"BASELINE", and_below(HWY_STATIC_TARGET), false}};

std::atomic<const Level*> forced{nullptr};

bool runs(const Level& level) {
  // What Highway finds must not depend on what was forced before.
  static const int64_t machine = hwy::SupportedTargets() & HWY_TARGETS;
  const int64_t best = level.targets & -level.targets;
  return (machine & best) != 0 && (!level.bf16 || cpu::machine_has_bf16_products());
}

const Level& level_in_use() {
  if (const Level* level = forced.load()) return *level;
  for (const Level& level : kLevels) {
    if (runs(level)) return level;
  }
  fail(ErrorCode::kInternal, "no instruction set of this binary runs on this machine");
}

}  // namespace

std::vector<std::string_view> instruction_sets() {
  std::vector<std::string_view> names;
  for (const Level& level : kLevels) {
    if (runs(level)) names.push_back(level.name);
  }
  return names;
}

std::string_view instruction_set() { return level_in_use().name; }

void use_instruction_set(std::string_view name) {
  const std::vector<std::string_view> present = instruction_sets();
  for (const Level& level : kLevels) {
    if (level.name != name || !runs(level)) continue;
    forced = &level;
    hwy::SetSupportedTargetsForTest(level.targets & HWY_TARGETS);
    return;
  }
  std::string message = "instruction set \"";
  message.append(name).append("\" is not among those of this machine: ");
  for (std::string_view other : present) message.append(other).append(" ");
  message.pop_back();
  fail(ErrorCode::kEnvironment, message);
}

bool cpu::has_bf16_products() { return level_in_use().bf16; }

}  // namespace longhaul::kernels
