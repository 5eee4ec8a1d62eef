// Short caches that hold a dense copy: attention reads it up to the length that was compiled in, and planes beyond that and where there is none.
#include "Kernels.h"

using namespace aligned;

namespace {

constexpr int64_t kDenseUpTo = 130;

struct Case {
  const char *name, *element, *said, *options;
  int64_t queries = 1, batch = 2;
};

class DenseCopy : public testing::TestWithParam<Case> {
protected:
  Spec spec(const std::string &more = "") const {
    Spec spec{48, 32, 3, GetParam().queries, 2, GetParam().batch, GetParam().said, GetParam().options + more};
    spec.element = GetParam().element;
    return spec;
  }
};

Caches keeping(const Kernel &kernel, int64_t tokens) {
  Caches caches = kernel.empty();
  for (aligned_cache *cache : {caches.key.get(), caches.value.get()})
    EXPECT_EQ(aligned_cache_keep_dense(cache, tokens), 0) << aligned_last_error();
  return caches;
}

TEST_P(DenseCopy, IsReadWhereItIsShort) {
  Spec unpacked = spec(" format=dense policy=exact");
  unpacked.keys = unpacked.values = "";
  const Kernel &kernel = kernelOf(spec(" dense-up-to=" + std::to_string(kDenseUpTo))), &planes = kernelOf(spec()), &dense = kernelOf(unpacked);
  ASSERT_TRUE(kernel && planes && dense) << aligned_last_error();
  Caches caches = keeping(kernel, kDenseUpTo + 20);
  std::vector<HeadInputs> all = structuredHeads(spec(), kDenseUpTo + 40);
  for (int64_t tokens : {1, 2, 63, 64, 65, 129, 130, 131, 150, 151, 170}) {
    if (tokens < GetParam().queries) // queries that see nothing give NaN
      continue;
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    std::vector<HeadInputs> heads = firstOf(all, tokens);
    kernel.append(caches, all, caches.key->tokens, tokens - caches.key->tokens);
    EXPECT_EQ(bool(caches.key->dense), tokens <= kDenseUpTo + 20);
    Outcome got = kernel.run(caches, heads, false);
    expectSame(got, tokens <= kDenseUpTo ? dense.run(heads, false) : planes.run(caches, heads, false));
    if (tokens <= kDenseUpTo && !*GetParam().said)
      for (size_t head = 0; head < heads.size(); ++head)
        expectNear(heads[head], got.out[head], 1e-5);
    if (HasFailure())
      return;
  }
}

TEST_P(DenseCopy, BothHaveOneOrNoneIsRead) {
  const Kernel &kernel = kernelOf(spec(" dense-up-to=" + std::to_string(kDenseUpTo))), &planes = kernelOf(spec());
  ASSERT_TRUE(kernel && planes) << aligned_last_error();
  std::vector<HeadInputs> heads = structuredHeads(spec(), 90);
  Caches none = kernel.pack(heads);
  for (bool isKey : {false, true}) {
    Caches one = kernel.empty();
    ASSERT_EQ(aligned_cache_keep_dense((isKey ? one.key : one.value).get(), 100), 0);
    kernel.append(one, heads, 0, 90);
    expectSame(kernel.run(one, heads, false), planes.run(none, heads, false));
  }
  expectSame(kernel.run(none, heads, false), planes.run(none, heads, false));
}

INSTANTIATE_TEST_SUITE_P(JIT, DenseCopy,
                         testing::Values(Case{"Half", "f16", "", "policy=balanced", 1, 1}, Case{"BFloat", "bf16", "", "policy=tight certify"}, Case{"Single", "f32", "", "policy=exact"},
                                         Case{"Masked", "f16", "softcap 3.0 mask <causal, window = 40, sinks = 3>", "policy=fast certify", 2},
                                         Case{"InStretches", "f16", "mask <causal>", "policy=fast", 12}),
                         [](const auto &info) { return std::string(info.param.name); });

} // namespace
