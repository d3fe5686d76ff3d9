// Cluster descriptions (launch/config/cluster.proto) to and from parallel/cost/cluster.h.
//
// What is wrong with a description is an Error(kConfig) of one sentence: file, field, value, fix.
#pragma once

#include <string>

#include "launch/config/cluster.pb.h"
#include "parallel/cost/choose.h"

namespace longhaul::launch {

parallel::Cluster load_cluster(const std::string& path);

// The text of a description; `name` is how messages call it.
parallel::Cluster parse_cluster(const std::string& text, const std::string& name);

// Checks the figures.
parallel::Cluster from_message(const Cluster& message, const std::string& name);
Cluster to_message(const parallel::Cluster& cluster);
DirectionChoice to_message(const parallel::Choice& choice);

// Text format, lists on one line each.
std::string list_text(const google::protobuf::Message& message);

}  // namespace longhaul::launch
