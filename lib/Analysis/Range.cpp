// Arithmetic of ranges. Ends are doubles, and go one further outward wherever a double does not hold the exact one.
#include "aligned/Analysis/Range.h"

#include "llvm/ADT/APFloat.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/Format.h"

#include <algorithm>
#include <cmath>

using namespace mlir;
using namespace aligned;

static constexpr double kInfinity = std::numeric_limits<double>::infinity();
static constexpr double kLargest = std::numeric_limits<double>::max();

int aligned::exponentOf(double value) { return std::isinf(value) ? 1024 : std::ilogb(value); }

//===----------------------------------------------------------------------===//
// Formats
//===----------------------------------------------------------------------===//

std::optional<FloatFormat> FloatFormat::of(Type type) {
  auto element = dyn_cast<FloatType>(getElementTypeOrSelf(type));
  if (!element)
    return std::nullopt;
  const llvm::fltSemantics &semantics = element.getFloatSemantics();
  bool lost = false;
  auto number = [&](llvm::APFloat value) {
    value.convert(llvm::APFloat::IEEEdouble(), llvm::APFloat::rmTowardZero, &lost);
    return value.convertToDouble();
  };
  if (element.getWidth() > 64)
    return FloatFormat{53, -1074, kInfinity, true, true};
  return FloatFormat{static_cast<int>(llvm::APFloat::semanticsPrecision(semantics)), exponentOf(number(llvm::APFloat::getSmallest(semantics))),
                     number(llvm::APFloat::getLargest(semantics)), llvm::APFloat::semanticsHasInf(semantics), llvm::APFloat::semanticsHasNaN(semantics)};
}

//===----------------------------------------------------------------------===//
// The lattice
//===----------------------------------------------------------------------===//

FloatRange::FloatRange() : lower(kInfinity), upper(-kInfinity), least(kInfinity) {}

/// Makes the parts of a range agree: what one of them says, all do.
static FloatRange tidy(FloatRange range) {
  if (range.held < FloatRange::kHeldNothing)
    range.least = std::max(range.least, std::ldexp(1.0, std::clamp(range.held, -1075, 1023))); // below doubles, 0
  if (range.lower >= 0)
    range.least = std::max(range.least, range.lower);
  if (range.upper <= 0)
    range.least = std::max(range.least, -range.upper);
  bool positive = range.upper > 0 && range.upper >= range.least, negative = range.lower < 0 && -range.lower >= range.least;
  range.zero &= range.lower <= 0 && range.upper >= 0;
  if (!positive && !negative) {
    range.lower = range.zero ? 0 : kInfinity;
    range.upper = -range.lower;
    range.least = kInfinity;
    range.held = FloatRange::kHeldNothing;
  } else if (!positive) {
    range.upper = range.zero ? 0 : -range.least;
  } else if (!negative) {
    range.lower = range.zero ? 0 : range.least;
  }
  return range;
}

FloatRange FloatRange::of(double lower, double upper) {
  FloatRange range;
  range.lower = lower;
  range.upper = upper;
  range.least = 0;
  range.held = kHeldAny;
  range.zero = true;
  return tidy(range);
}

FloatRange FloatRange::constant(const llvm::APFloat &value) {
  FloatRange range;
  if (value.isNaN()) {
    range.nan = true;
  } else if (value.isInfinity()) {
    range.infinite = true;
  } else if (value.isZero()) {
    range.lower = range.upper = 0;
    range.zero = true;
  } else {
    llvm::APFloat wide = value;
    bool lost = false;
    wide.convert(llvm::APFloat::IEEEdouble(), llvm::APFloat::rmNearestTiesToEven, &lost);
    double x = wide.convertToDouble();
    if (lost)
      return FloatRange::of(std::nextafter(x, -kInfinity), std::nextafter(x, kInfinity));
    range.lower = range.upper = x;
    range.least = std::fabs(x);
    range.held = exponentOf(x);
    while (std::ldexp(x, -range.held) != std::trunc(std::ldexp(x, -range.held)))
      --range.held;
  }
  return range;
}

FloatRange FloatRange::all(const FloatFormat &format) {
  FloatRange range = FloatRange::of(-format.largest, format.largest);
  range.held = format.finest;
  range.infinite = format.infinite;
  range.nan = format.nan;
  return tidy(range);
}

bool FloatRange::isBounded() const { return !nan && !infinite && hasFinite() && std::isfinite(lower) && std::isfinite(upper); }

bool FloatRange::contains(double value) const {
  if (std::isnan(value))
    return nan;
  if (std::isinf(value))
    return infinite;
  if (!(value >= lower && value <= upper))
    return false;
  if (value == 0)
    return zero;
  double units = held >= kHeldNothing ? 0.5 : std::ldexp(value, -held); // a tiny `held` may overflow: then it is no constraint
  return std::fabs(value) >= least && (std::isinf(units) || units == std::trunc(units));
}

bool FloatRange::contains(const FloatRange &other) const { return join(other) == *this; }

bool FloatRange::operator==(const FloatRange &other) const {
  return lower == other.lower && upper == other.upper && least == other.least && held == other.held && zero == other.zero && infinite == other.infinite &&
         nan == other.nan;
}

double FloatRange::magnitude() const { return infinite ? kInfinity : hasFinite() ? std::max(std::fabs(lower), std::fabs(upper)) : 0; }
double FloatRange::smallest() const { return zero ? 0 : least; }

FloatRange FloatRange::join(const FloatRange &other) const {
  FloatRange range;
  range.lower = std::min(lower, other.lower);
  range.upper = std::max(upper, other.upper);
  range.least = std::min(least, other.least);
  range.held = std::min(held, other.held);
  range.zero = zero || other.zero;
  range.infinite = infinite || other.infinite;
  range.nan = nan || other.nan;
  return range;
}

FloatRange FloatRange::meet(const FloatRange &other) const {
  FloatRange range;
  range.lower = std::max(lower, other.lower);
  range.upper = std::min(upper, other.upper);
  range.least = std::max(least, other.least);
  range.held = std::max(held, other.held);
  range.zero = zero && other.zero;
  range.infinite = infinite && other.infinite;
  range.nan = nan && other.nan;
  return tidy(range);
}

FloatRange FloatRange::in(const FloatFormat &format) const {
  if (!hasFinite() || least == kInfinity)
    return *this;
  FloatRange range = *this;
  const double smallest = std::ldexp(1.0, format.finest);
  // Rounding to nearest keeps order, so that the ends' neighbours in the format hold all of it.
  auto neighbour = [&](double x, double (*direction)(double)) {
    if (x == 0 || std::isinf(x))
      return x;
    double unit = std::ldexp(1.0, std::max(exponentOf(x) - format.precision + 1, format.finest));
    return direction(x / unit) * unit;
  };
  range.lower = neighbour(lower, std::floor);
  range.upper = neighbour(upper, std::ceil);
  range.zero |= least < smallest;
  range.least = std::max(least < smallest ? smallest : neighbour(least, std::floor), smallest);
  // What is representable stays the multiple that it was, and what is rounded becomes one of its unit: of the larger one in either case.
  range.held = std::max({held, exponentOf(range.least) - format.precision + 1, format.finest});
  if (range.upper > format.largest || range.lower < -format.largest) {
    range.infinite |= format.infinite;
    range.nan |= !format.infinite && format.nan;
    range.upper = std::clamp(range.upper, -format.largest, format.largest);
    range.lower = std::clamp(range.lower, -format.largest, format.largest);
  }
  return tidy(range);
}

FloatRange FloatRange::within(double share) const {
  if (!hasFinite() || least == kInfinity)
    return *this;
  FloatRange range = *this;
  auto moved = [&](double x, double outward) { return x == 0 ? x : std::nextafter(x + outward * share * std::fabs(x), outward * kInfinity); };
  range.lower = moved(lower, -1);
  range.upper = moved(upper, 1);
  range.least = std::nextafter(least * (1 - share), 0.0);
  range.held = kHeldAny;
  return tidy(range);
}

void FloatRange::print(llvm::raw_ostream &os) const {
  if (isEmpty()) {
    os << "nothing";
    return;
  }
  bool any = false;
  auto separate = [&]() -> llvm::raw_ostream & { return std::exchange(any, true) ? os << " or " : os; };
  if (hasFinite())
    separate() << "[" << llvm::format("%g", lower) << ", " << llvm::format("%g", upper) << "]";
  if (infinite)
    separate() << "inf";
  if (nan)
    separate() << "nan";
}

//===----------------------------------------------------------------------===//
// Arithmetic
//===----------------------------------------------------------------------===//

namespace {

/// A real number between two neighbouring doubles, or a double.
struct Enclosed {
  double low, high;
};

Enclosed enclose(double rounded, bool exact) {
  if (exact && std::isfinite(rounded))
    return {rounded, rounded};
  if (std::isinf(rounded)) // of finite numbers: it overflowed
    return rounded > 0 ? Enclosed{kLargest, kInfinity} : Enclosed{-kInfinity, -kLargest};
  return {std::nextafter(rounded, -kInfinity), std::nextafter(rounded, kInfinity)};
}

Enclosed add(double a, double b) {
  if (std::isinf(a) || std::isinf(b)) { // ends of ranges without an end
    double sum = std::isinf(a) ? a : b;
    return {sum, sum};
  }
  double sum = a + b, other = sum - a;
  return enclose(sum, (a - (sum - other)) + (b - other) == 0);
}

Enclosed multiply(double a, double b) {
  if (a == 0 || b == 0)
    return {0, 0};
  double product = a * b;
  if (std::isinf(a) || std::isinf(b))
    return {product, product};
  return enclose(product, std::fma(a, b, -product) == 0 && std::fabs(product) > 0x1p-960); // the remainder of tiny products is itself rounded
}

Enclosed divide(double a, double b) {
  if (a == 0 || std::isinf(b))
    return {0, 0};
  double quotient = a / b;
  if (std::isinf(a))
    return {quotient, quotient};
  return enclose(quotient, std::fma(quotient, b, -a) == 0 && std::fabs(quotient) > 0x1p-960 && std::fabs(a) > 0x1p-960);
}

void include(FloatRange &range, Enclosed end) {
  range.lower = std::min(range.lower, end.low);
  range.upper = std::max(range.upper, end.high);
}

} // namespace

FloatRange aligned::operator-(const FloatRange &a) {
  FloatRange range = a;
  range.lower = -a.upper;
  range.upper = -a.lower;
  return range;
}

FloatRange aligned::operator+(const FloatRange &a, const FloatRange &b) {
  FloatRange range;
  range.infinite = a.infinite || b.infinite;
  range.nan = a.nan || b.nan || (a.infinite && b.infinite);
  if (!a.hasFinite() || !b.hasFinite())
    return range;
  range.lower = add(a.lower, b.lower).low;
  range.upper = add(a.upper, b.upper).high;
  range.held = std::min(a.held, b.held); // a sum of multiples is one
  range.least = 0;
  range.zero = true;
  // Of unlike magnitudes, or of one sign, the larger one says how small a sum can be.
  if (!a.zero || !b.zero) {
    double apart = std::max(a.smallest() - b.magnitude(), b.smallest() - a.magnitude());
    if (apart > 0) {
      range.zero = false;
      range.least = std::nextafter(apart, 0.0);
    }
  }
  if ((a.lower >= 0 && b.lower >= 0) || (a.upper <= 0 && b.upper <= 0)) {
    range.zero = a.zero && b.zero;
    range.least = std::max(range.least, std::min(a.least, b.least));
  } else if (a.least == kInfinity || b.least == kInfinity) { // one is zero
    range.zero = a.zero && b.zero;
    range.least = std::min(a.least, b.least);
  }
  return tidy(range);
}

FloatRange aligned::operator-(const FloatRange &a, const FloatRange &b) { return a + -b; }

FloatRange aligned::operator*(const FloatRange &a, const FloatRange &b) {
  FloatRange range;
  range.infinite = a.infinite || b.infinite;
  range.nan = a.nan || b.nan || (a.infinite && b.zero) || (b.infinite && a.zero);
  if (!a.hasFinite() || !b.hasFinite())
    return range;
  for (double x : {a.lower, a.upper})
    for (double y : {b.lower, b.upper})
      include(range, multiply(x, y));
  range.zero = a.zero || b.zero;
  range.held = std::max(a.held, b.held) == FloatRange::kHeldNothing ? FloatRange::kHeldNothing : std::max(a.held + b.held, FloatRange::kHeldAny);
  range.least = a.least == kInfinity || b.least == kInfinity ? kInfinity : multiply(a.least, b.least).low;
  return tidy(range);
}

FloatRange aligned::operator/(const FloatRange &a, const FloatRange &b) {
  FloatRange range;
  range.infinite = a.infinite || b.zero;
  range.nan = a.nan || b.nan || (a.zero && b.zero) || (a.infinite && b.infinite);
  if (b.infinite && a.hasFinite()) {
    range.zero = true;
    range.lower = range.upper = 0;
  }
  if (!a.hasFinite() || b.least == kInfinity) // no finite quotients but those by infinity
    return tidy(range);
  range.zero |= a.zero;
  range.held = FloatRange::kHeldAny;
  // The divisors' ends: the extremes and the values next to zero on either side.
  for (double x : {a.lower, a.upper})
    for (double y : {b.lower, b.upper, b.least, -b.least})
      if (y != 0 && y >= b.lower && y <= b.upper)
        include(range, divide(x, y));
  if (b.least == 0) { // divisors of any size
    if ((a.upper > 0 && b.upper > 0) || (a.lower < 0 && b.lower < 0))
      range.upper = kInfinity;
    if ((a.lower < 0 && b.upper > 0) || (a.upper > 0 && b.lower < 0))
      range.lower = -kInfinity;
  }
  range.least = a.least == kInfinity ? kInfinity : divide(a.least, b.magnitude()).low;
  return tidy(range);
}

FloatRange aligned::abs(const FloatRange &a) {
  if (!a.hasFinite())
    return a;
  FloatRange range = a;
  range.upper = std::max(std::fabs(a.lower), std::fabs(a.upper));
  range.lower = a.lower > 0 ? a.lower : a.upper < 0 ? -a.upper : a.smallest();
  return tidy(range);
}

FloatRange aligned::maximum(const FloatRange &a, const FloatRange &b, bool number) {
  // What either may be, cut off below where the other one always is above.
  FloatRange range = a.join(b);
  range.nan = number ? a.nan && b.nan : a.nan || b.nan;
  for (const FloatRange *each : {&a, &b})
    if (!number && !each->hasFinite() && !each->infinite) { // always a NaN, or nothing
      range = FloatRange();
      range.nan = each->nan;
      return range;
    }
  bool certain = !a.infinite && !b.infinite && a.hasFinite() && b.hasFinite() && (!number || (!a.nan && !b.nan));
  if (certain)
    range.lower = std::max(a.lower, b.lower);
  return tidy(range);
}

FloatRange aligned::minimum(const FloatRange &a, const FloatRange &b, bool number) { return -maximum(-a, -b, number); }

FloatRange aligned::rising(const FloatRange &a, double (*function)(double), double share, const FloatRange *domain) {
  FloatRange inside = domain ? a.meet(*domain) : a, range;
  range.nan = a.nan || (domain && (a.lower < domain->lower || a.upper > domain->upper || a.infinite));
  if (inside.hasFinite()) {
    range.lower = function(inside.lower);
    range.upper = function(inside.upper);
    range.zero = true;
    range.least = 0;
    range.held = FloatRange::kHeldAny;
  }
  for (double x : {-kInfinity, kInfinity}) {
    if (double y = function(x); a.infinite && std::isfinite(y))
      range = range.join(FloatRange::of(std::min(y, 0.0), std::max(y, 0.0)));
    else
      range.infinite |= a.infinite && std::isinf(y);
  }
  range.infinite |= range.hasFinite() && (std::isinf(range.upper) || std::isinf(range.lower));
  return tidy(range).within(share);
}

FloatRange aligned::sum(const FloatRange &init, const FloatRange &a, int64_t count, const FloatFormat &format) {
  if (count == 0 || a.isEmpty() || init.isEmpty())
    return init;
  FloatRange range = init.join(init + a);
  range.nan |= init.infinite || a.infinite; // of either sign
  if (!a.hasFinite() || !init.hasFinite())
    return range.in(format);
  double values = count < 0 ? kInfinity : static_cast<double>(count);
  auto times = [&](double x) { return x == 0 ? 0 : x * values; };
  // Each value goes through at most `count` roundings. A sum never falls below itself by a value that isn't negative, rounded or not.
  double growth = std::expm1(values * std::ldexp(1.01, -format.precision)), rounding = (init.magnitude() + times(a.magnitude())) * growth;
  if (a.lower < 0)
    range.lower = std::isnan(rounding) ? -kInfinity : (init.lower + times(a.lower) - rounding) * (1 - std::copysign(1e-12, init.lower + times(a.lower)));
  if (a.upper > 0)
    range.upper = std::isnan(rounding) ? kInfinity : (init.upper + times(a.upper) + rounding) * (1 + std::copysign(1e-12, init.upper + times(a.upper)));
  range.lower = std::min(range.lower, init.lower);
  range.upper = std::max(range.upper, init.upper);
  range.zero = true;
  range.least = 0;
  range.held = std::min(init.held, a.held);
  range = tidy(range).in(format);
  bool mixed = std::min(init.lower, a.lower) < 0 && std::max(init.upper, a.upper) > 0;
  range.nan |= range.infinite && mixed; // parts may overflow on either side
  return range;
}
