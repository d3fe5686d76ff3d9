#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/core/error.h"
#include "launch/data/token_file.h"
#include "launch/data/token_file_writer.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// An index as Megatron-LM writes it, by hand.
std::string index_bytes(uint8_t type, const std::vector<int32_t>& lengths,
                        const std::vector<int64_t>& offsets,
                        const std::vector<int64_t>& documents) {
  std::string bytes = std::string("MMIDIDX\0\0", 9) + bytes_of(uint64_t{1}) + bytes_of(type) +
                      bytes_of(static_cast<uint64_t>(lengths.size())) +
                      bytes_of(static_cast<uint64_t>(documents.size()));
  for (const int32_t length : lengths) bytes += bytes_of(length);
  for (const int64_t offset : offsets) bytes += bytes_of(offset);
  for (const int64_t document : documents) bytes += bytes_of(document);
  return bytes;
}

template <class T>
std::string token_bytes(const std::vector<T>& tokens) {
  std::string bytes;
  for (const T token : tokens) bytes += bytes_of(token);
  return bytes;
}

std::vector<int32_t> read(const TokenFile& file, int64_t begin, int64_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  file.read(begin, tokens);
  return tokens;
}

TEST(TokenFile, ReadsMegatronsFormat) {
  const TempFolder folder;
  // Three documents: of one sequence, of two, and an empty one.
  write_all(folder / "c.idx", index_bytes(8, {3, 1, 2, 0}, {0, 6, 8, 12}, {0, 1, 3, 4}));
  write_all(folder / "c.bin", token_bytes<uint16_t>({7, 65535, 9, 1, 2, 3}));
  const TokenFile file = TokenFile::open(folder / "c");
  EXPECT_EQ(file.tokens(), 6);
  EXPECT_EQ(file.documents(), 3);
  EXPECT_EQ(file.bytes_per_token(), 2);
  EXPECT_EQ(file.dtype_name(), "uint16");
  EXPECT_EQ(file.name(), folder / "c");
  EXPECT_EQ(file.document_begin(0), 0);
  EXPECT_EQ(file.document_begin(1), 3);
  EXPECT_EQ(file.document_begin(2), 6);
  EXPECT_EQ(file.document_begin(3), 6);
  EXPECT_EQ(file.document_at(2), 0);
  EXPECT_EQ(file.document_at(3), 1);
  EXPECT_EQ(file.document_at(5), 1);
  EXPECT_THAT(read(file, 0, 6), ElementsAre(7, 65535, 9, 1, 2, 3));
  EXPECT_THAT(read(file, 4, 1), ElementsAre(2));
  EXPECT_THAT(read(file, 6, 0), ElementsAre());
  EXPECT_THROW(read(file, 5, 2), Error);
  EXPECT_THROW(read(file, -1, 2), Error);

  write_all(folder / "w.idx", index_bytes(4, {2}, {0}, {0, 1}));
  write_all(folder / "w.bin", token_bytes<int32_t>({70000, 2}));
  const TokenFile wide = TokenFile::open(folder / "w");
  EXPECT_THAT(read(wide, 0, 2), ElementsAre(70000, 2));
  EXPECT_EQ(wide.dtype_name(), "int32");
}

TEST(TokenFile, DocumentAtPassesOverEmptyDocuments) {
  const TempFolder folder;
  write_all(folder / "c.idx", index_bytes(8, {0, 2, 0, 0, 1}, {0, 0, 4, 4, 4}, {0, 1, 2, 3, 4, 5}));
  write_all(folder / "c.bin", token_bytes<uint16_t>({1, 2, 3}));
  const TokenFile file = TokenFile::open(folder / "c");
  EXPECT_EQ(file.document_at(0), 1);
  EXPECT_EQ(file.document_at(1), 1);
  EXPECT_EQ(file.document_at(2), 4);
}

TEST(TokenFile, WritesExactlyTheseBytes) {
  const TempFolder folder;
  {
    TokenFileWriter writer(folder / "sub/c", 300);
    writer.append(std::vector<int32_t>{5, 299});
    writer.append(std::vector<int32_t>{});
    writer.extend(std::vector<int32_t>{1});
    writer.extend(std::vector<int32_t>{2, 3});
    EXPECT_EQ(writer.document_tokens(), 3);
    writer.end_document();
    EXPECT_EQ(writer.tokens(), 5);
    EXPECT_EQ(writer.documents(), 3);
    writer.finish();
  }
  EXPECT_EQ(read_all(folder / "sub/c.idx"), index_bytes(8, {2, 0, 3}, {0, 4, 4}, {0, 1, 2, 3}));
  EXPECT_EQ(read_all(folder / "sub/c.bin"), token_bytes<uint16_t>({5, 299, 1, 2, 3}));
  {
    TokenFileWriter writer(folder / "w", 65537);
    writer.append(std::vector<int32_t>{65536});
    writer.finish();
  }
  EXPECT_EQ(read_all(folder / "w.idx"), index_bytes(4, {1}, {0}, {0, 1}));
  EXPECT_EQ(read_all(folder / "w.bin"), bytes_of(int32_t{65536}));
  EXPECT_EQ(TokenFile::open(folder / "sub/c").documents(), 3);
}

TEST(TokenFile, AnUnfinishedWriterLeavesWhatWasThere) {
  const TempFolder folder;
  {
    TokenFileWriter writer(folder / "c", 256);
    writer.append(std::vector<int32_t>{1});
    writer.finish();
  }
  {
    TokenFileWriter writer(folder / "c", 256);
    writer.append(std::vector<int32_t>{2, 3});
    EXPECT_THROW(writer.append(std::vector<int32_t>{256}), Error);
    EXPECT_THROW(writer.append(std::vector<int32_t>{-1}), Error);
  }
  EXPECT_THAT(read(TokenFile::open(folder / "c"), 0, 1), ElementsAre(1));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()),
                          std::filesystem::directory_iterator()),
            2);
}

TEST(TokenFile, AnOutputThatCannotBeWrittenIsNamed) {
  const TempFolder folder;
  write_all(folder / "file", "not a folder");
  try {
    TokenFileWriter writer(folder / "file/c", 256);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kEnvironment);
    EXPECT_THAT(error.what(), HasSubstr(folder / "file/c.bin"));
  }
}

std::string error_of(const std::string& prefix) {
  try {
    TokenFile::open(prefix);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

TEST(TokenFile, NamesWhatIsWrong) {
  const TempFolder folder;
  const std::string prefix = folder / "c";
  EXPECT_THAT(error_of(prefix), HasSubstr("c.idx' cannot be opened: No such file"));
  const std::string bin = token_bytes<uint16_t>({1, 2, 3, 4, 5});
  const std::string good = index_bytes(8, {3, 2}, {0, 6}, {0, 1, 2});
  write_all(prefix + ".idx", good);
  EXPECT_THAT(error_of(prefix), HasSubstr("c.bin' cannot be opened: No such file"));
  write_all(prefix + ".bin", bin);
  EXPECT_EQ(error_of(prefix), "");
  write_all(prefix + ".bin", bin.substr(0, 7));
  EXPECT_THAT(error_of(prefix),
              HasSubstr("c.bin' has 7 bytes, but its index says 10: it is truncated"));
  write_all(prefix + ".bin", bin + "x");
  EXPECT_THAT(error_of(prefix), HasSubstr("c.bin' has 11 bytes, but its index says 10"));
  write_all(prefix + ".bin", bin);

  struct Case {
    std::string index;
    std::string message;
  };
  std::string version = good;
  version[9] = 2;
  std::string type = good;
  type[17] = 6;
  std::string overflow = good;  // 2^60 sequences
  overflow[18 + 7] = 0x10;
  for (const Case& c : std::vector<Case>{
           {"", "no index"},
           {"MMIDIDX", "no index"},
           {"some text that is long enough to be an index, but is none", "no index"},
           {version, "version 2"},
           {type, "type 6; only 4 (int32) and 8 (uint16)"},
           {overflow, "truncated or damaged"},
           {good.substr(0, good.size() - 1), "truncated or damaged"},
           {good + "x", "truncated or damaged"},
           {index_bytes(8, {3, 2}, {0, 8}, {0, 1, 2}),
            "sequence 1 has 2 tokens at byte 8, expected"},
           {index_bytes(8, {6, -1}, {0, 12}, {0, 1, 2}), "sequence 1 has -1 tokens"},
           {index_bytes(8, {3, 2}, {0, 6}, {1, 1, 2}), "document 0 of 2 begins at sequence 1"},
           {index_bytes(8, {3, 2}, {0, 6}, {0, 1, 1}), "document 2 of 2 begins at sequence 1"},
           {index_bytes(8, {3, 2}, {0, 6}, {0, 2, 1, 2}), "document 2 of 3 begins at sequence 1"},
           {index_bytes(8, {3, 2}, {0, 6}, {0, 9, 2}), "document 1 of 2 begins at sequence 9"},
           {index_bytes(8, {3, 2}, {0, 6}, {}), "no document index"},
           {index_bytes(8, {3, 2}, {0, 6}, {0}), "sequences but no document"},
       }) {
    write_all(prefix + ".idx", c.index);
    EXPECT_THAT(error_of(prefix), HasSubstr(c.message));
  }
  std::filesystem::remove(prefix + ".idx");
  std::filesystem::create_directory(prefix + ".idx");
  EXPECT_NE(error_of(prefix), "");
}

TEST(TokenFile, AnEmptyCorpusCanBeOpened) {
  const TempFolder folder;
  write_all(folder / "c.idx", index_bytes(8, {}, {}, {0}));
  write_all(folder / "c.bin", "");
  const TokenFile file = TokenFile::open(folder / "c");
  EXPECT_EQ(file.tokens(), 0);
  EXPECT_EQ(file.documents(), 0);
}

TEST(TokenFile, AnyGarbageIsSurvived) {
  const TempFolder folder;
  const std::string good = index_bytes(8, {3, 2}, {0, 6}, {0, 1, 2});
  write_all(folder / "c.bin", token_bytes<uint16_t>({1, 2, 3, 4, 5}));
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bytes = good;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    write_all(folder / "c.idx", bytes);
    // Two of the bits move the border of the documents to another sequence that there is.
    if (error_of(folder / "c").empty()) {
      EXPECT_EQ(bit / 64, (good.size() - 16) * 8 / 64) << bit;
      EXPECT_EQ(read(TokenFile::open(folder / "c"), 0, 5).back(), 5);
    }
  }
}

}  // namespace
}  // namespace longhaul::launch
