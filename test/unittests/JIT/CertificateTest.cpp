// P4: the error never exceeds the bound, whatever the cache, format and policy. ALIGNED_CASES sets how many caches are tried, ALIGNED_SEED the first.
#include "../../fuzz/Certified.h"

#include <gtest/gtest.h>

#include <cstdlib>

using namespace aligned;

namespace {

constexpr int64_t kCases = 6000;

int64_t fromEnvironment(const char *name, int64_t otherwise) {
  const char *text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

void expectNeverExceeded(const std::vector<Subject> &tried, int64_t defaultCases) {
  std::vector<CertifiedAttention> all;
  for (const Subject &subject : tried) {
    all.emplace_back(subject);
    ASSERT_TRUE(all.back().compiled()) << subject.options << ": " << aligned_last_error();
  }
  int64_t cases = fromEnvironment("ALIGNED_CASES", defaultCases), first = fromEnvironment("ALIGNED_SEED", 1), failures = 0;
  std::vector<double> worst(all.size(), 0);
  for (int64_t i = 0; i < cases && failures < 10; ++i) {
    CertifiedAttention &attention = all[i % all.size()];
    auto [in, planes] = makeCase(attention, uint64_t(first + i));
    double ratio = attention.closest(in, planes).ratio;
    worst[i % all.size()] = worse(worst[i % all.size()], ratio);
    if (!(ratio <= 1)) {
      ++failures;
      ADD_FAILURE() << "case " << first + i << ": " << attention.subject.name() << ", " << in.tokens
                    << " tokens, " << planes << " planes: error / bound = " << ratio;
    }
  }
  for (size_t i = 0; i < all.size(); ++i) {
    testing::Test::RecordProperty("worst_" + std::to_string(i), std::to_string(worst[i]));
    if (cases > defaultCases)
      printf("%-72s largest error / bound %.3g\n", all[i].subject.name().c_str(), worst[i]);
    EXPECT_GT(worst[i], 1e-4) << "bounds that are never approached prove nothing";
  }
}

TEST(Certificate, IsNeverExceeded) { expectNeverExceeded(subjects(), kCases); }
TEST(Certificate, IsNeverExceededUnderMasksAndCaps) { expectNeverExceeded(maskedSubjects(), kCases / 3); }

/// An uncertified reading of the same bits errs: a bound that leaves something out would be found.
TEST(Certificate, FollowsTheBits) {
  Subject subject{"f16", 2, 32, 32, "policy=exact", "", "", false};
  CertifiedAttention attention(subject);
  ASSERT_TRUE(attention.compiled()) << aligned_last_error();
  for (uint64_t seed : {3, 4, 5}) {
    HeadInputs in = makeCase(attention, seed * 14).in;
    for (int planes : {0, 3, 2, 1})
      EXPECT_LE(attention.closest(in, planes).ratio, 1) << seed << ", " << planes << " planes";
  }
}

} // namespace
