// See the header.
#include "Surroundings.h"

#include "../Common/Masks.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"

using namespace mlir;
using namespace aligned;

void aligned::declareRuntime(ModuleOp module) {
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
  declare("aligned_rt_bits", {i32, i64, i64, i64, i64, pointer, pointer}, {});
  declare("aligned_rt_recording", {}, {i32});
  declare("aligned_rt_lap", {i32}, {});
  declare("aligned_rt_reference_attention", {pointer, pointer, pointer, pointer, i32, i64, i64, i64, i64, i64, i64, i64, f32, i32, i32, i64, i64, f64, pointer, i32, pointer}, {});
  declare("aligned_rt_reference_state",
          {pointer, pointer, pointer, pointer, pointer, pointer, i64, i64, i64, i64, i64, i64, i64, f32, i32, i32, i64, i64, i64, f64, pointer, i32, pointer}, {});
  declare("aligned_rt_reference_prepare", {pointer, pointer, pointer, pointer, f32, i64, i64, f32, pointer, pointer, pointer}, {});
  declare("aligned_rt_reference_scan", {pointer, pointer, pointer, pointer, f32, i64, i64, i64, pointer, pointer, pointer, pointer, pointer, pointer}, {});
  SmallVector<Type> attend{pointer, pointer, pointer, pointer, i64, i64, i64};
  attend.append(12, pointer);
  attend.push_back(i32);
  declare("aligned_rt_reference_attend", attend, {});
  declare("aligned_cache_create", {pointer, i64, i64, i64, i64}, {pointer});
  declare("aligned_cache_fork", {pointer}, {pointer});
  declare("aligned_cache_destroy", {pointer}, {});
  declare("aligned_cache_drop_planes", {pointer, i32}, {i32});
  declare("aligned_cache_append", {pointer, pointer, i64, pointer}, {i32});
  declare("aligned_cache_overwrite", {pointer, i64, pointer, i64, pointer}, {i32});
  declare("aligned_cache_unpack", {pointer, i32, pointer}, {i32});
}

std::string aligned::kernelKey(Operation *op, StringRef without) {
  std::string key;
  llvm::raw_string_ostream os(key);
  os << op->getName();
  for (Type type : op->getOperandTypes()) { // outs and masks too: which there are
    auto memory = dyn_cast<MemRefType>(type);
    os << " " << (memory ? Type(MemRefType::get(memory.getShape(), memory.getElementType(), MemRefLayoutAttrInterface(), memory.getMemorySpace())) : type);
  }
  for (NamedAttribute attribute : op->getAttrs())
    if (attribute.getName() != without)
      os << " " << attribute.getName() << attribute.getValue();
  return key;
}

Value Surroundings::number(int64_t n) { return arith::ConstantOp::create(b, b.getI64IntegerAttr(n)); }
Value Surroundings::code(int32_t n) { return arith::ConstantOp::create(b, b.getI32IntegerAttr(n)); }
Value Surroundings::asI64(Value index) { return arith::IndexCastOp::create(b, b.getI64Type(), index); }

Value Surroundings::extent(Value shaped, int64_t dim) {
  return asI64(isa<MemRefType>(shaped.getType()) ? Value(memref::DimOp::create(b, shaped, dim)) : Value(tensor::DimOp::create(b, shaped, dim)));
}

Value Surroundings::address(Value buffer) {
  auto type = cast<MemRefType>(buffer.getType());
  Value start = asI64(memref::ExtractAlignedPointerAsIndexOp::create(b, buffer));
  if (!type.getLayout().isIdentity()) {
    Value offset = asI64(memref::ExtractStridedMetadataOp::create(b, buffer).getOffset());
    start = arith::AddIOp::create(b, start, arith::MulIOp::create(b, offset, number(llvm::divideCeil(type.getElementTypeBitWidth(), 8))));
  }
  return LLVM::IntToPtrOp::create(b, pointer(), start);
}

Value Surroundings::call(StringRef name, TypeRange results, ValueRange operands) {
  auto op = func::CallOp::create(b, name, results, operands);
  return op.getNumResults() ? op.getResult(0) : Value();
}

Value Surroundings::stack(Type element, int64_t count) {
  OpBuilder::InsertionGuard guard(b);
  Operation *at = b.getInsertionBlock()->getParentOp();
  while (!isa<FunctionOpInterface, scf::ForallOp>(at)) // which threads run at once
    at = at->getParentOp();
  b.setInsertionPointToStart(&at->getRegion(0).front());
  return LLVM::AllocaOp::create(b, pointer(), element, number(count));
}

void Surroundings::store(Value value, Value base, int64_t byteOffset) {
  Value at = LLVM::GEPOp::create(b, pointer(), b.getI8Type(), base, ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(byteOffset)});
  LLVM::StoreOp::create(b, value, at);
}

Value Surroundings::field(Value base, int64_t byteOffset) {
  Value at = LLVM::GEPOp::create(b, pointer(), b.getI8Type(), base, ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(byteOffset)});
  return LLVM::LoadOp::create(b, b.getI64Type(), at);
}

ScoreNumbers aligned::scoreNumbers(Surroundings &around, MaskAttr mask, Value window, Value sinks, double softcap, Value dynamicSoftcap) {
  Emitter e(around.b, around.b.getLoc());
  auto given = [&](Value operand) { return operand ? e.wrap(operand) : Val(); };
  const Sight sight(mask, /*queries=*/1, given(window), given(sinks));
  const Softcap cap(softcap, dynamicSoftcap ? convert(e.wrap(dynamicSoftcap), e.types.getF64Type()) : Val());
  return {sight.window.as(e, e.i64()).value, sight.sinks.as(e, e.i64()).value, cap.cap.as(e, e.types.getF64Type()).value};
}
