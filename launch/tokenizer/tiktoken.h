// Vocabularies of the tiktoken library: a line "BASE64 RANK" for each token, which is bytes; merges
// are what two tokens' bytes make together, if that is a token, by its rank.
#pragma once

#include <memory>
#include <string>

#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

// `pattern` names the expression that cuts words (pre_tokenizer.h) and the special tokens that come
// with it; if empty, the file's name has to say it: cl100k_base.tiktoken, o200k_base.tiktoken,
// r50k_base.tiktoken, qwen.tiktoken; Llama 3's file of ranks is called tokenizer.model: "llama3".
std::unique_ptr<const Tokenizer> load_tiktoken(const std::string& path, const std::string& pattern);

}  // namespace longhaul::launch
