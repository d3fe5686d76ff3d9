#include "checkpoint/checksum.h"

#include <xxhash.h>

#include <new>

#include "absl/strings/str_format.h"

namespace longhaul::checkpoint {

Checksum::Checksum() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(state_.get());
}

void Checksum::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Checksum::add(std::span<const std::byte> data) {
  if (!data.empty()) XXH3_64bits_update(state_.get(), data.data(), data.size());
}

uint64_t Checksum::value() const { return XXH3_64bits_digest(state_.get()); }

uint64_t checksum_of(std::string_view data) { return XXH3_64bits(data.data(), data.size()); }

std::string to_hex(uint64_t value) { return absl::StrFormat("%016x", value); }

}  // namespace longhaul::checkpoint
