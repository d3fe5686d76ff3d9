#include "launch/config/descriptors.h"

#include "absl/strings/str_cat.h"
#include "launch/config/config.pb.h"

namespace longhaul::launch {
namespace {

namespace pb = google::protobuf;

// The name under which a field of the configuration, at any depth, holds that type of message.
std::string holder(const pb::Descriptor& within, const pb::Descriptor& message) {
  for (int i = 0; i < within.field_count(); ++i) {
    const pb::FieldDescriptor& field = *within.field(i);
    if (field.message_type() == nullptr) continue;
    if (field.message_type() == &message) return field.name();
    const std::string inner = holder(*field.message_type(), message);
    if (!inner.empty()) return absl::StrCat(field.name(), ".", inner);
  }
  return "";
}

}  // namespace

std::vector<std::string> field_names(const pb::Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::vector<std::string> value_names(const pb::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
  return names;
}

std::string block_name(const pb::Descriptor& message, const pb::Descriptor& root) {
  if (&root != Config::descriptor()) {
    return &message == &root ? "the file" : absl::StrCat("a block of type ", message.name());
  }
  const std::string name = holder(root, message);
  return name.empty() ? "the configuration" : absl::StrCat("block `", name, "`");
}

const pb::EnumDescriptor* enum_of_field(const pb::Descriptor& message, const std::string& field) {
  for (int i = 0; i < message.field_count(); ++i) {
    const pb::FieldDescriptor& candidate = *message.field(i);
    if (candidate.enum_type() != nullptr && candidate.name() == field) return candidate.enum_type();
    if (candidate.message_type() == nullptr) continue;
    if (const auto* inner = enum_of_field(*candidate.message_type(), field)) return inner;
  }
  return nullptr;
}

}  // namespace longhaul::launch
