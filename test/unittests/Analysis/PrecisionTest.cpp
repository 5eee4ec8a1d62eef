// The analysis of precision against what random graphs do (P6): values are in their ranges, rounded or not, and what may be off by a slack moves no result by
// more than its tolerance.
#include "Graphs.h"

#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"

#include "gtest/gtest.h"

using namespace aligned;
using namespace aligned::graphs;

namespace {

constexpr int kGraphs = 2000, kRuns = 4, kChanges = 12;

class Precision : public testing::Test {
protected:
  Precision() {
    context.loadDialect<AlignedDialect, arith::ArithDialect, func::FuncDialect, linalg::LinalgDialect, math::MathDialect, scf::SCFDialect, tensor::TensorDialect,
                        vector::VectorDialect>();
  }
  MLIRContext context;
};

std::string text(Operation *op) {
  std::string text;
  llvm::raw_string_ostream os(text);
  op->print(os);
  return text;
}

/// Whether a real number is one that the range allows, whatever it is a multiple of.
bool isWithin(const FloatRange &range, double x) {
  return std::isnan(x) ? range.nan : std::isinf(x) ? range.infinite : x == 0 ? range.zero : x >= range.lower && x <= range.upper && std::fabs(x) >= range.least;
}

std::vector<Elements> argumentsOf(func::FuncOp function, const PrecisionAnalysis &analysis, Random &random) {
  std::vector<Elements> arguments;
  for (BlockArgument argument : function.getArguments()) {
    auto shaped = dyn_cast<ShapedType>(argument.getType());
    FloatRange range = analysis.rangeOf(argument);
    Elements elements;
    for (int64_t i = shaped ? shaped.getNumElements() : 1; i > 0; --i) {
      double ends[] = {range.lower, range.upper, random.uniform(range.lower, range.upper), range.zero ? 0 : range.upper};
      double x = ends[random.below(4)];
      Type element = getElementTypeOrSelf(argument.getType());
      double fits = element.isF16() ? double(_Float16(x)) : element.isF32() ? double(float(x)) : x;
      elements.push_back(!FloatFormat::of(argument.getType()) ? random.below(2) : range.contains(fits) ? fits : range.upper);
    }
    arguments.push_back(elements);
  }
  return arguments;
}

double toleranceOf(func::FuncOp function, unsigned result, const PrecisionAnalysis &analysis) {
  if (auto said = function.getResultAttrOfType<FloatAttr>(result, kToleranceName))
    return said.getValueAsDouble();
  Value value = function.getBody().front().getTerminator()->getOperand(result);
  FloatRange range = analysis.rangeOf(value);
  FloatFormat format = *FloatFormat::of(value.getType());
  double largest = range.magnitude(), ulp = std::ldexp(1.0, format.finest);
  if (!(largest < format.largest))
    return 0;
  while (ulp * std::ldexp(1.0, format.precision) <= largest)
    ulp *= 2;
  return ulp / 2;
}

TEST_F(Precision, HoldsOverRandomGraphs) {
  int64_t values = 0, changed = 0, moved = 0;
  double closest = 0;
  for (int seed = 0; seed < kGraphs; ++seed) {
    Random random(seed);
    OwningOpRef<ModuleOp> module = graphs::Builder(&context, random).build();
    ASSERT_TRUE(succeeded(verify(*module))) << text(*module);
    PrecisionAnalysis analysis(*module);
    ASSERT_TRUE(succeeded(analysis.run()));
    auto function = module->lookupSymbol<func::FuncOp>("top");

    std::vector<Value> floats;
    module->walk([&](Operation *op) {
      for (Value result : op->getResults())
        if (FloatFormat::of(result.getType()))
          floats.push_back(result);
      for (Region &region : op->getRegions())
        for (BlockArgument argument : region.getArguments())
          if (FloatFormat::of(argument.getType()))
            floats.push_back(argument);
    });

    for (int run = 0; run < kRuns; ++run) {
      std::vector<Elements> arguments = argumentsOf(function, analysis, random);
      Interpreter typed;
      typed.rounded = true;
      typed.watch = [&](Value value, Elements &elements) {
        FloatRange range = analysis.rangeOf(value);
        for (double x : elements) {
          ++values;
          std::string said;
          llvm::raw_string_ostream os(said);
          range.print(os);
          EXPECT_TRUE(range.contains(x)) << "seed " << seed << ": " << x << " is not in " << said << ", multiples of 2^" << range.held << "\n"
                                         << (value.getDefiningOp() ? text(value.getDefiningOp()) : "an argument") << "\n" << text(*module);
        }
      };
      typed.call(function, arguments);
      if (HasFailure())
        return;

      Interpreter real;
      std::vector<Elements> want = real.call(function, arguments);
      for (int change = 0; change < kChanges; ++change) {
        Value target = random.of(floats);
        double slack = analysis.slackOf(target);
        FloatRange range = analysis.rangeOf(target);
        if (slack == 0 || !range.isBounded())
          continue;
        double most = std::min(slack, range.upper - range.lower);
        int shape = random.below(3); // all up, all down, any
        Interpreter other;
        other.watch = [&](Value value, Elements &elements) {
          if (value != target)
            return;
          for (double &x : elements) {
            double away = shape == 0 ? most : shape == 1 ? -most : random.uniform(-most, most);
            double to = std::clamp(x + away, range.lower, range.upper);
            if (isWithin(range, to) && std::fabs(to - x) <= slack)
              x = to;
          }
        };
        std::vector<Elements> got = other.call(function, arguments);
        ++changed;
        for (unsigned result = 0; result < want.size(); ++result)
          for (size_t i = 0; i < want[result].size(); ++i) {
            double tolerance = toleranceOf(function, result, analysis), difference = std::fabs(got[result][i] - want[result][i]);
            if (!std::isfinite(want[result][i]) || difference == 0)
              continue;
            ++moved;
            if (tolerance > 1e-9 * std::fabs(want[result][i])) // else doubles themselves are not exact enough
              closest = std::max(closest, difference / tolerance);
            ASSERT_LE(difference, tolerance * (1 + 1e-9) + 1e-13 * std::fabs(want[result][i]))
                << "seed " << seed << ", slack " << slack << " of " << (target.getDefiningOp() ? text(target.getDefiningOp()) : "an argument") << "\n" << text(*module);
          }
      }
    }
  }
  // The test says something only where things move, and come close.
  EXPECT_GT(values, 400000);
  EXPECT_GT(changed, 40000);
  EXPECT_GT(moved, 50000);
  EXPECT_GT(closest, 0.99);
  std::printf("%lld values in their ranges, %lld changes, %lld of results, at most %.6f of the tolerance\n", (long long)values, (long long)changed, (long long)moved, closest);
}

/// Scores pushed to where they move one channel of the output the most.
TEST_F(Precision, HoldsForAttention) {
  constexpr int kTokens = 9, kDim = 16;
  OwningOpRef<ModuleOp> module = parseSourceString<ModuleOp>(R"(
func.func @f(%q: tensor<1x1x1x16xf32> {aligned.range = #aligned.range<[-2.0, 3.0]>}, %k: tensor<1x1x9x16xf32> {aligned.range = #aligned.range<[-4.0, 4.0]>},
             %v: tensor<1x1x9x16xf32> {aligned.range = #aligned.range<[-1.0, 3.0]>}) -> (tensor<1x1x1x16xf32> {aligned.tolerance = 0.125}) {
  %scale = arith.constant 0.0625 : f32
  %0 = aligned.attention %q, %k, %v scale %scale : tensor<1x1x1x16xf32>, tensor<1x1x9x16xf32>, tensor<1x1x9x16xf32> -> tensor<1x1x1x16xf32>
  return %0 : tensor<1x1x1x16xf32>
})", &context);
  ASSERT_TRUE(module);
  PrecisionAnalysis analysis(*module);
  ASSERT_TRUE(succeeded(analysis.run()));
  auto function = *module->getOps<func::FuncOp>().begin();
  double slacks[3];
  for (int i = 0; i < 3; ++i)
    slacks[i] = analysis.slackOf(function.getArgument(i));
  Random random(1);
  auto attend = [&](const Elements &q, const Elements &k, const Elements &v) {
    Elements weights, out(kDim, 0);
    double sum = 0;
    for (int t = 0; t < kTokens; ++t) {
      double score = 0;
      for (int c = 0; c < kDim; ++c)
        score += 0.0625 * q[c] * k[t * kDim + c];
      weights.push_back(std::exp(score));
      sum += weights.back();
    }
    for (int t = 0; t < kTokens; ++t)
      for (int c = 0; c < kDim; ++c)
        out[c] += weights[t] / sum * v[t * kDim + c];
    return out;
  };
  double closest[3] = {};
  for (int run = 0; run < 20000; ++run) {
    auto fill = [&](int count, double low, double high) {
      Elements all;
      for (int i = 0; i < count; ++i)
        all.push_back(random.below(2) ? (random.below(2) ? low : high) : random.uniform(low, high));
      return all;
    };
    Elements in[3] = {fill(kDim, -2, 3), fill(kTokens * kDim, -3, 3), fill(kTokens * kDim, -1, 3)};
    if (random.below(2)) // large queries, alike keys
      in[0].assign(kDim, 3), in[1].assign(kTokens * kDim, 0);
    Elements want = attend(in[0], in[1], in[2]);
    for (int side = 0; side < 3; ++side) {
      Elements moved[3] = {in[0], in[1], in[2]};
      double most = std::min(slacks[side], 1.0); // keys stay within 4
      for (int i = 0; i < (side ? kTokens * kDim : kDim); ++i) {
        int t = i / kDim;
        double sign = side == 2 ? 1 : side == 1 ? std::copysign(1, in[0][i % kDim] * (in[2][t * kDim] - want[0])) : random.below(2) ? 1 : -1;
        double bounds[3][2] = {{-2, 3}, {-4, 4}, {-1, 3}};
        moved[side][i] = std::clamp(in[side][i] + sign * most, bounds[side][0], bounds[side][1]);
      }
      Elements got = attend(moved[0], moved[1], moved[2]);
      for (int c = 0; c < kDim; ++c) {
        closest[side] = std::max(closest[side], std::fabs(got[c] - want[c]) / 0.125);
        ASSERT_LE(std::fabs(got[c] - want[c]), 0.125 * (1 + 1e-12)) << "side " << side;
      }
    }
  }
  EXPECT_GT(closest[1], 0.9);
  EXPECT_GT(closest[2], 0.9);
}

} // namespace
