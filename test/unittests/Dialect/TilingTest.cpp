// Stages are cut up over splits by upstream's tiling: what lies where after one cut and after a cut of what was cut.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Affine/IR/AffineOps.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/SCF/Transforms/TileUsingInterface.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/Matchers.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"

#include <gtest/gtest.h>

#include <functional>

using namespace aligned;
using namespace mlir;

namespace {

// 10010 tokens are 157 tiles, 5 splits, the last of 29 tiles. The stages begin with split 1 and have 4.
constexpr StringRef kStages = R"(
!query = tensor<1x2x1x32xf16>
!key = tensor<1x1x10010x32xf16, #aligned.planes<fixed<4, 4, 8>, key>>
!value = tensor<1x1x10010x48xf16, #aligned.planes<fixed<8, 8>, value>>
func.func @stages(%q: !query, %k: !key, %v: !value, %scale: f32, %d: tensor<2x2x32xi8>, %f: tensor<3x8xf32>, %m: tensor<48xf32>, %s: tensor<125x2x64xf32>, %t: tensor<125x2x16xf32>,
                  %p: tensor<4x2x2xf32>, %parts: tensor<5x2x2xf32>, %a: tensor<4x2x1x48xf32>, %x: tensor<4x2x1xf32>, %c: tensor<4x2x1x8xf32>) -> (tensor<125x2x64xf32>, tensor<4x2x2xf32>, tensor<4x2x1x48xf32>, tensor<4x2x1x8xf32>) {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %scan:3 = aligned.scan %q, %k, %v, %d, %f scale %scale row %zero split %one policy <budget, tolerance = 0.25>
      outs(%s, %t, %p : tensor<125x2x64xf32>, tensor<125x2x16xf32>, tensor<4x2x2xf32>) : !query, !key, !value, tensor<2x2x32xi8>, tensor<3x8xf32>
      -> tensor<125x2x64xf32>, tensor<125x2x16xf32>, tensor<4x2x2xf32>
  %state:4 = aligned.attend %q, %k, %v, %d, %f, %m, %scan#0, %scan#1, %parts row %zero split %one policy <budget, tolerance = 0.25>
      outs(%a, %x, %x, %c : tensor<4x2x1x48xf32>, tensor<4x2x1xf32>, tensor<4x2x1xf32>, tensor<4x2x1x8xf32>)
      : !query, !key, !value, tensor<2x2x32xi8>, tensor<3x8xf32>, tensor<48xf32>, tensor<125x2x64xf32>, tensor<125x2x16xf32>, tensor<5x2x2xf32>
      -> tensor<4x2x1x48xf32>, tensor<4x2x1xf32>, tensor<4x2x1xf32>, tensor<4x2x1x8xf32>
  return %scan#0, %scan#2, %state#0, %state#3 : tensor<125x2x64xf32>, tensor<4x2x2xf32>, tensor<4x2x1x48xf32>, tensor<4x2x1x8xf32>
}
)";

/// What a run through the loops finds: each stage's split, and where the first dimension of its slices begins in the whole and how long it is.
struct Visit {
  int64_t split;
  std::vector<std::pair<int64_t, int64_t>> outs, scores;
  bool operator==(const Visit &other) const { return split == other.split && outs == other.outs && scores == other.scores; }
};
std::ostream &operator<<(std::ostream &os, const Visit &visit) {
  os << "split " << visit.split;
  for (const auto &slices : {visit.outs, visit.scores})
    for (auto [first, count] : slices)
      os << " [" << first << ", +" << count << ")";
  return os;
}

class Tiling : public testing::Test {
protected:
  Tiling() {
    context.loadDialect<AlignedDialect, affine::AffineDialect, arith::ArithDialect, func::FuncDialect, scf::SCFDialect, tensor::TensorDialect>();
    module = parseSourceString<ModuleOp>(kStages, &context);
  }

  template <typename Op> void tile(int64_t splits, scf::SCFTilingOptions::LoopType loops) {
    SmallVector<Op> ops;
    module->walk([&](Op op) { ops.push_back(op); });
    ASSERT_EQ(ops.size(), 1u);
    IRRewriter rewriter(ops[0]);
    auto tiled = scf::tileUsingSCF(rewriter, cast<TilingInterface>(ops[0].getOperation()), scf::SCFTilingOptions().setLoopType(loops).setTileSizes({rewriter.getIndexAttr(splits)}));
    ASSERT_TRUE(succeeded(tiled));
    rewriter.replaceOp(ops[0], tiled->replacements);
    ASSERT_TRUE(succeeded(verify(*module)));
  }

  /// Runs the integers of all loops around the stage.
  template <typename Op> std::vector<Visit> visits() {
    std::vector<Visit> found;
    module->walk([&](Op op) {
      SmallVector<LoopLikeOpInterface> loops;
      for (Operation *parent = op->getParentOp(); parent; parent = parent->getParentOp())
        if (auto loop = dyn_cast<LoopLikeOpInterface>(parent))
          loops.insert(loops.begin(), loop);
      std::function<void(size_t)> run = [&](size_t depth) {
        if (depth == loops.size()) {
          found.push_back(visit(op));
          return;
        }
        LoopLikeOpInterface loop = loops[depth];
        int64_t first = number((*loop.getLoopLowerBounds())[0]), last = number((*loop.getLoopUpperBounds())[0]), step = number((*loop.getLoopSteps())[0]);
        for (int64_t i = first; i < last; i += step) {
          known[(*loop.getLoopInductionVars())[0]] = i;
          run(depth + 1);
        }
      };
      run(0);
    });
    return found;
  }

private:
  template <typename Op> Visit visit(Op op) {
    Visit result{number(op.getSplit()), {}, {}};
    for (Value out : op.getOuts())
      result.outs.push_back(place(out));
    if constexpr (std::is_same_v<Op, AttendOp>)
      result.scores = {place(op.getScores()), place(op.getTops())};
    return result;
  }

  /// Of a slice of a slice, in the whole.
  std::pair<int64_t, int64_t> place(Value slice) {
    int64_t first = 0, count = -1;
    while (true) {
      if (auto argument = dyn_cast<BlockArgument>(slice)) // what a loop carries, or the function was given
        if (auto loop = dyn_cast<LoopLikeOpInterface>(argument.getOwner()->getParentOp())) {
          slice = loop.getTiedLoopInit(argument)->get();
          continue;
        }
      auto cut = slice.getDefiningOp<tensor::ExtractSliceOp>();
      if (!cut)
        return {first, count < 0 ? cast<ShapedType>(slice.getType()).getDimSize(0) : count};
      if (count < 0)
        count = number(cut.getMixedSizes()[0]);
      first += number(cut.getMixedOffsets()[0]);
      slice = cut.getSource();
    }
  }

  int64_t number(OpFoldResult value) { return isa<Attribute>(value) ? cast<IntegerAttr>(cast<Attribute>(value)).getInt() : number(cast<Value>(value)); }
  int64_t number(Value value) {
    if (auto found = known.find(value); found != known.end())
      return found->second;
    IntegerAttr constant;
    if (matchPattern(value, m_Constant(&constant)))
      return constant.getInt();
    Operation *op = value.getDefiningOp();
    auto of = [&](unsigned operand) { return number(op->getOperand(operand)); };
    if (isa<arith::AddIOp>(op))
      return of(0) + of(1);
    if (isa<arith::SubIOp>(op))
      return of(0) - of(1);
    if (isa<arith::MulIOp>(op))
      return of(0) * of(1);
    if (isa<arith::MinUIOp>(op))
      return std::min(of(0), of(1));
    if (auto apply = dyn_cast<affine::AffineMinOp>(op)) {
      int64_t least = INT64_MAX;
      SmallVector<Attribute> operands, results;
      for (Value operand : apply.getOperands())
        operands.push_back(IntegerAttr::get(IndexType::get(&context), number(operand)));
      EXPECT_TRUE(succeeded(apply.getMap().constantFold(operands, results)));
      for (Attribute result : results)
        least = std::min(least, cast<IntegerAttr>(result).getInt());
      return least;
    }
    ADD_FAILURE() << "no number: " << op->getName().getStringRef().str();
    return 0;
  }

  MLIRContext context;
  OwningOpRef<ModuleOp> module;
  DenseMap<Value, int64_t> known;
};

const std::vector<Visit> kScans = {{1, {{0, 32}, {0, 32}, {0, 1}}, {}}, {2, {{32, 32}, {32, 32}, {1, 1}}, {}}, {3, {{64, 32}, {64, 32}, {2, 1}}, {}}, {4, {{96, 29}, {96, 29}, {3, 1}}, {}}};

std::vector<Visit> attends() {
  std::vector<Visit> all;
  for (const Visit &scan : kScans)
    all.push_back({scan.split, {scan.outs[2], scan.outs[2], scan.outs[2], scan.outs[2]}, {scan.outs[0], scan.outs[1]}});
  return all;
}

TEST_F(Tiling, OneSplitSideBySide) {
  tile<ScanOp>(1, scf::SCFTilingOptions::LoopType::ForallOp);
  tile<AttendOp>(1, scf::SCFTilingOptions::LoopType::ForallOp);
  EXPECT_EQ(visits<ScanOp>(), kScans);
  EXPECT_EQ(visits<AttendOp>(), attends());
}

TEST_F(Tiling, OneAfterAnother) {
  tile<ScanOp>(1, scf::SCFTilingOptions::LoopType::ForOp);
  tile<AttendOp>(1, scf::SCFTilingOptions::LoopType::ForOp);
  EXPECT_EQ(visits<ScanOp>(), kScans);
  EXPECT_EQ(visits<AttendOp>(), attends());
}

TEST_F(Tiling, OfThreeSplitsTheLastIsShort) {
  tile<ScanOp>(3, scf::SCFTilingOptions::LoopType::ForallOp);
  EXPECT_EQ(visits<ScanOp>(), (std::vector<Visit>{{1, {{0, 96}, {0, 96}, {0, 3}}, {}}, {4, {{96, 29}, {96, 29}, {3, 1}}, {}}}));
  tile<AttendOp>(3, scf::SCFTilingOptions::LoopType::ForallOp);
  EXPECT_EQ(visits<AttendOp>(), (std::vector<Visit>{{1, {{0, 3}, {0, 3}, {0, 3}, {0, 3}}, {{0, 96}, {0, 96}}}, {4, {{3, 1}, {3, 1}, {3, 1}, {3, 1}}, {{96, 29}, {96, 29}}}}));
}

TEST_F(Tiling, WhatWasCutIsCutAgain) {
  tile<ScanOp>(2, scf::SCFTilingOptions::LoopType::ForallOp);
  tile<AttendOp>(2, scf::SCFTilingOptions::LoopType::ForallOp);
  tile<ScanOp>(1, scf::SCFTilingOptions::LoopType::ForallOp);
  tile<AttendOp>(1, scf::SCFTilingOptions::LoopType::ForallOp);
  EXPECT_EQ(visits<ScanOp>(), kScans);
  EXPECT_EQ(visits<AttendOp>(), attends());
}

} // namespace
