// Dotted overrides by reflection: no field is named here, so a new field needs no edit.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launch/config/config.h"
#include "launch/config/descriptors.h"
#include "launch/config/suggest.h"

namespace longhaul::launch {
namespace {

namespace pb = google::protobuf;
using Field = pb::FieldDescriptor;

[[noreturn]] void refuse(std::string_view assignment, const std::string& why) {
  fail(ErrorCode::kConfig, absl::StrCat("--set ", std::string(assignment), ": ", why));
}

template <class Integer>
Integer parse_integer(std::string_view assignment, const std::string& value) {
  Integer parsed = 0;
  if (!absl::SimpleAtoi(value, &parsed)) {
    refuse(assignment, absl::StrCat("`", value, "` is not a whole number from ",
                                    std::numeric_limits<Integer>::min(), " to ",
                                    std::numeric_limits<Integer>::max()));
  }
  return parsed;
}

double parse_double(std::string_view assignment, const std::string& value) {
  double parsed = 0;
  if (!absl::SimpleAtod(value, &parsed) || !std::isfinite(parsed)) {
    refuse(assignment, absl::StrCat("`", value, "` is not a finite number"));
  }
  return parsed;
}

bool parse_bool(std::string_view assignment, const std::string& value) {
  if (absl::EqualsIgnoreCase(value, "true") || value == "1") return true;
  if (absl::EqualsIgnoreCase(value, "false") || value == "0") return false;
  refuse(assignment, absl::StrCat("`", value, "` is neither true nor false"));
}

const pb::EnumValueDescriptor& parse_enum(std::string_view assignment, const Field& field,
                                          const std::string& value) {
  const pb::EnumDescriptor& type = *field.enum_type();
  for (int i = 0; i < type.value_count(); ++i) {
    if (absl::EqualsIgnoreCase(type.value(i)->name(), value)) return *type.value(i);
  }
  refuse(assignment, absl::StrCat("unknown value `", value, "` for `", field.name(), "`",
                                  suggestion(value, value_names(type))));
}

void set_field(std::string_view assignment, pb::Message& message, const Field& field,
               const std::string& value) {
  const pb::Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case Field::CPPTYPE_INT32:
      return reflection.SetInt32(&message, &field, parse_integer<int32_t>(assignment, value));
    case Field::CPPTYPE_INT64:
      return reflection.SetInt64(&message, &field, parse_integer<int64_t>(assignment, value));
    case Field::CPPTYPE_UINT32:
      return reflection.SetUInt32(&message, &field, parse_integer<uint32_t>(assignment, value));
    case Field::CPPTYPE_UINT64:
      return reflection.SetUInt64(&message, &field, parse_integer<uint64_t>(assignment, value));
    case Field::CPPTYPE_DOUBLE:
      return reflection.SetDouble(&message, &field, parse_double(assignment, value));
    case Field::CPPTYPE_FLOAT:
      return reflection.SetFloat(&message, &field,
                                 static_cast<float>(parse_double(assignment, value)));
    case Field::CPPTYPE_BOOL:
      return reflection.SetBool(&message, &field, parse_bool(assignment, value));
    case Field::CPPTYPE_STRING:
      return reflection.SetString(&message, &field, value);
    case Field::CPPTYPE_ENUM:
      return reflection.SetEnum(&message, &field, &parse_enum(assignment, field, value));
    case Field::CPPTYPE_MESSAGE:
      break;
  }
  refuse(assignment, absl::StrCat("`", field.name(), "` is a block; name a field in it: ",
                                  absl::StrJoin(field_names(*field.message_type()), ", ")));
}

}  // namespace

void apply_override(Config& config, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    refuse(assignment, "an override is block.field=value, e.g. --set model.layers=8");
  }
  const std::string value(assignment.substr(equals + 1));
  std::string_view path = assignment.substr(0, equals);

  pb::Message* message = &config;
  while (true) {
    const size_t dot = path.find('.');
    const std::string name(path.substr(0, dot));
    const pb::Descriptor& type = *message->GetDescriptor();
    const Field* field = type.FindFieldByName(name);
    if (field == nullptr) {
      refuse(assignment,
             absl::StrCat("unknown field `", name, "` in ", block_name(type, *Config::descriptor()),
                          suggestion(name, field_names(type))));
    }
    if (dot == std::string_view::npos) return set_field(assignment, *message, *field, value);
    if (field->cpp_type() != Field::CPPTYPE_MESSAGE) {
      refuse(assignment, absl::StrCat("`", name, "` is a field, not a block: nothing is below it"));
    }
    message = message->GetReflection()->MutableMessage(message, field);
    path.remove_prefix(dot + 1);
  }
}

}  // namespace longhaul::launch
