// tokenizer.json of Hugging Face's tokenizers library (version "1.0"), for models of type BPE.
//
//   normalizer      NFC, NFD, NFKC, NFKD, Prepend, Replace (of a string), Sequence
//   pre_tokenizer   ByteLevel, Split, Digits, Metaspace, Sequence
//   model           BPE: vocab, merges (strings "a b", or pairs), ignore_merges, byte_fallback
//   post_processor  ByteLevel, TemplateProcessing (of a single text), Sequence
//   decoder         ByteLevel, or Replace, ByteFallback, Fuse, Strip, Metaspace
//
// and added_tokens. Anything else, and any unknown field, is refused by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

// `path` is the file. tokenizer_config.json beside it says which tokens begin and end a text;
// without it well-known names do ("<|endoftext|>", "</s>", ...).
std::unique_ptr<const Tokenizer> load_tokenizer_json(const std::string& path);

// The same of the file's text; `path` names it and what is beside it.
std::unique_ptr<const Tokenizer> parse_tokenizer_json(std::string_view text,
                                                      const std::string& path);

}  // namespace longhaul::launch
