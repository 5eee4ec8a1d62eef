// Caches as kernels find them: appended to, truncated, forked, with pages and lengths of their own, an offset that was given, planes that are gone, tokens kept aside; and
// any number of threads.
#include "Kernels.h"

#include "aligned/Reference/Planes.h"

using namespace aligned;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Reading {
  const char *options, *format;
  double bound; ///< of errors relative to the usual row of V
};

class CachesOfKernels : public testing::TestWithParam<Reading> {
protected:
  Spec spec(int64_t batch = 1, int64_t kvHeads = 2) const {
    Spec spec{48, 32, 2, 1, kvHeads, batch};
    spec.options = GetParam().options;
    spec.keys = spec.values = GetParam().format;
    return spec;
  }
  bool isFixed() const { return GetParam().format[1] == 'i'; }
};

TEST_P(CachesOfKernels, TruncatedAreThoseOfTheFirstTokens) {
  const Kernel &kernel = kernelOf(spec());
  ASSERT_TRUE(kernel) << aligned_last_error();
  for (auto [all, left] : {std::pair(200, 100), {130, 128}, {70, 69}, {2200, 2048}, {4200, 2100}}) {
    SCOPED_TRACE(std::to_string(left) + " of " + std::to_string(all));
    std::vector<HeadInputs> heads = structuredHeads(kernel.spec, all), first = firstOf(heads, left);
    for (HeadInputs *in : {&heads[0], &first[0]}) { // P1's maxima are of all tokens that were appended
      if (isFixed())
        break;
      std::fill_n(in->k.begin(), in->keyDim, 8);
      std::fill_n(in->v.begin(), in->valueDim, 30);
    }
    for (HeadInputs *in : {&heads[1], &first[1]}) {
      if (isFixed())
        break;
      std::fill_n(in->k.begin(), in->keyDim, 8);
      std::fill_n(in->v.begin(), in->valueDim, 30);
    }
    Caches caches = kernel.empty();
    kernel.append(caches, heads, 0, left); // settles the offset by the same tokens
    kernel.append(caches, heads, left, all - left);
    Outcome whole = kernel.run(caches, heads);
    for (int64_t head = 0; head < 2; ++head)
      expectNear(heads[head], whole.out[head], GetParam().bound);
    for (aligned_cache *cache : {caches.key.get(), caches.value.get()})
      ASSERT_EQ(aligned_cache_truncate(cache, left), 0) << aligned_last_error();
    Outcome outcome = kernel.run(caches, first);
    expectSame(outcome, kernel.run(first));
    for (int64_t head = 0; head < 2; ++head)
      expectNear(first[head], outcome.out[head], GetParam().bound);
    if (HasFatalFailure())
      return;
  }
}

/// One token after another, and in pieces, are all at once.
TEST_P(CachesOfKernels, GrowAsTheyLike) {
  const Kernel &kernel = kernelOf(spec());
  ASSERT_TRUE(kernel) << aligned_last_error();
  std::vector<HeadInputs> heads = structuredHeads(kernel.spec, 300);
  Outcome want = kernel.run(heads);
  Caches caches = kernel.empty();
  kernel.append(caches, heads, 0, 66);
  for (int64_t t = 66; t < 140; ++t)
    kernel.append(caches, heads, t, 1);
  kernel.append(caches, heads, 140, 160);
  expectSame(kernel.run(caches, heads), want);
}

TEST_P(CachesOfKernels, ForksGoTheirOwnWay) {
  const Kernel &kernel = kernelOf(spec());
  ASSERT_TRUE(kernel) << aligned_last_error();
  std::vector<HeadInputs> one = structuredHeads(kernel.spec, 250), two = one;
  for (HeadInputs &in : two) { // the same up to token 100, and then others
    HeadInputs other = structuredHead(kernel.spec, 250, 99);
    std::copy(other.k.begin() + 100 * in.keyDim, other.k.end(), in.k.begin() + 100 * in.keyDim);
    std::copy(other.v.begin() + 100 * in.valueDim, other.v.end(), in.v.begin() + 100 * in.valueDim);
  }
  auto whole = [&](const std::vector<HeadInputs> &heads) {
    Caches caches = kernel.empty();
    kernel.append(caches, heads, 0, 100);
    kernel.append(caches, heads, 100, 150);
    return kernel.run(caches, heads);
  };
  Outcome wantOne = whole(one), wantTwo = whole(two);
  Caches caches = kernel.empty();
  kernel.append(caches, one, 0, 100);
  Caches other = caches.fork();
  kernel.append(caches, one, 100, 150);
  kernel.append(other, two, 100, 150);
  expectSame(kernel.run(caches, one), wantOne);
  expectSame(kernel.run(other, two), wantTwo);
  caches = Caches();
  expectSame(kernel.run(other, two), wantTwo);
}

TEST_P(CachesOfKernels, GiveTheSameOnAnyNumberOfThreads) {
  const Kernel &kernel = kernelOf(spec());
  ASSERT_TRUE(kernel) << aligned_last_error();
  int32_t before = aligned_rt_threads();
  for (int64_t tokens : {100, 2049, 6500}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    std::vector<HeadInputs> heads = structuredHeads(kernel.spec, tokens);
    Caches caches = kernel.pack(heads);
    aligned_rt_set_threads(1);
    Outcome want = kernel.run(caches, heads);
    for (int32_t threads : {2, 3}) {
      aligned_rt_set_threads(threads);
      SCOPED_TRACE(std::to_string(threads) + " threads");
      expectSame(kernel.run(caches, heads), want);
    }
    aligned_rt_set_threads(before);
  }
}

//===----------------------------------------------------------------------===//
// What is not finite
//===----------------------------------------------------------------------===//

struct Oddity {
  const char *name;
  std::function<void(HeadInputs &)> change;
};

TEST_P(CachesOfKernels, DoAsDenseAttentionWithWhatIsNotFinite) {
  const Kernel &kernel = kernelOf(spec());
  ASSERT_TRUE(kernel) << aligned_last_error();
  auto key = [](int64_t token, int64_t channel, double x) { return [=](HeadInputs &in) { in.k[token % in.tokens * in.keyDim + channel] = x; }; };
  auto value = [](int64_t token, int64_t channel, double x) { return [=](HeadInputs &in) { in.v[token % in.tokens * in.valueDim + channel] = x; }; };
  std::vector<Oddity> oddities{
      {"NaN in a query", [](HeadInputs &in) { in.q[in.keyDim + 5] = NAN; }},
      {"infinity in a query", [](HeadInputs &in) { in.q[5] = -kInfinity; }},
      {"NaN in K", key(40, 3, NAN)},
      {"infinity in K", key(41, 7, kInfinity)},
      {"negative infinity in K", key(41, 7, -kInfinity)},
      {"infinities of both signs in K", [&](HeadInputs &in) { key(41, 7, -kInfinity)(in), key(41, 8, kInfinity)(in); }},
      {"NaN in V", value(50, 3, NAN)},
      {"infinity in V", value(50, 9, kInfinity)},
      {"infinities of both signs in a channel of V", [&](HeadInputs &in) { value(50, 9, kInfinity)(in), value(17, 9, -kInfinity)(in), value(17, 3, kInfinity)(in); }},
      {"negative infinity in the first V", value(0, 2, -kInfinity)},
      {"infinities in K and V of a token", [&](HeadInputs &in) { key(33, 2, -kInfinity)(in), value(33, 2, kInfinity)(in); }},
      {"all of K infinite", [](HeadInputs &in) {
         for (int64_t t = 0; t < in.tokens; ++t)
           in.k[t * in.keyDim] = kInfinity;
       }},
  };
  for (int64_t tokens : {1, 51, 130, 2100})
    for (const Oddity &oddity : oddities) {
      if (tokens == 2100 && *oddity.name == 'a')
        continue; // the list is searched linearly
      SCOPED_TRACE(std::string(oddity.name) + ", " + std::to_string(tokens) + " tokens");
      std::vector<HeadInputs> heads = structuredHeads(kernel.spec, tokens, 5);
      Outcome plain = kernel.run(heads);
      oddity.change(heads[1]);
      Outcome outcome = kernel.run(heads);
      ASSERT_FALSE(outcome.failed);
      EXPECT_EQ(outcome.out[0], plain.out[0]) << "the other head";
      expectNear(heads[1], outcome.out[1], GetParam().bound);
      if (HasFailure())
        return;
    }
}

/// Beyond what the planes hold: f32 in planes of halves, and scales that grow beyond the largest code, which the first tokens settled.
class HugeValues : public CachesOfKernels {};
TEST_P(HugeValues, AreKeptAside) {
  Spec huge = spec();
  huge.element = "f32";
  const Kernel &kernel = kernelOf(huge);
  ASSERT_TRUE(kernel) << aligned_last_error();
  for (bool ofKeys : {false, true}) {
    SCOPED_TRACE(ofKeys ? "K" : "V");
    std::vector<HeadInputs> heads = structuredHeads(huge, 150, 5, 0.5);
    for (HeadInputs &in : heads)
      (ofKeys ? in.k[120 * in.keyDim + 2] : in.v[110 * in.valueDim + 3]) = 1e7;
    Caches caches = kernel.empty();
    kernel.append(caches, heads, 0, 100);
    kernel.append(caches, heads, 100, 50);
    EXPECT_EQ((ofKeys ? caches.key : caches.value)->asides, 2);
    Outcome outcome = kernel.run(caches, heads);
    for (int64_t head = 0; head < 2; ++head) {
      expectNear(heads[head], outcome.out[head], std::max(GetParam().bound, 1e-3));
      expectBounded(heads[head], outcome.out[head], outcome.bound[head]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Readings, CachesOfKernels,
                         testing::Values(Reading{"policy=exact certify", "fixed<4, 4, 8>", 4e-4}, Reading{"policy=balanced", "fixed<4, 4, 8>", 0x1p-7},
                                         Reading{"policy=balanced certify isa=avx2", "fixed<8, 8>", 0x1p-7}, Reading{"policy=fast isa=portable", "fixed<4, 4, 4, 4>", 0x1p-5},
                                         Reading{"policy=alignedkv", "float<8, 4, 4>", 0.3}),
                         [](const auto &info) { return identifier(std::string(info.param.options) + "_" + info.param.format); });
INSTANTIATE_TEST_SUITE_P(Readings, HugeValues, testing::Values(Reading{"policy=balanced certify", "fixed<8, 8>", 0x1p-7}, Reading{"policy=alignedkv certify", "float<8, 4, 4>", 0.3}),
                         [](const auto &info) { return identifier(info.param.format); });

/// Scales of the largest floats are powers of two that no float is, and products with those of the least would be none.
TEST(EndsOfTheFloats, AreStoredAndRead) {
  for (const char *policy : {"exact certify", "tight certify"}) {
    Spec spec{16, 16, 1, 1, 1, 1};
    spec.element = "f32";
    spec.options = std::string("policy=") + policy;
    const Kernel &kernel = kernelOf(spec);
    ASSERT_TRUE(kernel) << aligned_last_error();
    HeadInputs in = structuredHead(spec, 70, 1);
    std::fill(in.q.begin(), in.q.end(), 0);
    std::fill(in.v.begin(), in.v.end(), double(1e30f));
    in.v[5 * 16 + 3] = double(3.1e38f);
    const Outcome outcome = kernel.run({in});
    EXPECT_NEAR(outcome.out[0][3] * 70 / 3.1e38, 1, 1e-3) << policy;
    EXPECT_NEAR(outcome.out[0][4] / 1e30, 1, 1.1) << policy; // what 16 bits beside 3e38 leave of it
    for (double small : {0x1p-70, 0x1p-100, 0x1p-126}) {
      std::fill(in.v.begin(), in.v.end(), small);
      const Outcome little = kernel.run({in});
      expectBounded(in, little.out[0], little.bound[0]);
      for (double loudness : {10, 50, 200, 2000}) { // coarse scores mislead by far: units of weights are small, too
        HeadInputs peaked = structuredHead(spec, 70, 1, loudness);
        for (double &x : peaked.v)
          x *= small;
        const Outcome of = kernel.run({peaked});
        expectBounded(peaked, of.out[0], of.bound[0]);
        if (small > 0x1p-120) // whose values have bits left
          EXPECT_LE(relativeErrors(of.out[0], exactAttention(peaked), 16)[0], 0.1) << policy << ", " << small << ", loudness " << loudness;
      }
      if (small > 0x1p-80)
        EXPECT_NEAR(little.out[0][4] / small, 1, 1e-3) << policy;
    }
  }
}

//===----------------------------------------------------------------------===//
// Fixed planes
//===----------------------------------------------------------------------===//

/// Each batch entry, whatever its length, gives what it gives alone.
TEST(OwnLengths, AreThoseOfCachesOfTheirOwn) {
  for (auto [said, options] : {std::pair("", "policy=balanced certify"), {"mask <causal, window = 300, sinks = 2>", "policy=exact"}}) {
      Spec spec{48, 32, 1, 1, 2, 3}, alone = spec;
      spec.said = alone.said = said;
      spec.options = alone.options = options;
      alone.batch = 1;
      const Kernel &kernel = kernelOf(spec), &single = kernelOf(alone);
      ASSERT_TRUE(kernel && single) << aligned_last_error();
      for (std::vector<int64_t> lengths : {std::vector<int64_t>{100, 2, 65}, {2100, 64, 4100}, {70, 0, 1}}) {
        SCOPED_TRACE(spec.name() + ", " + std::to_string(lengths[0]) + ", " + std::to_string(lengths[1]) + ", " + std::to_string(lengths[2]) + " tokens");
        std::vector<HeadInputs> heads;
        for (int64_t n = 0; n < 3; ++n)
          for (int64_t head = 0; head < 2; ++head)
            heads.push_back(structuredHead(spec, lengths[n], uint32_t(n * 2 + head)));
        for (HeadInputs &in : heads)
          if (*said)
            in.mask = {1, true, 300, 2};
        auto paged = [&] {
          Caches caches;
          for (int side : {1, 2}) {
            aligned_type type = kernel.typeOf(side);
            (side == 1 ? caches.key : caches.value).reset(aligned_cache_create_paged(&type.format, 3, 2, side == 1 ? 48 : 32, 110, 4200));
          }
          return caches;
        };
        for (bool pages : {false, true}) {
          SCOPED_TRACE(pages ? "pages" : "no pages");
          Caches caches = pages ? paged() : kernel.empty();
          ASSERT_TRUE(caches.key && caches.value) << aligned_last_error();
          kernel.appendRagged(caches, heads);
          Outcome outcome = kernel.run(caches, heads);
          ASSERT_FALSE(outcome.failed);
          for (int64_t n = 0; n < 3; ++n) {
            std::vector<HeadInputs> own(heads.begin() + 2 * n, heads.begin() + 2 * n + 2);
            Outcome want = single.run(own);
            for (int64_t head = 0; head < 2; ++head) {
              SCOPED_TRACE("entry " + std::to_string(n) + ", head " + std::to_string(head));
              const std::vector<double> &got = outcome.out[2 * n + head];
              for (size_t i = 0; i < got.size(); ++i)
                ASSERT_TRUE(same(got[i], want.out[head][i])) << i << ": " << got[i] << ", not " << want.out[head][i];
              expectNear(own[head], got, 0x1p-7);
              std::vector<int> keys = outcome.plans[2 * n + head].key, values = outcome.plans[2 * n + head].value;
              EXPECT_EQ(keys, want.plans[head].key);
              EXPECT_EQ(values, want.plans[head].value);
              for (int64_t h = 0; h < 1 && !want.bound.empty(); ++h)
                EXPECT_TRUE(same(outcome.bound[2 * n + head][h], want.bound[head][h])) << h << ": " << outcome.bound[2 * n + head][h] << ", not " << want.bound[head][h];
            }
          }
        }
      }
    }
}

/// Pages that others held before: entries that are released and grow again.
TEST(Pages, AreTakenAndGivenBack) {
  Spec spec{32, 32, 2, 1, 2, 2};
  spec.options = "policy=balanced";
  const Kernel &kernel = kernelOf(spec);
  ASSERT_TRUE(kernel) << aligned_last_error();
  Caches caches;
  for (int side : {1, 2}) {
    aligned_type type = kernel.typeOf(side);
    (side == 1 ? caches.key : caches.value).reset(aligned_cache_create_paged(&type.format, 2, 2, 32, 7, 400));
  }
  std::vector<HeadInputs> heads = structuredHeads(spec, 200);
  for (HeadInputs *in : {&heads[2], &heads[3]}) // of the second entry: 64 tokens, then 64 more
    *in = firstOf({*in}, 64)[0];
  kernel.appendRagged(caches, heads);
  Outcome one = kernel.run(caches, heads);
  for (int64_t head = 0; head < 4; ++head)
    expectNear(heads[head], one.out[head], 0x1p-7);
  for (aligned_cache *cache : {caches.key.get(), caches.value.get()})
    ASSERT_EQ(aligned_cache_release(cache, 0), 0);
  std::vector<HeadInputs> next = heads;
  for (int64_t head : {2, 3}) {
    next[head] = structuredHead(spec, 300, uint32_t(head));
    std::copy(heads[head].k.begin(), heads[head].k.end(), next[head].k.begin());
    std::copy(heads[head].v.begin(), heads[head].v.end(), next[head].v.begin());
  }
  for (int64_t head : {0, 1})
    next[head] = firstOf({heads[head]}, 0)[0];
  kernel.appendRagged(caches, next, 64);
  Outcome two = kernel.run(caches, next);
  for (int64_t head = 0; head < 4; ++head)
    expectNear(next[head], two.out[head], 0x1p-7);
}

/// S2: what a model says is taken off K, and softmax does not see it.
TEST(Offset, IsTheOneThatWasGiven) {
  Spec spec{48, 32, 2, 1, 2};
  spec.options = "policy=balanced";
  const Kernel &kernel = kernelOf(spec);
  ASSERT_TRUE(kernel) << aligned_last_error();
  for (int64_t tokens : {3, 150}) {
    std::vector<HeadInputs> heads = structuredHeads(spec, tokens);
    std::vector<float> offset;
    for (HeadInputs &in : heads) {
      in.offset.emplace();
      for (int64_t c = 0; c < in.keyDim; ++c) {
        offset.push_back(c % 7 ? 0.25f * float(c % 5) : 20);
        in.offset->push_back(offset.back());
      }
      for (int64_t i = 0; i < tokens * in.keyDim; ++i)
        in.k[i] = spec.held(in.k[i] + (*in.offset)[i % in.keyDim]);
    }
    Caches caches = kernel.empty(), other = kernel.empty();
    ASSERT_EQ(aligned_cache_set_offset(caches.key.get(), offset.data()), 0) << aligned_last_error();
    kernel.append(caches, heads, 0, tokens);
    kernel.append(other, heads, 0, tokens);
    Outcome outcome = kernel.run(caches, heads), without = kernel.run(other, heads);
    for (int64_t head = 0; head < 2; ++head) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens, head " + std::to_string(head));
      expectNear(heads[head], outcome.out[head], 0x1p-7);
      PolicyResult want = decodeBudget(kernel.stored(heads[head], caches), 0x1p-9);
      auto sum = [](const std::vector<int> &bits) { return double(std::accumulate(bits.begin(), bits.end(), 0)); };
      EXPECT_NEAR(sum(outcome.plans[head].key), sum(want.keyPlan), 0.03 * sum(want.keyPlan) + 8);
      EXPECT_GE(sum(outcome.plans[head].value), 0.99 * sum(want.valuePlan));
    }
    if (tokens == 3) { // nothing is taken off, and all of K is read for it
      EXPECT_GE(without.tally.key_bits, outcome.tally.key_bits);
    }
  }
}

/// A cache may have more planes than the kernel was told of, and is read as one that has as many; not fewer.
TEST(Residency, IsTheTypes) {
  for (const char *policy : {"balanced"})
    for (int planes : {2, 1}) {
      Spec spec{64, 64, 1, 1, 2}, whole = spec;
      spec.options = whole.options = std::string("policy=") + policy;
      spec.keyResident = spec.valueResident = planes;
      const Kernel &kernel = kernelOf(spec), &all = kernelOf(whole);
      ASSERT_TRUE(kernel && all) << aligned_last_error();
      std::vector<HeadInputs> heads = structuredHeads(spec, 300, 3, 0.5);
      Caches caches = all.pack(heads);
      Outcome before = kernel.run(caches, heads);
      Caches dropped = caches.fork();
      for (aligned_cache *cache : {dropped.key.get(), dropped.value.get()})
        ASSERT_EQ(aligned_cache_drop_planes(cache, planes), 0) << aligned_last_error();
      Outcome after = kernel.run(dropped, heads);
      ASSERT_FALSE(before.failed || after.failed);
      for (int64_t head = 0; head < 2; ++head) {
        SCOPED_TRACE(spec.name() + ", head " + std::to_string(head));
        HeadInputs in = kernel.stored(heads[head], dropped);
        PolicyResult want = decodeBudget(in, aligned_policy_tolerance(policy));
        double usual = usualLength(in);
        for (int64_t i = 0; i < int64_t(want.out.size()); ++i) {
          double allowed = (aligned_policy_tolerance(policy) + 1e-4) * usual;
          ASSERT_NEAR(after.out[head][i], want.out[i], allowed) << i;
          ASSERT_NEAR(before.out[head][i], after.out[head][i], allowed) << i;
        }
        EXPECT_EQ(before.plans[head].key, after.plans[head].key);
        for (int bits : after.plans[head].value)
          ASSERT_LE(bits, 4 * planes);
      }
      aligned_value arguments[3] = {}, result = {};
      std::vector<char> q = kernel.encode(heads, &HeadInputs::q, 64, 0, 1);
      arguments[0].array = {q.data(), {1, 2, 1, 64}, {128, 64, 64, 1}, nullptr};
      arguments[1].cache = dropped.key.get();
      arguments[2].cache = dropped.value.get();
      aligned_module *module = aligned_module_compile(all.text().c_str(), whole.options.c_str(), nullptr);
      EXPECT_NE(aligned_module_call(module, arguments, &result), 0);
      EXPECT_NE(std::string(aligned_last_error()).find("plane"), std::string::npos) << aligned_last_error();
      aligned_module_destroy(module);
    }
}

} // namespace
