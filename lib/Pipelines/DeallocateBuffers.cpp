// aligned-deallocate-buffers: upstream's ownership analysis, with results that never share a buffer, and caches that go through functions as themselves.
#include "aligned/Pipelines/Passes.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Bufferization/IR/BufferDeallocationOpInterface.h"
#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Bufferization/Transforms/Passes.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/Matchers.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/ViewLikeInterface.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDDEALLOCATEBUFFERS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace mlir::bufferization;
using namespace aligned;

namespace {

bool isBuffer(Type type) { return isa<BaseMemRefType>(type); }
bool isCache(Value value) { return bool(getPlanes(value.getType())); }

constexpr int kDeepestCall = 16; // functions may call themselves

Value rootOf(Value buffer, SymbolTableCollection &symbols, int depth = 0);

/// The operand that result number `index` of a call always is.
Value passedThrough(func::CallOp call, unsigned index, SymbolTableCollection &symbols, int depth = 0) {
  auto callee = symbols.lookupNearestSymbolFrom<func::FuncOp>(call, call.getCalleeAttr());
  if (depth == kDeepestCall || !callee || callee.isExternal() || !callee.getBody().hasOneBlock())
    return {};
  auto argument = dyn_cast<BlockArgument>(rootOf(callee.getBody().front().getTerminator()->getOperand(index), symbols, depth + 1));
  return argument && argument.getOwner()->getParentOp() == callee ? call.getOperand(argument.getArgNumber()) : Value();
}

/// What a buffer is a view of, and a cache the same object as.
Value rootOf(Value buffer, SymbolTableCollection &symbols, int depth) {
  while (true) {
    Value source;
    if (auto view = buffer.getDefiningOp<ViewLikeOpInterface>())
      source = view.getViewSource();
    else if (auto call = buffer.getDefiningOp<func::CallOp>(); call && isCache(buffer))
      source = passedThrough(call, cast<OpResult>(buffer).getResultNumber(), symbols, depth);
    if (!source)
      return buffer;
    buffer = source;
  }
}

/// Whether two caches are different ones, an i1.
Value differ(OpBuilder &b, Location loc, Value cache, Value other) {
  auto address = [&](Value value) { return memref::ExtractAlignedPointerAsIndexOp::create(b, loc, value).getResult(); };
  return arith::CmpIOp::create(b, loc, arith::CmpIPredicate::ne, address(cache), address(other));
}

Value boolean(OpBuilder &b, Location loc, bool value) { return arith::ConstantOp::create(b, loc, b.getBoolAttr(value)); }

//===----------------------------------------------------------------------===//
// Who owns what at the boundaries of functions
//===----------------------------------------------------------------------===//
// A dense buffer that a function returns belongs to the caller. That is upstream's rule, and it clones what does not belong to the function. A cache is an object that
// its user goes on using: one that came as an argument returns as itself, and stays whose it was; any other belongs to the caller. Upstream asks an op first
// whether it says itself who owns its results, which calls and returns do here.

struct CallOwnership : BufferDeallocationOpInterface::ExternalModel<CallOwnership, func::CallOp> {
  FailureOr<Operation *> process(Operation *op, DeallocationState &state, const DeallocationOptions &) const {
    auto call = cast<func::CallOp>(op);
    OpBuilder b(op->getContext());
    b.setInsertionPointAfter(op);
    Operation *last = op; // upstream goes on behind it
    for (OpResult result : op->getResults()) {
      if (!isBuffer(result.getType()))
        continue;
      Value owned = boolean(b, op->getLoc(), true);
      if (isCache(result)) {
        if (passedThrough(call, result.getResultNumber(), *state.getSymbolTable())) { // who owns the operand sees to it
          state.updateOwnership(result, boolean(b, op->getLoc(), false));
          continue;
        }
        for (Value operand : op->getOperands())
          if (isCache(operand))
            owned = arith::AndIOp::create(b, op->getLoc(), owned, differ(b, op->getLoc(), result, operand));
      }
      state.updateOwnership(result, owned);
      state.addMemrefToDeallocate(result, op->getBlock());
    }
    return last;
  }
};

struct ReturnOwnership : BufferDeallocationOpInterface::ExternalModel<ReturnOwnership, func::ReturnOp> {
  FailureOr<Operation *> process(Operation *op, DeallocationState &state, const DeallocationOptions &options) const {
    OpBuilder b(op);
    for (OpOperand &operand : op->getOpOperands())
      if (isBuffer(operand.get().getType()) && !isCache(operand.get()))
        operand.set(own(b, operand.get(), op->getBlock(), state, options));
    SmallVector<Value> ignored;
    return deallocation_impl::insertDeallocOpForReturnLike(state, op, op->getOperands(), ignored);
  }

  /// The buffer, or a clone where it does not belong to the function.
  static Value own(OpBuilder &b, Value buffer, Block *block, DeallocationState &state, const DeallocationOptions &options) {
    Operation *source = buffer.getDefiningOp();
    auto says = source && source->getBlock() == block ? dyn_cast<BufferDeallocationOpInterface>(source) : BufferDeallocationOpInterface();
    auto [unique, owned] = says ? says.materializeUniqueOwnershipForMemref(state, options, b, buffer) : state.getMemrefWithUniqueOwnership(b, buffer, block);
    if (matchPattern(owned, m_One()))
      return unique;
    Value kept = unique;
    auto choice = scf::IfOp::create(
        b, buffer.getLoc(), owned, [&](OpBuilder &inner, Location loc) { scf::YieldOp::create(inner, loc, kept); },
        [&](OpBuilder &inner, Location loc) { scf::YieldOp::create(inner, loc, CloneOp::create(inner, loc, kept).getResult()); });
    state.updateOwnership(choice.getResult(0), boolean(b, buffer.getLoc(), true));
    state.addMemrefToDeallocate(choice.getResult(0), block);
    return choice.getResult(0);
  }
};

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

struct AlignedDeallocateBuffersPass : aligned::impl::AlignedDeallocateBuffersBase<AlignedDeallocateBuffersPass> {
  void runOnOperation() override {
    SymbolTableCollection symbols;
    for (auto function : getOperation().getOps<func::FuncOp>()) {
      if (function.isExternal())
        continue;
      for (auto ret : function.getOps<func::ReturnOp>()) {
        separateResults(ret, symbols);
        separateCaches(ret, symbols);
      }
      if (failed(deallocateBuffersOwnershipBased(function, DeallocationOptions(), symbols)))
        return signalPassFailure();
    }
  }

  /// Two results in one buffer would be freed twice, which the ownership analysis does not prevent. So what is not known to be a buffer
  /// of its own is cloned: a second view of the same one, and what comes out of control flow.
  static void separateResults(func::ReturnOp ret, SymbolTableCollection &symbols) {
    auto dense = [](Value value) { return isBuffer(value.getType()) && !isCache(value); };
    if (llvm::count_if(ret.getOperands(), dense) < 2)
      return;
    SmallPtrSet<Value, 4> seen;
    OpBuilder b(ret);
    for (OpOperand &operand : ret->getOpOperands()) {
      if (!dense(operand.get()))
        continue;
      Value root = rootOf(operand.get(), symbols);
      Operation *source = root.getDefiningOp();
      bool known = source ? isa<memref::AllocOp, memref::GetGlobalOp, func::CallOp>(source) : root.getParentBlock()->isEntryBlock();
      if (!known || !seen.insert(root).second)
        operand.set(CloneOp::create(b, ret.getLoc(), operand.get()));
    }
  }

  /// Of a cache that is several results the first is the cache itself, and others are copies: each can be appended to without the others.
  static void separateCaches(func::ReturnOp ret, SymbolTableCollection &symbols) {
    OpBuilder b(ret);
    SmallVector<Value> before;
    for (OpOperand &operand : ret->getOpOperands()) {
      Value cache = operand.get();
      if (!isCache(cache))
        continue;
      Value own; // i1; null: known to be one of its own
      Value root = rootOf(cache, symbols);
      bool shared = false;
      for (Value other : before) {
        Value otherRoot = rootOf(other, symbols);
        if (root == otherRoot)
          shared = true;
        else if (!areDistinct(root, otherRoot))
          own = own ? Value(arith::AndIOp::create(b, ret.getLoc(), own, differ(b, ret.getLoc(), cache, other))) : differ(b, ret.getLoc(), cache, other);
      }
      if (shared)
        operand.set(ForkOp::create(b, ret.getLoc(), cache));
      else if (own)
        operand.set(scf::IfOp::create(
                        b, ret.getLoc(), own, [&](OpBuilder &inner, Location loc) { scf::YieldOp::create(inner, loc, cache); },
                        [&](OpBuilder &inner, Location loc) { scf::YieldOp::create(inner, loc, ForkOp::create(inner, loc, cache).getResult()); })
                        .getResult(0));
      before.push_back(cache);
    }
  }

  /// A cache has one format, a new one is no other, and callers pass a cache once.
  static bool areDistinct(Value root, Value other) {
    auto isNew = [](Value value) { return isa_and_present<memref::AllocOp, ForkOp>(value.getDefiningOp()); };
    auto isArgument = [](Value value) {
      auto argument = dyn_cast<BlockArgument>(value);
      return argument && argument.getOwner()->isEntryBlock() && isa<func::FuncOp>(argument.getOwner()->getParentOp());
    };
    return getPlanes(root.getType()) != getPlanes(other.getType()) || ((isNew(root) || isArgument(root)) && (isNew(other) || isArgument(other)));
  }
};

} // namespace

void aligned::registerOwnership(DialectRegistry &registry) {
  registry.addExtension(+[](MLIRContext *context, func::FuncDialect *) {
    func::CallOp::attachInterface<CallOwnership>(*context);
    func::ReturnOp::attachInterface<ReturnOwnership>(*context);
  });
}
