#include "launch/data/synthetic.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "kernels/core/random.h"
#include "launch/data/token_file_writer.h"

namespace longhaul::launch {

void write_copy_task(const CopyTaskOptions& options) {
  if (options.documents < 1 || options.tokens < 2 || options.vocabulary < 2) {
    fail(ErrorCode::kConfig,
         absl::StrCat("a copy task needs at least 1 document, 2 tokens in each and a vocabulary of "
                      "2, not ",
                      options.documents, ", ", options.tokens, " and ", options.vocabulary));
  }
  TokenFileWriter writer(options.output, options.vocabulary);
  const RandomKey key{options.seed, stream_of("copy task")};
  const int64_t half = (options.tokens + 1) / 2;
  std::vector<int32_t> document(static_cast<size_t>(options.tokens));
  for (int64_t d = 0; d < options.documents; ++d) {
    for (int64_t i = 0; i < options.tokens; ++i) {
      const auto at = static_cast<uint64_t>(d * half + i % half);
      document[static_cast<size_t>(i)] =
          static_cast<int32_t>(random_uniform(key, at) * static_cast<double>(options.vocabulary));
    }
    writer.append(document);
  }
  writer.finish();
}

}  // namespace longhaul::launch
