#include "launch/data/readers.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/data/input_file.h"

namespace longhaul::launch {
namespace {

constexpr size_t kChunk = size_t{1} << 18;
constexpr size_t kBlock = size_t{1} << 20;
constexpr size_t kLongest = size_t{1} << 30;  // line, or text without a place to cut

// Calls chunk(text) for the file's bytes, in order.
template <class Chunk>
void for_each_chunk(const std::string& path, const Chunk& chunk) {
  InputFile file(path);
  std::vector<char> buffer(kChunk);
  while (const size_t got = file.read(buffer)) chunk(std::string_view(buffer.data(), got));
}

// Collects documents' text until it is a block.
class TextBlocks {
 public:
  TextBlocks(const std::string& path, const Tokenizer& tokenizer, const BlockSink& sink)
      : path_(path), tokenizer_(tokenizer), sink_(sink) {}

  void add(std::string_view text) {
    block_.text += text;
    if (block_.text.size() >= wanted_) cut();
  }
  void end_document() {
    block_.ends.push_back(block_.text.size());
    if (block_.text.size() >= kBlock) pass(block_.text.size());
  }
  void finish() {
    if (!block_.text.empty() || !block_.ends.empty()) pass(block_.text.size());
  }

 private:
  // The open document's text can be divided where tokens do not depend on it.
  void cut() {
    const size_t open = block_.ends.empty() ? 0 : block_.ends.back();
    const size_t place = tokenizer_.last_cut(std::string_view(block_.text).substr(open));
    if (place > 0) return pass(open + place);
    if (open > 0) return pass(open);
    // Looking again at every chunk would take quadratic time.
    wanted_ = 2 * block_.text.size();
    if (block_.text.size() > kLongest) {
      fail(ErrorCode::kData,
           absl::StrCat("'", path_, "' has more than ", kLongest,
                        " bytes in a row that this tokenizer can only take at once: divide the "
                        "text into documents (--split-on, or rows of a .jsonl file)"));
    }
  }
  // The first `bytes` of the block; what follows begins the next one.
  void pass(size_t bytes) {
    Block next;
    next.text = block_.text.substr(bytes);
    next.begins_document = !block_.ends.empty() && block_.ends.back() == bytes;
    block_.text.resize(bytes);
    block_.path = path_;
    sink_(std::move(block_));
    block_ = std::move(next);
    wanted_ = kBlock;
  }

  const std::string& path_;
  const Tokenizer& tokenizer_;
  const BlockSink& sink_;
  Block block_;
  size_t wanted_ = kBlock;
};

// Passes text through, except for lines that equal the separator.
class Splitter {
 public:
  Splitter(const std::string& separator, TextBlocks& sink) : separator_(separator), sink_(sink) {}

  void add(std::string_view text) {
    while (!text.empty()) {
      const size_t newline = text.find('\n');
      const bool whole = newline != std::string_view::npos;
      const std::string_view part = text.substr(0, whole ? newline + 1 : text.size());
      text.remove_prefix(part.size());
      if (!undecided_) {
        sink_.add(part);
      } else {
        line_ += part;
        // Two more for "\r\n": beyond that it is no separator, and may be very long.
        if (line_.size() > separator_.size() + 2) pass_line();
      }
      if (whole) end_line();
    }
  }

  void finish() {
    end_line();
    sink_.end_document();
  }

 private:
  void pass_line() {
    sink_.add(line_);
    line_.clear();
    undecided_ = false;
  }
  void end_line() {
    if (undecided_ && !line_.empty()) {
      std::string_view content = line_;
      if (content.ends_with('\n')) content.remove_suffix(1);
      if (content.ends_with('\r')) content.remove_suffix(1);
      if (content == separator_) {
        sink_.end_document();
        line_.clear();
      } else {
        pass_line();
      }
    }
    undecided_ = true;
  }

  const std::string& separator_;
  TextBlocks& sink_;
  std::string line_;  // what is known of a line that may be the separator
  bool undecided_ = true;
};

}  // namespace

void read_text(const std::string& path, const std::string& split_on, const Tokenizer& tokenizer,
               const BlockSink& sink) {
  TextBlocks blocks(path, tokenizer, sink);
  if (split_on.empty()) {
    for_each_chunk(path, [&](std::string_view text) { blocks.add(text); });
    blocks.end_document();
  } else {
    Splitter splitter(split_on, blocks);
    for_each_chunk(path, [&](std::string_view text) { splitter.add(text); });
    splitter.finish();
  }
  blocks.finish();
}

void read_rows(const std::string& path, const BlockSink& sink) {
  Block block{.rows = true, .path = path};
  int64_t line = 1, line_begin = 0;  // of the line that is being read, in the block
  const auto pass = [&](size_t bytes, int64_t next_line) {
    Block next{.rows = true, .path = path, .first_line = next_line};
    next.text = block.text.substr(bytes);
    block.text.resize(bytes);
    if (!block.text.empty()) sink(std::move(block));
    block = std::move(next);
  };
  for_each_chunk(path, [&](std::string_view text) {
    while (!text.empty()) {
      const size_t newline = text.find('\n');
      const size_t bytes = newline == std::string_view::npos ? text.size() : newline + 1;
      block.text += text.substr(0, bytes);
      text.remove_prefix(bytes);
      if (block.text.size() - static_cast<size_t>(line_begin) > kLongest) {
        fail(ErrorCode::kData,
             absl::StrCat(path, ":", line, " is longer than ", kLongest, " bytes"));
      }
      if (newline == std::string_view::npos) break;
      line_begin = static_cast<int64_t>(block.text.size());
      ++line;
      if (block.text.size() >= kBlock) {
        pass(block.text.size(), line);
        line_begin = 0;
      }
    }
  });
  pass(block.text.size(), line);
}

}  // namespace longhaul::launch
