#include "tests/parallel/attention_world.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"

namespace longhaul::test {

using parallel::Direction;
using parallel::Documents;
using parallel::Field;
using parallel::HeadShape;
using parallel::Mask;
using parallel::Plan;
using parallel::Problem;
using parallel::Task;

bool allowed(int64_t query, int64_t key, const Mask& mask, const Documents& documents) {
  int64_t first = 0;  // of the key's document
  for (int64_t border : documents.begins()) {
    if ((query < border) != (key < border)) return false;  // it lies between them
    if (border <= key) first = border;
  }
  if (key - first < mask.prefix) return true;
  return !(mask.causal && key > query) && !(mask.window > 0 && query - key >= mask.window);
}

namespace {

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

double rounded(double value, DType dtype) {
  return visit_float(dtype, [&]<class T>() {
    return static_cast<double>(static_cast<T>(static_cast<Accumulator<T>>(value)));
  });
}

Field3 random_field(int64_t tokens, int64_t heads, int64_t dim, std::mt19937_64& random,
                    DType dtype) {
  Field3 field(tokens, heads, dim);
  std::normal_distribution<double> normal;
  for (double& value : field.values) value = rounded(normal(random), dtype);
  return field;
}

uint64_t two_words(uint32_t low, uint32_t high) { return low + (uint64_t{high} << 32); }

// What dropout multiplies a probability by.
double dropout_factor(const ScoreOptions& options, int64_t head, int64_t query, int64_t key) {
  if (options.dropout == 0) return 1;
  const auto h = random_bits(options.dropout_key, static_cast<uint64_t>(head));
  const RandomKey of_row{.seed = two_words(h[0], h[1]),
                         .stream = two_words(h[2], h[3]) + static_cast<uint64_t>(query)};
  const auto words = random_bits(of_row, static_cast<uint64_t>(key / 4));
  const double u = std::ldexp(words[static_cast<size_t>(key % 4)], -32);
  return u >= options.dropout ? 1 / (1 - options.dropout) : 0;
}

// The interpreter's ranks with attention as their task. q and k carry one value more than the
// model: the token's global position, so that what a task really touches is known.
class World {
 public:
  World(const Problem& problem, Direction direction, std::vector<Plan> plans,
        const AttentionTruth& truth)
      : problem_(problem),
        direction_(direction),
        truth_(truth),
        tokens_(problem.layout.tokens()),
        computed_(static_cast<size_t>(tokens_ * tokens_ * problem.heads.q_heads), 0),
        ranks_(
            std::move(plans), dims(problem.heads),
            {.run_task = [this](int rank, const Task& task) { run(rank, task); }, .compose = {}}) {
    load();
  }

  void verify(uint64_t seed) {
    ranks_.run(seed);
    check_coverage();
    if (direction_ == Direction::kForward) {
      compare(Field::kOut, truth_.out);
      compare(Field::kLse, truth_.lse);
    } else {
      compare(Field::kDQ, truth_.dq);
      compare(Field::kDK, truth_.dk);
      compare(Field::kDV, truth_.dv);
    }
    compare(Field::kK, truth_.k);  // home's inputs are as they were
    compare(Field::kV, truth_.v);
  }

 private:
  static PlanInterpreter::Dims dims(const HeadShape& heads) {
    PlanInterpreter::Dims dims{};
    const auto set = [&](Field field, int64_t dim) { dims[static_cast<size_t>(field)] = dim; };
    set(Field::kQ, heads.head_dim + 1);
    set(Field::kK, heads.head_dim + 1);
    for (Field field : {Field::kDQ, Field::kDK}) set(field, heads.head_dim);
    for (Field field : {Field::kV, Field::kDV, Field::kOut, Field::kDOut}) {
      set(field, heads.value_dim);
    }
    for (Field field : {Field::kLse, Field::kDelta}) set(field, 1);
    return dims;
  }

  void load() {
    for (int r = 0; r < problem_.layout.ranks(); ++r) {
      const std::vector<int64_t> positions = problem_.layout.positions(r);
      const auto put = [&](Field field, const Field3& source) {
        for (int64_t row = 0; row < static_cast<int64_t>(positions.size()); ++row) {
          const int64_t token = positions[static_cast<size_t>(row)];
          for (int64_t h = 0; h < source.heads; ++h) {
            const auto to = ranks_.at(r, 0, field, row, h);
            std::copy_n(source.at(token, h), source.dim, to.begin());
            if (field == Field::kQ || field == Field::kK) to.back() = static_cast<double>(token);
          }
        }
      };
      put(Field::kQ, truth_.q);
      put(Field::kK, truth_.k);
      put(Field::kV, truth_.v);
      if (direction_ == Direction::kForward) continue;
      put(Field::kDOut, truth_.dout);
      put(Field::kLse, truth_.lse);
      put(Field::kDelta, truth_.delta);
    }
  }

  // Counts a pair and checks that the segment names its positions.
  void count(const Segment& s, int64_t i, int64_t j, int64_t head, double q_tag, double k_tag) {
    const bool right = q_tag == static_cast<double>(s.q_pos + i * s.stride) &&
                       k_tag == static_cast<double>(s.k_pos + j * s.stride);
    if (!right) {
      throw PlanViolation(absl::StrCat("a segment says positions ", s.q_pos + i * s.stride, ", ",
                                       s.k_pos + j * s.stride, " but its rows are ", q_tag, ", ",
                                       k_tag));
    }
    const int64_t query = s.q_pos + i * s.stride, key = s.k_pos + j * s.stride;
    ++computed_[static_cast<size_t>((head * tokens_ + query) * tokens_ + key)];
  }

  void run(int rank, const Task& task) {
    if (task.segments.empty() || task.q_heads.length == 0) {
      throw PlanViolation(absl::StrCat("rank ", rank, " has a task without work"));
    }
    require_still(rank, task);
    for (const Segment& s : task.segments) {
      for (int64_t h = task.q_heads.begin; h < task.q_heads.end(); ++h) {
        direction_ == Direction::kForward ? forward(rank, task, s, h) : backward(rank, task, s, h);
      }
    }
  }

  // Kernels may touch any row of a buffer's slot.
  void require_still(int rank, const Task& task) {
    const auto require = [&](int slot, std::initializer_list<Field> read,
                             std::initializer_list<Field> written) {
      if (slot == 0) return;
      for (Field field : read) ranks_.require_still(rank, slot, field, false);
      for (Field field : written) ranks_.require_still(rank, slot, field, true);
    };
    if (direction_ == Direction::kForward) {
      require(task.q_slot, {Field::kQ}, {Field::kOut, Field::kLse});
      require(task.k_slot, {Field::kK, Field::kV}, {});
    } else {
      require(task.q_slot, {Field::kQ, Field::kDOut, Field::kLse, Field::kDelta}, {Field::kDQ});
      require(task.k_slot, {Field::kK, Field::kV}, {Field::kDK, Field::kDV});
    }
  }

  double scale() const { return 1.0 / std::sqrt(static_cast<double>(problem_.heads.head_dim)); }

  void forward(int rank, const Task& task, const Segment& s, int64_t h) {
    const int64_t D = problem_.heads.head_dim, kv = h / problem_.heads.group();
    for (int64_t i = 0; i < s.q_len; ++i) {
      const auto q = ranks_.read(rank, task.q_slot, Field::kQ, s.q_row + i, h);
      const auto out = ranks_.write(rank, task.q_slot, Field::kOut, s.q_row + i, h);
      double& lse = ranks_.write(rank, task.q_slot, Field::kLse, s.q_row + i, h)[0];
      for (int64_t j = 0; j < s.k_len; ++j) {
        if (!(i + s.band_lo <= j && j <= i + s.band_hi)) continue;
        const auto k = ranks_.read(rank, task.k_slot, Field::kK, s.k_row + j, kv);
        const auto v = ranks_.read(rank, task.k_slot, Field::kV, s.k_row + j, kv);
        count(s, i, j, h, q.back(), k.back());
        const double score = scale() * dot(q.data(), k.data(), D);
        // One key more: out <- (out e^lse + v e^score) / (e^lse + e^score).
        const double top = std::max(lse, score);
        const double a = std::exp(lse - top), b = std::exp(score - top);
        for (size_t d = 0; d < out.size(); ++d) out[d] = (a * out[d] + b * v[d]) / (a + b);
        lse = top + std::log(a + b);
      }
    }
  }

  void backward(int rank, const Task& task, const Segment& s, int64_t h) {
    const int64_t D = problem_.heads.head_dim, E = problem_.heads.value_dim;
    const int64_t kv = h / problem_.heads.group();
    for (int64_t i = 0; i < s.q_len; ++i) {
      const int64_t row = s.q_row + i;
      const auto q = ranks_.read(rank, task.q_slot, Field::kQ, row, h);
      const auto dout = ranks_.read(rank, task.q_slot, Field::kDOut, row, h);
      const double lse = ranks_.read(rank, task.q_slot, Field::kLse, row, h)[0];
      const double delta = ranks_.read(rank, task.q_slot, Field::kDelta, row, h)[0];
      const auto dq = ranks_.write(rank, task.q_slot, Field::kDQ, row, h);
      for (int64_t j = 0; j < s.k_len; ++j) {
        if (!(i + s.band_lo <= j && j <= i + s.band_hi)) continue;
        const auto k = ranks_.read(rank, task.k_slot, Field::kK, s.k_row + j, kv);
        const auto v = ranks_.read(rank, task.k_slot, Field::kV, s.k_row + j, kv);
        const auto dk = ranks_.write(rank, task.k_slot, Field::kDK, s.k_row + j, kv);
        const auto dv = ranks_.write(rank, task.k_slot, Field::kDV, s.k_row + j, kv);
        count(s, i, j, h, q.back(), k.back());
        const double p = std::exp(scale() * dot(q.data(), k.data(), D) - lse);
        const double ds = scale() * p * (dot(dout.data(), v.data(), E) - delta);
        for (int64_t d = 0; d < D; ++d) {
          dq[static_cast<size_t>(d)] += ds * k[static_cast<size_t>(d)];
          dk[static_cast<size_t>(d)] += ds * q[static_cast<size_t>(d)];
        }
        for (int64_t d = 0; d < E; ++d) {
          dv[static_cast<size_t>(d)] += p * dout[static_cast<size_t>(d)];
        }
      }
    }
  }

  void check_coverage() const {
    for (int64_t h = 0; h < problem_.heads.q_heads; ++h) {
      for (int64_t i = 0; i < tokens_; ++i) {
        for (int64_t j = 0; j < tokens_; ++j) {
          const int want = allowed(i, j, problem_.mask, problem_.documents) ? 1 : 0;
          const int got = computed_[static_cast<size_t>((h * tokens_ + i) * tokens_ + j)];
          if (got != want) {
            throw PlanViolation(absl::StrCat("query ", i, ", key ", j, ", head ", h,
                                             " is computed ", got, " times, not ", want));
          }
        }
      }
    }
  }

  void compare(Field field, const Field3& truth) {
    for (int r = 0; r < problem_.layout.ranks(); ++r) {
      const std::vector<int64_t> positions = problem_.layout.positions(r);
      for (int64_t row = 0; row < static_cast<int64_t>(positions.size()); ++row) {
        for (int64_t h = 0; h < truth.heads; ++h) {
          const auto got = ranks_.at(r, 0, field, row, h);
          const double* want = truth.at(positions[static_cast<size_t>(row)], h);
          for (int64_t d = 0; d < truth.dim; ++d) {
            const double error = std::abs(got[static_cast<size_t>(d)] - want[d]);
            if (!(error <= 1e-12 * (1 + std::abs(want[d])))) {  // also if NaN
              throw PlanViolation(absl::StrCat("rank ", r, " ", std::string(name(field)), " row ",
                                               row, " head ", h, ": ", got[static_cast<size_t>(d)],
                                               ", not ", want[d]));
            }
          }
        }
      }
    }
  }

  const Problem& problem_;
  Direction direction_;
  const AttentionTruth& truth_;
  int64_t tokens_;
  std::vector<uint8_t> computed_;  // [head][query][key]
  PlanInterpreter ranks_;
};

}  // namespace

AttentionTruth attention_truth(const Documents& documents, const Mask& mask, const HeadShape& heads,
                               uint64_t seed, const ScoreOptions& options, DType dtype) {
  std::mt19937_64 random(seed);
  const int64_t N = documents.tokens(), H = heads.q_heads, K = heads.kv_heads;
  const int64_t D = heads.head_dim, E = heads.value_dim;
  const double scale = 1.0 / std::sqrt(static_cast<double>(D));
  AttentionTruth t{heads,
                   options,
                   random_field(N, H, D, random, dtype),
                   random_field(N, K, D, random, dtype),
                   random_field(N, K, E, random, dtype),
                   random_field(N, H, E, random, dtype),
                   Field3(N, H, E),
                   Field3(N, H, 1, -std::numeric_limits<double>::infinity()),
                   Field3(N, H, 1),
                   Field3(N, H, D),
                   Field3(N, K, D),
                   Field3(N, K, E),
                   std::vector<double>(options.sink.size())};
  // Of one query: probabilities, their factors of dropout, and the soft-cap's derivatives.
  std::vector<double> p(static_cast<size_t>(N)), kept = p, bend = p;
  for (int64_t i = 0; i < N; ++i) {
    std::vector<int64_t> keys;
    for (int64_t j = 0; j < N; ++j) {
      if (allowed(i, j, mask, documents)) keys.push_back(j);
    }
    for (int64_t h = 0; h < H; ++h) {
      const int64_t kv = h * K / H;
      const bool has_sink = !options.sink.empty();
      const double sink = has_sink ? options.sink[static_cast<size_t>(h)] : 0;
      if (keys.empty() && !has_sink) continue;
      double top = has_sink ? sink : -std::numeric_limits<double>::infinity();
      for (int64_t j : keys) {
        double s = scale * dot(t.q.at(i, h), t.k.at(j, kv), D);
        bend[static_cast<size_t>(j)] = 1;
        if (options.soft_cap > 0) {
          const double bent = std::tanh(s / options.soft_cap);
          s = options.soft_cap * bent;
          bend[static_cast<size_t>(j)] = 1 - bent * bent;
        }
        if (!options.slopes.empty()) {
          s -= options.slopes[static_cast<size_t>(h)] * static_cast<double>(i - j);
        }
        kept[static_cast<size_t>(j)] = dropout_factor(options, h, i, j);
        p[static_cast<size_t>(j)] = s;
        top = std::max(top, s);
      }
      double sum = has_sink ? std::exp(sink - top) : 0;
      for (int64_t j : keys) sum += std::exp(p[static_cast<size_t>(j)] - top);
      *t.lse.at(i, h) = top + std::log(sum);
      for (int64_t j : keys) {
        double& pj = p[static_cast<size_t>(j)];
        pj = std::exp(pj - top) / sum;
        const double taken = pj * kept[static_cast<size_t>(j)];
        for (int64_t d = 0; d < E; ++d) t.out.at(i, h)[d] += taken * t.v.at(j, kv)[d];
      }
      const double delta = dot(t.out.at(i, h), t.dout.at(i, h), E);
      *t.delta.at(i, h) = delta;
      if (has_sink) t.dsink[static_cast<size_t>(h)] -= std::exp(sink - *t.lse.at(i, h)) * delta;
      for (int64_t j : keys) {
        const double pj = p[static_cast<size_t>(j)], factor = kept[static_cast<size_t>(j)];
        const double dp = factor * dot(t.dout.at(i, h), t.v.at(j, kv), E);
        const double ds = scale * bend[static_cast<size_t>(j)] * pj * (dp - delta);
        for (int64_t d = 0; d < D; ++d) {
          t.dq.at(i, h)[d] += ds * t.k.at(j, kv)[d];
          t.dk.at(j, kv)[d] += ds * t.q.at(i, h)[d];
        }
        for (int64_t d = 0; d < E; ++d) t.dv.at(j, kv)[d] += pj * factor * t.dout.at(i, h)[d];
      }
    }
  }
  return t;
}

void verify_attention(const Problem& problem, Direction direction, std::vector<Plan> plans,
                      const AttentionTruth& truth, uint64_t seed) {
  World(problem, direction, std::move(plans), truth).verify(seed);
}

void verify_attention(const Problem& problem, const Planner& planner, const AttentionTruth& truth,
                      uint64_t seed) {
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    std::vector<Plan> plans;
    for (int r = 0; r < problem.layout.ranks(); ++r) plans.push_back(planner(direction, r));
    verify_attention(problem, direction, std::move(plans), truth, seed);
  }
}

Documents random_documents(int64_t tokens, int64_t mean, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> begins;
  for (int64_t at = 0; at < tokens;) {
    begins.push_back(at);
    at += 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(2 * mean - 1));
  }
  return Documents(tokens, std::move(begins));
}

}  // namespace longhaul::test
