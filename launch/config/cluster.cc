#include "launch/config/cluster.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/config/text.h"

namespace longhaul::launch {
namespace {

// Checks the figures of one description; `name` is the file's.
class Checks {
 public:
  explicit Checks(const std::string& name) : name_(name) {}

  [[noreturn]] void refuse(const std::string& field, const std::string& why) const {
    fail(ErrorCode::kConfig, absl::StrCat(name_, ": ", field, " ", why));
  }
  double positive(const std::string& field, double value) const {
    if (!std::isfinite(value) || value <= 0) {
      refuse(field, absl::StrCat("is ", value, "; a finite number above 0 is wanted"));
    }
    return value;
  }
  double not_negative(const std::string& field, double value) const {
    if (!std::isfinite(value) || value < 0) {
      refuse(field, absl::StrCat("is ", value, "; a finite number, 0 or more, is wanted"));
    }
    return value;
  }
  int count(const std::string& field, int value) const {
    if (value < 0) refuse(field, absl::StrCat("is ", value, "; 0 or more is wanted"));
    return value;
  }

 private:
  const std::string& name_;
};

DType dtype_named(const Checks& checks, const std::string& field, const std::string& text) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    if (text == name(dtype)) return dtype;
  }
  checks.refuse(field, absl::StrCat("is \"", text, "\"; one of f32, bf16, f64 is wanted"));
}

constexpr std::array<const char*, 3> kDecays{"scalar", "diagonal", "dense"};  // by StateDecay

parallel::Link link_of(const Checks& checks, const std::string& field, const Link& from) {
  const double share = checks.not_negative(field + ".processor_share", from.processor_share());
  if (share > 1) {
    checks.refuse(field + ".processor_share", absl::StrCat("is ", share, "; at most 1 is wanted"));
  }
  return {.seconds_per_message =
              checks.not_negative(field + ".seconds_per_message", from.seconds_per_message()),
          .bytes_per_second = checks.positive(field + ".bytes_per_second", from.bytes_per_second()),
          .processor_share = share};
}

parallel::KernelProfile profile_of(const Checks& checks, const KernelProfile& from) {
  parallel::KernelProfile to;
  to.dtype = dtype_named(checks, "kernels.dtype", from.dtype());
  to.head_dim = from.head_dim();
  to.lengths = {from.lengths().begin(), from.lengths().end()};
  to.forward = {from.forward().begin(), from.forward().end()};
  to.backward = {from.backward().begin(), from.backward().end()};
  if (to.head_dim < 1) {
    checks.refuse("kernels.head_dim", absl::StrCat("is ", to.head_dim, "; 1 or more is wanted"));
  }
  if (to.lengths.empty()) checks.refuse("kernels.lengths", "is empty; give one length or more");
  for (size_t i = 0; i < to.lengths.size(); ++i) {
    if (to.lengths[i] < 1 || (i > 0 && to.lengths[i] <= to.lengths[i - 1])) {
      checks.refuse("kernels.lengths", absl::StrCat("has ", to.lengths[i], " as number ", i + 1,
                                                    "; rising lengths from 1 on are wanted"));
    }
  }
  const size_t wanted = to.lengths.size() * to.lengths.size();
  for (const auto& [field, seconds] :
       {std::pair("kernels.forward", &to.forward), std::pair("kernels.backward", &to.backward)}) {
    if (seconds->size() != wanted) {
      checks.refuse(field, absl::StrCat("has ", seconds->size(), " figures; ", to.lengths.size(),
                                        " lengths want ", wanted));
    }
    for (double value : *seconds) checks.positive(field, value);
  }
  to.forward_border = checks.not_negative("kernels.forward_border", from.forward_border());
  to.backward_border = checks.not_negative("kernels.backward_border", from.backward_border());
  return to;
}

parallel::LinearProfile profile_of(const Checks& checks, const LinearProfile& from) {
  const auto* const decay = std::ranges::find(kDecays, from.decay());
  if (decay == kDecays.end()) {
    checks.refuse("linear_kernels.decay", absl::StrCat("is \"", from.decay(),
                                                       "\"; one of scalar, diagonal, dense is "
                                                       "wanted"));
  }
  for (const auto& [field, dim] :
       {std::pair("head_dim", from.head_dim()), std::pair("value_dim", from.value_dim())}) {
    if (dim < 1) {
      checks.refuse(absl::StrCat("linear_kernels.", field),
                    absl::StrCat("is ", dim, "; 1 or more is wanted"));
    }
  }
  return {.dtype = dtype_named(checks, "linear_kernels.dtype", from.dtype()),
          .state_decay = static_cast<kernels::StateDecay>(decay - kDecays.begin()),
          .head_dim = from.head_dim(),
          .value_dim = from.value_dim(),
          .forward = checks.positive("linear_kernels.forward", from.forward()),
          .backward = checks.positive("linear_kernels.backward", from.backward())};
}

void set_link(const parallel::Link& from, Link& to) {
  to.set_seconds_per_message(from.seconds_per_message);
  to.set_bytes_per_second(from.bytes_per_second);
  to.set_processor_share(from.processor_share);
}

}  // namespace

parallel::Cluster from_message(const Cluster& message, const std::string& name) {
  const Checks checks(name);
  parallel::Cluster cluster;
  if (message.has_within_rank()) {
    cluster.within_rank = link_of(checks, "within_rank", message.within_rank());
  }
  if (message.has_within_node()) {
    cluster.within_node = link_of(checks, "within_node", message.within_node());
  }
  if (message.has_between_nodes()) {
    cluster.between_nodes = link_of(checks, "between_nodes", message.between_nodes());
  }
  cluster.ranks_per_node = checks.count("ranks_per_node", message.ranks_per_node());
  cluster.adapters_per_node = checks.count("adapters_per_node", message.adapters_per_node());
  cluster.seconds_to_publish =
      checks.not_negative("seconds_to_publish", message.seconds_to_publish());
  cluster.seconds_per_task = checks.not_negative("seconds_per_task", message.seconds_per_task());
  cluster.memory_bytes_per_second =
      checks.positive("memory_bytes_per_second", message.memory_bytes_per_second());
  for (const KernelProfile& profile : message.kernels()) {
    cluster.profiles.push_back(profile_of(checks, profile));
  }
  for (const LinearProfile& profile : message.linear_kernels()) {
    cluster.linear_profiles.push_back(profile_of(checks, profile));
  }
  return cluster;
}

parallel::Cluster parse_cluster(const std::string& text, const std::string& name) {
  Cluster message;
  parse_text(text, name, message);
  return from_message(message, name);
}

parallel::Cluster load_cluster(const std::string& path) {
  return parse_cluster(
      read_text(
          path, "cluster description",
          "write one with `longhaul bench comm --write FILE`, or leave parallel.cluster unset"),
      path);
}

Cluster to_message(const parallel::Cluster& cluster) {
  Cluster message;
  if (cluster.within_rank) set_link(*cluster.within_rank, *message.mutable_within_rank());
  if (cluster.within_node) set_link(*cluster.within_node, *message.mutable_within_node());
  if (cluster.between_nodes) set_link(*cluster.between_nodes, *message.mutable_between_nodes());
  message.set_ranks_per_node(cluster.ranks_per_node);
  message.set_adapters_per_node(cluster.adapters_per_node);
  message.set_seconds_to_publish(cluster.seconds_to_publish);
  message.set_seconds_per_task(cluster.seconds_per_task);
  message.set_memory_bytes_per_second(cluster.memory_bytes_per_second);
  for (const parallel::KernelProfile& from : cluster.profiles) {
    KernelProfile& to = *message.add_kernels();
    to.set_dtype(std::string(name(from.dtype)));
    to.set_head_dim(from.head_dim);
    for (int64_t length : from.lengths) to.add_lengths(length);
    for (double seconds : from.forward) to.add_forward(seconds);
    for (double seconds : from.backward) to.add_backward(seconds);
    to.set_forward_border(from.forward_border);
    to.set_backward_border(from.backward_border);
  }
  for (const parallel::LinearProfile& from : cluster.linear_profiles) {
    LinearProfile& to = *message.add_linear_kernels();
    to.set_dtype(std::string(name(from.dtype)));
    to.set_decay(kDecays[static_cast<size_t>(from.state_decay)]);
    to.set_head_dim(from.head_dim);
    to.set_value_dim(from.value_dim);
    to.set_forward(from.forward);
    to.set_backward(from.backward);
  }
  return message;
}

DirectionChoice to_message(const parallel::Choice& choice) {
  DirectionChoice message;
  message.set_strategy(choice.winner().strategy);
  message.set_why(choice.why);
  for (const parallel::Candidate& from : choice.candidates) {
    Candidate& to = *message.add_candidates();
    to.set_strategy(from.strategy);
    if (from.refused()) {
      to.set_refusal(from.refusal);
      continue;
    }
    to.set_seconds(from.seconds);
    to.set_exposed_seconds(from.exposed);
    to.set_received_bytes_mean(from.received_mean);
    to.set_received_bytes_max(from.received_max);
    to.set_in_place_bytes_mean(from.in_place_mean);
    to.set_steps(from.steps);
    to.set_balance(from.balance);
  }
  return message;
}

std::string list_text(const google::protobuf::Message& message) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseShortRepeatedPrimitives(true);
  std::string text;
  LONGHAUL_CHECK(printer.PrintToString(message, &text));
  return text;
}

}  // namespace longhaul::launch
