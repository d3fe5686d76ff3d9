// The test cases that every transport has to pass. A case is run by all ranks of a fresh group and
// throws where something is wrong, so that the same code runs in threads and under mpirun.
#pragma once

#include <functional>
#include <ostream>
#include <source_location>
#include <string>
#include <string_view>
#include <vector>

#include "dist/group.h"

namespace longhaul::dist::testing {

struct Case {
  std::string name;
  std::function<void(Group& group)> run;
};
inline void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }  // for GoogleTest

std::vector<Case> collective_cases();
std::vector<Case> reduction_cases();
std::vector<Case> exchange_cases();
std::vector<Case> group_cases();  // split, agree, host values, mesh
std::vector<Case> failure_cases();
std::vector<Case> window_cases();
std::vector<Case> traffic_cases();
std::vector<Case> all_cases();

// On tensors of a device, for every way in which these travel; what is promised only where they go
// through the host's memory; and only where the device has a transport of its own.
std::vector<Case> device_cases(Device device);
std::vector<Case> staging_cases(Device device);
std::vector<Case> native_cases(Device device);

// Runs one case on a group of its own, as a split of `world`.
void run_case(Group& world, const Case& test);

// Throws, with the place in the test, unless `ok`.
void expect(bool ok, const std::string& detail = "",
            std::source_location where = std::source_location::current());

// The message of the Error(code) that `work` has to throw.
std::string expect_error(ErrorCode code, const std::function<void()>& work,
                         std::source_location where = std::source_location::current());
void expect_contains(const std::string& text, std::string_view part,
                     std::source_location where = std::source_location::current());

// Small whole numbers: exact in every dtype, also summed over 9 ranks.
inline int predictable(int rank, int64_t i) { return static_cast<int>((rank * 5 + i * 3) % 13); }

// Element i of rank `rank`'s data.
template <class T>
Tensor filled(int rank, int64_t n) {
  Tensor tensor(dtype_of<T>, {n});
  int64_t i = 0;
  for (T& value : tensor.span<T>()) value = static_cast<T>(predictable(rank, i++));
  return tensor;
}

// f.operator()<T>() for every element type.
template <class F>
void for_each_type(F&& f) {
  f.template operator()<bf16>();
  f.template operator()<float>();
  f.template operator()<double>();
  f.template operator()<int32_t>();
  f.template operator()<int64_t>();
}

}  // namespace longhaul::dist::testing
