#include "parallel/plan/plan.h"

#include <array>

#include "kernels/core/error.h"

namespace longhaul::parallel {

std::string_view name(Field field) {
  static constexpr std::array<std::string_view, kFieldCount> kNames{
      "q", "out", "lse", "dout", "delta", "dq", "k", "v", "dk", "dv", "state", "decay"};
  return kNames[static_cast<size_t>(field)];
}

std::vector<Field> Fields::list() const {
  std::vector<Field> fields;
  for (int i = 0; i < kFieldCount; ++i) {
    if (has(static_cast<Field>(i))) fields.push_back(static_cast<Field>(i));
  }
  return fields;
}

int64_t field_bytes(Field field, const HeadShape& heads, DType dtype) {
  const int64_t element = size_of(dtype), sum = size_of(accumulator(dtype));
  switch (field) {
    case Field::kQ:
    case Field::kK:
      return heads.head_dim * element;
    case Field::kV:
    case Field::kDOut:
      return heads.value_dim * element;
    case Field::kOut:
    case Field::kDV:
      return heads.value_dim * sum;
    case Field::kDQ:
    case Field::kDK:
      return heads.head_dim * sum;
    case Field::kLse:
    case Field::kDelta:
      return sum;
    case Field::kState:
      return heads.head_dim * heads.value_dim * sum;
    case Field::kDecay:
      return kernels::decay_elements(heads.state_decay, heads.head_dim) * sum;
  }
  check_failed(__FILE__, __LINE__, "field is one of Field");
}

int64_t transfer_bytes(const Transfer& transfer, int rank, const HeadShape& heads, DType dtype) {
  if (transfer.peer == rank) return 0;
  int64_t bytes = 0;
  for (Field field : transfer.fields.list()) bytes += field_bytes(field, heads, dtype);
  return bytes * transfer.rows.length * transfer.heads.length;
}

namespace {

int64_t sum_bytes(const Plan& plan, bool send, int rank, const HeadShape& heads, DType dtype) {
  int64_t bytes = 0;
  for (const Step& step : plan.steps) {
    for (const Transfer& transfer : step.transfers) {
      if (transfer.send == send) bytes += transfer_bytes(transfer, rank, heads, dtype);
    }
  }
  return bytes;
}

}  // namespace

int64_t received_bytes(const Plan& plan, int rank, const HeadShape& heads, DType dtype) {
  return sum_bytes(plan, false, rank, heads, dtype);
}

int64_t sent_bytes(const Plan& plan, int rank, const HeadShape& heads, DType dtype) {
  return sum_bytes(plan, true, rank, heads, dtype);
}

}  // namespace longhaul::parallel
