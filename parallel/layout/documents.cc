#include "parallel/layout/documents.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

Documents Documents::whole(int64_t tokens) {
  return Documents(tokens, tokens > 0 ? std::vector<int64_t>{0} : std::vector<int64_t>{});
}

Documents::Documents(int64_t tokens, std::vector<int64_t> begins)
    : tokens_(tokens), begins_(std::move(begins)) {
  LONGHAUL_CHECK(tokens_ >= 0);
  LONGHAUL_CHECK(begins_.empty() == (tokens_ == 0),
                 absl::StrCat(begins_.size(), " documents, ", tokens_, " tokens"));
  if (begins_.empty()) return;
  LONGHAUL_CHECK(begins_.front() == 0, absl::StrCat("first document at ", begins_.front()));
  LONGHAUL_CHECK(
      std::adjacent_find(begins_.begin(), begins_.end(), std::greater_equal<>()) == begins_.end(),
      "two documents begin at the same token or in falling order");
  LONGHAUL_CHECK(begins_.back() < tokens_,
                 absl::StrCat("document at ", begins_.back(), " of ", tokens_, " tokens"));
}

int64_t Documents::at(int64_t position) const {
  LONGHAUL_CHECK(position >= 0 && position < tokens_,
                 absl::StrCat("position ", position, " of ", tokens_));
  return std::upper_bound(begins_.begin(), begins_.end(), position) - begins_.begin() - 1;
}

}  // namespace longhaul::parallel
