#include "tests/kernels/gated_linear_attention_reference.h"

#include <algorithm>
#include <cmath>

namespace longhaul::kernels::testing {
namespace {

// Wider than the results that are judged: the decay of many tokens is a product of as many factors.
using State = std::vector<long double>;

// One head of one run.
class Recurrence {
 public:
  Recurrence(const GatedShape& shape, std::span<const int64_t> documents, const GatedOperands& x,
             const LinearRun& run, int64_t run_number, int64_t head, GatedTruth& truth)
      : shape_(shape),
        documents_(documents),
        x_(x),
        begin_(run.begin),
        end_(run.begin + run.length),
        head_(head),
        state_at_((run_number * shape.heads + head) * shape.head_dim * shape.value_dim),
        truth_(truth) {}

  // S_t = diag(e^g_t) S_(t-1) + k_t v_t^T; o_t = S_t^T q_t, dq_t = S_t dout_t
  void to_the_right() {
    State s(x_.state_in.begin() + state_at_, x_.state_in.begin() + state_at_ + size());
    for (int64_t t = begin_; t < end_; ++t) {
      if (starts(t)) std::fill(s.begin(), s.end(), 0.0L);
      before_.push_back(s);
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        const long double decay = gate(t, d);
        for (int64_t e = 0; e < shape_.value_dim; ++e) {
          long double& value = s[at(d, e)];
          value = decay * value + x_.k[key(t, d)] * x_.v[val(t, e)];
          const auto rounded = static_cast<double>(value);
          truth_.out[val(t, e)] += rounded * x_.q[key(t, d)];
          truth_.dq[key(t, d)] += rounded * x_.dout[val(t, e)];
        }
      }
    }
    round(s, truth_.state_out);
  }

  // With G_t the gradient of S_t: dk_t = G_t v_t, dv_t = G_t^T k_t, and the gradient of e^g_t is
  // that of what it multiplies times S_(t-1).
  void to_the_left() {
    State g(x_.dstate_out.begin() + state_at_, x_.dstate_out.begin() + state_at_ + size());
    for (int64_t t = end_ - 1; t >= begin_; --t) {
      const State& before = before_[static_cast<size_t>(t - begin_)];
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        const long double decay = gate(t, d);
        long double dgate = 0;
        for (int64_t e = 0; e < shape_.value_dim; ++e) {
          long double& value = g[at(d, e)];
          value += x_.q[key(t, d)] * x_.dout[val(t, e)];
          const auto rounded = static_cast<double>(value);
          truth_.dk[key(t, d)] += rounded * x_.v[val(t, e)];
          truth_.dv[val(t, e)] += rounded * x_.k[key(t, d)];
          value *= decay;
          if (starts(t)) {
            value = 0;  // S_t knows nothing of S_(t-1)
          } else {
            dgate += value * before[at(d, e)];
          }
        }
        truth_.dlog_gate[key(t, d)] = static_cast<double>(dgate);
      }
    }
    round(g, truth_.dstate_in);
  }

 private:
  void round(const State& from, std::vector<double>& to) const {
    for (size_t i = 0; i < from.size(); ++i) {
      to[static_cast<size_t>(state_at_) + i] = static_cast<double>(from[i]);
    }
  }
  long double gate(int64_t t, int64_t d) const {
    return std::exp(static_cast<long double>(x_.log_gate[key(t, d)]));
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

  const GatedShape& shape_;
  std::span<const int64_t> documents_;
  const GatedOperands& x_;
  const int64_t begin_, end_, head_, state_at_;
  GatedTruth& truth_;
  std::vector<State> before_;  // S_(t-1) of each token
};

}  // namespace

GatedTruth gated_linear_attention_truth(const GatedShape& shape, std::span<const LinearRun> runs,
                                        std::span<const int64_t> document_begins,
                                        const GatedOperands& x) {
  GatedTruth truth;
  for (auto* sums : {&truth.dq, &truth.dk, &truth.dlog_gate}) sums->resize(x.q.size());
  for (auto* sums : {&truth.out, &truth.dv}) sums->resize(x.v.size());
  for (auto* states : {&truth.state_out, &truth.dstate_in}) states->resize(x.state_in.size());
  for (size_t run = 0; run < runs.size(); ++run) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      Recurrence recurrence(shape, document_begins, x, runs[run], static_cast<int64_t>(run), head,
                            truth);
      recurrence.to_the_right();
      recurrence.to_the_left();
    }
  }
  return truth;
}

}  // namespace longhaul::kernels::testing
