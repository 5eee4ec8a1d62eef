// Steps over fixed planes (StepKernel.h), run by the interpreter: attention over the tokens as they were appended, within what
// the policy aims at, from no fewer bits than the rule asks for.
#include "Step.h"

#include <numeric>

using namespace aligned;
using namespace aligned::test;

namespace {

/// What tolerances are about: the usual length of a row of V. That of all tokens, as A is (M2), or of those that are seen, where
/// it is more.
double usualLength(const HeadInputs &in) {
  double sum = 0, inverse = 0;
  int64_t seen = 0, all = 0;
  for (int64_t t = 0; t < in.tokens; ++t) {
    double square = 0; // of what is finite
    for (int64_t c = 0; c < in.valueDim; ++c) {
      const double x = in.v[t * in.valueDim + c];
      square += std::isfinite(x) ? x * x : 0;
    }
    if (square == 0)
      continue;
    ++all;
    inverse += 1 / std::sqrt(square);
    if (in.mask.isSeen(t, in.tokens)) {
      ++seen;
      sum += std::sqrt(square);
    }
  }
  return std::max(seen ? sum / double(seen) : 0, all ? double(all) / inverse : 0);
}

bool isAside(const std::vector<double> &values, int64_t token, int64_t dim) {
  return std::any_of(values.begin() + token * dim, values.begin() + (token + 1) * dim,
                     [](double x) { return !std::isfinite(x); });
}

/// The bits that the rule asks for, of which `rule` says how far it reads K. How far a kernel reads V goes by the coarse score:
/// it is decided along with K.
Plan planOf(HeadInputs in, double tolerance, const PolicyResult &rule) {
  Plan plan{rule.keyPlan, {}};
  for (int64_t t = 0; t < in.tokens; ++t) // the scan reads what stands beside tokens that are seen
    if (!plan.key[t] && in.mask.isTileSeen(t / ALIGNED_TILE, in.tokens))
      plan.key[t] = 4;
  in.keyLimits = {in.keyLimits.tolerance, 0, 4};
  plan.value = decodeBudget(in, tolerance).valuePlan;
  return plan;
}

/// With thresholds that are larger by that factor.
Plan planAbove(double factor, HeadInputs in, double tolerance) {
  for (Limits *limits : {&in.keyLimits, &in.valueLimits})
    if (limits->tolerance)
      *limits->tolerance *= factor;
  return planOf(in, tolerance * factor, decodeBudget(in, tolerance * factor));
}

struct Sums {
  double read = 0, asked = 0;   ///< bits
  double squares = 0, left = 0; ///< of errors of rows, relative to usual rows of V; of those that the reference has, too
  int64_t rows = 0;
};

/// No fewer bits than the rule asks for but near a threshold; adds up both.
void expectReads(const Case &c, const HeadInputs &in, const PolicyResult &rule, const Plan &got, Sums &sums) {
  const Plan asked = planOf(in, c.tolerance(), rule), least = planAbove(1.02, in, c.tolerance());
  for (auto [side, read, asks, leasts, dim] : {std::tuple("K", &got.key, &asked.key, &least.key, in.keyDim),
                                               std::tuple("V", &got.value, &asked.value, &least.value, in.valueDim)}) {
    SCOPED_TRACE(side);
    ASSERT_EQ(int64_t(read->size()), in.tokens);
    for (int64_t t = 0; t < in.tokens; ++t) {
      if (isAside(in.k, t, in.keyDim) || isAside(in.v, t, in.valueDim)) // which no plane holds
        continue;
      EXPECT_GE((*read)[t], (*leasts)[t]) << "token " << t;
      sums.read += double((*read)[t] * dim);
      sums.asked += double((*asks)[t] * dim);
    }
  }
}

void expectOutput(const Case &c, const HeadInputs &in, const PolicyResult &rule, int64_t row, const State &got, Sums &sums) {
  const std::vector<double> want = exactAttention(in);
  std::vector<double> acc(in.heads * in.valueDim), max(in.heads), sum(in.heads);
  exactState(in, acc.data(), max.data(), sum.data());
  const double usual = usualLength(in);
  for (int64_t h = 0; h < in.heads; ++h) {
    SCOPED_TRACE("query row " + std::to_string(h));
    const int64_t place = row * in.heads + h;
    double square = 0, left = 0;
    for (int64_t i = 0; i < in.valueDim; ++i) {
      const double wanted = want[h * in.valueDim + i], x = got.out(place, i, in.valueDim);
      if (!std::isfinite(wanted)) {
        EXPECT_TRUE(std::isnan(wanted) ? std::isnan(x) : x == wanted) << "channel " << i << ": " << x << ", not " << wanted;
        continue;
      }
      square += std::pow(x - wanted, 2);
      left += std::pow(rule.out[h * in.valueDim + i] - wanted, 2);
    }
    sums.squares += usual > 0 ? square / (usual * usual) : square;
    sums.left += usual > 0 ? left / (usual * usual) : left;
    ++sums.rows;
    if (sum[h] == 0) {
      EXPECT_EQ(got.sum[place], 0);
      EXPECT_EQ(got.max[place], -INFINITY);
      for (int64_t i = 0; i < in.valueDim; ++i)
        EXPECT_EQ(got.acc[place * in.valueDim + i], 0);
    } else if (std::isfinite(sum[h]) && c.policies.empty() &&
               c.keyResident == 3) { // where all bits are read that the rule asks for
      EXPECT_NEAR(got.max[place] + std::log(got.sum[place]), max[h] + std::log(sum[h]), 20 * c.tolerance() + 1e-3);
    }
  }
}

void expectStep(const Case &c, const Inputs &in, const Caches &host, const State &got) {
  ASSERT_EQ(got.error, "");
  Sums sums;
  for (int64_t row = 0; row < kRows; ++row) {
    SCOPED_TRACE("row " + std::to_string(row));
    const HeadInputs head = in.of(c, row, *host.key, *host.value);
    const PolicyResult rule = decodeBudget(head, c.tolerance());
    expectReads(c, head, rule, got.plans[row], sums);
    expectOutput(c, head, rule, row, got, sums);
    if (testing::Test::HasFailure())
      return;
  }
  EXPECT_LE(sums.read, c.more * sums.asked + 16 * double(c.keyDim + c.valueDim)); // a token more is not much
  const double rms = std::sqrt(sums.squares / double(sums.rows)), left = std::sqrt(sums.left / double(sums.rows));
  EXPECT_LE(rms, std::max(c.isExact() ? 0x1p-13 : 2 * c.tolerance(), 1.05 * left + c.tolerance()));
}

class DecodeOnGpu : public Steps, public testing::WithParamInterface<Case> {};

TEST_P(DecodeOnGpu, IsAttentionFromWhatTheRuleAsks) {
  const Case &c = GetParam();
  const ProgramPtr program = kernelsOf(c).load();
  ASSERT_TRUE(program);
  for (int64_t tokens : c.tokens) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    const Inputs in(c, tokens);
    const Caches host = packed(c, in), device = host.upload(program);
    expectStep(c, in, host, decode(c, program, device, in));
    State again;
    const aligned_decode_call call = callOf(c, device, in, again);
    EXPECT_EQ(aligned_program_decode(program.get(), 0, &call), 0) << aligned_last_error();
    expectFinished(program, call, kRows * c.heads(), c.valueDim);
    if (HasFailure())
      return;
  }
}

//===----------------------------------------------------------------------===//
// Cases
//===----------------------------------------------------------------------===//

// Kernels are compiled once: most of these are shared by many cases.
const Case kFast{"fast"}, kBalanced{"balanced"}, kTight{"tight"}, kExact{"exact"}, kEightRows{"tight", 8, 64, 64},
    kNarrow{"tight", 2, 80, 64, 1, "f32", "f32"}, kBFloat{"balanced", 3, 64, 64, 1, "bf16", "bf16"};

Case of(Case c, std::vector<int64_t> tokens) {
  c.tokens = std::move(tokens);
  return c;
}
const std::vector<int64_t> kLengths{1, 5, 63, 64, 65, 200, 1000};

INSTANTIATE_TEST_SUITE_P(Policies, DecodeOnGpu,
                         testing::Values(of(kFast, kLengths), of(kBalanced, kLengths), of(kTight, kLengths), of(kExact, kLengths),
                                         kEightRows));

// Query rows, and channels of K and V.
INSTANTIATE_TEST_SUITE_P(Shapes, DecodeOnGpu,
                         testing::Values(Case{"balanced", 1, 16, 48}, Case{"fast", 2, 48, 16}, Case{"tight", 4, 80, 96},
                                         Case{"balanced", 5, 96, 80}, of({"balanced", 8, 128, 128}, {1, 300}),
                                         Case{"exact", 5, 48, 80}, of({"fast", 12, 192, 64}, {65}),
                                         of({"balanced", 16, 256, 256}, {130}), of({"exact", 16, 192, 256}, {65}),
                                         Case{"balanced", 4, 256, 192}, of({"tight", 16, 64, 128}, {300}),
                                         Case{"tight", 1, 16, 16, 2}));

INSTANTIATE_TEST_SUITE_P(Elements, DecodeOnGpu,
                         testing::Values(kBFloat, kNarrow, Case{"exact", 3, 64, 64, 1, "f32", "f32"},
                                         Case{"exact", 1, 64, 64, 1, "f16", "f32"}, Case{"tight", 2, 64, 48, 1, "bf16", "f16"},
                                         Case{"fast", 3, 64, 64, 1, "f32", "bf16"}));

Case sees(Case c, const char *sight, Mask mask, double softcap = 0, bool maskedZero = false) {
  c.sight = sight;
  c.mask = mask;
  c.softcap = softcap;
  c.maskedZero = maskedZero;
  return of(c, {65, 600});
}
const Case kWindow = sees({"balanced", 4, 64, 64, 3}, "mask <causal, window = 150, sinks = 70>", {1, true, 150, 70}),
           kExactWindow = sees(kExact, "mask <window = 70, sinks = 4>", {1, false, 70, 4});
INSTANTIATE_TEST_SUITE_P(Masks, DecodeOnGpu,
                         testing::Values(sees({"balanced", 2, 64, 64, 3}, "mask <causal>", {1, true}),
                                         of(sees({"exact", 2, 64, 64, 3}, "mask <causal>", {1, true}), {1, 65}), kWindow,
                                         kExactWindow,
                                         of(sees({"fast", 1, 64, 64, 4}, "mask <causal>", {1, true}, 0, true), {1, 3, 10})));

const Case kCapped = sees(kEightRows, "softcap 20.0", {}, 20);
INSTANTIATE_TEST_SUITE_P(Softcaps, DecodeOnGpu,
                         testing::Values(of(kCapped, {65, 300}), sees(kExact, "softcap 5.0", {}, 5),
                                         sees({"balanced", 2, 96, 48, 2}, "softcap 5.0 mask <causal, window = 300, sinks = 1>",
                                              {1, true, 300, 1}, 5)));

Case with(Case c, MaskOperand operand, bool sinks = false) {
  c.operand = operand;
  c.sinks = sinks;
  return of(c, {65, 300});
}
const Case kMasked = with({"balanced", 3, 64, 64, 2}, {"f32", 2, 6, 2});
INSTANTIATE_TEST_SUITE_P(
    Operands, DecodeOnGpu,
    testing::Values(kMasked, with(sees(kBalanced, "softcap 3.0", {}, 3), {}, true), with(kCapped, {"f32", 2, 16, 1}),
                    with(sees(kExact, "softcap 5.0", {}, 5), {"f16", 1, 1, 1}), with(kTight, {"f16", 1, 1, 1}),
                    with({"exact", 2, 64, 64, 2}, {"f16", 1, 4, 1}, true), with({"fast", 8, 64, 64}, {"i1", 2, 1, 1}),
                    with(sees({"balanced", 2, 64, 64, 2}, "mask <causal, window = 70, sinks = 4>", {1, true, 70, 4}),
                         {"i1", 1, 1, 2}, true)));

/// P7, of each kv head its own, and on each side.
Case limited(Case c, const char *policies, std::vector<Limits> key, std::vector<Limits> value) {
  c.policies = policies;
  std::copy(key.begin(), key.end(), c.key);
  std::copy(value.begin(), value.end(), c.value);
  c.more = 1.2; // where K is read more finely, so is the first plane of V, whatever V may not do
  return of(c, {5, 97, 600});
}
const Limits kSinksAndAges{0x1p-6, 4, 12, 0, 65, {{100, 8}, {500, 4}}}, kNewest{0x1p-6, 0, 16, 130, 0, {{1, 12}}},
    kLeast{0x1p-8, 8, 16}, kMost{0x1p-8, 0, 4}, kNone{0x1p-8, 0, 0}, kOwn{0x1p-11}, kRule{0x1p-8};
INSTANTIATE_TEST_SUITE_P(
    Limits, DecodeOnGpu,
    testing::Values(limited(kBalanced,
                            "policies [<budget, tolerance = 0.015625, key = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: "
                            "4]>, value = <newest = 130, ages = [1: 12]>>,"
                            " <budget, tolerance = 0.015625, key = <newest = 130, ages = [1: 12]>, value = <bits = 4 to 12, "
                            "sinks = 65, ages = [100: 8, 500: 4]>>]",
                            {kSinksAndAges, kNewest}, {kNewest, kSinksAndAges}),
                    limited(kBalanced,
                            "policies [<budget, tolerance = 0.00390625, key = <bits = 8 to 16>, value = <bits = 0 to 4>>,"
                            " <budget, tolerance = 0.00390625, key = <bits = 0 to 4>, value = <bits = 8 to 16>>]",
                            {kLeast, kMost}, {kMost, kLeast}),
                    limited({"balanced", 8, 64, 64},
                            "policies [<budget, tolerance = 0.00390625, key = <tolerance = 0.00048828125>>,"
                            " <budget, tolerance = 0.00390625, value = <bits = 0 to 0>>]",
                            {kOwn, kRule}, {kRule, kNone}),
                    limited(sees({"balanced", 2, 64, 64, 2}, "mask <causal, window = 300, sinks = 1>", {1, true, 300, 1}),
                            "policies [<budget, tolerance = 0.015625, key = <bits = 4 to 12, sinks = 65, ages = [100: 8, 500: "
                            "4]>, value = <newest = 130, ages = [1: 12]>>,"
                            " <budget, tolerance = 0.00390625, key = <bits = 8 to 16>, value = <bits = 8 to 16>>]",
                            {kSinksAndAges, kLeast}, {kNewest, kLeast})));

/// S9: planes are gone, of caches whose type has them.
Case dropped(Case c, int keyResident, int valueResident) {
  c.keyResident = keyResident;
  c.valueResident = valueResident;
  return c;
}
Case paged(Case c) {
  c.paged = true;
  return c;
}
INSTANTIATE_TEST_SUITE_P(Caches, DecodeOnGpu,
                         testing::Values(dropped(kTight, 2, 2), dropped(kExact, 1, 2), dropped(kBalanced, 3, 1),
                                         of(paged(kBalanced), {1, 63, 130, 600}), paged(kExact),
                                         paged(dropped(kEightRows, 1, 2))));

Case like(Content content, Case c) {
  c.content = content;
  if (content == Content::LowValues)
    c.more = 1.2; // rows below the floor are read as if they were usual ones
  if (content == Content::Aside)
    c.more = INFINITY; // where scores are infinite the rule asks for nothing
  return of(c, {40, 200});
}
INSTANTIATE_TEST_SUITE_P(LowValues, DecodeOnGpu,
                         testing::Values(like(Content::LowValues, kFast), like(Content::LowValues, kBalanced),
                                         like(Content::LowValues, kEightRows), like(Content::LowValues, kExact),
                                         like(Content::LowValues, kWindow)));

INSTANTIATE_TEST_SUITE_P(Aside, DecodeOnGpu,
                         testing::Values(like(Content::Aside, kBalanced), like(Content::Aside, kExact),
                                         like(Content::Aside, kNarrow), like(Content::Aside, kBFloat),
                                         like(Content::Aside, kWindow), like(Content::Aside, kCapped),
                                         like(Content::Aside, kMasked), like(Content::Aside, paged(dropped(kExact, 2, 2)))));

//===----------------------------------------------------------------------===//
// Calls
//===----------------------------------------------------------------------===//

using DecodeCalls = Steps;

/// Outputs that differ by rounding, and by what rounding makes of thresholds; rows of V have values around 1.
void expectClose(const Case &c, const State &got, const State &want) {
  ASSERT_EQ(got.error, "");
  for (int64_t row = 0; row < int64_t(want.sum.size()); ++row) {
    double square = 0;
    for (int64_t i = 0; i < c.valueDim; ++i) {
      const double x = got.out(row, i, c.valueDim), y = want.out(row, i, c.valueDim);
      square += x == y || (std::isnan(x) && std::isnan(y)) ? 0 : std::pow(x - y, 2);
    }
    EXPECT_LE(std::sqrt(square / double(c.valueDim)), c.isExact() ? 0x1p-14 : c.tolerance() / 4) << "row " << row;
  }
}

TEST_F(DecodeCalls, GiveTheSameForAnyNumberOfSplits) {
  for (const Case &c : {like(Content::Aside, kBalanced), kExactWindow}) {
    SCOPED_TRACE(testing::PrintToString(c));
    const ProgramPtr program = kernelsOf(c).load(), chained = kernelsOf(c).chained().load();
    ASSERT_TRUE(program && chained);
    const Inputs in(c, 400);
    const Caches caches = packed(c, in).upload(program);
    const State one = decode(c, program, caches, in, 1);
    for (int32_t splits : {2, 3, 7}) {
      SCOPED_TRACE(std::to_string(splits) + " splits");
      const State state = decode(c, program, caches, in, splits);
      expectClose(c, state, one);
      // Each launch has another schedule.
      expectSame(decode(c, program, caches, in, splits), state);
      expectSame(decode(c, chained, caches, in, splits), state);
    }
  }
}

/// The device appends and takes back as the host does; what it then decodes is the same bit by bit.
TEST_F(DecodeCalls, FollowCachesThatAreForkedAndTruncated) {
  const Case c = paged(kBalanced);
  const ProgramPtr program = kernelsOf(c).load();
  ASSERT_TRUE(program);
  Inputs in(c, 200);
  in.lengths = {150, 70};
  const Caches host = packed(c, in), device = host.upload(program);
  auto expect = [&](const Caches &device, const Caches &host) {
    for (int64_t n = 0; n < kBatch; ++n)
      in.lengths[n] = aligned_cache_length(host.key.get(), n);
    const State state = decode(c, program, device, in);
    expectStep(c, in, host, state);
    expectSame(decode(c, program, host.upload(program), in), state);
  };
  auto both = [&](const auto &body) {
    body(host);
    body(device);
  };
  both([](const Caches &caches) { caches.both([](aligned_cache *cache) { return aligned_cache_truncate(cache, 77); }); });
  expect(device, host);
  const Caches hostFork = host.fork(), fork = device.fork();
  ASSERT_TRUE(fork.key && fork.value) << aligned_last_error();
  both([&](const Caches &caches) { caches.append(c, in, 77, {60, 0}); });
  for (const Caches *caches : {&hostFork, &fork})
    caches->append(c, in, 77, {1, 0});
  expect(fork, hostFork);
  expect(device, host);
  for (const Caches *caches : {&hostFork, &fork})
    caches->both([](aligned_cache *cache) { return aligned_cache_release(cache, 0); });
  expect(fork, hostFork);
}

/// A captured step may find more tokens to keep aside than their list has room for: those that follow read no further than the list.
TEST_F(DecodeCalls, ReadNoFurtherThanTheListOfTokensKeptAside) {
  const Case &c = kBalanced;
  const ProgramPtr program = kernelsOf(c).load();
  ASSERT_TRUE(program);
  constexpr int64_t kDim = 64, kLaunches = 40;
  const Inputs in(c, kLaunches);
  const Values infinite(c.element, kRows * kDim, [](int64_t) { return INFINITY; });
  DeviceArrays arrays;
  Caches caches;
  for (int32_t role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE}) {
    const aligned_format format = c.format(role);
    (role == ALIGNED_ROLE_KEY ? caches.key : caches.value).reset(aligned_program_create_cache(program.get(), &format, kBatch, kKvHeads, kDim, kLaunches));
  }
  ASSERT_TRUE(caches.key && caches.value) << aligned_last_error();
  State got;
  aligned_step step = {};
  step.call = callOf(c, caches, in, got);
  step.call.location = ALIGNED_LOCATION_CUDA;
  step.call.query = arrays.add(in.q.bytes);
  for (auto [field, numbers] : {std::pair(&step.call.acc, &got.acc), std::pair(&step.call.max, &got.max), std::pair(&step.call.sum, &got.sum)})
    *field = arrays.add<float>(int64_t(numbers->size() * sizeof(float)));
  step.key_data = step.value_data = arrays.add(infinite.bytes);
  const GraphPtr graph(aligned_program_capture(program.get(), &step, 1));
  ASSERT_TRUE(graph) << aligned_last_error();
  for (int64_t i = 0; i < kLaunches; ++i)
    ASSERT_EQ(aligned_graph_launch(graph.get()), 0) << aligned_last_error();
  EXPECT_EQ(aligned_cuda_synchronize(), 0) << aligned_last_error();
  EXPECT_FALSE(aligned_cuda_cache_download(caches.key.get()));
  EXPECT_EQ(std::string(aligned_last_error()),
            "expected at most 64 tokens with values that planes can't hold in a cache on the device, got 160: those beyond are lost");
}

/// A captured step that appends a token to each entry and decodes.
TEST_F(DecodeCalls, AreReplayedWhileCachesGrow) {
  const Case &c = kBalanced;
  const ProgramPtr program = kernelsOf(c).load();
  ASSERT_TRUE(program);
  constexpr int64_t kFirst = 60, kSteps = 70, kCapacity = 192;
  Inputs in(c, kFirst + kSteps);
  Caches host, device;
  DeviceArrays arrays;
  for (int32_t role : {ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE}) {
    const aligned_format format = c.format(role);
    (role == ALIGNED_ROLE_KEY ? host.key : host.value).reset(aligned_cache_create(&format, kBatch, kKvHeads, 64, kCapacity));
    (role == ALIGNED_ROLE_KEY ? device.key : device.value)
        .reset(aligned_program_create_cache(program.get(), &format, kBatch, kKvHeads, 64, kCapacity));
  }
  ASSERT_TRUE(device.key && device.value) << aligned_last_error();
  for (const Caches *caches : {&host, &device})
    caches->append(c, in, 0, {kFirst, kFirst});
  State got;
  aligned_step step = {};
  step.call = callOf(c, device, in, got, /*splits=*/2);
  step.call.location = ALIGNED_LOCATION_CUDA;
  step.call.query = arrays.add(in.q.bytes);
  for (auto [field, numbers] :
       {std::pair(&step.call.acc, &got.acc), std::pair(&step.call.max, &got.max), std::pair(&step.call.sum, &got.sum)})
    *field = arrays.add<float>(int64_t(numbers->size() * sizeof(float)));
  constexpr int64_t kTokenBytes = 64 * 2;
  void *data[] = {arrays.add(kRows * kTokenBytes), arrays.add(kRows * kTokenBytes)};
  step.key_data = data[0];
  step.value_data = data[1];
  const GraphPtr graph(aligned_program_capture(program.get(), &step, 1));
  ASSERT_TRUE(graph) << aligned_last_error();
  for (int64_t token = kFirst; token < kFirst + kSteps; ++token) {
    for (int side : {0, 1}) {
      std::vector<char> bytes;
      for (int64_t row = 0; row < kRows; ++row) {
        const auto from = (side ? in.v : in.k).bytes.begin() + (row * in.tokens + token) * kTokenBytes;
        bytes.insert(bytes.end(), from, from + kTokenBytes);
      }
      ASSERT_EQ(aligned_cuda_copy_to_device(data[side], bytes.data(), int64_t(bytes.size())), 0) << aligned_last_error();
    }
    ASSERT_EQ(aligned_graph_launch(graph.get()), 0) << aligned_last_error();
    host.append(c, in, token, {1, 1});
    if (token % 64 > 2 && token % 64 < 62 && token % 23)
      continue;
    SCOPED_TRACE(std::to_string(token + 1) + " tokens");
    for (auto [numbers, from] :
         {std::pair(&got.acc, step.call.acc), std::pair(&got.max, step.call.max), std::pair(&got.sum, step.call.sum)})
      ASSERT_EQ(aligned_cuda_copy_to_host(numbers->data(), from, int64_t(numbers->size() * sizeof(float))), 0)
          << aligned_last_error();
    State fresh = decode(c, program, host.upload(program), in, 2);
    got.plans = fresh.plans; // which a graph does not record
    expectSame(got, fresh);
  }
}

} // namespace
