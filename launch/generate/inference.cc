#include "launch/generate/inference.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "dist/null/null.h"
#include "kernels/core/transfer.h"
#include "launch/cli/launcher.h"
#include "launch/doctor/host.h"
#include "launch/train/attention_rank.h"
#include "launch/train/device.h"
#include "launch/train/engine.h"
#include "launch/train/load_weights.h"
#include "launch/train/metrics.h"

namespace longhaul::launch {

namespace {

Config with_length(const Config& config, int64_t tokens) {
  Config result = config;
  result.mutable_data()->set_sequence_length(tokens);
  return result;
}

// What a text needs beside the weights.
struct TextMemory {
  Arena activations, workspace, communication, cache;

  static TextMemory measure(Device device) {
    return {Arena::measure("activations", device), Arena::measure("workspace", device),
            Arena::measure("communication", device), Arena::measure("keys and values", device)};
  }
  static TextMemory reserve(const TextMemory& measured) {
    const auto arena = [](const Arena& m) { return Arena(m.name(), m.peak(), m.device()); };
    return {arena(measured.activations), arena(measured.workspace), arena(measured.communication),
            arena(measured.cache)};
  }
  int64_t peak() const {
    return activations.peak() + workspace.peak() + communication.peak() + cache.peak();
  }
};

}  // namespace

struct Inference::Passes {
  Passes(const Sizes& of, dist::Group& group, const Config& config,
         const SettledStrategies& settled, Device device)
      : sizes(of),
        attention(group, attention_layout(config), attention_options(config, settled)),
        linear(group, make_layout(config, group.size()), model_config(config),
               linear_options(config, settled.linear_method)),
        memory(TextMemory::measure(device)) {}

  Sizes sizes;
  parallel::CoreAttention attention;
  model::LinearAttentions linear;
  TextMemory memory;
};

Inference::Inference(dist::Group& world, const Config& config, const std::string& checkpoint)
    : world_(world),
      config_(config),
      model_config_(model_config(config)),
      dtype_(dtype(config)),
      stream_(open_device(world, config)),
      mesh_(world, mesh_shape(config)),
      alone_(dist::null_group(0, 1)),
      pool_(config.parallel().threads()),
      strategies_(settle_on(mesh_, stream_.get(), pool_, config, {})),
      store_(dtype_, world.size()),
      model_(model::architecture(model_config_.architecture)
                 .make(model_config_, {.dtype = dtype_}, store_)) {
  Arena measured = Arena::measure("parameters", stream_.get().device);
  {
    Arena scratch = Arena::measure("workspace", stream_.get().device);
    store_.allocate_values(context(scratch), measured);
  }
  world_.agree(attempt([&] {
                 weights_.emplace(measured.name(), measured.peak(), measured.device());
                 Arena scratch("workspace", 0, measured.device());
                 store_.allocate_values(context(scratch), *weights_);
               }),
               "reserving memory");
  load(checkpoint);
}

// Each rank reads its share of every bucket.
void Inference::load(const std::string& checkpoint) {
  Arena scratch("workspace", 0, stream_.get().device);
  const Context ctx = context(scratch);
  const auto share_of = [&](const parallel::ParameterStore::Bucket& bucket) {
    const int64_t size = bucket.size / store_.shards();
    return parallel::Span{world_.rank() * size, size};
  };
  std::vector<WeightSlice> slices;
  for (const parallel::ParameterStore::Entry& entry : store_.entries()) {
    const parallel::ParameterStore::Bucket& bucket = store_.bucket_of(entry);
    const parallel::Span share = share_of(bucket);
    const int64_t begin = std::max(entry.offset, share.begin);
    const int64_t end = std::min(entry.offset + entry.size(), share.end());
    if (begin >= end) continue;
    slices.push_back({.entry = &entry,
                      .begin = begin - entry.offset,
                      .end = end - entry.offset,
                      .values = bucket.values.rows(begin, end - begin)});
  }
  load_weights(world_, ctx, checkpoint, model_config_, dtype_, slices);
  Stream stream = ctx.stream;
  for (const parallel::ParameterStore::Bucket& bucket : store_.buckets()) {
    const parallel::Span share = share_of(bucket);
    world_
        .all_gather(stream, bucket.values.rows(share.begin, share.length), bucket.values,
                    "parameters")
        .wait(stream);
  }
}

Inference::~Inference() = default;

Context Inference::context(Arena& scratch) {
  return {.stream = stream_.get(),
          .pool = &pool_,
          .scratch = &scratch,
          // As of training: waits for a GPU notice what has gone wrong elsewhere.
          .poll = stream_.get().device == kCpu ? std::function<void()>()
                                               : [this] { world_.progress(); }};
}

model::StepContext Inference::step(Passes& passes, const Context& ctx) {
  const bool decoding = state_ && state_->decoding();
  model::StepContext step{ctx, passes.memory.activations, passes.memory.communication,
                          passes.attention, decoding ? state_->recurrence() : passes.linear};
  step.inference = state_ ? &*state_ : nullptr;
  step.text_length = passes.sizes.tokens + std::max<int64_t>(passes.sizes.new_tokens, 0);
  return step;
}

// A pass over a text on shapes alone, and one over a token.
void Inference::measure(Passes& passes) {
  const Context ctx = context(passes.memory.workspace);
  const bool losses = passes.sizes.new_tokens < 0;
  const auto run = [&](int64_t rows) {
    Arena::Scope scope(passes.memory.activations);
    const auto count = static_cast<size_t>(rows);
    model::StepContext of = step(passes, ctx);
    model_->load(of, {.tokens = std::vector<int32_t>(count),
                      .labels = std::vector<int32_t>(count),
                      .positions = std::vector<int64_t>(count)});
    model_->forward(of, {.training = false, .loss = losses});
    if (losses) return;
    const TensorView logits =
        passes.memory.activations.allocate(accumulator(dtype_), {model_config_.vocabulary});
    if (rows > 0) model_->logits(of, 0, logits);
  };
  if (!losses) state_->allocate(passes.memory.cache);
  run(passes.attention.layout().rows(mesh_.sequence_rank()));
  if (passes.sizes.new_tokens <= 0) return;
  state_->decode();
  state_->next();
  run(1);
}

// Memory may be missing on one node only.
void Inference::reserve(Passes& passes) {
  const int64_t needed = world_.max(passes.memory.peak(), "memory");
  const int64_t more = passes.sizes.new_tokens;
  const auto refuse = [&](const std::string& there_is) {
    const std::string and_more = more > 0 ? absl::StrCat(" and ", more, " more") : std::string();
    fail(ErrorCode::kEnvironment,
         absl::StrCat("a text of ", passes.sizes.tokens, " tokens", and_more, " takes ",
                      human_bytes(static_cast<double>(needed)), " a rank beside the model",
                      there_is, "; use more ranks or a shorter text"));
  };
  world_.agree(attempt([&] {
                 if (stream_.get().device == kCpu) {
                   const HostMemory host = launch::memory();
                   const int64_t free = std::min(
                       host.available_bytes, host.group_limit_bytes.value_or(host.available_bytes));
                   const int launched = launched_ranks_on_node();
                   const int here = launched > 0 ? launched : world_.size();
                   if (needed > free / here) {
                     refuse(absl::StrCat(", of which ", human_bytes(static_cast<double>(free)),
                                         " are free for ", here, here == 1 ? " rank" : " ranks"));
                   }
                 }
                 std::optional<TextMemory> real;
                 if (attempt([&] { real.emplace(TextMemory::reserve(passes.memory)); })) refuse("");
                 passes.memory = std::move(*real);
               }),
               "reserving memory");
}

void Inference::prepare(const Sizes& sizes) {
  const Config config = with_length(config_, sizes.tokens);
  const bool fresh = !passes_ || passes_->sizes != sizes;
  const auto remember = [&](const parallel::TokenLayout& layout) {
    state_.reset();
    if (sizes.new_tokens < 0) return;
    state_.emplace(mesh_.sequence(), *alone_, layout, model_config_, dtype_, sizes.new_tokens);
  };
  if (fresh) {
    state_.reset();
    passes_.reset();  // its memory is free for the next
    passes_ = std::make_unique<Passes>(sizes, mesh_.sequence(), config, strategies_,
                                       stream_.get().device);
    remember(passes_->attention.layout());
    measure(*passes_);
    reserve(*passes_);
  }
  if (sizes.new_tokens < 0) return remember(passes_->attention.layout());
  const parallel::Documents whole = parallel::Documents::whole(sizes.tokens);
  passes_->attention.prepare(whole);
  passes_->linear.prepare(whole, passes_->attention.layout());
  remember(passes_->attention.layout());
  passes_->memory.cache.release(0);
  state_->allocate(passes_->memory.cache);
}

std::vector<double> Inference::read(const std::vector<int32_t>& prompt, int64_t new_tokens) {
  LONGHAUL_CHECK(!prompt.empty() && new_tokens >= 0);
  const auto tokens = static_cast<int64_t>(prompt.size());
  prepare({.tokens = tokens, .new_tokens = new_tokens});
  const parallel::TokenLayout& layout = passes_->attention.layout();
  const int rank = mesh_.sequence_rank();
  const std::vector<int32_t> none(prompt.size(), -1);
  const parallel::Shard shard =
      parallel::take(layout, parallel::Documents::whole(tokens), prompt, none, rank);
  const parallel::TokenLayout::Place last = layout.locate(tokens - 1);
  const Context ctx = context(passes_->memory.workspace);
  Arena::Scope scope(passes_->memory.activations);
  model::StepContext of = step(*passes_, ctx);
  model_->load(of, shard);
  model_->forward(of, {.training = false, .loss = false});
  const TensorView logits =
      passes_->memory.activations.allocate(accumulator(dtype_), {model_config_.vocabulary});
  if (rank == last.rank) model_->logits(of, last.row, logits);
  if (last.rank != 0) {
    Stream stream = ctx.stream;
    mesh_.sequence().broadcast(stream, logits, last.rank, "logits").wait(stream);
  }
  state_->decode();
  return on_rank_0(logits);
}

std::vector<double> Inference::next(int32_t token) {
  LONGHAUL_CHECK(state_ && state_->decoding(), "read() first");
  state_->next();
  const Context ctx = context(passes_->memory.workspace);
  Arena::Scope scope(passes_->memory.activations);
  model::StepContext of = step(*passes_, ctx);
  model_->load(of, {.tokens = {token}, .labels = {-1}, .positions = {state_->tokens() - 1}});
  model_->forward(of, {.training = false, .loss = false});
  if (mesh_.sequence_rank() != 0) return {};
  const TensorView logits =
      passes_->memory.activations.allocate(accumulator(dtype_), {model_config_.vocabulary});
  model_->logits(of, 0, logits);
  return on_rank_0(logits);
}

std::vector<double> Inference::on_rank_0(const TensorView& logits) const {
  std::vector<double> result;
  if (mesh_.sequence_rank() != 0) return result;
  const Tensor host = on_host(stream_.get(), logits);
  visit_float(host.view().dtype(), [&]<class T>() {
    for (const T value : host.view().span<T>()) result.push_back(static_cast<double>(value));
  });
  return result;
}

void Inference::evaluate(const Sample& sample, PositionLoss& buckets) {
  prepare({.tokens = sample.documents.tokens(), .new_tokens = -1});
  passes_->attention.prepare(sample.documents);
  const parallel::TokenLayout& layout = passes_->attention.layout();
  passes_->linear.prepare(sample.documents, layout);
  const int rank = mesh_.sequence_rank();
  const parallel::Shard shard =
      parallel::take(layout, sample.documents, sample.tokens, sample.labels, rank);
  const Context ctx = context(passes_->memory.workspace);
  Arena::Scope scope(passes_->memory.activations);
  model::StepContext of = step(*passes_, ctx);
  model_->load(of, shard);
  model_->forward(of, {.training = false});
  const Tensor row_loss = on_host(ctx.stream, model_->row_loss(), ctx.poll);
  add_by_position(row_loss, shard, layout, rank, buckets);
}

}  // namespace longhaul::launch
