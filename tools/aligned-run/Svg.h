// Charts as inline SVG: axes, marks, labels that keep out of each other's way, and heat maps. Nothing here has a colour: shapes carry classes, and
// the page's style sheet gives each class one for light and one for dark surroundings.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_SVG_H
#define ALIGNED_TOOLS_ALIGNED_RUN_SVG_H

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/Support/raw_ostream.h"

#include <string>
#include <utility>
#include <vector>

namespace aligned {

struct Box {
  double x, y, width, height;

  bool overlaps(const Box &other) const {
    return x < other.x + other.width && other.x < x + width && y < other.y + other.height && other.y < y + height;
  }
};

/// Text of a page or of an SVG in it: escaped, and without what XML has no room for.
std::string escaped(llvm::StringRef text);

/// "2.7 × 10⁻³"; "0" and "NaN" as they are.
std::string scientific(double value);

/// Values [low, high] laid on pixels [from, to].
struct Axis {
  double low, high, from, to;
  bool logarithmic = false;
  std::string title = "";

  /// The decades around all positive values, at least one; values that are not finite have no say.
  static Axis decades(const std::vector<double> &values, double from, double to, std::string title);

  double at(double value) const;
  /// Round values, a handful of them, with their labels.
  std::vector<std::pair<double, std::string>> ticks() const;
};

class Svg {
public:
  enum Anchor { Start, Middle, End };

  /// `label` says what is drawn to those who don't see it.
  Svg(double width, double height, llvm::StringRef label);

  void line(double x1, double y1, double x2, double y2, llvm::StringRef style);
  void rect(const Box &box, llvm::StringRef style);
  /// A mark of a point: a circle, or a square where `square`; `hint` shows where the pointer rests.
  void mark(double x, double y, llvm::StringRef style, llvm::StringRef hint, bool square = false);
  /// Many small marks without hints; their style is that of a stroke with round caps.
  void dots(const std::vector<std::pair<double, double>> &points, llvm::StringRef style);
  void text(double x, double y, llvm::StringRef text, Anchor anchor = Start, llvm::StringRef style = "", bool upright = false);

  /// Grid lines, tick labels and titles along the bottom and the left of a chart.
  void axes(const Axis &x, const Axis &y);
  /// Puts a label beside each point, where it covers no other label and no point.
  void labels(const std::vector<std::pair<double, double>> &points, const std::vector<std::string> &texts, const Box &within);

  /// rows x columns cells of class `<prefix><level>`; a cell with a negative level is left out.
  void cells(const Box &box, int64_t rows, int64_t columns, llvm::StringRef prefix, llvm::function_ref<int(int64_t row, int64_t column)> level);
  /// Bars of values in [0, top] side by side along a box, from its bottom upwards, or from its left to the right where `lying`.
  void profile(const Box &box, const std::vector<double> &values, double top, bool lying, llvm::StringRef style);

  /// The finished element. Once.
  std::string finish();

private:
  std::string content;
  llvm::raw_string_ostream os;
};

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_RUN_SVG_H
