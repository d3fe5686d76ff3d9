// Passkey retrieval: a key of five digits stands somewhere in a long text that says nothing about
// it, and at the end the text asks for it ("Landmark Attention", Mohtashami and Jaggi 2023, section
// 4.2; the needle in a haystack of later work).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

struct PasskeyOptions {
  std::vector<int64_t> lengths = {};  // tokens of a text, question and answer included
  std::vector<double> depths = {0, 0.25, 0.5, 0.75, 1};
  int64_t trials = 5;  // of each length and depth: other keys, other parts of the haystack
  uint64_t seed = 1;
  // "{key}" stands for the key.
  std::string needle = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n";
  std::string question = "\nWhat is the pass key? The pass key is ";
};
// Throws Error(kConfig) for what cannot be.
void check(const PasskeyOptions& options);

struct PasskeyText {
  std::vector<int32_t> prompt;  // up to where the key is asked for
  std::string key;              // "48213"
  int64_t answer_tokens = 0;    // that the key takes; prompt and answer are of the length asked for
  int64_t needle_token = 0;     // where in the prompt the needle begins
};

// Text number `trial` of a length and a depth: a function of the options and the haystack alone.
// `haystack`: tokens, at least one, read on from somewhere and again from its beginning as often as
// needed. The needle is put at a word's border near depth x (length - what is not haystack). Throws
// Error(kConfig) for a length that needle, question and answer do not fit into.
PasskeyText make_passkey_text(const PasskeyOptions& options, const Tokenizer& tokenizer,
                              const std::vector<int32_t>& haystack, int64_t length, double depth,
                              int64_t trial);

// Whether an answer begins with the key, after space, and not with a longer number.
bool answers(const std::string& answer, const std::string& key);

}  // namespace longhaul::launch
