// The gated delta rule backward on the CPU, and the maps of its gradients.
//
// A block needs, all at once, the state S before it, y and u, and the gradient G of the state after
// it. States before every kDeltaSegment-th block come from one pass to the right; then segment by
// segment from the last, those before each block of the segment, with y and u, and then its blocks
// from the last. With the names of delta_tiles-inl.h, P = D . Q K^T and, of what lies below the
// diagonal, dP = D . dO U^T and E = -D . W U^T:
//
//     dU = P^T dO + diag(falling) K G                then r and w
//     dV += W              dbeta = r . y
//     dQ += diag(rising) dO S^T + dP K
//     dK += readers + writers,    readers = -diag(rising) W S^T + E K
//                                 writers = diag(falling) U G^T + dP^T Q + E^T K
//     G <- decay G + (diag(rising) Q)^T dO - (diag(rising) K)^T W
//
// P and dP with the diagonal. The gradient of the first gate is S . G, with the new G; going on to
// row i + 1 it gains k . writers - k . readers - q . dq of row i.
#include <algorithm>

#include "kernels/cpu/delta_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/delta_backward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/delta_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// The sum of products of n elements, in f64.
template <class A>
double dot(const A* x, const A* y, int64_t n) {
  const VectorOf<A> d;
  return static_cast<double>(sum_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    return hn::Mul(load(d, x + i, part), load(d, y + i, part));
  }));
}

// to(r, :) += from(r, :)
template <class A>
void add_rows_to(const A* from, int64_t width, int64_t rows, int64_t columns, A* to,
                 int64_t stride) {
  const VectorOf<A> d;
  for (int64_t r = 0; r < rows; ++r) {
    for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
      A* at = to + r * stride + c;
      store(d, hn::Add(load(d, at, part), load(d, from + r * width + c, part)), at, part);
    });
  }
}

// decay G + (diag(rising) Q)^T dO - (diag(rising) K)^T W, from rows of them all in scratch.
template <class A>
void pass_gradient(int64_t rows, int64_t head_dim, typename Powers<A>::Pair decay,
                   DeltaState<A>& gradient, const DeltaScratch<A>& s) {
  const auto add = [&](const A* left, const A* factors, const A* right,
                       typename Powers<A>::Pair old) {
    load_rows<A>(left, s.key_width, rows, head_dim, factors, s.key_width, s.scaled);
    update_state(StateUpdate<A>{.rows = rows,
                                .left = s.scaled,
                                .left_width = s.key_width,
                                .depth = head_dim,
                                .right = right,
                                .width = gradient.width,
                                .columns = gradient.columns,
                                .decay = old,
                                .empty = gradient.empty,
                                .state = gradient.state});
    gradient.empty = false;
  };
  add(s.q, s.rising, s.dout, decay);
  add(s.k, s.minus_rising, s.w, {A(1), A(0)});
}

template <class T>
class DeltaBackwardTask {
  using A = Accumulator<T>;

 public:
  DeltaBackwardTask(const DeltaRuleBackward& args, const DeltaTask<A>& task)
      : args_(args),
        task_(task),
        s_(task.scratch),
        head_dim_(args.q.dim(2)),
        value_dim_(args.v.dim(2)),
        state_{s_.state, value_dim_, s_.value_width, true},
        gradient_{s_.gradient, value_dim_, s_.value_width, task.right_entering == nullptr} {}

  void run() {
    const auto blocks = static_cast<int64_t>(task_.blocks.size());
    const int64_t segments = rounded_up(blocks, kDeltaSegment) / kDeltaSegment;
    state_.empty = task_.entering == nullptr;
    if (!state_.empty) {
      read_state(task_.entering, head_dim_, value_dim_, s_.value_width, s_.state);
    }
    if (!gradient_.empty) {
      read_state(task_.right_entering, head_dim_, value_dim_, s_.value_width, s_.gradient);
    }
    std::vector<bool> empty(static_cast<size_t>(segments));
    for (int64_t segment = 0; segment < segments; ++segment) {
      keep(state_, s_.segment_states, segment);
      empty[static_cast<size_t>(segment)] = state_.empty;
      if (segment + 1 == segments) break;
      for (int64_t n = 0; n < kDeltaSegment; ++n) {
        const LinearBlock& block = block_at(segment * kDeltaSegment + n);
        state_.empty |= block.first_of_document;
        make_state(block, s_.y, s_.u, !block.last_of_document);
      }
    }
    for (int64_t segment = segments; segment-- > 0;) {
      std::copy_n(s_.segment_states + segment * s_.state_elements, s_.state_elements, s_.state);
      state_.empty = empty[static_cast<size_t>(segment)];
      run_segment(segment * kDeltaSegment, std::min(blocks, (segment + 1) * kDeltaSegment));
    }
    if (task_.right_leaving != nullptr) {
      write_state(s_.gradient, head_dim_, value_dim_, s_.value_width, gradient_.empty,
                  task_.right_leaving);
    }
  }

 private:
  const LinearBlock& block_at(int64_t n) const { return task_.blocks[static_cast<size_t>(n)]; }
  void keep(const DeltaState<A>& state, A* where, int64_t number) const {
    std::copy_n(state.state, s_.state_elements, where + number * s_.state_elements);
  }

  // y and u of a block, and the state after it if that is of use.
  void make_state(const LinearBlock& block, A* y, A* u, bool goes_on) {
    const auto decay = load_decays<A>(args_.tokens, block, task_.head, s_);
    load_delta_keys<T>(args_.k, block, task_.head, s_);
    load_rows<T>(delta_rows<T>(args_.v, block.begin, task_.head), args_.v.stride(0), block.rows,
                 value_dim_, nullptr, s_.value_width, y);
    read_from_state(block.rows, head_dim_, state_, s_, y);
    solve(block.rows, value_dim_, s_.value_width, s_, y, u);
    if (goes_on) write_to_state(block.rows, head_dim_, decay, state_, s_, u);
    task_.poller.did(block.rows * 2 * head_dim_ * value_dim_);
  }

  void run_segment(int64_t begin, int64_t end) {
    const int64_t rows = kBlock * s_.value_width;
    std::array<bool, kDeltaSegment> empty{};
    for (int64_t b = begin; b < end; ++b) {
      const int64_t n = b - begin;
      state_.empty |= block_at(b).first_of_document;
      keep(state_, s_.block_states, n);
      empty[static_cast<size_t>(n)] = state_.empty;
      make_state(block_at(b), s_.block_y + n * rows, s_.block_u + n * rows,
                 !block_at(b).last_of_document && b + 1 < end);
    }
    for (int64_t b = end; b-- > begin;) {
      const int64_t n = b - begin;
      const DeltaState<A> before{s_.block_states + n * s_.state_elements, value_dim_,
                                 s_.value_width, empty[static_cast<size_t>(n)]};
      gradient_.empty |= block_at(b).last_of_document;
      run_block(block_at(b), before, s_.block_y + n * rows, s_.block_u + n * rows);
    }
  }

  void run_block(const LinearBlock& block, const DeltaState<A>& before, const A* y, const A* u) {
    const int64_t rows = block.rows, h = task_.head;
    const auto decay = load_decays<A>(args_.tokens, block, h, s_);
    load_delta_keys<T>(args_.k, block, h, s_);
    load_rows<T>(delta_rows<T>(args_.q, block.begin, h), args_.q.stride(0), rows, head_dim_,
                 nullptr, s_.key_width, s_.q);
    load_rows<T>(delta_rows<T>(args_.dout, block.begin, h), args_.dout.stride(0), rows, value_dim_,
                 nullptr, s_.value_width, s_.dout);
    make_dv(block);
    make_dq_dk(rows, before, u);
    add_rows_to<A>(s_.w, s_.value_width, rows, value_dim_,
                   delta_rows<A>(args_.dv_acc, block.begin, h), args_.dv_acc.stride(0));
    add_rows_to<A>(s_.dq, s_.key_width, rows, head_dim_,
                   delta_rows<A>(args_.dq_acc, block.begin, h), args_.dq_acc.stride(0));
    for (const A* part : {s_.readers, s_.writers}) {
      add_rows_to<A>(part, s_.key_width, rows, head_dim_,
                     delta_rows<A>(args_.dk_acc, block.begin, h), args_.dk_acc.stride(0));
    }
    if (block.first_of_document) {
      gradient_.empty = true;
    } else {
      pass_gradient(rows, head_dim_, decay, gradient_, s_);
    }
    write_gate_gradients(block, before, y);
    task_.poller.did(rows * (6 * head_dim_ * value_dim_ + 3 * kBlock * (head_dim_ + value_dim_)));
  }

  // dU, then r and w.
  void make_dv(const LinearBlock& block) const {
    const int64_t rows = block.rows;
    weighted_products<A>(rows, s_.q, s_.key_width, head_dim_, s_.kt, A(1), false, s_, s_.p);
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim_,
                         .x = s_.k,
                         .x_width = s_.key_width,
                         .depth = head_dim_,
                         .state = gradient_.empty ? nullptr : gradient_.state,
                         .factors = s_.falling,
                         .p = s_.p,
                         .transposed = true,
                         .y = s_.dout,
                         .width = s_.value_width,
                         .out = s_.r,
                         .out_stride = s_.value_width});
    solve_backwards(rows, value_dim_, s_.value_width, s_, s_.r, s_.w);
  }

  void make_dq_dk(int64_t rows, const DeltaState<A>& before, const A* u) const {
    load_transposed<A>(u, s_.value_width, rows, value_dim_, kBlock, s_.ut);
    weighted_products<A>(rows, s_.dout, s_.value_width, value_dim_, s_.ut, A(1), false, s_, s_.dp);
    weighted_products<A>(rows, s_.w, s_.value_width, value_dim_, s_.ut, A(-1), true, s_, s_.e);
    RowSums<A> sums{.rows = rows,
                    .columns = head_dim_,
                    .x_width = s_.value_width,
                    .depth = value_dim_,
                    .width = s_.key_width,
                    .out_stride = s_.key_width};
    if (!before.empty) sums.state = turn(before.state);
    sums.x = s_.dout;
    sums.factors = s_.rising;
    sums.p = s_.dp;
    sums.y = s_.k;
    sums.out = s_.dq;
    make_rows(sums);
    sums.x = s_.w;
    sums.factors = s_.minus_rising;
    sums.p = s_.e;
    sums.out = s_.readers;
    make_rows(sums);
    sums.state = gradient_.empty ? nullptr : turn(gradient_.state);
    sums.x = u;
    sums.factors = s_.falling;
    sums.p = s_.dp;
    sums.transposed = true;
    sums.y = s_.q;
    sums.out = s_.writers;
    make_rows(sums);
    sums.state = nullptr;
    sums.p = s_.e;
    sums.y = s_.k;
    sums.add = true;
    make_rows(sums);
  }
  const A* turn(const A* state) const {
    load_transposed<A>(state, s_.value_width, head_dim_, value_dim_, s_.key_width, s_.turned);
    return s_.turned;
  }

  // dbeta and dlog_gate, after the gradient has passed the block.
  void write_gate_gradients(const LinearBlock& block, const DeltaState<A>& before,
                            const A* y) const {
    const int64_t gates = args_.tokens.log_gate.dim(1);
    double sum = 0;
    if (!before.empty) {
      for (int64_t l = 0; l < head_dim_; ++l) {
        const int64_t at = l * s_.value_width;
        sum += dot(before.state + at, gradient_.state + at, value_dim_);
      }
    }
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t at = (block.begin + i) * gates + task_.head;
      const int64_t key = i * s_.key_width, value = i * s_.value_width;
      args_.dbeta.data<A>()[at] = static_cast<A>(dot(s_.r + value, y + value, value_dim_));
      // A gate that lets nothing pass has no gradient.
      const A over = i == 0 ? s_.rising[0] : s_.decays[i * kBlock + i - 1];
      if (over == A(0)) sum = 0;
      args_.dlog_gate.data<A>()[at] = static_cast<A>(sum);
      sum += dot(s_.k + key, s_.writers + key, head_dim_) -
             dot(s_.k + key, s_.readers + key, head_dim_) - dot(s_.q + key, s_.dq + key, head_dim_);
    }
  }

  const DeltaRuleBackward& args_;
  const DeltaTask<A>& task_;
  const DeltaScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
  DeltaState<A> state_, gradient_;
};

template <class T>
void backward(const DeltaRuleBackward& args, const DeltaTask<Accumulator<T>>& task) {
  DeltaBackwardTask<T>(args, task).run();
}

template <class T>
void to_the_left(const DeltaRuleBackwardMaps& args, const DeltaTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const DeltaScratch<A>& s = task.scratch;
  const int64_t head_dim = args.q.dim(2), value_dim = args.dout.dim(2), h = task.head;
  DeltaState<A> gradient{s.gradient, value_dim, s.value_width, true};
  // Up to the first document that begins in the run, or all of it.
  size_t end = 0;
  while (end < task.blocks.size() && !task.blocks[end].first_of_document) ++end;
  for (size_t b = end; b-- > 0;) {
    const LinearBlock& block = task.blocks[b];
    const int64_t rows = block.rows;
    const auto decay = load_decays<A>(args.tokens, block, h, s);
    load_delta_keys<T>(args.k, block, h, s);
    load_rows<T>(delta_rows<T>(args.q, block.begin, h), args.q.stride(0), rows, head_dim, nullptr,
                 s.key_width, s.q);
    load_rows<T>(delta_rows<T>(args.dout, block.begin, h), args.dout.stride(0), rows, value_dim,
                 nullptr, s.value_width, s.dout);
    weighted_products<A>(rows, s.q, s.key_width, head_dim, s.kt, A(1), false, s, s.p);
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim,
                         .x = s.k,
                         .x_width = s.key_width,
                         .depth = head_dim,
                         .state = gradient.empty ? nullptr : gradient.state,
                         .factors = s.falling,
                         .p = s.p,
                         .transposed = true,
                         .y = s.dout,
                         .width = s.value_width,
                         .out = s.r,
                         .out_stride = s.value_width});
    solve_backwards(rows, value_dim, s.value_width, s, s.r, s.w);
    pass_gradient(rows, head_dim, decay, gradient, s);
    task.poller.did(rows * 3 * head_dim * value_dim);
  }
  write_state(s.gradient, head_dim, value_dim, s.value_width, gradient.empty, task.right_leaving);
}

template <class T>
DeltaBackwardTasks<T> tasks() {
  return {.backward = backward<T>, .to_the_left = to_the_left<T>};
}

ByDType<DeltaBackwardTasks> delta_backward_tasks_here() {
  return {tasks<bf16>(), tasks<float>(), tasks<double>()};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(delta_backward_tasks_here);

ByDType<DeltaBackwardTasks> delta_backward_tasks() {
  return HWY_DYNAMIC_DISPATCH(delta_backward_tasks_here)();
}

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
