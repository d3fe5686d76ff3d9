// `longhaul data prepare` with tokenizers, masks, packed inputs and threads; and what training
// makes of a mask.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "absl/strings/str_format.h"
#include "kernels/core/error.h"
#include "launch/data/batch.h"
#include "launch/data/inspect.h"
#include "launch/data/llmc.h"
#include "launch/data/prepare.h"
#include "launch/data/token_file.h"
#include "launch/data/token_file_writer.h"
#include "launch/tokenizer/tokenizer.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

// All bytes in the byte alphabet (ids of printable ones by their order), two merges, and control
// tokens from 300 on.
json small_tokenizer() {
  json vocab = json::object();
  int other = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    const int code = printable ? byte : other++;
    std::string name;
    if (code >= 0x80) name.push_back(static_cast<char>(0xC0 | code >> 6));
    name.push_back(static_cast<char>(code >= 0x80 ? 0x80 | (code & 0x3F) : code));
    vocab[name] = byte;
  }
  vocab["th"] = 256;
  vocab["the"] = 257;
  json tokens = json::array();
  int id = 300;
  for (const char* content : {"<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>",
                              "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}) {
    tokens.push_back({{"id", id++}, {"content", content}, {"special", true}});
  }
  const json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json first = {{"SpecialToken", {{"id", "<|begin_of_text|>"}, {"type_id", 0}}}};
  return {
      {"version", "1.0"},
      {"added_tokens", tokens},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", json::array({first, sequence})},
        {"pair", json::array()},
        {"special_tokens",
         {{"<|begin_of_text|>",
           {{"id", "<|begin_of_text|>"}, {"ids", {300}}, {"tokens", {"<|begin_of_text|>"}}}}}}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"t h", "th e"}}}}};
}

struct Corpus {
  std::vector<std::vector<int32_t>> documents;
  std::vector<std::string> learned;  // '1' and '0' for each token
};
Corpus read(const std::string& prefix) {
  const TokenFile file = TokenFile::open(prefix);
  Corpus corpus;
  for (int64_t d = 0; d < file.documents(); ++d) {
    const int64_t begin = file.document_begin(d), end = file.document_begin(d + 1);
    corpus.documents.emplace_back(static_cast<size_t>(end - begin));
    file.read(begin, corpus.documents.back());
    corpus.learned.emplace_back();
    for (int64_t i = begin; i < end; ++i) corpus.learned.back() += file.learned(i) ? '1' : '0';
  }
  return corpus;
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

class PrepareTokens : public ::testing::Test {
 protected:
  PrepareTokens() { write_all(folder_ / "t/tokenizer.json", small_tokenizer().dump()); }
  PrepareOptions options(const std::vector<std::string>& inputs) {
    PrepareOptions options;
    for (const std::string& input : inputs) options.inputs.push_back(folder_ / input);
    options.output = folder_ / "out/c";
    options.tokenizer = folder_ / "t";
    options.threads = 2;
    return options;
  }
  Corpus prepared(const PrepareOptions& options) {
    prepare(options);
    return read(options.output);
  }
  const TempFolder folder_;
};

TEST_F(PrepareTokens, DocumentsWithBeginningAndEnd) {
  write_all(folder_ / "in.jsonl",
            "{\"text\":\"the a\"}\n{\"text\":\"\"}\n{\"text\":\"<|im_end|>\"}\n");
  write_all(folder_ / "in.txt", "b\n---\nth\n");
  PrepareOptions o = options({"in.jsonl", "in.txt"});
  o.split_on = "---";
  EXPECT_THAT(prepared(o).documents,
              ElementsAre(ElementsAre(300, 257, ' ', 'a', 301), ElementsAre(300, 303, 301),
                          ElementsAre(300, 'b', '\n', 301), ElementsAre(300, 256, '\n', 301)));
  EXPECT_FALSE(fs::exists(o.output + ".mask"));
  EXPECT_EQ(prepare(o).vocabulary, 307);
  EXPECT_TRUE(prepare(o).up_to_date);
  o.bare = o.special_as_text = true;
  const PrepareReport report = prepare(o);
  EXPECT_FALSE(report.up_to_date);
  EXPECT_EQ(report.empty_documents, 1);
  EXPECT_EQ(read(o.output).documents[1].size(), 10U);
  // Another tokenizer, another corpus.
  write_all(folder_ / "t/tokenizer_config.json", "{}");
  EXPECT_FALSE(prepare(o).up_to_date);
  // By the name of its file it is the same, with the same ends of text.
  o.tokenizer = folder_ / "t/tokenizer.json";
  EXPECT_TRUE(prepare(o).up_to_date);
  write_all(folder_ / "t/tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  EXPECT_FALSE(prepare(o).up_to_date);
}

TEST_F(PrepareTokens, AVocabularyBeyond16Bits) {
  json file = small_tokenizer();
  file["added_tokens"].push_back({{"id", 70000}, {"content", "<far>"}});
  for (int i = 0; i < 4000; ++i) {
    file["added_tokens"].push_back({{"id", 400 + i}, {"content", "<x" + std::to_string(i) + ">"}});
  }
  write_all(folder_ / "t/tokenizer.json", file.dump());
  write_all(folder_ / "in.txt", "a<far>");
  PrepareOptions o = options({"in.txt"});
  EXPECT_EQ(prepare(o).dtype, "int32");
  EXPECT_THAT(read(o.output).documents, ElementsAre(ElementsAre(300, 'a', 70000, 301)));
}

TEST_F(PrepareTokens, PromptsAreGiven) {
  write_all(folder_ / "in.jsonl",
            "{\"ask\":\"the\",\"reply\":\"b\"}\n{\"ask\":\"\",\"reply\":\"the\"}\n");
  PrepareOptions o = options({"in.jsonl"});
  o.field = "reply";
  o.prompt_field = "ask";
  const PrepareReport report = prepare(o);
  EXPECT_EQ(report.learned, 4);
  EXPECT_THAT(describe(report, o), HasSubstr("; 4 tokens (57.1 %) are learned, the others given"));
  const Corpus corpus = read(o.output);
  EXPECT_THAT(corpus.documents,
              ElementsAre(ElementsAre(300, 257, 'b', 301), ElementsAre(300, 257, 301)));
  EXPECT_THAT(corpus.learned, ElementsAre("0011", "011"));
  EXPECT_TRUE(prepare(o).up_to_date);
  InspectOptions look{.prefix = o.output};
  EXPECT_EQ(inspect(look).text, "");
  look.tokenizer = o.tokenizer;
  EXPECT_EQ(inspect(look).text, "<|begin_of_text|>theb<|end_of_text|>");
  EXPECT_THAT(describe(inspect(look)), HasSubstr("\n4 of them are learned, the others given\n"));
  // A corpus without a mask takes the place of one with a mask.
  o.prompt_field = "";
  EXPECT_THAT(prepared(o).learned, ElementsAre("111", "111"));
  EXPECT_FALSE(fs::exists(o.output + ".mask"));
}

TEST_F(PrepareTokens, Conversations) {
  const json row = {{"messages",
                     {{{"role", "system"}, {"content", "s"}},
                      {{"role", "user"}, {"content", "<|im_end|>"}},
                      {{"role", "assistant"}, {"content", " the\n"}}}}};
  write_all(folder_ / "in.jsonl", row.dump() + "\n");
  PrepareOptions o = options({"in.jsonl"});
  const auto flat = [](const std::vector<int32_t>& tokens) {
    std::string text;
    for (const int32_t t : tokens) {
      if (t < 256) text.push_back(static_cast<char>(t));
      if (t >= 256) text.append("{").append(std::to_string(t)).append("}");
    }
    return text;
  };
  o.chat = "chatml";
  Corpus corpus = prepared(o);
  // What a user says is never control.
  EXPECT_EQ(flat(corpus.documents.at(0)),
            "{302}system\ns{303}\n{302}user\n<|im_end|>{303}\n{302}assistant\n {257}\n{303}\n");
  EXPECT_EQ(corpus.learned.at(0).size(), corpus.documents.at(0).size());
  EXPECT_EQ(corpus.learned.at(0), std::string(corpus.learned.at(0).size() - 5, '0') + "11110");
  o.chat = "llama3";
  corpus = prepared(o);
  EXPECT_EQ(flat(corpus.documents.at(0)),
            "{300}{304}system{305}\n\ns{306}{304}user{305}\n\n<|im_end|>{306}"
            "{304}assistant{305}\n\n{257}{306}");
  EXPECT_EQ(corpus.learned.at(0), std::string(corpus.learned.at(0).size() - 2, '0') + "11");

  o.chat = "vicuna";
  EXPECT_THAT(error_of(o, ErrorCode::kConfig), HasSubstr("'vicuna' is not known"));
  o.chat = "chatml";
  const auto refuses = [&](const std::string& messages, const std::string& why) {
    write_all(folder_ / "in.jsonl", "\n{\"messages\":" + messages + "}\n");
    EXPECT_THAT(error_of(o), HasSubstr("in.jsonl:2: field 'messages'" + why));
  };
  refuses("[]", " is no array of messages");
  refuses("[1]", "[0] is no object");
  refuses(R"([{"role":"robot","content":"x"}])", "[0] has no role of");
  refuses(R"([{"role":"user","content":["x"]}])", "[0] has no content that is a string");
  refuses(R"([{"role":"user","content":"x","tool_calls":[1]}])", "[0] has the field 'tool_calls'");
  o.tokenizer = "bytes";
  EXPECT_THAT(error_of(o), HasSubstr("wants a token <|im_start|>"));
  o.tokenizer = folder_ / "t";
  write_all(folder_ / "in.txt", "x");
  o.inputs = {folder_ / "in.txt"};
  EXPECT_THAT(error_of(o), HasSubstr("in.txt' is text"));
  o.prompt_field = "ask";
  EXPECT_THAT(error_of(o, ErrorCode::kConfig), HasSubstr("exclude each other"));
}

std::string gzipped(const std::string& text) {
  std::string out(text.size() + 1000, '\0');
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}
// With a checksum, as the tool writes it.
std::string zstandard(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  const size_t bytes = ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size());
  ZSTD_freeCCtx(context);
  EXPECT_EQ(ZSTD_isError(bytes), 0U);
  out.resize(bytes);
  return out;
}

// Where a tokenizer puts a space before words that begin, what an assistant says is not such a
// word: a conversation has the tokens of the template's text.
TEST_F(PrepareTokens, ConversationsOfTokenizersWithLeadingSpaces) {
  const std::string space = "\u2581";
  json vocabulary;
  int id = 0;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[absl::StrFormat("<0x%02X>", byte)] = id++;
  }
  for (const std::string piece : {space.c_str(), "h", "i", "hi", "a"}) vocabulary[piece] = id++;
  vocabulary[space + "hi"] = id++;
  for (const char* scheme : {"first", "always"}) {
    const json metaspace = {{"type", "Metaspace"},
                            {"replacement", space},
                            {"prepend_scheme", scheme},
                            {"split", false}};
    json file = {{"version", "1.0"},
                 {"normalizer", nullptr},
                 {"post_processor", nullptr},
                 {"pre_tokenizer", metaspace},
                 {"decoder", metaspace},
                 {"model",
                  {{"type", "BPE"},
                   {"vocab", vocabulary},
                   {"merges", {"h i", space + " hi"}},
                   {"byte_fallback", true}}}};
    for (const char* control : {"<|im_start|>", "<|im_end|>"}) {
      file["added_tokens"].push_back({{"id", id + (control[5] == 'e')},
                                      {"content", control},
                                      {"special", true},
                                      {"normalized", false}});
    }
    write_all(folder_ / "t/tokenizer.json", file.dump());
    write_all(folder_ / "in.jsonl", R"({"messages":[{"role":"user","content":"hi a"},)"
                                    R"({"role":"assistant","content":"hi"}]})"
                                    "\n");
    PrepareOptions o = options({"in.jsonl"});
    o.chat = "chatml";
    prepare(o);
    EXPECT_THAT(
        read(o.output).documents,
        ElementsAre(ElementsAreArray(
            load_tokenizer(o.tokenizer)
                ->encode(
                    "<|im_start|>user\nhi a<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"))))
        << scheme;
  }
}

TEST_F(PrepareTokens, PackedInputsAreUnpacked) {
  std::string text;
  for (int i = 0; text.size() < 1'200'000; ++i) text += "line " + std::to_string(i * 7919) + "\n";
  const std::string row = "{\"text\":\"the\"}\n";
  write_all(folder_ / "plain.txt", text);
  write_all(folder_ / "a.gz", gzipped(text.substr(0, 1000)) + gzipped(text.substr(1000)));
  write_all(folder_ / "b.zst", zstandard(text.substr(0, 1000)) + zstandard(text.substr(1000)));
  write_all(folder_ / "c.jsonl.gz", gzipped(row));
  write_all(folder_ / "d.jsonl.zst", zstandard(row));
  write_all(folder_ / "e.gz", gzipped(""));
  const Corpus corpus =
      prepared(options({"plain.txt", "a.gz", "b.zst", "c.jsonl.gz", "d.jsonl.zst", "e.gz"}));
  ASSERT_EQ(corpus.documents.size(), 5U);
  EXPECT_TRUE(corpus.documents[1] == corpus.documents[0]);
  EXPECT_TRUE(corpus.documents[2] == corpus.documents[0]);
  EXPECT_THAT(corpus.documents[3], ElementsAre(300, 257, 301));
  EXPECT_EQ(corpus.documents[4], corpus.documents[3]);

  for (const std::string& packed : {gzipped(text), zstandard(text)}) {
    write_all(folder_ / "bad", packed.substr(0, packed.size() / 2));
    EXPECT_THAT(error_of(options({"bad"})), HasSubstr("bad' is truncated"));
    std::string damaged = packed;
    for (size_t i = packed.size() / 2; i < packed.size() / 2 + 64; ++i) damaged[i] = '\x55';
    write_all(folder_ / "bad", damaged);
    EXPECT_THAT(error_of(options({"bad"})), HasSubstr("bad' is damaged: "));
  }
  write_all(folder_ / "bad", std::string("\xfd\x37zXZ\0", 6));
  EXPECT_THAT(error_of(options({"bad"})), HasSubstr("is compressed in a way that is not read"));
}

// A text of several blocks with words across every border of them, as one document.
std::string long_text(std::mt19937& random, size_t bytes) {
  static const std::vector<std::string> kWords = {
      "the", " the", "th", "e",      " there",        "\n",      "\n\n", "  ",
      "12",  "'s",   ".",  "\u00e9", " \u4e2d\u6587", "\u3002\n"};
  std::string text;
  while (text.size() < bytes) text += kWords[random() % kWords.size()];
  return text;
}

TEST_F(PrepareTokens, NeitherThreadsNorBlocksChangeTheCorpus) {
  std::mt19937 random(1);
  const std::string text = long_text(random, 2'500'000);
  write_all(folder_ / "a.txt", text);
  std::string rows;
  for (int i = 0; i < 400; ++i) {
    rows += json({{"text", long_text(random, 1 + random() % 2000)}}).dump() + "\n";
  }
  write_all(folder_ / "b.jsonl", rows);
  PrepareOptions o = options({"a.txt", "b.jsonl"});
  o.threads = 1;
  prepare(o);
  const std::string bin = read_all(o.output + ".bin"), idx = read_all(o.output + ".idx");
  for (const int threads : {3}) {
    o.threads = threads;
    o.output = folder_ / ("out" + std::to_string(threads));
    EXPECT_EQ(prepare(o).documents, 401);
    EXPECT_TRUE(read_all(o.output + ".bin") == bin && read_all(o.output + ".idx") == idx)
        << threads;
  }
  // At once, without blocks.
  const auto tokenizer = load_tokenizer(o.tokenizer);
  std::vector<int32_t> whole = {300};
  tokenizer->encode(text, whole);
  whole.push_back(301);
  EXPECT_TRUE(read(o.output).documents.at(0) == whole);
}

TEST_F(PrepareTokens, GoesOnAfterTheFilesThatWereDone) {
  const auto row = [](const std::string& text) {
    return json({{"ask", "p"}, {"text", text}}).dump() + "\n";
  };
  write_all(folder_ / "1.jsonl", row("the") + row(""));
  write_all(folder_ / "2.jsonl", row("two"));
  write_all(folder_ / "3.jsonl", "broken\n");
  write_all(folder_ / "4.jsonl", row("four"));
  PrepareOptions o = options({"1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl"});
  o.prompt_field = "ask";
  o.seconds_between_records = 0;
  EXPECT_THAT(error_of(o), HasSubstr("3.jsonl:1 is no valid JSON"));
  EXPECT_TRUE(fs::exists(o.output + ".progress"));
  EXPECT_FALSE(fs::exists(o.output + ".bin"));
  EXPECT_NE(error_of(o), "");  // and again, without losing what is there
  // Another run overwrites what was there, which this one then does not count on.
  PrepareOptions other = o;
  other.bare = true;
  other.seconds_between_records = 1e9;
  EXPECT_THAT(error_of(other), HasSubstr("3.jsonl:1 is no valid JSON"));
  EXPECT_THAT(error_of(o), HasSubstr("3.jsonl:1 is no valid JSON"));
  write_all(folder_ / "3.jsonl", row("mended"));
  PrepareOptions elsewhere = o;
  elsewhere.output = folder_ / "elsewhere";
  prepare(elsewhere);
  const PrepareReport report = prepare(o);
  EXPECT_EQ(report.resumed_files, 2);
  EXPECT_EQ(report.documents, 5);
  for (const char* ending : {".bin", ".idx", ".mask"}) {
    EXPECT_EQ(read_all(o.output + ending), read_all(elsewhere.output + ending)) << ending;
  }
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "out"))
    names.insert(entry.path().filename());
  EXPECT_THAT(names, ElementsAre("c.bin", "c.idx", "c.json", "c.mask"));

  // Not after a file that has changed since, nor with other options.
  for (const bool file : {true, false}) {
    write_all(folder_ / "4.jsonl", "broken\n");
    EXPECT_NE(error_of(o), "");
    write_all(folder_ / "4.jsonl", row("four"));
    if (file) write_all(folder_ / "1.jsonl", row("changed"));
    if (!file) o.bare = true;
    EXPECT_EQ(prepare(o).resumed_files, 0);
  }
  // A record without its files.
  write_all(folder_ / "4.jsonl", "broken\n");
  EXPECT_NE(error_of(o), "");
  write_all(o.output + ".lengths.partial", "x");
  EXPECT_THAT(error_of(o), HasSubstr("does not fit"));
}

TEST(Mask, IsLeftOutOfTheLoss) {
  const TempFolder folder;
  std::mt19937 random(2);
  for (int round = 0; round < 40; ++round) {
    TokenFileWriter writer(folder / "c", 1000, {.mask = true});
    std::vector<int32_t> tokens;
    std::vector<uint8_t> learned;
    std::vector<int64_t> document;  // of each token
    const int64_t documents = 1 + static_cast<int64_t>(random() % 6);
    for (int64_t d = 0; d < documents; ++d) {
      const size_t from = tokens.size();
      for (size_t n = random() % 12 + (d == 0 ? 8 : 0); n > 0; --n) {
        tokens.push_back(static_cast<int32_t>(random() % 1000));
        learned.push_back(random() % 3 == 0 ? 1 : 0);
        document.push_back(d);
      }
      writer.extend(std::span(tokens).subspan(from), std::span(learned).subspan(from));
      writer.end_document();
    }
    writer.finish();
    const TokenFile file = TokenFile::open(folder / "c");
    const auto n = static_cast<int64_t>(tokens.size());
    const int64_t length = 1 + static_cast<int64_t>(random()) % 8;
    const DataLoader loader(file, {0, n}, length, 7);
    for (int64_t i = 0; i < loader.samples_per_epoch(); ++i) {
      const Sample sample = loader.load(i);
      // Where the sample is, its tokens say only up to repetitions: try all places.
      bool found = false;
      for (int64_t begin = 0; begin + length <= n; begin += length) {
        std::vector<int32_t> labels;
        int64_t targets = 0;
        for (int64_t t = begin; t < begin + length; ++t) {
          const auto next = static_cast<size_t>(t + 1);
          const bool is_label =
              t + 1 < n && document[next] == document[next - 1] && learned[next] == 1;
          labels.push_back(is_label ? tokens[next] : -1);
          targets += is_label ? 1 : 0;
        }
        found = found ||
                (std::equal(sample.tokens.begin(), sample.tokens.end(), tokens.begin() + begin) &&
                 sample.labels == labels && sample.targets == targets);
      }
      ASSERT_TRUE(found) << round << " " << i;
      ASSERT_EQ(loader.targets(i), sample.targets);
    }
  }
  write_all(folder / "c.mask", "x");
  EXPECT_THROW(TokenFile::open(folder / "c"), Error);
}

template <class Token>
void write_llmc(const std::string& path, int32_t magic, int32_t version,
                const std::vector<Token>& tokens) {
  std::vector<int32_t> header(256, 0);
  header[0] = magic;
  header[1] = version;
  header[2] = static_cast<int32_t>(tokens.size());
  std::string bytes(reinterpret_cast<const char*>(header.data()), 1024);
  bytes.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(Token));
  write_all(path, bytes);
}

TEST(Llmc, BothKindsWithTheirDocuments) {
  const TempFolder folder;
  write_llmc<uint16_t>(folder / "a.bin", 20240520, 1, {50256, 1, 2, 50256, 65535});
  write_llmc<uint16_t>(folder / "b.bin", 20240520, 1, {3, 50256, 50256, 4});
  ImportReport report = import_llmc({{folder / "a.bin", folder / "b.bin"}, folder / "c", {}});
  EXPECT_EQ(report.dtype, "uint16");
  EXPECT_THAT(read(folder / "c").documents,
              ElementsAre(ElementsAre(50256, 1, 2), ElementsAre(50256, 65535), ElementsAre(3),
                          ElementsAre(50256), ElementsAre(50256, 4)));
  report = import_llmc({{folder / "a.bin"}, folder / "c", -1});
  EXPECT_EQ(report.documents, 1);
  write_llmc<uint32_t>(folder / "l.bin", 20240801, 7, {128000, 1, 128000, 127999});
  report = import_llmc({{folder / "l.bin"}, folder / "m", {}});
  EXPECT_EQ(report.dtype, "int32");
  EXPECT_THAT(read(folder / "m").documents,
              ElementsAre(ElementsAre(128000, 1), ElementsAre(128000, 127999)));

  const auto error = [&](const std::vector<std::string>& inputs) -> std::string {
    try {
      import_llmc({inputs, folder / "x", {}});
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THAT(error({folder / "a.bin", folder / "l.bin"}), HasSubstr("of different tokenizers"));
  write_all(folder / "sub/x.bin", read_all(folder / "a.bin"));
  fs::create_symlink(folder / "sub/x.bin", folder / "x.bin");
  EXPECT_THAT(error({folder / "sub/x.bin"}), HasSubstr("would be overwritten"));
  fs::remove(folder / "x.bin");
  EXPECT_THAT(error({folder / "none"}), HasSubstr("none' cannot be read: "));
  write_all(folder / "bad.bin", "x");
  EXPECT_THAT(error({folder / "bad.bin"}), HasSubstr("it has no header"));
  write_llmc<uint16_t>(folder / "bad.bin", 20240520, 2, {1});
  EXPECT_THAT(error({folder / "bad.bin"}), HasSubstr("it begins with 20240520 and 2"));
  const std::string good = read_all(folder / "a.bin");
  write_all(folder / "bad.bin", good.substr(0, good.size() - 1));
  EXPECT_THAT(error({folder / "bad.bin"}),
              HasSubstr("has 1033 bytes, but its header says 5 tokens"));
  write_llmc<uint32_t>(folder / "bad.bin", 20240801, 7, {0xFFFFFFFFU});
  EXPECT_THAT(error({folder / "bad.bin"}), HasSubstr("has a token 4294967295"));
}

}  // namespace
}  // namespace longhaul::launch
