// `target=reference` runs a module at any phase: attention as it is declared, exactly; stages as they are defined.
#include "Kernels.h"

using namespace aligned;

namespace {

struct Reading {
  std::string options; ///< of the pipeline, for policies
  double tolerance;    ///< of policies
};

/// What the oracle says that a policy gives and reads, of what the caches store.
void expectDefined(const Kernel &kernel, const std::vector<HeadInputs> &heads, double tolerance) {
  const Caches caches = kernel.pack(heads);
  const Outcome outcome = kernel.run(caches, heads);
  for (size_t head = 0; head < heads.size(); ++head) {
    SCOPED_TRACE("head " + std::to_string(head));
    HeadInputs in = kernel.stored(heads[head], caches);
    if (tolerance == 0)
      in.scanFullscale = in.finerFullscale = kDigits * 256 + 127;
    const PolicyResult want = decodeBudget(in, tolerance);
    const double usual = usualLength(in);
    int64_t differ = 0;
    for (int64_t t = 0; t < in.tokens; ++t)
      differ += outcome.plans[head].key[t] != want.keyPlan[t] || outcome.plans[head].value[t] != want.valuePlan[t];
    EXPECT_LE(differ, 2 + in.tokens / 100); // K is rotated in f32 where it is stored
    for (size_t i = 0; i < want.out.size(); ++i) // a token read otherwise is off by some tau
      if (std::isnan(want.out[i]))
        ASSERT_TRUE(std::isnan(outcome.out[head][i]));
      else
        ASSERT_NEAR(outcome.out[head][i], want.out[i], (3e-5 + 4 * tolerance / std::sqrt(double(in.tokens))) * usual) << "value " << i;
    if (kernel.isCertified())
      expectBounded(in, outcome.out[head], outcome.bound[head]);
  }
}

/// The same module, taken to each phase first.
TEST(Reference, RunsEveryPhase) {
  for (const char *format : {"fixed<4,4,8>", "float<8,4,4>", "dense"})
    for (const char *phase : {"raise", "store", "fuse", "stage"}) {
      SCOPED_TRACE(std::string(format) + " after " + phase);
      const bool isFixed = std::string(format) == "fixed<4,4,8>";
      Spec spec{32, 48, 2, 1, 2, 2};
      spec.keys = spec.values = "";
      spec.before = std::string("aligned-pipeline{policy=") + (isFixed ? "tight" : "exact") + " format=" + format + " to=" + phase + "}";
      spec.options = "target=reference";
      Kernel kernel(spec);
      ASSERT_TRUE(kernel) << aligned_last_error();
      const std::vector<HeadInputs> heads = structuredHeads(spec, 300);
      const Outcome outcome = kernel.run(heads, /*plans=*/false);
      const bool reads = isFixed && (spec.before.find("fuse") != std::string::npos || spec.before.find("stage") != std::string::npos);
      for (size_t head = 0; head < heads.size(); ++head)
        expectNear(heads[head], outcome.out[head], reads ? 1e-3 : 2e-5);
    }
}

TEST(Reference, StagesAreWhatPoliciesSay) {
  const Reading readings[] = {{"policy=fast", 0x1p-7}, {"policy=balanced", 0x1p-9}, {"policy=exact", 0}};
  for (const Reading &reading : readings)
    for (const char *said : {"", "mask <causal, window = 100, sinks = 3>", "softcap 4.0"}) {
      Spec spec{64, 32, 2, 2, 2, 1};
      spec.said = said;
      spec.before = "aligned-pipeline{" + reading.options + " certify to=stage}";
      spec.options = "target=reference";
      SCOPED_TRACE(spec.name());
      Kernel kernel(spec);
      ASSERT_TRUE(kernel) << aligned_last_error();
      for (int64_t tokens : {1, 64, 2200}) {
        std::vector<HeadInputs> heads = structuredHeads(spec, tokens);
        for (HeadInputs &in : heads) {
          in.softcap = said[0] == 's' ? 4 : 0;
          if (said[0] == 'm')
            in.mask = {2, true, 100, 3};
        }
        expectDefined(kernel, heads, reading.tolerance);
      }
    }
}

/// Limits of kv heads, and planes that are not there.
TEST(Reference, StagesHaveLimits) {
  Spec spec{64, 64, 2, 1, 2, 1};
  spec.keys = spec.values = "fixed<4, 4, 4, 4>";
  spec.keyResident = 3;
  spec.said = "policies [<budget, tolerance = 0.002>, <budget, tolerance = 0.01, key = <tolerance = 0.001, bits = 4 to 8, newest = 5>, value = <sinks = 2, ages = [100: 8, 1000: 4]>>]";
  spec.before = "aligned-pipeline{to=stage}";
  spec.options = "target=reference";
  Kernel kernel(spec);
  if (!kernel)
    GTEST_SKIP() << aligned_last_error();
  std::vector<HeadInputs> heads = structuredHeads(spec, 2200);
  heads[0].keyLimits.tolerance = heads[0].valueLimits.tolerance = 0.002;
  heads[1].keyLimits = {0.001, 4, 8, 5, 0, {}};
  heads[1].valueLimits = {0.01, 0, 16, 0, 2, {{100, 8}, {1000, 4}}};
  expectDefined(kernel, heads, 0.01);
}

} // namespace
