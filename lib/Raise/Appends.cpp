// See the header.
#include "Appends.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/Utils/Utils.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

using namespace mlir;
using namespace aligned;

/// Something that holds tokens from before: an argument, a call's result, or another such update.
static bool isCache(Value value) {
  Operation *op = value.getDefiningOp();
  if (auto insert = dyn_cast_or_null<tensor::InsertSliceOp>(op))
    return isCache(insert.getDest());
  return !op || isa<AppendOp, func::CallOp>(op);
}

/// Whether an insertion puts all batch entries, heads and channels of some tokens, side by side, into the place of others.
static bool replacesTokens(tensor::InsertSliceOp insert) {
  RankedTensorType tokens = insert.getSourceType(), cache = insert.getDestType();
  if (tokens.getRank() != 4 || cache.getRank() != 4 || !insert.hasUnitStride() || getPlanes(cache))
    return false;
  for (int64_t dim : {0, 1, 3})
    if (insert.getStaticOffsets()[dim] != 0 || cache.isDynamicDim(dim) || tokens.getDimSize(dim) != cache.getDimSize(dim))
      return false;
  return true;
}

void aligned::raiseAppend(RewriterBase &rewriter, Value cache) {
  Operation *op = cache.getDefiningOp();
  if (auto concat = dyn_cast_or_null<tensor::ConcatOp>(op)) {
    if (concat.getDim() != 2 || concat.getInputs().size() != 2)
      return;
    rewriter.setInsertionPoint(concat);
    rewriter.replaceOpWithNewOp<AppendOp>(concat, concat.getResultType(), concat.getInputs()[1], concat.getInputs()[0]);
    return;
  }
  auto insert = dyn_cast_or_null<tensor::InsertSliceOp>(op);
  if (!insert || !replacesTokens(insert) || !isCache(insert.getDest()))
    return;
  Value dest = insert.getDest();
  rewriter.setInsertionPoint(insert);
  Value position = getValueOrCreateConstantIndexOp(rewriter, insert.getLoc(), insert.getMixedOffsets()[2]);
  rewriter.replaceOpWithNewOp<AppendOp>(insert, insert.getDestType(), insert.getSource(), position, dest);
  raiseAppend(rewriter, dest);
}
