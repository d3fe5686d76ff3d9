#include "launch/data/prepare.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/error.h"
#include "launch/data/encode_block.h"
#include "launch/data/input_file.h"
#include "launch/data/ordered_workers.h"
#include "launch/data/output_file.h"
#include "launch/data/prepare_inputs.h"
#include "launch/data/token_file.h"
#include "launch/data/token_file_writer.h"

namespace longhaul::launch {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kRecordVersion = 2;

bool of_rows(const std::string& path) { return without_packing_suffix(path).ends_with(".jsonl"); }

// An object of ours that is of this version; null otherwise.
json read_record(const std::string& path) {
  std::ifstream file(path);
  json record = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object() || record.value("version", json()) != kRecordVersion) return nullptr;
  return record;
}

bool has_counts(const json& record, std::initializer_list<const char*> names) {
  return std::all_of(names.begin(), names.end(), [&](const char* name) {
    return record.contains(name) && record[name].is_number_integer() && record[name] >= 0;
  });
}

// Paths need not be UTF-8.
std::string text_of(const json& record) {
  return record.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

// The report of an earlier run with the same source, if its corpus is still there.
std::optional<PrepareReport> earlier(const PrepareOptions& options, const json& source) {
  const json record = read_record(options.output + ".json");
  if (record.is_null() || record.value("source", json()) != source ||
      !has_counts(record, {"tokens", "documents", "empty_documents", "learned", "vocabulary"})) {
    return std::nullopt;
  }
  const auto corpus = [&]() -> std::optional<TokenFile> {
    try {
      return TokenFile::open(options.output);
    } catch (const Error&) {
      return std::nullopt;  // then it is made again
    }
  }();
  if (!corpus || record["tokens"] != corpus->tokens() ||
      record["documents"] != corpus->documents() ||
      record["learned"] != corpus->learned(0, corpus->tokens())) {
    return std::nullopt;
  }
  PrepareReport report;
  report.up_to_date = true;
  report.files = static_cast<int64_t>(source["inputs"].size());
  report.documents = corpus->documents();
  report.tokens = corpus->tokens();
  report.empty_documents = record["empty_documents"];
  report.learned = record["learned"];
  report.vocabulary = record["vocabulary"];
  report.dtype = std::string(corpus->dtype_name());
  return report;
}

// Where an interrupted run with these options and, as far as it came, these files has stopped.
struct Progress {
  int64_t files = 0, tokens = 0, documents = 0, empty_documents = 0, learned = 0;
};
Progress progress_of(const PrepareOptions& options, const json& source) {
  json record = read_record(options.output + ".progress");
  if (record.is_null() ||
      !has_counts(record, {"files", "tokens", "documents", "empty_documents", "learned"}) ||
      !record.contains("source") || !record["source"].is_object()) {
    return {};
  }
  json then = record["source"], now = source;
  const json then_files = then["inputs"], now_files = now["inputs"];
  then.erase("inputs");
  now.erase("inputs");
  const size_t files = record["files"];
  if (then != now || !then_files.is_array() || files > then_files.size() ||
      files > now_files.size() ||
      !std::equal(now_files.begin(), now_files.begin() + static_cast<std::ptrdiff_t>(files),
                  then_files.begin())) {
    return {};
  }
  return {record["files"], record["tokens"], record["documents"], record["empty_documents"],
          record["learned"]};
}

// Where a run begins. One that does not go on forgets what another has recorded, before it
// overwrites the files of which that speaks.
Progress begun(const std::string& output, const Progress& resumed) {
  std::error_code error;
  if (resumed.documents == 0) fs::remove(output + ".progress", error);
  return resumed;
}

PrepareOptions checked(PrepareOptions options) {
  if (!options.chat.empty() && !options.prompt_field.empty()) {
    fail(ErrorCode::kConfig,
         "--chat and --prompt-field exclude each other: a conversation's "
         "prompts are what the user says in it");
  }
  for (const auto& [given, name] : {std::pair(options.bare, "--bare"),
                                    std::pair(options.special_as_text, "--special-as-text")}) {
    if (given && !options.chat.empty()) {
      fail(ErrorCode::kConfig,
           absl::StrCat(name,
                        " and --chat exclude each other: a template says which tokens stand "
                        "around a conversation, and what is said in it is text"));
    }
  }
  if (options.threads < 0 || options.threads > 4096) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--threads is ", options.threads, ", not 0 (all cores) to 4096"));
  }
  if (options.threads == 0) {
    options.threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  }
  if (options.field.empty()) options.field = options.chat.empty() ? "text" : "messages";
  return options;
}

class Preparation {
 public:
  Preparation(const PrepareOptions& options, const json& source, Progress resumed)
      : options_(options),
        source_(source),
        tokenizer_(load_tokenizer(options.tokenizer, options.pattern)),
        encode_(encode_options()),
        done_(begun(options.output, resumed)),
        writer_(options.output, tokenizer_->vocabulary(),
                {.mask = masked(),
                 .resumable = true,
                 .tokens = resumed.tokens,
                 .documents = resumed.documents}),
        workers_(options.threads, [this](const Item& item) {
          return Result{encode_block(item.block, encode_), item.ends_file};
        }) {}

  void run(const std::vector<std::string>& files) {
    const BlockSink sink = [&](Block block) { put({std::move(block), false}); };
    for (size_t i = static_cast<size_t>(done_.files); i < files.size(); ++i) {
      if (of_rows(files[i])) {
        read_rows(files[i], sink);
      } else {
        if (masked()) {
          fail(ErrorCode::kData, absl::StrCat("input '", files[i],
                                              "' is text: with --chat and --prompt-field inputs "
                                              "are rows, in files called *.jsonl"));
        }
        read_text(files[i], options_.split_on, *tokenizer_, sink);
      }
      put({{}, true});
    }
    while (!workers_.empty()) write(workers_.take());
  }

  PrepareReport finish(int64_t files, int64_t resumed_files) {
    if (writer_.documents() == 0) {
      fail(ErrorCode::kData, absl::StrCat("the ", files,
                                          " input files have no text: there is "
                                          "nothing to train on"));
    }
    PrepareReport report;
    report.files = files;
    report.resumed_files = resumed_files;
    report.documents = writer_.documents();
    report.empty_documents = done_.empty_documents;
    report.tokens = writer_.tokens();
    report.learned = done_.learned;
    report.vocabulary = tokenizer_->vocabulary();
    report.dtype = std::string(writer_.dtype_name());
    OutputFile record(options_.output + ".json");
    record.write(text_of({{"version", kRecordVersion},
                          {"source", source_},
                          {"documents", report.documents},
                          {"empty_documents", report.empty_documents},
                          {"tokens", report.tokens},
                          {"learned", report.learned},
                          {"vocabulary", report.vocabulary}}));
    writer_.finish([&] {
      // The old record goes first: it must not vouch for a corpus that is half replaced. Nor may a
      // run go on with files that have got their names.
      std::error_code error;
      fs::remove(options_.output + ".json", error);
      fs::remove(options_.output + ".progress", error);
    });
    record.commit();
    return report;
  }

 private:
  struct Item {
    Block block;
    bool ends_file = false;
  };
  struct Result {
    EncodedBlock block;
    bool ends_file = false;
  };

  bool masked() const { return !options_.chat.empty() || !options_.prompt_field.empty(); }

  EncodeOptions encode_options() {
    EncodeOptions encode{.tokenizer = *tokenizer_,
                         .field = options_.field,
                         .prompt_field = options_.prompt_field,
                         .before = {},
                         .after = {}};
    if (!options_.chat.empty()) encode.chat = &chat_.emplace(options_.chat, *tokenizer_);
    if (options_.special_as_text) encode.special = SpecialTokens::kAsText;
    if (!options_.bare) {
      const auto before = tokenizer_->before_text(), after = tokenizer_->after_text();
      encode.before.assign(before.begin(), before.end());
      encode.after.assign(after.begin(), after.end());
      const auto end = tokenizer_->end_of_text();
      if (end && (encode.after.empty() || encode.after.back() != *end)) {
        encode.after.push_back(*end);
      }
    }
    return encode;
  }

  void put(Item item) {
    while (workers_.full()) write(workers_.take());
    workers_.put(std::move(item));
  }

  void write(const Result& result) {
    const MaskedTokens& text = result.block.text;
    const auto part = [&](int64_t begin, int64_t end) {
      const auto at = static_cast<size_t>(begin), count = static_cast<size_t>(end - begin);
      const bool all = text.learned.empty();
      const std::span<const uint8_t> learned =
          all ? std::span<const uint8_t>() : std::span(text.learned).subspan(at, count);
      writer_.extend(std::span(text.tokens).subspan(at, count), learned);
      done_.learned += all ? end - begin : std::count(learned.begin(), learned.end(), 1);
    };
    int64_t begin = 0;
    for (const int64_t end : result.block.ends) {
      part(begin, end);
      writer_.end_document();
      begin = end;
    }
    part(begin, static_cast<int64_t>(text.tokens.size()));
    done_.empty_documents += result.block.empty_documents;
    if (result.ends_file) end_file();
  }

  void end_file() {
    ++done_.files;
    const std::chrono::duration<double> since = Clock::now() - recorded_;
    if (since.count() < options_.seconds_between_records) return;
    writer_.checkpoint();
    OutputFile record(options_.output + ".progress");
    record.write(text_of({{"version", kRecordVersion},
                          {"source", source_},
                          {"files", done_.files},
                          {"tokens", writer_.tokens()},
                          {"documents", writer_.documents()},
                          {"empty_documents", done_.empty_documents},
                          {"learned", done_.learned}}));
    record.commit();
    recorded_ = Clock::now();
  }

  const PrepareOptions& options_;
  const json& source_;
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_;
  EncodeOptions encode_;
  Progress done_;
  TokenFileWriter writer_;
  Clock::time_point recorded_ = Clock::now();
  OrderedWorkers<Item, Result> workers_;  // last: its threads use the others
};

}  // namespace

PrepareReport prepare(const PrepareOptions& given) {
  const PrepareOptions options = checked(given);
  const std::vector<std::string> files = list_inputs(options);
  if (!options.split_on.empty() && std::ranges::all_of(files, of_rows)) {
    fail(ErrorCode::kConfig, "--split-on is about text, and all inputs are rows: leave it out");
  }
  if (!given.field.empty() && std::ranges::none_of(files, of_rows)) {
    fail(ErrorCode::kConfig, "--field is about rows, and no input is called *.jsonl: leave it out");
  }
  const json source = source_record(options, files);
  if (auto report = earlier(options, source)) return *report;
  const Progress resumed = progress_of(options, source);
  Preparation preparation(options, source, resumed);
  preparation.run(files);
  return preparation.finish(static_cast<int64_t>(files.size()), resumed.files);
}

std::string describe(const PrepareReport& report, const PrepareOptions& options) {
  std::string text = absl::StrCat(options.output, report.up_to_date ? " is up to date: " : ": ",
                                  report.tokens, " tokens (", report.dtype, ") in ",
                                  report.documents, " documents from ", report.files, " files");
  if (report.empty_documents > 0) {
    absl::StrAppend(&text, "; ", report.empty_documents, " empty ones left out");
  }
  if (report.learned < report.tokens) {
    absl::StrAppendFormat(
        &text, "; %d tokens (%.1f %%) are learned, the others given", report.learned,
        100.0 * static_cast<double>(report.learned) / static_cast<double>(report.tokens));
  }
  if (report.resumed_files > 0) {
    absl::StrAppend(&text, "; ", report.resumed_files, " files were done before");
  }
  return text;
}

}  // namespace longhaul::launch
