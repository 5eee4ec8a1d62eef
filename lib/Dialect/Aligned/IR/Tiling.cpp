// How stages of a row are cut up: over splits of tokens, which need nothing of one another. Upstream's tiling makes the loops.
//
// The iteration domain is splits. What a stage has of each tile, scores and their maxima, follows by multiples of kSplitTiles, fewer in the last split.
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Arith/Utils/Utils.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"

using namespace mlir;
using namespace aligned;

namespace {

/// A part of a tensor's first dimension.
struct Part {
  OpFoldResult first, count;
};

OpFoldResult extent(OpBuilder &b, Location loc, Value shaped, int64_t dim) {
  return isa<MemRefType>(shaped.getType()) ? memref::getMixedSize(b, loc, shaped, dim) : tensor::getMixedSize(b, loc, shaped, dim);
}

/// The tiles of some splits of a stage. How many there are is told by the cache: what is asked of loop-carried tensors, upstream can't tell to be the same inside and outside.
template <typename Op> Part tilesOf(OpBuilder &b, Op op, const Part &splits) {
  Location loc = op.getLoc();
  auto value = [&](OpFoldResult number) { return getValueOrCreateConstantIndexOp(b, loc, number); };
  Value perSplit = value(b.getIndexAttr(kSplitTiles));
  auto times = [&](Value number) { return b.createOrFold<arith::MulIOp>(loc, number, perSplit); };
  Value tiles = b.createOrFold<arith::CeilDivUIOp>(loc, value(extent(b, loc, op.getKey(), 2)), value(b.getIndexAttr(kTile)));
  Value firstOfRow = times(b.createOrFold<arith::AddIOp>(loc, op.getSplit(), value(splits.first)));
  Value count = b.createOrFold<arith::MinUIOp>(loc, b.createOrFold<arith::SubIOp>(loc, tiles, firstOfRow), times(value(splits.count)));
  return {getAsOpFoldResult(times(value(splits.first))), getAsOpFoldResult(count)};
}

/// Offsets and sizes of a part of `type`.
void place(OpBuilder &b, ShapedType type, const Part &part, SmallVector<OpFoldResult> &offsets, SmallVector<OpFoldResult> &sizes) {
  offsets.assign(type.getRank(), b.getIndexAttr(0));
  sizes.clear();
  for (int64_t size : type.getShape()) // others than the first are static
    sizes.push_back(b.getIndexAttr(size));
  offsets[0] = part.first;
  sizes[0] = part.count;
}

/// The stage for some of its splits. `ofTiles` and `ofSplits` are the operands that have an entry for each.
template <typename Op>
FailureOr<TilingResult> tile(OpBuilder &b, Op op, const Part &splits, ArrayRef<OpOperand *> ofTiles, ArrayRef<OpOperand *> ofSplits) {
  if (!op->getNumResults()) // on buffers
    return failure();
  Location loc = op.getLoc();
  const Part tiles = tilesOf(b, op, splits);
  SmallVector<Value> operands = op->getOperands();
  TilingResult result;
  auto cut = [&](OpOperand *operand, const Part &part) {
    SmallVector<OpFoldResult> offsets, sizes;
    place(b, cast<ShapedType>(operand->get().getType()), part, offsets, sizes);
    auto slice = tensor::ExtractSliceOp::create(b, loc, operand->get(), offsets, sizes, SmallVector<OpFoldResult>(sizes.size(), b.getIndexAttr(1)));
    operands[operand->getOperandNumber()] = slice;
    result.generatedSlices.push_back(slice);
  };
  for (OpOperand *operand : ofTiles)
    cut(operand, tiles);
  for (OpOperand *operand : ofSplits)
    cut(operand, splits);
  Value &split = operands[op.getSplitMutable().getOperandNumber()];
  split = b.createOrFold<arith::AddIOp>(loc, split, getValueOrCreateConstantIndexOp(b, loc, splits.first));
  SmallVector<Type> types;
  for (OpOperand &out : op.getOutsMutable())
    types.push_back(operands[out.getOperandNumber()].getType());
  Operation *tiled = clone(b, op, types, operands);
  result.tiledOps.push_back(tiled);
  llvm::append_range(result.tiledValues, tiled->getResults());
  return result;
}

SmallVector<OpOperand *> operandsOf(MutableOperandRange range) {
  SmallVector<OpOperand *> operands;
  for (OpOperand &operand : range)
    operands.push_back(&operand);
  return operands;
}

SmallVector<Range> domainOf(OpBuilder &b, Location loc, Value ofSplits) { return {{b.getIndexAttr(0), extent(b, loc, ofSplits, 0), b.getIndexAttr(1)}}; }

} // namespace

// scan: scores and tops of tiles, a part of splits.

SmallVector<utils::IteratorType> ScanOp::getLoopIteratorTypes() { return {utils::IteratorType::parallel}; }

SmallVector<Range> ScanOp::getIterationDomain(OpBuilder &b) { return domainOf(b, getLoc(), getSplitsOut()); }

FailureOr<TilingResult> ScanOp::getTiledImplementation(OpBuilder &b, ArrayRef<OpFoldResult> offsets, ArrayRef<OpFoldResult> sizes) {
  SmallVector<OpOperand *> outs = operandsOf(getOutsMutable());
  return tile(b, *this, {offsets[0], sizes[0]}, ArrayRef(outs).take_front(2), ArrayRef(outs).drop_front(2));
}

LogicalResult ScanOp::getResultTilePosition(OpBuilder &b, unsigned number, ArrayRef<OpFoldResult> offsets, ArrayRef<OpFoldResult> sizes,
                                            SmallVector<OpFoldResult> &resultOffsets, SmallVector<OpFoldResult> &resultSizes) {
  const Part splits{offsets[0], sizes[0]};
  const bool isOfTiles = number < 2;
  place(b, cast<ShapedType>(getResult(number).getType()), isOfTiles ? tilesOf(b, *this, splits) : splits, resultOffsets, resultSizes);
  return success();
}

// attend: takes scores and tops of tiles, gives a state of splits.

SmallVector<utils::IteratorType> AttendOp::getLoopIteratorTypes() { return {utils::IteratorType::parallel}; }

SmallVector<Range> AttendOp::getIterationDomain(OpBuilder &b) { return domainOf(b, getLoc(), getSplitsOut()); }

FailureOr<TilingResult> AttendOp::getTiledImplementation(OpBuilder &b, ArrayRef<OpFoldResult> offsets, ArrayRef<OpFoldResult> sizes) {
  return tile(b, *this, {offsets[0], sizes[0]}, {&getScoresMutable(), &getTopsMutable()}, operandsOf(getOutsMutable()));
}

LogicalResult AttendOp::getResultTilePosition(OpBuilder &b, unsigned number, ArrayRef<OpFoldResult> offsets, ArrayRef<OpFoldResult> sizes,
                                              SmallVector<OpFoldResult> &resultOffsets, SmallVector<OpFoldResult> &resultSizes) {
  place(b, cast<ShapedType>(getResult(number).getType()), {offsets[0], sizes[0]}, resultOffsets, resultSizes);
  return success();
}
