// The stages of a decode step as calls of what they mean in float64 (Reference/Stages.h): the same operands as a kernel has, and what it would be
// specialised for in a struct on the stack.
#include "ConvertStages.h"

#include "Step.h"
#include "Surroundings.h"
#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

// Who writes buffers and who reads them may be a kernel or the evaluator.
static_assert(kSplitTiles == ALIGNED_SPLIT_TILES && kTopLanes == ALIGNED_TOP_LANES && kStepFacts == ALIGNED_FACTS && kCertificateNumbers == ALIGNED_CERTIFICATE_NUMBERS);
static_assert(int(Fact::Unit) == ALIGNED_FACT_UNIT && int(Fact::Sum) == ALIGNED_FACT_SUM && int(Fact::Norm) == ALIGNED_FACT_NORM && int(Fact::Mass) == ALIGNED_FACT_MASS &&
              int(Fact::Shrink) == ALIGNED_FACT_SHRINK && int(Fact::NotFinite) == ALIGNED_FACT_NOT_FINITE && int(Fact::LogSeen) == ALIGNED_FACT_LOG_SEEN &&
              int(Fact::Shift) == ALIGNED_FACT_SHIFT);
static_assert(int(RowFact::LogUsual) == ALIGNED_ROW_FACT_LOG_USUAL && int(RowFact::Usual) == ALIGNED_ROW_FACT_USUAL &&
              int(RowFact::ValueUnit) == ALIGNED_ROW_FACT_VALUE_UNIT && int(RowFact::LargestKey) == ALIGNED_ROW_FACT_LARGEST_KEY &&
              int(RowFact::FloorValue) == ALIGNED_ROW_FACT_FLOOR_VALUE && int(RowFact::Spread) == ALIGNED_ROW_FACT_SPREAD && int(RowFact::Fill) == ALIGNED_ROW_FACT_FILL &&
              int(RowFact::Full) == ALIGNED_ROW_FACT_FULL);

namespace {

int64_t elementOf(Type type) { return type.isF16() ? ALIGNED_ELEMENT_F16 : type.isBF16() ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F32; }

/// An aligned_stage with what it points to.
Value describe(Surroundings &around, const DecodeShape &shape, const ScoreNumbers &numbers) {
  ImplicitLocOpBuilder &b = around.b;
  auto words = [&](size_t bytes) { return around.slots(static_cast<int64_t>(std::max(bytes, sizeof(int64_t)) / sizeof(int64_t))); };
  auto number = [&](Value base, size_t offset, int64_t n) { around.store(around.number(n), base, static_cast<int64_t>(offset)); };
  auto real = [&](Value base, size_t offset, double x) { around.store(arith::ConstantOp::create(b, b.getF64FloatAttr(x)), base, static_cast<int64_t>(offset)); };

  SmallVector<AgeBits> steps;
  Value sides = words(2 * shape.kvHeads * sizeof(aligned_stage_side));
  for (auto [head, policy] : llvm::enumerate(shape.policies))
    for (CacheRole role : {CacheRole::Key, CacheRole::Value}) {
      const size_t side = (2 * head + (role == CacheRole::Value)) * sizeof(aligned_stage_side);
      LimitsAttr limits = policy.getLimits(role);
      const BitRange bits = limits ? limits.getBits() : BitRange();
      ArrayRef<AgeBits> ages = limits ? limits.getAges() : ArrayRef<AgeBits>();
      real(sides, side + offsetof(aligned_stage_side, tolerance), policy.getTolerance(role));
      number(sides, side + offsetof(aligned_stage_side, least), bits.least);
      number(sides, side + offsetof(aligned_stage_side, most), bits.most);
      number(sides, side + offsetof(aligned_stage_side, newest), limits ? limits.getNewest() : 0);
      number(sides, side + offsetof(aligned_stage_side, sinks), limits ? limits.getSinks() : 0);
      number(sides, side + offsetof(aligned_stage_side, ages), static_cast<int64_t>(ages.size()));
      llvm::append_range(steps, ages);
    }
  Value ages = words(steps.size() * sizeof(aligned_stage_age));
  for (auto [i, step] : llvm::enumerate(steps)) {
    number(ages, i * sizeof(aligned_stage_age) + offsetof(aligned_stage_age, age), step.age);
    number(ages, i * sizeof(aligned_stage_age) + offsetof(aligned_stage_age, bits), step.bits);
  }

  Value stage = words(sizeof(aligned_stage));
  number(stage, offsetof(aligned_stage, group), shape.heads / shape.queries);
  number(stage, offsetof(aligned_stage, queries), shape.queries);
  number(stage, offsetof(aligned_stage, kv_heads), shape.kvHeads);
  number(stage, offsetof(aligned_stage, key_dim), shape.keyDim);
  number(stage, offsetof(aligned_stage, value_dim), shape.valueDim);
  number(stage, offsetof(aligned_stage, key_planes), shape.keyPlanes.getResident());
  number(stage, offsetof(aligned_stage, value_planes), shape.valuePlanes.getResident());
  number(stage, offsetof(aligned_stage, element), elementOf(shape.query));
  number(stage, offsetof(aligned_stage, digits), shape.exact() ? kExactQueryDigits : kQueryDigits);
  number(stage, offsetof(aligned_stage, exact), shape.exact());
  number(stage, offsetof(aligned_stage, causal), shape.mask && shape.mask.getCausal());
  around.store(numbers.window, stage, offsetof(aligned_stage, window));
  around.store(numbers.sinks, stage, offsetof(aligned_stage, sinks));
  around.store(numbers.softcap, stage, offsetof(aligned_stage, softcap));
  number(stage, offsetof(aligned_stage, masked_zero), shape.maskedZero);
  MemRefType mask = shape.attnMask;
  number(stage, offsetof(aligned_stage, mask_element), mask && mask.getElementType().isInteger(1) ? int64_t(ALIGNED_MASK_BOOL) : mask ? elementOf(mask.getElementType()) : 0);
  number(stage, offsetof(aligned_stage, mask_batch), mask && mask.getDimSize(0) != 1);
  number(stage, offsetof(aligned_stage, mask_heads), mask && mask.getDimSize(1) != 1);
  number(stage, offsetof(aligned_stage, mask_queries), mask && mask.getDimSize(2) != 1);
  around.store(sides, stage, offsetof(aligned_stage, sides));
  around.store(ages, stage, offsetof(aligned_stage, ages));
  return stage;
}

template <typename Op> struct CallReference : OpConversionPattern<Op> {
  using OpConversionPattern<Op>::OpConversionPattern;

  LogicalResult matchAndRewrite(Op op, typename Op::Adaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    constexpr bool isPrepare = std::is_same_v<Op, PrepareOp>, isScan = std::is_same_v<Op, ScanOp>;
    if (op->getNumResults())
      return rewriter.notifyMatchFailure(op, "expected buffers, got tensors: they are bufferized first");
    Surroundings around(rewriter, op.getLoc());
    Value none = LLVM::ZeroOp::create(around.b, around.pointer());
    auto address = [&](Value buffer) { return isa<MemRefType>(buffer.getType()) ? around.address(buffer) : buffer; };
    Value softcap;
    if constexpr (!isPrepare)
      softcap = op.getDynamicSoftcap();
    const DecodeShape shape = shapeOf(op);
    const ScoreNumbers numbers = scoreNumbers(around, shape.mask, op.getDynamicWindow(), op.getDynamicSinks(), shape.softcap, softcap);
    SmallVector<Value> arguments{describe(around, shape, numbers), address(adaptor.getQuery()), address(adaptor.getKey()), address(adaptor.getValue())};
    if constexpr (isPrepare || isScan)
      arguments.push_back(adaptor.getScale());
    arguments.push_back(around.asI64(adaptor.getRow()));
    if constexpr (!isPrepare)
      arguments.push_back(around.asI64(adaptor.getSplit()));
    arguments.push_back(adaptor.getLater() ? around.asI64(adaptor.getLater()) : around.number(0));
    if constexpr (isPrepare)
      arguments.push_back(adaptor.getToleranceFactor() ? adaptor.getToleranceFactor() : Value(arith::ConstantOp::create(around.b, around.b.getF32FloatAttr(1))));
    auto given = [&](Value buffer) { return buffer ? address(buffer) : none; };
    if constexpr (!isPrepare)
      arguments.push_back(given(adaptor.getAttnMask()));
    if constexpr (!isPrepare && !isScan)
      arguments.push_back(given(adaptor.getSinkLogits()));
    auto pass = [&](ValueRange buffers) {
      for (Value buffer : buffers)
        arguments.push_back(address(buffer));
    };
    if constexpr (!isPrepare)
      pass({adaptor.getDigits(), adaptor.getFacts()});
    if constexpr (!isPrepare && !isScan)
      pass({adaptor.getMean(), adaptor.getScores(), adaptor.getTops(), adaptor.getParts()});
    pass(adaptor.getOuts());
    if constexpr (!isPrepare && !isScan) {
      if (adaptor.getOuts().size() == 3)
        arguments.push_back(none); // the certificate
      arguments.push_back(around.code(op.getAttentionId()));
    }
    around.call(("aligned_rt_reference_" + op->getName().stripDialect()).str(), {}, arguments);
    rewriter.eraseOp(op);
    return success();
  }
};

} // namespace

void aligned::populateReferenceStages(const TypeConverter &types, RewritePatternSet &patterns) {
  patterns.add<CallReference<PrepareOp>, CallReference<ScanOp>, CallReference<AttendOp>>(types, patterns.getContext());
}
