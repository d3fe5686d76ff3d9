// `longhaul data prepare`: text and JSONL files, also packed ones, to a tokenized corpus
// (token_file.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::launch {

struct PrepareOptions {
  // Files, and folders whose files are taken with those of their subfolders, sorted by path and
  // without hidden ones. *.jsonl has one document a row; any other file is text. *.gz and *.zst are
  // unpacked.
  std::vector<std::string> inputs;
  std::string output;      // prefix of .bin, .idx, .mask, and of .json: what they came from
  std::string split_on{};  // text: a line equal to this ends a document; empty: one a file
  std::string field{};     // JSONL: the field that is the document; "": "text", of chats "messages"
  std::string tokenizer = "bytes";  // as for load_tokenizer()
  std::string pattern{};            // likewise
  std::string chat{};               // JSONL: rows are conversations in this template (chat.h)
  std::string prompt_field{};  // JSONL: the field that comes before the document, not to be learned
  bool special_as_text = false;  // special tokens in documents are text (tokenizer.h)
  // Documents are not put between the tokens that the tokenizer wants before and after a text and
  // those that end one.
  bool bare = false;
  int64_t threads = 0;  // that tokenize; 0: one for each core. The corpus does not depend on it.
  // Between two records of how far it has come, made at the ends of files.
  double seconds_between_records = 10;
};

struct PrepareReport {
  bool up_to_date = false;  // same inputs and options as before: nothing was read or written
  int64_t files = 0;
  int64_t resumed_files = 0;  // of these, done by a run that was interrupted
  int64_t documents = 0;
  int64_t empty_documents = 0;  // left out
  int64_t tokens = 0;
  int64_t learned = 0;  // tokens; fewer than all if there is a mask
  int64_t vocabulary = 0;
  std::string dtype;  // of a token on disk
};

// Streams, so that inputs may exceed memory (readers.h). Throws Error(kData) for an input that
// cannot be used, naming file:line, Error(kConfig) for options. Inputs count as unchanged if path,
// size and time of modification are.
//
// A run that ends early, by an error or a signal, leaves the corpus that was there before. If it
// took longer than `seconds_between_records`, it also leaves <prefix>.progress and *.partial: the
// next run goes on after the last file that is recorded, if the options and the files until then
// are unchanged, and the result is the same.
PrepareReport prepare(const PrepareOptions& options);

// What `prepare` tells the user: one or two lines.
std::string describe(const PrepareReport& report, const PrepareOptions& options);

}  // namespace longhaul::launch
