#include "launch/data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <set>

#include "kernels/core/error.h"
#include "launch/data/inspect.h"
#include "launch/data/synthetic.h"
#include "launch/data/token_file.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::vector<std::string> documents_in(const std::string& prefix) {
  const TokenFile file = TokenFile::open(prefix);
  std::vector<std::string> documents;
  for (int64_t i = 0; i < file.documents(); ++i) {
    std::vector<int32_t> tokens(
        static_cast<size_t>(file.document_begin(i + 1) - file.document_begin(i)));
    file.read(file.document_begin(i), tokens);
    documents.emplace_back(tokens.begin(), tokens.end());
  }
  return documents;
}

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

std::string error_of(const PrepareOptions& options, ErrorCode code = ErrorCode::kData) {
  try {
    prepare(options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

TEST(Prepare, FilesFoldersAndEmptyDocuments) {
  const TempFolder folder;
  write_all(folder / "in/b.txt", "second\n");
  write_all(folder / "in/a/z.rst", std::string("\0\xff\x80\n", 4));
  write_all(folder / "in/.hidden", "no");
  write_all(folder / "in/.git/config", "no");
  write_all(folder / "in/empty.txt", "");
  write_all(folder / "one.txt", "first");
  const PrepareOptions options{{folder / "one.txt", folder / "in"}, folder / "in/corpus"};
  const PrepareReport report = prepare(options);
  EXPECT_FALSE(report.up_to_date);
  EXPECT_EQ(report.files, 4);
  EXPECT_EQ(report.documents, 3);
  EXPECT_EQ(report.empty_documents, 1);
  EXPECT_EQ(report.tokens, 5 + 4 + 7);
  EXPECT_EQ(report.dtype, "uint16");
  EXPECT_THAT(documents_in(folder / "in/corpus"),
              ElementsAre("first", std::string("\0\xff\x80\n", 4), "second\n"));
  EXPECT_THAT(describe(report, options),
              HasSubstr("16 tokens (uint16) in 3 documents from 4 files; "
                        "1 empty ones left out"));
  // The outputs lie in an input folder and are not taken for input.
  EXPECT_TRUE(prepare(options).up_to_date);
}

TEST(Prepare, SplitOnASeparatorLine) {
  const TempFolder folder;
  // Longer than a read, so that lines and separators lie across its borders.
  std::string big;
  while (big.size() < 3'000'000) big += "0123456789abc\n---x\n ---\n";
  write_all(folder / "in.txt", "---\none\n--\n---\n---\r\ntwo\n---\n" + big + "---\n" +
                                   std::string(2'500'000, '-') + "\n---\nlast\n---");
  PrepareOptions options{{folder / "in.txt"}, folder / "c"};
  options.split_on = "---";
  EXPECT_EQ(prepare(options).empty_documents, 3);
  EXPECT_THAT(documents_in(folder / "c"),
              ElementsAre("one\n--\n", "two\n", big, std::string(2'500'000, '-') + "\n", "last\n"));
  options.split_on = "";
  EXPECT_EQ(prepare(options).documents, 1);
}

// Separators at every offset around the border of a read (1 MiB).
TEST(Prepare, ASeparatorAcrossReads) {
  const TempFolder folder;
  for (int64_t shift = -6; shift <= 2; ++shift) {
    const std::string first(static_cast<size_t>((1 << 20) + shift - 1), 'x');
    write_all(folder / "in.txt", first + "\n---\ny\n");
    PrepareOptions options{{folder / "in.txt"}, folder / "c"};
    options.split_on = "---";
    prepare(options);
    EXPECT_THAT(documents_in(folder / "c"), ElementsAre(first + "\n", "y\n")) << shift;
  }
}

TEST(Prepare, JsonLinesWithEscapes) {
  const TempFolder folder;
  write_all(folder / "in.jsonl",
            "{\"id\": 1, \"text\": \"a\\\"b\\n\\u00e9\\ud83d\\ude00\"}\r\n"
            "\n"
            "{\"text\": \"\"}\n"
            "{\"text\": \"r\xc3\xa9sum\xc3\xa9\", \"meta\": {\"text\": 3}}\n"
            "{\"text\": \"no newline at the end\"}");
  const PrepareReport report = prepare({{folder / "in.jsonl"}, folder / "c"});
  EXPECT_EQ(report.empty_documents, 1);
  EXPECT_THAT(documents_in(folder / "c"),
              ElementsAre("a\"b\n\xc3\xa9\xf0\x9f\x98\x80", "r\xc3\xa9sum\xc3\xa9",
                          "no newline at the end"));
  PrepareOptions options{{folder / "in.jsonl"}, folder / "d"};
  options.field = "content";
  EXPECT_THAT(error_of(options), HasSubstr("in.jsonl:1 has no field 'content' (it has: id, text)"));
}

TEST(Prepare, ABadRowNamesFileAndLineAndLeavesNothing) {
  const TempFolder folder;
  struct Case {
    std::string row, message;
  };
  for (const Case& c : std::vector<Case>{{"{\"text\": ", "in.jsonl:3 is no valid JSON"},
                                         {"{\"text\": \"\xff\"}", "in.jsonl:3 is no valid JSON"},
                                         {"[1]", "in.jsonl:3 is array, not an object"},
                                         {"{\"text\": 7}", "in.jsonl:3: field 'text' is number"},
                                         {"{}", "in.jsonl:3 has no field 'text'"}}) {
    write_all(folder / "in.jsonl", "{\"text\":\"x\"}\n\n" + c.row + "\n{\"text\":\"y\"}\n");
    EXPECT_THAT(error_of({{folder / "in.jsonl"}, folder / "out/c"}), HasSubstr(c.message));
    EXPECT_THAT(names_in(folder / "out"), ElementsAre());
  }
}

TEST(Prepare, InputsThatCannotBeUsed) {
  const TempFolder folder;
  fs::create_directory(folder / "nothing");
  write_all(folder / "empty.txt", "");
  write_all(folder / "text.gz", "\x1f\x8b compressed");
  const std::string out = folder / "out/c";
  EXPECT_THAT(error_of({{folder / "missing"}, out}), HasSubstr("missing' cannot be found"));
  EXPECT_THAT(error_of({{folder / "nothing"}, out}), HasSubstr("is a folder without files"));
  EXPECT_THAT(error_of({{folder / "empty.txt"}, out}), HasSubstr("nothing to train on"));
  EXPECT_THAT(error_of({{folder / "text.gz"}, out}), HasSubstr("text.gz' is damaged: "));
  EXPECT_THAT(error_of({{"/dev/null"}, out}), HasSubstr("neither a file nor a folder"));
  EXPECT_THAT(error_of({{}, out}, ErrorCode::kConfig), HasSubstr("no input"));
  EXPECT_THAT(error_of({{folder / "empty.txt"}, ""}, ErrorCode::kConfig), HasSubstr("no output"));
  EXPECT_TRUE(!fs::exists(folder / "out") || names_in(folder / "out").empty());
}

TEST(Prepare, NoInputIsOverwritten) {
  const TempFolder folder;
  write_all(folder / "mine.json", "{\"a text\": 1}");
  write_all(folder / "other.txt", "other");
  const std::string mine = folder / "mine";
  EXPECT_THAT(error_of({{folder / "mine.json"}, mine}, ErrorCode::kConfig),
              HasSubstr("mine.json' would be overwritten by the output"));
  const std::string folder_name = fs::path(mine).parent_path();
  EXPECT_THAT(error_of({{folder_name}, mine}, ErrorCode::kConfig),
              HasSubstr("mine.json' would be overwritten by the output"));
  EXPECT_EQ(fs::file_size(folder / "mine.json"), 13U);
  EXPECT_EQ(prepare({{folder_name}, folder / "corpus"}).files, 2);
  EXPECT_THAT(error_of({{folder / "corpus.json"}, folder / "corpus"}, ErrorCode::kConfig),
              HasSubstr("choose another --output"));
}

TEST(Prepare, OptionsWithoutAnEffectAreRefused) {
  const TempFolder folder;
  write_all(folder / "a.txt", "text");
  write_all(folder / "a.jsonl", "{\"text\": \"row\"}\n");
  const auto refusal = [&](const char* input, auto set) {
    PrepareOptions options{{folder / input}, folder / "out/c"};
    set(options);
    return error_of(options, ErrorCode::kConfig);
  };
  EXPECT_THAT(refusal("a.jsonl", [](auto& o) { o.split_on = "---"; }), HasSubstr("--split-on is"));
  EXPECT_THAT(refusal("a.txt", [](auto& o) { o.field = "body"; }),
              HasSubstr("--field is about rows"));
  for (const bool bare : {true, false}) {
    const std::string said = refusal("a.jsonl", [&](auto& o) {
      o.chat = "chatml";
      (bare ? o.bare : o.special_as_text) = true;
    });
    EXPECT_THAT(said, HasSubstr(bare ? "--bare and --chat" : "--special-as-text and --chat"));
  }
}

TEST(Prepare, DoesItAgainOnlyIfSomethingChanged) {
  const TempFolder folder;
  const std::string in = folder / "in.txt";
  write_all(in, "text");
  PrepareOptions options{{in}, folder / "out/c"};
  const auto again = [&] { return !prepare(options).up_to_date; };
  EXPECT_TRUE(again());
  const auto written = fs::last_write_time(folder / "out/c.bin");
  const PrepareReport report = prepare(options);
  EXPECT_TRUE(report.up_to_date);
  EXPECT_EQ(report.tokens, 4);
  EXPECT_EQ(report.documents, 1);
  EXPECT_EQ(report.files, 1);
  EXPECT_EQ(report.dtype, "uint16");
  EXPECT_EQ(fs::last_write_time(folder / "out/c.bin"), written);
  EXPECT_THAT(names_in(folder / "out"), ElementsAre("c.bin", "c.idx", "c.json"));

  write_all(in, "other text");
  EXPECT_TRUE(again());
  EXPECT_FALSE(again());
  fs::last_write_time(in, fs::last_write_time(in) + std::chrono::seconds(2));
  EXPECT_TRUE(again());
  EXPECT_FALSE(again());
  options.split_on = "---";
  EXPECT_TRUE(again());
  EXPECT_FALSE(again());
  options.inputs.push_back(in);
  EXPECT_TRUE(again());
  EXPECT_FALSE(again());
  for (const char* file : {"c.bin", "c.idx", "c.json"}) {
    fs::remove(fs::path(folder / "out") / file);
    EXPECT_TRUE(again()) << file;
    write_all((fs::path(folder / "out") / file).string(), "garbage");
    EXPECT_TRUE(again()) << file;
    EXPECT_FALSE(again());
  }
  // A failed run leaves the corpus as it is.
  options.inputs.push_back(folder / "missing");
  EXPECT_NE(error_of(options), "");
  EXPECT_THAT(documents_in(folder / "out/c"), ElementsAre("other text", "other text"));
}

TEST(Inspect, TellsLengthsAndText) {
  const TempFolder folder;
  std::string rows;
  for (int i = 1; i <= 100; ++i)
    rows += "{\"text\":\"" + std::string(static_cast<size_t>(i), 'a') + "\"}\n";
  write_all(folder / "in.jsonl", rows);
  write_all(folder / "two.txt", "ab\tc\x01\n\xc3\xa9 and so on");
  prepare({{folder / "in.jsonl", folder / "two.txt"}, folder / "c"});
  InspectReport report = inspect({folder / "c", 100, 8});
  EXPECT_EQ(report.documents, 101);
  EXPECT_EQ(report.tokens, 5050 + 18);
  EXPECT_EQ(report.dtype, "uint16");
  EXPECT_EQ(report.lengths, (InspectReport::Lengths{1, 11, 50, 90, 99, 100}));
  EXPECT_EQ(report.document_tokens, 18);
  EXPECT_THAT(report.beginning, ElementsAre('a', 'b', '\t', 'c', 1, '\n', 0xc3, 0xa9));
  EXPECT_EQ(report.text, "ab\tc\\x01\n\xc3\xa9");
  EXPECT_THAT(describe(report), HasSubstr("document 100 (18 tokens) begins:\nab\tc"));
  EXPECT_EQ(inspect({folder / "c", 2, 200}).text, "aaa");
  EXPECT_THROW(inspect({folder / "c", 101, 8}), Error);
  EXPECT_THROW(inspect({folder / "c", -1, 8}), Error);
  EXPECT_THROW(inspect({folder / "none", 0, 8}), Error);
}

TEST(CopyTask, EveryDocumentIsARandomSequenceTwice) {
  const TempFolder folder;
  for (const int64_t tokens : {2, 3, 64, 65}) {
    write_copy_task({folder / "c", 50, tokens, 1000, 5});
    const TokenFile file = TokenFile::open(folder / "c");
    ASSERT_EQ(file.documents(), 50);
    ASSERT_EQ(file.tokens(), 50 * tokens);
    const int64_t half = (tokens + 1) / 2;
    std::set<int32_t> different;
    for (int64_t d = 0; d < 50; ++d) {
      ASSERT_EQ(file.document_begin(d), d * tokens);
      std::vector<int32_t> document(static_cast<size_t>(tokens));
      file.read(d * tokens, document);
      for (int64_t i = 0; i < tokens; ++i) {
        const int32_t token = document[static_cast<size_t>(i)];
        ASSERT_TRUE(token >= 0 && token < 1000);
        ASSERT_EQ(token, document[static_cast<size_t>(i % half)]);
        different.insert(token);
      }
    }
    // Of k uniform draws from 1000, about 1000 (1 - e^(-k/1000)) differ.
    const double draws = 50.0 * static_cast<double>(half);
    EXPECT_GT(static_cast<double>(different.size()), 0.9 * 1000 * (1 - std::exp(-draws / 1000)));
  }
  write_copy_task({folder / "a", 3, 64, 100, 5});
  write_copy_task({folder / "b", 3, 64, 100, 5});
  write_copy_task({folder / "d", 3, 64, 100, 6});
  EXPECT_EQ(read_all(folder / "a.bin"), read_all(folder / "b.bin"));
  EXPECT_NE(read_all(folder / "a.bin"), read_all(folder / "d.bin"));
  EXPECT_THROW(write_copy_task({folder / "a", 3, 1, 100, 5}), Error);
  EXPECT_THROW(write_copy_task({folder / "a", 0, 4, 100, 5}), Error);
  EXPECT_THROW(write_copy_task({folder / "a", 3, 4, 1, 5}), Error);
}

}  // namespace
}  // namespace longhaul::launch
