// The truth for attention: which token sees which is asked of positions and documents, never of a
// band, and softmax is done row by row in fp64.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention.h"

namespace longhaul::kernels::testing {

// Tokens of a corpus: document of each position, and the mask between positions.
struct Corpus {
  std::vector<int64_t> documents;  // lengths, in order
  bool causal = true;
  int64_t window = 0;  // a causal query sees this many tokens including itself; 0: all

  int64_t length() const;
  int64_t document_of(int64_t position) const;
  bool visible(int64_t q_position, int64_t k_position) const;
};

// Positions first, first + stride, ... that a tensor's rows hold.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;
  int64_t stride = 1;
  int64_t position(int64_t row) const { return first + row * stride; }
};

// The segments of queries x keys, one per document, by the formulas of kernels/segment.h.
std::vector<Segment> segments_of(const Corpus&, const Rows& queries, const Rows& keys);

struct AttentionShape {
  int64_t q_heads, kv_heads, head_dim, value_dim;
  HeadMap heads;
};

struct AttentionTruth {
  std::vector<double> out, lse, delta;  // [Tq, Hq, Dv], [Hq, Tq], [Hq, Tq]
  std::vector<double> dq, dk, dv;
  double delta_terms = 0, dq_terms = 0, dk_terms = 0;  // norms of the products summed up in them
};

// Everything, forward and backward, for operands in row-major order.
AttentionTruth attention_truth(const Corpus&, const Rows& queries, const Rows& keys,
                               const AttentionShape&, const AttentionOptions&,
                               const std::vector<double>& q, const std::vector<double>& k,
                               const std::vector<double>& v, const std::vector<double>& dout);

// Whether dropout keeps an element, by the formula of kernels/dropout.h.
bool is_kept(const Dropout&, int64_t global_head, int64_t q_position, int64_t k_position);

}  // namespace longhaul::kernels::testing
