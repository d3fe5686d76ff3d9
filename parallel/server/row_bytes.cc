#include "parallel/server/row_bytes.h"

#include "parallel/plan/parts.h"

namespace longhaul::parallel {

namespace {

int64_t bytes_of(Fields fields, const HeadShape& heads, DType dtype) {
  int64_t bytes = 0;
  for (Field field : fields.list()) bytes += field_bytes(field, heads, dtype);
  return bytes;
}

}  // namespace

RowBytes row_bytes(const HeadShape& heads, DType dtype, Direction direction, int nano_batches) {
  const int64_t blocks = staging_blocks(nano_batches), group = heads.group();
  const auto side = [blocks](int64_t in, int64_t out, int64_t staged) {
    return RowBytes::Side{.moved = in + out,
                          .at_server = in + out + blocks * staged,
                          .at_home = blocks * (in + 2 * out)};
  };
  // lse and delta are dense only where a message has all rows of a slot.
  const int64_t statistics = 2 * field_bytes(Field::kLse, heads, dtype);
  const int64_t gradients =
      direction == Direction::kForward ? 0 : bytes_of(kKeyGradients, heads, dtype);
  return {
      .query = side(group * bytes_of(query_inputs(direction), heads, dtype),
                    group * bytes_of(query_outputs(direction), heads, dtype), group * statistics),
      .key = side(bytes_of(kKeys, heads, dtype), gradients, 0)};
}

}  // namespace longhaul::parallel
