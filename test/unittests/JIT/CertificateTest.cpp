// P4: the error never exceeds the bound, whatever the cache, format and policy, and the estimate is about as large as the error. ALIGNED_CASES sets how many caches are tried,
// ALIGNED_SEED the first.
#include "Certified.h"

#include <cstdlib>

using namespace aligned;

namespace {

constexpr int64_t kCases = 1300;

int64_t fromEnvironment(const char *name, int64_t otherwise) {
  const char *text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

void expectNeverExceeded(const std::vector<Subject> &tried, int64_t defaultCases) {
  std::vector<const Kernel *> all;
  for (const Subject &subject : tried) {
    all.push_back(&kernelOf(subject.spec()));
    ASSERT_TRUE(*all.back()) << all.back()->spec.name() << ": " << aligned_last_error();
  }
  int64_t cases = fromEnvironment("ALIGNED_CASES", defaultCases), first = fromEnvironment("ALIGNED_SEED", 1), failures = 0;
  std::vector<double> most(all.size(), 0);
  for (int64_t i = 0; i < cases && failures < 10; ++i) {
    size_t which = (first - 1 + i) % all.size(); // ALIGNED_SEED alone finds a case again
    HeadInputs in = makeCase(all[which]->spec, tried[which], uint64_t(first + i));
    Outcome outcome = all[which]->run({in}, false);
    ASSERT_FALSE(outcome.failed);
    double ratio = closeness(in, outcome).ratio;
    most[which] = worse(most[which], ratio);
    if (!(ratio <= 1)) {
      ++failures;
      ADD_FAILURE() << "case " << first + i << ": " << all[which]->spec.name() << ", " << in.tokens << " tokens: error / bound = " << ratio;
    }
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (cases > defaultCases)
      printf("%-110s largest error / bound %.3g\n", all[i]->spec.name().c_str(), most[i]);
    EXPECT_GT(most[i], 1e-4) << all[i]->spec.name() << ": bounds that are never approached prove nothing";
  }
}

TEST(Certificate, IsNeverExceeded) { expectNeverExceeded(subjects(), kCases); }
TEST(Certificate, IsNeverExceededUnderMasksAndCaps) { expectNeverExceeded(maskedSubjects(), kCases / 3); }

class Families : public testing::TestWithParam<const char *> {};

TEST_P(Families, AreBounded) {
  Spec spec{64, 64, 2};
  spec.options = std::string("policy=") + GetParam() + " certify";
  if (spec.options.find("alignedkv") != std::string::npos)
    spec.keys = spec.values = "float<8, 4, 4>";
  if (spec.options.find("dense") != std::string::npos)
    spec.keys = spec.values = "";
  const Kernel &kernel = kernelOf(spec);
  ASSERT_TRUE(kernel) << aligned_last_error();
  for (const std::string &name : kFamilies)
    for (int64_t tokens : {65, 2100}) {
      SCOPED_TRACE(name + ", " + std::to_string(tokens) + " tokens");
      HeadInputs in = family(name, tokens, 64, 2);
      in.scale = spec.scale();
      Outcome outcome = kernel.run({in}, false);
      ASSERT_FALSE(outcome.failed);
      EXPECT_LE(closeness(in, outcome).ratio, 1);
    }
}

/// Whoever asks what is read gets what others get.
TEST(Recording, ChangesNothing) {
  Spec spec{64, 64, 2};
  for (const char *policy : {"exact", "balanced"}) {
    spec.options = std::string("policy=") + policy;
    const Kernel &kernel = kernelOf(spec);
    ASSERT_TRUE(kernel) << aligned_last_error();
    for (const std::string &name : kFamilies) {
      SCOPED_TRACE(spec.name() + ", " + name);
      HeadInputs in = family(name, 500, 64, 2);
      Caches caches = kernel.pack({in});
      Outcome told = kernel.run(caches, {in}), untold = kernel.run(caches, {in}, false);
      ASSERT_FALSE(told.failed || untold.failed);
      EXPECT_EQ(told.tally.key_bits, untold.tally.key_bits);
      EXPECT_EQ(told.tally.value_bits, untold.tally.value_bits);
      double usual = usualLength(in);
      for (size_t i = 0; i < told.out[0].size(); ++i)
        ASSERT_NEAR(told.out[0][i], untold.out[0][i], 1e-4 * usual) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Families,
                         testing::Values("exact", "balanced", "draft", "alignedkv", "exact format=dense"),
                         [](const testing::TestParamInfo<const char *> &info) { return identifier(info.param); });

/// Of heads without tricks: half of the estimates are within a factor of two or so of the error, and most within four.
TEST(Estimate, IsAboutTheError) {
  for (auto [policy, dim] : {std::pair("balanced", 64), {"balanced", 80}, {"draft", 64}}) {
    Spec spec{dim, dim, 2};
    spec.options = std::string("policy=") + policy + " certify";
    const Kernel &kernel = kernelOf(spec);
    ASSERT_TRUE(kernel) << aligned_last_error();
    std::vector<double> ratios;
    for (int64_t tokens : {130, 1000})
      for (double loudness : {0.5, 1.0, 2.0, 3.0})
        for (uint32_t seed : {1, 2, 3, 4, 5}) {
          HeadInputs in = structuredHead(spec, tokens, seed, loudness);
          Outcome outcome = kernel.run({in}, false);
          ASSERT_FALSE(outcome.failed);
          std::vector<double> want = exactAttention(in), errors = relativeErrors(outcome.out[0], want, in.valueDim);
          for (int64_t h = 0; h < in.heads; ++h)
            ratios.push_back(outcome.estimate[0][h] / errors[h]);
        }
    std::sort(ratios.begin(), ratios.end());
    SCOPED_TRACE(spec.name());
    EXPECT_GE(ratios[ratios.size() / 2], 0.5);
    EXPECT_LE(ratios[ratios.size() / 2], 2.5);
    double within = std::count_if(ratios.begin(), ratios.end(), [](double ratio) { return ratio > 0.25 && ratio < 4; });
    EXPECT_GE(within / double(ratios.size()), 0.9) << "between " << ratios.front() << " and " << ratios.back();
  }
}

} // namespace
