// See the header. Where a cache is copied and when it is destroyed was decided before, by bufferization and deallocation.
#include "ConvertCaches.h"

#include "Surroundings.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Runtime/Cache.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/ControlFlow/IR/ControlFlowOps.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Func/Transforms/FuncConversions.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/Transforms/Patterns.h"

#include <cstddef>

using namespace mlir;
using namespace aligned;

namespace {

enum Dim { kBatch, kHeads, kTokens, kChannels };

bool isCache(Value value) { return bool(getPlanes(value.getType())); }

int32_t elementCode(Type element) { return element.isF16() ? ALIGNED_ELEMENT_F16 : element.isBF16() ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F32; }

/// An `aligned_format` on the stack.
Value formatOf(Surroundings &around, MemRefType type) {
  PlanesAttr planes = getPlanes(type);
  Value format = around.slots((sizeof(aligned_format) + 7) / 8);
  auto set = [&](int64_t offset, int32_t number) { around.store(around.code(number), format, offset); };
  set(offsetof(aligned_format, kind), static_cast<int32_t>(planes.getKind()));
  set(offsetof(aligned_format, role), static_cast<int32_t>(planes.getRole()));
  set(offsetof(aligned_format, element), elementCode(type.getElementType()));
  set(offsetof(aligned_format, planes), planes.getNumPlanes());
  for (int64_t plane = 0; plane < ALIGNED_MAX_PLANES; ++plane)
    set(offsetof(aligned_format, width) + plane * sizeof(int32_t), plane < planes.getNumPlanes() ? planes.getWidths()[plane] : 0);
  return format;
}

/// Appends a dense buffer of any strides, or puts it at a position.
void append(Surroundings &around, Value cache, Value tokens, Value position = {}) {
  ImplicitLocOpBuilder &b = around.b;
  Value strides = around.slots(4);
  if (cast<MemRefType>(tokens.getType()).getLayout().isIdentity()) {
    Value stride = around.number(1);
    for (int64_t dim = kChannels; dim >= kBatch; --dim) {
      around.store(stride, strides, dim * 8);
      stride = arith::MulIOp::create(b, stride, around.extent(tokens, dim));
    }
  } else {
    auto layout = memref::ExtractStridedMetadataOp::create(b, tokens);
    for (auto [dim, stride] : llvm::enumerate(layout.getStrides()))
      around.store(around.asI64(stride), strides, dim * 8);
  }
  if (!position) {
    around.call("aligned_cache_append", b.getI32Type(), {cache, around.address(tokens), around.extent(tokens, kTokens), strides});
    return;
  }
  Value status = around.call("aligned_cache_overwrite", b.getI32Type(), {cache, around.asI64(position), around.address(tokens), around.extent(tokens, kTokens), strides});
  cf::AssertOp::create(b, arith::CmpIOp::create(b, arith::CmpIPredicate::eq, status, around.code(0)), "'aligned.append' op expected a cache without pages, and memory");
}

//===----------------------------------------------------------------------===//
// Ops of the dialect
//===----------------------------------------------------------------------===//

/// What the patterns have in common: on tensors there is nothing to call.
template <typename Op> struct CachePattern : OpConversionPattern<Op> {
  using OpConversionPattern<Op>::OpConversionPattern;
  using Adaptor = typename OpConversionPattern<Op>::OpAdaptor;
  LogicalResult matchAndRewrite(Op op, Adaptor adaptor, ConversionPatternRewriter &rewriter) const final {
    if (!isa<MemRefType>(op->getOperand(0).getType()))
      return rewriter.notifyMatchFailure(op, "expected buffers, got tensors: they are bufferized first");
    Surroundings around(rewriter, op.getLoc());
    convert(op, adaptor, around, rewriter);
    return success();
  }
  virtual void convert(Op op, Adaptor adaptor, Surroundings &around, ConversionPatternRewriter &rewriter) const = 0;
};

struct ConvertPack : CachePattern<PackOp> {
  using CachePattern::CachePattern;
  void convert(PackOp op, OpAdaptor adaptor, Surroundings &around, ConversionPatternRewriter &rewriter) const override {
    append(around, adaptor.getTarget(), adaptor.getSource());
    rewriter.eraseOp(op);
  }
};

struct ConvertAppend : CachePattern<AppendOp> {
  using CachePattern::CachePattern;
  void convert(AppendOp op, OpAdaptor adaptor, Surroundings &around, ConversionPatternRewriter &rewriter) const override {
    append(around, adaptor.getCache(), adaptor.getTokens(), adaptor.getPosition());
    rewriter.replaceOp(op, adaptor.getCache());
  }
};

struct ConvertUnpack : CachePattern<UnpackOp> {
  using CachePattern::CachePattern;
  void convert(UnpackOp op, OpAdaptor adaptor, Surroundings &around, ConversionPatternRewriter &rewriter) const override {
    around.call("aligned_cache_unpack", around.b.getI32Type(), {adaptor.getSource(), around.code(op.getBits()), around.address(adaptor.getTarget())});
    rewriter.eraseOp(op);
  }
};

struct ConvertHasDenseCopy : CachePattern<HasDenseCopyOp> {
  using CachePattern::CachePattern;
  void convert(HasDenseCopyOp op, OpAdaptor adaptor, Surroundings &around, ConversionPatternRewriter &rewriter) const override {
    auto has = [&](Value cache) -> Value {
      return arith::CmpIOp::create(around.b, arith::CmpIPredicate::ne, around.field(cache, offsetof(aligned_cache, dense)), around.number(0));
    };
    rewriter.replaceOpWithNewOp<arith::AndIOp>(op, has(adaptor.getKey()), has(adaptor.getValue()));
  }
};

struct ConvertFork : OpConversionPattern<ForkOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(ForkOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Surroundings around(rewriter, op.getLoc());
    rewriter.replaceOp(op, around.call("aligned_cache_fork", around.pointer(), adaptor.getCache()));
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Ops of buffers
//===----------------------------------------------------------------------===//

/// Room is made for the tokens that are to come.
struct ConvertAlloc : OpConversionPattern<memref::AllocOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(memref::AllocOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Surroundings around(rewriter, op.getLoc());
    MemRefType type = op.getType();
    Value tokens = type.isDynamicDim(kTokens) ? around.asI64(adaptor.getDynamicSizes().front()) : around.number(type.getDimSize(kTokens));
    Value cache = around.call("aligned_cache_create", around.pointer(),
                              {formatOf(around, type), around.number(type.getDimSize(kBatch)), around.number(type.getDimSize(kHeads)), around.number(type.getDimSize(kChannels)), tokens});
    if (PlanesAttr planes = getPlanes(type); planes.getResident() < planes.getNumPlanes()) // S9
      around.call("aligned_cache_drop_planes", around.b.getI32Type(), {cache, around.code(planes.getResident())});
    rewriter.replaceOp(op, cache);
    return success();
  }
};

struct ConvertDealloc : OpConversionPattern<memref::DeallocOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(memref::DeallocOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Surroundings(rewriter, op.getLoc()).call("aligned_cache_destroy", {}, adaptor.getMemref());
    rewriter.eraseOp(op);
    return success();
  }
};

/// The number of tokens is the cache's own.
struct ConvertDim : OpConversionPattern<memref::DimOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(memref::DimOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Surroundings around(rewriter, op.getLoc());
    auto type = cast<MemRefType>(op.getSource().getType());
    auto extent = [&](int64_t dim) { return dim == kTokens ? around.field(adaptor.getSource(), offsetof(aligned_cache, tokens)) : around.number(type.getDimSize(dim)); };
    std::optional<int64_t> known = op.getConstantIndex();
    Value size = known && *known >= 0 && *known < type.getRank() ? extent(*known) : around.number(0); // what is out of range says nothing
    for (int64_t dim = 0; dim < type.getRank() && !known; ++dim) {
      Value is = arith::CmpIOp::create(around.b, arith::CmpIPredicate::eq, adaptor.getIndex(), arith::ConstantIndexOp::create(around.b, dim));
      size = arith::SelectOp::create(around.b, is, extent(dim), size);
    }
    rewriter.replaceOpWithNewOp<arith::IndexCastOp>(op, rewriter.getIndexType(), size);
    return success();
  }
};

/// Deallocation compares addresses.
struct ConvertAddress : OpConversionPattern<memref::ExtractAlignedPointerAsIndexOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(memref::ExtractAlignedPointerAsIndexOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Value address = LLVM::PtrToIntOp::create(rewriter, op.getLoc(), rewriter.getI64Type(), adaptor.getSource());
    rewriter.replaceOpWithNewOp<arith::IndexCastOp>(op, rewriter.getIndexType(), address);
    return success();
  }
};

/// Deallocation asks for the buffer behind a view, which is the cache.
struct ConvertMetadata : OpConversionPattern<memref::ExtractStridedMetadataOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(memref::ExtractStridedMetadataOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    if (llvm::any_of(op->getResults().drop_front(), [](Value result) { return !result.use_empty(); }))
      return rewriter.notifyMatchFailure(op, "expected no strides of a cache");
    SmallVector<Value> results(op->getNumResults(), arith::ConstantIndexOp::create(rewriter, op.getLoc(), 0));
    results.front() = adaptor.getSource();
    rewriter.replaceOp(op, results);
    return success();
  }
};

struct ConvertCast : OpConversionPattern<memref::CastOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(memref::CastOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    rewriter.replaceOp(op, adaptor.getSource());
    return success();
  }
};

struct ConvertSelect : OpConversionPattern<arith::SelectOp> {
  using OpConversionPattern::OpConversionPattern;
  LogicalResult matchAndRewrite(arith::SelectOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    rewriter.replaceOpWithNewOp<arith::SelectOp>(op, adaptor.getCondition(), adaptor.getTrueValue(), adaptor.getFalseValue());
    return success();
  }
};

} // namespace

void aligned::populateCacheConversion(TypeConverter &types, RewritePatternSet &patterns, ConversionTarget &target) {
  types.addConversion([](MemRefType type) -> std::optional<Type> {
    if (getPlanes(type))
      return LLVM::LLVMPointerType::get(type.getContext());
    return std::nullopt;
  });
  patterns.add<ConvertPack, ConvertAppend, ConvertUnpack, ConvertHasDenseCopy, ConvertFork, ConvertAlloc, ConvertDealloc, ConvertDim, ConvertAddress, ConvertMetadata, ConvertCast,
               ConvertSelect>(types, patterns.getContext());
  populateFunctionOpInterfaceTypeConversionPattern<func::FuncOp>(patterns, types);
  populateCallOpTypeConversionPattern(patterns, types);
  populateReturnOpTypeConversionPattern(patterns, types);
  populateBranchOpInterfaceTypeConversionPattern(patterns, types);
  target.addDynamicallyLegalOp<func::FuncOp>([&types](func::FuncOp op) { return types.isSignatureLegal(op.getFunctionType()) && types.isLegal(&op.getBody()); });
  target.markUnknownOpDynamicallyLegal([](Operation *op) { return llvm::none_of(op->getOperands(), isCache) && llvm::none_of(op->getResults(), isCache); });
  scf::populateSCFStructuralTypeConversionsAndLegality(types, patterns, target);
}
