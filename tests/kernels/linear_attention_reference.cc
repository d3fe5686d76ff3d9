#include "tests/kernels/linear_attention_reference.h"

#include <algorithm>

namespace longhaul::kernels::testing {
namespace {

using Vector = std::vector<double>;
// Wider than the results that are judged: the decay of thousands of tokens is a product of as many
// factors.
using State = std::vector<long double>;

// One head of one run.
class Recurrence {
 public:
  Recurrence(const LinearShape& shape, const LinearTokens& tokens, const LinearOperands& x,
             size_t run, int64_t head, LinearTruth& truth)
      : shape_(shape),
        documents_(tokens.document_begins),
        x_(x),
        begin_(tokens.runs[run].begin),
        end_(begin_ + tokens.runs[run].length),
        head_(head),
        decay_(std::exp(-static_cast<long double>(tokens.slopes[static_cast<size_t>(head)]))),
        state_at_((static_cast<int64_t>(run) * shape.heads + head) * shape.head_dim *
                  shape.value_dim),
        truth_(truth) {}

  // S_t = a S_(t-1) + k_t v_t^T; o_t = S_t^T q_t, dq_t = S_t dout_t
  void to_the_right() {
    State s(x_.state_in.begin() + state_at_, x_.state_in.begin() + state_at_ + size());
    for (int64_t t = begin_; t < end_; ++t) {
      if (starts(t)) std::fill(s.begin(), s.end(), 0.0L);
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        for (int64_t e = 0; e < shape_.value_dim; ++e) {
          long double& value = s[at(d, e)];
          value = decay_ * value + x_.k[key(t, d)] * x_.v[val(t, e)];
          const auto rounded = static_cast<double>(value);
          truth_.out[val(t, e)] += rounded * x_.q[key(t, d)];
          truth_.dq[key(t, d)] += rounded * x_.dout[val(t, e)];
        }
      }
    }
    round(s, truth_.state_out);
  }

  // G_t = a G_(t+1) + q_t dout_t^T, the gradient of S_t; dk_t = G_t v_t, dv_t = G_t^T k_t
  void to_the_left() {
    State g(x_.dstate_out.begin() + state_at_, x_.dstate_out.begin() + state_at_ + size());
    for (int64_t t = end_ - 1; t >= begin_; --t) {
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        for (int64_t e = 0; e < shape_.value_dim; ++e) {
          long double& value = g[at(d, e)];
          value += x_.q[key(t, d)] * x_.dout[val(t, e)];
          const auto rounded = static_cast<double>(value);
          truth_.dk[key(t, d)] += rounded * x_.v[val(t, e)];
          truth_.dv[val(t, e)] += rounded * x_.k[key(t, d)];
          // On to S_(t-1), of which S_t knows nothing if a document begins here.
          value = starts(t) ? 0.0L : decay_ * value;
        }
      }
    }
    round(g, truth_.dstate_in);
  }

 private:
  void round(const State& from, Vector& to) const {
    for (size_t i = 0; i < from.size(); ++i) {
      to[static_cast<size_t>(state_at_) + i] = static_cast<double>(from[i]);
    }
  }
  int64_t size() const { return shape_.head_dim * shape_.value_dim; }
  size_t at(int64_t d, int64_t e) const { return static_cast<size_t>(d * shape_.value_dim + e); }
  size_t key(int64_t t, int64_t d) const {
    return static_cast<size_t>((t * shape_.heads + head_) * shape_.head_dim + d);
  }
  size_t val(int64_t t, int64_t e) const {
    return static_cast<size_t>((t * shape_.heads + head_) * shape_.value_dim + e);
  }
  bool starts(int64_t t) const {
    return std::find(documents_.begin(), documents_.end(), t) != documents_.end();
  }

  const LinearShape& shape_;
  std::span<const int64_t> documents_;
  const LinearOperands& x_;
  const int64_t begin_, end_, head_;
  const long double decay_;
  const int64_t state_at_;
  LinearTruth& truth_;
};

}  // namespace

LinearTruth linear_attention_truth(const LinearShape& shape, const LinearTokens& tokens,
                                   const LinearOperands& x) {
  LinearTruth truth;
  for (Vector* sums : {&truth.dq, &truth.dk}) sums->resize(x.q.size());
  for (Vector* sums : {&truth.out, &truth.dv}) sums->resize(x.v.size());
  for (Vector* states : {&truth.state_out, &truth.dstate_in}) states->resize(x.state_in.size());
  for (size_t run = 0; run < tokens.runs.size(); ++run) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      Recurrence recurrence(shape, tokens, x, run, head, truth);
      recurrence.to_the_right();
      recurrence.to_the_left();
    }
  }
  return truth;
}

}  // namespace longhaul::kernels::testing
