// Numbers that calls say, over each kind of storage: softcap, window, sinks, later tokens and a factor of tolerances. One program gives for all of them what float64 does, and what programs give
// that know them.
#include "Emulated.h"

#include <cstring>
#include <random>

using namespace aligned;
using namespace aligned::test;

namespace {

constexpr int64_t kKvHeads = 2, kGroup = 2, kQueries = 2, kRows = kGroup * kQueries, kDim = 64;

struct Numbers {
  float softcap = 0; ///< 0: of programs without
  int64_t window = 1, sinks = 0, later = 0;
  float factor = 0;
};

struct Storing {
  const char *format, *policy; ///< format: null: dense
  double error;                ///< of outputs
};

/// What the op says of the numbers, as operands or as they are.
std::string given(bool softcap) { return std::string(softcap ? "softcap %c " : "") + "mask <causal, window = %w, sinks = %n> later %l"; }
std::string known(const Numbers &n) {
  return (n.softcap ? "softcap " + std::to_string(n.softcap) + " " : "") + "mask <causal, window = " + std::to_string(n.window) + ", sinks = " + std::to_string(n.sinks) + "> later %l";
}

struct Step : Emulated {
  std::vector<int64_t> lengths;
  int64_t tokens;
  Values q, k, v;

  void fill(int64_t count) {
    tokens = count;
    lengths = {count};
    std::mt19937 random(static_cast<uint32_t>(count));
    std::normal_distribution<double> normal;
    auto any = [&](int64_t) { return normal(random); };
    q = Values("f16", kKvHeads * kRows * kDim, any);
    k = Values("f16", kKvHeads * count * kDim, any);
    v = Values("f16", kKvHeads * count * kDim, any);
  }

  static ProgramPtr compiled(const Storing &s, const std::string &scoring, const std::string &policy = "", const std::string &clauses = "") {
    auto cache = [&](const char *role) {
      return "tensor<1x2x?x64xf16" + (s.format ? std::string(", #aligned.planes<") + s.format + ", " + role + ">" : "") + ">";
    };
    const std::string types = "tensor<1x4x2x64xf16>, " + cache("key") + ", " + cache("value"), out = "tensor<1x4x2x64xf32>", row = "tensor<1x4x2xf32>";
    return compile("func.func @step(%q: tensor<1x4x2x64xf16>, %k: " + cache("key") + ", %v: " + cache("value") +
                       ", %s: f32, %c: f32, %w: index, %n: index, %l: index, %t: f32) -> " + out + " {\n  %a:3 = aligned.decode_attention %q, %k, %v scale %s " + scoring + " policy <" +
                       (policy.empty() ? s.policy : policy) + ">" + clauses + " : " + types + " -> " + out + ", " + row + ", " + row + "\n  return %a#0 : " + out + "\n}\n",
                   s.format ? "" : "format=dense");
  }

  struct State {
    std::vector<float> acc = std::vector<float>(kKvHeads * kRows * kDim, 7), max = std::vector<float>(kKvHeads * kRows, 7), sum = max;
    aligned_tally tally = {};
    std::string error;
    bool operator==(const State &other) const {
      auto same = [](const std::vector<float> &a, const std::vector<float> &b) { return !std::memcmp(a.data(), b.data(), a.size() * sizeof(float)); };
      return same(acc, other.acc) && same(max, other.max) && same(sum, other.sum) && tally.key_bits == other.tally.key_bits && tally.value_bits == other.tally.value_bits;
    }
  };

  State run(const Storing &s, const ProgramPtr &program, const Numbers &numbers) {
    State state;
    aligned_decode_call call = {};
    call.batch = 1;
    CachePtr caches[2];
    for (int32_t role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE}) {
      if (!s.format)
        break;
      aligned_program_site site;
      EXPECT_EQ(aligned_program_site_info(program.get(), 0, &site), 0) << aligned_last_error();
      CachePtr &cache = caches[role == ALIGNED_ROLE_VALUE];
      cache.reset(aligned_program_create_cache(program.get(), role == ALIGNED_ROLE_KEY ? &site.key : &site.value, 1, kKvHeads, kDim, tokens + 1));
      const int64_t strides[] = {kKvHeads * tokens * kDim, tokens * kDim, kDim, 1};
      EXPECT_EQ(aligned_cache_append(cache.get(), (role == ALIGNED_ROLE_KEY ? k : v).bytes.data(), tokens, strides), 0) << aligned_last_error();
    }
    call.key = caches[0].get();
    call.value = caches[1].get();
    call.query = q.bytes.data();
    call.scale = 0.125f;
    call.acc = state.acc.data();
    call.max = state.max.data();
    call.sum = state.sum.data();
    call.dense_key = k.bytes.data();
    call.dense_value = v.bytes.data();
    call.lengths = lengths.data();
    call.capacity = tokens;
    call.softcap = numbers.softcap;
    call.window = numbers.window;
    call.sinks = numbers.sinks;
    call.later = numbers.later;
    call.tolerance_factor = numbers.factor;
    aligned_rt_record(&state.tally, 1);
    if (aligned_program_decode(program.get(), 0, &call))
      state.error = aligned_last_error();
    aligned_rt_record(nullptr, 0);
    return state;
  }

  void expectNear(const State &got, const Numbers &n, double error) {
    ASSERT_EQ(got.error, "");
    const Mask mask{kQueries, true, n.window, n.sinks, n.later};
    std::vector<double> want(kRows * kDim);
    for (int64_t head = 0; head < kKvHeads; ++head) {
      exactAttention(&q.exact[head * kRows * kDim], kRows, &k.exact[head * tokens * kDim], &v.exact[head * tokens * kDim], tokens, kDim, kDim, 0.125, false, want.data(), mask, n.softcap);
      for (int64_t h = 0; h < kRows; ++h)
        for (int64_t i = 0; i < kDim; ++i) {
          const double x = got.acc[(head * kRows + h) * kDim + i] / double(got.sum[head * kRows + h]), exact = want[h * kDim + i];
          ASSERT_TRUE(std::isnan(exact) ? std::isnan(x) : std::fabs(x - exact) <= error) << "head " << head << ", row " << h << ", channel " << i << ": " << x << " for " << exact;
        }
    }
  }
};

const Storing storings[] = {{"fixed<4, 4, 8>", "budget, tolerance = 0.001953125", 0.05}, {"fixed<4, 4, 8>", "exact", 1e-3}, {"float<8, 4, 4>", "exact", 1e-3}, {nullptr, "exact", 1e-3}};

class Scoring : public Step, public testing::WithParamInterface<Storing> {};

TEST_P(Scoring, AsGivenByCalls) {
  const Storing &s = GetParam();
  for (bool capped : {false, true}) {
    const ProgramPtr program = compiled(s, given(capped));
    ASSERT_TRUE(program);
    aligned_program_site site;
    ASSERT_EQ(aligned_program_site_info(program.get(), 0, &site), 0);
    EXPECT_EQ(site.window + site.sinks + site.later, 3);
    EXPECT_EQ(site.softcap, capped);
    EXPECT_EQ(site.tolerance_factor, 0);
    for (int64_t count : {1, 65, 300}) {
      fill(count);
      for (Numbers n : {Numbers{1.5f, 1, 0, 0}, {20, 5, 2, 0}, {1.5f, 3, 66, 1}, {2, 64, 0, 70}, {2, int64_t(1) << 40, 1, 2}}) {
        n.softcap = capped ? n.softcap : 0;
        SCOPED_TRACE(known(n) + " " + std::to_string(n.later) + ", " + std::to_string(count) + " tokens");
        expectNear(run(s, program, n), n, s.error);
        if (HasFatalFailure())
          return;
      }
    }
    const Numbers n{capped ? 1.5f : 0, 70, 3, 1};
    const State got = run(s, program, n), want = run(s, compiled(s, known(n)), {0, 0, 0, 1});
    ASSERT_EQ(want.error, "");
    if (!capped)
      EXPECT_TRUE(got == want) << "what is known and what is given differ";
    for (size_t i = 0; i < got.acc.size(); ++i)
      ASSERT_NEAR(got.acc[i], want.acc[i], 1e-4 * (1 + std::fabs(want.acc[i]))) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Storages, Scoring, testing::ValuesIn(storings));

TEST_F(Step, FactorsOfTolerances) {
  const Storing &s = storings[0];
  fill(300);
  const ProgramPtr program = compiled(s, "", s.policy, " tolerance_factor %t");
  ASSERT_TRUE(program);
  const State one = run(s, program, {0, 0, 0, 0, 1}), eight = run(s, program, {0, 0, 0, 0, 8}), known = run(s, compiled(s, "", "budget, tolerance = 0.015625"), {0, 0, 0, 0, 1});
  for (const State *state : {&one, &eight, &known})
    ASSERT_EQ(state->error, "");
  EXPECT_LT(eight.tally.key_bits + eight.tally.value_bits, one.tally.key_bits + one.tally.value_bits);
  EXPECT_NEAR(double(eight.tally.key_bits), double(known.tally.key_bits), 0.01 * double(known.tally.key_bits));
  EXPECT_NEAR(double(eight.tally.value_bits), double(known.tally.value_bits), 0.01 * double(known.tally.value_bits));
  EXPECT_TRUE(one == run(s, compiled(s, ""), {0, 0, 0, 0, 0}));
}

TEST_F(Step, RefusesOtherNumbers) {
  const Storing &s = storings[0];
  fill(65);
  const ProgramPtr program = compiled(s, given(true), s.policy, " tolerance_factor %t"), plain = compiled(s, "");
  ASSERT_TRUE(program && plain);
  auto refused = [&](const ProgramPtr &by, const Numbers &numbers, const std::string &message) { EXPECT_EQ(run(s, by, numbers).error, message); };
  EXPECT_EQ(run(s, program, {2, 5, 0, 0, 1}).error, "");
  refused(program, {0, 5, 0, 0, 1}, "expected softcap at site 0 from 1.000000003171e-30 to 1.000000015047e+30, got 0");
  refused(program, {NAN, 5, 0, 0, 1}, "expected softcap at site 0 from 1.000000003171e-30 to 1.000000015047e+30, got nan");
  refused(program, {2, 0, 0, 0, 1}, "expected window at site 0 from 1 to 1099511627776, got 0");
  refused(program, {2, 5, -1, 0, 1}, "expected sinks at site 0 from 0 to 1099511627776, got -1");
  refused(program, {2, 5, 0, -3, 1}, "expected later at site 0 from 0 to 536870912, got -3");
  refused(program, {2, 5, 0, 0, 0}, "expected tolerance_factor at site 0 from 1.175494350822e-38 to 3.402823466385e+38, got 0");
  EXPECT_EQ(run(s, plain, {0, 0, 0, 0, 1}).error, "");
  refused(plain, {2, 0, 0, 0, 0}, "expected no softcap at site 0, got 2");
  refused(plain, {0, 5, 0, 0, 0}, "expected no window at site 0, got 5");
  refused(plain, {0, 0, 1, 0, 0}, "expected no sinks at site 0, got 1");
  refused(plain, {0, 0, 0, 2, 0}, "expected no later at site 0, got 2");
  refused(plain, {0, 0, 0, 0, 2}, "expected no tolerance_factor at site 0, got 2");
}

} // namespace
