#include "launch/tokenizer/tokenizer.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/tokenizer/byte_tokenizer.h"

namespace longhaul::launch {

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  encode(text, tokens);
  return tokens;
}

std::unique_ptr<const Tokenizer> load_tokenizer(const std::string& path,
                                                const std::string& /*pattern*/) {
  if (path == "bytes") return std::make_unique<ByteTokenizer>();
  fail(ErrorCode::kData, absl::StrCat("tokenizer '", path, "' is not known: only \"bytes\" is"));
}

}  // namespace longhaul::launch
