// convert-aligned-to-cpu: kernels out of decode attention, runtime calls out of caches, linalg out of the rest.
//
// Outside the kernels a module stays on tensors, so that upstream's bufferization places them; a split tensor becomes a pointer to
// the runtime's `aligned_cache`. Each decode op packs its arguments into slots of memory and hands the kernel, a function over a range of rows,
// to the runtime's threads.
#include "RowKernel.h"
#include "aligned/Conversion/AlignedToCPU/Passes.h"
#include "aligned/Runtime/Kernel.h"

#include "mlir/Dialect/Bufferization/IR/Bufferization.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Func/Transforms/FuncConversions.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/SCF/Transforms/Patterns.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Transforms/DialectConversion.h"

#include <cstddef>

namespace aligned {
#define GEN_PASS_DEF_CONVERTALIGNEDTOCPU
#include "aligned/Conversion/AlignedToCPU/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

//===----------------------------------------------------------------------===//
// Runtime functions
//===----------------------------------------------------------------------===//

/// Declares what converted code calls, once per module; unused ones go away with the next symbol-dce.
void declareRuntime(ModuleOp module) {
  OpBuilder b = OpBuilder::atBlockBegin(module.getBody());
  Type pointer = LLVM::LLVMPointerType::get(b.getContext()), i32 = b.getI32Type(), i64 = b.getI64Type(), f32 = b.getF32Type(), f64 = b.getF64Type();
  Type body = b.getFunctionType({pointer, i64, i64}, {});
  auto declare = [&](StringRef name, TypeRange arguments, TypeRange results) {
    if (!module.lookupSymbol(name))
      func::FuncOp::create(b, module.getLoc(), name, b.getFunctionType(arguments, results)).setPrivate();
  };
  declare("aligned_rt_parallel", {i64, body, pointer}, {});
  declare("aligned_rt_scratch", {i64}, {pointer});
  declare("aligned_rt_tally", {i32, i64, i64, i64, i64}, {});
  declare("aligned_rt_plan", {i32, i64, i64, i64, pointer, pointer}, {});
  declare("aligned_rt_reference_attention", {pointer, pointer, pointer, pointer, i32, i64, i64, i64, i64, i64, i64, i64, f32, i32, i32, i64, i64, f64}, {});
  declare("aligned_rt_launch", {i32, i64, pointer}, {});
  declare("aligned_rt_create_cache", {pointer, i64, i64, i64, i64}, {pointer});
  declare("aligned_cache_create", {pointer, i64, i64, i64, i64}, {pointer});
  declare("aligned_cache_clone", {pointer}, {pointer});
  declare("aligned_cache_destroy", {pointer}, {});
  declare("aligned_cache_append", {pointer, pointer, i64, pointer}, {i32});
  declare("aligned_cache_join", {pointer, i32, pointer}, {i32});
}

//===----------------------------------------------------------------------===//
// Helpers
//===----------------------------------------------------------------------===//

RankedTensorType tensorType(Value value) { return cast<RankedTensorType>(value.getType()); }

int32_t elementCode(Type element) {
  return element.isF16() ? ALIGNED_ELEMENT_F16 : element.isBF16() ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F32;
}

/// Values that surround a conversion: tensors as addresses, extents as i64.
struct Surroundings {
  Surroundings(OpBuilder &builder, Location loc) : b(loc, builder) {}
  ImplicitLocOpBuilder b;

  Type pointer() { return LLVM::LLVMPointerType::get(b.getContext()); }
  Value number(int64_t n) { return arith::ConstantOp::create(b, b.getI64IntegerAttr(n)); }
  Value code(int32_t n) { return arith::ConstantOp::create(b, b.getI32IntegerAttr(n)); }
  Value asI64(Value index) { return arith::IndexCastOp::create(b, b.getI64Type(), index); }

  Value address(Value memref) {
    Value index = memref::ExtractAlignedPointerAsIndexOp::create(b, memref);
    return LLVM::IntToPtrOp::create(b, pointer(), asI64(index));
  }
  /// The memory of a dense tensor that is only read.
  Value addressOf(Value tensor) {
    RankedTensorType type = tensorType(tensor);
    return address(bufferization::ToBufferOp::create(b, MemRefType::get(type.getShape(), type.getElementType()), tensor, /*read_only=*/true));
  }

  /// New memory for a tensor of this type; `sizes` are the extents of its dynamic dimensions.
  Value allocate(RankedTensorType type, ValueRange sizes) {
    return memref::AllocOp::create(b, MemRefType::get(type.getShape(), type.getElementType()), sizes);
  }
  Value tensorOf(Value memref) {
    auto type = cast<MemRefType>(memref.getType());
    return bufferization::ToTensorOp::create(b, RankedTensorType::get(type.getShape(), type.getElementType()), memref, /*restrict=*/true, /*writable=*/true);
  }

  Value call(StringRef name, TypeRange results, ValueRange operands) {
    auto op = func::CallOp::create(b, name, results, operands);
    return op.getNumResults() ? op.getResult(0) : Value();
  }

  /// Memory on the stack, allocated once per function however often the op runs.
  Value slots(int64_t count) {
    OpBuilder::InsertionGuard guard(b);
    Operation *at = b.getInsertionBlock()->getParentOp();
    if (!isa<FunctionOpInterface>(at))
      at = at->getParentOfType<FunctionOpInterface>();
    b.setInsertionPointToStart(&at->getRegion(0).front());
    return LLVM::AllocaOp::create(b, pointer(), b.getI64Type(), number(count), /*alignment=*/8);
  }
  void store(Value value, Value base, int64_t byteOffset) {
    Value at = LLVM::GEPOp::create(b, pointer(), b.getI8Type(), base, ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(byteOffset)});
    LLVM::StoreOp::create(b, value, at);
  }
  Value field(Value cache, int64_t byteOffset) {
    Value at = LLVM::GEPOp::create(b, pointer(), b.getI8Type(), cache, ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(byteOffset)});
    return LLVM::LoadOp::create(b, b.getI64Type(), at);
  }
};

/// Extents of `type`'s dynamic dimensions, taken from the same dimensions of `like`.
SmallVector<Value> dynamicSizes(ImplicitLocOpBuilder &b, RankedTensorType type, Value like) {
  SmallVector<Value> sizes;
  for (auto [dim, size] : llvm::enumerate(type.getShape()))
    if (ShapedType::isDynamic(size))
      sizes.push_back(tensor::DimOp::create(b, like, dim));
  return sizes;
}

//===----------------------------------------------------------------------===//
// Appending in place
//===----------------------------------------------------------------------===//

/// Operands whose cache is copied first. A cache is appended to in place, by an append or by a callee; that is the meaning of a new tensor only
/// while nobody looks at the old one afterwards. Decided before anything is converted, while uses and blocks are what the graph says.
using CopiedCaches = SmallPtrSet<OpOperand *, 4>;

/// Whether somebody may look at the cache after this use: a later op, or the same one in the next iteration of a loop around it.
bool isSeenAgain(OpOperand &use) {
  Operation *user = use.getOwner();
  return use.get().getParentBlock() != user->getBlock() || llvm::any_of(use.get().getUsers(), [&](Operation *other) {
           return other != user && (other->getBlock() != user->getBlock() || user->isBeforeInBlock(other));
         });
}

/// Whether a callee does anything with its cache but read it.
bool mayAppend(func::CallOp call, unsigned argument, SymbolTableCollection &symbols) {
  auto callee = symbols.lookupNearestSymbolFrom<func::FuncOp>(call, call.getCalleeAttr());
  return !callee || callee.isExternal() ||
         !llvm::all_of(callee.getArgument(argument).getUsers(), llvm::IsaPred<DecodeAttentionOp, JoinOp, tensor::DimOp>);
}

CopiedCaches findCopiedCaches(ModuleOp module) {
  CopiedCaches copied;
  SymbolTableCollection symbols;
  module.walk([&](Operation *op) {
    for (OpOperand &use : op->getOpOperands()) {
      if (!getSplit(use.get().getType()) || !isSeenAgain(use))
        continue;
      auto call = dyn_cast<func::CallOp>(op);
      if (isa<AppendOp>(op) || (call && mayAppend(call, use.getOperandNumber(), symbols)))
        copied.insert(&use);
    }
  });
  return copied;
}

//===----------------------------------------------------------------------===//
// Kernels
//===----------------------------------------------------------------------===//

std::unique_ptr<RowKernel> makeKernel(Emitter &e, const KernelShape &shape) {
  if (!shape.keySplit)
    return makeDenseKernel(e, shape);
  return shape.keySplit.getKind() == FormatKind::Fixed ? makeFixedKernel(e, shape) : makeFloatKernel(e, shape);
}

/// func @name(%arguments: ptr, %begin: i64, %end: i64): rows begin .. end - 1.
func::FuncOp emitKernel(ModuleOp module, Location loc, StringRef name, const KernelShape &shape) {
  OpBuilder b = OpBuilder::atBlockEnd(module.getBody());
  Type pointer = LLVM::LLVMPointerType::get(b.getContext()), i64 = b.getI64Type();
  auto kernel = func::FuncOp::create(b, loc, name, b.getFunctionType({pointer, i64, i64}, {}));
  kernel.setPrivate();
  b.setInsertionPointToStart(kernel.addEntryBlock());
  Emitter e(b, loc);
  Val arguments = e.wrap(kernel.getArgument(0));
  Val begin = convert(e.wrap(kernel.getArgument(1)), b.getIndexType()), end = convert(e.wrap(kernel.getArgument(2)), b.getIndexType());
  e.loop(begin, end, 1, [&](Val row) { makeKernel(e, shape)->emit(arguments, row); });
  func::ReturnOp::create(e.b);
  return kernel;
}

FailureOr<KernelShape> kernelShape(DecodeAttentionOp op, Isa isa, bool launch) {
  FailureOr<DecodeShape> shape = decodeShape(op, /*takesLater=*/!launch);
  if (failed(shape))
    return failure();
  return KernelShape{*shape, isa};
}

struct ConvertDecodeAttention : OpConversionPattern<DecodeAttentionOp> {
  ConvertDecodeAttention(const TypeConverter &types, MLIRContext *context, SymbolTable &symbols, Isa isa, bool launch)
      : OpConversionPattern(types, context), symbols(symbols), isa(isa), launch(launch) {}

  LogicalResult matchAndRewrite(DecodeAttentionOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    FailureOr<KernelShape> shape = kernelShape(op, isa, launch); // checked before the conversion began
    if (failed(shape))
      return failure();
    Surroundings around(rewriter, op.getLoc());
    ImplicitLocOpBuilder &b = around.b;
    RankedTensorType key = tensorType(op.getKey());

    func::FuncOp kernel;
    if (!launch) {
      OpBuilder::InsertionGuard guard(rewriter);
      auto module = op->getParentOfType<ModuleOp>();
      std::string name = ("aligned_decode_" + Twine(op.getSite())).str();
      for (int64_t copy = 1; symbols.lookup(name); ++copy)
        name = ("aligned_decode_" + Twine(op.getSite()) + "_" + Twine(copy)).str();
      kernel = emitKernel(module, op.getLoc(), name, *shape);
      symbols.insert(kernel);
    }

    Value slots = around.slots(kSlots);
    auto pass = [&](Slot slot, Value value) { around.store(value, slots, int64_t(slot) * kSlotBytes); };
    pass(Slot::Query, around.addressOf(adaptor.getQuery()));
    if (shape->keySplit) {
      pass(Slot::Key, adaptor.getKey());
      pass(Slot::Value, adaptor.getValue());
    } else {
      pass(Slot::Key, around.addressOf(adaptor.getKey()));
      pass(Slot::Value, around.addressOf(adaptor.getValue()));
      pass(Slot::Tokens, around.asI64(tensor::DimOp::create(b, adaptor.getKey(), 2)));
    }
    pass(Slot::Scale, adaptor.getScale());
    if (adaptor.getLater())
      pass(Slot::Later, around.asI64(adaptor.getLater()));
    SmallVector<Value> results;
    constexpr Slot slotOf[] = {Slot::Acc, Slot::Max, Slot::Sum, Slot::Certificate};
    for (auto [slot, result] : llvm::zip(slotOf, op->getResults())) {
      RankedTensorType type = tensorType(result);
      SmallVector<Value> sizes;
      for (auto [dim, size] : llvm::enumerate(type.getShape()))
        if (ShapedType::isDynamic(size)) // heads, queries and head_dim are static by now
          sizes.push_back(tensor::DimOp::create(b, adaptor.getQuery(), dim));
      results.push_back(around.allocate(type, sizes));
      pass(slot, around.address(results.back()));
    }
    Value batch = around.asI64(tensor::DimOp::create(b, adaptor.getQuery(), 0));
    if (launch) {
      if (!op.getCertificate())
        pass(Slot::Certificate, around.number(0));
      around.call("aligned_rt_launch", {}, {around.code(shape->site), batch, slots});
    } else {
      Value rows = arith::MulIOp::create(b, batch, around.number(key.getDimSize(1)));
      Value body = func::ConstantOp::create(b, kernel.getFunctionType(), SymbolRefAttr::get(kernel));
      around.call("aligned_rt_parallel", {}, {rows, body, slots});
    }
    for (Value &result : results)
      result = around.tensorOf(result);
    rewriter.replaceOp(op, results);
    return success();
  }

  SymbolTable &symbols;
  Isa isa;
  bool launch;
};

//===----------------------------------------------------------------------===//
// Results and their errors
//===----------------------------------------------------------------------===//

/// Maps [batch, heads, queries, channels] of states and [batch, heads, queries] of rows.
std::pair<AffineMap, AffineMap> stateMaps(Builder &b) {
  AffineMap state = b.getMultiDimIdentityMap(4);
  return {state, state.dropResult(3)};
}

SmallVector<utils::IteratorType> parallel(int64_t rank) { return SmallVector<utils::IteratorType>(rank, utils::IteratorType::parallel); }

/// Bound and estimate (P4) of the rounded output.
SmallVector<Value> certify(ImplicitLocOpBuilder &b, Value certificate, Value sum, Value output) {
  auto [state, row] = stateMaps(b);
  RankedTensorType rowType = tensorType(sum), outputType = tensorType(output);
  SmallVector<Value> sizes = dynamicSizes(b, rowType, sum);
  Value empty = tensor::EmptyOp::create(b, rowType, sizes), none = arith::ConstantOp::create(b, b.getF32FloatAttr(0));
  Value zeros = linalg::FillOp::create(b, none, empty).getResult(0);
  // The largest magnitude and the sum of squares of each row of the output.
  SmallVector<utils::IteratorType> iterators = parallel(3);
  iterators.push_back(utils::IteratorType::reduction);
  auto norms = linalg::GenericOp::create(b, TypeRange{rowType, rowType}, output, ValueRange{zeros, zeros}, SmallVector<AffineMap>{state, row, row}, iterators,
                                         [&](OpBuilder &inner, Location loc, ValueRange args) {
                                           Value x = args[0];
                                           if (!x.getType().isF32())
                                             x = arith::ExtFOp::create(inner, loc, inner.getF32Type(), x);
                                           Value largest = arith::MaximumFOp::create(inner, loc, args[1], math::AbsFOp::create(inner, loc, x));
                                           Value squares = arith::AddFOp::create(inner, loc, args[2], arith::MulFOp::create(inner, loc, x, x));
                                           linalg::YieldOp::create(inner, loc, ValueRange{largest, squares});
                                         });
  SmallVector<Value> inputs{sum, norms.getResult(0), norms.getResult(1)};
  for (int64_t number = 0; number < kCertificateNumbers; ++number) {
    SmallVector<OpFoldResult> extents = tensor::getMixedSizes(b, b.getLoc(), sum), offsets(3, b.getIndexAttr(0)), strides(4, b.getIndexAttr(1));
    extents.push_back(b.getIndexAttr(1));
    offsets.push_back(b.getIndexAttr(number));
    inputs.push_back(tensor::ExtractSliceOp::create(b, rowType, certificate, offsets, extents, strides));
  }
  // Half a unit in the last place of the result, relative and for the least ones.
  Type element = outputType.getElementType();
  double relative = element.isF16() ? 0x1.01p-11 : element.isBF16() ? 0x1.01p-8 : 0x1p-23, least = element.isF16() ? 0x1p-25 : 0x1p-126;
  SmallVector<AffineMap> maps(inputs.size() + 2, b.getMultiDimIdentityMap(3));
  int64_t channels = outputType.getDimSize(3);
  auto certified = linalg::GenericOp::create(b, TypeRange{rowType, rowType}, inputs, ValueRange{empty, empty}, maps, parallel(3),
                                             [&](OpBuilder &inner, Location loc, ValueRange args) {
                                               Emitter e(inner, loc);
                                               auto in = [&](int64_t number) { return e.wrap(args[number]); };
                                               Val total = in(0), largest = in(1), squares = in(2);
                                               auto c = [&](int64_t number) { return in(3 + number); };
                                               Val growth = c(0) / total;
                                               Val bound = ((growth + 1) * c(1) + growth * c(2) + c(3)) / total, cap = c(5) + largest;
                                               // A bound that is no number is no bound, and 2^-60 covers weights that merging took for 0.
                                               bound = select(bound < cap, bound, cap) * (1 + 0x1p-20) + c(5) * 0x1p-60 + largest * relative + least;
                                               Val estimate = c(4) / total / max(sqrt(squares * (1.0 / channels)), 1e-30);
                                               Val empty = total == 0, zero = e.constant(e.f32(), 0);
                                               linalg::YieldOp::create(e.b, ValueRange{select(empty, zero, bound).value, select(empty, zero, estimate).value});
                                             });
  return certified.getResults();
}

/// Unfused attention, exactly: the oracle.
struct ConvertAttention : OpConversionPattern<AttentionOp> {
  using OpConversionPattern::OpConversionPattern;

  LogicalResult matchAndRewrite(AttentionOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Surroundings around(rewriter, op.getLoc());
    ImplicitLocOpBuilder &b = around.b;
    // One element type for all: f32 holds f16 and bf16 exactly.
    auto widen = [&](Value tensor) { return elementwise(b, tensor, b.getF32Type()); };
    Value query = widen(adaptor.getQuery()), key = widen(adaptor.getKey()), value = widen(adaptor.getValue());
    auto extent = [&](Value tensor, int64_t dim) { return around.asI64(tensor::DimOp::create(b, tensor, dim)); };
    auto type = RankedTensorType::get(tensorType(op.getResult()).getShape(), b.getF32Type());
    Value result = around.allocate(type, dynamicSizes(b, type, query));
    MaskAttr mask = op.getMaskAttr();
    Value softcap = arith::ConstantOp::create(b, b.getF64FloatAttr(op.getSoftcap() ? op.getSoftcap()->convertToDouble() : 0));
    around.call("aligned_rt_reference_attention", {},
                {around.addressOf(query), around.addressOf(key), around.addressOf(value), around.address(result),
                 around.code(ALIGNED_ELEMENT_F32), extent(query, 0), extent(query, 1), extent(key, 1), extent(query, 2), extent(key, 2), extent(key, 3),
                 extent(value, 3), adaptor.getScale(), around.code(op.getMaskedZero()), around.code(mask && mask.getCausal()),
                 around.number(mask ? mask.getWindow() : 0), around.number(mask ? mask.getSinks() : 0), softcap});
    SmallVector<Value> results{elementwise(b, around.tensorOf(result), tensorType(op.getResult()).getElementType())};
    if (op.getBound()) { // what is computed in float64 errs by its rounding
      auto filled = [&](RankedTensorType type, float number) {
        Value empty = tensor::EmptyOp::create(b, type, dynamicSizes(b, type, query)), value = arith::ConstantOp::create(b, b.getF32FloatAttr(number));
        return linalg::FillOp::create(b, value, empty).getResult(0);
      };
      auto row = tensorType(op.getBound());
      SmallVector<int64_t> state(row.getShape());
      state.push_back(kCertificateNumbers);
      llvm::append_range(results, certify(b, filled(RankedTensorType::get(state, b.getF32Type()), 0), filled(row, 1), results.front()));
    }
    rewriter.replaceOp(op, results);
    return success();
  }

  /// The same tensor in another float type.
  static Value elementwise(ImplicitLocOpBuilder &b, Value tensor, Type element) {
    RankedTensorType from = tensorType(tensor);
    if (from.getElementType() == element)
      return tensor;
    auto to = from.clone(element);
    Value empty = tensor::EmptyOp::create(b, to, dynamicSizes(b, to, tensor));
    SmallVector<AffineMap> maps(2, b.getMultiDimIdentityMap(from.getRank()));
    SmallVector<utils::IteratorType> iterators(from.getRank(), utils::IteratorType::parallel);
    bool wider = element.getIntOrFloatBitWidth() > from.getElementTypeBitWidth();
    auto generic = linalg::GenericOp::create(b, TypeRange(to), tensor, empty, maps, iterators, [&](OpBuilder &inner, Location loc, ValueRange args) {
      Value cast = wider ? Value(arith::ExtFOp::create(inner, loc, element, args[0])) : Value(arith::TruncFOp::create(inner, loc, element, args[0]));
      linalg::YieldOp::create(inner, loc, cast);
    });
    return generic.getResult(0);
  }
};

//===----------------------------------------------------------------------===//
// Softmax state
//===----------------------------------------------------------------------===//

struct ConvertMerge : OpConversionPattern<MergeOp> {
  using OpConversionPattern::OpConversionPattern;

  LogicalResult matchAndRewrite(MergeOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    ImplicitLocOpBuilder b(op.getLoc(), rewriter);
    auto [state, row] = stateMaps(b);
    RankedTensorType accType = tensorType(op.getAcc()), rowType = tensorType(op.getMax());
    Value accEmpty = tensor::EmptyOp::create(b, accType, dynamicSizes(b, accType, adaptor.getAccA()));
    Value rowEmpty = tensor::EmptyOp::create(b, rowType, dynamicSizes(b, rowType, adaptor.getMaxA()));
    // The weight that each state keeps: e^(its max - the larger one), where the max of no tokens counts as the lowest float.
    auto weights = [](OpBuilder &inner, Location loc, Value maxA, Value maxB) {
      Value lowest = arith::ConstantOp::create(inner, loc, inner.getF32FloatAttr(std::numeric_limits<float>::lowest()));
      Value top = arith::MaximumFOp::create(inner, loc, maxA, maxB), shift = arith::MaximumFOp::create(inner, loc, top, lowest);
      auto weight = [&](Value max) { return math::ExpOp::create(inner, loc, arith::SubFOp::create(inner, loc, max, shift)); };
      return std::tuple<Value, Value, Value>(top, weight(maxA), weight(maxB));
    };
    auto blend = [](OpBuilder &inner, Location loc, Value a, Value weightA, Value b, Value weightB) -> Value {
      return arith::AddFOp::create(inner, loc, arith::MulFOp::create(inner, loc, a, weightA), arith::MulFOp::create(inner, loc, b, weightB));
    };
    AffineMap rowIdentity = b.getMultiDimIdentityMap(3);
    auto rows = linalg::GenericOp::create(b, TypeRange{rowType, rowType}, ValueRange{adaptor.getMaxA(), adaptor.getSumA(), adaptor.getMaxB(), adaptor.getSumB()},
                                          ValueRange{rowEmpty, rowEmpty}, SmallVector<AffineMap>(6, rowIdentity), parallel(3),
                                          [&](OpBuilder &inner, Location loc, ValueRange args) {
                                            auto [top, weightA, weightB] = weights(inner, loc, args[0], args[2]);
                                            linalg::YieldOp::create(inner, loc, ValueRange{top, blend(inner, loc, args[1], weightA, args[3], weightB)});
                                          });
    const SmallVector<AffineMap> maps{state, row, state, row, state};
    /// Sums per channel, of which the one at `largest` is a maximum instead.
    auto blendAll = [&](Value a, Value other, Value empty, int64_t largest) {
      return linalg::GenericOp::create(b, TypeRange{empty.getType()}, ValueRange{a, adaptor.getMaxA(), other, adaptor.getMaxB()}, ValueRange{empty},
                                       maps, parallel(4),
                                       [&](OpBuilder &inner, Location loc, ValueRange args) {
                                         auto [top, weightA, weightB] = weights(inner, loc, args[1], args[3]);
                                         Value sum = blend(inner, loc, args[0], weightA, args[2], weightB);
                                         if (largest >= 0) {
                                           Value at = linalg::IndexOp::create(inner, loc, 3), last = arith::ConstantIndexOp::create(inner, loc, largest);
                                           sum = arith::SelectOp::create(inner, loc, arith::CmpIOp::create(inner, loc, arith::CmpIPredicate::eq, at, last),
                                                                         arith::MaximumFOp::create(inner, loc, args[0], args[2]), sum);
                                         }
                                         linalg::YieldOp::create(inner, loc, sum);
                                       })
          .getResult(0);
    };
    SmallVector<Value> results{blendAll(adaptor.getAccA(), adaptor.getAccB(), accEmpty, -1), rows.getResult(0), rows.getResult(1)};
    if (op.getCertificate()) {
      RankedTensorType type = tensorType(op.getCertificate());
      Value empty = tensor::EmptyOp::create(b, type, dynamicSizes(b, type, adaptor.getCertificateA()));
      results.push_back(blendAll(adaptor.getCertificateA(), adaptor.getCertificateB(), empty, kCertificateNumbers - 1));
    }
    rewriter.replaceOp(op, results);
    return success();
  }
};

struct ConvertFinish : OpConversionPattern<FinishOp> {
  using OpConversionPattern::OpConversionPattern;

  LogicalResult matchAndRewrite(FinishOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    ImplicitLocOpBuilder b(op.getLoc(), rewriter);
    auto [state, row] = stateMaps(b);
    RankedTensorType type = tensorType(op.getResult());
    Value empty = tensor::EmptyOp::create(b, type, dynamicSizes(b, type, adaptor.getAcc()));
    auto generic = linalg::GenericOp::create(b, TypeRange{type}, ValueRange{adaptor.getAcc(), adaptor.getSum()}, ValueRange{empty},
                                             SmallVector<AffineMap>{state, row, state}, parallel(4),
                                             [&](OpBuilder &inner, Location loc, ValueRange args) {
                                               Value zero = arith::ConstantOp::create(inner, loc, inner.getF32FloatAttr(0));
                                               Value none = arith::CmpFOp::create(inner, loc, arith::CmpFPredicate::OEQ, args[1], zero);
                                               Value quotient = arith::DivFOp::create(inner, loc, args[0], args[1]);
                                               Value result = arith::SelectOp::create(inner, loc, none, zero, quotient);
                                               if (!type.getElementType().isF32())
                                                 result = arith::TruncFOp::create(inner, loc, type.getElementType(), result);
                                               linalg::YieldOp::create(inner, loc, result);
                                             });
    SmallVector<Value> results{generic.getResult(0)};
    if (op.getCertificate())
      llvm::append_range(results, certify(b, adaptor.getCertificate(), adaptor.getSum(), results.front()));
    rewriter.replaceOp(op, results);
    return success();
  }
};

//===----------------------------------------------------------------------===//
// Caches
//===----------------------------------------------------------------------===//

/// Appends a dense tensor to a cache in memory.
void append(Surroundings &around, Value cache, Value tokens) {
  ImplicitLocOpBuilder &b = around.b;
  Value strides = around.slots(4), stride = around.number(1);
  for (int64_t dim = 3; dim >= 0; --dim) {
    around.store(stride, strides, dim * 8);
    stride = arith::MulIOp::create(b, stride, around.asI64(tensor::DimOp::create(b, tokens, dim)));
  }
  Value count = around.asI64(tensor::DimOp::create(b, tokens, 2));
  around.call("aligned_cache_append", b.getI32Type(), {cache, around.addressOf(tokens), count, strides});
}

struct ConvertSplit : OpConversionPattern<SplitOp> {
  ConvertSplit(const TypeConverter &types, MLIRContext *context, bool launch) : OpConversionPattern(types, context), launch(launch) {}

  LogicalResult matchAndRewrite(SplitOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Surroundings around(rewriter, op.getLoc());
    ImplicitLocOpBuilder &b = around.b;
    RankedTensorType type = tensorType(op.getResult());
    SplitAttr split = getSplit(type);
    Value format = around.slots((sizeof(aligned_format) + 7) / 8);
    auto set = [&](int64_t offset, int32_t number) { around.store(around.code(number), format, offset); };
    set(offsetof(aligned_format, kind), static_cast<int32_t>(split.getKind()));
    set(offsetof(aligned_format, role), static_cast<int32_t>(split.getRole()));
    set(offsetof(aligned_format, element), elementCode(type.getElementType()));
    set(offsetof(aligned_format, planes), split.getNumPlanes());
    for (int64_t plane = 0; plane < ALIGNED_MAX_PLANES; ++plane)
      set(offsetof(aligned_format, width) + plane * sizeof(int32_t), plane < split.getNumPlanes() ? split.getWidths()[plane] : 0);
    Value count = around.asI64(tensor::DimOp::create(b, adaptor.getSource(), 2));
    Value cache = around.call(launch ? "aligned_rt_create_cache" : "aligned_cache_create", around.pointer(),
                              {format, around.number(type.getDimSize(0)), around.number(type.getDimSize(1)), around.number(type.getDimSize(3)), count});
    append(around, cache, adaptor.getSource());
    if (!escapes(op.getResult())) {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPoint(op->getBlock()->getTerminator());
      around.call("aligned_cache_destroy", {}, cache);
    }
    rewriter.replaceOp(op, cache);
    return success();
  }

  /// Whether somebody else may still hold the cache when this block ends.
  static bool escapes(Value cache) {
    return llvm::any_of(cache.getUsers(), [&](Operation *user) {
      if (auto append = dyn_cast<AppendOp>(user))
        return escapes(append.getResult());
      return user->getBlock() != cache.getParentBlock() || !isa<DecodeAttentionOp, JoinOp, tensor::DimOp>(user);
    });
  }

  bool launch;
};

struct ConvertAppend : OpConversionPattern<AppendOp> {
  ConvertAppend(const TypeConverter &types, MLIRContext *context, const CopiedCaches &copied) : OpConversionPattern(types, context), copied(copied) {}

  LogicalResult matchAndRewrite(AppendOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    if (!getSplit(op.getType())) {
      rewriter.replaceOpWithNewOp<tensor::ConcatOp>(op, op.getType(), /*dim=*/2, ValueRange{adaptor.getCache(), adaptor.getTokens()});
      return success();
    }
    Surroundings around(rewriter, op.getLoc());
    Value cache = adaptor.getCache();
    if (copied.contains(&op.getCacheMutable()))
      cache = around.call("aligned_cache_clone", around.pointer(), cache);
    append(around, cache, adaptor.getTokens());
    rewriter.replaceOp(op, cache);
    return success();
  }

  const CopiedCaches &copied;
};

struct ConvertCall : OpConversionPattern<func::CallOp> {
  ConvertCall(const TypeConverter &types, MLIRContext *context, const CopiedCaches &copied) : OpConversionPattern(types, context), copied(copied) {}

  LogicalResult matchAndRewrite(func::CallOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    SmallVector<Type> results;
    if (failed(getTypeConverter()->convertTypes(op.getResultTypes(), results)))
      return rewriter.notifyMatchFailure(op, "expected convertible results");
    Surroundings around(rewriter, op.getLoc());
    SmallVector<Value> operands(adaptor.getOperands()), copies;
    for (OpOperand &use : op->getOpOperands())
      if (copied.contains(&use)) {
        Value &operand = operands[use.getOperandNumber()];
        copies.push_back(operand = around.call("aligned_cache_clone", around.pointer(), operand));
      }
    auto call = func::CallOp::create(rewriter, op.getLoc(), op.getCallee(), results, operands);
    if (llvm::none_of(op.getResultTypes(), [](Type type) { return bool(getSplit(type)); })) // nobody can have kept them
      for (Value copy : copies)
        around.call("aligned_cache_destroy", {}, copy);
    rewriter.replaceOp(op, call);
    return success();
  }

  const CopiedCaches &copied;
};

struct ConvertJoin : OpConversionPattern<JoinOp> {
  using OpConversionPattern::OpConversionPattern;

  LogicalResult matchAndRewrite(JoinOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    Surroundings around(rewriter, op.getLoc());
    ImplicitLocOpBuilder &b = around.b;
    RankedTensorType type = tensorType(op.getResult());
    SmallVector<Value> sizes;
    if (type.isDynamicDim(2))
      sizes.push_back(arith::IndexCastOp::create(b, b.getIndexType(), around.field(adaptor.getSource(), offsetof(aligned_cache, tokens))));
    Value result = around.allocate(type, sizes);
    around.call("aligned_cache_join", b.getI32Type(), {adaptor.getSource(), around.code(op.getBits()), around.address(result)});
    rewriter.replaceOp(op, around.tensorOf(result));
    return success();
  }
};

struct ConvertDim : OpConversionPattern<tensor::DimOp> {
  using OpConversionPattern::OpConversionPattern;

  LogicalResult matchAndRewrite(tensor::DimOp op, OpAdaptor adaptor, ConversionPatternRewriter &rewriter) const override {
    std::optional<int64_t> dim = op.getConstantIndex();
    if (!getSplit(op.getSource().getType()) || !dim)
      return rewriter.notifyMatchFailure(op, "expected a constant dimension of a split tensor");
    Surroundings around(rewriter, op.getLoc());
    Value size = *dim == 2 ? around.field(adaptor.getSource(), offsetof(aligned_cache, tokens))
                           : around.number(tensorType(op.getSource()).getDimSize(*dim));
    rewriter.replaceOpWithNewOp<arith::IndexCastOp>(op, rewriter.getIndexType(), size);
    return success();
  }
};

//===----------------------------------------------------------------------===//
// The pass
//===----------------------------------------------------------------------===//

struct ConvertAlignedToCPUPass : aligned::impl::ConvertAlignedToCPUBase<ConvertAlignedToCPUPass> {
  using ConvertAlignedToCPUBase::ConvertAlignedToCPUBase;

  void runOnOperation() override {
    ModuleOp module = getOperation();
    std::optional<Isa> target = parseIsa(isa);
    if (!target) {
      module.emitError("expected isa 'portable', 'avx2' or 'avx512', got '") << isa << "'";
      return signalPassFailure();
    }
    if (!isConvertible(module, *target))
      return signalPassFailure();
    MLIRContext *context = &getContext();
    const CopiedCaches copied = findCopiedCaches(module);
    declareRuntime(module);
    SymbolTable symbols(module);

    TypeConverter types;
    types.addConversion([](Type type) { return type; });
    types.addConversion([](RankedTensorType type) -> std::optional<Type> {
      if (getSplit(type))
        return LLVM::LLVMPointerType::get(type.getContext());
      return std::nullopt;
    });
    RewritePatternSet patterns(context);
    patterns.add<ConvertDecodeAttention>(types, context, symbols, *target, launch);
    patterns.add<ConvertSplit>(types, context, launch);
    patterns.add<ConvertMerge, ConvertFinish, ConvertJoin, ConvertDim>(types, context);
    patterns.add<ConvertAppend, ConvertCall>(types, context, copied);
    if (reference)
      patterns.add<ConvertAttention>(types, context);
    populateFunctionOpInterfaceTypeConversionPattern<func::FuncOp>(patterns, types);
    populateReturnOpTypeConversionPattern(patterns, types);

    ConversionTarget legal(*context);
    legal.addIllegalDialect<AlignedDialect>();
    legal.addDynamicallyLegalOp<func::FuncOp>([&](func::FuncOp op) { return types.isSignatureLegal(op.getFunctionType()) && types.isLegal(&op.getBody()); });
    legal.addDynamicallyLegalOp<func::CallOp, func::ReturnOp, tensor::DimOp>([&](Operation *op) { return types.isLegal(op); });
    legal.markUnknownOpDynamicallyLegal([](Operation *) { return true; });
    scf::populateSCFStructuralTypeConversionsAndLegality(types, patterns, legal);
    if (failed(applyPartialConversion(module, legal, std::move(patterns))))
      signalPassFailure();
  }

  /// Reports what no pattern could convert, before anything changes.
  bool isConvertible(ModuleOp module, Isa target) {
    bool ok = true;
    module.walk([&](DecodeAttentionOp op) { ok &= succeeded(kernelShape(op, target, launch)); });
    module.walk([&](AttentionOp op) {
      if (!reference) {
        op.emitOpError("expected fused attention here: run aligned-fuse-decode-attention first");
        ok = false;
      } else if (getSplit(op.getKey().getType())) {
        op.emitOpError("expected dense key and value where attention is not fused, got ") << op.getKey().getType();
        ok = false;
      }
    });
    return ok;
  }
};

} // namespace
