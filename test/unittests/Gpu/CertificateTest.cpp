// What kernels promise of a result (P4): no channel is off by more than the bound, and the expected error is of the size of the error.
#include "Step.h"

using namespace aligned;
using namespace aligned::test;

namespace {

class Certified : public Steps, public testing::WithParamInterface<Case> {};

TEST_P(Certified, ErrorsAreWithinTheBound) {
  Case c = GetParam();
  c.certified = true;
  const ProgramPtr program = kernelsOf(c).load();
  ASSERT_TRUE(program);
  double square = 0, expected = 0;
  for (int64_t tokens : c.tokens) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    const Inputs in(c, tokens);
    const Caches host = packed(c, in);
    const State got = decode(c, program, host.upload(program), in);
    ASSERT_EQ(got.error, "");
    for (int64_t row = 0; row < kRows; ++row) {
      const HeadInputs head = in.of(c, row, *host.key, *host.value);
      const std::vector<double> exact = exactAttention(head);
      for (int64_t h = 0; h < c.heads(); ++h) {
        const int64_t place = row * c.heads() + h;
        const float *number = &got.certificate[place * ALIGNED_CERTIFICATE_NUMBERS];
        const double weights = got.sum[place];
        if (!(weights > 0)) // nothing is promised of a row that is empty, or not a number
          continue;
        double largest = 0, error = 0, all = 0;
        bool isFinite = true;
        for (int64_t i = 0; i < c.valueDim; ++i) {
          const double want = exact[h * c.valueDim + i], off = got.out(place, i, c.valueDim) - want;
          isFinite = isFinite && std::isfinite(want);
          largest = std::max(largest, std::fabs(got.out(place, i, c.valueDim)));
          error = std::max(error, std::fabs(off));
          all += off * off;
        }
        if (!isFinite)
          continue;
        const double u = number[0] / weights;
        const double bound = std::min(((1 + u) * number[1] + u * number[2] + number[3]) / weights, number[5] + largest);
        EXPECT_LE(error, bound) << "row " << row << ", query row " << h;
        EXPECT_GT(bound, 0);
        const double reach = number[2] / weights;
        square += all;
        expected += (number[4] + double(number[6]) * number[6] + number[7] * reach * reach) / (weights * weights) * double(c.valueDim);
      }
    }
  }
  // In the mean over rows: expected errors are no smaller than a half, no larger than five times what errors are.
  EXPECT_LE(square, 4 * expected);
  EXPECT_GE(25 * square, expected);
}

INSTANTIATE_TEST_SUITE_P(
    Certificates, Certified,
    testing::Values(Case{"fast", 3, 64, 64, 1, "f16", "f16", {1, 65, 300}}, Case{"balanced", 8, 128, 80, 1, "f16", "f16", {300}}, Case{"tight", 5, 96, 64, 1, "bf16", "bf16", {200}},
                    Case{"exact", 3, 64, 64, 1, "f16", "f16", {300}}));

Case softcapped() {
  Case c{"balanced", 2, 64, 64, 1, "f16", "f16", {300}, "softcap 5.0"};
  c.softcap = 5;
  return c;
}
Case aside() {
  Case c{"balanced", 2, 64, 64, 1, "f16", "f16", {300}};
  c.content = Content::Aside;
  return c;
}
Case without() { // 8 bits of K, 4 of V
  Case c{"tight", 3, 64, 64, 1, "f16", "f16", {300}};
  c.keyResident = 2;
  c.valueResident = 1;
  return c;
}
/// A mask that is far larger than scores rounds them: to 2^-4 beside -1000000.
class MaskedFarOff : public Steps, public testing::WithParamInterface<Case> {};

TEST_P(MaskedFarOff, ErrorsAreWithinTheBound) {
  const Case &c = GetParam();
  const ProgramPtr program = kernelsOf(c).load();
  ASSERT_TRUE(program);
  for (int64_t tokens : {3, 9, 65}) {
    Inputs in(c, tokens);
    in.mask = Values(c.operand.element, tokens, [](int64_t) { return -1e6; });
    const Caches host = packed(c, in);
    const State got = decode(c, program, host.upload(program), in);
    ASSERT_EQ(got.error, "");
    for (int64_t row = 0; row < kRows; ++row) {
      const std::vector<double> exact = exactAttention(in.of(c, row, *host.key, *host.value));
      for (int64_t place = row * c.heads(); place < (row + 1) * c.heads() && in.lengths[row / kKvHeads]; ++place) {
        const float *number = &got.certificate[place * ALIGNED_CERTIFICATE_NUMBERS];
        const double u = number[0] / got.sum[place], bound = ((1 + u) * number[1] + u * number[2] + number[3]) / got.sum[place];
        for (int64_t i = 0; i < c.valueDim; ++i)
          EXPECT_LE(std::fabs(got.out(place, i, c.valueDim) - exact[(place - row * c.heads()) * c.valueDim + i]), bound) << tokens << " tokens, query row " << place;
      }
    }
  }
}

Case farOff(const char *policy, const char *element, double softcap) {
  Case c{policy, 3, 64, 64, 1, "f16", "f16"};
  if (softcap)
    c.sight = "softcap " + std::to_string(softcap);
  c.softcap = softcap;
  c.operand.element = element;
  c.certified = true;
  return c;
}
INSTANTIATE_TEST_SUITE_P(Masks, MaskedFarOff, testing::Values(farOff("exact", "f32", 0), farOff("exact", "f32", 5), farOff("tight", "bf16", 0)));

INSTANTIATE_TEST_SUITE_P(Others, Certified, testing::Values(softcapped(), aside(), without()));

} // namespace
