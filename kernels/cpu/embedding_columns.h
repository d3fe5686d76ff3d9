// What one call of the vector code of kernels/cpu/embedding.cc is given.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// `columns` columns of `count` tokens' gradients, to be added to their rows of the table.
template <class T>
struct EmbeddingColumns {
  const int32_t* tokens;
  int64_t count, columns;
  const T* dout;
  int64_t dout_stride;
  Accumulator<T>* dtable;
  int64_t dtable_stride;
};

template <class T>
using AddColumns = void (*)(const EmbeddingColumns<T>&);

}  // namespace longhaul::kernels::cpu
