// What verifiers check of static extents (A1, A3, A5), checked of dynamic ones when the program runs: a kernel trusts its shapes.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/ControlFlow/IR/ControlFlowOps.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "mlir/Interfaces/RuntimeVerifiableOpInterface.h"

using namespace mlir;
using namespace aligned;

namespace {

enum Dim { kBatch, kHeads, kTokens, kQueries = kTokens, kChannels };
constexpr StringRef kDimName[] = {"batch", "heads", "tokens", "head_dim"};

using MessageFn = function_ref<std::string(Operation *, StringRef)>;

struct Checks {
  Checks(OpBuilder &builder, Location loc, Operation *op) : b(loc, builder), op(op) {}

  static int64_t size(Value tensor, Dim dim) { return cast<ShapedType>(tensor.getType()).getDimSize(dim); }

  Value extent(Value tensor, Dim dim) {
    if (int64_t known = size(tensor, dim); !ShapedType::isDynamic(known))
      return arith::ConstantIndexOp::create(b, known);
    return tensor::DimOp::create(b, tensor, arith::ConstantIndexOp::create(b, dim));
  }
  void equal(Value a, Value other, const Twine &what) { expect(arith::CmpIPredicate::eq, a, other, what); }
  void expect(arith::CmpIPredicate how, Value a, Value other, const Twine &what) {
    expect(arith::CmpIOp::create(b, how, a, other), what);
  }
  void expect(Value holds, const Twine &what) {
    cf::AssertOp::create(b, holds, ("'" + op->getName().getStringRef() + "' op " + what).str()); // as the verifier words it
  }
  /// Two operands agree; where both extents are static, the verifier has seen to it.
  void agree(StringRef nameA, Value a, StringRef nameB, Value other, ArrayRef<Dim> dims) {
    for (Dim dim : dims)
      agree(nameA, a, dim, nameB, other, dim);
  }
  void agree(StringRef nameA, Value a, Dim dimA, StringRef nameB, Value other, Dim dim) {
    if (ShapedType::isDynamic(size(a, dimA)) || ShapedType::isDynamic(size(other, dim)))
      equal(extent(a, dimA), extent(other, dim), "expected " + nameA + " and " + nameB + " to agree in " + kDimName[dim]);
  }
  /// A result that promises more than its operand's type.
  void promise(Value operand, StringRef name, Value result, ArrayRef<Dim> dims) {
    for (Dim dim : dims)
      if (ShapedType::isDynamic(size(operand, dim)) && !ShapedType::isDynamic(size(result, dim)))
        equal(extent(operand, dim), extent(result, dim), "expected " + name + " to have the result's " + kDimName[dim]);
  }

  ImplicitLocOpBuilder b;
  Operation *op;
};

template <typename Op> struct AttentionModel : RuntimeVerifiableOpInterface::ExternalModel<AttentionModel<Op>, Op> {
  void generateRuntimeVerification(Operation *op, OpBuilder &builder, Location loc, MessageFn) const {
    if (!op->getNumResults()) // on buffers: what is checked is checked of tensors
      return;
    auto attention = cast<Op>(op);
    Checks checks(builder, loc, op);
    checks.agree("key", attention.getKey(), "value", attention.getValue(), {kBatch, kHeads, kTokens});
    checks.agree("query", attention.getQuery(), "key", attention.getKey(), {kBatch, kChannels});
    checks.promise(attention.getQuery(), "query", op->getResult(0), {kBatch, kHeads, kTokens});
    checkGroups(attention, checks);
    if (Value mask = attention.getAttnMask()) {
      checks.agree("attn_mask", mask, kChannels, "key", attention.getKey(), kTokens); // its last dimension
      for (Dim dim : {kBatch, kHeads, kQueries})
        if (Checks::size(mask, dim) != 1) // which serves all
          checks.agree("attn_mask", mask, dim, "query", attention.getQuery(), dim);
    }
    if (Value sinks = attention.getSinkLogits())
      checks.agree("sink_logits", sinks, kBatch, "query", attention.getQuery(), kHeads); // its only dimension
    checks.promise(attention.getValue(), "value", op->getResult(0), {kChannels});
    if constexpr (std::is_same_v<Op, DecodeAttentionOp>) {
      checkNumbers(attention, checks);
      if (attention.getFromDenseCopy())
        checks.expect(HasDenseCopyOp::create(checks.b, attention.getKey(), attention.getValue()), "expected caches with dense copies");
    }
  }

  /// A11, A12: numbers that are operands are such as attributes may be.
  static void checkNumbers(DecodeAttentionOp attention, Checks &checks) {
    auto count = [&](Value number, int64_t least, StringRef what) {
      if (number)
        checks.expect(arith::CmpIPredicate::sge, number, arith::ConstantIndexOp::create(checks.b, least), what);
    };
    count(attention.getDynamicWindow(), 1, "expected a window of 1 token or more");
    count(attention.getDynamicSinks(), 0, "expected 0 sinks or more");
    Value cap = attention.getDynamicSoftcap();
    if (!cap)
      return;
    auto compare = [&](arith::CmpFPredicate how, double limit) { return arith::CmpFOp::create(checks.b, how, cap, arith::ConstantOp::create(checks.b, checks.b.getF32FloatAttr(limit))); };
    Value least = compare(arith::CmpFPredicate::OGE, kLeastSoftcap), most = compare(arith::CmpFPredicate::OLE, kLargestSoftcap);
    checks.expect(arith::AndIOp::create(checks.b, least, most), "expected a softcap from " + decimal(kLeastSoftcap) + " to " + decimal(kLargestSoftcap));
  }

  /// A2: the division is by no 0 where the first assertion holds.
  static void checkGroups(Op attention, Checks &checks) {
    if (!ShapedType::isDynamic(Checks::size(attention.getQuery(), kHeads)) && !ShapedType::isDynamic(Checks::size(attention.getKey(), kHeads)))
      return;
    constexpr StringRef kMultiple = "expected query heads to be a multiple of kv heads";
    Value queryHeads = checks.extent(attention.getQuery(), kHeads), kvHeads = checks.extent(attention.getKey(), kHeads), none = arith::ConstantIndexOp::create(checks.b, 0);
    checks.expect(arith::CmpIPredicate::ne, kvHeads, none, kMultiple);
    checks.equal(arith::RemUIOp::create(checks.b, queryHeads, kvHeads), none, kMultiple);
  }
};

struct AppendModel : RuntimeVerifiableOpInterface::ExternalModel<AppendModel, AppendOp> {
  void generateRuntimeVerification(Operation *op, OpBuilder &builder, Location loc, MessageFn) const {
    auto append = cast<AppendOp>(op);
    Value tokens = append.getTokens(), cache = append.getCache(), result = append.getResult();
    Checks checks(builder, loc, op);
    checks.agree("tokens", tokens, "cache", cache, {kBatch, kHeads, kChannels});
    checks.promise(cache, "cache", result, {kBatch, kHeads, kChannels});
    if (Value position = append.getPosition()) { // A17, where a position below zero is a large one
      checks.promise(cache, "cache", result, {kTokens});
      Value held = checks.extent(cache, kTokens), added = checks.extent(tokens, kTokens);
      checks.expect(arith::CmpIPredicate::ule, added, held, "expected positions of the cache's tokens");
      checks.expect(arith::CmpIPredicate::ule, position, arith::SubIOp::create(checks.b, held, added), "expected positions of the cache's tokens");
      return;
    }
    bool dynamic = ShapedType::isDynamic(Checks::size(tokens, kTokens)) || ShapedType::isDynamic(Checks::size(cache, kTokens));
    if (dynamic && !ShapedType::isDynamic(Checks::size(result, kTokens)))
      checks.equal(arith::AddIOp::create(checks.b, checks.extent(cache, kTokens), checks.extent(tokens, kTokens)), checks.extent(result, kTokens),
                   "expected cache and tokens to add up to the result");
  }
};

/// A stage is of a row, and of splits, that the key has; what it has of tiles and of splits holds them.
template <typename Op> struct StageModel : RuntimeVerifiableOpInterface::ExternalModel<StageModel<Op>, Op> {
  void generateRuntimeVerification(Operation *op, OpBuilder &builder, Location loc, MessageFn) const {
    if (!op->getNumResults())
      return;
    auto stage = cast<Op>(op);
    Checks checks(builder, loc, op);
    ImplicitLocOpBuilder &b = checks.b;
    using arith::CmpIPredicate;
    Value rows = arith::MulIOp::create(b, checks.extent(stage.getKey(), kBatch), checks.extent(stage.getKey(), kHeads));
    checks.expect(CmpIPredicate::ult, stage.getRow(), rows, "expected a row of the key");
    if constexpr (!std::is_same_v<Op, PrepareOp>)
      checkSplits(stage, checks);
  }

  static void checkSplits(Op stage, Checks &checks) {
    constexpr bool isScan = std::is_same_v<Op, ScanOp>;
    ImplicitLocOpBuilder &b = checks.b;
    using arith::CmpIPredicate;
    auto number = [&](int64_t n) -> Value { return arith::ConstantIndexOp::create(b, n); };
    auto first = [&](Value tensor) { return checks.extent(tensor, kBatch); };
    Value tiles = arith::CeilDivUIOp::create(b, checks.extent(stage.getKey(), kTokens), number(kTile)), splits = arith::CeilDivUIOp::create(b, tiles, number(kSplitTiles));
    Value own = first(stage.getSplitsOut()), end = arith::AddIOp::create(b, stage.getSplit(), own);
    checks.expect(CmpIPredicate::ule, stage.getSplit(), splits, "expected a split of the key");
    checks.expect(CmpIPredicate::ule, own, arith::SubIOp::create(b, splits, stage.getSplit()), "expected no more splits than the key has");
    Value from = arith::MulIOp::create(b, stage.getSplit(), number(kSplitTiles)), to = arith::MinUIOp::create(b, tiles, arith::MulIOp::create(b, end, number(kSplitTiles)));
    Value held = arith::SubIOp::create(b, to, from);
    Value scores, tops;
    if constexpr (isScan) {
      scores = stage.getOuts()[0], tops = stage.getOuts()[1];
    } else {
      scores = stage.getScores(), tops = stage.getTops();
      checks.equal(first(stage.getParts()), splits, "expected parts of all splits of the key");
      for (Value out : stage.getOuts().drop_front())
        checks.equal(first(out), own, "expected outs of as many splits");
    }
    for (auto [name, tensor] : {std::pair("scores", scores), std::pair("tops", tops)})
      checks.expect(CmpIPredicate::uge, first(tensor), held, Twine("expected ") + name + " of all tiles of its splits");
  }
};

} // namespace

void aligned::registerRuntimeVerification(DialectRegistry &registry) {
  registry.addExtension(+[](MLIRContext *context, AlignedDialect *) {
    AttentionOp::attachInterface<AttentionModel<AttentionOp>>(*context);
    DecodeAttentionOp::attachInterface<AttentionModel<DecodeAttentionOp>>(*context);
    AppendOp::attachInterface<AppendModel>(*context);
    PrepareOp::attachInterface<StageModel<PrepareOp>>(*context);
    ScanOp::attachInterface<StageModel<ScanOp>>(*context);
    AttendOp::attachInterface<StageModel<AttendOp>>(*context);
    context->loadDialect<arith::ArithDialect, cf::ControlFlowDialect, tensor::TensorDialect>(); // what the checks are made of
  });
}
