// Names of the configuration's fields and enumerators, for messages.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

namespace longhaul::launch {

std::vector<std::string> field_names(const google::protobuf::Descriptor& message);
std::vector<std::string> value_names(const google::protobuf::EnumDescriptor& type);

// "block `model`", or "the configuration" for the outermost message. In files with another root,
// where several fields may have one type: "a block of type Link", or "the file".
std::string block_name(const google::protobuf::Descriptor& message,
                       const google::protobuf::Descriptor& root);

// The type of the first enumeration field of that name, in the message or the blocks in it; or
// null.
const google::protobuf::EnumDescriptor* enum_of_field(const google::protobuf::Descriptor& message,
                                                      const std::string& field);

}  // namespace longhaul::launch
