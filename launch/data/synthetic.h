// A corpus that only attention can learn: the copy task. Without looking back half a document, the
// second half cannot be predicted better than at log(vocabulary).
#pragma once

#include <cstdint>
#include <string>

namespace longhaul::launch {

struct CopyTaskOptions {
  std::string output;  // prefix of the corpus, see token_file.h
  int64_t documents = 0;
  int64_t tokens = 0;  // of each document, at least 2
  int64_t vocabulary = 0;
  uint64_t seed = 1;
};

// Every document is ceil(tokens/2) uniformly random tokens, then the same again (without the last
// one if `tokens` is odd). Throws Error(kConfig) for impossible sizes.
void write_copy_task(const CopyTaskOptions& options);

}  // namespace longhaul::launch
