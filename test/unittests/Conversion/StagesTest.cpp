// Kernels of the stages against their meaning in float64, one stage at a time: each gets what the evaluator wrote for it.
#include "../Reference/Heads.h"
#include "Kernels.h"


using namespace aligned;

namespace {

struct Case {
  std::string name;
  std::vector<HeadInputs> rows;
  StepOptions options = {};
};

class Comparison {
public:
  explicit Comparison(const StoredStep &step, const Kernels &kernels) : step(step), kernels(kernels) {}

  void compare(int64_t row) {
    this->row = row;
    in = &step.rows[row];
    Buffers reference(step);
    prepare(step, row, reference);
    scan(step, row, reference);
    attend(step, row, reference);

    Buffers own = reference;
    own.digits.assign(own.digits.size(), 85);
    for (auto *buffer : {&own.facts, &own.mean})
      std::fill(buffer->begin(), buffer->end(), NAN);
    kernels.prepare(step, row, own);
    comparePrepared(own, reference);

    own = reference;
    for (auto *buffer : {&own.scores, &own.tops, &own.parts})
      std::fill(buffer->begin(), buffer->end(), NAN);
    kernels.scan(step, row, own);
    compareScanned(own, reference);

    own = reference;
    for (auto *buffer : {&own.acc, &own.max, &own.sum, &own.certificate})
      std::fill(buffer->begin(), buffer->end(), NAN);
    own.keyBits.assign(own.keyBits.size(), 0);
    own.valueBits.assign(own.valueBits.size(), 0);
    kernels.attend(step, row, own);
    compareStates(own, reference);
    mix();
  }

private:
  const StoredStep &step;
  const Kernels &kernels;
  const HeadInputs *in = nullptr;
  int64_t row = 0;

  float fact(const Buffers &b, int64_t h, int which) { return b.facts[h * ALIGNED_FACTS + which]; }
  bool finite(const Buffers &b, int64_t h) { return !std::isnan(fact(b, h, ALIGNED_FACT_NOT_FINITE)); }

  int64_t integer(const Buffers &b, int64_t h, int64_t c) {
    int64_t v = 0;
    for (int64_t d = 0; d < step.stage.digits; ++d)
      v = v * 256 + b.digits[(d * b.rows + h) * b.keyDim + c];
    return v;
  }

  void comparePrepared(const Buffers &own, const Buffers &want) {
    const double full = step.exact() ? kLargestOfThree : kLargestOfTwoDigits;
    for (int64_t h = 0; h < own.rows; ++h) {
      double sum = 0;
      for (int64_t c = 0; c < own.keyDim; ++c) {
        sum += double(integer(own, h, c));
        ASSERT_NEAR(double(integer(own, h, c)), double(integer(want, h, c)), std::max(1.0, full * 5e-7))
            << "query row " << h << ", channel " << c;
      }
      ASSERT_NEAR(fact(own, h, ALIGNED_FACT_SUM), sum, std::fabs(sum) * 1e-7);
      auto near = [&](int which, double size, const char *what) {
        ASSERT_NEAR(fact(own, h, which), fact(want, h, which), size * 1e-5) << what << " of query row " << h;
      };
      const double norm = fact(want, h, ALIGNED_FACT_NORM);
      if (norm)
        near(ALIGNED_FACT_UNIT, fact(want, h, ALIGNED_FACT_UNIT), "unit");
      near(ALIGNED_FACT_NORM, norm, "norm");
      near(ALIGNED_FACT_MASS, fact(want, h, ALIGNED_FACT_MASS), "mass");
      near(ALIGNED_FACT_SHRINK, std::max<double>(1, std::fabs(fact(want, h, ALIGNED_FACT_SHRINK))), "shrink");
      near(ALIGNED_FACT_LOG_SEEN, 1, "log of what is seen");
      double offset = 0;
      for (int64_t c = 0; c < own.keyDim; ++c)
        offset += std::pow((*in->offset)[c], 2);
      near(ALIGNED_FACT_SHIFT, norm * std::sqrt(offset), "shift");
      ASSERT_EQ(std::isnan(fact(own, h, ALIGNED_FACT_NOT_FINITE)), std::isnan(fact(want, h, ALIGNED_FACT_NOT_FINITE)));
    }
    auto near = [&](int which, double size, const char *what) {
      ASSERT_NEAR(fact(own, own.rows, which), fact(want, own.rows, which), size * 1e-5) << what;
    };
    near(ALIGNED_ROW_FACT_LOG_USUAL, 1, "log of A");
    near(ALIGNED_ROW_FACT_USUAL, fact(want, own.rows, ALIGNED_ROW_FACT_USUAL), "A");
    near(ALIGNED_ROW_FACT_VALUE_UNIT, fact(want, own.rows, ALIGNED_ROW_FACT_VALUE_UNIT), "unit of V");
    near(ALIGNED_ROW_FACT_LARGEST_KEY, 0, "largest code of K");
    near(ALIGNED_ROW_FACT_FLOOR_VALUE, 0, "floor of V");
    near(ALIGNED_ROW_FACT_FULL, 0, "whether K is read in full");
    for (int64_t c = 0; c < own.valueDim; ++c)
      ASSERT_NEAR(own.mean[c], want.mean[c], 1e-5 * usual(want)) << "mean of channel " << c;
  }

  /// Whoever runs which stage, no output is off by more than its bound.
  void mix() {
    const std::vector<double> exact = exactAttention(*in);
    for (int kernelStages = 0; kernelStages < 8; ++kernelStages) {
      Buffers b(step);
      kernelStages & 1 ? kernels.prepare(step, row, b) : prepare(step, row, b);
      kernelStages & 2 ? kernels.scan(step, row, b) : scan(step, row, b);
      kernelStages & 4 ? kernels.attend(step, row, b, /*record=*/false) : attend(step, row, b);
      const Finished result = finish(step, row, b);
      for (size_t i = 0; i < exact.size(); ++i)
        if (std::isfinite(exact[i])) {
          const double bound = result.bound[i / in->valueDim];
          ASSERT_LE(std::fabs(result.out[i] - exact[i]), bound * (1 + 1e-5) + 1e-6 * usual(b))
              << "by kernels: " << kernelStages << ", query row " << i / in->valueDim;
        }
    }
  }

  double usual(const Buffers &b) {
    return double(fact(b, b.rows, ALIGNED_ROW_FACT_USUAL)) * fact(b, b.rows, ALIGNED_ROW_FACT_VALUE_UNIT);
  }

  void compareScanned(const Buffers &own, const Buffers &want) {
    for (int64_t tile = 0; tile * 64 < in->tokens; ++tile) {
      if (!in->mask.isTileSeen(tile, in->tokens))
        continue;
      for (int64_t h = 0; h < own.rows; ++h) {
        bool regular = finite(want, h);
        for (int64_t i = (tile * own.rows + h) * 64, last = i + 64; i < last; ++i) {
          if (std::isfinite(want.scores[i]))
            ASSERT_NEAR(own.scores[i], want.scores[i], std::max(1e-4, std::fabs(want.scores[i]) * 1e-6))
                << "tile " << tile << ", query row " << h << ", token " << i + 64 - last;
          else if (finite(want, h)) // of a query that is not, the sum has to be NaN
            ASSERT_TRUE(std::isnan(want.scores[i]) ? std::isnan(own.scores[i]) : own.scores[i] == want.scores[i])
                << own.scores[i] << " for " << want.scores[i] << ", query row " << h;
          regular &= std::isfinite(want.scores[i]);
        }
        auto top = [&](const Buffers &b) {
          const float *first = &b.tops[(tile * b.rows + h) * ALIGNED_TOP_LANES];
          return *std::max_element(first, first + ALIGNED_TOP_LANES);
        };
        if (regular)
          ASSERT_NEAR(top(own), top(want), std::max(1e-4, std::fabs(top(want)) * 1e-6))
              << "top of tile " << tile << ", query row " << h;
      }
    }
    for (int64_t split = 0; split < step.splits(); ++split)
      for (int64_t h = 0; h < own.rows; ++h) {
        const float *mine = own.parts.data() + 2 * split * own.rows + h, *theirs = want.parts.data() + 2 * split * own.rows + h;
        const double sum = theirs[own.rows] * std::exp2(double(theirs[0]) - mine[0]);
        if (std::isnan(theirs[own.rows]))
          ASSERT_TRUE(std::isnan(mine[own.rows]));
        else
          ASSERT_NEAR(mine[own.rows], sum, sum * ((step.exact() ? 1e-5 : 1e-4) + 2e-7 * std::fabs(theirs[0])))
              << "sum of split " << split << ", query row " << h;
        if (theirs[own.rows] > 0)
          ASSERT_NEAR(mine[0], theirs[0], 64) << "reference of split " << split << ", query row " << h;
      }
  }

  /// K is read as the rule says or further. That given, V is, and what is left is that weights are whole numbers.
  void compareStates(Buffers &own, Buffers &want) {
    const std::vector<bool> &keyAside = step.keyAside[row], &valueAside = step.valueAside[row];
    Buffers same = want; // what reads as much of K
    same.keyBits = own.keyBits;
    std::fill(same.valueBits.begin(), same.valueBits.end(), 0);
    attend(step, row, same);
    int64_t extraKey = 0, extraValue = 0, bytes = 0, nibbles = 0;
    for (int64_t t = 0; t < in->tokens; ++t) {
      if (!want.keyBits[t] || keyAside[t] || valueAside[t])
        continue;
      ASSERT_GE(own.keyBits[t], want.keyBits[t]) << "bits of K of token " << t;
      ASSERT_GE(own.valueBits[t], same.valueBits[t]) << "bits of V of token " << t << ", of K " << int(own.keyBits[t]);
      extraKey += own.keyBits[t] - want.keyBits[t];
      extraValue += own.valueBits[t] - want.valueBits[t];
      nibbles += own.valueBits[t] == 4;
      bytes += own.valueBits[t] == 8;
    }
    if (std::getenv("ALIGNED_VERBOSE"))
      std::printf("%.3f bits of K and %.3f of V of a token more than asked\n",
                  double(extraKey) / double(std::max<int64_t>(1, in->tokens)),
                  double(extraValue) / double(std::max<int64_t>(1, in->tokens)));
    same.valueBits = own.valueBits;
    attend(step, row, same);
    const Finished a = finish(step, row, own), b = finish(step, row, same);
    for (int64_t h = 0; h < own.rows; ++h) {
      double squares = 0, length = 0, largest = 0;
      for (int64_t i = h * own.valueDim; i < (h + 1) * own.valueDim; ++i)
        if (std::isfinite(b.out[i])) {
          squares += std::pow(a.out[i] - b.out[i], 2);
          length += b.out[i] * b.out[i];
        } else {
          ASSERT_TRUE(std::isnan(b.out[i]) ? std::isnan(a.out[i]) : a.out[i] == b.out[i])
              << a.out[i] << " for " << b.out[i] << ", query row " << h;
        }
      for (int64_t tile = 0; tile * 64 < in->tokens; ++tile)
        if (in->mask.isTileSeen(tile, in->tokens))
          for (int64_t i = (tile * own.rows + h) * 64, end = i + 64; i < end; ++i)
            if (want.scores[i] > -5e37 && std::isfinite(want.scores[i]))
              largest = std::max<double>(largest, std::fabs(want.scores[i]));
      // Rounding of 2^x and of scores; steps of weights in units of tau A.
      const double rounding = (step.exact() ? 5e-6 : 2e-4) + 6e-7 * largest;
      const double tau = step.options.tolerance * std::exp2(-fact(want, h, ALIGNED_FACT_LOG_SEEN) / 2);
      const double step =
          std::sqrt((double(bytes) / (1.2 * 1.2) + double(nibbles) / 64) / 6) * tau * usual(want) * 0.5 * std::sqrt(own.valueDim);
      ASSERT_LE(std::sqrt(squares), 4 * step + rounding * (std::sqrt(length) + usual(want)))
          << "query row " << h << " of length " << std::sqrt(length);
      if (std::isfinite(b.logSum[h]))
        ASSERT_NEAR(a.logSum[h], b.logSum[h], rounding) << "sum of query row " << h;
      else
        ASSERT_TRUE(std::isnan(b.logSum[h]) ? std::isnan(a.logSum[h]) : a.logSum[h] == b.logSum[h]) << "sum of query row " << h;
    }
  }
};

/// Instruction sets that this machine has.
const std::vector<Isa> &isas() {
  static const std::vector<Isa> all = [] {
    std::vector<Isa> isas;
    for (llvm::StringRef name : hostIsas())
      isas.push_back(*parseIsa(name));
    return isas;
  }();
  return all;
}

/// Compiling takes most of the time: steps of one stage share kernels, and but for `everyIsa` stages take turns at instruction
/// sets.
void compare(const std::vector<Case> &cases, bool everyIsa = false) {
  static size_t turn = 0;
  ++turn;
  std::vector<std::unique_ptr<StoredStep>> steps;
  for (const Case &test : cases)
    steps.push_back(std::make_unique<StoredStep>(test.rows, test.options));
  for (size_t i = 0; i < isas().size(); ++i) {
    if (!everyIsa && i != turn % isas().size())
      continue;
    SCOPED_TRACE("isa " + std::to_string(int(isas()[i])));
    const Kernels kernels(*steps.front(), isas()[i]);
    for (size_t number = 0; number < cases.size(); ++number)
      for (size_t row = 0; row < steps[number]->rows.size(); ++row) {
        SCOPED_TRACE(cases[number].name + ", row " + std::to_string(row));
        Comparison(*steps[number], kernels).compare(int64_t(row));
      }
  }
}

StepOptions withTolerance(double tolerance) {
  StepOptions options;
  options.tolerance = tolerance;
  return options;
}

TEST(StageKernels, Shapes) {
  constexpr int64_t shapes[][3] = {{2, 64, 32}, {1, 16, 16}, {9, 48, 96}, {1, 256, 128}};
  for (auto [heads, keyDim, valueDim] : shapes)
    for (double tolerance : {0x1p-9, 0.0}) {
      if (tolerance == 0 && keyDim < 64)
        continue;
      std::vector<Case> cases;
      for (int64_t tokens : {1, 63, 64, 65, 200, 2200})
        cases.push_back({std::to_string(tokens) + " tokens, tolerance " + std::to_string(tolerance),
                         {randomHead(tokens, heads, keyDim, valueDim)},
                         withTolerance(tolerance)});
      compare(cases, keyDim == 64);
    }
}

TEST(StageKernels, Families) {
  for (double tolerance : {0x1p-6, 0x1p-9, 0x1p-12, 0.0}) {
    std::vector<Case> cases;
    for (const std::string &name : kFamilies)
      cases.push_back({name, {family(name, 400, 64)}, withTolerance(tolerance)});
    compare(cases);
  }
}

TEST(StageKernels, Masks) {
  const Mask masks[] = {{3, true, 64, 1},           {3, false, 5},         {1, false, 70, 66},
                        {2, true, 100000000000, 3}, {3, true, 64, 1, 100}, {3, true, 5, 0, 198}};
  for (const Mask &mask : masks) {
    std::vector<Case> cases;
    for (int64_t tokens : {1, 2, 65, 200, 2200}) {
      HeadInputs in = randomHead(tokens, 2 * mask.queries, 32, 48);
      in.mask = mask;
      in.maskedZero = mask.window == 5;
      if (mask.later < tokens)
        cases.push_back(
            {std::to_string(tokens) + " tokens, window " + std::to_string(mask.window) + ", later " + std::to_string(mask.later),
             {in}});
    }
    compare(cases);
  }
}

TEST(StageKernels, SoftcapAndSinks) {
  for (auto [softcap, sinks] : {std::pair(1.5, true), {30.0, false}, {0.0, true}}) {
    HeadInputs in = family("biased channel", 2100, 32, 4);
    in.softcap = softcap;
    in.mask = {2, true};
    if (sinks)
      in.sinkLogits = {3, 3, -2, -2};
    compare({{"softcap " + std::to_string(softcap), {in}}});
  }
}

TEST(StageKernels, MaskOperands) {
  for (int element : {int(ALIGNED_MASK_F16), int(ALIGNED_MASK_BF16), int(ALIGNED_MASK_F32), int(ALIGNED_MASK_BOOL)}) {
    std::vector<Case> cases;
    for (int64_t tokens : {70, 300}) {
      HeadInputs in = randomHead(tokens, 4, 32, 32);
      in.softcap = element == ALIGNED_MASK_F16 || element == ALIGNED_MASK_BOOL ? 2 : 0;
      in.mask.queries = 2;
      for (int64_t i = 0; i < in.heads * in.tokens; ++i) {
        double number = element == ALIGNED_MASK_BOOL ? 0 : double(i % 23 - 11) / 4;
        in.additive.push_back(i % 3 == 0 || i / in.tokens == 3 ? -INFINITY : number); // the last row sees nothing
      }
      if (element == ALIGNED_MASK_BF16 || element == ALIGNED_MASK_BOOL)
        in.sinkLogits = {0, 0, 1, 1};
      StepOptions options;
      options.maskElement = element;
      cases.push_back({"mask of element " + std::to_string(element), {in}, options});
    }
    compare(cases);
  }
}

TEST(StageKernels, LimitsAndResidency) {
  HeadInputs in = randomHead(2100, 3, 64, 64);
  in.keyLimits = {std::nullopt, 0, 8, 5, 3, {{100, 8}, {1000, 4}}};
  in.valueLimits = {0x1p-8, 4, 16, 2, 1, {{50, 8}, {900, 4}}};
  compare({{"staircases", {in}}});
  in.keyLimits = {0x1p-11, 8, 16, 0, 0, {}};
  in.valueLimits = {std::nullopt, 8, 8, 0, 70, {}};
  compare({{"least", {in}}});
  in.keyLimits = in.valueLimits = {};
  using Widths = std::vector<int>;
  for (auto [widths, resident, tolerance] : {std::tuple(Widths{8, 8}, 2, 0x1p-9),
                                             {Widths{8, 8}, 1, 0x1p-9},
                                             {Widths{4, 4, 4, 4}, 4, 0x1p-12},
                                             {Widths{4, 4, 4, 4}, 3, 0.0},
                                             {Widths{4, 4, 8}, 2, 0x1p-9},
                                             {Widths{4, 4, 8}, 1, 0x1p-9}}) {
    in.keys.widths = in.values.widths = widths;
    in.keys.resident = in.values.resident = resident;
    compare({{std::to_string(widths.size()) + " planes, resident " + std::to_string(resident), {in}, withTolerance(tolerance)}});
  }
}

TEST(StageKernels, KeptAside) {
  const HeadInputs plain = randomHead(300, 3, 32, 32);
  for (auto [softcap, tolerance] : {std::pair(0.0, 0x1p-9), {3.0, 0x1p-9}, {0.0, 0.0}}) {
    std::vector<Case> cases;
    auto with = [&, softcap = softcap, tolerance = tolerance](auto change) {
      HeadInputs in = plain;
      in.softcap = softcap;
      change(in);
      cases.push_back(
          {"change " + std::to_string(cases.size()) + ", softcap " + std::to_string(softcap), {in}, withTolerance(tolerance)});
    };
    with([](HeadInputs &in) { in.k[100 * 32 + 3] = -INFINITY; });
    with([](HeadInputs &in) { in.v[100 * 32 + 3] = INFINITY; });
    with([](HeadInputs &in) { in.v[70 * 32 + 3] = in.k[71 * 32] = NAN; });
    with([](HeadInputs &in) { in.k[70 * 32 + 3] = in.v[71 * 32] = INFINITY; });
    with([](HeadInputs &in) { in.q[33] = NAN; });
    with([](HeadInputs &in) { in.q[33] = INFINITY, in.k[5 * 32 + 1] = INFINITY; });
    with([](HeadInputs &in) { std::fill(in.k.begin(), in.k.end(), NAN); });
    with([](HeadInputs &in) { in.k[70 * 32 + 3] = in.k[71 * 32 + 3] = INFINITY, in.k[72 * 32 + 3] = -INFINITY; });
    with([](HeadInputs &in) {
      for (int64_t i = 0; i < 300 * 32; i += 32)
        in.v[i] = i % 64 ? 1 : INFINITY;
    });
    compare(cases);
  }
  HeadInputs in = plain;
  in.mask = {1, true, 64, 2}; // nobody sees these, in a tile that nobody sees and in one of which others are seen
  for (int64_t token : {100, 200})
    in.k[token * 32] = in.v[(token + 1) * 32] = NAN;
  compare({{"unseen", {in}}});
  // Too large for the bias that the first tokens settled.
  StepOptions options;
  options.element = ALIGNED_ELEMENT_F32;
  options.firstTokens = 70;
  in = plain;
  for (int64_t c = 0; c < 32; ++c) {
    in.k[80 * 32 + c] *= 0x1p18;
    in.v[90 * 32 + c] *= 0x1p18;
    in.q[c] *= 0x1p-18;
  }
  compare({{"beyond the bias", {in}, options}});
}

/// Batch entries of different lengths, one of them empty, in pages; kv heads with policies of their own; queries of each element.
TEST(StageKernels, Rows) {
  for (auto [element, pages] :
       {std::pair(int(ALIGNED_ELEMENT_F16), 80), {int(ALIGNED_ELEMENT_BF16), 0}, {int(ALIGNED_ELEMENT_F32), 80}}) {
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
    compare({{"element " + std::to_string(element) + ", pages " + std::to_string(pages), rows, options}});
  }
}

} // namespace
