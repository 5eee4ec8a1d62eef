// Kernels over float planes (S8), run by the interpreter: the bits that the published rule (P1) asks for are read, or all, and the output is what these bits give in float64.
#include "../Gpu/Emulated.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <tuple>

using namespace aligned;
using namespace aligned::test;

namespace {

constexpr int64_t kKvHeads = 2, kBatch = 2;

struct Case {
  const char *element = "f16";
  int64_t group = 3, keyDim = 64, valueDim = 64;
  const char *query = nullptr; ///< element of queries, where it is another
  int64_t queries = 1;
  const char *sight = ""; ///< mask and softcap, as the op says them
  Mask mask = {};
  double softcap = 0;
  std::vector<int64_t> tokens = {1, 63, 64, 65, 600};
  bool exact = false;
  bool aside = false; ///< whether some tokens hold what planes can't
  bool paged = false;
  int resident = 4;   ///< planes
  MaskOperand operand = {};
  bool sinks = false;
  const char *limits = ""; ///< of both kv heads, as the op says them
  Limits key = {}, value = {};

  const char *queryElement() const { return query ? query : element; }
  Storage storage() const { return element == std::string("bf16") ? Storage::BFloat16 : Storage::Half; }
  int64_t heads() const { return group * queries; }
  aligned_format format(int32_t role) const {
    const int32_t number = element == std::string("f16") ? ALIGNED_ELEMENT_F16 : element == std::string("bf16") ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F32;
    return number == ALIGNED_ELEMENT_BF16 ? aligned_format{ALIGNED_FORMAT_FLOAT, role, number, 2, {12, 4}} : aligned_format{ALIGNED_FORMAT_FLOAT, role, number, 3, {8, 4, 4}};
  }
};

std::ostream &operator<<(std::ostream &os, const Case &c) {
  return os << (c.exact ? "exact, " : "") << c.queryElement() << " queries of " << c.element << ", " << c.group << "x" << c.queries << " rows, " << c.keyDim << "/" << c.valueDim << " "
            << c.sight << c.limits << (c.operand.element ? std::string(" attn_mask of ") + c.operand.element : "") << (c.sinks ? " with sinks" : "")
            << (c.aside ? ", tokens kept aside" : "") << (c.paged ? ", pages" : "") << (c.resident < 4 ? ", planes gone" : "");
}

/// Probabilities and channels that differ by orders of magnitude, so that all tiers are met.
struct Inputs {
  int64_t tokens;
  std::vector<int64_t> lengths;
  Values q, k, v, mask, sinks; ///< k, v: [batch][kv heads][tokens][dim]

  Inputs(const Case &c, int64_t tokens) : tokens(tokens), lengths{tokens, tokens / 3} {
    std::mt19937 random(uint32_t(tokens * 31 + c.keyDim));
    std::normal_distribution<double> normal;
    q = Values(c.queryElement(), kBatch * kKvHeads * c.heads() * c.keyDim, [&](int64_t i) { return normal(random) * std::exp2(-double(i % c.keyDim * 5 % 12)) * 4; });
    auto side = [&](int64_t dim, bool isValue) {
      return Values(c.element, kBatch * kKvHeads * tokens * dim, [&](int64_t i) {
        const int64_t token = i / dim % tokens, channel = i % dim;
        const double x = normal(random) * (isValue ? (token % 17 ? 1.0 : 6.0) : channel == 3 ? 8.0 : std::exp2(-double(channel * 3 % 7)));
        if (!c.aside || token % 29 != (isValue ? 7 : 11) || channel % 12 != 7)
          return x;
        // Channels of K for which queries are small: a score that is huge has no digits left for others.
        const double values[] = {isValue ? NAN : -INFINITY, INFINITY, 1e5, -7e4}; // the last two are beyond halves alone
        return values[c.element == std::string("f32") ? 2 + token / 29 % 2 : token / 29 % 2];
      });
    };
    k = side(c.keyDim, false);
    v = side(c.valueDim, true);
    if (c.operand.element)
      mask = c.operand.random(tokens);
    if (c.sinks)
      sinks = Values("f32", kKvHeads * c.group, [](int64_t head) { return 2.0 * double(head % 4) - 3; });
  }

  HeadInputs of(const Case &c, int64_t row) const {
    const int64_t length = lengths[row / kKvHeads];
    HeadInputs in;
    in.heads = c.heads();
    in.tokens = length;
    in.keyDim = c.keyDim;
    in.valueDim = c.valueDim;
    auto part = [](const Values &values, int64_t first, int64_t count) { return std::vector<double>(values.exact.begin() + first, values.exact.begin() + first + count); };
    in.q = part(q, row * in.heads * c.keyDim, in.heads * c.keyDim);
    in.k = part(k, row * tokens * c.keyDim, length * c.keyDim);
    in.v = part(v, row * tokens * c.valueDim, length * c.valueDim);
    in.scale = 0.125;
    in.storage = c.storage();
    in.keyLimits = c.exact ? Limits{std::nullopt, 16, 16} : c.key;
    in.valueLimits = c.exact ? Limits{std::nullopt, 16, 16} : c.value;
    in.mask = c.mask;
    in.softcap = c.softcap;
    in.keys.resident = in.values.resident = c.resident;
    for (int64_t h = 0; h < in.heads; ++h) {
      const int64_t head = row % kKvHeads * c.group + h / c.queries;
      for (int64_t t = 0; t < length && c.operand.element; ++t)
        in.additive.push_back(c.operand.at(mask, tokens, row / kKvHeads, head, h % c.queries, t));
      if (c.sinks)
        in.sinkLogits.push_back(sinks.exact[head]);
    }
    return in;
  }
};

/// What a step says that it read.
struct Reads {
  std::map<int64_t, std::pair<std::vector<int>, std::vector<int>>> rows;

  static void listen(void *context, int32_t, int64_t row, int64_t, int64_t tokens, int64_t channels, const uint8_t *key, const uint8_t *value) {
    const int64_t keys = channels > 1 ? (tokens + 63) / 64 * channels : tokens;
    static_cast<Reads *>(context)->rows[row] = {std::vector<int>(key, key + keys), std::vector<int>(value, value + tokens)};
  }
};

struct Outcome {
  std::vector<float> acc, max, sum;
  Reads reads;
  aligned_tally tally = {};
};

class FloatOnGpu : public Emulated, public testing::WithParamInterface<Case> {
protected:
  static ProgramPtr compile(const Case &c) {
    return Emulated::compile(attentionOf(c, kKvHeads, std::to_string(kBatch), c.exact ? " policy <exact>" : std::string(" policy <alignedkv") + c.limits + ">"),
                             std::string("format=float<") + (c.storage() == Storage::BFloat16 ? "12,4" : "8,4,4") + ">");
  }

  /// A cache on the device, with all tokens of both batch entries, of which each is `lengths` long.
  static CachePtr pack(const Case &c, const ProgramPtr &program, const Inputs &in, int32_t role) {
    const aligned_format format = c.format(role);
    const int64_t dim = role == ALIGNED_ROLE_KEY ? c.keyDim : c.valueDim, strides[] = {kKvHeads * in.tokens * dim, in.tokens * dim, dim, 1};
    CachePtr host(c.paged ? aligned_cache_create_paged(&format, kBatch, kKvHeads, dim, 2 * (in.tokens / 64 + 3), in.tokens + 200)
                          : aligned_cache_create(&format, kBatch, kKvHeads, dim, in.tokens + 70));
    EXPECT_TRUE(host) << aligned_last_error();
    const char *data = (role == ALIGNED_ROLE_KEY ? in.k : in.v).bytes.data();
    EXPECT_EQ(aligned_cache_append_ragged(host.get(), data, in.lengths.data(), strides), 0) << aligned_last_error();
    if (c.resident < format.planes)
      EXPECT_EQ(aligned_cache_drop_planes(host.get(), c.resident), 0) << aligned_last_error();
    EXPECT_EQ(host->asides > 0, c.aside && in.tokens > 11);
    CachePtr device(aligned_cuda_cache_upload(program.get(), host.get()));
    EXPECT_TRUE(device) << aligned_last_error();
    return device;
  }

  static Outcome decode(const Case &c, const ProgramPtr &program, const Inputs &in, int32_t splits = 0, bool alsoFinished = true) {
    const int64_t rows = kBatch * kKvHeads * c.heads();
    Outcome outcome{std::vector<float>(rows * c.valueDim, 7), std::vector<float>(rows, 7), std::vector<float>(rows, 7), {}};
    CachePtr key = pack(c, program, in, ALIGNED_ROLE_KEY), value = pack(c, program, in, ALIGNED_ROLE_VALUE);
    for (int plane = 0; plane < ALIGNED_MAX_PLANES; ++plane) {
      name(key->plane[plane], "key");
      name(value->plane[plane], "value");
    }
    aligned_decode_call call = {};
    call.batch = kBatch;
    call.key = key.get();
    call.value = value.get();
    call.query = in.q.bytes.data();
    setOperands(call, in.mask, in.sinks);
    call.scale = 0.125f;
    call.splits = splits;
    call.acc = outcome.acc.data();
    call.max = outcome.max.data();
    call.sum = outcome.sum.data();
    aligned_rt_record(&outcome.tally, 1);
    aligned_rt_record_bits(Reads::listen, &outcome.reads);
    EXPECT_EQ(aligned_program_decode(program.get(), 0, &call), 0) << aligned_last_error();
    aligned_rt_record_bits(nullptr, nullptr);
    aligned_rt_record(nullptr, 0);
    if (alsoFinished)
      expectFinished(program, call, rows, c.valueDim);
    return outcome;
  }

  /// Bits of which a probability near a threshold may move one of 50.
  static void expectReads(const Case &c, const HeadInputs &in, std::vector<int> got, std::vector<int> want, bool isValue) {
    ASSERT_EQ(got.size(), want.size());
    size_t different = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      if (isValue) {
        bool isAside = false; // whose planes hold nothing
        for (int64_t channel = 0; channel < in.valueDim; ++channel)
          isAside |= !std::isfinite(widen(narrow(in.v[i * in.valueDim + channel], in.storage), in.storage));
        bool hidden = want[i] == 0 && c.operand.element; // by the operand alone: planes are read beside those that are seen
        if (isAside || hidden)
          continue;
      }
      EXPECT_LE(std::abs(got[i] - want[i]), isValue ? 8 : 0) << (isValue ? "token " : "channel ") << i << " of " << got.size();
      different += got[i] != want[i];
    }
    EXPECT_LE(different, got.size() / 50);
  }

  static void expectRule(const Case &c, const Inputs &in, const Outcome &outcome, bool reads = true) {
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
      const HeadInputs head = in.of(c, row);
      const PolicyResult want = decodeAlignedKV(head);
      SCOPED_TRACE("row " + std::to_string(row));
      const auto &[keys, values] = outcome.reads.rows.at(row);
      if (reads) {
        expectReads(c, head, keys, want.keyPlan, false);
        expectReads(c, head, values, want.valuePlan, true);
      }
      for (int64_t h = 0; h < head.heads; ++h) {
        SCOPED_TRACE("query row " + std::to_string(h));
        const float sum = outcome.sum[row * head.heads + h];
        if (!head.tokens && !c.sinks) {
          EXPECT_EQ(sum, 0);
          EXPECT_EQ(outcome.max[row * head.heads + h], -INFINITY);
        }
        expectRow(&outcome.acc[(row * head.heads + h) * c.valueDim], sum, &want.out[h * c.valueDim], c.valueDim, c.exact ? 2e-4 : 5e-3);
      }
    }
  }
};

using FloatCalls = FloatOnGpu;

TEST_P(FloatOnGpu, ReadsWhatTheRuleAsks) {
  const Case &c = GetParam();
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  for (int64_t tokens : c.tokens) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    Inputs in(c, tokens);
    expectRule(c, in, decode(c, program, in));
    if (HasFailure())
      return;
  }
}

Case exactly(Case c) {
  c.exact = true;
  return c;
}
Case shortly(Case c, std::vector<int64_t> tokens = {65, 300}) {
  c.tokens = tokens;
  return c;
}
INSTANTIATE_TEST_SUITE_P(Shapes, FloatOnGpu,
                         testing::Values(Case{"f16", 3, 64, 64}, Case{"f16", 1, 64, 64}, Case{"bf16", 3, 64, 64}, Case{"f32", 3, 64, 64}, shortly({"f16", 8, 128, 128}), shortly({"f16", 16, 48, 80}),
                                         shortly({"bf16", 16, 96, 256}), shortly({"f16", 32, 256, 256}, {65}), shortly({"bf16", 29, 256, 16, "f32"}, {65}), shortly({"f16", 32, 16, 112}, {130}),
                                         shortly(Case{"f16", 5, 80, 240}), shortly({"f16", 1, 16, 32}, {2500})));
INSTANTIATE_TEST_SUITE_P(Exact, FloatOnGpu,
                         testing::Values(exactly({"f16", 3, 64, 64}), exactly(shortly({"bf16", 9, 128, 96})), exactly(shortly({"f32", 2, 48, 64, nullptr, 2})), exactly(shortly({"f16", 32, 96, 128}, {65}))));
INSTANTIATE_TEST_SUITE_P(Queries, FloatOnGpu,
                         testing::Values(shortly({"f16", 3, 64, 64, "f32"}), shortly({"f16", 9, 128, 128, "bf16"}), shortly({"bf16", 3, 128, 64, "f32"}), shortly({"bf16", 9, 80, 64, "f16"}),
                                         exactly(shortly({"bf16", 3, 64, 64, "f32"}))));

Case masked(Case c, const char *sight, Mask mask, double softcap = 0) {
  c.sight = sight;
  c.mask = mask;
  c.mask.queries = c.queries;
  c.softcap = softcap;
  c.tokens = {65, 600};
  return c;
}
INSTANTIATE_TEST_SUITE_P(Masked, FloatOnGpu,
                         testing::Values(masked({"f16", 2, 64, 64, nullptr, 3}, "mask <causal>", {1, true}), masked({"f16", 3, 64, 64}, "mask <causal, window = 100>", {1, true, 100}),
                                         masked({"bf16", 2, 128, 128, nullptr, 3}, "mask <causal, window = 70, sinks = 4>", {1, true, 70, 4}), masked({"f16", 3, 96, 48}, "softcap 2.0", {}, 2.0),
                                         exactly(masked({"f16", 3, 64, 64, nullptr, 2}, "softcap 5.0 mask <causal, window = 300, sinks = 1>", {1, true, 300, 1}, 5.0))));

Case with(Case c, MaskOperand operand, bool sinks = false) {
  c.operand = operand;
  c.sinks = sinks;
  c.tokens = {65, 300};
  return c;
}
INSTANTIATE_TEST_SUITE_P(Operands, FloatOnGpu,
                         testing::Values(with({"f16", 3, 64, 64}, {}, true), with({"f16", 3, 64, 64, nullptr, 2}, {"f32", 2, 6, 2}), with({"bf16", 2, 64, 64}, {"i1", 1, 1, 1}, true),
                                         exactly(with({"f16", 9, 64, 64}, {"bf16", 1, 18, 1}))));

Case aside(Case c) {
  c.aside = true;
  c.tokens = {12, 200};
  return c;
}
INSTANTIATE_TEST_SUITE_P(Aside, FloatOnGpu,
                         testing::Values(aside({"f16", 3, 64, 64}), aside({"bf16", 9, 96, 128}), aside({"f32", 3, 64, 48}), exactly(aside({"f32", 3, 64, 48})), exactly(aside({"f16", 3, 64, 64})),
                                         aside(masked({"f16", 2, 64, 64, nullptr, 3}, "mask <causal, window = 70, sinks = 4>", {1, true, 70, 4})),
                                         aside(with({"f32", 3, 64, 48}, {"f32", 2, 6, 1}, true))));

Case paged(Case c) {
  c.paged = true;
  return c;
}
Case without(Case c, int resident) {
  c.resident = resident;
  c.tokens = {65, 300};
  return c;
}
Case limited(Case c, const char *limits, Limits key, Limits value) {
  c.limits = limits;
  c.key = key;
  c.value = value;
  c.tokens = {65, 300};
  return c;
}
INSTANTIATE_TEST_SUITE_P(Caches, FloatOnGpu,
                         testing::Values(paged({"f16", 3, 64, 64}), paged(exactly({"bf16", 3, 64, 64})), without({"f16", 3, 64, 64}, 2), without(aside({"f32", 3, 64, 64}), 1), without(exactly({"bf16", 3, 64, 64}), 1),
                                         limited({"f16", 3, 64, 64}, ", key = <bits = 0 to 12, newest = 3>, value = <bits = 12 to 16, ages = [100: 8]>", {std::nullopt, 0, 12, 3},
                                                 {std::nullopt, 12, 16, 0, 0, {{100, 8}}})));

/// More splits than tiles among them.
TEST_F(FloatCalls, GiveTheSameWithAnyNumberOfSplits) {
  for (const Case &c : {Case{"f16", 3, 64, 64}, masked({"bf16", 9, 64, 48, nullptr, 2}, "mask <causal, window = 150, sinks = 3>", {1, true, 150, 3}), aside({"f32", 3, 64, 64}),
                        aside(masked({"f32", 3, 64, 64}, "mask <causal, window = 250, sinks = 40>", {1, true, 250, 40}))}) {
    SCOPED_TRACE(testing::PrintToString(c));
    ProgramPtr program = compile(c);
    ASSERT_TRUE(program);
    Inputs in(c, 400);
    for (int32_t splits : {1, 2, 3, 7, 20}) {
      SCOPED_TRACE(std::to_string(splits) + " splits");
      expectRule(c, in, decode(c, program, in, splits));
    }
  }
}

/// The most probable rows may lie in any of more tiles than are looked at.
TEST_F(FloatCalls, ProbeTheMostProbableRowsWhereverTheyAre) {
  Case c{"f16", 2, 16, 16};
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  for (int64_t first : {0, 1200, 2400}) {
    SCOPED_TRACE("from token " + std::to_string(first));
    Inputs in(c, 2500);
    in.lengths = {2500, 2500};
    in.q = Values("f16", int64_t(in.q.exact.size()), [&, exact = in.q.exact](int64_t i) { return i % 16 ? exact[i] / 8 : 4; });
    in.k = Values("f16", int64_t(in.k.exact.size()), [&, exact = in.k.exact](int64_t i) {
      const int64_t token = i / 16 % 2500;
      return i % 16 ? exact[i] : token >= first && token < first + 100 ? 8 : -8;
    });
    expectRule(c, in, decode(c, program, in));
  }
}

/// A query row that is not finite is NaN; others are what they were.
TEST_F(FloatCalls, KeepQueriesThatAreNotFiniteApart) {
  for (const Case &c : {Case{"f16", 3, 64, 64}, Case{"bf16", 3, 64, 64, "f32"}, exactly({"f32", 9, 48, 64}), masked({"f16", 3, 64, 64}, "softcap 2.0", {}, 2.0)}) { // a cap makes infinite scores finite
    SCOPED_TRACE(testing::PrintToString(c));
    ProgramPtr program = compile(c);
    ASSERT_TRUE(program);
    Inputs in(c, 100);
    in.q = Values(c.queryElement(), int64_t(in.q.exact.size()), [&, exact = in.q.exact](int64_t i) {
      return i == 5 * c.keyDim + 3 ? INFINITY : i == c.keyDim ? NAN : exact[i];
    });
    expectRule(c, in, decode(c, program, in), /*reads=*/false);
  }
}

/// The midpoint of what is missing of their planes would show where their own values are 0.
TEST_F(FloatCalls, LeavePlanesOfTokensKeptAsideOut) {
  Case c = without({"f32", 3, 64, 64}, 1);
  c.aside = true;
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  Inputs in(c, 12); // of which the key of token 11 is kept aside
  in.v = Values("f32", kBatch * kKvHeads * 12 * 64, [](int64_t i) { return i % 64 == 7 ? 1e5 : 0; });
  Outcome outcome = decode(c, program, in);
  expectRule(c, in, outcome);
  for (size_t i = 0; i < outcome.acc.size(); ++i)
    if (i % 64 != 7)
      EXPECT_EQ(outcome.acc[i], 0) << i;
}

/// Distinct sectors that kernels touch of the planes, against the bits that were called for. A row of V of 64 channels is a sector for each layer, a channel of a tile of K, too.
TEST_F(FloatCalls, ReadNoMoreThanTheySay) {
  for (const Case &c : {Case{"f16", 3, 64, 64}, exactly({"f16", 3, 64, 64})}) {
    SCOPED_TRACE(testing::PrintToString(c));
    ProgramPtr program = compile(c);
    ASSERT_TRUE(program);
    Inputs in(c, 768);
    in.lengths = {768, 768};
    Outcome outcome;
    std::map<std::string, Count> counts = countsOf([&] { outcome = decode(c, program, in, /*splits=*/0, /*alsoFinished=*/false); });
    EXPECT_NEAR(double(counts["decode0_scores"].bytes["key"]), double(outcome.tally.key_bits) / 8, 0.01 * double(outcome.tally.key_bits) / 8);
    EXPECT_NEAR(double(counts["decode0_values"].bytes["value"]), double(outcome.tally.value_bits) / 8, 0.01 * double(outcome.tally.value_bits) / 8);
    for (const auto &[kernel, count] : counts)
      RecordProperty(kernel + (c.exact ? "_exact" : "") + "_instructions", std::to_string(count.instructions));
  }
}

/// A captured step follows its caches as they grow.
TEST_F(FloatCalls, AreReplayedWhileCachesGrow) {
  Case c{"f16", 3, 64, 64};
  ProgramPtr program = compile(c);
  ASSERT_TRUE(program);
  constexpr int64_t kTokens = 66;
  Inputs in(c, kTokens);
  in.lengths = {kTokens, kTokens};
  const int64_t rows = kBatch * kKvHeads * c.heads();
  DeviceArrays arrays;
  auto tokenOf = [&](const Values &values, int64_t token) { // of all rows
    std::vector<char> bytes;
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row)
      bytes.insert(bytes.end(), values.bytes.begin() + (row * kTokens + token) * 128, values.bytes.begin() + (row * kTokens + token + 1) * 128);
    return bytes;
  };
  std::vector<CachePtr> caches;
  for (int32_t role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE}) {
    const aligned_format format = c.format(role);
    const int64_t strides[] = {kKvHeads * kTokens * 64, kTokens * 64, 64, 1};
    caches.emplace_back(aligned_program_create_cache(program.get(), &format, kBatch, kKvHeads, 64, 128));
    ASSERT_TRUE(caches.back()) << aligned_last_error();
    ASSERT_EQ(aligned_cache_append(caches.back().get(), (role == ALIGNED_ROLE_KEY ? in.k : in.v).bytes.data(), kTokens - 3, strides), 0) << aligned_last_error();
  }
  aligned_step step = {};
  step.call.batch = kBatch;
  step.call.key = caches[0].get();
  step.call.value = caches[1].get();
  step.call.location = ALIGNED_LOCATION_CUDA;
  step.call.scale = 0.125f;
  step.call.query = arrays.add(in.q.bytes);
  step.call.acc = arrays.add<float>(rows * 64 * 4);
  step.call.sum = arrays.add<float>(rows * 4);
  void *key = arrays.add(4 * 128), *value = arrays.add(4 * 128);
  step.key_data = key;
  step.value_data = value;
  GraphPtr graph(aligned_program_capture(program.get(), &step, 1));
  ASSERT_TRUE(graph) << aligned_last_error();
  for (int64_t token = kTokens - 3; token < kTokens; ++token) {
    SCOPED_TRACE(token);
    for (auto [to, values] : {std::pair(key, &in.k), std::pair(value, &in.v)}) {
      std::vector<char> bytes = tokenOf(*values, token);
      ASSERT_EQ(aligned_cuda_copy_to_device(to, bytes.data(), int64_t(bytes.size())), 0);
    }
    ASSERT_EQ(aligned_graph_launch(graph.get()), 0) << aligned_last_error();
    std::vector<float> acc(rows * 64), sum(rows);
    ASSERT_EQ(aligned_cuda_copy_to_host(acc.data(), step.call.acc, rows * 64 * 4), 0) << aligned_last_error();
    ASSERT_EQ(aligned_cuda_copy_to_host(sum.data(), step.call.sum, rows * 4), 0) << aligned_last_error();
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
      Inputs now = in;
      now.lengths = {token + 1, token + 1};
      PolicyResult want = decodeAlignedKV(now.of(c, row));
      std::vector<double> got;
      for (int64_t i = 0; i < c.heads() * 64; ++i)
        got.push_back(acc[row * c.heads() * 64 + i] / sum[row * c.heads() + i / 64]);
      for (double error : relativeErrors(got, want.out, 64))
        EXPECT_LE(error, 5e-3) << "row " << row;
    }
  }
}

} // namespace
