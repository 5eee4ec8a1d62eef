// One long sequence of one kv head over dense tensors: its tokens are attended to in splits, each by whoever has time.
#include "Kernels.h"

using namespace aligned;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Case {
  const char *name, *element, *said, *options;
};

class DenseSplits : public testing::TestWithParam<Case> {
protected:
  Spec spec() const {
    Spec spec{48, 32, 3, 1, 1, 1, GetParam().said, std::string("format=dense policy=exact ") + GetParam().options};
    spec.keys = spec.values = "";
    spec.element = GetParam().element;
    return spec;
  }
  bool isGuarded() const { return std::string(GetParam().said).find("masked_zero") != std::string::npos; }
};

TEST_P(DenseSplits, AreAttentionOverAllTokens) {
  const Kernel &kernel = kernelOf(spec());
  ASSERT_TRUE(kernel) << aligned_last_error();
  const int32_t before = aligned_rt_threads();
  for (int64_t tokens : {0, 1, 2047, 2048, 2049, 5000}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    std::vector<HeadInputs> heads = structuredHeads(kernel.spec, tokens);
    if (std::string(GetParam().said).find("softcap") != std::string::npos)
      heads[0].softcap = 3;
    Outcome alone;
    for (int32_t threads : {1, 2, 5}) {
      aligned_rt_set_threads(threads);
      Outcome outcome = kernel.run(heads, false);
      if (threads > 1) {
        EXPECT_EQ(outcome.out, alone.out);
        continue;
      }
      expectNear(heads[0], outcome.out[0], 3e-6);
      if (kernel.isCertified() && tokens)
        expectBounded(heads[0], outcome.out[0], outcome.bound[0]);
      EXPECT_EQ(outcome.tally.key_values, tokens * 48);
      EXPECT_EQ(outcome.tally.value_bits, tokens * 32 * (kernel.spec.element == "f32" ? 32 : 16));
      alone = std::move(outcome);
    }
  }
  aligned_rt_set_threads(before);
}

/// Scores of -inf: a split of nothing else has no weight, and a row of nothing else is NaN, or zero where that is asked for.
TEST_P(DenseSplits, WithoutWeight) {
  const Kernel &kernel = kernelOf(spec());
  ASSERT_TRUE(kernel) << aligned_last_error();
  const bool isCapped = kernel.spec.said.find("softcap") != std::string::npos; // which makes them finite
  for (auto [first, end] : {std::pair(0, 2048), {2048, 3000}, {0, 3000}}) {
    SCOPED_TRACE(std::to_string(first) + " to " + std::to_string(end));
    std::vector<HeadInputs> heads = structuredHeads(kernel.spec, 3000);
    HeadInputs &in = heads[0];
    in.softcap = isCapped ? 3 : 0;
    for (int64_t h = 0; h < in.heads; ++h)
      in.q[h * in.keyDim + 1] = -1;
    for (int64_t t = first; t < end; ++t)
      in.k[t * in.keyDim + 1] = kInfinity;
    Outcome outcome = kernel.run(heads, false);
    if (isCapped || end - first < 3000)
      expectNear(in, outcome.out[0], 3e-6);
    else
      for (double x : outcome.out[0])
        EXPECT_TRUE(isGuarded() ? x == 0 : std::isnan(x)) << x;
  }
}

INSTANTIATE_TEST_SUITE_P(JIT, DenseSplits,
                         testing::Values(Case{"Half", "f16", "", ""}, Case{"BFloat", "bf16", "", "certify"}, Case{"Single", "f32", "softcap 3.0", ""},
                                         Case{"Guarded", "f16", "masked_zero", ""}),
                         [](const auto &info) { return std::string(info.param.name); });

} // namespace
