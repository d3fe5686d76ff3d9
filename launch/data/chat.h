// Conversations as models were trained to read them. A template's control tokens are special tokens
// of the tokenizer; what people and models say is text, whatever it spells
// (SpecialTokens::kAsText).
//
//   "chatml"  for each message: <|im_start|>ROLE\nCONTENT<|im_end|>\n
//   "llama3"  the beginning of text, then for each message:
//             <|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>
//             with CONTENT freed of white space around it
//
// Learned is what the assistant says, with the token that ends it; all else is given.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

// Tokens with what of them is learned (token_file.h).
struct MaskedTokens {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> learned;  // for each token 1 or 0

  // Says the same of all tokens that were appended since.
  void mark(bool is_learned) { learned.resize(tokens.size(), is_learned ? 1 : 0); }
};

class ChatTemplate {
 public:
  // Throws Error(kConfig) for a name that is none of the above, Error(kData) if the tokenizer lacks
  // a control token.
  ChatTemplate(const std::string& name, const Tokenizer& tokenizer);

  // Appends a conversation: an array of {"role": "system" | "user" | "assistant", "content":
  // string}. Throws Error(kData) beginning with `where` for anything else.
  void encode(const nlohmann::json& messages, const std::string& where, MaskedTokens& out) const;

 private:
  int32_t control(const std::string& spelling) const;

  const Tokenizer& tokenizer_;
  std::string name_;
  std::vector<int32_t> first_;    // of a conversation
  std::vector<int32_t> opening_;  // before ROLE
  std::vector<int32_t> header_;   // between ROLE and what separates it from CONTENT
  std::string_view separator_;
  std::vector<int32_t> closing_;  // after CONTENT
  std::string_view after_;        // after that
  bool trims_ = false;
};

}  // namespace longhaul::launch
