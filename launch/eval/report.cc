#include "launch/eval/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace longhaul::launch {

namespace {

std::string table_of(const LossReport& loss) {
  std::string text = absl::StrFormat(
      "loss %.4f, perplexity %.4g over %d tokens: %d samples of %d from %s; %.2f s\n", loss.loss,
      perplexity(loss.loss), loss.tokens, loss.samples, loss.length, loss.corpus, loss.seconds);
  absl::StrAppendFormat(&text, "%21s %10s %8s %11s\n", "position", "tokens", "loss", "perplexity");
  for (const PositionBucket& bucket : loss.by_position) {
    absl::StrAppendFormat(&text, "%10d - %8d %10d ", bucket.begin, bucket.end - 1, bucket.tokens);
    if (bucket.tokens == 0) {
      absl::StrAppendFormat(&text, "%8s %11s\n", "-", "-");
    } else {
      absl::StrAppendFormat(&text, "%8.4f %11.4g\n", bucket.loss, perplexity(bucket.loss));
    }
  }
  return text;
}

std::string table_of(const PasskeyReport& passkey) {
  int64_t trials = 0, found = 0;
  for (const PasskeyCell& cell : passkey.cells) {
    trials += cell.trials;
    found += cell.found;
  }
  std::string text = absl::StrFormat("passkeys found: %d of %d (%.1f%%); %.2f s\n%10s", found,
                                     trials, 100 * passkey.accuracy(), passkey.seconds, "length");
  for (const double depth : passkey.depths) absl::StrAppendFormat(&text, " %7.3g%%", 100 * depth);
  text += "\n";
  for (size_t l = 0; l < passkey.lengths.size(); ++l) {
    absl::StrAppendFormat(&text, "%10d", passkey.lengths[l]);
    for (size_t d = 0; d < passkey.depths.size(); ++d) {
      absl::StrAppendFormat(&text, " %8s",
                            absl::StrCat(passkey.cell(l, d).found, "/", passkey.cell(l, d).trials));
    }
    text += "\n";
  }
  return text;
}

}  // namespace

double perplexity(double loss) { return std::exp(loss); }

double PasskeyReport::accuracy() const {
  int64_t trials_of_all = 0, found_of_all = 0;
  for (const PasskeyCell& one : cells) {
    trials_of_all += one.trials;
    found_of_all += one.found;
  }
  return PasskeyCell{.trials = trials_of_all, .found = found_of_all}.accuracy();
}

std::string to_table(const EvalReport& report) {
  std::string text = absl::StrCat("model ", report.model, ", ", report.ranks,
                                  report.ranks == 1 ? " rank\n" : " ranks\n");
  if (report.loss) text += table_of(*report.loss);
  if (report.passkey) text += table_of(*report.passkey);
  return text;
}

std::string to_json(const EvalReport& report) {
  nlohmann::ordered_json json = {{"model", report.model}, {"ranks", report.ranks}};
  if (report.loss) {
    const LossReport& loss = *report.loss;
    nlohmann::ordered_json buckets = nlohmann::ordered_json::array();
    for (const PositionBucket& bucket : loss.by_position) {
      nlohmann::ordered_json one = {
          {"begin", bucket.begin}, {"end", bucket.end}, {"tokens", bucket.tokens}};
      one["loss"] = bucket.tokens > 0 ? nlohmann::ordered_json(bucket.loss) : nullptr;
      one["perplexity"] =
          bucket.tokens > 0 ? nlohmann::ordered_json(perplexity(bucket.loss)) : nullptr;
      buckets.push_back(one);
    }
    json["loss"] = {{"corpus", loss.corpus},   {"length", loss.length},
                    {"samples", loss.samples}, {"tokens", loss.tokens},
                    {"loss", loss.loss},       {"perplexity", perplexity(loss.loss)},
                    {"by_position", buckets},  {"seconds", loss.seconds}};
  }
  if (report.passkey) {
    nlohmann::ordered_json cells = nlohmann::ordered_json::array();
    for (const PasskeyCell& cell : report.passkey->cells) {
      cells.push_back({{"length", cell.length},
                       {"depth", cell.depth},
                       {"trials", cell.trials},
                       {"found", cell.found},
                       {"accuracy", cell.accuracy()}});
    }
    json["passkey"] = {{"accuracy", report.passkey->accuracy()},
                       {"cells", cells},
                       {"seconds", report.passkey->seconds}};
  }
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace longhaul::launch
