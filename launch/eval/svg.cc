// Pictures of what `longhaul eval` finds.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "launch/eval/report.h"

namespace longhaul::launch {

namespace {

constexpr double kWidth = 720, kLeft = 78, kRight = 24;
constexpr double kPlotWidth = kWidth - kLeft - kRight;

std::string escaped(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string text_at(double x, double y, const std::string& text, const char* anchor,
                    const char* rest = "") {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y,
                         anchor, rest, escaped(text));
}

std::string line(double x1, double y1, double x2, double y2, const char* color) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
                         x1, y1, x2, y2, color);
}

// 1, 2 or 5 times a power of ten, such that a range has at most `most` of it.
double tick_of(double range, int most) {
  const double least = range / most;
  const double power = std::pow(10, std::floor(std::log10(least)));
  for (const double step : {1.0, 2.0, 5.0}) {
    if (step * power >= least) return step * power;
  }
  return 10 * power;
}

struct Range {
  double low = 0, high = 1;
};
// Of the losses, with room above and below.
Range range_of(const LossReport& loss) {
  double low = loss.loss, high = loss.loss;
  for (const PositionBucket& bucket : loss.by_position) {
    if (bucket.tokens == 0) continue;
    low = std::min(low, bucket.loss);
    high = std::max(high, bucket.loss);
  }
  const double room = std::max(0.08 * (high - low), 1e-3 + 0.01 * std::abs(high));
  return {std::max(0.0, low - room), high + room};
}

// Loss by position as steps, with the mean; `top`: where it begins. Returns where it ends.
double draw(const LossReport& loss, double top, std::string& svg) {
  constexpr double kHeight = 260;
  const double bottom = top + 40 + kHeight;
  const Range range = range_of(loss);
  const auto x = [&](double position) {
    return kLeft + kPlotWidth * position / static_cast<double>(loss.length);
  };
  const auto y = [&](double value) {
    return bottom - kHeight * (value - range.low) / (range.high - range.low);
  };
  svg += text_at(kLeft, top + 14,
                 absl::StrFormat("loss by position: %d samples of %d tokens, mean %.4f",
                                 loss.samples, loss.length, loss.loss),
                 "start", " font-weight=\"bold\"");
  const double step = tick_of(range.high - range.low, 6);
  for (double value = std::ceil(range.low / step) * step; value <= range.high; value += step) {
    svg += line(kLeft, y(value), kWidth - kRight, y(value), "#dddddd");
    svg += text_at(kLeft - 8, y(value) + 4,
                   absl::StrFormat("%g", std::abs(value) < step / 2 ? 0 : value), "end");
  }
  const double stride = std::max(1.0, tick_of(static_cast<double>(loss.length), 8));
  for (double position = 0; position <= static_cast<double>(loss.length); position += stride) {
    svg += line(x(position), bottom, x(position), bottom + 5, "#333333");
    svg += text_at(x(position), bottom + 20, absl::StrFormat("%.0f", position), "middle");
  }
  svg += line(kLeft, bottom, kWidth - kRight, bottom, "#333333");
  svg += absl::StrFormat(
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#888888\" "
      "stroke-dasharray=\"5 4\"/>\n",
      kLeft, y(loss.loss), kWidth - kRight, y(loss.loss));
  std::string path;
  bool pen_down = false;
  for (const PositionBucket& bucket : loss.by_position) {
    if (bucket.tokens == 0) {
      pen_down = false;
      continue;
    }
    absl::StrAppendFormat(&path, "%s%.1f %.1f H%.1f ", pen_down ? "L" : "M",
                          x(static_cast<double>(bucket.begin)), y(bucket.loss),
                          x(static_cast<double>(bucket.end)));
    pen_down = true;
  }
  svg += absl::StrCat("<path d=\"", path,
                      "\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"2\"/>\n");
  svg += text_at(kLeft + kPlotWidth / 2, bottom + 40, "position", "middle");
  svg += text_at(
      18, top + 40 + kHeight / 2, "loss", "middle",
      absl::StrFormat(" transform=\"rotate(-90 18 %.1f)\"", top + 40 + kHeight / 2).c_str());
  return bottom + 64;
}

// From red over yellow to green.
std::string color_of(double accuracy) {
  const auto mix = [&](double from, double to, double share) {
    return static_cast<int>(std::lround(from + (to - from) * share));
  };
  const double low = std::min(1.0, 2 * accuracy), high = std::max(0.0, 2 * accuracy - 1);
  return absl::StrFormat("#%02x%02x%02x", mix(mix(214, 250, low), 62, high),
                         mix(mix(84, 214, low), 160, high), mix(mix(78, 110, low), 95, high));
}

// A map with a column for each length and a row for each depth.
double draw(const PasskeyReport& passkey, double top, std::string& svg) {
  const double cell_height = 34, begin = top + 34;
  const double cell_width =
      std::min(110.0, kPlotWidth / static_cast<double>(passkey.lengths.size()));
  svg +=
      text_at(kLeft, top + 14, absl::StrFormat("passkeys found: %.1f%%", 100 * passkey.accuracy()),
              "start", " font-weight=\"bold\"");
  double y = begin;
  for (size_t d = 0; d < passkey.depths.size(); ++d, y += cell_height) {
    svg += text_at(kLeft - 8, y + cell_height / 2 + 4,
                   absl::StrFormat("%.3g%%", 100 * passkey.depths[d]), "end");
    for (size_t l = 0; l < passkey.lengths.size(); ++l) {
      const PasskeyCell& cell = passkey.cell(l, d);
      const double x = kLeft + cell_width * static_cast<double>(l);
      svg += absl::StrFormat(
          "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\" "
          "stroke=\"#ffffff\"/>\n",
          x, y, cell_width, cell_height, color_of(cell.accuracy()));
      svg += text_at(x + cell_width / 2, y + cell_height / 2 + 4,
                     absl::StrCat(cell.found, "/", cell.trials), "middle");
    }
  }
  for (size_t l = 0; l < passkey.lengths.size(); ++l) {
    svg += text_at(kLeft + cell_width * (static_cast<double>(l) + 0.5), y + 18,
                   absl::StrCat(passkey.lengths[l]), "middle");
  }
  svg += text_at(kLeft + cell_width * static_cast<double>(passkey.lengths.size()) / 2, y + 38,
                 "tokens of the text", "middle");
  svg += text_at(18, (begin + y) / 2, "depth of the key", "middle",
                 absl::StrFormat(" transform=\"rotate(-90 18 %.1f)\"", (begin + y) / 2).c_str());
  return y + 60;
}

}  // namespace

std::string to_svg(const EvalReport& report) {
  std::string body;
  double y = 16;
  body += text_at(kLeft, y + 12, report.model, "start", " fill=\"#555555\"");
  y += 30;
  if (report.loss) y = draw(*report.loss, y, body);
  if (report.passkey) y = draw(*report.passkey, y, body);
  return absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
      "viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n%s</svg>\n",
      kWidth, y, kWidth, y, body);
}

}  // namespace longhaul::launch
