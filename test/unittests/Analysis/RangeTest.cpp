// Ranges form a lattice, and what arithmetic makes of them holds what it makes of the values in them.
#include "aligned/Analysis/Range.h"

#include "llvm/ADT/APFloat.h"

#include "gtest/gtest.h"

#include <cmath>
#include <random>

using namespace aligned;

namespace {

const FloatFormat kHalf{11, -24, 65504, true, true}, kBrain{8, -133, 0x1.FEp127, true, true}, kSingle{24, -149, 0x1.FFFFFEp127, true, true};

double toHalf(double x) { return static_cast<double>(static_cast<_Float16>(x)); }
double toBrain(double x) {
  llvm::APFloat value(x);
  bool lost;
  value.convert(llvm::APFloat::BFloat(), llvm::APFloat::rmNearestTiesToEven, &lost);
  return value.convertToDouble();
}
double toSingle(double x) { return static_cast<double>(static_cast<float>(x)); }

struct Rounding {
  FloatFormat format;
  double (*round)(double);
};

struct Random {
  std::mt19937_64 engine{1};
  double uniform(double low, double high) { return std::uniform_real_distribution(low, high)(engine); }
  int below(int count) { return std::uniform_int_distribution(0, count - 1)(engine); }
  /// Halves of all sizes, often the odd ones.
  double value() {
    static const double odd[] = {0, -0.0, 1, -1, 65504, -65504, 0x1p-24, -0x1p-14, INFINITY, -INFINITY, NAN};
    return below(4) ? toHalf(std::ldexp(uniform(-1, 1), below(30) - 14)) : odd[below(11)];
  }
  FloatRange range() {
    FloatRange range;
    for (int count = 1 + below(4); count > 0; --count) {
      double x = value();
      range = range.join(FloatRange::constant(llvm::APFloat(x)));
    }
    return range;
  }
  double in(const FloatRange &range) {
    std::vector<double> all;
    if (range.nan)
      all.push_back(NAN);
    if (range.infinite)
      all.insert(all.end(), {INFINITY, -INFINITY});
    if (range.zero)
      all.push_back(0);
    for (int tries = 0; tries < 8 && range.hasFinite(); ++tries) {
      double ends[] = {range.lower, range.upper, toHalf(uniform(range.lower, range.upper)), toHalf(std::ldexp(uniform(-1, 1), below(30) - 14))};
      for (double x : ends)
        if (range.contains(x))
          all.push_back(x);
    }
    return all[below(all.size())];
  }
};

TEST(Range, JoinIsALattice) {
  Random random;
  for (int i = 0; i < 20000; ++i) {
    FloatRange a = random.range(), b = random.range(), c = random.range();
    EXPECT_EQ(a.join(b), b.join(a));
    EXPECT_EQ(a.join(b).join(c), a.join(b.join(c)));
    EXPECT_EQ(a.join(a), a);
    EXPECT_EQ(a.join(FloatRange()), a);
    EXPECT_TRUE(a.join(b).contains(a));
    EXPECT_TRUE(FloatRange::all(kHalf).contains(a));
    FloatRange both = a.meet(b);
    double x = random.in(a);
    EXPECT_TRUE(a.contains(x));
    if (b.contains(x)) {
      EXPECT_TRUE(both.contains(x)) << x;
    }
  }
}

using Binary = FloatRange (*)(const FloatRange &, const FloatRange &);
struct Operator {
  const char *name;
  Binary ranges;
  double (*values)(double, double);
};
const Operator kOperators[] = {
    {"add", [](const FloatRange &a, const FloatRange &b) { return a + b; }, [](double a, double b) { return a + b; }},
    {"subtract", [](const FloatRange &a, const FloatRange &b) { return a - b; }, [](double a, double b) { return a - b; }},
    {"multiply", [](const FloatRange &a, const FloatRange &b) { return a * b; }, [](double a, double b) { return a * b; }},
    {"divide", [](const FloatRange &a, const FloatRange &b) { return a / b; }, [](double a, double b) { return a / b; }},
    {"maximum", [](const FloatRange &a, const FloatRange &b) { return maximum(a, b, false); },
     [](double a, double b) { return std::isnan(a) || std::isnan(b) ? NAN : std::max(a, b); }},
    {"maxnum", [](const FloatRange &a, const FloatRange &b) { return maximum(a, b, true); }, [](double a, double b) { return std::fmax(a, b); }},
    {"minimum", [](const FloatRange &a, const FloatRange &b) { return minimum(a, b, false); },
     [](double a, double b) { return std::isnan(a) || std::isnan(b) ? NAN : std::min(a, b); }},
    {"minnum", [](const FloatRange &a, const FloatRange &b) { return minimum(a, b, true); }, [](double a, double b) { return std::fmin(a, b); }},
};

TEST(Range, ArithmeticHoldsItsResults) {
  Random random;
  for (int i = 0; i < 40000; ++i) {
    FloatRange a = random.range(), b = random.range();
    double x = random.in(a), y = random.in(b);
    for (const Operator &op : kOperators) {
      FloatRange range = op.ranges(a, b);
      double exact = op.values(x, y); // of halves; quotients are doubles next to them
      for (auto [format, round] : {Rounding{kHalf, toHalf}, {kBrain, toBrain}, {kSingle, toSingle}}) {
        double rounded = round(exact);
        ASSERT_TRUE(range.in(format).contains(rounded)) << op.name << "(" << x << ", " << y << ") = " << rounded << " in " << format.precision << " bits";
      }
    }
  }
}

TEST(Range, ArithmeticIsMonotone) {
  Random random;
  for (int i = 0; i < 20000; ++i) {
    FloatRange a = random.range(), b = random.range(), wider = a.join(random.range());
    for (const Operator &op : kOperators) {
      ASSERT_TRUE(op.ranges(wider, b).in(kHalf).contains(op.ranges(a, b).in(kHalf))) << op.name;
      ASSERT_TRUE(op.ranges(b, wider).in(kHalf).contains(op.ranges(b, a).in(kHalf))) << op.name;
    }
    ASSERT_TRUE(abs(wider).contains(abs(a)));
    ASSERT_TRUE((-wider).contains(-a));
    ASSERT_TRUE(sum(b, wider, 7, kHalf).contains(sum(b, a, 7, kHalf)));
    ASSERT_TRUE(sum(b, a, 70, kHalf).contains(sum(b, a, 7, kHalf)));
    ASSERT_TRUE(wider.in(kBrain).contains(a.in(kBrain)));
  }
}

TEST(Range, FunctionsHoldTheirResults) {
  Random random;
  const FloatRange positive = FloatRange::of(0, INFINITY);
  struct Function {
    double (*of)(double);
    const FloatRange *domain;
  };
  for (int i = 0; i < 20000; ++i) {
    FloatRange a = random.range();
    double x = random.in(a);
    for (Function f : {Function{std::exp, nullptr}, {std::exp2, nullptr}, {std::tanh, nullptr}, {std::erf, nullptr}, {std::sqrt, &positive}, {std::log, &positive}})
      for (auto [format, round] : {Rounding{kHalf, toHalf}, {kSingle, toSingle}})
        ASSERT_TRUE(rising(a, f.of, 0x1p-20, f.domain).in(format).contains(round(f.of(x)))) << x;
    ASSERT_TRUE(abs(a).contains(std::fabs(x)));
  }
}

/// In any order, and with every addition rounded.
TEST(Range, SumsHoldTheirResults) {
  Random random;
  for (int i = 0; i < 3000; ++i) {
    FloatRange start = random.range(), a = random.range();
    int count = random.below(300);
    std::vector<double> values{toHalf(random.in(start))};
    bool alike = random.below(2);
    double same = random.in(a);
    for (int k = 0; k < count; ++k)
      values.push_back(alike ? same : random.in(a));
    FloatRange range = sum(start, a, count, kHalf);
    double inOrder = values[0];
    for (int k = 1; k <= count; ++k)
      inOrder = toHalf(inOrder + values[k]);
    ASSERT_TRUE(range.contains(inOrder)) << inOrder << " of " << count;
    while (values.size() > 1) { // as a tree
      std::vector<double> half;
      for (size_t k = 0; k < values.size(); k += 2)
        half.push_back(k + 1 < values.size() ? toHalf(values[k] + values[k + 1]) : values[k]);
      values = half;
    }
    ASSERT_TRUE(range.contains(values[0])) << values[0] << " of " << count;
    ASSERT_TRUE(sum(start, a, -1, kHalf).contains(range));
  }
}

TEST(Range, SaysWhatItHolds) {
  FloatRange near = FloatRange::of(1024, 2047).in(kHalf);
  EXPECT_EQ(near.held, 0);
  EXPECT_EQ(near.least, 1024);
  EXPECT_FALSE(near.contains(1024.5));
  EXPECT_EQ(FloatRange::of(-1, 1).in(kHalf).held, -24);
  EXPECT_EQ(FloatRange::constant(llvm::APFloat(0.75)).held, -2);
  EXPECT_EQ((FloatRange::constant(llvm::APFloat(0.75)) * FloatRange::constant(llvm::APFloat(6.0))).held, -1);
  FloatRange sum = near + FloatRange::constant(llvm::APFloat(0.0));
  EXPECT_EQ(sum, near);
  EXPECT_FALSE((FloatRange::of(3, 4) - FloatRange::of(1, 2)).zero);
  EXPECT_EQ(FloatRange::of(0, 1e6).in(kHalf).upper, 65504);
  EXPECT_TRUE(FloatRange::of(0, 1e6).in(kHalf).infinite);
}

} // namespace
