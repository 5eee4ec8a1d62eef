// Well-formed both as HTML and as XML, so that any parser can read the numbers back: <data value="..."> holds what aligned-run --json prints.
#include "Page.h"

#include "Svg.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>
#include <cmath>

using namespace aligned;

namespace {

constexpr int64_t kTile = ALIGNED_TILE;

constexpr const char *style = R"(
:root { color-scheme: light dark; --surface: #fcfcfb; --ink: #1a1a19; --muted: #65645f; --grid: #e6e5e1; --axis: #a5a49f; --ours: #2166c4; --others: #c2541b;
  --b0: #edece8; --b1: #bcd6f5; --b2: #6ba5e8; --b3: #2166c4; --b4: #0c2f63; --probability: #5a3ea6; --profile: #8fa8c7; }
@media (prefers-color-scheme: dark) {
  :root { --surface: #191918; --ink: #efeeea; --muted: #a9a8a2; --grid: #32312e; --axis: #6f6e69; --ours: #5aa2f2; --others: #ee8b57;
    --b0: #2b2a28; --b1: #14406f; --b2: #2166c4; --b3: #6ba5e8; --b4: #d3e5fb; --probability: #b3a2f5; --profile: #56708f; }
}
body { margin: 0 auto; padding: 28px 32px 48px; max-width: 1160px; background: var(--surface); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 17px; font-weight: 600; margin: 0; color: var(--muted); }
h2 { font-size: 18px; font-weight: 600; margin: 36px 0 4px; }
.headline { font-size: 23px; line-height: 1.4; margin: 8px 0 10px; max-width: 1020px; }
p { margin: 4px 0 12px; max-width: 1020px; }
.note, figcaption, footer { color: var(--muted); font-size: 13.5px; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 36px; align-items: start; margin-top: 20px; }
@media (max-width: 960px) { .pair { grid-template-columns: minmax(0, 1fr); } }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: right; vertical-align: bottom; font-weight: 600; line-height: 1.25; } td { text-align: right; white-space: nowrap; }
th, td { padding: 5px 0 5px 12px; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.rule td { border-top: 2px solid var(--axis); }
.key { display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 5px; background: var(--ours); }
.key.theirs { border-radius: 0; background: var(--others); }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
svg text { fill: var(--ink); font-size: 13px; } svg text.tick { fill: var(--muted); font-size: 12px; } svg text.name { font-weight: 600; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); } .equal { stroke: var(--axis); stroke-dasharray: 5 4; }
.ours { fill: var(--ours); stroke: var(--surface); } .theirs { fill: var(--others); stroke: var(--surface); }
.span-ours { stroke: var(--ours); stroke-width: 1.5; opacity: .55; } .span-theirs { stroke: var(--others); stroke-width: 1.5; opacity: .55; }
.profile { fill: var(--profile); } .frame { fill: none; stroke: var(--axis); }
.b0 { fill: var(--b0); } .b1 { fill: var(--b1); } .b2 { fill: var(--b2); } .b3 { fill: var(--b3); } .b4 { fill: var(--b4); }
.p0 { fill: var(--b0); } .p1, .p2, .p3, .p4, .p5, .p6 { fill: var(--probability); }
.p1 { fill-opacity: .15; } .p2 { fill-opacity: .3; } .p3 { fill-opacity: .47; } .p4 { fill-opacity: .64; } .p5 { fill-opacity: .82; }
.dots { fill: none; stroke-width: 5; stroke-linecap: round; stroke-opacity: .55; } .key-dot { stroke-width: 9; stroke-opacity: 1; }
.dots0 { stroke: var(--ours); } .dots1 { stroke: var(--others); } .dots2 { stroke: var(--probability); } .dots3 { stroke: var(--muted); }
details { border-top: 1px solid var(--grid); padding: 8px 0; } summary { cursor: pointer; }
footer { border-top: 1px solid var(--grid); margin-top: 32px; padding-top: 12px; } footer p { max-width: none; }
)";

/// A number as people read it, around the number as machines do.
std::string data(double value, const std::string &shown) {
  std::string exact;
  llvm::raw_string_ostream(exact) << jsonNumber(value);
  return "<data value=\"" + exact + "\">" + shown + "</data>";
}
std::string fixed(double value, int digits) {
  char text[48];
  snprintf(text, sizeof(text), "%.*f", digits, value);
  return std::isfinite(value) ? text : "–";
}
std::string percent(double fraction) { return fixed(fraction * 100, fraction == 1 ? 0 : 1) + " %"; }

/// A policy's name, with its tolerance where the name does not imply it.
std::string nameOf(const DecodeReport &report) {
  return report.policy == "budget" ? "budget " + scientific(report.tolerance) : report.policy;
}

std::string counted(int64_t count, const char *what) { return std::to_string(count) + " " + what + (count == 1 ? "" : "s"); }

class Page {
public:
  Page(const DecodePage &page, llvm::raw_ostream &os) : page(page), os(os) {
    auto balanced = std::find_if(page.policies.begin(), page.policies.end(), [](const PolicyPage &p) { return p.report.policy == "balanced"; });
    shown = balanced == page.policies.end() ? 0 : balanced - page.policies.begin();
  }

  void write() {
    os << "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>Decode attention over "
       << escaped(page.folder) << "</title>\n<style>" << style << "</style>\n</head>\n<body>\n";
    headline();
    os << "<section class=\"pair\">\n";
    table();
    bytesAgainstError();
    os << "</section>\n";
    plans();
    certificates();
    footer();
    os << "</body>\n</html>\n";
  }

private:
  void headline();
  void table();
  void row(const DecodeReport &report, const std::string &name, const char *key, bool rule);
  void bytesAgainstError();
  void plans();
  std::string picture(const StepBits &bits, const std::string &name);
  std::string saidAgainstSeen(const std::string &seen, const std::string &said, llvm::function_ref<std::pair<double, double>(const Certified &)> pick);
  void certificates();
  void footer();

  const DecodePage &page;
  llvm::raw_ostream &os;
  size_t shown; ///< the policy that the page speaks of first
};

void Page::headline() {
  const DecodeReport &r = page.policies[shown].report;
  os << "<h1>Decode attention over a KV cache in bit planes</h1>\n<p class=\"headline\">Policy <b>" << escaped(nameOf(r)) << "</b> reads <b>"
     << data(r.bytesFraction, percent(r.bytesFraction)) << "</b> of the bytes of dense attention and errs by <b>" << data(r.errorMean, scientific(r.errorMean))
     << "</b> on average, " << data(r.errorMax, scientific(r.errorMax)) << " at most.";
  const DecodeReport *best = nullptr;
  for (const DecodeReport &other : page.alternatives)
    if (other.errorMean <= r.errorMean && (!best || other.bytesFraction < best->bytesFraction))
      best = &other;
  if (best)
    os << " Of the alternatives, the smallest that is as close is " << escaped(best->policy) << ", with " << percent(best->bytesFraction) << " of the bytes.";
  else if (!page.alternatives.empty())
    os << " None of the alternatives is as close.";
  os << "</p>\n<p class=\"note\">";
  for (const std::string *said : {&page.model, &page.text})
    if (!said->empty())
      os << escaped(*said) << "; ";
  os << counted(page.layers, "layer") << ", " << counted(page.kvHeads, "kv head") << " with " << counted(page.group, "query head") << " each, "
     << counted(page.tokens, "token") << ", head_dim " << page.keyDim;
  if (page.valueDim != page.keyDim)
    os << " of K and " << page.valueDim << " of V";
  os << ", " << page.element << "; " << counted(page.steps, "decode step") << ", every layer and head of "
     << (page.steps == 1 ? "it" : "them") << ". Errors are relative L2 of a head's output against attention in float64.</p>\n";
}

void Page::row(const DecodeReport &r, const std::string &name, const char *key, bool rule) {
  os << "<tr" << (rule ? " class=\"rule\"" : "") << "><td><span class=\"key" << key << "\"></span>" << escaped(name) << "</td><td>" << data(r.keyBits, fixed(r.keyBits, 2))
     << "</td><td>" << data(r.valueBits, fixed(r.valueBits, 2)) << "</td><td>" << data(r.bytesFraction, percent(r.bytesFraction)) << "</td><td>"
     << data(r.errorMean, scientific(r.errorMean)) << "</td><td>" << data(r.errorMax, scientific(r.errorMax)) << "</td><td>"
     << fixed(r.stepMicroseconds / r.denseStepMicroseconds, 2) << "</td></tr>\n";
}

void Page::table() {
  os << "<div id=\"figures\">\n<table>\n<thead><tr><th></th><th>K<br/>bits</th><th>V<br/>bits</th><th>bytes,<br/>of dense</th><th>error,<br/>mean</th><th>error,<br/>largest</th>"
        "<th>time,<br/>of dense</th></tr></thead>\n<tbody>\n";
  for (const PolicyPage &policy : page.policies)
    row(policy.report, nameOf(policy.report), "", false);
  for (const DecodeReport &other : page.alternatives)
    row(other, other.policy, " theirs", &other == &page.alternatives.front());
  os << "</tbody>\n</table>\n<p class=\"note\">Bits are per value, with scales. Circles: compiled kernels, measured. Squares: what others store, computed by the "
        "reference. Time is beside this project's dense kernel, on this machine.</p>\n</div>\n";
}

void Page::bytesAgainstError() {
  struct Entry {
    const DecodeReport *report;
    const char *mark, *span; ///< classes
  };
  std::vector<Entry> entries;
  for (const PolicyPage &policy : page.policies)
    entries.push_back({&policy.report, "ours", "span-ours"});
  for (const DecodeReport &other : page.alternatives)
    entries.push_back({&other, "theirs", "span-theirs"});
  llvm::erase_if(entries, [](const Entry &entry) { return !std::isfinite(entry.report->errorMean); }); // they have no place; the table lists them
  std::vector<double> errors;
  double most = 1;
  for (const Entry &entry : entries) {
    errors.insert(errors.end(), {entry.report->errorMean, entry.report->errorMax});
    most = std::max(most, entry.report->bytesFraction);
  }

  constexpr double width = 560, height = 440;
  Axis x{0, 105 * most, 62, width - 14, false, "bytes read, % of dense attention"};
  Axis y = Axis::decades(errors, height - 52, 12, "relative L2 error");
  Svg svg(width, height, "Bytes read against error, of policies and alternatives");
  svg.axes(x, y);
  auto place = [&](const DecodeReport &r) { return std::pair(x.at(100 * r.bytesFraction), y.at(r.errorMean)); };
  std::vector<std::pair<double, double>> points;
  std::vector<std::string> names;
  for (const Entry &entry : entries) {
    points.push_back(place(*entry.report));
    names.push_back(nameOf(*entry.report));
    if (std::isfinite(entry.report->errorMax))
      svg.line(points.back().first, points.back().second, points.back().first, y.at(entry.report->errorMax), entry.span);
  }
  for (auto [entry, point, name] : llvm::zip_equal(entries, points, names)) {
    const DecodeReport &r = *entry.report;
    svg.mark(point.first, point.second, entry.mark,
             name + ": " + percent(r.bytesFraction) + " of the bytes, mean error " + scientific(r.errorMean) + ", largest " + scientific(r.errorMax),
             /*square=*/llvm::StringRef(entry.mark) == "theirs");
  }
  svg.labels(points, names, {x.from, y.to, x.to - x.from + 14, y.from - y.to});
  os << "<figure id=\"bytes-error\">\n" << svg.finish() << "<figcaption>Marks are means over layers, heads and steps; lines lead to the largest error of a head."
     << (llvm::is_contained(errors, 0) ? " An error of 0 lies on the axis, which has no place for it." : "") << "</figcaption>\n</figure>\n";
}

/// Level 6 from a tenth, 1 from a millionth, 0 below.
int probabilityLevel(double p) { return p > 0 ? std::clamp(static_cast<int>(std::floor(std::log10(p))) + 7, 0, 6) : 0; }

/// Rows are tiles of 64 tokens, the oldest on top, in three panels side by side: K by channel or by token of the tile, V by token of the tile, probability by token of the
/// tile.
std::string Page::picture(const StepBits &bits, const std::string &name) {
  int64_t tokens = page.stepTokens, rows = (tokens + kTile - 1) / kTile, columns = bits.channels == 1 ? kTile : page.keyDim;
  constexpr double full = 16;
  bool byToken = bits.channels == 1;
  auto keyBits = [&](int64_t tile, int64_t column) -> double {
    if (!byToken)
      return bits.keyBits[tile * bits.channels + column];
    return tile * kTile + column < tokens ? bits.keyBits[tile * kTile + column] : -4;
  };
  auto tokensOf = [&](int64_t tile) { return std::min(kTile, tokens - tile * kTile); };
  auto level = [](double bits) { return std::min(static_cast<int>(bits / 4), 4); };

  std::vector<double> ofTileK(rows), ofTileV(rows), ofColumn(columns);
  double meanK = 0, meanV = 0;
  for (int64_t tile = 0; tile < rows; ++tile) {
    int64_t count = byToken ? tokensOf(tile) : columns;
    for (int64_t column = 0; column < count; ++column) {
      ofTileK[tile] += keyBits(tile, column) / count;
      ofColumn[column] += byToken ? keyBits(tile, column) / rows : keyBits(tile, column) * tokensOf(tile) / tokens;
    }
    for (int64_t token = tile * kTile; token < tile * kTile + tokensOf(tile); ++token)
      ofTileV[tile] += double(bits.valueBits[token]) / tokensOf(tile);
    meanK += ofTileK[tile] * tokensOf(tile) / tokens;
    meanV += ofTileV[tile] * tokensOf(tile) / tokens;
  }

  constexpr double panel = 304, margin = 52, gap = 34, left = 62, top = 100, above = 36, lift = 14; // lift: of the margin above a panel
  double height = std::min(20.0 * rows, 320.0);
  Svg svg(left + 3 * panel + 2 * (margin + gap) + 10, top + height + 50, "Bits that policy " + name + " read of K and of V, and the probability of tokens");
  Axis y{0, static_cast<double>(rows), top, top + height, false, "tile of 64 tokens, oldest first"};
  auto frame = [&](double x, const std::string &title, double columns, const std::string &columnTitle) {
    svg.text(x, 18, title, Svg::Start, "name");
    svg.rect({x, top, panel, height}, "frame");
    for (double column = 0; column <= columns; column += columns / 4) {
      svg.line(x + panel * column / columns, top + height, x + panel * column / columns, top + height + 4, "axis");
      svg.text(x + panel * column / columns, top + height + 18, fixed(column, 0), Svg::Middle, "tick");
    }
    svg.text(x + panel / 2, top + height + 38, columnTitle, Svg::Middle);
  };
  auto beside = [&](double x, const std::vector<double> &means) { // the margin of means of tiles
    svg.profile({x + 6, top, margin - 6, height}, means, full, /*lying=*/true, "profile");
    svg.line(x + 6, top, x + 6, top + height, "axis");
    svg.text(x + 6, top - 6, "0", Svg::Middle, "tick");
    svg.text(x + margin, top - 6, fixed(full, 0), Svg::Middle, "tick");
    svg.text(x + 6, top - 34, "mean", Svg::Start, "tick");
    svg.text(x + 6, top - 21, "bits", Svg::Start, "tick");
  };
  auto legend = [&](double x, const std::string &prefix, const std::vector<const char *> &labels) {
    double swatch = panel / labels.size();
    for (size_t i = 0; i < labels.size(); ++i) {
      svg.rect({x + i * swatch, top - 46, swatch - 2, 12}, prefix + std::to_string(i));
      svg.text(x + i * swatch + swatch / 2 - 1, top - 20, labels[i], Svg::Middle, "tick");
    }
  };
  for (const auto &[row, label] : y.ticks())
    if (row == std::floor(row)) {
      svg.line(left - 4, y.at(row), left, y.at(row), "axis");
      svg.text(left - 8, y.at(row) + 4, label, Svg::End, "tick");
    }
  svg.text(left - 44, top + height / 2, height < 200 ? "tile" : y.title, Svg::Middle, "", /*upright=*/true);

  double x = left;
  svg.cells({x, top, panel, height}, rows, columns, "b", [&](int64_t tile, int64_t column) { return level(keyBits(tile, column)); });
  frame(x, "K: " + fixed(meanK, 2) + " bits a value", columns, byToken ? "token of the tile" : "channel");
  svg.profile({x, top - lift - above, panel, above}, ofColumn, full, /*lying=*/false, "profile");
  svg.line(x, top - lift, x + panel, top - lift, "axis");
  svg.text(x - 6, top - lift + 4, "0", Svg::End, "tick");
  svg.text(x - 6, top - lift - above + 8, fixed(full, 0), Svg::End, "tick");
  svg.text(x - 24, top - lift - above / 2, "mean", Svg::End, "tick");
  svg.text(x - 24, top - lift - above / 2 + 13, "bits", Svg::End, "tick");
  beside(x + panel, ofTileK);

  x += panel + margin + gap;
  auto ofToken = [&](auto levelOf) {
    return [this, levelOf](int64_t tile, int64_t column) { return tile * kTile + column < page.stepTokens ? levelOf(tile * kTile + column) : -1; };
  };
  svg.cells({x, top, panel, height}, rows, kTile, "b", ofToken([&](int64_t token) { return level(bits.valueBits[token]); }));
  frame(x, "V: " + fixed(meanV, 2) + " bits a value", kTile, "token of the tile");
  legend(x, "b", {"0 bits", "4", "8", "12", "16"});
  beside(x + panel, ofTileV);

  x += panel + margin + gap;
  svg.cells({x, top, panel, height}, rows, kTile, "p", ofToken([&](int64_t token) { return probabilityLevel(page.probabilities[token]); }));
  frame(x, "Probability of tokens", kTile, "token of the tile");
  legend(x, "p", {"less", "10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"});
  return svg.finish();
}

void Page::plans() {
  bool any = std::any_of(page.policies.begin(), page.policies.end(), [](const PolicyPage &policy) { return policy.bits.has_value(); });
  if (!any)
    return;
  os << "<section id=\"plans\">\n<h2>Which bits one step reads</h2>\n<p class=\"note\">Layer " << page.layer << ", kv head " << page.head << ", step " << page.step << ", "
     << counted(page.stepTokens, "token") << ", as the compiled kernels report it, scale codes left out. The probability of a token is the largest among the query heads of the kv head, in float64.</p>\n";
  for (size_t i = 0; i < page.policies.size(); ++i)
    if (const PolicyPage &policy = page.policies[i]; policy.bits)
      os << "<details" << (i == shown ? " open=\"open\"" : "") << "><summary>" << escaped(nameOf(policy.report)) << "</summary>\n<figure>\n"
         << picture(*policy.bits, nameOf(policy.report)) << "</figure>\n</details>\n";
  os << "</section>\n";
}

/// A figure of what kernels say of errors against the errors, with equality as a line; nothing without points.
std::string Page::saidAgainstSeen(const std::string &seen, const std::string &said, llvm::function_ref<std::pair<double, double>(const Certified &)> pick) {
  std::vector<std::pair<std::string, std::vector<std::pair<double, double>>>> series; // of (seen, said)
  std::vector<double> values;
  for (const PolicyPage &policy : page.policies) {
    series.push_back({nameOf(policy.report), {}});
    for (const Certified &c : policy.certificates)
      if (auto [x, y] = pick(c); std::isfinite(x) && std::isfinite(y) && y > 0) {
        series.back().second.emplace_back(x, y);
        values.insert(values.end(), {x, y});
      }
  }
  if (values.empty())
    return "";
  constexpr double width = 560, height = 500;
  Axis x = Axis::decades(values, 62, width - 14, seen), y = Axis::decades(values, height - 52, 12, said);
  Svg svg(width, height, said + " against " + seen);
  svg.axes(x, y);
  svg.line(x.from, y.from, x.to, y.to, "equal");
  double legend = y.to + 16;
  for (size_t i = 0; i < series.size(); ++i) {
    auto &[name, points] = series[i];
    if (points.empty())
      continue;
    for (auto &[px, py] : points)
      px = x.at(px), py = y.at(py);
    std::string dots = "dots dots" + std::to_string(i % 4);
    svg.dots(points, dots);
    svg.dots({{x.from + 16, legend}}, dots + " key-dot");
    svg.text(x.from + 26, legend + 4, name);
    legend += 20;
  }
  return "<figure>\n" + svg.finish() + "</figure>\n";
}

void Page::certificates() {
  int64_t count = 0, holding = 0;
  for (const PolicyPage &policy : page.policies)
    for (const Certified &c : policy.certificates) {
      ++count;
      holding += c.holds();
    }
  if (!count)
    return;
  std::string bounds = saidAgainstSeen("error in the largest channel, absolute", "certified bound of it", [](const Certified &c) { return std::pair(c.error, c.bound); });
  std::string estimates = saidAgainstSeen("relative L2 error", "estimate of it", [](const Certified &c) { return std::pair(c.relativeError, c.estimate); });
  os << "<section id=\"certificates\">\n<h2>What kernels say of their errors</h2>\n<p class=\"note\">A point is one layer, query head and step; on the dashed line both are "
        "equal. A bound must not be exceeded: it holds for "
     << data(holding, std::to_string(holding)) << " of " << data(count, std::to_string(count)) << "."
     << (estimates.empty() ? "" : " An estimate, at the right, is the error to expect.") << " Errors include those of storage.</p>\n<div class=\"pair\">\n"
     << bounds << estimates << "</div>\n</section>\n";
}

void Page::footer() {
  os << R"(<footer>
<p><b>Bytes</b> are the planes that a step read, and of fixed planes a byte of scale code for each token and side. Alternatives count what they store: values, scales and zero points.</p>
<p><b>Alternatives</b>, attended to in float64 after rounding: <b>int8, int4</b>: K by channel of 64 tokens with a scale and a zero point, V by token with a scale, of 16 bits
each; <b>q8_0</b>: 8-bit integers, 32 channels of a token share a scale of 16 bits; <b>fp8</b>: e4m3 without scales, saturating; <b>flash</b>: 16-bit K, V, probabilities and
output, scores and sums in float32; <b>alignedkv</b>: the published rule (arXiv 2409.16546), planes of 8, 4 and 4 bits.</p>
</footer>
)";
}

} // namespace

void aligned::writePage(const DecodePage &page, llvm::raw_ostream &os) { Page(page, os).write(); }
