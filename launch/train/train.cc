#include "launch/train/train.h"
#include "launch/train/decay_report.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoint/checkpoint.h"
#include "launch/check/check.h"
#include "launch/check/linear_check.h"
#include "launch/cli/signals.h"
#include "launch/data/batch.h"
#include "launch/generate/trained_model.h"
#include "launch/huggingface/carried_files.h"
#include "launch/train/engine.h"
#include "launch/train/metrics.h"
#include "launch/train/process.h"
#include "launch/train/schedule.h"
#include "launch/train/schedule_report.h"
#include "launch/train/server.h"
#include "launch/train/step_report.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Which samples a step has, and which of them are this replica's: a function of the configuration,
// so that any number of ranks sees the same tokens.
struct StepSamples {
  int64_t per_step = 1;
  int replicas = 1;
  int replica = 0;

  int64_t first(int64_t consumed) const { return consumed + replica; }
  int64_t end(int64_t consumed) const { return consumed + per_step; }
};

struct Corpus {
  std::unique_ptr<const TokenFile> file;  // the loaders refer to it
  std::optional<DataLoader> training;
  std::optional<DataLoader> validation;  // none if the tail is shorter than a sequence
};

Corpus open_corpus(const Config& config) {
  Corpus corpus{std::make_unique<TokenFile>(TokenFile::open(config.data().path())), std::nullopt,
                std::nullopt};
  const int64_t tokens = corpus.file->tokens(), length = config.data().sequence_length();
  const Split tail = held_out(tokens, config.data().validation_fraction(), length);
  const int64_t prefix = config.model().attention().prefix_length();
  corpus.training.emplace(*corpus.file, Split{0, tail.begin}, length, config.data().seed(), prefix);
  if (tail.begin < tail.end) {
    corpus.validation.emplace(*corpus.file, tail, length, config.data().seed(), prefix);
  }
  return corpus;
}

std::string strategy_record(const Config& config) {
  return config.train().run_directory() + "/strategy.txtpb";
}

// With the configuration, and what strategy "auto" has chosen.
void make_run_folder(const Config& config, const std::string& strategies) {
  const std::string& folder = config.train().run_directory();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const auto write = [&](const std::string& path, const std::string& text) {
    std::ofstream out(path, std::ios::trunc);
    out << text;
    if (!out.flush()) {
      fail(ErrorCode::kEnvironment,
           absl::StrCat("cannot write the run folder ", folder, " (train.run_directory)",
                        error ? ": " + error.message() : ""));
    }
  };
  write(folder + "/config.txtpb", to_text(config));
  if (!strategies.empty()) write(strategy_record(config), strategies);
}

// What strategy "auto" goes by: the first sample, and what it chose in an earlier run.
EngineOptions engine_options(const Config& config, const Corpus& corpus) {
  return {.documents = corpus.training->load(0).documents,
          .strategy_record = config.checkpoint().resume() ? strategy_record(config) : ""};
}

// A corpus may be missing on one node only. Servers, which have none, wait for what trainers find.
std::optional<Corpus> open_corpus(dist::Group& world, const Config& config, bool trainer) {
  std::optional<Corpus> corpus;
  world.agree(attempt([&] {
                if (trainer) corpus.emplace(open_corpus(config));
              }),
              "opening the corpus");
  return corpus;
}

// "data 3 x sequence 1 + 1 server"
std::string describe(const dist::MeshShape& shape) {
  const std::string servers =
      shape.servers == 0
          ? ""
          : absl::StrCat(" + ", shape.servers, shape.servers == 1 ? " server" : " servers");
  return absl::StrCat("data ", shape.data, " x sequence ", shape.sequence, servers);
}

constexpr const char* kAfterNan =
    "nothing of this step is saved; go on from the last checkpoint with a lower "
    "train.learning_rate or a longer train.warmup_steps";

// Names rank, layer and tensor of the first value that is not finite, and ends the run everywhere.
[[noreturn]] void stop_for_numerics(Engine& engine, const Sample& sample, int64_t step, double loss,
                                    double norm) {
  const std::optional<std::string> finding = engine.find_non_finite(sample);
  dist::Group& trainers = engine.mesh().trainers();
  std::optional<Error> mine;
  if (finding) {
    mine =
        Error(ErrorCode::kNumerics,
              absl::StrFormat("step %d: loss %g, gradient norm %g; first seen on rank %d in %s; %s",
                              step, loss, norm, trainers.rank(), *finding, kAfterNan));
  }
  trainers.agree(mine, "looking for NaN");
  throw SharedError(
      Error(ErrorCode::kNumerics,
            absl::StrFormat("step %d: loss %g, gradient norm %g, but every tensor is finite: sums "
                            "overflow; %s",
                            step, loss, norm, kAfterNan)));
}

class Run {
 public:
  // Collective over trainers; errors in what the configuration asks for are the same on all.
  Run(Engine& engine, const Corpus& corpus, const Config& config)
      : trainers_(engine.mesh().trainers()),
        config_(config),
        corpus_(corpus),
        engine_(engine),
        schedules_(config.parallel().nano_batches()) {
    const Train& train = config.train();
    samples_ = {.per_step = train.batch_tokens() / config.data().sequence_length(),
                .replicas = config.parallel().data(),
                .replica = engine_.mesh().data_rank()};
    schedule_ = {.peak = train.learning_rate(),
                 .minimum = train.min_learning_rate(),
                 .warmup_steps = train.warmup_steps(),
                 .steps = train.steps()};
    info_.model = model_config(config).describe(dtype(config));
    info_.config = to_text(config);
    resume();
    trainers_.agree(attempt([&] {
                      const bool first = trainers_.rank() == 0;
                      if (first) {
                        make_run_folder(config, engine_.strategies().record);
                        huggingface::carry_on(initial_run_, train.run_directory());
                      }
                      metrics_.emplace(train.run_directory(), info_.step, first);
                    }),
                    "making the run folder");
    measure_peak();
    introduce();
    check();
  }

  void steps() {
    const int64_t last = config_.train().steps();
    while (info_.step < last) {
      const StepReport report = step();
      const bool ends = info_.step == last || report.stop_requested;
      if (due(config_.train().validate_every(), ends)) validate();
      if (due(config_.checkpoint().every(), ends)) save();
      if (report.stop_requested && info_.step < last) interrupted();
    }
    if (const auto& graph = engine_.pass_graph(); graph && graph->passes() > 0) {
      metrics_->say(absl::StrCat("train.cuda_graph: rank 0 replayed ", graph->replays(), " of ",
                                 graph->passes(),
                                 " samples' passes; others' documents were not those of the sample "
                                 "before"));
    }
    metrics_->say(absl::StrCat("done: ", last,
                               " steps; checkpoint, metrics.jsonl and config.txtpb "
                               "are in ",
                               config_.train().run_directory()));
  }

 private:
  void check() {
    if (!config_.train().check_attention()) return;
    trainers_.job().place = "check of attention";
    const model::ModelConfig model = model_config(config_);
    auto begin = Clock::now();
    const auto done = [&](const Subject& subject, const std::vector<Deviation>& deviations) {
      require_small(trainers_, subject, deviations);
      metrics_->say(
          absl::StrFormat("check: %s; %.2f s", summary(subject, deviations), seconds_since(begin)));
      begin = Clock::now();
    };
    if (model.softmax_layers() > 0) {
      const CheckedAttention attention = checked_attention(config_, engine_.strategies());
      engine_.attention_rank().call({.duty = Duty::kCheckAttention, .dropout_sample = {}}, nullptr);
      done(attention.subject(),
           check_attention(engine_.attention_rank().group(), engine_.context(), attention));
    }
    if (model.linear_layers() > 0) {
      const CheckedLinearAttention attention =
          checked_linear_attention(config_, engine_.strategies().linear_method);
      done(attention.subject(),
           check_linear_attention(engine_.mesh().sequence(), engine_.context(), attention));
    }
  }

  // From the newest checkpoint that rank 0 sees; load() fails on all ranks if one cannot read it.
  void resume() {
    if (config_.checkpoint().resume()) resume_own();
    const std::string& initial = config_.checkpoint().initial();
    if (!resumed_from_.empty() || initial.empty()) return;
    std::string found;
    trainers_.agree(attempt([&] {
                      if (trainers_.rank() != 0) return;
                      const TrainedModel model = find_model(initial);
                      found = model.checkpoint;
                      initial_run_ = model.run;
                    }),
                    "finding checkpoint.initial");
    started_from_ = trainers_.broadcast(found, 0, "checkpoint.initial");
    engine_.start_from(started_from_);
  }

  void resume_own() {
    const auto newest = checkpoint::latest(config_.checkpoint().directory());
    resumed_from_ = trainers_.broadcast(newest.value_or(""), 0, "resuming");
    if (resumed_from_.empty()) return;
    bool weights_only = false;
    trainers_.agree(
        attempt([&] { weights_only = checkpoint::read_info(resumed_from_).weights_only; }),
        "resuming");
    if (weights_only) {  // of an imported model: the optimizer begins
      started_from_ = resumed_from_;
      return engine_.start_from(started_from_);
    }
    const checkpoint::Info info =
        checkpoint::load(trainers_, resumed_from_, info_.model, engine_.state());
    engine_.state_loaded();
    info_.step = info.step;
    info_.samples = info.samples;
  }

  StepReport step() {
    const auto begin = Clock::now();
    const double waited = trainers_.traffic().total().waited_seconds;
    const int64_t step = info_.step + 1;
    trainers_.job().step = step;
    trainers_.job().place = "forward and backward";

    const int64_t targets = targets_of_step();
    RankStep mine;
    Sample sample;
    model::NumericsProbe probe;
    model::NumericsProbe* look = config_.train().check_numerics() ? &probe : nullptr;
    for (int64_t i = samples_.first(info_.samples); i < samples_.end(info_.samples);
         i += samples_.replicas) {
      sample = corpus_.training->load(i);
      const std::optional<parallel::Documents> next = documents_after(i);
      mine.loss_sum += engine_.accumulate(sample, 1.0 / static_cast<double>(targets), look,
                                          next ? &*next : nullptr);
      mine.flops += engine_.sample_flops();
      schedules_.add(engine_.attention());
    }
    if (look != nullptr) stop_if_found(probe, step);
    trainers_.job().place = "optimizer";
    const double norm = engine_.reduce_gradients();
    const double learning_rate = schedule_(step);
    if (std::isfinite(norm)) engine_.update(learning_rate, step);

    mine.seconds = seconds_since(begin);
    mine.waited_seconds = trainers_.traffic().total().waited_seconds - waited;
    mine.memory_peak_bytes = static_cast<double>(engine_.memory().peak());
    mine.memory_plan_bytes = static_cast<double>(engine_.memory().capacity());
    mine.stop_requested =
        StopRequest::requested() || engine_.attention_rank().servers_asked_to_stop();
    const StepReport report = gather(trainers_, mine);
    const double loss = report.loss_sum / static_cast<double>(targets);
    if (!std::isfinite(norm) || !std::isfinite(loss)) {
      stop_for_numerics(engine_, sample, step, loss, norm);
    }
    info_.step = step;
    info_.samples += samples_.per_step;
    constexpr int64_t kPeakEvery = 50;
    // What a step does cannot be more than the peak, if that was measured at a good moment.
    if (step % kPeakEvery == 0 || report.flops > report.seconds * peak_flops_) measure_peak();
    const double seconds = seconds_since(begin);
    if (const auto news = schedules_.news(step)) metrics_->say(*news);
    metrics_->write({.step = step,
                     .steps = config_.train().steps(),
                     .loss = loss,
                     .grad_norm = norm,
                     .learning_rate = learning_rate,
                     .tokens = config_.train().batch_tokens(),
                     .seconds = seconds,
                     .ranks = engine_.mesh().world().size(),
                     .servers = config_.parallel().servers(),
                     .mfu = report.flops / (seconds * peak_flops_),
                     .memory_peak_bytes = report.memory_peak_bytes,
                     .memory_plan_bytes = report.memory_plan_bytes,
                     .exposed_communication = report.exposed_communication,
                     .slowest_rank = report.slowest_rank,
                     .scheduled = schedules_.take(),
                     .eta_seconds = eta(seconds)});
    return report;
  }

  // Of this replica's sample after sample i of this step; none after the last one of the run.
  std::optional<parallel::Documents> documents_after(int64_t i) const {
    const int64_t end = samples_.end(info_.samples);
    int64_t next = i + samples_.replicas;
    if (next >= end) {
      if (info_.step + 1 >= config_.train().steps()) return std::nullopt;
      next = samples_.first(end);
    }
    return corpus_.training->documents(next);
  }

  void stop_if_found(const model::NumericsProbe& probe, int64_t step) {
    std::optional<Error> mine;
    if (probe.finding()) {
      mine = Error(ErrorCode::kNumerics,
                   absl::StrFormat("step %d: not finite on rank %d in %s; %s", step,
                                   trainers_.rank(), *probe.finding(), kAfterNan));
    }
    trainers_.agree(mine, "looking for NaN");
  }

  // The loss's denominator: known before backward, from the index alone.
  int64_t targets_of_step() const {
    int64_t targets = 0;
    for (int64_t i = info_.samples; i < samples_.end(info_.samples); ++i) {
      targets += corpus_.training->targets(i);
    }
    // A step without a single target (documents of one token) has zero loss and zero gradients.
    return std::max<int64_t>(targets, 1);
  }

  void validate() {
    if (!corpus_.validation) return;
    constexpr size_t kBuckets = 8;
    const auto begin = Clock::now();
    trainers_.job().place = "validation";
    Engine::PositionLoss loss{std::vector<double>(kBuckets), std::vector<double>(kBuckets)};
    const int64_t count =
        std::min(config_.train().validation_samples(), corpus_.validation->samples_per_epoch());
    for (int64_t first = 0; first < count; first += samples_.replicas) {
      const int64_t i = first + samples_.replica;
      if (i < count) {
        engine_.evaluate(corpus_.validation->load(i), loss);
      } else {
        engine_.evaluate_nothing();
      }
    }
    ValidationMetrics metrics{
        .step = info_.step, .loss = 0, .tokens = 0, .loss_by_position = {}, .seconds = 0};
    double sum = 0, tokens = 0;
    for (size_t b = 0; b < kBuckets; ++b) {
      const double bucket_sum = trainers_.sum(loss.sum[b], "validation");
      const double bucket_tokens = trainers_.sum(loss.count[b], "validation");
      sum += bucket_sum;
      tokens += bucket_tokens;
      metrics.loss_by_position.push_back(bucket_tokens > 0 ? bucket_sum / bucket_tokens : 0.0);
    }
    metrics.loss = tokens > 0 ? sum / tokens : 0.0;
    metrics.tokens = static_cast<int64_t>(tokens);
    metrics.seconds = seconds_since(begin);
    metrics_->write(metrics);
  }

  void save() {
    const auto begin = Clock::now();
    trainers_.job().place = "saving a checkpoint";
    checkpoint::save(trainers_, config_.checkpoint().directory(), info_, engine_.state(),
                     config_.checkpoint().keep());
    metrics_->say(absl::StrFormat("%6d checkpoint saved in %s (%.2f s)", info_.step,
                                  config_.checkpoint().directory(), seconds_since(begin)));
  }

  [[noreturn]] void interrupted() {
    throw SharedError(
        Error(ErrorCode::kInterrupted,
              absl::StrCat("stopped by a signal after step ", info_.step,
                           "; the checkpoint is saved: start the same command to go on")));
  }

  // The best of several moments: a machine that was busy with something else in one of them would
  // make every later step look better than it is.
  void measure_peak() { peak_flops_ = std::max(peak_flops_, engine_.measured_peak()); }

  bool due(int64_t every, bool ends) const {
    return ends || (every > 0 && info_.step % every == 0);
  }

  double eta(double seconds) {
    // A moving average: steps with validation or a slow start do not upset it.
    mean_seconds_ = mean_seconds_ == 0 ? seconds : 0.8 * mean_seconds_ + 0.2 * seconds;
    return mean_seconds_ * static_cast<double>(config_.train().steps() - info_.step);
  }

  // Of the parameters, where that is not all of them.
  std::string trained() const {
    const int64_t count = engine_.parameters().trained_elements();
    if (count == engine_.parameters().elements()) return "";
    return absl::StrCat(" (", human_count(static_cast<double>(count)), " trained)");
  }

  void introduce() {
    const Train& train = config_.train();
    metrics_->say(absl::StrFormat(
        "longhaul: %s parameters%s, %d tokens a sample, %d ranks (%s), %d threads each",
        human_count(static_cast<double>(engine_.parameters().elements())), trained(),
        config_.data().sequence_length(), engine_.mesh().world().size(),
        describe(engine_.mesh().shape()), config_.parallel().threads()));
    metrics_->say(absl::StrFormat(
        "corpus %s: %s tokens in %d documents; %d samples an epoch", config_.data().path(),
        human_count(static_cast<double>(corpus_.file->tokens())), corpus_.file->documents(),
        corpus_.training->samples_per_epoch()));
    for (const std::string& line : engine_.strategies().lines) metrics_->say(line);
    const parallel::TokenLayout layout = make_layout(config_, config_.parallel().sequence());
    for (const std::string& line : decay_report(config_, layout)) metrics_->say(line);
    std::string classes;
    for (const auto& [name, bytes] : engine_.memory().capacities()) {
      absl::StrAppend(&classes, classes.empty() ? "" : ", ", std::string(name), " ",
                      human_bytes(static_cast<double>(bytes)));
    }
    metrics_->say(absl::StrCat(
        "memory a rank: ", human_bytes(static_cast<double>(engine_.memory().capacity())), " (",
        classes, ")"));
    metrics_->say(absl::StrFormat(
        "measured peak: %.0f GFLOP/s over all ranks; ready %.2f s after the process began",
        peak_flops_ / 1e9, seconds_since_process_start()));
    if (!started_from_.empty()) {
      metrics_->say(absl::StrCat("a new run with the weights of ", started_from_));
    }
    if (info_.step > 0) {
      metrics_->say(absl::StrCat("resumed from ", resumed_from_, ": ", info_.step, " of ",
                                 train.steps(), " steps are done"));
    }
  }

  dist::Group& trainers_;
  Config config_;
  const Corpus& corpus_;
  Engine& engine_;
  StepSamples samples_;
  Schedule schedule_;
  checkpoint::Info info_;
  std::string resumed_from_;  // or
  std::string started_from_;  // of another run
  std::string initial_run_;   // on rank 0: its folder
  std::optional<MetricsWriter> metrics_;
  ScheduleReport schedules_;
  double peak_flops_ = 0;
  double mean_seconds_ = 0;
};

}  // namespace

void train(dist::Group& world, const Config& config) {
  const bool trainer = world.rank() < world.size() - config.parallel().servers();
  const std::optional<Corpus> corpus = open_corpus(world, config, trainer);
  if (!trainer) {
    Server(world, config).run();
    return;
  }
  Engine engine(world, config, engine_options(config, *corpus));
  engine.attention_rank().lead([&] { Run(engine, *corpus, config).steps(); });
}

}  // namespace longhaul::launch
