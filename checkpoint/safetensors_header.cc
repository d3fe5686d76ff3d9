// Parses the JSON of a safetensors header as it streams by: no tree is built, so deep nesting or
// huge unknown values cost nothing.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "checkpoint/safetensors.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint {
namespace {

// Bits an element takes; 0 for a type the format does not know.
int64_t bits_of(std::string_view dtype) {
  static const std::map<std::string_view, int64_t> kBits{
      {"F64", 64}, {"I64", 64},    {"U64", 64},    {"F32", 32}, {"I32", 32}, {"U32", 32},
      {"F16", 16}, {"BF16", 16},   {"I16", 16},    {"U16", 16}, {"I8", 8},   {"U8", 8},
      {"BOOL", 8}, {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"C64", 64}};
  const auto found = kBits.find(dtype);
  return found == kBits.end() ? 0 : found->second;
}

// Accepts exactly: {"name": {"dtype": string, "shape": [n...], "data_offsets": [b, e]}, ...,
// "__metadata__": {"key": "value", ...}}. Returning false ends the parse with `error`.
class Handler : public nlohmann::json_sax<nlohmann::json> {
 public:
  SafetensorsHeader header;
  std::string error;

  bool key(std::string& name) override {
    if (place_ == Place::kTop) {
      name_ = name;
      if (!names_.insert(name).second) return stop(absl::StrCat("'", name, "' appears twice"));
      return true;
    }
    if (place_ == Place::kMetadata) {
      name_ = name;
      if (header.metadata.count(name) != 0) {
        return stop(absl::StrCat("metadata '", name, "' appears twice"));
      }
      return true;
    }
    field_ = name;  // place_ is kTensor: arrays have no keys
    if (name != "dtype" && name != "shape" && name != "data_offsets") {
      return stop(absl::StrCat("tensor '", name_, "' has an unknown field '", name, "'"));
    }
    if (!fields_.insert(name).second) {
      return stop(absl::StrCat("tensor '", name_, "' has '", name, "' twice"));
    }
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::kOutside) return enter(Place::kTop);
    if (place_ != Place::kTop) return unexpected("an object");
    if (name_ == "__metadata__") return enter(Place::kMetadata);
    entry_ = {};
    offsets_.clear();
    fields_.clear();
    return enter(Place::kTensor);
  }

  bool end_object() override {
    if (place_ == Place::kTop) return enter(Place::kOutside);
    if (place_ == Place::kTensor) {
      if (fields_.size() != 3) {
        return stop(absl::StrCat("tensor '", name_, "' lacks dtype, shape or data_offsets"));
      }
      if (offsets_.size() != 2) {
        return stop(absl::StrCat("tensor '", name_, "' has ", offsets_.size(),
                                 " data_offsets instead of 2"));
      }
      entry_.begin = offsets_[0];
      entry_.end = offsets_[1];
      header.tensors.emplace(name_, std::move(entry_));
    }
    return enter(Place::kTop);
  }

  bool start_array(size_t) override {
    if (place_ == Place::kTensor && field_ == "shape") return enter(Place::kShape);
    if (place_ == Place::kTensor && field_ == "data_offsets") return enter(Place::kOffsets);
    return unexpected("an array");
  }
  bool end_array() override { return enter(Place::kTensor); }

  bool string(std::string& value) override {
    if (place_ == Place::kTensor && field_ == "dtype") {
      entry_.dtype = value;
      return true;
    }
    if (place_ == Place::kMetadata) {
      header.metadata.emplace(name_, value);
      return true;
    }
    return unexpected("a string");
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets) return unexpected("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return stop(absl::StrCat("tensor '", name_, "' has the impossible size ", value));
    }
    auto& list = place_ == Place::kShape ? entry_.shape : offsets_;
    list.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return unexpected("a fraction"); }
  bool binary(binary_t&) override { return unexpected("binary data"); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return stop(absl::StrCat("its header is no valid JSON at byte ", position));
  }

 private:
  enum class Place { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };

  bool enter(Place place) {
    place_ = place;
    return true;
  }
  bool stop(std::string message) {
    if (error.empty()) error = std::move(message);
    return false;
  }
  bool unexpected(const char* what) {
    if (place_ == Place::kOutside) return stop(absl::StrCat("its header is ", what));
    return stop(absl::StrCat("'", name_, "' has ", what, " where none belongs"));
  }

  Place place_ = Place::kOutside;
  std::string name_, field_;
  std::set<std::string> names_, fields_;
  SafetensorsEntry entry_;
  std::vector<int64_t> offsets_;
};

// Bytes of a tensor, or -1 if its type is unknown or the number has no place in 63 bits.
int64_t bytes_of(const SafetensorsEntry& entry) {
  int64_t bits = bits_of(entry.dtype);
  if (bits == 0) return -1;
  for (const int64_t dim : entry.shape) {
    if (__builtin_mul_overflow(bits, dim, &bits)) {
      // A later dimension of 0 would make it empty.
      return std::find(entry.shape.begin(), entry.shape.end(), 0) == entry.shape.end() ? -1 : 0;
    }
  }
  return bits / 8;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, int64_t data_begin,
                                           int64_t data_bytes, const std::string& path) {
  const auto damaged = [&](const std::string& why) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", path, "' is damaged or no safetensors file: ", why));
  };
  Handler handler;
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler)) damaged(handler.error);
  SafetensorsHeader header = std::move(handler.header);

  std::vector<std::pair<const std::string*, SafetensorsEntry*>> in_order;
  for (auto& [name, entry] : header.tensors) in_order.emplace_back(&name, &entry);
  std::sort(in_order.begin(), in_order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  int64_t end = 0;
  for (const auto& [name, entry] : in_order) {
    if (entry->begin != end) {
      damaged(absl::StrCat("tensor '", *name, "' begins at byte ", entry->begin, " of the data, ",
                           entry->begin < end ? "inside" : "after a gap behind",
                           " the one that ends at ", end));
    }
    if (entry->end < entry->begin || entry->end > data_bytes) {
      damaged(absl::StrCat("tensor '", *name, "' is said to lie in bytes [", entry->begin, ", ",
                           entry->end, ") of ", data_bytes));
    }
    const int64_t bytes = bytes_of(*entry);
    if (bytes < 0) {
      damaged(absl::StrCat("tensor '", *name, "' has an unknown dtype '", entry->dtype,
                           "' or an impossible shape"));
    }
    if (bytes != entry->end - entry->begin) {
      damaged(absl::StrCat("tensor '", *name, "' takes ", bytes, " bytes by its shape and ",
                           entry->end - entry->begin, " by its offsets"));
    }
    end = entry->end;
    entry->begin += data_begin;
    entry->end += data_begin;
  }
  if (end != data_bytes) {
    damaged(absl::StrCat("its tensors take ", end, " bytes, but ", data_bytes,
                         " follow the header: it is truncated or has something appended"));
  }
  return header;
}

SafetensorsHeader read_safetensors_header(const InputFile& file) {
  const auto damaged = [&](const std::string& why) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", file.path(), "' is damaged or no safetensors file: ", why));
  };
  uint64_t length = 0;
  if (file.bytes() < 8) damaged(absl::StrCat("it has only ", file.bytes(), " bytes"));
  file.read(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeader)) {
    damaged(absl::StrCat("its header would have ", length, " bytes, the limit is ",
                         kMaxSafetensorsHeader));
  }
  const int64_t data_begin = 8 + static_cast<int64_t>(length);
  if (data_begin > file.bytes()) {
    damaged(absl::StrCat("it ends within its header of ", length, " bytes"));
  }
  std::string json(static_cast<size_t>(length), '\0');
  file.read(8, std::as_writable_bytes(std::span(json)));
  return parse_safetensors_header(json, data_begin, file.bytes() - data_begin, file.path());
}

}  // namespace longhaul::checkpoint
