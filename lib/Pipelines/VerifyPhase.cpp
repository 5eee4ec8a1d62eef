// aligned-verify-phase: the contracts between the phases, each written once.
#include "aligned/Pipelines/Passes.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/AttrTypeSubElements.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/ADT/StringSwitch.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDVERIFYPHASE
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

/// What an op breaks of a contract: what was expected, what was found; empty if it keeps it.
struct Breach {
  std::string expected, got;
  explicit operator bool() const { return !expected.empty(); }
};

std::string print(Type type) {
  std::string text;
  llvm::raw_string_ostream(text) << type;
  return text;
}

std::string quote(Operation *op) { return ("'" + op->getName().getStringRef() + "'").str(); }

/// Front ends' own dialects have no lowering here; raising takes from them what it knows.
Breach checkRaised(Operation *op) {
  static const llvm::StringSet<> lowered = {"builtin", "func", "aligned", "arith", "math", "complex", "index", "ub", "tensor", "linalg",
                                            "bufferization", "memref", "affine", "scf", "cf", "vector", "llvm", "ml_program"};
  StringRef dialect = op->getName().getDialectNamespace();
  if (lowered.contains(dialect))
    return {};
  return {"ops of linalg and what lies below it", quote(op)};
}

Breach checkPacked(Operation *op, uint64_t denseBelow) {
  auto attention = dyn_cast<AttentionOp>(op);
  if (!attention || getPlanes(attention.getKey().getType()) || takeLess({attention.getKey().getType(), attention.getValue().getType()}, denseBelow))
    return {};
  auto query = cast<RankedTensorType>(attention.getQuery().getType());
  for (Value value : {attention.getKey(), attention.getValue()}) {
    auto type = cast<RankedTensorType>(value.getType());
    // Fixed planes hold every element type, so what they can't hold nothing can.
    auto fixed = PlanesAttr::get(op->getContext(), FormatKind::Fixed, {4, 4, 4, 4}, CacheRole::Key);
    ScopedDiagnosticHandler quiet(op->getContext(), [](Diagnostic &) { return success(); });
    if (failed(fixed.verifyEncoding(type.getShape(), type.getElementType(), [&] { return op->emitError(); })))
      return {};
  }
  int64_t heads = query.getDimSize(1), queries = query.getDimSize(2);
  int64_t kvHeads = cast<RankedTensorType>(attention.getKey().getType()).getDimSize(1);
  if (ShapedType::isDynamic(heads) || ShapedType::isDynamic(queries) || heads / kvHeads * queries > kMaxQueryRows)
    return {};
  return {"a packed key and value", print(attention.getKey().getType())};
}

Breach checkFused(Operation *op) {
  if (isa<AttentionOp>(op))
    return {"no attention that is only declared", quote(op)};
  return {};
}

Breach checkStaged(Operation *op) {
  auto decode = dyn_cast<DecodeAttentionOp>(op);
  if (Breach breach = checkFused(op))
    return breach;
  if (decode && decode.readsFixedPlanes())
    return {"stages where caches have fixed planes", quote(op)};
  return {};
}

Breach checkLowered(Operation *op) {
  if (isa_and_present<AlignedDialect>(op->getDialect()))
    return {"no op of the dialect 'aligned'", quote(op)};
  Type packed, tensor;
  AttrTypeWalker walker;
  walker.addWalk([&](Type type) {
    if (Type &first = getPlanes(type) ? packed : tensor; !first && (getPlanes(type) || isa<TensorType>(type)))
      first = type;
  });
  for (Type type : op->getResultTypes())
    walker.walk(type);
  for (Region &region : op->getRegions())
    for (Block &block : region)
      for (Type type : block.getArgumentTypes())
        walker.walk(type);
  if (auto function = dyn_cast<FunctionOpInterface>(op))
    walker.walk(function.getFunctionType());
  if (packed)
    return {"no packed type", print(packed)};
  if (tensor)
    return {"no tensor", print(tensor)};
  return {};
}

Breach checkLLVM(Operation *op) {
  if (isa<ModuleOp>(op) || isa_and_present<LLVM::LLVMDialect>(op->getDialect()))
    return {};
  return {"only the dialect 'llvm'", quote(op)};
}

struct AlignedVerifyPhasePass : aligned::impl::AlignedVerifyPhaseBase<AlignedVerifyPhasePass> {
  using AlignedVerifyPhaseBase::AlignedVerifyPhaseBase;

  void runOnOperation() override {
    using Check = std::function<Breach(Operation *)>;
    auto checkStored = [&](Operation *op) { return checkPacked(op, denseBelow); };
    Check check = llvm::StringSwitch<Check>(phase)
                      .Case("raise", checkRaised).Case("store", checkStored).Case("fuse", checkFused).Case("stage", checkStaged)
                      .Case("lower", checkLowered).Case("llvm", checkLLVM).Default(nullptr);
    if (!check) {
      getOperation().emitError("expected phase 'raise', 'store', 'fuse', 'stage', 'lower' or 'llvm', got '") << phase << "'";
      return signalPassFailure();
    }
    llvm::StringSet<> reported;
    getOperation().walk<WalkOrder::PreOrder>([&](Operation *op) {
      Breach breach = check(op);
      if (!breach || !reported.insert(breach.got).second)
        return;
      op->emitError("after phase '") << phase << "': expected " << breach.expected << ", got " << breach.got;
      signalPassFailure();
    });
  }
};

} // namespace
