// XXH3 with 64 bits, over data that arrives in pieces: the checksum of files and manifests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace longhaul::checkpoint {

class Checksum {
 public:
  Checksum();
  void add(std::span<const std::byte> data);
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

uint64_t checksum_of(std::string_view data);

// 16 lower-case hexadecimal digits.
std::string to_hex(uint64_t value);

}  // namespace longhaul::checkpoint
