// aligned-probe-attention, aligned-certify-attention: what attention gives, or what is known of its error, as further results of its function.
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Transforms/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/SymbolTable.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDCERTIFYATTENTION
#define GEN_PASS_DEF_ALIGNEDPROBEATTENTION
#include "aligned/Transforms/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

/// The attention of a module, in order of appearance.
SmallVector<AttentionOp> attentionOf(ModuleOp module) {
  SmallVector<AttentionOp> attentions;
  module.walk([&](AttentionOp op) { attentions.push_back(op); });
  return attentions;
}

/// The public function whose one block holds all of `attentions` and that nobody in the module calls: what it returns may change.
func::FuncOp entryOf(ArrayRef<AttentionOp> attentions, ModuleOp module) {
  if (attentions.empty())
    return nullptr;
  auto function = dyn_cast<func::FuncOp>(attentions.front()->getParentOp());
  if (!function || !function.isPublic() || !function.getBody().hasOneBlock() || !SymbolTable::symbolKnownUseEmpty(function, module) ||
      llvm::any_of(attentions, [&](AttentionOp op) { return op->getParentOp() != function; }))
    return nullptr;
  return function;
}

void returnAlso(func::FuncOp function, ValueRange values) {
  function.getBody().front().getTerminator()->insertOperands(function.getNumResults(), values);
  SmallVector<Type> results(function.getResultTypes());
  llvm::append_range(results, values.getTypes());
  function.setType(FunctionType::get(function.getContext(), function.getArgumentTypes(), results));
  if (ArrayAttr attrs = function.getResAttrsAttr()) { // one dictionary per result
    SmallVector<Attribute> longer(attrs.getValue());
    longer.resize(results.size(), DictionaryAttr::get(function.getContext()));
    function.setResAttrsAttr(ArrayAttr::get(function.getContext(), longer));
  }
}

struct AlignedProbeAttentionPass : aligned::impl::AlignedProbeAttentionBase<AlignedProbeAttentionPass> {
  void runOnOperation() override {
    SmallVector<AttentionOp> attentions = attentionOf(getOperation());
    if (func::FuncOp function = entryOf(attentions, getOperation()))
      for (AttentionOp op : attentions)
        returnAlso(function, op.getResult());
  }
};

struct AlignedCertifyAttentionPass : aligned::impl::AlignedCertifyAttentionBase<AlignedCertifyAttentionPass> {
  void runOnOperation() override {
    SmallVector<AttentionOp> attentions = attentionOf(getOperation());
    func::FuncOp function = entryOf(attentions, getOperation());
    if (!function) {
      for (AttentionOp op : attentions)
        op.emitRemark("not certified: expected all attention in the one block of a public function that is not called in its module");
      return;
    }
    for (AttentionOp op : attentions) {
      auto certified = certify(op);
      returnAlso(function, {certified.getBound(), certified.getEstimate()});
    }
  }

  static AttentionOp certify(AttentionOp op) {
    if (op.getBound())
      return op;
    OpBuilder b(op);
    auto row = RankedTensorType::get(cast<RankedTensorType>(op.getResult().getType()).getShape().drop_back(), b.getF32Type());
    auto certified = AttentionOp::create(b, op.getLoc(), op.getResult().getType(), row, row, op.getQuery(), op.getKey(), op.getValue(), op.getScale(),
                                         op.getAttnMask(), op.getSinkLogits(), op.getMaskedZero(), op.getPoliciesAttr(), op.getSoftcapAttr(), op.getMaskAttr());
    op.getResult().replaceAllUsesWith(certified.getResult());
    op.erase();
    return certified;
  }
};

} // namespace
