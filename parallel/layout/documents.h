// Documents packed into one sample of N tokens. A token attends within its document only, its
// position restarts there, and a document's last token has no label.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace longhaul::parallel {

class Documents {
 public:
  // One document of all `tokens`.
  static Documents whole(int64_t tokens);
  // begins: strictly growing, the first is 0, all < tokens (empty if tokens is 0).
  Documents(int64_t tokens, std::vector<int64_t> begins);

  int64_t tokens() const { return tokens_; }
  int64_t count() const { return static_cast<int64_t>(begins_.size()); }
  int64_t begin(int64_t document) const { return begins_[static_cast<size_t>(document)]; }
  int64_t end(int64_t document) const {
    return document + 1 < count() ? begin(document + 1) : tokens_;
  }
  // Index of the document that holds a global position.
  int64_t at(int64_t position) const;
  // Position within its document.
  int64_t local_position(int64_t position) const { return position - begin(at(position)); }
  const std::vector<int64_t>& begins() const { return begins_; }
  bool operator==(const Documents&) const = default;

 private:
  int64_t tokens_ = 0;
  std::vector<int64_t> begins_;
};

}  // namespace longhaul::parallel
