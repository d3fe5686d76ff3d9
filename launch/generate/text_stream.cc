#include "launch/generate/text_stream.h"

#include <cstdint>

namespace longhaul::launch {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Well-formed byte sequences (Unicode 15, table 3-7): how many bytes follow a first one, and the
// range of the second, which is all that differs.
struct Lead {
  size_t following = 0;
  uint8_t low = 0x80, high = 0xBF;
  bool valid = true;
};
Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {};
  if (byte >= 0xC2 && byte <= 0xDF) return {.following = 1};
  if (byte == 0xE0) return {.following = 2, .low = 0xA0};
  if (byte == 0xED) return {.following = 2, .high = 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {.following = 2};
  if (byte == 0xF0) return {.following = 3, .low = 0x90};
  if (byte >= 0xF1 && byte <= 0xF3) return {.following = 3};
  if (byte == 0xF4) return {.following = 3, .high = 0x8F};
  return {.valid = false};
}

}  // namespace

std::string TextStream::add(std::string_view bytes) {
  pending_ += bytes;
  std::string text;
  size_t begin = 0;
  while (begin < pending_.size()) {
    const Lead lead = lead_of(static_cast<uint8_t>(pending_[begin]));
    size_t good = 1;
    while (lead.valid && good <= lead.following && begin + good < pending_.size()) {
      const auto byte = static_cast<uint8_t>(pending_[begin + good]);
      const uint8_t low = good == 1 ? lead.low : 0x80, high = good == 1 ? lead.high : 0xBF;
      if (byte < low || byte > high) break;
      ++good;
    }
    const bool complete = lead.valid && good == lead.following + 1;
    if (lead.valid && !complete && begin + good == pending_.size()) break;  // more may come
    if (complete) text.append(pending_, begin, good);
    if (!complete) text += kReplacement;
    begin += good;
  }
  pending_.erase(0, begin);
  return text;
}

std::string TextStream::finish() {
  const bool cut = !pending_.empty();
  pending_.clear();
  return cut ? std::string(kReplacement) : std::string();
}

}  // namespace longhaul::launch
