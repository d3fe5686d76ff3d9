#include "tests/kernels/delta_rule_reference.h"

#include <algorithm>
#include <cmath>

namespace longhaul::kernels::testing {
namespace {

using State = std::vector<long double>;  // wider than the results that are judged

// One head of one run.
class Recurrence {
 public:
  Recurrence(const DeltaShape& shape, std::span<const int64_t> documents, const DeltaOperands& x,
             const LinearRun& run, int64_t run_number, int64_t head, DeltaTruth& truth)
      : shape_(shape),
        documents_(documents),
        x_(x),
        begin_(run.begin),
        end_(run.begin + run.length),
        head_(head),
        state_at_((run_number * shape.heads + head) * shape.head_dim * shape.value_dim),
        truth_(truth) {}

  // S_t = a (I - beta k k^T) S_(t-1) + beta k v^T; o_t = S_t^T q_t, dq_t = S_t dout_t
  void to_the_right() {
    State s(x_.state_in.begin() + state_at_, x_.state_in.begin() + state_at_ + size());
    for (int64_t t = begin_; t < end_; ++t) {
      if (starts(t)) std::fill(s.begin(), s.end(), 0.0L);
      before_.push_back(s);
      const State held = times_key(s, t);
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        for (int64_t e = 0; e < shape_.value_dim; ++e) {
          long double& value = s[at(d, e)];
          value = decay(t) * (value - beta(t) * x_.k[key(t, d)] * held[static_cast<size_t>(e)]) +
                  beta(t) * x_.k[key(t, d)] * x_.v[val(t, e)];
          truth_.out[val(t, e)] += static_cast<double>(value * x_.q[key(t, d)]);
          truth_.dq[key(t, d)] += static_cast<double>(value * x_.dout[val(t, e)]);
        }
      }
    }
    round(s, truth_.state_out);
  }

  // With G the gradient of S_t, each factor of each term of S_t gets its share.
  void to_the_left() {
    State g(x_.dstate_out.begin() + state_at_, x_.dstate_out.begin() + state_at_ + size());
    for (int64_t t = end_ - 1; t >= begin_; --t) {
      const State& s = before_[static_cast<size_t>(t - begin_)];
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        for (int64_t e = 0; e < shape_.value_dim; ++e) {
          g[at(d, e)] += x_.q[key(t, d)] * x_.dout[val(t, e)];
        }
      }
      const State held = times_key(s, t), along_key = times_key(g, t);
      long double dbeta = 0, ddecay = 0;
      for (int64_t e = 0; e < shape_.value_dim; ++e) {
        const auto i = static_cast<size_t>(e);
        truth_.dv[val(t, e)] = static_cast<double>(beta(t) * along_key[i]);
        dbeta += along_key[i] * (x_.v[val(t, e)] - decay(t) * held[i]);
        ddecay -= beta(t) * along_key[i] * held[i];
      }
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        long double dk = 0;
        for (int64_t e = 0; e < shape_.value_dim; ++e) {
          const auto i = static_cast<size_t>(e);
          long double& value = g[at(d, e)];
          dk += beta(t) * value * (x_.v[val(t, e)] - decay(t) * held[i]) -
                decay(t) * beta(t) * s[at(d, e)] * along_key[i];
          ddecay += value * s[at(d, e)];
          value = starts(t) ? 0 : decay(t) * (value - beta(t) * x_.k[key(t, d)] * along_key[i]);
        }
        truth_.dk[key(t, d)] = static_cast<double>(dk);
      }
      truth_.dbeta[gate(t)] = static_cast<double>(dbeta);
      truth_.dlog_gate[gate(t)] = static_cast<double>(decay(t) * ddecay);
    }
    round(g, truth_.dstate_in);
  }

 private:
  // x^T k_t
  State times_key(const State& x, int64_t t) const {
    State y(static_cast<size_t>(shape_.value_dim));
    for (int64_t d = 0; d < shape_.head_dim; ++d) {
      for (int64_t e = 0; e < shape_.value_dim; ++e) {
        y[static_cast<size_t>(e)] += x[at(d, e)] * x_.k[key(t, d)];
      }
    }
    return y;
  }
  void round(const State& from, std::vector<double>& to) const {
    for (size_t i = 0; i < from.size(); ++i) {
      to[static_cast<size_t>(state_at_) + i] = static_cast<double>(from[i]);
    }
  }
  long double decay(int64_t t) const {
    return std::exp(static_cast<long double>(x_.log_gate[gate(t)]));
  }
  long double beta(int64_t t) const { return x_.beta[gate(t)]; }
  int64_t size() const { return shape_.head_dim * shape_.value_dim; }
  size_t at(int64_t d, int64_t e) const { return static_cast<size_t>(d * shape_.value_dim + e); }
  size_t gate(int64_t t) const { return static_cast<size_t>(t * shape_.heads + head_); }
  size_t key(int64_t t, int64_t d) const {
    return static_cast<size_t>((t * shape_.heads + head_) * shape_.head_dim + d);
  }
  size_t val(int64_t t, int64_t e) const {
    return static_cast<size_t>((t * shape_.heads + head_) * shape_.value_dim + e);
  }
  bool starts(int64_t t) const {
    return std::find(documents_.begin(), documents_.end(), t) != documents_.end();
  }

  const DeltaShape& shape_;
  std::span<const int64_t> documents_;
  const DeltaOperands& x_;
  const int64_t begin_, end_, head_, state_at_;
  DeltaTruth& truth_;
  std::vector<State> before_;  // S_(t-1) of each token
};

}  // namespace

DeltaTruth delta_rule_truth(const DeltaShape& shape, std::span<const LinearRun> runs,
                            std::span<const int64_t> document_begins, const DeltaOperands& x) {
  DeltaTruth truth;
  for (auto* sums : {&truth.dq, &truth.dk}) sums->resize(x.q.size());
  for (auto* sums : {&truth.out, &truth.dv}) sums->resize(x.v.size());
  for (auto* gates : {&truth.dlog_gate, &truth.dbeta}) gates->resize(x.beta.size());
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
