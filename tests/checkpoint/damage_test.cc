// Files that are missing, cut off, changed or contradict each other: an error that names the file,
// never a crash or wrong numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checksum.h"
#include "checkpoint/manifest.pb.h"
#include "dist/local/local.h"
#include "tests/checkpoint/test_state.h"
#include "tests/temp_folder.h"

namespace longhaul::checkpoint {
namespace {

using ::testing::HasSubstr;
constexpr std::chrono::seconds kDeadline(60);

std::vector<TestTensor> small_tensors() {
  return {{"a", DType::kF32, {40}, Cut::kEven}, {"b", DType::kI64, {6}, Cut::kLastOnly}};
}

class Damage : public ::testing::Test {
 protected:
  Damage() {
    dist::run_local(2, kDeadline, [&](dist::Group& world) {
      const TestState mine = make_state(world.rank(), 2, small_tensors());
      fill(mine.state, 1);
      save(world, folder_.path(), {1, 1, test_model(), ""}, mine.state, 0);
    });
    path_ = folder_ / "step-00000001";
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      good_[entry.path().string()] = read_all(entry.path().string());
    }
  }

  void restore() {
    for (const auto& [path, bytes] : good_) write_all(path, bytes);
  }

  // "" if it loads.
  std::string load_error() {
    std::string message;
    dist::run_local(2, kDeadline, [&](dist::Group& world) {
      try {
        const TestState mine = make_state(world.rank(), 2, small_tensors());
        load(world, path_, test_model(), mine.state);
        expect_filled(mine.state, 1);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kCheckpoint) << error.what();
        if (world.rank() == 0) message = error.what();
      }
    });
    return message;
  }

  std::string error_with_manifest(const std::function<void(proto::Manifest&)>& change) {
    proto::Manifest manifest;
    EXPECT_TRUE(manifest.ParseFromString(good_.at(path_ + "/manifest.pb")));
    change(manifest);
    const std::string bytes = manifest.SerializeAsString();
    write_all(path_ + "/manifest.pb", bytes);
    write_all(path_ + "/COMPLETE", "xxh3 " + to_hex(checksum_of(bytes)) + "\n");
    const std::string message = load_error();
    restore();
    return message;
  }

  TempFolder folder_;
  std::string path_;
  std::map<std::string, std::string> good_;
};

TEST_F(Damage, EveryFileMissing) {
  ASSERT_EQ(good_.size(), 4u);
  ASSERT_EQ(load_error(), "");
  for (const auto& [file, bytes] : good_) {
    std::filesystem::remove(file);
    EXPECT_THAT(load_error(), HasSubstr(std::filesystem::path(file).filename().string())) << file;
    restore();
  }
  std::filesystem::remove_all(path_);
  EXPECT_THAT(load_error(), HasSubstr("there is no checkpoint"));
}

TEST_F(Damage, EveryFileCutOffOrLonger) {
  for (const auto& [file, bytes] : good_) {
    for (const size_t size : {size_t{0}, size_t{1}, bytes.size() / 2, bytes.size() - 1}) {
      write_all(file, bytes.substr(0, size));
      EXPECT_THAT(load_error(), HasSubstr(std::filesystem::path(file).filename().string())) << size;
    }
    write_all(file, bytes + "x");
    EXPECT_THAT(load_error(), HasSubstr(std::filesystem::path(file).filename().string()));
    restore();
  }
}

TEST_F(Damage, EveryByteChanged) {
  for (const auto& [file, bytes] : good_) {
    const size_t step = std::max<size_t>(1, bytes.size() / 60);
    for (size_t i = 0; i < bytes.size(); i += step) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ 0x10);
      write_all(file, changed);
      EXPECT_NE(load_error(), "") << file << " " << i;
    }
    restore();
  }
}

TEST_F(Damage, APathThatIsNoFolder) {
  std::filesystem::remove_all(path_);
  write_all(path_, "a file");
  EXPECT_NE(load_error(), "");
  EXPECT_EQ(latest(folder_.path()), std::nullopt);
}

TEST_F(Damage, ReadInfoNamesTheMarker) {
  std::filesystem::remove(path_ + "/COMPLETE");
  try {
    read_info(path_);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("COMPLETE is missing"));
  }
}

// Correct checksums, wrong content: a program that writes manifests badly, or malice.
TEST_F(Damage, AManifestThatContradictsItself) {
  EXPECT_EQ(error_with_manifest([](proto::Manifest&) {}), "");
  EXPECT_THAT(error_with_manifest([](proto::Manifest& m) { m.set_format(2); }),
              HasSubstr("has format 2, this program reads format 1"));
  EXPECT_THAT(error_with_manifest([](proto::Manifest& m) { m.mutable_files(0)->set_name("../x"); }),
              HasSubstr("file name '../x'"));
  EXPECT_THAT(error_with_manifest([](proto::Manifest& m) { m.mutable_files(0)->set_bytes(-1); }),
              HasSubstr("negative size"));
  EXPECT_THAT(error_with_manifest([](proto::Manifest& m) { m.mutable_files()->RemoveLast(); }),
              HasSubstr("file number 1 of 1"));
  const auto with_tensor = [&](const std::function<void(proto::Tensor&)>& change) {
    return error_with_manifest([&](proto::Manifest& m) { change(*m.mutable_tensors(0)); });
  };
  EXPECT_THAT(with_tensor([](proto::Tensor& t) { t.set_dtype("F8"); }), HasSubstr("dtype 'F8'"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) { t.set_shape(0, -40); }), HasSubstr("impossible"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) {
                t.set_shape(0, int64_t{1} << 40);
                t.add_shape(int64_t{1} << 40);
              }),
              HasSubstr("impossible"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) {
                for (int i = 0; i < 4; ++i) t.add_shape(1);
              }),
              HasSubstr("5 dimensions"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) { t.mutable_slices(1)->set_begin(19); }),
              HasSubstr("[19, 40)"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) { t.mutable_slices()->RemoveLast(); }),
              HasSubstr("20 of 40 elements"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) { t.mutable_slices(0)->set_file(-1); }),
              HasSubstr("file number -1"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) { t.mutable_slices(0)->set_file(1); }),
              HasSubstr("lacks 'a[0:20]'"));
  EXPECT_THAT(with_tensor([](proto::Tensor& t) { t.set_name("z"); }), HasSubstr("out of order"));
}

}  // namespace
}  // namespace longhaul::checkpoint
