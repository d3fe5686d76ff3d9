// Sums of the gates of gated linear attention, and their gradients. These are running sums over a
// run's rows for each key dimension: sums of pieces first, then a scan over the pieces, then the
// rows, a thread for a piece and key dimension.
#include <limits>

#include "kernels/cuda/gated_linear_attention_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

template <class A>
struct GateSums {
  const A* log_gate = nullptr;
  int head_dim = 0;
  double *sums = nullptr, *decays = nullptr;
};

template <class A>
__global__ void __launch_bounds__(kThreads)
    sum_gates_kernel(LinearWork work, GateSums<A> pass, int tiles) {
  __shared__ double parts[kWarps][kSide];
  const LinearPlace at(work, tiles);
  const int column = at.column + lane();
  double sum = 0;
  for (int64_t r = at.piece.begin + warp(); r < at.piece.end && column < pass.head_dim;
       r += kWarps) {
    const int64_t index = (r * work.heads + at.head) * pass.head_dim + column;
    sum += static_cast<double>(pass.log_gate[index]);
  }
  parts[warp()][lane()] = sum;
  __syncthreads();
  if (warp() > 0 || column >= pass.head_dim) return;
  for (int n = 1; n < kWarps; ++n) sum += parts[n][lane()];
  const int64_t to = (at.number * work.heads + at.head) * pass.head_dim + column;
  pass.sums[to] = sum;
  if (pass.decays != nullptr) pass.decays[to] = exp(sum);
}

template <class A>
__global__ void log_decay_kernel(LinearWork work, const double* sums, int64_t columns,
                                 A* log_decay) {
  for (int64_t n = grid_first(); n < work.run_count * columns; n += grid_stride()) {
    const int64_t run = n / columns;
    double sum = 0;
    for (int64_t p = work.run_begins[run]; p < work.run_begins[run + 1]; ++p) {
      sum += sums[p * columns + n % columns];
      if (work.pieces[p].resets) sum = -std::numeric_limits<double>::infinity();
    }
    log_decay[n] = static_cast<A>(sum);
  }
}

template <class T>
struct GateGradient {
  using A = Accumulator<T>;

  Operand<T> q, k;
  const A *log_gate = nullptr, *dq = nullptr, *dk = nullptr;
  const A *state_in = nullptr, *dstate_in = nullptr;  // both or none
  int64_t value_dim = 0;
  A* dlog_gate = nullptr;
  double* begins = nullptr;    // [R, H, D]: state_in . dstate_in
  double* sums = nullptr;      // [P, H, D]: of pieces, then what enters them
  double* restarts = nullptr;  // [P, H, D]: whether the sum begins anew in the piece

  __device__ int64_t index(int64_t row, int64_t heads, int64_t head, int column) const {
    return (row * heads + head) * q.dim + column;
  }
};

// A warp for each row of a state.
template <class T>
__global__ void begins_kernel(GateGradient<T> pass, int64_t rows) {
  for (int64_t n = grid_first() / kWarp; n < rows; n += grid_stride() / kWarp) {
    double sum = 0;
    for (int64_t e = lane(); e < pass.value_dim; e += kWarp) {
      const int64_t at = n * pass.value_dim + e;
      sum += static_cast<double>(pass.state_in[at]) * static_cast<double>(pass.dstate_in[at]);
    }
    sum = warp_sum(sum);
    if (lane() == 0) pass.begins[n] = sum;
  }
}

template <class T, bool kResults>
__global__ void __launch_bounds__(kWarp)
    gate_gradient_kernel(LinearWork work, GateGradient<T> pass, int tiles) {
  using A = Accumulator<T>;
  // Below, e^gate is less than a normal number.
  constexpr double kLog2 = 0.69314718055994530942;
  constexpr A kClosed = static_cast<A>((std::numeric_limits<A>::min_exponent - 1) * kLog2);
  const LinearPlace at(work, tiles);
  const int column = at.column + lane();
  if (column >= pass.q.dim) return;
  const int64_t of_piece = pass.index(at.number, work.heads, at.head, column);
  double sum = kResults ? pass.sums[of_piece] : 0;
  bool restarts = false;
  const HeadRows<T> q = pass.q.of_head(at.head), k = pass.k.of_head(at.head);
  at.template for_chunks<true>(work, [&](const LinearChunk& chunk, bool) {
    for (int r = 0; r < chunk.rows; ++r) {
      const int64_t row = chunk.begin + r;
      const int64_t n = pass.index(row, work.heads, at.head, column);
      if ((chunk.starts >> r & 1u) != 0 || pass.log_gate[n] < kClosed) {
        sum = 0;
        restarts = true;
      }
      if constexpr (kResults) pass.dlog_gate[n] = static_cast<A>(sum);
      sum +=
          static_cast<double>(static_cast<A>(k.row(row)[column])) *
              static_cast<double>(pass.dk[n]) -
          static_cast<double>(static_cast<A>(q.row(row)[column])) * static_cast<double>(pass.dq[n]);
    }
  });
  if constexpr (!kResults) {
    pass.sums[of_piece] = sum;
    pass.restarts[of_piece] = restarts ? 1 : 0;
  }
}

template <class T>
__global__ void scan_gradients_kernel(LinearWork work, GateGradient<T> pass) {
  const int64_t columns = work.heads * pass.q.dim;
  for (int64_t n = grid_first(); n < work.run_count * columns; n += grid_stride()) {
    const int64_t run = n / columns;
    double sum = pass.state_in != nullptr ? pass.begins[n] : 0;
    for (int64_t p = work.run_begins[run]; p < work.run_begins[run + 1]; ++p) {
      const int64_t at = p * columns + n % columns;
      const double own = pass.sums[at];
      pass.sums[at] = sum;
      sum = pass.restarts[at] != 0 ? own : sum + own;
    }
  }
}

}  // namespace

GatedCall::GatedCall(const Context& ctx_, const GatedTokens& tokens_, int64_t value_dim_,
                     int64_t chunk_rows_)
    : ctx(ctx_),
      slopes(static_cast<size_t>(tokens_.log_gate.dim(1))),
      tokens{.runs = tokens_.runs, .document_begins = tokens_.document_begins, .slopes = slopes},
      rows(tokens_.log_gate.dim(0)),
      heads(tokens_.log_gate.dim(1)),
      head_dim(tokens_.log_gate.dim(2)),
      value_dim(value_dim_),
      chunk_rows(chunk_rows_),
      piece_rows(linear_piece_rows(
          rows, heads * column_tiles(static_cast<int>(std::min(head_dim, value_dim))))),
      memory(linear_work_memory(ctx, tokens, rows, chunk_rows, piece_rows)) {}

TensorView GatedCall::allocate_gates() const {
  const int64_t pieces = most_pieces(rows, static_cast<int64_t>(tokens.runs.size()), piece_rows);
  return ctx.scratch->allocate(DType::kF64, {pieces, heads, head_dim});
}

LinearWork GatedCall::start() {
  const LinearWorkList list = linear_work(tokens, chunk_rows, piece_rows);
  chained = list.pieces.size() > tokens.runs.size();
  return place(ctx, tokens, list, memory);
}

template <class A>
void sum_gates(const Context& ctx, const LinearWork& work, const A* log_gate, int head_dim,
               double* sums, double* decays) {
  launch_pieces<kThreads>(
      ctx, "gated linear attention: gates", sum_gates_kernel<A>, work,
      GateSums<A>{.log_gate = log_gate, .head_dim = head_dim, .sums = sums, .decays = decays},
      head_dim, 0);
}
template void sum_gates(const Context&, const LinearWork&, const float*, int, double*, double*);
template void sum_gates(const Context&, const LinearWork&, const double*, int, double*, double*);

template <class A>
void write_log_decay(const Context& ctx, const LinearWork& work, const double* sums, int head_dim,
                     A* log_decay) {
  const int64_t columns = work.heads * head_dim;
  if (work.run_count * columns == 0) return;
  launch(ctx, "gated linear attention: log_decay", log_decay_kernel<A>,
         grid_for(work.run_count * columns), work, sums, columns, log_decay);
}
template void write_log_decay(const Context&, const LinearWork&, const double*, int, float*);
template void write_log_decay(const Context&, const LinearWork&, const double*, int, double*);

template <class T>
void gated_gate_gradient(const Context& ctx, const GatedLinearAttentionGateGradient& args) {
  using A = Accumulator<T>;
  const Arena::Scope scope(*ctx.scratch);
  GatedCall call(ctx, args.tokens, args.q.dim(2), kMostChunkRows);
  const auto runs = static_cast<int64_t>(args.tokens.runs.size());
  const TensorView begins = ctx.scratch->allocate(DType::kF64, {runs, call.heads, call.head_dim});
  const TensorView sums = call.allocate_gates(), restarts = call.allocate_gates();
  if (ctx.measuring()) return;
  const LinearWork work = call.start();
  const bool entered = args.state_in.rank() > 0 && args.dstate_in.rank() > 0;
  const GateGradient<T> pass{.q = operand<T>(args.q),
                             .k = operand<T>(args.k),
                             .log_gate = args.tokens.log_gate.data<A>(),
                             .dq = args.dq.data<A>(),
                             .dk = args.dk.data<A>(),
                             .state_in = entered ? args.state_in.data<A>() : nullptr,
                             .dstate_in = entered ? args.dstate_in.data<A>() : nullptr,
                             .value_dim = entered ? args.state_in.dim(3) : 0,
                             .dlog_gate = args.dlog_gate.data<A>(),
                             .begins = begins.data<double>(),
                             .sums = sums.data<double>(),
                             .restarts = restarts.data<double>()};
  const int64_t columns = runs * call.heads * call.head_dim;
  if (columns == 0) return;
  if (entered) {
    launch(ctx, "gated linear attention: gate gradient's begin", begins_kernel<T>,
           grid_for(columns * kWarp), pass, columns);
  }
  const auto dim = static_cast<int>(call.head_dim);
  constexpr const char* kName = "gated linear attention: gate gradient";
  launch_pieces<kWarp>(ctx, kName, gate_gradient_kernel<T, false>, work, pass, dim, 0);
  launch(ctx, kName, scan_gradients_kernel<T>, grid_for(columns), work, pass);
  launch_pieces<kWarp>(ctx, kName, gate_gradient_kernel<T, true>, work, pass, dim, 0);
}
template void gated_gate_gradient<bf16>(const Context&, const GatedLinearAttentionGateGradient&);
template void gated_gate_gradient<float>(const Context&, const GatedLinearAttentionGateGradient&);
template void gated_gate_gradient<double>(const Context&, const GatedLinearAttentionGateGradient&);

}  // namespace longhaul::kernels::cuda
