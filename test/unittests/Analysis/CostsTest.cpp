// Planes or dense: what the model of costs says, and what it refuses.
#include "aligned/Analysis/Costs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

using namespace aligned;

namespace {

/// 1000 + 10 n dense; 2000 + 2 n + bits / 64 of planes, at every corner.
Costs flat() {
  Costs costs{10, {}};
  for (StepCosts &corner : costs.corners)
    corner = {1000, 10, 2000, 2, 1.0 / 64};
  return costs;
}

constexpr AttentionShape kShape{64, 64, 1};

TEST(Costs, AreTheirNumbers) {
  std::vector<double> numbers;
  for (size_t i = 0; i < Costs::kNumbers; ++i)
    numbers.push_back(1 + double(i));
  std::optional<Costs> costs = Costs::of(numbers.data(), numbers.size());
  ASSERT_TRUE(costs);
  EXPECT_EQ(costs->numbers(), numbers);
  EXPECT_EQ(costs->readRate, 1);
  EXPECT_EQ(costs->corners[1].planesBit, 11);
  EXPECT_FALSE(Costs::of(numbers.data(), numbers.size() - 1));
  for (double bad : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    numbers[7] = bad;
    EXPECT_FALSE(Costs::of(numbers.data(), numbers.size())) << bad;
  }
}

TEST(Costs, AreExactAtCornersAndLinearBetween) {
  Costs costs = flat();
  for (size_t i = 0; i < costs.corners.size(); ++i)
    costs.corners[i] = {100.0 * i + 1, 10.0 * i + 2, 7.0 * i + 3, 3.0 * i + 4, 0.5 * i + 5};
  for (auto [i, corner] : {std::pair(0, Costs::kCorners[0]), {3, Costs::kCorners[3]}, {5, Costs::kCorners[5]}}) {
    StepCosts at = costs.at({corner.headDim, corner.headDim, corner.queryRows});
    EXPECT_DOUBLE_EQ(at.denseStep, 100.0 * i + 1);
    EXPECT_DOUBLE_EQ(at.planesBit, 0.5 * i + 5);
  }
  EXPECT_DOUBLE_EQ(costs.at({96, 96, 1}).denseToken, 12);       // half way from 2 to 22
  EXPECT_DOUBLE_EQ(costs.at({64, 128, 1}).denseToken, 12);      // the mean of both sides
  EXPECT_DOUBLE_EQ(costs.at({64, 64, 7}).denseToken, 22);       // as far again as from 1 row to 4
  EXPECT_DOUBLE_EQ(costs.at({16, 16, 1}).denseStep, 1.0 / 4);   // the line says below 0
}

TEST(Costs, BitsFallWithLengthAndTolerance) {
  for (double tolerance : {0x1p-12, 0x1p-9, 0x1p-6})
    for (int64_t tokens = 64; tokens < 1 << 20; tokens *= 4) {
      ReadBits now = usualBits(tokens, tolerance), longer = usualBits(4 * tokens, tolerance), looser = usualBits(tokens, 2 * tolerance);
      EXPECT_TRUE(now.key >= 4 && now.key <= 16 && now.value >= 0 && now.value <= 16) << now.key << " " << now.value;
      EXPECT_LT(longer.key, now.key);
      EXPECT_LT(longer.value, now.value);
      EXPECT_LT(looser.key, now.key);
      EXPECT_LT(looser.value, now.value);
    }
  EXPECT_EQ(usualBits(1000, 0).key, 16);
  EXPECT_EQ(usualBits(1000, 0).value, 16);
  // Measured over a captured cache of 1024 tokens (SmolLM2 135M): 7.6 and 7.3, 5.2 and 3.9, 4.4 and 2.3.
  for (auto [tolerance, key, value] : {std::tuple(0x1p-12, 7.6, 7.3), {0x1p-9, 5.2, 3.9}, {0x1p-7, 4.4, 2.3}}) {
    EXPECT_NEAR(usualBits(1024, tolerance).key, key, 0.6);
    EXPECT_NEAR(usualBits(1024, tolerance).value, value, 0.6);
  }
}

TEST(Costs, DenseUpToIsWhereTimesMeet) {
  const Costs costs = flat();
  EXPECT_DOUBLE_EQ(costs.dense(kShape, 100), 2000);
  EXPECT_DOUBLE_EQ(costs.planes(kShape, 100, {6, 3}), 2000 + 100 * (2 + 5));
  for (double tolerance : {0x1p-9, 0x1p-7, 0x1p-6}) {
    const int64_t tokens = costs.denseUpTo(kShape, tolerance);
    auto isFaster = [&](int64_t n) { return costs.planes(kShape, n, usualBits(n, tolerance)) < 0.75 * costs.dense(kShape, n); };
    EXPECT_EQ(tokens % 64, 0);
    EXPECT_FALSE(isFaster(tokens));
    EXPECT_TRUE(isFaster(tokens + 64));
  }
  EXPECT_EQ(costs.denseUpTo(kShape, 0), Costs::kMostTokens); // 2 + 12 + 16 a token, not 10
  Costs never = flat();
  for (StepCosts &corner : never.corners)
    corner.planesStep = 1;
  EXPECT_EQ(never.denseUpTo(kShape, 0x1p-3), 0);
}

} // namespace
