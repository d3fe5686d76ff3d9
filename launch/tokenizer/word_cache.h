// Tokens of words that were met before: text repeats its words, and most of a tokenizer's time
// would go into merging the same ones again. A table with one place for a word; the newest stays.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace longhaul::launch {

class WordCache {
 public:
  WordCache() : entries_(kEntries) {}

  // Appends the word's tokens; false: not known.
  bool get(std::string_view word, std::vector<int32_t>& tokens) const {
    if (word.size() > kMostBytes) return false;
    const Entry& entry = entries_[slot(word)];
    if (entry.bytes != word.size() ||
        std::memcmp(entry.word.data(), word.data(), word.size()) != 0) {
      return false;
    }
    tokens.insert(tokens.end(), entry.tokens.begin(), entry.tokens.begin() + entry.count);
    return true;
  }

  void put(std::string_view word, std::span<const int32_t> tokens) {
    if (word.empty() || word.size() > kMostBytes || tokens.size() > kMostTokens) return;
    Entry& entry = entries_[slot(word)];
    entry.bytes = static_cast<uint8_t>(word.size());
    entry.count = static_cast<uint8_t>(tokens.size());
    std::memcpy(entry.word.data(), word.data(), word.size());
    std::copy(tokens.begin(), tokens.end(), entry.tokens.begin());
  }

 private:
  static constexpr size_t kEntries = size_t{1} << 15;
  static constexpr size_t kMostBytes = 30, kMostTokens = 8;
  struct alignas(64) Entry {       // a cache line
    uint8_t bytes = 0, count = 0;  // bytes 0: empty
    std::array<char, kMostBytes> word{};
    std::array<int32_t, kMostTokens> tokens{};
  };

  static size_t slot(std::string_view word) {
    uint64_t hash = word.size() * 0x9E3779B97F4A7C15U;
    while (!word.empty()) {
      uint64_t part = 0;
      const size_t bytes = word.size() < sizeof part ? word.size() : sizeof part;
      std::memcpy(&part, word.data(), bytes);
      hash = (hash ^ part) * 0xFF51AFD7ED558CCDU;
      hash ^= hash >> 32;
      word.remove_prefix(bytes);
    }
    return static_cast<size_t>(hash & (kEntries - 1));
  }

  std::vector<Entry> entries_;
};

}  // namespace longhaul::launch
