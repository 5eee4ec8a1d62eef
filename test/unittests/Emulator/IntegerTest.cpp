// Integers, predicates and moves against C++ at odd values.

#include "Support.h"

#include <algorithm>

using namespace aligned::emulator;

namespace {

template <typename T> class Integers : public testing::Test {};
using IntegerTypes = testing::Types<uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t>;
TYPED_TEST_SUITE(Integers, IntegerTypes);

template <typename T> using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;

TYPED_TEST(Integers, Arithmetic) {
  using T = TypeParam;
  std::string t = typeName<T>();
  expectBinary<T, T, T>("add." + t + " %d, %a, %b;", [](T a, T b) { return T(Wide<T>(a) + b); });
  expectBinary<T, T, T>("sub." + t + " %d, %a, %b;", [](T a, T b) { return T(Wide<T>(a) - b); });
  expectBinary<T, T, T>("mul.lo." + t + " %d, %a, %b;", [](T a, T b) { return T(Wide<T>(a) * b); });
  expectBinary<T, T, T>("mul.hi." + t + " %d, %a, %b;", [](T a, T b) { return T(Wide<T>(a) * b >> (sizeof(T) * 8)); });
  expectTernary<T, T, T, T>("mad.lo." + t + " %d, %a, %b, %c;", [](T a, T b, T c) { return T(Wide<T>(a) * b + c); });
  expectTernary<T, T, T, T>("mad.hi." + t + " %d, %a, %b, %c;",
                            [](T a, T b, T c) { return T((Wide<T>(a) * b >> (sizeof(T) * 8)) + c); });
  expectBinary<T, T, T>("min." + t + " %d, %a, %b;", [](T a, T b) { return std::min(a, b); });
  expectBinary<T, T, T>("max." + t + " %d, %a, %b;", [](T a, T b) { return std::max(a, b); });
  std::vector<T> divisors = oddValues<T>();
  divisors.erase(std::remove(divisors.begin(), divisors.end(), T(0)), divisors.end());
  expectBinary<T, T, T>(
      "div." + t + " %d, %a, %b;", [](T a, T b) { return T(Wide<T>(a) / b); }, oddValues<T>(), divisors);
  expectBinary<T, T, T>(
      "rem." + t + " %d, %a, %b;", [](T a, T b) { return T(Wide<T>(a) % b); }, oddValues<T>(), divisors);
  using Unsigned = std::make_unsigned_t<T>;
  expectTernary<Unsigned, T, T, Unsigned>("sad." + t + " %d, %a, %b, %c;", [](T a, T b, Unsigned c) {
    return Unsigned(c + Unsigned(a < b ? Wide<T>(b) - a : Wide<T>(a) - b));
  });
  if (std::is_signed_v<T>) {
    expectUnary<T, T>("neg." + t + " %d, %a;", [](T a) { return T(-Wide<T>(a)); });
    expectUnary<T, T>("abs." + t + " %d, %a;", [](T a) { return T(a < 0 ? -Wide<T>(a) : Wide<T>(a)); });
  }
}

TYPED_TEST(Integers, Comparisons) {
  using T = TypeParam;
  auto check = [](const std::string &name, auto f) {
    expectBinary<uint32_t, T, T>("setp." + name + "." + typeName<T>() + " %q0, %a, %b;\nselp.u32 %d, 1, 0, %q0;",
                                 [=](T a, T b) { return uint32_t(f(a, b)); });
  };
  check("eq", [](T a, T b) { return a == b; });
  check("ne", [](T a, T b) { return a != b; });
  check("lt", [](T a, T b) { return a < b; });
  check("le", [](T a, T b) { return a <= b; });
  check("gt", [](T a, T b) { return a > b; });
  check("ge", [](T a, T b) { return a >= b; });
}

TYPED_TEST(Integers, Shifts) {
  using T = TypeParam;
  std::string bits = std::to_string(sizeof(T) * 8);
  expectBinary<T, T, uint32_t>("shl.b" + bits + " %d, %a, %b;",
                               [](T a, uint32_t b) { return b >= sizeof(T) * 8 ? T(0) : T(std::make_unsigned_t<T>(a) << b); });
  expectBinary<T, T, uint32_t>("shr." + typeName<T>() + " %d, %a, %b;",
                               [](T a, uint32_t b) { return T(Wide<T>(a) >> std::min(b, 100u)); });
}

template <typename T, typename W> void checkWide() {
  expectBinary<W, T, T>("mul.wide." + typeName<T>() + " %d, %a, %b;", [](T a, T b) { return W(Wide<T>(a) * b); });
  expectTernary<W, T, T, W>("mad.wide." + typeName<T>() + " %d, %a, %b, %c;",
                            [](T a, T b, W c) { return W(Wide<T>(a) * b + c); });
}
TEST(Integer, WideProducts) {
  checkWide<uint16_t, uint32_t>();
  checkWide<int16_t, int32_t>();
  checkWide<uint32_t, uint64_t>();
  checkWide<int32_t, int64_t>();
}

TEST(Integer, Saturation) {
  auto clamp = [](int64_t x) { return int32_t(std::min<int64_t>(std::max<int64_t>(x, INT32_MIN), INT32_MAX)); };
  expectBinary<int32_t, int32_t, int32_t>("add.sat.s32 %d, %a, %b;", [=](int32_t a, int32_t b) { return clamp(int64_t(a) + b); });
  expectBinary<int32_t, int32_t, int32_t>("sub.sat.s32 %d, %a, %b;", [=](int32_t a, int32_t b) { return clamp(int64_t(a) - b); });
  expectBinary<int32_t, int32_t, int32_t>("min.relu.s32 %d, %a, %b;",
                                          [=](int32_t a, int32_t b) { return std::max(std::min(a, b), 0); });
}

TEST(Integer, TwentyFourBits) {
  auto cut = [](int32_t a) { return int64_t(int32_t(uint32_t(a) << 8) >> 8); };
  expectBinary<int32_t, int32_t, int32_t>("mul24.lo.s32 %d, %a, %b;",
                                          [=](int32_t a, int32_t b) { return int32_t(cut(a) * cut(b)); });
  expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>("mad24.hi.u32 %d, %a, %b, %c;", [=](uint32_t a, uint32_t b, uint32_t c) {
    return uint32_t((uint64_t(a & 0xffffff) * (b & 0xffffff)) >> 16) + c;
  });
}

TEST(Integer, Carries) {
  // 64 bits by halves.
  auto halves = [](const std::string &low, const std::string &high) {
    return "mov.b64 {%r1, %r2}, %a; mov.b64 {%r3, %r4}, %b;\n" + low + " %r5, %r1, %r3;\n" + high +
           " %r6, %r2, %r4;\nmov.b64 %d, {%r5, %r6};";
  };
  expectBinary<uint64_t, uint64_t, uint64_t>(halves("add.cc.u32", "addc.u32"), [](uint64_t a, uint64_t b) { return a + b; });
  expectBinary<uint64_t, uint64_t, uint64_t>(halves("sub.cc.u32", "subc.u32"), [](uint64_t a, uint64_t b) { return a - b; });
  expectBinary<uint64_t, uint64_t, uint64_t>(
      "mov.b64 {%r1, %r2}, %a; mov.b64 {%r3, %r4}, %b;\nmul.lo.u32 %r5, %r1, %r3;\nmul.hi.u32 %r6, %r1, %r3;\n"
      "mad.lo.cc.u32 %r7, %r1, %r4, %r6;\nmadc.hi.u32 %r8, %r1, %r4, 0;\n"
      "mad.lo.cc.u32 %r7, %r2, %r3, %r7;\nmov.b64 %d, {%r5, %r7};",
      [](uint64_t a, uint64_t b) { return a * b; });
}

TEST(Integer, Logic) {
  expectBinary<uint32_t, uint32_t, uint32_t>("and.b32 %d, %a, %b;", [](uint32_t a, uint32_t b) { return a & b; });
  expectBinary<uint64_t, uint64_t, uint64_t>("or.b64 %d, %a, %b;", [](uint64_t a, uint64_t b) { return a | b; });
  expectBinary<uint16_t, uint16_t, uint16_t>("xor.b16 %d, %a, %b;", [](uint16_t a, uint16_t b) { return uint16_t(a ^ b); });
  expectUnary<uint64_t, uint64_t>("not.b64 %d, %a;", [](uint64_t a) { return ~a; });
  expectUnary<uint32_t, uint32_t>("cnot.b32 %d, %a;", [](uint32_t a) { return uint32_t(a == 0); });
  for (unsigned table : {0x00u, 0xffu, 0xf8u, 0x96u, 0xe8u, 0x6au, 0x01u, 0x80u})
    expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>(
        "lop3.b32 %d, %a, %b, %c, " + std::to_string(table) + ";", [=](uint32_t a, uint32_t b, uint32_t c) {
          uint32_t result = 0;
          for (unsigned i = 0; i < 32; ++i)
            result |= (table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i;
          return result;
        });
}

TEST(Integer, BitFields) {
  expectUnary<uint32_t, uint32_t>("popc.b32 %d, %a;", [](uint32_t a) {
    uint32_t n = 0;
    for (; a; a &= a - 1)
      ++n;
    return n;
  });
  expectUnary<uint32_t, uint64_t>("popc.b64 %d, %a;", [](uint64_t a) {
    uint32_t n = 0;
    for (; a; a &= a - 1)
      ++n;
    return n;
  });
  auto leading = [](uint64_t a, unsigned width) {
    unsigned n = 0;
    while (n < width && !(a >> (width - 1 - n) & 1))
      ++n;
    return n;
  };
  expectUnary<uint32_t, uint32_t>("clz.b32 %d, %a;", [=](uint32_t a) { return leading(a, 32); });
  expectUnary<uint32_t, uint64_t>("clz.b64 %d, %a;", [=](uint64_t a) { return leading(a, 64); });
  expectUnary<uint32_t, uint32_t>("bfind.u32 %d, %a;", [=](uint32_t a) { return a ? 31 - leading(a, 32) : ~0u; });
  expectUnary<uint32_t, int32_t>("bfind.shiftamt.s32 %d, %a;", [=](int32_t a) {
    auto b = uint32_t(a < 0 ? ~a : a);
    return b ? leading(b, 32) : ~0u;
  });
  expectUnary<uint32_t, int64_t>("bfind.s64 %d, %a;", [=](int64_t a) {
    auto b = uint64_t(a < 0 ? ~a : a);
    return b ? 63 - leading(b, 64) : ~0u;
  });
  expectUnary<uint32_t, uint32_t>("brev.b32 %d, %a;", [](uint32_t a) {
    uint32_t result = 0;
    for (unsigned i = 0; i < 32; ++i)
      result |= (a >> i & 1) << (31 - i);
    return result;
  });
  expectUnary<uint64_t, uint64_t>("brev.b64 %d, %a;", [](uint64_t a) {
    uint64_t result = 0;
    for (unsigned i = 0; i < 64; ++i)
      result |= (a >> i & 1) << (63 - i);
    return result;
  });
  std::vector<uint32_t> places = {0, 1, 4, 7, 8, 16, 24, 28, 31, 32, 33, 64, 255, 256 + 3};
  auto extract = [](uint64_t a, unsigned width, bool isSigned, uint32_t b, uint32_t c) {
    unsigned position = b & 255, length = c & 255, last = width - 1;
    bool sign = isSigned && length && (a >> std::min(position + length - 1, last) & 1);
    uint64_t result = 0;
    for (unsigned i = 0; i < width; ++i)
      result |= uint64_t(i < length && position + i <= last ? a >> (position + i) & 1 : sign) << i;
    return result;
  };
  expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>(
      "bfe.u32 %d, %a, %b, %c;", [=](uint32_t a, uint32_t b, uint32_t c) { return uint32_t(extract(a, 32, false, b, c)); },
      oddValues<uint32_t>(), places, places);
  expectTernary<int32_t, int32_t, uint32_t, uint32_t>(
      "bfe.s32 %d, %a, %b, %c;", [=](int32_t a, uint32_t b, uint32_t c) { return int32_t(extract(uint32_t(a), 32, true, b, c)); },
      oddValues<int32_t>(), places, places);
  expectTernary<int64_t, int64_t, uint32_t, uint32_t>(
      "bfe.s64 %d, %a, %b, %c;", [=](int64_t a, uint32_t b, uint32_t c) { return int64_t(extract(uint64_t(a), 64, true, b, c)); },
      oddValues<int64_t>(), places, places);
  for (auto [position, length] : {std::pair(0, 8), {4, 4}, {28, 8}, {31, 1}, {32, 4}, {5, 0}, {0, 32}, {3, 40}})
    expectBinary<uint32_t, uint32_t, uint32_t>("bfi.b32 %d, %a, %b, " + std::to_string(position) + ", " + std::to_string(length) +
                                                   ";",
                                               [=, position = position, length = length](uint32_t a, uint32_t b) {
                                                 for (int i = 0; i < length && position + i < 32; ++i)
                                                   b = (b & ~(1u << (position + i))) | (a >> i & 1) << (position + i);
                                                 return b;
                                               });
  expectBinary<uint32_t, uint32_t, uint32_t>(
      "bmsk.clamp.b32 %d, %a, %b;",
      [](uint32_t a, uint32_t b) {
        uint32_t result = 0;
        for (uint32_t i = 0; i < 32; ++i)
          if (i >= a && i - a < b)
            result |= 1u << i;
        return result;
      },
      places, places);
}

TEST(Integer, FunnelShifts) {
  auto check = [](const std::string &name, bool left, bool wraps) {
    expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>("shf." + name + ".b32 %d, %a, %b, %c;",
                                                          [=](uint32_t a, uint32_t b, uint32_t c) {
                                                            uint32_t n = wraps ? c % 32 : std::min(c, 32u);
                                                            if (left)
                                                              return n == 0 ? b : n == 32 ? a : b << n | a >> (32 - n);
                                                            return n == 0 ? a : n == 32 ? b : b << (32 - n) | a >> n;
                                                          });
  };
  check("l.wrap", true, true);
  check("l.clamp", true, false);
  check("r.wrap", false, true);
  check("r.clamp", false, false);
}

TEST(Integer, Permutations) {
  auto bytes = [](uint32_t a, uint32_t b, unsigned i) { return (i < 4 ? a >> (8 * i) : b >> (8 * (i - 4))) & 255; };
  auto reference = [=](uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result = 0;
    for (unsigned i = 0; i < 4; ++i) {
      unsigned selector = c >> (4 * i) & 15;
      uint32_t byte = bytes(a, b, selector & 7);
      result |= (selector & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
    }
    return result;
  };
  expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>("prmt.b32 %d, %a, %b, %c;", reference, oddValues<uint32_t>(),
                                                        oddValues<uint32_t>(),
                                                        {0x3210, 0x7654, 0x2504, 0x1404, 0x8888, 0xfedc, 0xffff5410, 0x0123});
  for (const char *selector : {"0x2504U", "0x3514U", "0x7632", "0xBA98", "0x10001"})
    expectBinary<uint32_t, uint32_t, uint32_t>(
        "prmt.b32 %d, %a, %b, " + std::string(selector) + ";",
        [=](uint32_t a, uint32_t b) { return reference(a, b, uint32_t(std::strtoul(selector, nullptr, 0))); });
  // By mode, for selectors 0 to 3: the bytes of the tables in the manual, the lowest first.
  struct Row {
    const char *name;
    unsigned bytes[4][4];
  };
  for (const Row &row : {Row{"f4e", {{0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}}},
                         {"b4e", {{0, 7, 6, 5}, {1, 0, 7, 6}, {2, 1, 0, 7}, {3, 2, 1, 0}}},
                         {"rc8", {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}}},
                         {"ecl", {{0, 1, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {3, 3, 3, 3}}},
                         {"ecr", {{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 1, 2, 2}, {0, 1, 2, 3}}},
                         {"rc16", {{0, 1, 0, 1}, {2, 3, 2, 3}, {0, 1, 0, 1}, {2, 3, 2, 3}}}})
    expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>("prmt.b32." + std::string(row.name) + " %d, %a, %b, %c;",
                                                          [&](uint32_t a, uint32_t b, uint32_t c) {
                                                            uint32_t result = 0;
                                                            for (unsigned i = 0; i < 4; ++i)
                                                              result |= bytes(a, b, row.bytes[c][i]) << (8 * i);
                                                            return result;
                                                          },
                                                          oddValues<uint32_t>(), oddValues<uint32_t>(), {0, 1, 2, 3});
}

template <typename A, typename B> void checkDots(const std::string &types) {
  expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>("dp4a." + types + " %d, %a, %b, %c;",
                                                        [](uint32_t a, uint32_t b, uint32_t c) {
                                                          for (unsigned i = 0; i < 4; ++i)
                                                            c += uint32_t(int(A(a >> (8 * i))) * int(B(b >> (8 * i))));
                                                          return c;
                                                        });
  using Wider = std::conditional_t<std::is_signed_v<A>, int16_t, uint16_t>;
  expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>(
      "dp2a.lo." + types + " %d, %a, %b, %c;", [](uint32_t a, uint32_t b, uint32_t c) {
        return c + uint32_t(int(Wider(a)) * int(B(b))) + uint32_t(int(Wider(a >> 16)) * int(B(b >> 8)));
      });
  expectTernary<uint32_t, uint32_t, uint32_t, uint32_t>(
      "dp2a.hi." + types + " %d, %a, %b, %c;", [](uint32_t a, uint32_t b, uint32_t c) {
        return c + uint32_t(int(Wider(a)) * int(B(b >> 16))) + uint32_t(int(Wider(a >> 16)) * int(B(b >> 24)));
      });
}
TEST(Integer, DotProducts) {
  checkDots<uint8_t, uint8_t>("u32.u32");
  checkDots<uint8_t, int8_t>("u32.s32");
  checkDots<int8_t, uint8_t>("s32.u32");
  checkDots<int8_t, int8_t>("s32.s32");
}

TEST(Integer, Pairs) {
  auto pairwise = [](auto f) {
    return [=](uint32_t a, uint32_t b) { return uint32_t(uint16_t(f(a, b))) | uint32_t(uint16_t(f(a >> 16, b >> 16))) << 16; };
  };
  expectBinary<uint32_t, uint32_t, uint32_t>("add.u16x2 %d, %a, %b;", pairwise([](uint32_t a, uint32_t b) { return a + b; }));
  expectBinary<uint32_t, uint32_t, uint32_t>("min.s16x2 %d, %a, %b;",
                                             pairwise([](uint32_t a, uint32_t b) { return std::min(int16_t(a), int16_t(b)); }));
  expectBinary<uint32_t, uint32_t, uint32_t>("max.u16x2 %d, %a, %b;",
                                             pairwise([](uint32_t a, uint32_t b) { return std::max(uint16_t(a), uint16_t(b)); }));
}

TEST(Integer, Predicates) {
  // Joined with another predicate, with both results.
  for (auto [name, f] : {std::pair<const char *, bool (*)(bool, bool)>{"and", [](bool a, bool b) { return a && b; }},
                         {"or", [](bool a, bool b) { return a || b; }},
                         {"xor", [](bool a, bool b) { return a != b; }}}) {
    for (bool negated : {false, true})
      expectTernary<uint32_t, int32_t, int32_t, uint32_t>(
          "setp.ne.u32 %q2, %c, 0;\nsetp.lt." + std::string(name) + ".s32 %q0|%q1, %a, %b, " + (negated ? "!" : "") +
              "%q2;\nselp.u32 %r1, 1, 0, %q0;\nselp.u32 %r2, 2, 0, %q1;\nor.b32 %d, %r1, %r2;",
          [=, f = f](int32_t a, int32_t b, uint32_t c) {
            bool other = (c != 0) != negated;
            return uint32_t(f(a < b, other)) | uint32_t(f(a >= b, other)) << 1;
          },
          oddValues<int32_t>(), oddValues<int32_t>(), {0, 1});
    expectBinary<uint32_t, uint32_t, uint32_t>(
        "setp.ne.u32 %q0, %a, 0;\nsetp.ne.u32 %q1, %b, 0;\n" + std::string(name) +
            ".pred %q2, %q0, %q1;\nnot.pred %q3, %q2;\nmov.pred %q4, %q3;\nselp.u32 %d, 3, 5, %q4;",
        [=, f = f](uint32_t a, uint32_t b) { return f(a, b) ? 5u : 3u; });
  }
  // Guards, either way, and what is written under them.
  expectUnary<uint32_t, uint32_t>("setp.gt.u32 %q0, %a, 100;\nmov.u32 %d, 7;\n@%q0 mov.u32 %d, 8;\n@!%q0 add.u32 %d, %d, 20;",
                                  [](uint32_t a) { return a > 100 ? 8u : 27u; });
  expectBinary<uint32_t, uint32_t, uint32_t>("set.lo.u32.u32 %d, %a, %b;",
                                             [](uint32_t a, uint32_t b) { return a < b ? ~0u : 0u; });
  expectTernary<uint32_t, uint32_t, uint32_t, int32_t>("slct.u32.s32 %d, %a, %b, %c;",
                                                       [](uint32_t a, uint32_t b, int32_t c) { return c >= 0 ? a : b; });
}

TEST(Integer, Moves) {
  expectUnary<uint64_t, uint64_t>("mov.b64 {%r1, %r2}, %a;\nmov.b64 %d, {%r2, %r1};",
                                  [](uint64_t a) { return a << 32 | a >> 32; });
  expectUnary<uint32_t, uint32_t>("mov.b32 {%h1, _}, %a;\nmov.b32 {_, %h2}, %a;\nmov.b32 %d, {%h2, %h1};",
                                  [](uint32_t a) { return a << 16 | a >> 16; });
  expectUnary<uint64_t, uint64_t>("mov.b64 {%h1, %h2, %h3, %h4}, %a;\nmov.b64 %d, {%h4, %h3, %h2, %h1};",
                                  [](uint64_t a) { return a << 48 | (a & 0xffff0000) << 16 | (a >> 16 & 0xffff0000) | a >> 48; });
  // A register that is wider than the type: truncated when read, extended when written.
  expectUnary<uint32_t, uint32_t>("{ .reg .b8 %x; cvt.u8.u32 %x, %a; cvt.u32.u8 %d, %x; }", [](uint32_t a) { return a & 255; });
  expectUnary<uint32_t, uint32_t>("mov.u32 %d, 0f3F800000;", [](uint32_t) { return 0x3f800000u; });
  expectUnary<uint64_t, uint32_t>("mov.u64 %d, -2;", [](uint32_t) { return uint64_t(-2); });
  expectUnary<uint64_t, uint32_t>("mov.f64 %d, 0d3FF8000000000000;", [](uint32_t) { return uint64_t(0x3ff8000000000000); });
}

TEST(Integer, SpecialRegisters) {
  const char *names[] = {"%laneid",      "%warpid",      "%nwarpid", "%lanemask_eq", "%lanemask_lt", "%lanemask_le",
                         "%lanemask_gt", "%lanemask_ge", "%ntid.x",  "%nctaid.y",    "%tid.y",       "%ctaid.x",
                         "%ctaid.y",     "%ntid.y",      "%nsmid",   "%envreg3"};
  std::string body = "mov.u32 %r0, %tid.y;\nmov.u32 %r1, %ntid.x;\nmad.lo.u32 %r0, %r0, %r1, %tid;\nmov.u32 %r3, "
                     "%ctaid.y;\nmad.lo.u32 %r0, %r3, 80, %r0;\nmad.wide.u32 %w0, %r0, 64, %p0;\n";
  int count = 0;
  for (const char *name : names)
    body += "mov.u32 %r2, " + std::string(name) + ";\nst.global.u32 [%w0+" + std::to_string(4 * count++) + "], %r2;\n";
  Machine machine;
  auto program = loaded(machine, kernel(1, body));
  uint64_t out = machine.allocate(2 * 80 * 64);
  ASSERT_TRUE(machine.launch(*program, "k", {1, 2}, {40, 2}, Arguments().add(out))) << machine.error();
  auto got = download<uint32_t>(machine, out, 2 * 80 * 16);
  for (uint32_t block = 0; block < 2; ++block)
    for (uint32_t t = 0; t < 80; ++t) {
      uint32_t lane = t % 32, bit = 1u << lane;
      uint32_t want[] = {lane, t / 32, 3, bit, bit - 1, bit | (bit - 1), ~(bit | (bit - 1)), ~(bit - 1), 40, 2, t / 40,
                         0,    block,  2, 4,   0};
      for (int i = 0; i < 16; ++i)
        EXPECT_EQ(got[(block * 80 + t) * 16 + i], want[i]) << names[i] << " of thread " << t;
    }
}

} // namespace
