// Gated linear attention backward on the CPU, and the parts of it that wait for other ranks.
//
// Two passes through the blocks of a piece, as for a scalar decay, with f and t the products of
// gates from the block's begin up to a row, and from after it up to the block's end. To the right,
// with the state S, transposed:
//
//     dQ += F . (dO S^T)                          S^T <- S^T diag(f_c) + V^T (T . K)
//
// and to the left, with its gradient G:
//
//     dQ(i) += sum over j <= i of dP(i, j) K(j) . gates from j + 1 to i
//     dK(j) += sum over i >= j of dP(i, j) Q(i) . gates from j + 1 to i  +  t(j) . (V G^T)(j)
//     dV += P^T dO + (T . K) G                    G <- diag(f_c) G + (F . Q)^T dO
//
// where dP = dO V^T. The sums over a block go by way of the borders between sub-blocks, and within
// one gate by gate.
#include <algorithm>

#include "kernels/cpu/gated_schedule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gated_backward.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/gated_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// Rows of a result += the part of their sum that lies in the sub-block which begins at `first` and
// has n rows. Horner's rule: what is summed so far meets one gate more with every row.
template <class A>
void add_diagonal_dq(int64_t first, int64_t n, int64_t columns, const GatedScratch<A>& s, A* out,
                     int64_t out_stride) {
  const VectorOf<A> d;
  const int64_t width = s.key_width;
  const A* dp = s.dp + first * kBlock + first;
  for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
    hn::Vec<decltype(d)> sum[kSubBlock];
#pragma GCC unroll 16
    for (int i = 0; i < kSubBlock; ++i) sum[i] = hn::Zero(d);
#pragma GCC unroll 16
    for (int j = 0; j < kSubBlock; ++j) {
      const auto gate = hn::LoadU(d, s.gate + (first + j) * width + c);
      const auto key = hn::LoadU(d, s.k + (first + j) * width + c);
#pragma GCC unroll 16
      for (int i = 0; i < kSubBlock; ++i) {
        if (i < j) continue;
        if (j > 0) sum[i] = hn::Mul(sum[i], gate);
        sum[i] = hn::MulAdd(hn::Set(d, dp[i * kBlock + j]), key, sum[i]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSubBlock; ++i) {
      A* to = out + i * out_stride + c;
      if (i < n) store(d, hn::Add(load(d, to, part), sum[i]), to, part);
    }
  });
}

template <class A>
void add_diagonal_dk(int64_t first, int64_t n, int64_t columns, const GatedScratch<A>& s, A* out,
                     int64_t out_stride) {
  const VectorOf<A> d;
  const int64_t width = s.key_width;
  const A* dp = s.dp + first * kBlock + first;
  for_vectors(d, columns, [&](int64_t c, auto part) HWY_ATTR {
    hn::Vec<decltype(d)> sum[kSubBlock];
#pragma GCC unroll 16
    for (int j = 0; j < kSubBlock; ++j) sum[j] = hn::Zero(d);
#pragma GCC unroll 16
    for (int back = 0; back < kSubBlock; ++back) {
      const int i = kSubBlock - 1 - back;
      const auto query = hn::LoadU(d, s.q + (first + i) * width + c);
      const auto gate =
          back == 0 ? hn::Zero(d) : hn::LoadU(d, s.gate + (first + i + 1) * width + c);
#pragma GCC unroll 16
      for (int j = 0; j < kSubBlock; ++j) {
        if (j > i) continue;
        if (back > 0) sum[j] = hn::Mul(sum[j], gate);
        sum[j] = hn::MulAdd(hn::Set(d, dp[i * kBlock + j]), query, sum[j]);
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < kSubBlock; ++j) {
      A* to = out + j * out_stride + c;
      if (j < n) store(d, hn::Add(load(d, to, part), sum[j]), to, part);
    }
  });
}

template <class T>
class GatedBackwardTask {
  using A = Accumulator<T>;

 public:
  GatedBackwardTask(const GatedLinearAttentionBackward& args, const GatedTask<A>& task)
      : args_(args),
        task_(task),
        s_(task.scratch),
        head_dim_(args.q.dim(2)),
        value_dim_(args.v.dim(2)) {}

  void run() {
    to_the_right();
    to_the_left();
  }

 private:
  void load_block_gates(const LinearBlock& block, int64_t h) const {
    const ConstTensorView& log_gate = args_.tokens.log_gate;
    load_gates<A>(rows_of<A>(log_gate, block.begin, h), log_gate.stride(0), block.rows, head_dim_,
                  s_);
  }
  void load_keys(const ConstTensorView& x, const LinearBlock& block, int64_t h, A* to) const {
    load_rows<T>(rows_of<T>(x, block.begin, h), x.stride(0), block.rows, head_dim_, nullptr,
                 s_.key_width, to);
    pad_rows(block.rows, s_.key_width, to);
  }
  void load_values(const ConstTensorView& x, const LinearBlock& block, int64_t h, A* to) const {
    load_rows<T>(rows_of<T>(x, block.begin, h), x.stride(0), block.rows, value_dim_, nullptr,
                 s_.value_width, to);
  }

  void to_the_right() const {
    const bool enters = read_transposed_states(task_, task_.entering, head_dim_, value_dim_);
    const auto ahead = [&](int64_t row, int64_t h, Ahead& to) {
      add_rows_of<T>(args_.k, row, h, to);
      add_rows_of<A>(args_.tokens.log_gate, row, h, to);
      add_rows_of<T>(args_.v, row, h, to);
      add_rows_of<T>(args_.dout, row, h, to);
      add_results_of<A>(args_.dq_acc, row, h, to);
    };
    walk<true>(task_, enters, false, ahead, [&](const Visit& at) {
      add_dq(at);
      task_.poller.did(at.block.rows * 2 * head_dim_ * value_dim_);
    });
  }

  void add_dq(const Visit& at) const {
    const auto& [block, h, empty, keep, ahead] = at;
    if (empty && !keep) return;
    load_block_gates(block, h);
    if (!empty) {
      load_values(args_.dout, block, h, s_.dout);
      make_product(Product<A>{.rows = block.rows,
                              .columns = head_dim_,
                              .depth = value_dim_,
                              .x = s_.dout,
                              .x_row = s_.value_width,
                              .y = state_of(task_, h),
                              .width = s_.key_width,
                              .gates = s_.from_begin,
                              .add = true,
                              .out = rows_of<A>(args_.dq_acc, block.begin, h),
                              .out_stride = args_.dq_acc.stride(0),
                              .ahead = ahead.part(0, 2),
                              .ahead_between = ahead.part(2, 3)});
    }
    if (!keep) return;
    load_keys(args_.k, block, h, s_.k);
    multiply_rows(s_.k, s_.to_end, block.rows, head_dim_, s_.key_width, s_.k);
    load_values(args_.v, block, h, s_.v);
    update_gated_state(GatedUpdate<A>{.rows = block.rows,
                                      .left = s_.v,
                                      .left_l = 1,
                                      .left_t = s_.value_width,
                                      .depth = value_dim_,
                                      .right = s_.k,
                                      .width = s_.key_width,
                                      .columns = head_dim_,
                                      .decay = s_.decay,
                                      .decay_rest = s_.decay_rest,
                                      .by_column = true,
                                      .empty = empty,
                                      .state = state_of(task_, h),
                                      .ahead = ahead.part(3, 5)});
  }

  void to_the_left() const {
    const bool enters = read_states(task_, task_.right_entering, head_dim_, value_dim_);
    const auto ahead = [&](int64_t row, int64_t h, Ahead& to) {
      add_rows_of<T>(args_.q, row, h, to);
      add_rows_of<T>(args_.k, row, h, to);
      add_rows_of<T>(args_.v, row, h, to);
      add_rows_of<T>(args_.dout, row, h, to);
      add_results_of<A>(args_.dq_acc, row, h, to);
      add_results_of<A>(args_.dv_acc, row, h, to);
      add_results_of<A>(args_.dk_acc, row, h, to);
    };
    const bool empty =
        walk<false>(task_, enters, task_.right_leaving != nullptr, ahead, [&](const Visit& at) {
          add_dk_dv(at);
          task_.poller.did(at.block.rows *
                           (3 * head_dim_ * value_dim_ + 2 * kBlock * (head_dim_ + value_dim_)));
        });
    write_states(task_, head_dim_, value_dim_, empty, task_.right_leaving);
  }

  void add_dk_dv(const Visit& at) const {
    const auto& [block, h, empty, keep, ahead] = at;
    const int64_t rows = block.rows;
    load_block_gates(block, h);
    load_keys(args_.q, block, h, s_.q);
    load_keys(args_.k, block, h, s_.k);
    load_values(args_.v, block, h, s_.v);
    load_values(args_.dout, block, h, s_.dout);
    gated_products(rows, head_dim_, s_, ahead.part(0, 1));
    load_transposed<A>(s_.v, s_.value_width, rows, value_dim_, kBlock, s_.vt);
    std::fill_n(s_.dp, kBlock * kBlock, A(0));
    decayed_products<A>(rows, s_.dout, s_.value_width, value_dim_, s_.vt, nullptr, s_.dp,
                        ahead.part(1, 2));
    add_intra_dq(rows, rows_of<A>(args_.dq_acc, block.begin, h), args_.dq_acc.stride(0));
    A* dk = rows_of<A>(args_.dk_acc, block.begin, h);
    add_intra_dk(rows, dk, args_.dk_acc.stride(0));
    if (!empty) {
      load_transposed<A>(state_of(task_, h), s_.value_width, head_dim_, value_dim_, s_.key_width,
                         s_.turned);
      make_product(Product<A>{.rows = rows,
                              .columns = head_dim_,
                              .depth = value_dim_,
                              .x = s_.v,
                              .x_row = s_.value_width,
                              .y = s_.turned,
                              .width = s_.key_width,
                              .gates = s_.to_end,
                              .add = true,
                              .out = dk,
                              .out_stride = args_.dk_acc.stride(0),
                              .ahead = ahead.part(2, 3)});
      multiply_rows(s_.k, s_.to_end, rows, head_dim_, s_.key_width, s_.k);
    }
    make_rows(RowSums<A>{.rows = rows,
                         .columns = value_dim_,
                         .x = s_.k,
                         .x_width = s_.key_width,
                         .depth = head_dim_,
                         .state = empty ? nullptr : state_of(task_, h),
                         .p = s_.p,
                         .transposed = true,
                         .y = s_.dout,
                         .width = s_.value_width,
                         .add = true,
                         .out = rows_of<A>(args_.dv_acc, block.begin, h),
                         .out_stride = args_.dv_acc.stride(0),
                         .ahead = ahead.part(3, 4),
                         .ahead_between = ahead.part(4, 6)});
    if (!keep) return;
    multiply_rows(s_.q, s_.from_begin, rows, head_dim_, s_.key_width, s_.q);
    update_gated_state(GatedUpdate<A>{.rows = rows,
                                      .left = s_.q,
                                      .left_l = 1,
                                      .left_t = s_.key_width,
                                      .depth = head_dim_,
                                      .right = s_.dout,
                                      .width = s_.value_width,
                                      .columns = value_dim_,
                                      .decay = s_.decay,
                                      .decay_rest = s_.decay_rest,
                                      .empty = empty,
                                      .state = state_of(task_, h),
                                      .ahead = ahead.part(6, 7)});
  }

  // s_.moved: the keys of the sub-blocks before, decayed up to the border.
  void add_intra_dq(int64_t rows, A* dq, int64_t stride) const {
    const int64_t width = s_.key_width;
    for (int64_t first = 0; first < rows; first += kSubBlock) {
      const int64_t n = std::min(kSubBlock, rows - first);
      if (first > 0) {
        const int64_t before = first - kSubBlock;
        multiply_columns(s_.from_border + (first - 1) * width, before, head_dim_, width, s_.moved);
        multiply_rows(s_.k + before * width, s_.to_border + before * width, kSubBlock, head_dim_,
                      width, s_.moved + before * width);
        make_product(Product<A>{.rows = n,
                                .columns = head_dim_,
                                .depth = first,
                                .x = s_.dp + first * kBlock,
                                .x_row = kBlock,
                                .y = s_.moved,
                                .width = width,
                                .gates = s_.from_border + first * width,
                                .add = true,
                                .out = dq + first * stride,
                                .out_stride = stride});
      }
      add_diagonal_dq(first, n, head_dim_, s_, dq + first * stride, stride);
    }
  }

  // s_.moved: the queries of the sub-blocks behind, decayed from the border.
  void add_intra_dk(int64_t rows, A* dk, int64_t stride) const {
    const int64_t width = s_.key_width;
    for (int64_t first = (rows - 1) / kSubBlock * kSubBlock; first >= 0; first -= kSubBlock) {
      const int64_t n = std::min(kSubBlock, rows - first), behind = first + kSubBlock;
      if (behind < rows) {
        const int64_t next = std::min(kSubBlock, rows - behind), far = behind + next;
        multiply_columns(s_.from_border + (far - 1) * width, rows - far, head_dim_, width,
                         s_.moved + far * width);
        multiply_rows(s_.q + behind * width, s_.from_border + behind * width, next, head_dim_,
                      width, s_.moved + behind * width);
        make_product(Product<A>{.rows = n,
                                .columns = head_dim_,
                                .depth = rows - behind,
                                .x = s_.dp + behind * kBlock + first,
                                .x_row = 1,
                                .x_t = kBlock,
                                .y = s_.moved + behind * width,
                                .width = width,
                                .gates = s_.to_border + first * width,
                                .add = true,
                                .out = dk + first * stride,
                                .out_stride = stride});
      }
      add_diagonal_dk(first, n, head_dim_, s_, dk + first * stride, stride);
    }
  }

  const GatedLinearAttentionBackward& args_;
  const GatedTask<A>& task_;
  const GatedScratch<A>& s_;
  const int64_t head_dim_, value_dim_;
};

template <class T>
void backward(const GatedLinearAttentionBackward& args, const GatedTask<Accumulator<T>>& task) {
  GatedBackwardTask<T>(args, task).run();
}

template <class T>
void load_block_gates(const ConstTensorView& log_gate, const LinearBlock& block, int64_t h,
                      const GatedScratch<Accumulator<T>>& s) {
  using A = Accumulator<T>;
  load_gates<A>(rows_of<A>(log_gate, block.begin, h), log_gate.stride(0), block.rows,
                log_gate.dim(2), s);
}

// dq += F . (dout S^T) for rows that the incoming state reaches, f counted from the run's begin.
template <class T>
void add_dq(const GatedLinearAttentionAddDq& args, const GatedTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const GatedScratch<A>& s = task.scratch;
  const int64_t head_dim = args.dq_acc.dim(2), value_dim = args.dout.dim(2);
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    load_transposed<A>(task.entering + h * head_dim * value_dim, value_dim, head_dim, value_dim,
                       s.key_width, s.turned);
    begin_outside(task.gates_before + h * head_dim, head_dim, s);
    for (const LinearBlock& block : task.blocks) {
      if (block.first_of_document || !any(s.outside, head_dim)) break;
      load_block_gates<T>(args.tokens.log_gate, block, h, s);
      multiply_columns(s.outside, block.rows, head_dim, s.key_width, s.from_begin);
      load_rows<T>(rows_of<T>(args.dout, block.begin, h), args.dout.stride(0), block.rows,
                   value_dim, nullptr, s.value_width, s.dout);
      make_product(Product<A>{.rows = block.rows,
                              .columns = head_dim,
                              .depth = value_dim,
                              .x = s.dout,
                              .x_row = s.value_width,
                              .y = s.turned,
                              .width = s.key_width,
                              .gates = s.from_begin,
                              .add = true,
                              .out = rows_of<A>(args.dq_acc, block.begin, h),
                              .out_stride = args.dq_acc.stride(0)});
      pass_block(head_dim, s);
      task.poller.did(block.rows * head_dim * value_dim);
    }
  }
}

// dk += T . (v G^T) and dv += (T . k) G for rows whose state reaches the end of the run, t counted
// up to there.
template <class T>
void add_dk_dv(const GatedLinearAttentionAddDkDv& args, const GatedTask<Accumulator<T>>& task) {
  using A = Accumulator<T>;
  const GatedScratch<A>& s = task.scratch;
  const int64_t head_dim = args.k.dim(2), value_dim = args.v.dim(2);
  for (int64_t h = task.heads.begin; h < task.heads.end; ++h) {
    const A* gradient = task.right_entering + h * head_dim * value_dim;
    read_state(gradient, head_dim, value_dim, s.value_width, s.states);
    load_transposed<A>(gradient, value_dim, head_dim, value_dim, s.key_width, s.turned);
    begin_outside(task.gates_after + h * head_dim, head_dim, s);
    for (size_t b = task.blocks.size(); b-- > 0;) {
      const LinearBlock& block = task.blocks[b];
      if (!any(s.outside, head_dim)) break;
      load_block_gates<T>(args.tokens.log_gate, block, h, s);
      multiply_columns(s.outside, block.rows, head_dim, s.key_width, s.to_end);
      load_rows<T>(rows_of<T>(args.k, block.begin, h), args.k.stride(0), block.rows, head_dim,
                   nullptr, s.key_width, s.k);
      multiply_rows(s.k, s.to_end, block.rows, head_dim, s.key_width, s.k);
      load_rows<T>(rows_of<T>(args.v, block.begin, h), args.v.stride(0), block.rows, value_dim,
                   nullptr, s.value_width, s.v);
      make_product(Product<A>{.rows = block.rows,
                              .columns = value_dim,
                              .depth = head_dim,
                              .x = s.k,
                              .x_row = s.key_width,
                              .y = s.states,
                              .width = s.value_width,
                              .add = true,
                              .out = rows_of<A>(args.dv_acc, block.begin, h),
                              .out_stride = args.dv_acc.stride(0)});
      make_product(Product<A>{.rows = block.rows,
                              .columns = head_dim,
                              .depth = value_dim,
                              .x = s.v,
                              .x_row = s.value_width,
                              .y = s.turned,
                              .width = s.key_width,
                              .gates = s.to_end,
                              .add = true,
                              .out = rows_of<A>(args.dk_acc, block.begin, h),
                              .out_stride = args.dk_acc.stride(0)});
      task.poller.did(block.rows * 2 * head_dim * value_dim);
      if (block.first_of_document) break;
      pass_block(head_dim, s);
    }
  }
}

template <class T>
GatedBackwardTasks<T> tasks() {
  return {.backward = backward<T>, .add_dq = add_dq<T>, .add_dk_dv = add_dk_dv<T>};
}

ByDType<GatedBackwardTasks> gated_backward_tasks_here() {
  return {tasks<bf16>(), tasks<float>(), tasks<double>()};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(gated_backward_tasks_here);

ByDType<GatedBackwardTasks> gated_backward_tasks() {
  return HWY_DYNAMIC_DISPATCH(gated_backward_tasks_here)();
}

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
