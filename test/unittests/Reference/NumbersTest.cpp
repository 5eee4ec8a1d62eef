// Conversions against hand-made numbers and against what rounding means: halfway points decide.

#include "aligned/Reference/Numbers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

using namespace aligned;

namespace {

TEST(Numbers, KnownHalves) {
  struct {
    uint16_t pattern;
    double value;
  } cases[] = {{0x3c00, 1}, {0x3555, 0.333251953125}, {0xc000, -2}, {0x7bff, 65504}, {0x0400, 0x1p-14}, {0x03ff, 0x3ffp-24}, {0x0001, 0x1p-24}};
  for (auto [pattern, value] : cases) {
    EXPECT_EQ(widen(pattern, Storage::Half), value);
    EXPECT_EQ(narrow(value, Storage::Half), pattern);
  }
  EXPECT_EQ(widen(0x7c00, Storage::Half), INFINITY);
  EXPECT_EQ(widen(0xfc00, Storage::Half), -INFINITY);
  EXPECT_TRUE(std::isnan(widen(0x7c01, Storage::Half)));
  EXPECT_TRUE(std::signbit(widen(0x8000, Storage::Half)));
}

TEST(Numbers, BFloatIsTheTopOfAFloat) {
  for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
    uint32_t bits = pattern << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    double wide = widen(uint16_t(pattern), Storage::BFloat16);
    ASSERT_TRUE(wide == value || (std::isnan(wide) && std::isnan(value))) << std::hex << pattern;
  }
}

TEST(Numbers, EveryPatternSurvives) {
  for (Storage storage : {Storage::Half, Storage::BFloat16})
    for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
      double value = widen(uint16_t(pattern), storage);
      if (std::isnan(value)) {
        ASSERT_TRUE(std::isnan(widen(narrow(value, storage), storage)));
      } else {
        ASSERT_EQ(narrow(value, storage), pattern);
      }
    }
}

/// The midpoint of two neighbours goes to the even one, all that is nearer to one of them goes there.
TEST(Numbers, RoundsToNearestEven) {
  for (auto [storage, infinity] : {std::pair(Storage::Half, 0x7c00), std::pair(Storage::BFloat16, 0x7f80)})
    for (int pattern = 0; pattern < infinity; ++pattern) {
      double below = widen(uint16_t(pattern), storage), step = pattern + 1 < infinity ? widen(uint16_t(pattern + 1), storage) - below
                                                                                     : below - widen(uint16_t(pattern - 1), storage);
      double middle = below + step / 2;
      ASSERT_EQ(narrow(middle, storage), pattern + pattern % 2);
      ASSERT_EQ(narrow(std::nextafter(middle, 0), storage), pattern);
      ASSERT_EQ(narrow(std::nextafter(middle, INFINITY), storage), pattern + 1);
      ASSERT_EQ(narrow(-middle, storage), (pattern + pattern % 2) | 0x8000);
    }
}

TEST(Numbers, BeyondTheGreatestIsInfinite) {
  EXPECT_EQ(narrow(1e300, Storage::Half), 0x7c00);
  EXPECT_EQ(narrow(-INFINITY, Storage::BFloat16), 0xff80);
  EXPECT_EQ(narrow(1e300, Storage::BFloat16), 0x7f80);
  EXPECT_EQ(narrow(1e-300, Storage::Half), 0);
}

} // namespace
