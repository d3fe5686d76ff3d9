#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/core/error.h"
#include "tests/temp_folder.h"

namespace longhaul::checkpoint {
namespace {

using ::testing::HasSubstr;

std::string file_with(const std::string& json, const std::string& data) {
  return bytes_of(static_cast<uint64_t>(json.size())) + json + data;
}

// The message of the Error(kCheckpoint) that opening a file with these bytes throws; "" if none.
std::string error_of(const TempFolder& folder, const std::string& bytes) {
  write_all(folder / "file", bytes);
  try {
    SafetensorsFile file(folder / "file");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCheckpoint);
    return error.what();
  }
  return "";
}

// The example of the reference implementation's own tests (safetensors/src/tensor.rs).
TEST(Safetensors, ReadsTheReferenceExample) {
  const std::string bytes = std::string("<\0\0\0\0\0\0\0", 8) +
                            R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})" +
                            std::string("\1\0\0\0\2\0\0\0\3\0\0\0\xff\xff\xff\xff", 16);
  const TempFolder folder;
  write_all(folder / "file", bytes);
  const SafetensorsFile file(folder / "file");
  ASSERT_EQ(file.header().tensors.size(), 1u);
  const SafetensorsEntry& entry = file.header().tensors.at("test");
  EXPECT_EQ(entry.dtype, "I32");
  EXPECT_EQ(entry.shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(entry.begin, 68);
  EXPECT_EQ(entry.end, 84);
  Tensor all(DType::kI32, {2, 2}), two(DType::kI32, {2});
  file.read("test", 0, all);
  EXPECT_THAT(all.span<int32_t>(), ::testing::ElementsAre(1, 2, 3, -1));
  file.read("test", 2, two);
  EXPECT_THAT(two.span<int32_t>(), ::testing::ElementsAre(3, -1));
  EXPECT_THROW(file.read("other", 0, two), Error);
  Tensor wrong(DType::kF32, {2});
  EXPECT_THROW(file.read("test", 0, wrong), Error);
  EXPECT_THROW(file.read("test", 3, two), Error);
}

TEST(Safetensors, WritesExactlyTheseBytes) {
  const TempFolder folder;
  Tensor small(DType::kBF16, {3}), wide(DType::kF64, {2});
  small.span<bf16>()[0] = bf16(1.0f);
  small.span<bf16>()[2] = bf16(-2.0f);
  wide.span<double>()[1] = 1.0;
  OutputFile out(folder / "file");
  write_safetensors(out, {{"a", {1, 3}, small}, {"b\"\n", {2}, wide}}, {{"step", "7"}});
  out.finish();
  // Keys in order of their names, the wider type first in the data.
  std::string json =
      R"({"__metadata__":{"step":"7"},"a":{"data_offsets":[16,22],"dtype":"BF16","shape":[1,3]},)"
      R"("b\"\n":{"data_offsets":[0,16],"dtype":"F64","shape":[2]}})";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::string data = bytes_of(uint64_t{0}) + bytes_of(uint64_t{0x3ff0000000000000}) +
                           bytes_of(uint16_t{0x3f80}) + bytes_of(uint16_t{0}) +
                           bytes_of(uint16_t{0xc000});
  const std::string bytes = read_all(folder / "file");
  EXPECT_EQ(bytes, file_with(json, data));
  EXPECT_EQ(out.bytes(), static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(out.checksum(), checksum_of(bytes));

  const SafetensorsFile file(folder / "file");
  EXPECT_EQ(file.header().metadata.at("step"), "7");
  Tensor read(DType::kBF16, {3});
  file.read("a", 0, read);
  EXPECT_EQ(static_cast<float>(read.span<bf16>()[2]), -2.0f);
}

TEST(Safetensors, AcceptsUnusualButValidFiles) {
  const TempFolder folder;
  EXPECT_EQ(error_of(folder, file_with("{}", "")), "");
  EXPECT_EQ(error_of(folder, file_with("{}      ", "")), "");
  EXPECT_EQ(error_of(folder,
                     file_with(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", "1234")),
            "");
  EXPECT_EQ(
      error_of(folder, file_with(R"({"e":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]},)"
                                 R"("f":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})",
                                 "12")),
      "");
}

TEST(Safetensors, NamesWhatIsWrong) {
  const TempFolder folder;
  const auto entry = [](const std::string& name, const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":[)" + shape +
           R"(],"data_offsets":[)" + offsets + "]}";
  };
  const std::string a = entry("a", "I32", "2", "0,8");
  struct Case {
    std::string bytes;
    std::string message;
  };
  const std::vector<Case> cases{
      {"", "only 0 bytes"},
      {"1234567", "only 7 bytes"},
      {bytes_of(uint64_t{100'000'001}) + "{}", "limit is 100000000"},
      {bytes_of(~uint64_t{0}) + "{}", "limit is 100000000"},
      {bytes_of(uint64_t{3}) + "{}", "ends within its header"},
      {file_with("", ""), "no valid JSON"},
      {file_with("{", ""), "no valid JSON"},
      {file_with("{}x", ""), "no valid JSON"},
      {file_with("[]", ""), "its header is an array"},
      {file_with("7", ""), "its header is a number"},
      {file_with("\xff\xfe", ""), "no valid JSON"},
      {file_with("{\"a\xff\":1}", ""), "no valid JSON"},
      {file_with("{" + a + "," + a + "}", "12345678"), "appears twice"},
      {file_with("{" + a + "}", "1234567"), "bytes [0, 8) of 7"},
      {file_with("{" + a + "}", "123456789"), "9 follow the header"},
      {file_with("{" + a + "," + entry("b", "I32", "1", "12,16") + "}", "0123456789abcdef"), "gap"},
      {file_with("{" + a + "," + entry("b", "I32", "1", "4,8") + "}", "12345678"), "inside"},
      {file_with("{" + entry("a", "I32", "3", "0,8") + "}", "12345678"), "12 bytes by its shape"},
      {file_with("{" + entry("a", "I32", "2", "8,0") + "}", "12345678"), "begins at byte 8"},
      {file_with("{" + entry("a", "Q32", "2", "0,8") + "}", "12345678"), "unknown dtype 'Q32'"},
      {file_with("{" + entry("a", "I32", "-2", "0,8") + "}", "12345678"), "negative"},
      {file_with("{" + entry("a", "I32", "2.5", "0,8") + "}", "12345678"), "fraction"},
      {file_with("{" + entry("a", "I32", "2", "0") + "}", "12345678"), "1 data_offsets"},
      {file_with("{" + entry("a", "I32", "2", "0,4,8") + "}", "12345678"), "3 data_offsets"},
      // 2^62 * 4 elements overflow, and would be 0 modulo 2^64.
      {file_with("{" + entry("a", "I32", "4611686018427387904,4", "0,0") + "}", ""), "impossible"},
      {file_with("{" + entry("a", "I32", "18446744073709551615", "0,8") + "}", "12345678"),
       "impossible size"},
      {file_with(R"({"a":{"dtype":"I32","shape":[2]}})", "12345678"), "lacks"},
      {file_with(R"({"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8],"x":1}})", "12345678"),
       "unknown field 'x'"},
      {file_with(R"({"a":{"dtype":"I32","dtype":"I32","shape":[2],"data_offsets":[0,8]}})",
                 "12345678"),
       "'dtype' twice"},
      {file_with(R"({"a":{"dtype":"I32","shape":[[2]],"data_offsets":[0,8]}})", "12345678"),
       "an array where none belongs"},
      {file_with(R"({"__metadata__":{"x":1}})", ""), "a number where none belongs"},
      {file_with(R"({"__metadata__":[]})", ""), "an array where none belongs"},
  };
  for (const Case& c : cases)
    EXPECT_THAT(error_of(folder, c.bytes), HasSubstr(c.message)) << c.bytes;
}

// Would take gigabytes, or the stack, if it were parsed into a tree.
TEST(Safetensors, DeepNestingIsRefusedAtOnce) {
  const TempFolder folder;
  EXPECT_THAT(error_of(folder, file_with("{\"a\":" + std::string(20'000'000, '['), "")),
              HasSubstr("an array where none belongs"));
  std::string objects;
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"a\":";
  EXPECT_THAT(error_of(folder, file_with(objects, "")), HasSubstr("unknown field 'a'"));
}

TEST(Safetensors, EveryFlippedBitAndEveryLengthIsSurvived) {
  const TempFolder folder;
  const std::string good = file_with(R"({"a":{"dtype":"I32","shape":[2,1],"data_offsets":[0,8]},)"
                                     R"("b":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}})",
                                     "0123456789");
  ASSERT_EQ(error_of(folder, good), "");
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(error_of(folder, good.substr(0, size)), "") << size;
  }
  int refused = 0;
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bytes = good;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    refused += error_of(folder, bytes) != "" ? 1 : 0;  // the others changed a name or the data
  }
  EXPECT_GT(refused, 4 * static_cast<int>(good.size()));
}

TEST(Safetensors, NamesOfTypesGoBothWays) {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16, DType::kI32, DType::kI64}) {
    EXPECT_EQ(dtype_from_safetensors(safetensors_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_from_safetensors("F16"), std::nullopt);
}

}  // namespace
}  // namespace longhaul::checkpoint
