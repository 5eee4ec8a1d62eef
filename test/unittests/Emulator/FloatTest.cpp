// Floating point against C++, and what is narrower than a float against exact arithmetic that is rounded once.

#include "Support.h"

#include <algorithm>
#include <cfenv>

using namespace aligned::emulator;

namespace {

#if defined(__SIZEOF_FLOAT128__)
using Exact = __float128;
#else
using Exact = long double;
#endif

float flushed(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }

TEST(Float, Single) {
  expectBinary<float, float, float>("add.f32 %d, %a, %b;", [](float a, float b) { return a + b; });
  expectBinary<float, float, float>("add.rn.f32 %d, %a, %b;", [](float a, float b) { return a + b; });
  expectBinary<float, float, float>("sub.f32 %d, %a, %b;", [](float a, float b) { return a - b; });
  expectBinary<float, float, float>("mul.f32 %d, %a, %b;", [](float a, float b) { return a * b; });
  expectBinary<float, float, float>("div.rn.f32 %d, %a, %b;", [](float a, float b) { return a / b; });
  expectBinary<float, float, float>("div.full.f32 %d, %a, %b;", [](float a, float b) { return a / b; });
  expectTernary<float, float, float, float>("fma.rn.f32 %d, %a, %b, %c;",
                                            [](float a, float b, float c) { return std::fma(a, b, c); });
  expectTernary<float, float, float, float>("mad.rn.f32 %d, %a, %b, %c;",
                                            [](float a, float b, float c) { return std::fma(a, b, c); });
  expectUnary<float, float>("neg.f32 %d, %a;", [](float a) { return -a; });
  expectUnary<float, float>("abs.f32 %d, %a;", [](float a) { return std::fabs(a); });
  expectUnary<float, float>("rcp.rn.f32 %d, %a;", [](float a) { return 1 / a; });
  expectUnary<float, float>("sqrt.rn.f32 %d, %a;", [](float a) { return std::sqrt(a); });
  expectBinary<float, float, float>("copysign.f32 %d, %a, %b;", [](float a, float b) { return std::copysign(b, a); },
                                    {0.0f, -0.0f, 1.0f, -3.5f, -INFINITY}, {0.0f, 2.0f, -5.0f, INFINITY});
}

TEST(Float, FusedIsRoundedOnce) {
  std::mt19937 random(3);
  std::vector<float> a, b, c;
  for (int i = 0; i < 40; ++i) {
    a.push_back(std::ldexp(float(random()), int(random() % 20) - 40));
    b.push_back(std::ldexp(float(random()), int(random() % 20) - 40));
    c.push_back(-a[i] * b[i]); // what is left is the rounding of the product
  }
  expectTernary<float, float, float, float>(
      "fma.rn.f32 %d, %a, %b, %c;", [](float a, float b, float c) { return std::fma(a, b, c); }, a, b, c);
}

TEST(Float, Flushing) {
  expectBinary<float, float, float>("add.ftz.f32 %d, %a, %b;", [](float a, float b) { return flushed(flushed(a) + flushed(b)); });
  expectBinary<float, float, float>("mul.ftz.f32 %d, %a, %b;", [](float a, float b) { return flushed(flushed(a) * flushed(b)); });
  expectTernary<float, float, float, float>("fma.rn.ftz.f32 %d, %a, %b, %c;", [](float a, float b, float c) {
    return flushed(std::fma(flushed(a), flushed(b), flushed(c)));
  });
  expectBinary<uint32_t, float, float>("setp.lt.ftz.f32 %q0, %a, %b;\nselp.u32 %d, 1, 0, %q0;",
                                       [](float a, float b) { return uint32_t(flushed(a) < flushed(b)); });
}

TEST(Float, Saturation) {
  auto saturated = [](float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; };
  expectBinary<float, float, float>("add.sat.f32 %d, %a, %b;", [=](float a, float b) { return saturated(a + b); });
  expectTernary<float, float, float, float>("fma.rn.sat.f32 %d, %a, %b, %c;",
                                            [=](float a, float b, float c) { return saturated(std::fma(a, b, c)); });
}

TEST(Float, Directions) {
  for (auto [name, mode] : {std::pair("rz", FE_TOWARDZERO), {"rm", FE_DOWNWARD}, {"rp", FE_UPWARD}}) {
    auto under = [mode = mode](auto f) {
      return [=](auto... x) {
        std::fesetround(mode);
        volatile float result = f(x...);
        std::fesetround(FE_TONEAREST);
        return float(result);
      };
    };
    std::string suffix = "." + std::string(name) + ".f32 %d, %a, %b";
    expectBinary<float, float, float>("add" + suffix + ";", under([](volatile float a, volatile float b) { return a + b; }));
    expectBinary<float, float, float>("sub" + suffix + ";", under([](volatile float a, volatile float b) { return a - b; }));
    expectBinary<float, float, float>("mul" + suffix + ";", under([](volatile float a, volatile float b) { return a * b; }));
    expectBinary<float, float, float>("div" + suffix + ";", under([](volatile float a, volatile float b) { return a / b; }));
    expectTernary<float, float, float, float>(
        "fma" + suffix + ", %c;", under([](volatile float a, volatile float b, volatile float c) { return std::fma(a, b, c); }));
    expectUnary<float, float>("sqrt." + std::string(name) + ".f32 %d, %a;",
                              under([](volatile float a) { return std::sqrt(float(a)); }));
  }
}

TEST(Float, Double) {
  expectBinary<double, double, double>("add.f64 %d, %a, %b;", [](double a, double b) { return a + b; });
  expectBinary<double, double, double>("sub.rn.f64 %d, %a, %b;", [](double a, double b) { return a - b; });
  expectBinary<double, double, double>("mul.f64 %d, %a, %b;", [](double a, double b) { return a * b; });
  expectBinary<double, double, double>("div.rn.f64 %d, %a, %b;", [](double a, double b) { return a / b; });
  expectTernary<double, double, double, double>("fma.rn.f64 %d, %a, %b, %c;",
                                                [](double a, double b, double c) { return std::fma(a, b, c); });
  expectUnary<double, double>("sqrt.rn.f64 %d, %a;", [](double a) { return std::sqrt(a); });
  expectUnary<double, double>("abs.f64 %d, %a;", [](double a) { return std::fabs(a); });
  expectUnary<double, double>("neg.f64 %d, %a;", [](double a) { return -a; });
}

TEST(Float, Extrema) {
  // One NaN gives the other operand, and -0 is less than 0.
  auto least = [](auto a, auto b) { return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? a : b) : std::min(a, b); };
  auto greatest = [](auto a, auto b) { return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? b : a) : std::max(a, b); };
  expectBinary<float, float, float>("min.f32 %d, %a, %b;", least);
  expectBinary<float, float, float>("max.f32 %d, %a, %b;", greatest);
  expectBinary<double, double, double>("min.f64 %d, %a, %b;", least);
  expectBinary<double, double, double>("max.f64 %d, %a, %b;", greatest);
  expectBinary<float, float, float>("max.NaN.f32 %d, %a, %b;",
                                    [=](float a, float b) { return a != a || b != b ? NAN : greatest(a, b); });
  expectBinary<float, float, float>("min.NaN.f32 %d, %a, %b;",
                                    [=](float a, float b) { return a != a || b != b ? NAN : least(a, b); });
  expectTernary<float, float, float, float>("max.f32 %d, %a, %b, %c;",
                                            [=](float a, float b, float c) { return greatest(greatest(a, b), c); });
  expectBinary<float, float, float>("min.xorsign.abs.f32 %d, %a, %b;", [=](float a, float b) {
    float x = least(std::fabs(a), std::fabs(b));
    return std::signbit(a) != std::signbit(b) ? -x : x;
  });
}

TEST(Float, Comparisons) {
  auto check = [](const std::string &name, auto f) {
    auto test = [=](auto a, auto b) { return uint32_t(f(a, b)); };
    std::string tail = " %q0, %a, %b;\nselp.u32 %d, 1, 0, %q0;";
    expectBinary<uint32_t, float, float>("setp." + name + ".f32" + tail, test);
    expectBinary<uint32_t, double, double>("setp." + name + ".f64" + tail, test);
  };
  check("eq", [](auto a, auto b) { return a == b; });
  check("ne", [](auto a, auto b) { return a < b || a > b; });
  check("lt", [](auto a, auto b) { return a < b; });
  check("le", [](auto a, auto b) { return a <= b; });
  check("gt", [](auto a, auto b) { return a > b; });
  check("ge", [](auto a, auto b) { return a >= b; });
  check("equ", [](auto a, auto b) { return !(a < b || a > b); });
  check("neu", [](auto a, auto b) { return a != b; });
  check("ltu", [](auto a, auto b) { return !(a >= b); });
  check("leu", [](auto a, auto b) { return !(a > b); });
  check("gtu", [](auto a, auto b) { return !(a <= b); });
  check("geu", [](auto a, auto b) { return !(a < b); });
  check("num", [](auto a, auto b) { return a == a && b == b; });
  check("nan", [](auto a, auto b) { return a != a || b != b; });
}

TEST(Float, Classes) {
  for (auto [name, f] : {std::pair<const char *, bool (*)(float)>{"finite", [](float a) { return bool(std::isfinite(a)); }},
                         {"infinite", [](float a) { return bool(std::isinf(a)); }},
                         {"number", [](float a) { return a == a; }},
                         {"notanumber", [](float a) { return a != a; }},
                         {"normal", [](float a) { return bool(std::isnormal(a)); }},
                         {"subnormal", [](float a) { return std::fpclassify(a) == FP_SUBNORMAL; }}})
    expectUnary<uint32_t, float>("testp." + std::string(name) + ".f32 %q0, %a;\nselp.u32 %d, 1, 0, %q0;",
                                 [f = f](float a) { return uint32_t(f(a)); });
}

TEST(Float, Functions) {
  std::vector<float> values = oddValues<float>();
  auto check = [&](const std::string &name, auto f, double error) {
    auto got = evaluate<float>(name + ".f32 %d, %a;", values, std::vector<uint32_t>{0}, std::vector<uint32_t>{0});
    for (size_t i = 0; i < values.size(); ++i) {
      double want = f(double(values[i]));
      if (want != want)
        EXPECT_NE(got[i], got[i]) << name << " of " << values[i];
      else if (std::isinf(float(want)) || want == 0)
        EXPECT_EQ(got[i], float(want)) << name << " of " << values[i];
      else
        EXPECT_NEAR(got[i], want, std::fabs(want) * error + 0x1p-149) << name << " of " << values[i];
    }
  };
  check(
      "ex2.approx", [](double a) { return std::exp2(a); }, 0x1p-22);
  check(
      "lg2.approx", [](double a) { return std::log2(a); }, 0x1p-22);
  check(
      "rsqrt.approx", [](double a) { return 1 / std::sqrt(a); }, 0x1p-22);
  check(
      "rcp.approx", [](double a) { return 1 / a; }, 0x1p-23);
  check(
      "sqrt.approx", [](double a) { return std::sqrt(a); }, 0x1p-23);
  check(
      "sin.approx", [](double a) { return std::sin(a); }, 0x1p-20);
  check(
      "cos.approx", [](double a) { return std::cos(a); }, 0x1p-20);
  check(
      "tanh.approx", [](double a) { return std::tanh(a); }, 0x1p-11);
  auto tiny = [](double a) { return std::fabs(a) < 0x1p-126 ? std::copysign(0.0, a) : a; };
  check("ex2.approx.ftz", [=](double a) { return tiny(std::exp2(tiny(a))); }, 0x1p-22);
  check("lg2.approx.ftz", [=](double a) { return tiny(std::log2(tiny(a))); }, 0x1p-22);
  check("sqrt.approx.ftz", [=](double a) { return tiny(std::sqrt(tiny(a))); }, 0x1p-22);
  check("rsqrt.approx.ftz", [=](double a) { return tiny(1 / std::sqrt(tiny(a))); }, 0x1p-22);
  check("rcp.approx.ftz", [=](double a) { return tiny(1 / tiny(a)); }, 0x1p-22);
}

//===----------------------------------------------------------------------===//
// Sixteen bits
//===----------------------------------------------------------------------===//

struct Format {
  const char *name;
  int significand, least; // bits, exponent of the least normal number
  int greatest;
};
constexpr Format f16{"f16", 11, -14, 15}, bf16{"bf16", 8, -126, 127};

/// The number behind a pattern, by definition.
double decode(const Format &format, uint16_t bits) {
  int fractionBits = format.significand - 1;
  int fraction = bits & ((1 << fractionBits) - 1), field = (bits & 0x7fff) >> fractionBits;
  double sign = bits & 0x8000 ? -1 : 1;
  if (field == format.greatest - format.least + 2)
    return fraction ? NAN : sign * INFINITY;
  return sign *
         std::ldexp(fraction + (field ? std::ldexp(1, fractionBits) : 0), format.least - fractionBits + std::max(field - 1, 0));
}

/// The nearest pattern, ties to even: the two neighbours of an exact number are compared with it.
uint16_t encode(const Format &format, Exact x) {
  if (x != x)
    return 0x7fff;
  uint16_t sign = x < 0 || (x == 0 && std::signbit(double(x))) ? 0x8000 : 0;
  Exact magnitude = x < 0 ? -x : x;
  uint16_t low = 0, high = uint16_t((format.greatest - format.least + 2) << (format.significand - 1)); // zero, infinity
  while (high - low > 1) {
    uint16_t middle = uint16_t((low + high) / 2);
    (Exact(decode(format, middle)) <= magnitude ? low : high) = middle;
  }
  // As if the exponent went on.
  Exact below = decode(format, low), above = decode(format, high);
  if (std::isinf(double(above)))
    above = Exact(std::ldexp(1.0, format.greatest + 1));
  if (std::isinf(double(magnitude)))
    return sign | high;
  Exact half = (below + above) / 2;
  return sign | (magnitude < half || (magnitude == half && !(low & 1)) ? low : high);
}

std::vector<uint16_t> oddPatterns() {
  std::vector<uint16_t> values = {0,      0x8000, 1,      0x8001, 0x3c00, 0xbc00, 0x3f80, 0x7bff, 0xfbff, 0x7c00, 0xfc00,
                                  0x7f80, 0xff80, 0x7f7f, 0x7e01, 0x7fc1, 0x0400, 0x0080, 0x03ff, 0x007f, 0x3555, 0x5640};
  std::mt19937 random(9);
  for (int i = 0; i < 40; ++i)
    values.push_back(uint16_t(random()));
  for (int i = 0; i < 10; ++i)
    values.push_back(uint16_t(0x3c00 + random() % 2048));
  return values;
}

bool sameNumber(const Format &format, uint16_t a, uint16_t b) {
  return a == b || (std::isnan(decode(format, a)) && std::isnan(decode(format, b)));
}

/// Of single numbers, and of pairs whose upper half has the operands of another place.
template <typename F> void checkNarrow(const Format &format, const std::string &name, unsigned operands, F f, bool pairs = true) {
  std::vector<uint16_t> values = oddPatterns();
  std::vector<uint16_t> one = {0}, bs = operands > 1 ? values : one, cs = operands > 2 ? values : one;
  std::string arguments = operands == 1 ? " %d, %a;" : operands == 2 ? " %d, %a, %b;" : " %d, %a, %b, %c;";
  std::string suffix = "." + std::string(format.name);
  if (operands == 3)
    values.resize(30), bs.resize(30), cs.resize(30);
  auto got = evaluate<uint16_t>(name + suffix + arguments, values, bs, cs);
  auto want = [&](uint16_t a, uint16_t b, uint16_t c) {
    return encode(format, f(Exact(decode(format, a)), Exact(decode(format, b)), Exact(decode(format, c))));
  };
  for (size_t i = 0; i < got.size(); ++i) {
    uint16_t a = values[i / cs.size() / bs.size()], b = bs[i / cs.size() % bs.size()], c = cs[i % cs.size()];
    ASSERT_TRUE(sameNumber(format, got[i], want(a, b, c))) << name << suffix << std::hex << " of " << a << ", " << b << ", " << c
                                                           << ": got " << got[i] << ", expected " << want(a, b, c);
  }
  if (!pairs)
    return;
  auto doubled = [](const std::vector<uint16_t> &list) {
    std::vector<uint32_t> result;
    for (size_t i = 0; i < list.size(); ++i)
      result.push_back(uint32_t(list[i]) | uint32_t(list[(i * 7 + 3) % list.size()]) << 16);
    return result;
  };
  std::vector<uint32_t> as2 = doubled(values), bs2 = doubled(bs), cs2 = doubled(cs);
  auto both = evaluate<uint32_t>(name + suffix + "x2" + arguments, as2, bs2, cs2);
  for (size_t i = 0; i < both.size(); ++i) {
    uint32_t a = as2[i / cs2.size() / bs2.size()], b = bs2[i / cs2.size() % bs2.size()], c = cs2[i % cs2.size()];
    ASSERT_TRUE(sameNumber(format, uint16_t(both[i]), want(uint16_t(a), uint16_t(b), uint16_t(c))))
        << name << suffix << "x2, lower" << std::hex << both[i];
    ASSERT_TRUE(sameNumber(format, uint16_t(both[i] >> 16), want(uint16_t(a >> 16), uint16_t(b >> 16), uint16_t(c >> 16))))
        << name << suffix << "x2, upper " << std::hex << both[i];
  }
}

/// What is too far below the product for `Exact` still decides ties.
Exact fusedExactly(Exact a, Exact b, Exact c) {
  Exact product = a * b, magnitude = product < 0 ? -product : product;
  Exact least = magnitude * Exact(0x1p-60);
  if (std::isfinite(double(a)) && std::isfinite(double(b)) && c != 0 && (c < 0 ? -c : c) < least)
    c = c < 0 ? -least : least;
  return product + c;
}

TEST(Float, SixteenBits) {
  for (const Format &format : {f16, bf16}) {
    checkNarrow(format, "add", 2, [](Exact a, Exact b, Exact) { return a + b; });
    checkNarrow(format, "sub", 2, [](Exact a, Exact b, Exact) { return a - b; });
    checkNarrow(format, "mul", 2, [](Exact a, Exact b, Exact) { return a * b; });
    checkNarrow(format, "fma.rn", 3, fusedExactly);
    checkNarrow(format, "neg", 1, [](Exact a, Exact, Exact) { return -a; });
    checkNarrow(format, "abs", 1, [](Exact a, Exact, Exact) { return a < 0 || (a == 0 && std::signbit(double(a))) ? -a : a; });
    auto signedLess = [](Exact a, Exact b) { return a < b || (a == b && std::signbit(double(a))); };
    checkNarrow(format, "min", 2, [=](Exact a, Exact b, Exact) { return a != a ? b : b != b ? a : signedLess(a, b) ? a : b; });
    checkNarrow(format, "max", 2, [=](Exact a, Exact b, Exact) { return a != a ? b : b != b ? a : signedLess(a, b) ? b : a; });
    checkNarrow(format, "max.NaN", 2, [=](Exact a, Exact b, Exact) {
      return a != a ? a : b != b ? b : signedLess(a, b) ? b : a;
    });
  }
  auto saturated = [](Exact x) { return x > 0 ? (x < 1 ? x : Exact(1)) : Exact(0); }; // NaN becomes 0
  checkNarrow(f16, "add.sat", 2, [=](Exact a, Exact b, Exact) { return saturated(a + b); });
  checkNarrow(f16, "sub.sat", 2, [=](Exact a, Exact b, Exact) { return saturated(a - b); });
  checkNarrow(f16, "mul.sat", 2, [=](Exact a, Exact b, Exact) { return saturated(a * b); });
  checkNarrow(f16, "fma.rn.sat", 3, [=](Exact a, Exact b, Exact c) { return saturated(fusedExactly(a, b, c)); });
  checkNarrow(f16, "ex2.approx", 1, [](Exact a, Exact, Exact) { return Exact(std::exp2(double(a))); });
  checkNarrow(bf16, "fma.rn.relu", 3, [](Exact a, Exact b, Exact c) {
    Exact x = fusedExactly(a, b, c);
    return x > 0 || x != x ? x : Exact(0);
  });
}

TEST(Float, PairsOfSingles) {
  std::vector<uint64_t> values;
  for (float x : {0.0f, 1.0f, -2.5f, 1e-40f, 3e38f, 0.1f})
    for (float y : {7.0f, -0.3f, 1e10f}) {
      uint32_t a, b;
      std::memcpy(&a, &x, 4);
      std::memcpy(&b, &y, 4);
      values.push_back(a | uint64_t(b) << 32);
    }
  auto pairwise = [](auto f) {
    return [=](auto... x) {
      uint64_t result = 0;
      for (int half = 0; half < 2; ++half) {
        auto part = [&](uint64_t both) {
          uint32_t bits = uint32_t(both >> (32 * half));
          float value;
          std::memcpy(&value, &bits, 4);
          return value;
        };
        float y = f(part(x)...);
        uint32_t bits;
        std::memcpy(&bits, &y, 4);
        result |= uint64_t(bits) << (32 * half);
      }
      return result;
    };
  };
  expectBinary<uint64_t, uint64_t, uint64_t>("add.rn.f32x2 %d, %a, %b;", pairwise([](float a, float b) { return a + b; }), values,
                                             values);
  expectBinary<uint64_t, uint64_t, uint64_t>("mul.rn.f32x2 %d, %a, %b;", pairwise([](float a, float b) { return a * b; }), values,
                                             values);
  expectTernary<uint64_t, uint64_t, uint64_t, uint64_t>("fma.rn.f32x2 %d, %a, %b, %c;",
                                                        pairwise([](float a, float b, float c) { return std::fma(a, b, c); }),
                                                        values, values, values);
}

TEST(Float, SixteenBitComparisons) {
  std::vector<uint16_t> values = oddPatterns();
  for (const Format &format : {f16, bf16}) {
    auto got = evaluate<uint32_t>("setp.lt." + std::string(format.name) + " %q0, %a, %b;\nselp.u32 %d, 1, 0, %q0;", values,
                                  values, std::vector<uint32_t>{0});
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(got[i], uint32_t(decode(format, values[i / values.size()]) < decode(format, values[i % values.size()])));
    // Both halves at once; the operands of the upper ones are the other way round.
    got =
        evaluate<uint32_t>("mov.b32 %r1, {%a, %b}; mov.b32 %r2, {%b, %a};\nsetp.gtu." + std::string(format.name) +
                               "x2 %q0|%q1, %r1, %r2;\nselp.u32 %r3, 1, 0, %q0;\nselp.u32 %r4, 2, 0, %q1;\nor.b32 %d, %r3, %r4;",
                           values, values, std::vector<uint32_t>{0});
    for (size_t i = 0; i < got.size(); ++i) {
      double a = decode(format, values[i / values.size()]), b = decode(format, values[i % values.size()]);
      ASSERT_EQ(got[i], uint32_t(!(a <= b)) + 2 * uint32_t(!(b <= a)));
    }
    // A number for each half: 1, or all ones.
    std::string bodies = "mov.b32 %r1, {%a, %b}; mov.b32 %r2, {%b, %a};\nset.lt.";
    auto ones = evaluate<uint32_t>(bodies + format.name + "x2." + format.name + "x2 %d, %r1, %r2;", values, values, std::vector<uint32_t>{0});
    auto masks = evaluate<uint32_t>(bodies + "u32." + format.name + "x2 %d, %r1, %r2;", values, values, std::vector<uint32_t>{0});
    for (size_t i = 0; i < ones.size(); ++i) {
      double a = decode(format, values[i / values.size()]), b = decode(format, values[i % values.size()]);
      uint32_t one = encode(format, 1);
      ASSERT_EQ(ones[i], (a < b ? one : 0) | (b < a ? one << 16 : 0));
      ASSERT_EQ(masks[i], (a < b ? 0xffffu : 0) | (b < a ? 0xffff0000u : 0));
    }
  }
}

//===----------------------------------------------------------------------===//
// Conversions
//===----------------------------------------------------------------------===//

template <typename T> void checkToInteger() {
  auto limit = [](double x, bool wide) {
    using Limits = std::numeric_limits<T>;
    if (x != x)
      return wide ? T(uint64_t(1) << (sizeof(T) * 8 - 1)) : T(0);
    return x <= double(Limits::min()) ? Limits::min() : x >= double(Limits::max()) ? Limits::max() : T(x);
  };
  for (auto [name, f] : {std::pair<const char *, double (*)(double)>{"rni", [](double a) { return std::nearbyint(a); }},
                         {"rzi", [](double a) { return std::trunc(a); }},
                         {"rmi", [](double a) { return std::floor(a); }},
                         {"rpi", [](double a) { return std::ceil(a); }}}) {
    expectUnary<T, float>("cvt." + std::string(name) + "." + typeName<T>() + ".f32 %d, %a;",
                          [=, f = f](float a) { return limit(f(a), sizeof(T) == 8); });
    expectUnary<T, double>("cvt." + std::string(name) + "." + typeName<T>() + ".f64 %d, %a;",
                           [=, f = f](double a) { return limit(f(a), true); });
  }
}
TEST(Conversion, ToIntegers) {
  checkToInteger<int8_t>();
  checkToInteger<uint8_t>();
  checkToInteger<int16_t>();
  checkToInteger<uint16_t>();
  checkToInteger<int32_t>();
  checkToInteger<uint32_t>();
  checkToInteger<int64_t>();
  checkToInteger<uint64_t>();
}

template <typename T> void checkFromInteger() {
  expectUnary<float, T>("cvt.rn.f32." + typeName<T>() + " %d, %a;", [](T a) { return float(a); });
  expectUnary<double, T>("cvt.rn.f64." + typeName<T>() + " %d, %a;", [](T a) { return double(a); });
  for (auto [name, mode] : {std::pair("rz", FE_TOWARDZERO), {"rm", FE_DOWNWARD}, {"rp", FE_UPWARD}})
    expectUnary<float, T>("cvt." + std::string(name) + ".f32." + typeName<T>() + " %d, %a;", [mode = mode](T a) {
      std::fesetround(mode);
      volatile T from = a;
      volatile float result = float(from);
      std::fesetround(FE_TONEAREST);
      return float(result);
    });
  auto got = evaluate<uint16_t>("cvt.rn.f16." + typeName<T>() + " %d, %a;", oddValues<T>(), std::vector<uint32_t>{0},
                                std::vector<uint32_t>{0});
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_EQ(got[i], encode(f16, Exact(oddValues<T>()[i])));
}
TEST(Conversion, FromIntegers) {
  checkFromInteger<int32_t>();
  checkFromInteger<uint32_t>();
  checkFromInteger<int64_t>();
  checkFromInteger<uint64_t>();
  checkFromInteger<uint16_t>();
}

TEST(Conversion, BetweenIntegers) {
  expectUnary<uint64_t, int32_t>("cvt.s64.s32 %d, %a;", [](int32_t a) { return uint64_t(int64_t(a)); });
  expectUnary<uint64_t, uint32_t>("cvt.u64.u32 %d, %a;", [](uint32_t a) { return uint64_t(a); });
  expectUnary<uint32_t, uint64_t>("cvt.u32.u64 %d, %a;", [](uint64_t a) { return uint32_t(a); });
  expectUnary<uint32_t, uint32_t>("cvt.s32.s8 %d, %a;", [](uint32_t a) { return uint32_t(int32_t(int8_t(a))); });
  expectUnary<uint32_t, uint32_t>("cvt.u32.u16 %d, %a;", [](uint32_t a) { return a & 0xffff; });
  expectUnary<uint32_t, uint32_t>("cvt.s16.s8 %d, %a;",
                                  [](uint32_t a) { return uint32_t(int32_t(int8_t(a))); }); // sign into what is above
  expectUnary<uint32_t, uint32_t>("cvt.u8.u32 %d, %a;", [](uint32_t a) { return a & 255; });
  expectUnary<uint32_t, int32_t>("cvt.sat.u8.s32 %d, %a;", [](int32_t a) { return uint32_t(std::min(std::max(a, 0), 255)); });
  expectUnary<uint32_t, int32_t>("cvt.sat.s8.s32 %d, %a;", [](int32_t a) { return uint32_t(std::min(std::max(a, -128), 127)); });
  expectUnary<uint32_t, int64_t>("cvt.sat.u32.s64 %d, %a;",
                                 [](int64_t a) { return uint32_t(std::min<int64_t>(std::max<int64_t>(a, 0), 0xffffffff)); });
  expectTernary<uint32_t, int32_t, int32_t, uint32_t>(
      "cvt.pack.sat.u8.s32.b32 %d, %a, %b, %c;", [](int32_t a, int32_t b, uint32_t c) {
        auto cut = [](int32_t x) { return uint32_t(std::min(std::max(x, 0), 255)); };
        return c << 16 | cut(a) << 8 | cut(b);
      });
  expectBinary<uint32_t, int32_t, int32_t>("cvt.pack.sat.s16.s32 %d, %a, %b;", [](int32_t a, int32_t b) {
    auto cut = [](int32_t x) { return uint32_t(uint16_t(std::min(std::max(x, -32768), 32767))); };
    return cut(a) << 16 | cut(b);
  });
}

TEST(Conversion, BetweenFloats) {
  expectUnary<double, float>("cvt.f64.f32 %d, %a;", [](float a) { return double(a); });
  expectUnary<float, double>("cvt.rn.f32.f64 %d, %a;", [](double a) { return float(a); });
  expectUnary<float, float>("cvt.rni.f32.f32 %d, %a;", [](float a) { return std::nearbyint(a); });
  expectUnary<float, float>("cvt.rmi.f32.f32 %d, %a;", [](float a) { return std::floor(a); });
  expectUnary<float, float>("cvt.rpi.f32.f32 %d, %a;", [](float a) { return std::ceil(a); });
  expectUnary<float, float>("cvt.rzi.f32.f32 %d, %a;", [](float a) { return std::trunc(a); });
  expectUnary<float, float>("cvt.sat.f32.f32 %d, %a;", [](float a) { return a > 0 ? std::min(a, 1.0f) : 0.0f; });
  expectUnary<float, float>("cvt.ftz.f32.f32 %d, %a;", [](float a) { return flushed(a); });
}

TEST(Conversion, SixteenBits) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i)
    all[i] = uint16_t(i);
  std::vector<float> singles = oddValues<float>();
  for (uint16_t bits : oddPatterns())
    for (const Format &format : {f16, bf16})
      for (double near : {1.0, 1 + 0x1p-12, 1 - 0x1p-12, 1 + 0x1p-9, 1 - 0x1p-9, 1 + 0x1p-20})
        singles.push_back(float(decode(format, bits) * near));
  for (const Format &format : {f16, bf16}) {
    std::string name = format.name;
    expectUnary<float, uint16_t>(
        "cvt.f32." + name + " %d, %a;", [&](uint16_t a) { return float(decode(format, a)); }, all);
    auto got = evaluate<uint16_t>("cvt.rn." + name + ".f32 %d, %a;", singles, std::vector<uint32_t>{0}, std::vector<uint32_t>{0});
    auto down =
        evaluate<uint16_t>("cvt.rz." + name + ".f32 %d, %a;", singles, std::vector<uint32_t>{0}, std::vector<uint32_t>{0});
    auto positive =
        evaluate<uint16_t>("cvt.rn.relu." + name + ".f32 %d, %a;", singles, std::vector<uint32_t>{0}, std::vector<uint32_t>{0});
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_TRUE(sameNumber(format, got[i], encode(format, singles[i]))) << name << " of " << singles[i];
      ASSERT_TRUE(sameNumber(format, positive[i], singles[i] > 0 || singles[i] != singles[i] ? encode(format, singles[i]) : 0))
          << name << " of " << singles[i];
      if (singles[i] != singles[i])
        continue;
      // The greatest that is not greater in magnitude.
      double back = decode(format, down[i]), next = decode(format, uint16_t(down[i] + 1));
      ASSERT_TRUE(std::fabs(back) <= std::fabs(double(singles[i])) &&
                  (std::fabs(next) > std::fabs(double(singles[i])) || std::isinf(back)))
          << name << " of " << singles[i];
    }
    // Pairs: the first operand is the upper half.
    std::vector<float> few(singles.begin(), singles.begin() + 60);
    auto pairs = evaluate<uint32_t>("cvt.rn." + name + "x2.f32 %d, %a, %b;", few, few, std::vector<uint32_t>{0});
    for (size_t i = 0; i < pairs.size(); ++i) {
      ASSERT_TRUE(sameNumber(format, uint16_t(pairs[i] >> 16), encode(format, few[i / few.size()])));
      ASSERT_TRUE(sameNumber(format, uint16_t(pairs[i]), encode(format, few[i % few.size()])));
    }
  }
}

TEST(Conversion, EightBits) {
  // Every pattern to f16 and back, and what lies between two of them to the nearer one.
  struct Eight {
    const char *name;
    int fractionBits, least;
    unsigned greatest; // finite pattern
  };
  for (const Eight &format : {Eight{"e4m3", 3, -6, 0x7e}, Eight{"e5m2", 2, -14, 0x7b}}) {
    auto value = [&](unsigned bits) {
      unsigned fraction = bits & ((1u << format.fractionBits) - 1), field = bits >> format.fractionBits;
      return float(std::ldexp(double(fraction + (field ? 1u << format.fractionBits : 0)),
                              format.least - format.fractionBits + std::max(int(field) - 1, 0)));
    };
    std::vector<uint16_t> patterns;
    std::vector<float> exact, between;
    for (unsigned i = 0; i <= format.greatest; ++i) {
      patterns.push_back(uint16_t(i | (0x80 | i) << 8));
      exact.push_back(value(i));
      between.push_back((value(i) * 7 + value(i + 1)) / 8);
    }
    auto halves = evaluate<uint32_t>("cvt.rn.f16x2." + std::string(format.name) + "x2 %d, %a;", patterns,
                                     std::vector<uint32_t>{0}, std::vector<uint32_t>{0});
    auto back = evaluate<uint16_t>("cvt.rn.satfinite." + std::string(format.name) + "x2.f32 %d, %a, %b;", exact,
                                   std::vector<float>{-1e9f}, std::vector<uint32_t>{0});
    auto near = evaluate<uint16_t>("cvt.rn.satfinite." + std::string(format.name) + "x2.f32 %d, %a, %b;", between,
                                   std::vector<float>{0}, std::vector<uint32_t>{0});
    for (unsigned i = 0; i <= format.greatest; ++i) {
      EXPECT_EQ(decode(f16, uint16_t(halves[i])), value(i));
      EXPECT_EQ(decode(f16, uint16_t(halves[i] >> 16)), -value(i));
      EXPECT_EQ(back[i], i << 8 | 0x80 | format.greatest);
      EXPECT_EQ(near[i] >> 8, i);
    }
  }
}

TEST(Conversion, TensorFloats) {
  auto got = evaluate<uint32_t>("cvt.rna.tf32.f32 %d, %a;",
                                std::vector<float>{1.0f, 1 + 0x1p-11f, 1 + 0x1p-12f, -1 - 3 * 0x1p-11f, 0.1f},
                                std::vector<uint32_t>{0}, std::vector<uint32_t>{0});
  std::vector<uint32_t> want = {0x3f800000, 0x3f802000, 0x3f800000, 0xbf804000, 0x3dccc000};
  EXPECT_EQ(got, want); // a tie goes away from zero
}

} // namespace
