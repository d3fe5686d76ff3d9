// A learnable sink against a softmax that has it as one more key without a value.
#include "kernels/attention_sink.h"

#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Scores of `queries` queries of `heads` heads with a few keys each, values and dout; rows from
// `queries - empty` on see no key.
struct Scene {
  int64_t queries = 0, heads = 0, dim = 0, keys = 6, empty = 0;
  std::vector<double> scores;  // [h, t, key]
  std::vector<double> v;       // [h, key, d]
  std::vector<double> dout;    // [t, h, d]
  std::vector<double> sink;    // [h]

  Scene(int64_t queries_, int64_t heads_, int64_t dim_, int64_t empty_, DType sink_type)
      : queries(queries_), heads(heads_), dim(dim_), empty(empty_) {
    const auto draw = [](int64_t count, uint64_t stream) {
      std::vector<double> x;
      for (int64_t i = 0; i < count; ++i) {
        x.push_back(random_normal({.seed = 11, .stream = stream}, static_cast<uint64_t>(i)));
      }
      return x;
    };
    scores = draw(heads * queries * keys, 1);
    v = draw(heads * keys * dim, 2);
    dout = draw(queries * heads * dim, 3);
    sink = values(random(sink_type, {heads}, 4, 2.0));
  }

  int64_t keys_of(int64_t t) const { return t >= queries - empty ? 0 : keys; }

  // Softmax over the keys and, if `with_sink`, one more entry of no value.
  struct Result {
    std::vector<double> out, lse;
  };
  Result attention(bool with_sink) const {
    Result r{std::vector<double>(static_cast<size_t>(queries * heads * dim)),
             std::vector<double>(static_cast<size_t>(heads * queries))};
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < queries; ++t) {
        const double* s = &scores[static_cast<size_t>((h * queries + t) * keys)];
        double sum = with_sink ? std::exp(sink[static_cast<size_t>(h)]) : 0;
        for (int64_t j = 0; j < keys_of(t); ++j) sum += std::exp(s[j]);
        r.lse[static_cast<size_t>(h * queries + t)] = std::log(sum);
        for (int64_t j = 0; j < keys_of(t); ++j) {
          for (int64_t d = 0; d < dim; ++d) {
            r.out[static_cast<size_t>((t * heads + h) * dim + d)] +=
                std::exp(s[j]) / sum * v[static_cast<size_t>((h * keys + j) * dim + d)];
          }
        }
      }
    }
    return r;
  }

  // What the gradients are of.
  double loss() const {
    const Result r = attention(true);
    double sum = 0;
    for (size_t i = 0; i < dout.size(); ++i) sum += r.out[i] * dout[i];
    return sum;
  }

  std::vector<double> delta(const Result& final) const {
    std::vector<double> result(final.lse.size());
    for (int64_t i = 0; i < queries * heads * dim; ++i) {
      const int64_t t = i / dim / heads, h = i / dim % heads;
      result[static_cast<size_t>(h * queries + t)] +=
          final.out[static_cast<size_t>(i)] * dout[static_cast<size_t>(i)];
    }
    return result;
  }
};

DeviceTensor of(DType dtype, const Shape& shape, const std::vector<double>& x) {
  DeviceTensor tensor(dtype, shape);
  set(tensor, [&](int64_t n) { return x[static_cast<size_t>(n)]; });
  return tensor;
}

struct Size {
  int64_t queries, heads, dim, empty;
};
const std::vector<Size>& sizes() {
  static const std::vector<Size> list{
      {1, 1, 1, 0}, {7, 3, 5, 2}, {33, 8, 24, 1}, {0, 2, 4, 0}, {5000, 2, 3, 7}};
  return list;
}

TEST(AttentionSink, Forward) {
  for_each_row(&Backend::attention_sink, [](const AttentionSinkKernel& row) {
    const DType acc = accumulator(row.dtype);
    for (const Size& s : sizes()) {
      const Scene scene(s.queries, s.heads, s.dim, s.empty, row.dtype);
      const Scene::Result before = scene.attention(false), after = scene.attention(true);
      const DeviceTensor sink = of(row.dtype, {s.heads}, scene.sink);
      const DeviceTensor out = of(acc, {s.queries, s.heads, s.dim}, before.out);
      const DeviceTensor lse = of(acc, {s.heads, s.queries}, before.lse);
      Rig(3).run([&](const Context& ctx) {
        row.forward(ctx, {.sink = sink, .out_acc = out, .lse = lse});
      });
      expect_near(out, after.out, 16 * epsilon(acc), "out");
      expect_near(lse, after.lse, 16 * epsilon(acc), "lse");
    }
  });
}

// dsink[h] in closed form, added to what is there, and with the same bits for any threads.
TEST(AttentionSink, Backward) {
  for_each_row(&Backend::attention_sink, [](const AttentionSinkKernel& row) {
    const DType acc = accumulator(row.dtype);
    for (const Size& s : sizes()) {
      const Scene scene(s.queries, s.heads, s.dim, s.empty, row.dtype);
      const Scene::Result final = scene.attention(true);
      const std::vector<double> delta = scene.delta(final);
      std::vector<double> expected(static_cast<size_t>(s.heads), 0.25);
      double terms = 0;
      for (size_t i = 0; i < delta.size(); ++i) {
        const size_t h = i / static_cast<size_t>(s.queries);
        const double term = std::exp(scene.sink[h] - final.lse[i]) * delta[i];
        expected[h] -= term;
        terms += std::abs(term);
      }
      const DeviceTensor sink = of(row.dtype, {s.heads}, scene.sink);
      const DeviceTensor lse = of(acc, {s.heads, s.queries}, final.lse);
      const DeviceTensor d = of(acc, {s.heads, s.queries}, delta);
      std::vector<DeviceTensor> results;
      for (int threads : numbers_of_threads({1, 2, 5})) {
        results.push_back(filled(acc, {s.heads}, 0.25));
        Rig(threads).run([&](const Context& ctx) {
          row.backward(ctx, {.sink = sink, .lse = lse, .delta = d, .dsink = results.back()});
        });
        expect_near(results.back(), expected, 8 * epsilon(acc), "dsink", terms);
        EXPECT_TRUE(same_bits(results.back(), results.front())) << threads << " threads";
      }
    }
  });
}

TEST(AttentionSink, BackwardEqualsFiniteDifferences) {
  for_each_row(&Backend::attention_sink, [](const AttentionSinkKernel& row) {
    if (row.dtype != DType::kF64) return;
    Scene scene(9, 3, 4, 2, row.dtype);
    const Scene::Result final = scene.attention(true);
    const DeviceTensor sink = of(row.dtype, {3}, scene.sink);
    const DeviceTensor lse = of(row.dtype, {3, 9}, final.lse);
    const DeviceTensor delta = of(row.dtype, {3, 9}, scene.delta(final));
    const DeviceTensor dsink = filled(row.dtype, {3}, 0);
    Rig(2).run([&](const Context& ctx) {
      row.backward(ctx, {.sink = sink, .lse = lse, .delta = delta, .dsink = dsink});
    });
    const std::vector<double> got = values(dsink);
    for (size_t h = 0; h < got.size(); ++h) {
      constexpr double kStep = 1e-5;
      const double at = scene.sink[h];
      scene.sink[h] = at + kStep;
      const double up = scene.loss();
      scene.sink[h] = at - kStep;
      const double down = scene.loss();
      scene.sink[h] = at;
      EXPECT_NEAR(got[h], (up - down) / (2 * kStep), 1e-9) << "head " << h;
    }
  });
}

// Large against all scores, and absent.
TEST(AttentionSink, Extremes) {
  for_each_row(&Backend::attention_sink, [](const AttentionSinkKernel& row) {
    const DType acc = accumulator(row.dtype);
    const DeviceTensor sink = of(row.dtype, {3}, {1e4, -kInfinity, -1e4});
    const DeviceTensor out = of(acc, {2, 3, 1}, {1, 2, 3, 0, 0, 0});
    const DeviceTensor lse = of(acc, {3, 2}, {0.5, -kInfinity, 1, -kInfinity, 2, -kInfinity});
    Rig(1).run(
        [&](const Context& ctx) { row.forward(ctx, {.sink = sink, .out_acc = out, .lse = lse}); });
    EXPECT_EQ(values(out), (std::vector<double>{0, 2, 3, 0, 0, 0}));
    const std::vector<double> of_sink = values(sink), l = values(lse);
    EXPECT_EQ(l, (std::vector<double>{of_sink[0], of_sink[0], 1, -kInfinity, 2, of_sink[2]}));
    const DeviceTensor delta = of(acc, {3, 2}, {4, 0, 5, 0, 6, 0}), d = filled(acc, {3}, 0);
    Rig(1).run([&](const Context& ctx) {
      row.backward(ctx, {.sink = sink, .lse = lse, .delta = delta, .dsink = d});
    });
    EXPECT_EQ(values(d), (std::vector<double>{-4, 0, 0}));
  });
}

TEST(AttentionSink, TheDoorRefusesWrongShapes) {
  const DeviceTensor sink(DType::kBF16, {3}), out(DType::kF32, {4, 3, 2}), lse(DType::kF32, {3, 4});
  const auto refuses = [&](const AttentionSinkForward& args, const char* what) {
    try {
      Rig(1).run([&](const Context& ctx) { attention_sink_forward(ctx, args); });
      ADD_FAILURE() << "accepted: " << what;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInternal);
      EXPECT_THAT(error.what(), ::testing::HasSubstr(what));
    }
  };
  Rig(1).run([&](const Context& ctx) {
    attention_sink_forward(ctx, {.sink = sink, .out_acc = out, .lse = lse});
  });
  refuses({.sink = lse, .out_acc = out, .lse = lse}, "attention_sink: sink");
  refuses({.sink = sink, .out_acc = DeviceTensor(DType::kF64, {4, 3, 2}), .lse = lse},
          "attention_sink: out_acc");
  refuses({.sink = sink, .out_acc = out, .lse = DeviceTensor(DType::kF32, {4, 3})},
          "attention_sink: lse");
}

}  // namespace
}  // namespace longhaul::kernels::testing
