// aligned-parallelize-forall: parallel loops as calls of the runtime's threads.
//
// The body becomes a function over a range of iterations, (arguments, begin, end), which is what aligned_rt_parallel takes. What the body uses of its
// surroundings travels through a struct on the caller's stack: buffers as addresses where their types say all else, or as LLVM descriptors. Constants come along.
//
// Bodies that are the same are one function: attention of one shape is written once, however many layers a model has. What tells layers apart, the numbers that the body
// hands on, travels like what surrounds it.
#include "Surroundings.h"
#include "aligned/Conversion/AlignedToCPU/Passes.h"

#include "mlir/Conversion/LLVMCommon/MemRefBuilder.h"
#include "mlir/Conversion/LLVMCommon/TypeConverter.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Arith/Utils/Utils.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Transforms/RegionUtils.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDPARALLELIZEFORALL
#include "aligned/Conversion/AlignedToCPU/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

/// Values in a struct on the stack, and out of it again in another function.
class Package {
public:
  Package(ArrayRef<Value> values, const LLVMTypeConverter &types) : values(values), types(types) {
    SmallVector<Type> fields;
    for (Value value : values)
      fields.push_back(isAddress(value) ? LLVM::LLVMPointerType::get(&types.getContext()) : types.convertType(value.getType()));
    type = LLVM::LLVMStructType::getLiteral(&types.getContext(), fields);
  }

  Value store(Surroundings &around) const {
    Value memory = around.stack(type, 1);
    for (auto [index, value] : llvm::enumerate(values)) {
      Value stored = isAddress(value) ? around.address(value) : convert(around.b, value, type.getBody()[index]);
      LLVM::StoreOp::create(around.b, stored, field(around.b, memory, index));
    }
    return memory;
  }

  void load(OpBuilder &b, Location loc, Value memory, IRMapping &map) const {
    ImplicitLocOpBuilder at(loc, b);
    for (auto [index, value] : llvm::enumerate(values)) {
      Value loaded = LLVM::LoadOp::create(at, type.getBody()[index], field(at, memory, index));
      if (isAddress(value))
        loaded = MemRefDescriptor::fromStaticShape(at, loc, types, cast<MemRefType>(value.getType()), loaded);
      map.map(value, convert(at, loaded, value.getType()));
    }
  }

private:
  /// Whether the type of a buffer says all but where it begins.
  static bool isAddress(Value value) {
    auto type = dyn_cast<MemRefType>(value.getType());
    return type && type.hasStaticShape() && type.getLayout().isIdentity();
  }
  Value field(ImplicitLocOpBuilder &b, Value memory, int64_t index) const {
    return LLVM::GEPOp::create(b, memory.getType(), type, memory, ArrayRef<LLVM::GEPArg>{0, static_cast<int32_t>(index)});
  }
  static Value convert(ImplicitLocOpBuilder &b, Value value, Type type) {
    return value.getType() == type ? value : UnrealizedConversionCastOp::create(b, type, value).getResult(0);
  }

  ArrayRef<Value> values;
  const LLVMTypeConverter &types;
  LLVM::LLVMStructType type;
};

struct AlignedParallelizeForallPass : aligned::impl::AlignedParallelizeForallBase<AlignedParallelizeForallPass> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    SmallVector<scf::ForallOp> loops; // inner ones first
    module.walk([&](scf::ForallOp loop) { loops.push_back(loop); });
    if (loops.empty())
      return;
    declareRuntime(module);
    SymbolTable symbols(module);
    LLVMTypeConverter types(&getContext());
    SmallVector<func::FuncOp> known;
    for (scf::ForallOp loop : loops)
      if (failed(outline(loop, symbols, types, known)))
        return signalPassFailure();
  }

  static LogicalResult outline(scf::ForallOp loop, SymbolTable &symbols, const LLVMTypeConverter &types, SmallVector<func::FuncOp> &known) {
    if (!loop.getOutputs().empty())
      return loop.emitOpError("expected a parallel loop on buffers, got one with shared outputs: it is bufferized first");
    auto caller = loop->getParentOfType<func::FuncOp>();
    if (!caller)
      return loop.emitOpError("expected a parallel loop in a function");
    OpBuilder at(loop);
    Surroundings around(at, loop.getLoc());
    ImplicitLocOpBuilder &b = around.b;

    // Iterations by number: how many there are in each dimension, and in all.
    SmallVector<Value> lower = loop.getLowerBound(b), upper = loop.getUpperBound(b), step = loop.getStep(b), counts;
    Value count = arith::ConstantIndexOp::create(b, 1);
    for (auto [from, to, by] : llvm::zip(lower, upper, step)) {
      Value distance = b.createOrFold<arith::MaxSIOp>(b.createOrFold<arith::SubIOp>(to, from), arith::ConstantIndexOp::create(b, 0));
      counts.push_back(b.createOrFold<arith::CeilDivUIOp>(distance, by));
      count = b.createOrFold<arith::MulIOp>(count, counts.back());
    }

    SmallVector<arith::ConstantOp> numbers;
    loop.walk([&](arith::ConstantOp constant) {
      if (isNumber(constant))
        numbers.push_back(constant);
    });
    for (arith::ConstantOp constant : numbers)
      constant->moveBefore(loop);
    SetVector<Value> captured;
    getUsedValuesDefinedAbove(loop.getRegion(), captured);
    for (ArrayRef<Value> bounds : {ArrayRef(lower), ArrayRef(step), ArrayRef(counts).drop_front()})
      captured.insert_range(bounds);
    SmallVector<Value> passed, constants;
    for (Value value : captured)
      (isConstant(value) && !isNumber(value.getDefiningOp()) ? constants : passed).push_back(value);
    for (Value value : passed)
      if (!types.convertType(value.getType())) {
        InFlightDiagnostic error = loop.emitOpError("expected values from outside that LLVM can pass, got ") << value.getType();
        error.attachNote(value.getLoc()) << "the value is defined here";
        return error;
      }
    Package package(passed, types);
    Value arguments = package.store(around);

    // func @caller_parallel(%arguments, %begin, %end)
    OpBuilder atEnd = OpBuilder::atBlockEnd(caller->getParentOfType<ModuleOp>().getBody());
    auto body = func::FuncOp::create(atEnd, loop.getLoc(), (caller.getSymName() + "_parallel").str(),
                                     b.getFunctionType({around.pointer(), b.getI64Type(), b.getI64Type()}, {}));
    body.setPrivate();
    symbols.insert(body); // makes the name its own
    emitBody(loop, body, package, constants, lower, step, counts);
    auto isSame = [&](func::FuncOp other) {
      return OperationEquivalence::isRegionEquivalentTo(&other.getBody(), &body.getBody(), OperationEquivalence::IgnoreLocations);
    };
    if (auto same = llvm::find_if(known, isSame); same != known.end()) {
      symbols.erase(body);
      body = *same;
    } else {
      known.push_back(body);
    }

    Value function = func::ConstantOp::create(b, body.getFunctionType(), SymbolRefAttr::get(body));
    around.call("aligned_rt_parallel", {}, {around.asI64(count), function, arguments});
    loop.erase();
    return success();
  }

  /// An i32 that is only handed to functions, or to inner loops, as an attention's number is.
  static bool isNumber(Operation *op) {
    return isa<arith::ConstantOp>(op) && op->getResult(0).getType().isInteger(32) && llvm::all_of(op->getUsers(), llvm::IsaPred<func::CallOp, LLVM::StoreOp>);
  }

  static bool isConstant(Value value) {
    Operation *op = value.getDefiningOp();
    return op && (op->hasTrait<OpTrait::ConstantLike>() || isa<memref::GetGlobalOp>(op));
  }

  static void emitBody(scf::ForallOp loop, func::FuncOp body, const Package &package, ArrayRef<Value> constants, ArrayRef<Value> lower, ArrayRef<Value> step,
                       ArrayRef<Value> counts) {
    auto b = ImplicitLocOpBuilder::atBlockBegin(loop.getLoc(), body.addEntryBlock());
    IRMapping map;
    for (Value constant : constants)
      b.clone(*constant.getDefiningOp(), map);
    package.load(b, loop.getLoc(), body.getArgument(0), map);
    auto index = [&](Value number) { return arith::IndexCastOp::create(b, b.getIndexType(), number); };
    Value begin = index(body.getArgument(1)), end = index(body.getArgument(2)), one = arith::ConstantIndexOp::create(b, 1);
    auto range = scf::ForOp::create(b, begin, end, one);
    func::ReturnOp::create(b);

    // The last dimension is the one that changes with each iteration.
    b.setInsertionPointToStart(range.getBody());
    Value number = range.getInductionVar();
    for (int64_t dim = lower.size() - 1; dim >= 0; --dim) {
      Value place = number;
      if (dim) {
        Value size = map.lookup(counts[dim]);
        place = arith::RemUIOp::create(b, number, size);
        number = arith::DivUIOp::create(b, number, size);
      }
      Value offset = b.createOrFold<arith::MulIOp>(place, map.lookup(step[dim]));
      map.map(loop.getInductionVar(dim), b.createOrFold<arith::AddIOp>(offset, map.lookup(lower[dim])));
    }
    for (Operation &op : loop.getBody()->without_terminator()) {
      Operation *copy = b.clone(op, map);
      if (isa<LLVM::AllocaOp>(copy) && llvm::all_of(copy->getOperands(), isConstant)) // once for each call, not for each iteration
        hoist(copy, range);
    }
  }

  /// With the constants that it is made of.
  static void hoist(Operation *op, Operation *before) {
    for (Value operand : op->getOperands())
      if (isConstant(operand) && operand.getParentBlock() != before->getBlock())
        hoist(operand.getDefiningOp(), before);
    op->moveBefore(before);
  }
};

} // namespace
