// aligned-probe-attention: attention results as further results of their function.
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Transforms/Passes.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/SymbolTable.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDPROBEATTENTION
#include "aligned/Transforms/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

struct AlignedProbeAttentionPass : aligned::impl::AlignedProbeAttentionBase<AlignedProbeAttentionPass> {
  void runOnOperation() override {
    SmallVector<AttentionOp> attentions;
    getOperation().walk([&](AttentionOp op) { attentions.push_back(op); });
    if (attentions.empty())
      return;
    auto function = dyn_cast<func::FuncOp>(attentions.front()->getParentOp());
    if (!function || !function.isPublic() || !function.getBody().hasOneBlock() || !SymbolTable::symbolKnownUseEmpty(function, getOperation()) ||
        llvm::any_of(attentions, [&](AttentionOp op) { return op->getParentOp() != function; }))
      return;
    Operation *terminator = function.getBody().front().getTerminator();
    SmallVector<Type> results(function.getResultTypes());
    for (AttentionOp op : attentions) {
      terminator->insertOperands(terminator->getNumOperands(), op.getResult());
      results.push_back(op.getType());
    }
    function.setType(FunctionType::get(&getContext(), function.getArgumentTypes(), results));
    if (ArrayAttr attrs = function.getResAttrsAttr()) { // one dictionary per result
      SmallVector<Attribute> longer(attrs.getValue());
      longer.resize(results.size(), DictionaryAttr::get(&getContext()));
      function.setResAttrsAttr(ArrayAttr::get(&getContext(), longer));
    }
  }
};

} // namespace
