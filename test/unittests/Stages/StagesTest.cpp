// The stages' evaluator against the oracle of a whole step, which shares neither the stages nor the memory of caches: prepare,
// scan and attend, split by split, and their states merged, give the same output from the same bits.
#include "../Reference/Heads.h"
#include "Step.h"

using namespace aligned;

namespace {

double tolerances[] = {0x1p-6, 0x1p-9, 0x1p-12, 0};

bool isLimited(const HeadInputs &in) {
  auto limited = [](const Limits &limits) {
    return limits.tolerance || limits.least || limits.most < 16 || limits.newest || limits.sinks || !limits.ages.empty();
  };
  return limited(in.keyLimits) || limited(in.valueLimits);
}

/// All stages of all rows against decodeBudget of each.
void expectSame(std::vector<HeadInputs> inputs, const StepOptions &options, double near = 2e-6) {
  const StoredStep step(std::move(inputs), options);
  for (size_t row = 0; row < step.rows.size(); ++row) {
    SCOPED_TRACE("row " + std::to_string(row) + ", tolerance " + std::to_string(options.tolerance));
    const HeadInputs &in = step.rows[row];
    Buffers buffers(step);
    prepare(step, row, buffers);
    scan(step, row, buffers);
    attend(step, row, buffers);
    const Finished result = finish(step, row, buffers);
    const PolicyResult want = decodeBudget(in, options.tolerance);
    const double usual = std::isfinite(usualRow(in)) ? usualRow(in) : 1;
    const bool isFull =
        buffers.facts[buffers.rows * ALIGNED_FACTS + ALIGNED_ROW_FACT_FULL] > 0; // which the oracle has no need of
    for (size_t i = 0; i < want.out.size(); ++i)
      if (isFull)
        continue;
      else if (std::isfinite(want.out[i]))
        ASSERT_NEAR(result.out[i], want.out[i], near * usual)
            << "query row " << i / in.valueDim << ", channel " << i % in.valueDim;
      else
        ASSERT_TRUE(std::isnan(want.out[i]) ? std::isnan(result.out[i]) : result.out[i] == want.out[i])
            << i << ": " << result.out[i];
    for (int64_t t = 0; t < in.tokens && !isFull; ++t) {
      ASSERT_EQ(buffers.keyBits[t], want.keyPlan[t]) << "token " << t;
      ASSERT_EQ(buffers.valueBits[t], want.valuePlan[t]) << "token " << t;
    }
    const std::vector<double> exact = exactAttention(in);
    for (int64_t h = 0; h < in.heads; ++h)
      for (int64_t i = h * in.valueDim; i < (h + 1) * in.valueDim; ++i)
        if (std::isfinite(exact[i]))
          ASSERT_LE(std::fabs(result.out[i] - exact[i]), result.bound[h] * (1 + 1e-6) + near * usual) << "query row " << h;
  }
}

void expectSame(const HeadInputs &in, StepOptions options = {}) {
  for (double tolerance : tolerances) {
    if (tolerance == 0 && isLimited(in)) // `exact` has no limits
      continue;
    options.tolerance = tolerance;
    expectSame(std::vector<HeadInputs>{in}, options);
  }
}

TEST(Stages, Shapes) {
  constexpr int64_t shapes[][4] = {{1, 1, 16, 16},     {63, 3, 32, 64},    {64, 7, 64, 16},   {65, 2, 48, 96},  {97, 1, 80, 80},
                                   {200, 4, 128, 128}, {300, 1, 256, 256}, {2049, 2, 64, 64}, {5000, 3, 32, 48}};
  for (auto [tokens, heads, keyDim, valueDim] : shapes) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(keyDim) + " channels");
    expectSame(randomHead(tokens, heads, keyDim, valueDim));
  }
}

TEST(Stages, Families) {
  for (const std::string &name : kFamilies) {
    SCOPED_TRACE(name);
    expectSame(family(name, 300, 64));
  }
}

TEST(Stages, Masks) {
  const Mask masks[] = {
      {3, true},          {3, true, 64, 1},           {3, true, 5, 2},       {3, false, 5},        {1, true, 1},
      {1, false, 70, 66}, {2, true, 100000000000, 3}, {3, true, 64, 1, 100}, {1, true, 0, 0, 130}, {3, true, 5, 0, 198}};
  for (const Mask &mask : masks)
    for (int64_t tokens : {1, 65, 200, 2200}) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens, window " + std::to_string(mask.window) + ", later " +
                   std::to_string(mask.later));
      HeadInputs in = randomHead(tokens, 2 * mask.queries, 32, 48);
      in.mask = mask;
      in.maskedZero = mask.window == 5;
      if (mask.later < tokens)
        expectSame(in);
    }
}

TEST(Stages, SoftcapAndSinks) {
  for (double softcap : {0.0, 1.5, 30.0})
    for (bool sinks : {false, true}) {
      SCOPED_TRACE(softcap);
      HeadInputs in = family("biased channel", 2100, 32, 4);
      in.softcap = softcap;
      in.mask = {2, true};
      if (sinks)
        in.sinkLogits = {3, 3, -2, -2};
      expectSame(in);
    }
}

TEST(Stages, MaskOperands) {
  for (int element : {int(ALIGNED_MASK_F16), int(ALIGNED_MASK_BF16), int(ALIGNED_MASK_F32), int(ALIGNED_MASK_BOOL)})
    for (double softcap : {0.0, 2.0}) {
      SCOPED_TRACE("element " + std::to_string(element));
      HeadInputs in = randomHead(300, 4, 32, 32);
      in.softcap = softcap;
      in.mask.queries = 2;
      for (int64_t i = 0; i < in.heads * in.tokens; ++i) {
        double number = element == ALIGNED_MASK_BOOL ? 0 : double(i % 23 - 11) / 4;
        in.additive.push_back(i % 3 == 0 || i / in.tokens == 3 ? -INFINITY : number); // the last row sees nothing
      }
      StepOptions options;
      options.maskElement = element;
      expectSame(in, options);
      in.maskedZero = true;
      expectSame(in, options);
      in.sinkLogits = {0, 0, 1, 1};
      in.maskedZero = false;
      expectSame(in, options);
    }
}

TEST(Stages, LimitsAndResidency) {
  HeadInputs in = randomHead(2100, 3, 64, 64);
  in.keyLimits = {std::nullopt, 0, 8, 5, 3, {{100, 8}, {1000, 4}}};
  in.valueLimits = {0x1p-8, 4, 16, 2, 1, {{50, 8}, {900, 4}}};
  expectSame(in);
  in.keyLimits = {0x1p-11, 8, 16, 0, 0, {}};
  in.valueLimits = {std::nullopt, 8, 8, 0, 70, {}};
  expectSame(in);
  in = randomHead(300, 3, 64, 64);
  for (auto widths : {std::vector<int>{8, 8}, {4, 4, 4, 4}, {4, 4, 8}})
    for (int resident : {4, 3, 2, 1}) {
      in.keys.widths = in.values.widths = widths;
      in.keys.resident = in.values.resident = std::min(resident, int(widths.size()));
      expectSame(in);
    }
}

TEST(Stages, KeptAside) {
  const HeadInputs plain = randomHead(300, 3, 32, 32);
  int number = 0;
  auto with = [&](auto change) {
    SCOPED_TRACE("change " + std::to_string(number++));
    HeadInputs in = plain;
    change(in);
    expectSame(in);
  };
  with([](HeadInputs &in) { in.k[100 * 32 + 3] = -INFINITY; });
  with([](HeadInputs &in) { in.v[100 * 32 + 3] = INFINITY; });
  with([](HeadInputs &in) { in.v[70 * 32 + 3] = in.k[71 * 32] = NAN; });
  with([](HeadInputs &in) { in.k[70 * 32 + 3] = in.v[71 * 32] = INFINITY, in.softcap = 3; });
  with([](HeadInputs &in) { in.q[33] = NAN; });
  with([](HeadInputs &in) { in.q[33] = INFINITY, in.k[5 * 32 + 1] = INFINITY; });
  with([](HeadInputs &in) { in.mask = {1, true, 64, 2}, in.k[100 * 32] = in.v[101 * 32] = NAN; }); // nobody sees them
  with([](HeadInputs &in) { std::fill(in.k.begin(), in.k.end(), NAN); });
  with([](HeadInputs &in) { in.k[70 * 32 + 3] = in.k[71 * 32 + 3] = INFINITY, in.k[72 * 32 + 3] = -INFINITY, in.softcap = 3; });
  // Too large for the bias that the first tokens settled.
  StepOptions options;
  options.element = ALIGNED_ELEMENT_F32;
  options.firstTokens = 70;
  HeadInputs in = plain;
  for (int64_t c = 0; c < 32; ++c) {
    in.k[80 * 32 + c] *= 0x1p18;
    in.v[90 * 32 + c] *= 0x1p18;
    in.q[c] *= 0x1p-18;
  }
  expectSame(in, options);
}

/// Batch entries of different lengths, one of them empty, in pages; kv heads with policies of their own; queries of each element.
TEST(Stages, Rows) {
  for (int element : {ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32})
    for (int64_t pages : {0, 80}) {
      std::vector<HeadInputs> rows;
      for (int64_t tokens : {97, 2500, 0})
        for (int64_t head = 0; head < 2; ++head) {
          HeadInputs in = randomHead(tokens, 6, 48, 16, element == ALIGNED_ELEMENT_BF16 ? Storage::BFloat16 : Storage::Half);
          for (double &x : in.v)
            x *= double(head + 1);
          in.mask = {2, true};
          if (head)
            in.keyLimits = {0x1p-12, 8, 16, 0, 0, {}}, in.valueLimits = {std::nullopt, 0, 8, 4, 0, {{1000, 4}}};
          for (int64_t i = 0; i < in.heads * tokens; ++i)
            in.additive.push_back(double(i % 7) / 2);
          rows.push_back(in);
        }
      StepOptions options;
      options.kvHeads = 2;
      options.element = element;
      options.pages = pages;
      SCOPED_TRACE("element " + std::to_string(element) + ", pages " + std::to_string(pages));
      expectSame(rows, options);
    }
}

/// Sums that are told from another reference say the same.
TEST(Stages, ReferencesAreFree) {
  const StoredStep step({randomHead(5000, 2, 32, 32)});
  Buffers own(step), other(step);
  for (Buffers *buffers : {&own, &other}) {
    prepare(step, 0, *buffers);
    scan(step, 0, *buffers);
  }
  for (int64_t split = 0; split < step.splits(); ++split)
    for (int64_t h = 0; h < 2; ++h) {
      other.partOf(split)[h] += float(3 - split);
      other.partOf(split)[2 + h] *= float(std::exp2(split - 3));
    }
  attend(step, 0, own);
  attend(step, 0, other);
  EXPECT_EQ(own.keyBits, other.keyBits);
  EXPECT_EQ(own.valueBits, other.valueBits);
  const Finished a = finish(step, 0, own), b = finish(step, 0, other);
  for (size_t i = 0; i < a.out.size(); ++i)
    EXPECT_NEAR(a.out[i], b.out[i], 1e-6);
  for (size_t h = 0; h < 2; ++h) {
    EXPECT_NEAR(a.bound[h], b.bound[h], a.bound[h] * 1e-5);
    EXPECT_NEAR(a.estimate[h], b.estimate[h], a.estimate[h] * 1e-5);
  }
}

/// The estimate of a step is the oracle's, but for A in the place of the mean size of addends.
TEST(Stages, Estimates) {
  for (const char *name : {"gauss", "peaky", "V with mean"}) {
    const StoredStep step({family(name, 2500, 64)});
    Buffers buffers(step);
    prepare(step, 0, buffers);
    scan(step, 0, buffers);
    attend(step, 0, buffers);
    const Finished result = finish(step, 0, buffers);
    const PolicyResult want = decodeBudget(step.rows[0], step.options.tolerance);
    for (size_t h = 0; h < want.estimate.size(); ++h)
      EXPECT_NEAR(result.estimate[h], want.estimate[h], want.estimate[h] * 0.1) << name;
  }
}

} // namespace
