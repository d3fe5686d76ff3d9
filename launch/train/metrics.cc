#include "launch/train/metrics.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"

namespace longhaul::launch {

namespace {

using Json = nlohmann::ordered_json;

// The lines of steps up to `last_step`; what an earlier run wrote after the checkpoint is redone.
std::string lines_until(const std::string& path, int64_t last_step) {
  std::ifstream in(path);
  std::string kept, line;
  while (std::getline(in, line)) {
    const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_object() && object.contains("step") && object["step"].is_number_integer() &&
        object["step"].get<int64_t>() <= last_step) {
      absl::StrAppend(&kept, line, "\n");
    }
  }
  return kept;
}

// JSON has no NaN: they are null, as nlohmann writes them.
Json to_json(const StepMetrics& m) {
  Json json{{"step", m.step},
            {"loss", m.loss},
            {"grad_norm", m.grad_norm},
            {"lr", m.learning_rate},
            {"tokens", m.tokens},
            {"tokens_per_second", static_cast<double>(m.tokens) / m.seconds},
            {"mfu", m.mfu},
            {"memory_peak_bytes", static_cast<int64_t>(m.memory_peak_bytes)},
            {"seconds", m.seconds},
            {"trainers", m.ranks - m.servers},
            {"servers", m.servers},
            {"exposed_communication", m.exposed_communication},
            {"slowest_rank", m.slowest_rank}};
  if (m.scheduled.max_over_mean > 0) {
    json["planned_max_over_mean"] = m.scheduled.max_over_mean;
    json["rounds"] = m.scheduled.rounds;
    json["limited_by_buffers"] = m.scheduled.gave_way;
  }
  return json;
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& run_directory, int64_t resumed_step, bool active)
    : active_(active), path_(run_directory + "/metrics.jsonl") {
  if (!active_) return;
  const std::string kept = lines_until(path_, resumed_step);
  // Replaced in one step, so that a crash here loses nothing.
  const std::string aside = path_ + ".partial";
  {
    std::ofstream out(aside, std::ios::trunc);
    out << kept;
    if (!out.flush()) {
      fail(ErrorCode::kEnvironment, absl::StrCat("cannot write ", aside, "; is the disk full?"));
    }
  }
  std::error_code error;
  std::filesystem::rename(aside, path_, error);
  file_.open(path_, std::ios::app);
  if (error || !file_) fail(ErrorCode::kEnvironment, absl::StrCat("cannot write ", path_));
}

void MetricsWriter::append(const std::string& line) {
  file_ << line << "\n";
  if (!file_.flush()) {
    fail(ErrorCode::kEnvironment, absl::StrCat("cannot write ", path_, "; is the disk full?"));
  }
}

void MetricsWriter::say(const std::string& line) {
  if (!active_) return;
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void MetricsWriter::write(const StepMetrics& m) {
  if (!active_) return;
  constexpr int64_t kHeaderEvery = 20;
  if (lines_++ % kHeaderEvery == 0) {
    say(absl::StrFormat("%13s %8s %9s %9s %9s %9s %6s %15s %6s %5s %s", "step", "loss", "grad norm",
                        "lr", "tokens/s", "/rank", "MFU", "memory (plan)", "comm", "slow", "ETA"));
  }
  const double rate = static_cast<double>(m.tokens) / m.seconds;
  say(absl::StrFormat(
      "%6d/%-6d %8.4f %9.3f %9.2e %9s %9s %5.1f%% %9s %4.0f%% %5.1f%% %5s %s", m.step, m.steps,
      m.loss, m.grad_norm, m.learning_rate, human_count(rate), human_count(rate / m.ranks),
      100 * m.mfu, human_bytes(m.memory_peak_bytes),
      m.memory_plan_bytes > 0 ? 100 * m.memory_peak_bytes / m.memory_plan_bytes : 0.0,
      100 * m.exposed_communication, absl::StrCat("r", m.slowest_rank),
      human_seconds(m.eta_seconds)));
  append(to_json(m).dump());
}

void MetricsWriter::write(const ValidationMetrics& m) {
  if (!active_) return;
  std::vector<std::string> parts;
  for (double loss : m.loss_by_position) parts.push_back(absl::StrFormat("%.3f", loss));
  say(absl::StrFormat("%6d validation loss %.4f over %s tokens; by position: %s", m.step, m.loss,
                      human_count(static_cast<double>(m.tokens)), absl::StrJoin(parts, " ")));
  const Json json = {{"step", m.step},
                     {"validation_loss", m.loss},
                     {"validation_tokens", m.tokens},
                     {"loss_by_position", m.loss_by_position},
                     {"seconds", m.seconds}};
  append(json.dump());
}

std::string human_bytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return bytes < 10 && unit > 0 ? absl::StrFormat("%.2f %s", bytes, kUnits[unit])
                                : absl::StrFormat("%.0f %s", bytes, kUnits[unit]);
}

std::string human_seconds(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 60) return absl::StrCat(s, " s");
  if (s < 3600) return absl::StrFormat("%d min %02d s", s / 60, s % 60);
  return absl::StrFormat("%d h %02d min", s / 3600, s / 60 % 60);
}

std::string human_count(double count) {
  if (count < 1e3) return absl::StrFormat("%.1f", count);
  if (count < 1e6) return absl::StrFormat("%.2fk", count / 1e3);
  return absl::StrFormat("%.2fM", count / 1e6);
}

}  // namespace longhaul::launch
