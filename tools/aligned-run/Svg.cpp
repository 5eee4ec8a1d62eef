// Coordinates are pixels, y downwards, to a hundredth.
#include "Svg.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"

#include <algorithm>
#include <cmath>
#include <map>

using namespace aligned;

namespace {

constexpr double kCharacter = 6.6, kLine = 13; ///< of labels: mean width and height

std::string coordinate(double x) {
  std::string text = llvm::formatv("{0:F2}", x).str();
  text.erase(text.find_last_not_of('0') + 1);
  return text.back() == '.' ? text.substr(0, text.size() - 1) : text;
}

/// 10 to the power of `exponent`, with a raised exponent.
std::string powerOfTen(int exponent) {
  static constexpr const char *raised[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string text = exponent < 0 ? "10⁻" : "10";
  for (char digit : std::to_string(std::abs(exponent)))
    text += raised[digit - '0'];
  return text;
}

int64_t lengthOf(llvm::StringRef text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }); // characters of UTF-8
}

} // namespace

std::string aligned::escaped(llvm::StringRef text) {
  std::string clean = llvm::json::isUTF8(text) ? text.str() : llvm::json::fixUTF8(text), result;
  std::replace_if(clean.begin(), clean.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, ' ');
  llvm::raw_string_ostream os(result);
  llvm::printHTMLEscaped(clean, os);
  return result;
}

std::string aligned::scientific(double value) {
  if (value == 0)
    return "0";
  if (!std::isfinite(value))
    return std::isnan(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  std::string text = llvm::formatv("{0:e1}", value).str();
  size_t e = text.find_first_of("eE");
  return text.substr(0, e) + " × " + powerOfTen(std::atoi(text.c_str() + e + 1));
}

//===----------------------------------------------------------------------===//
// Axes
//===----------------------------------------------------------------------===//

Axis Axis::decades(const std::vector<double> &values, double from, double to, std::string title) {
  int least = INT_MAX, most = INT_MIN;
  for (double value : values)
    if (std::isfinite(value) && value > 0) {
      least = std::min(least, static_cast<int>(std::floor(std::log10(value))));
      most = std::max(most, static_cast<int>(std::ceil(std::log10(value))));
    }
  if (least > most)
    least = -1, most = 0;
  return {std::pow(10, least), std::pow(10, std::max(most, least + 1)), from, to, /*logarithmic=*/true, std::move(title)};
}

double Axis::at(double value) const {
  double part = logarithmic ? std::log10(std::max(value, low) / low) / std::log10(high / low) : (value - low) / (high - low);
  return from + (to - from) * std::clamp(part, 0.0, 1.0);
}

std::vector<std::pair<double, std::string>> Axis::ticks() const {
  std::vector<std::pair<double, std::string>> ticks;
  if (logarithmic) {
    int first = std::lround(std::log10(low)), last = std::lround(std::log10(high)), stride = (last - first) / 8 + 1;
    for (int exponent = first; exponent <= last; exponent += stride)
      ticks.emplace_back(std::pow(10, exponent), powerOfTen(exponent));
    return ticks;
  }
  double step = std::pow(10, std::floor(std::log10(high - low)));
  for (double finer : {2.0, 2.5, 2.0}) // 1, 1/2, 1/5, 1/10 of the decade
    if ((high - low) / step < 4)
      step /= finer;
  for (double value = std::ceil(low / step) * step; value <= high * (1 + 1e-9); value += step)
    ticks.emplace_back(value, coordinate(value));
  return ticks;
}

//===----------------------------------------------------------------------===//
// Shapes
//===----------------------------------------------------------------------===//

Svg::Svg(double width, double height, llvm::StringRef label) : os(content) {
  os << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " << coordinate(width) << " " << coordinate(height) << "\" style=\"max-width:"
     << coordinate(width) << "px\" role=\"img\" aria-label=\"" << escaped(label) << "\">\n";
}

std::string Svg::finish() {
  os << "</svg>\n";
  return std::move(content);
}

void Svg::line(double x1, double y1, double x2, double y2, llvm::StringRef style) {
  os << "<line x1=\"" << coordinate(x1) << "\" y1=\"" << coordinate(y1) << "\" x2=\"" << coordinate(x2) << "\" y2=\"" << coordinate(y2) << "\" class=\"" << style << "\"/>\n";
}

void Svg::rect(const Box &box, llvm::StringRef style) {
  os << "<rect x=\"" << coordinate(box.x) << "\" y=\"" << coordinate(box.y) << "\" width=\"" << coordinate(box.width) << "\" height=\"" << coordinate(box.height)
     << "\" class=\"" << style << "\"/>\n";
}

void Svg::mark(double x, double y, llvm::StringRef style, llvm::StringRef hint, bool square) {
  if (square)
    os << "<rect x=\"" << coordinate(x - 4.5) << "\" y=\"" << coordinate(y - 4.5) << "\" width=\"9\" height=\"9\"";
  else
    os << "<circle cx=\"" << coordinate(x) << "\" cy=\"" << coordinate(y) << "\" r=\"5\"";
  os << " class=\"" << style << "\"><title>" << escaped(hint) << "</title></" << (square ? "rect" : "circle") << ">\n";
}

void Svg::dots(const std::vector<std::pair<double, double>> &points, llvm::StringRef style) {
  os << "<path class=\"" << style << "\" d=\"";
  for (auto [x, y] : points)
    os << "M" << coordinate(x) << " " << coordinate(y) << "h0";
  os << "\"/>\n";
}

void Svg::text(double x, double y, llvm::StringRef text, Anchor anchor, llvm::StringRef style, bool upright) {
  static constexpr const char *anchors[] = {"start", "middle", "end"};
  os << "<text x=\"" << coordinate(x) << "\" y=\"" << coordinate(y) << "\"";
  if (anchor != Start)
    os << " text-anchor=\"" << anchors[anchor] << "\"";
  if (!style.empty())
    os << " class=\"" << style << "\"";
  if (upright)
    os << " transform=\"rotate(-90 " << coordinate(x) << " " << coordinate(y) << ")\"";
  os << ">" << escaped(text) << "</text>\n";
}

void Svg::axes(const Axis &x, const Axis &y) {
  for (const auto &[value, label] : x.ticks()) {
    line(x.at(value), y.from, x.at(value), y.to, "grid");
    text(x.at(value), y.from + 18, label, Middle, "tick");
  }
  for (const auto &[value, label] : y.ticks()) {
    line(x.from, y.at(value), x.to, y.at(value), "grid");
    text(x.from - 8, y.at(value) + 4, label, End, "tick");
  }
  line(x.from, y.from, x.to, y.from, "axis");
  line(x.from, y.from, x.from, y.to, "axis");
  text((x.from + x.to) / 2, y.from + 40, x.title, Middle);
  text(x.from - 46, (y.from + y.to) / 2, y.title, Middle, "", /*upright=*/true);
}

void Svg::labels(const std::vector<std::pair<double, double>> &points, const std::vector<std::string> &texts, const Box &within) {
  std::vector<Box> taken;
  for (auto [x, y] : points)
    taken.push_back({x - 6, y - 6, 12, 12});
  for (size_t i = 0; i < points.size(); ++i) {
    auto [x, y] = points[i];
    double width = lengthOf(texts[i]) * kCharacter;
    struct Place {
      Box box;
      Anchor anchor;
    };
    const double left = x - 9 - width, middle = x - width / 2, right = x + 9, level = y - kLine / 2;
    std::vector<Place> places{{{right, level, width, kLine}, Start}, {{left, level, width, kLine}, End}, {{middle, y - 8 - kLine, width, kLine}, Middle}, {{middle, y + 8, width, kLine}, Middle}};
    for (double away = kLine / 2; away < 8 * kLine; away += kLine / 2) // in a crowd
      for (double line : {level - away, level + away})
        places.insert(places.end(), {{{right - 2, line, width, kLine}, Start}, {{left + 2, line, width, kLine}, End}});
    auto place = llvm::find_if(places, [&](const Place &place) {
      const Box &box = place.box;
      return box.x >= within.x && box.x + box.width <= within.x + within.width && box.y >= within.y && box.y + box.height <= within.y + within.height &&
             llvm::none_of(taken, [&](const Box &other) { return box.overlaps(other); });
    });
    if (place == places.end())
      place = places.begin(); // the hint of the mark says it too
    taken.push_back(place->box);
    text(place->box.x + width * place->anchor / 2, place->box.y + kLine - 3, texts[i], place->anchor);
  }
}

void Svg::cells(const Box &box, int64_t rows, int64_t columns, llvm::StringRef prefix, llvm::function_ref<int(int64_t, int64_t)> level) {
  std::map<int, std::string> paths; // of each level, in units of cells
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0, end; column < columns; column = end) {
      int here = level(row, column);
      for (end = column + 1; end < columns && level(row, end) == here;)
        ++end;
      if (here >= 0)
        paths[here] += llvm::formatv("M{0} {1}h{2}v1h-{2}z", column, row, end - column).str();
    }
  os << llvm::format("<g transform=\"translate(%.2f %.2f) scale(%.5f %.5f)\" shape-rendering=\"crispEdges\">\n", box.x, box.y, box.width / columns, box.height / rows);
  for (const auto &[here, path] : paths)
    os << "<path class=\"" << prefix << here << "\" d=\"" << path << "\"/>\n";
  os << "</g>\n";
}

void Svg::profile(const Box &box, const std::vector<double> &values, double top, bool lying, llvm::StringRef style) {
  double extent = lying ? box.height : box.width, bar = extent / values.size();
  os << "<path class=\"" << style << "\" d=\"M" << coordinate(box.x) << " " << coordinate(lying ? box.y : box.y + box.height);
  for (double value : values) {
    double part = std::clamp(value / top, 0.0, 1.0);
    if (lying)
      os << "H" << coordinate(box.x + part * box.width) << "v" << llvm::format("%.4f", bar);
    else
      os << "V" << coordinate(box.y + (1 - part) * box.height) << "h" << llvm::format("%.4f", bar);
  }
  os << (lying ? "H" + coordinate(box.x) : "V" + coordinate(box.y + box.height)) << "z\"/>\n";
}
