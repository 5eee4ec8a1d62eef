// The page and its charts from made-up figures: what real runs seldom give, such as errors of 0 and NaN, crowded labels and bounds that do not hold.
#include "Page.h"
#include "Svg.h"

#include <gtest/gtest.h>

#include <cmath>
#include <regex>

using namespace aligned;

namespace {

TEST(Text, IsEscapedAndClean) {
  EXPECT_EQ(escaped("a<b & \"c\""), "a&lt;b &amp; &quot;c&quot;");
  EXPECT_EQ(escaped(llvm::StringRef("a\0b\x1b\n", 5)), "a b  ");
  EXPECT_EQ(escaped("\xff"), "\xef\xbf\xbd"); // not UTF-8: a replacement character
}

TEST(Text, ScientificNumbers) {
  EXPECT_EQ(scientific(0), "0");
  EXPECT_EQ(scientific(2.65e-3), "2.7 × 10⁻³");
  EXPECT_EQ(scientific(-12345678901.0), "-1.2 × 10¹⁰");
  EXPECT_EQ(scientific(NAN), "NaN");
  EXPECT_EQ(scientific(INFINITY), "∞");
}

std::vector<std::string> labelsOf(const Axis &axis) {
  std::vector<std::string> labels;
  for (const auto &[value, label] : axis.ticks())
    labels.push_back(label);
  return labels;
}

TEST(Axes, LinearTicksAreRoundAndFew) {
  EXPECT_EQ(labelsOf({0, 105, 0, 1}), (std::vector<std::string>{"0", "20", "40", "60", "80", "100"}));
  EXPECT_EQ(labelsOf({0, 1, 0, 1}), (std::vector<std::string>{"0", "0.2", "0.4", "0.6", "0.8", "1"}));
  for (double high : {0.3, 1.0, 3.0, 16.0, 64.0, 97.0, 2048.0, 31250.0}) {
    Axis axis{0, high, 0, 1};
    size_t count = axis.ticks().size();
    EXPECT_GE(count, 4u) << high;
    EXPECT_LE(count, 11u) << high;
  }
}

TEST(Axes, DecadesEncloseTheValues) {
  Axis axis = Axis::decades({3e-4, 0, NAN, 0.2, INFINITY}, 100, 0, "error");
  EXPECT_DOUBLE_EQ(axis.low, 1e-4);
  EXPECT_DOUBLE_EQ(axis.high, 1);
  EXPECT_EQ(labelsOf(axis), (std::vector<std::string>{"10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"}));
  EXPECT_DOUBLE_EQ(axis.at(1e-4), 100);
  EXPECT_NEAR(axis.at(1e-2), 50, 1e-9);
  EXPECT_EQ(axis.at(0), 100);  // stands on the axis
  EXPECT_EQ(axis.at(50), 0);
  for (const std::vector<double> &values : {std::vector<double>{}, {0.0}, {1e-3}})
    EXPECT_GT(Axis::decades(values, 0, 1, "").high, Axis::decades(values, 0, 1, "").low);
  EXPECT_LE(Axis::decades({1e-30, 1}, 0, 1, "").ticks().size(), 9u);
}

TEST(Charts, LabelsOfACrowdDoNotOverlap) {
  std::vector<std::pair<double, double>> points(8, {100, 100});
  std::vector<std::string> texts;
  for (int i = 0; i < 8; ++i)
    texts.push_back("label " + std::to_string(i));
  Svg svg(200, 200, "");
  svg.labels(points, texts, {0, 0, 200, 200});
  std::string drawn = svg.finish();
  std::regex place("<text x=\"([0-9.]+)\" y=\"([0-9.]+)\"(?: text-anchor=\"(\\w+)\")?");
  std::vector<Box> boxes;
  for (auto match = std::sregex_iterator(drawn.begin(), drawn.end(), place); match != std::sregex_iterator(); ++match) {
    double x = std::stod((*match)[1]), y = std::stod((*match)[2]), width = 7 * 6;
    std::string anchor = (*match)[3];
    boxes.push_back({anchor == "end" ? x - width : anchor == "middle" ? x - width / 2 : x, y - 10, width, 12});
  }
  ASSERT_EQ(boxes.size(), 8u);
  for (size_t i = 0; i < 8; ++i)
    for (size_t j = 0; j < i; ++j)
      EXPECT_FALSE(boxes[i].overlaps(boxes[j])) << i << " and " << j;
}

TEST(Charts, CellsAreMergedAlongARow) {
  Svg svg(10, 10, "");
  svg.cells({0, 0, 10, 10}, 2, 3, "b", [](int64_t row, int64_t column) { return row ? int(column) - 1 : 2; });
  std::string drawn = svg.finish();
  EXPECT_NE(drawn.find("<path class=\"b2\" d=\"M0 0h3v1h-3z\"/>"), std::string::npos) << drawn;
  EXPECT_NE(drawn.find("<path class=\"b0\" d=\"M1 1h1v1h-1z\"/>"), std::string::npos) << drawn;
  EXPECT_EQ(drawn.find("M0 1"), std::string::npos) << drawn; // negative: left out
}

DecodeReport figures(const char *policy, double bytes, double error) {
  DecodeReport report;
  report.policy = policy;
  report.keyBits = report.valueBits = 16 * bytes;
  report.bytesFraction = bytes;
  report.errorMean = report.errorMedian = report.errorMax = error;
  report.stepMicroseconds = report.denseStepMicroseconds = 1;
  return report;
}

DecodePage madeUp() {
  DecodePage page;
  page.folder = "folder";
  page.element = "f16";
  page.layers = page.kvHeads = page.group = page.steps = page.tokens = 1;
  page.keyDim = page.valueDim = 16;
  page.policies = {{figures("tight", 0.5, 1e-4), {}, {}}, {figures("fast", 0.25, 1e-2), {}, {}}};
  return page;
}

std::string written(const DecodePage &page) {
  std::string text;
  llvm::raw_string_ostream os(text);
  writePage(page, os);
  return text;
}

size_t count(const std::string &text, const std::string &part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

TEST(Page, PanelsComeWithWhatTheyShow) {
  DecodePage page = madeUp();
  std::string text = written(page);
  EXPECT_EQ(text.find("id=\"plans\""), text.npos);
  EXPECT_EQ(text.find("id=\"certificates\""), text.npos);
  page.policies[1].certificates = {{0.1, 0.01}, {0.2, 0.3}, {0.1, 0}, {INFINITY, 0.1}, {0.1, NAN}};
  text = written(page);
  EXPECT_NE(text.find("id=\"certificates\""), text.npos);
  EXPECT_EQ(count(text, "\"dots dots0"), 0u); // of a policy without certificates
  EXPECT_EQ(count(text, "\"dots dots1"), 2u); // points and their key; estimates of 0 are none
  // A bound that is exceeded, or an error that nobody knows, is not one that holds.
  EXPECT_NE(text.find("it holds for <data value=\"3\">3</data> of <data value=\"5\">5</data>"), text.npos);
  EXPECT_EQ(count(text, "class=\"equal\""), 1u);
  page.policies[0].certificates = {{0.1, 0.01, 0.02, 0.01}};
  text = written(page);
  EXPECT_EQ(count(text, "\"dots dots0"), 4u);
  EXPECT_EQ(count(text, "class=\"equal\""), 2u);
}

TEST(Page, SaysWhichAlternativeIsAsClose) {
  DecodePage page = madeUp();
  EXPECT_EQ(written(page).find("alternatives is"), std::string::npos);
  page.alternatives = {figures("int4", 0.27, 1e-1)};
  EXPECT_NE(written(page).find("None of the alternatives is as close."), std::string::npos);
  page.alternatives.push_back(figures("big", 1, 1e-5));
  page.alternatives.push_back(figures("small", 0.8, 1e-4));
  EXPECT_NE(written(page).find("smallest that is as close is small, with 80.0 % of the bytes"), std::string::npos);
}

TEST(Page, ErrorsWithoutAPlaceInTheChart) {
  DecodePage page = madeUp();
  page.policies[0].report = figures("tight", 0.5, 0);
  page.policies[1].report = figures("fast", 0.25, NAN);
  std::string text = written(page);
  EXPECT_EQ(count(text, "<circle"), 1u);
  EXPECT_EQ(count(text, "<data value=\"null\">NaN</data>"), 2u);
  EXPECT_NE(text.find("An error of 0 lies on the axis"), text.npos);
}

} // namespace
