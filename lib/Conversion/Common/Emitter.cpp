// See the header for the idea.
#include "aligned/Conversion/Common/Emitter.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/Interfaces/FunctionInterfaces.h"

#include <map>
#include <numeric>

using namespace mlir;
using namespace aligned;

/// Products may be contracted into sums, and sums in reductions reordered; NaN and infinity keep their meaning.
static constexpr auto kContract = arith::FastMathFlags::contract;
static constexpr auto kReorder = arith::FastMathFlags::contract | arith::FastMathFlags::reassoc;

int64_t Val::lanes() const {
  auto vector = dyn_cast<VectorType>(type());
  return vector ? vector.getNumElements() : 0;
}

static Type withElement(Type shape, Type element) {
  auto vector = dyn_cast<VectorType>(shape);
  return vector ? vector.clone(element) : element;
}

//===----------------------------------------------------------------------===//
// Constants
//===----------------------------------------------------------------------===//

Type Emitter::pointer() { return LLVM::LLVMPointerType::get(b.getContext()); }

Val Emitter::constant(Type type, double number) {
  Type element = getElementTypeOrSelf(type);
  TypedAttr attr;
  if (auto real = dyn_cast<FloatType>(element)) {
    APFloat value(number);
    bool inexact;
    value.convert(real.getFloatSemantics(), APFloat::rmNearestTiesToEven, &inexact);
    attr = FloatAttr::get(real, value);
  } else {
    attr = element.isInteger(1) ? static_cast<TypedAttr>(BoolAttr::get(element.getContext(), number != 0)) : IntegerAttr::get(element, static_cast<int64_t>(number));
  }
  if (auto vector = dyn_cast<VectorType>(type))
    attr = DenseElementsAttr::get(vector, static_cast<Attribute>(attr));
  if (!home)
    return wrap(arith::ConstantOp::create(b, attr));
  Value &known = constants[attr];
  if (!known) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(home);
    known = arith::ConstantOp::create(b, attr);
  }
  return wrap(known);
}

Val Emitter::splat(Val scalar, int64_t lanes) {
  return wrap(vector::BroadcastOp::create(b, VectorType::get(lanes, scalar.type()), scalar.value));
}

Val Emitter::iota(Type integer, int64_t lanes) {
  auto type = VectorType::get(lanes, integer);
  SmallVector<Attribute> numbers;
  for (int64_t lane = 0; lane < lanes; ++lane)
    numbers.push_back(IntegerAttr::get(integer, lane));
  return wrap(arith::ConstantOp::create(b, DenseElementsAttr::get(type, numbers)));
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

Val Emitter::advance(Val pointer, Val bytes) {
  return wrap(LLVM::GEPOp::create(b, pointer.type(), i8(), pointer.value, ValueRange{convert(bytes, i64()).value}));
}

Val Emitter::field(Val pointer, int64_t byteOffset, Type type) {
  bool isIndex = type.isIndex();
  Value address = LLVM::GEPOp::create(b, pointer.type(), i8(), pointer.value, ArrayRef<LLVM::GEPArg>{static_cast<int32_t>(byteOffset)});
  Val loaded = wrap(LLVM::LoadOp::create(b, isIndex ? i64() : type, address));
  return isIndex ? convert(loaded, type) : loaded;
}

Buffer Emitter::buffer(Val pointer, Type element) {
  // A memref descriptor by hand: the runtime's structures hold bare pointers.
  auto type = MemRefType::get({ShapedType::kDynamic}, element);
  auto extent = LLVM::LLVMArrayType::get(i64(), 1);
  auto descriptor = LLVM::LLVMStructType::getLiteral(b.getContext(), {pointer.type(), pointer.type(), i64(), extent, extent});
  Value value = LLVM::PoisonOp::create(b, descriptor);
  auto insert = [&](Value what, ArrayRef<int64_t> position) { value = LLVM::InsertValueOp::create(b, value, what, position); };
  auto number = [&](int64_t n) -> Value { return LLVM::ConstantOp::create(b, i64(), b.getI64IntegerAttr(n)); };
  insert(pointer.value, {0});
  insert(pointer.value, {1});
  insert(number(0), {2});
  insert(number(INT64_MAX), {3, 0});
  insert(number(1), {4, 0});
  return {UnrealizedConversionCastOp::create(b, type, value).getResult(0), element, pointer};
}

Buffer Emitter::local(Type element, int64_t count) {
  OpBuilder::InsertionGuard guard(b); // once per function, however often this place is passed
  Operation *at = b.getInsertionBlock()->getParentOp();
  if (!isa<FunctionOpInterface>(at))
    at = at->getParentOfType<FunctionOpInterface>();
  b.setInsertionPointToStart(&at->getRegion(0).front());
  Value size = LLVM::ConstantOp::create(b, i64(), b.getI64IntegerAttr(count * ((element.isIndex() ? 64 : element.getIntOrFloatBitWidth()) / 8) + 64));
  return buffer(wrap(LLVM::AllocaOp::create(b, pointer(), i8(), size, /*alignment=*/64)), element);
}

Val Emitter::load(Buffer buffer, Val index) { return wrap(memref::LoadOp::create(b, buffer.memref, index.value)); }

Val Emitter::load(Buffer buffer, Val index, int64_t lanes) {
  return wrap(vector::LoadOp::create(b, VectorType::get(lanes, buffer.element), buffer.memref, index.value));
}

void Emitter::store(Val value, Buffer buffer, Val index) {
  if (value.lanes())
    vector::StoreOp::create(b, value.value, buffer.memref, index.value);
  else
    memref::StoreOp::create(b, value.value, buffer.memref, index.value);
}

Val Emitter::insert(Val vector, Val scalar, int64_t number) {
  return wrap(vector::InsertOp::create(b, scalar.value, vector.value, ArrayRef<int64_t>{number}));
}

void Emitter::prefetch(Buffer buffer, Val index) {
  memref::PrefetchOp::create(b, buffer.memref, ValueRange{index.value}, /*isWrite=*/false, /*localityHint=*/3, /*isDataCache=*/true);
}

Buffer Emitter::table(StringRef name, ArrayRef<float> numbers) {
  auto type = MemRefType::get({static_cast<int64_t>(numbers.size())}, f32());
  auto module = b.getInsertionBlock()->getParentOp()->getParentOfType<ModuleOp>();
  if (!module.lookupSymbol(name)) {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(module.getBody());
    auto value = DenseElementsAttr::get(RankedTensorType::get(type.getShape(), f32()), numbers);
    memref::GlobalOp::create(b, name, b.getStringAttr("private"), type, value, /*constant=*/true, b.getI64IntegerAttr(64));
  }
  return {memref::GetGlobalOp::create(b, type, name), f32(), {}};
}

Val Emitter::gather(Buffer buffer, Val at, Val indices) {
  auto type = VectorType::get(indices.lanes(), buffer.element);
  Val all = constant(VectorType::get(indices.lanes(), types.getI1Type()), 1), none = constant(type, 0);
  return wrap(vector::GatherOp::create(b, type, buffer.memref, ValueRange{at.value}, indices.value, all.value, none.value));
}

//===----------------------------------------------------------------------===//
// Statements
//===----------------------------------------------------------------------===//

static SmallVector<Value> raw(ArrayRef<Val> vals) {
  SmallVector<Value> values;
  for (const Val &val : vals)
    values.push_back(val.value);
  return values;
}

static Vals wrapAll(Emitter &e, ValueRange values) {
  Vals vals;
  for (Value value : values)
    vals.push_back(e.wrap(value));
  return vals;
}

Vals Emitter::loop(Val lower, Val upper, int64_t step, Vals initial, function_ref<Vals(Val, Vals)> body) {
  auto op = scf::ForOp::create(b, lower.value, upper.value, constant(lower.type(), static_cast<double>(step)).value, raw(initial));
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(op.getBody());
  Vals next = body(wrap(op.getInductionVar()), wrapAll(*this, op.getRegionIterArgs()));
  if (!initial.empty())
    scf::YieldOp::create(b, raw(next));
  return wrapAll(*this, op.getResults());
}

void Emitter::loop(Val lower, Val upper, int64_t step, function_ref<void(Val)> body) {
  loop(lower, upper, step, {}, [&](Val i, Vals) -> Vals {
    body(i);
    return {};
  });
}

void Emitter::when(Val condition, function_ref<void()> body) {
  auto op = scf::IfOp::create(b, condition.value, /*withElseRegion=*/false);
  OpBuilder::InsertionGuard guard(b);
  b.setInsertionPointToStart(op.thenBlock());
  body();
}

Vals Emitter::choose(Val condition, function_ref<Vals()> yes, function_ref<Vals()> no) {
  auto op = scf::IfOp::create(
      b, condition.value, [&](OpBuilder &, Location) { scf::YieldOp::create(b, raw(yes())); },
      [&](OpBuilder &, Location) { scf::YieldOp::create(b, raw(no())); });
  return wrapAll(*this, op.getResults());
}

Vals Emitter::repeat(Vals initial, function_ref<Val(Vals)> condition, function_ref<Vals(Vals)> body) {
  SmallVector<Value> values = raw(initial);
  SmallVector<Type> resultTypes(ValueRange(values).getTypes());
  SmallVector<Location> locs(values.size(), b.getLoc());
  auto op = scf::WhileOp::create(b, resultTypes, values);
  OpBuilder::InsertionGuard guard(b);
  Block *before = b.createBlock(&op.getBefore(), {}, resultTypes, locs);
  Vals state = wrapAll(*this, before->getArguments());
  scf::ConditionOp::create(b, condition(state).value, before->getArguments());
  Block *after = b.createBlock(&op.getAfter(), {}, resultTypes, locs);
  scf::YieldOp::create(b, raw(body(wrapAll(*this, after->getArguments()))));
  return wrapAll(*this, op.getResults());
}

Val Emitter::intrinsic(StringRef name, Type result, Vals operands) {
  return wrap(LLVM::CallIntrinsicOp::create(b, result, b.getStringAttr(name), raw(operands)).getResult(0));
}

//===----------------------------------------------------------------------===//
// Arithmetic
//===----------------------------------------------------------------------===//

template <typename FloatOp, typename IntOp>
static Val binary(Val a, Val b) {
  if (a.isFloat())
    return a.e->wrap(FloatOp::create(a.e->b, a.value, b.value, kContract));
  return a.e->wrap(IntOp::create(a.e->b, a.value, b.value));
}
template <typename Op>
static Val integer(Val a, Val b) { return a.e->wrap(Op::create(a.e->b, a.value, b.value)); }

Val aligned::operator+(Val a, Val b) { return binary<arith::AddFOp, arith::AddIOp>(a, b); }
Val aligned::operator-(Val a, Val b) { return binary<arith::SubFOp, arith::SubIOp>(a, b); }
Val aligned::operator*(Val a, Val b) { return binary<arith::MulFOp, arith::MulIOp>(a, b); }
Val aligned::operator/(Val a, Val b) { return binary<arith::DivFOp, arith::DivSIOp>(a, b); }
Val aligned::operator%(Val a, Val b) { return integer<arith::RemSIOp>(a, b); }
Val aligned::operator&(Val a, Val b) { return integer<arith::AndIOp>(a, b); }
Val aligned::operator|(Val a, Val b) { return integer<arith::OrIOp>(a, b); }
Val aligned::operator^(Val a, Val b) { return integer<arith::XOrIOp>(a, b); }
Val aligned::operator<<(Val a, Val b) { return integer<arith::ShLIOp>(a, b); }
Val aligned::operator>>(Val a, Val b) { return integer<arith::ShRSIOp>(a, b); }
Val aligned::shrLogical(Val a, Val b) { return integer<arith::ShRUIOp>(a, b); }
Val aligned::max(Val a, Val b) { return binary<arith::MaximumFOp, arith::MaxSIOp>(a, b); }
Val aligned::min(Val a, Val b) { return binary<arith::MinimumFOp, arith::MinSIOp>(a, b); }
Val aligned::larger(Val a, Val b) { return select(a > b, a, b); }
Val aligned::operator-(Val a) {
  return a.isFloat() ? a.e->wrap(arith::NegFOp::create(a.e->b, a.value)) : a.e->constant(a.type(), 0) - a;
}

/// Ordered comparisons: false if either side is NaN.
static Val compare(Val a, Val b, arith::CmpFPredicate real, arith::CmpIPredicate whole) {
  if (a.isFloat())
    return a.e->wrap(arith::CmpFOp::create(a.e->b, real, a.value, b.value));
  return a.e->wrap(arith::CmpIOp::create(a.e->b, whole, a.value, b.value));
}
Val aligned::operator<(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OLT, arith::CmpIPredicate::slt); }
Val aligned::operator>(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OGT, arith::CmpIPredicate::sgt); }
Val aligned::operator<=(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OLE, arith::CmpIPredicate::sle); }
Val aligned::operator>=(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OGE, arith::CmpIPredicate::sge); }
Val aligned::operator==(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::OEQ, arith::CmpIPredicate::eq); }
Val aligned::operator!=(Val a, Val b) { return compare(a, b, arith::CmpFPredicate::UNE, arith::CmpIPredicate::ne); }

Val aligned::select(Val condition, Val yes, Val no) {
  return yes.e->wrap(arith::SelectOp::create(yes.e->b, condition.value, yes.value, no.value));
}

/// An op of `math`, which becomes a call of a library that a GPU module lacks, or there the intrinsic behind it.
template <typename Op> static Val function(StringRef intrinsic, Vals operands) {
  Emitter &e = *operands.front().e;
  if (e.machine == Machine::GPU)
    return e.intrinsic(intrinsic, operands.front().type(), operands);
  return e.wrap(Op::create(e.b, operands.front().type(), raw(operands)));
}
Val aligned::abs(Val a) { return function<math::AbsFOp>("llvm.fabs", {a}); }
Val aligned::sqrt(Val a) { return function<math::SqrtOp>("llvm.nvvm.sqrt.rn.f", {a}); }
Val aligned::roundEven(Val a) { return function<math::RoundEvenOp>("llvm.rint", {a}); }
Val aligned::fma(Val a, Val b, Val c) {
  if (a.lanes() && a.e->machine == Machine::CPU) // math.fma would be expanded to two operations
    return a.e->wrap(vector::FMAOp::create(a.e->b, a.value, b.value, c.value));
  return function<math::FmaOp>("llvm.fma", {a, b, c});
}

Val aligned::exp(Val a) {
  // e^a = 2^k e^r with k = rint(a / ln 2). Adding 1.5 * 2^23 leaves k in the low bits of the sum, so that no float is ever
  // converted to an integer (undefined for NaN) and NaN travels through the polynomial.
  constexpr double kLog2e = 1.4426950408889634, kLn2Hi = 0.693145751953125, kLn2Lo = 1.42860677e-6, kRound = 12582912.0;
  Type i32 = a.e->i32();
  Val clamped = max(a, -104.0);
  Val shifted = fma(clamped, a.e->constant(a.type(), kLog2e), a.e->constant(a.type(), kRound));
  Val k = shifted - kRound;
  Val r = fma(k, a.e->constant(a.type(), -kLn2Lo), fma(k, a.e->constant(a.type(), -kLn2Hi), clamped));
  Val sum = a.e->constant(a.type(), 1.0 / 720);
  for (double coefficient : {1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
    sum = fma(sum, r, a.e->constant(a.type(), coefficient));
  Val power = bitcast(((bitcast(shifted, i32) << 23) + 0x3f800000), a.element());
  Val tiny = a < -87.3; // below the smallest normal power of two; e^-87.3 adds nothing to a softmax
  return select(tiny, a.e->constant(a.type(), 0.0), sum * power);
}

Val aligned::log2(Val a) {
  // a = 2^e m with m in [sqrt(1/2), sqrt(2)), and log2 m = 2 / ln 2 artanh((m - 1) / (m + 1)).
  Emitter &e = *a.e;
  constexpr int64_t kRootHalf = 0x3f3504f3; // the float sqrt(1/2)
  Val bits = bitcast(a, e.i32()), exponent = (bits - kRootHalf) >> 23, m = bitcast(bits - (exponent << 23), a.element());
  Val s = (m - 1) / (m + 1), square = s * s, sum = e.constant(a.type(), 2 / (7 * 0.6931471805599453));
  for (int64_t power : {5, 3, 1})
    sum = fma(sum, square, e.constant(a.type(), 2 / (power * 0.6931471805599453)));
  return fma(sum, s, convert(exponent, a.element()));
}

Val aligned::exp2Polynomial(Val f, int64_t degree) {
  // One that errs by the same relative amount at its extremes.
  static const std::map<int64_t, std::vector<double>> polynomials = {
      {3, {0.0551716466, 0.242611171, 0.693260992, 0.999928071}},
      {4, {0.00957010236, 0.0559178693, 0.240247449, 0.693121814, 0.999999261}},
      {5, {0.0013276474, 0.00967554236, 0.0555071328, 0.240221197, 0.693146967, 1.00000007}}};
  const std::vector<double> &coefficients = polynomials.at(degree);
  Val sum = f.e->constant(f.type(), coefficients.front());
  for (double coefficient : llvm::drop_begin(coefficients))
    sum = fma(sum, f, f.e->constant(f.type(), coefficient));
  return sum;
}

Val aligned::exp2(Val a, int64_t degree) {
  // 2^a = 2^k 2^f with k = rint(a), f in [-1/2, 1/2].
  constexpr double kRound = 12582912.0; // 1.5 * 2^23: leaves k in the low bits of the sum
  Emitter &e = *a.e;
  Val clamped = select(a < -126.0, e.constant(a.type(), -126.0), a); // keeps NaN
  Val shifted = clamped + kRound, f = clamped - (shifted - kRound);
  Val power = bitcast(bitcast(exp2Polynomial(f, degree), e.i32()) + (bitcast(shifted, e.i32()) << 23), a.element());
  return select(a < -126.0, e.constant(a.type(), 0), power);
}

//===----------------------------------------------------------------------===//
// Conversions
//===----------------------------------------------------------------------===//

static unsigned widthOf(Type type) { return type.isIndex() ? 64 : type.getIntOrFloatBitWidth(); }

Val aligned::convert(Val a, Type element) {
  Type from = a.element(), to = withElement(a.type(), element);
  if (from == element)
    return a;
  OpBuilder &b = a.e->b;
  Location loc = a.e->b.getLoc();
  auto make = [&](auto op) { return a.e->wrap(op); };
  if (from.isIndex() || element.isIndex())
    return make(arith::IndexCastOp::create(b, loc, to, a.value));
  bool fromFloat = isa<FloatType>(from), toFloat = isa<FloatType>(element);
  if (fromFloat && toFloat)
    return widthOf(element) > widthOf(from) ? make(arith::ExtFOp::create(b, loc, to, a.value)) : make(arith::TruncFOp::create(b, loc, to, a.value));
  if (fromFloat)
    return make(arith::FPToSIOp::create(b, loc, to, a.value));
  if (toFloat)
    return make(arith::SIToFPOp::create(b, loc, to, a.value));
  return widthOf(element) > widthOf(from) ? make(arith::ExtSIOp::create(b, loc, to, a.value)) : make(arith::TruncIOp::create(b, loc, to, a.value));
}

Val aligned::zext(Val a, Type element) {
  Type to = withElement(a.type(), element);
  if (element.isIndex())
    return a.e->wrap(arith::IndexCastUIOp::create(a.e->b, to, a.value));
  return a.e->wrap(arith::ExtUIOp::create(a.e->b, to, a.value));
}

Val aligned::bitcast(Val a, Type element) {
  if (!a.lanes())
    return a.e->wrap(arith::BitcastOp::create(a.e->b, element, a.value));
  auto to = VectorType::get(a.lanes() * widthOf(a.element()) / widthOf(element), element);
  return a.e->wrap(vector::BitCastOp::create(a.e->b, to, a.value));
}

Val aligned::maskBits(Val a) {
  Val bits = bitcast(a, a.e->types.getIntegerType(a.lanes()));
  return a.lanes() == 64 ? lane(bits, 0) : zext(lane(bits, 0), a.e->i64());
}

Val aligned::maskOf(Val bits, int64_t lanes) {
  Emitter &e = *bits.e;
  return bitcast(e.splat(convert(bits, e.types.getIntegerType(lanes)), 1), e.types.getI1Type());
}

Val aligned::invert(Val mask) { return mask ^ mask.e->constant(mask.type(), 1); }

//===----------------------------------------------------------------------===//
// Lanes
//===----------------------------------------------------------------------===//

Val aligned::reduceAdd(Val a) {
  if (a.isFloat())
    return a.e->wrap(vector::ReductionOp::create(a.e->b, vector::CombiningKind::ADD, a.value, kReorder));
  return a.e->wrap(vector::ReductionOp::create(a.e->b, vector::CombiningKind::ADD, a.value));
}

Val aligned::reduceMax(Val a) {
  auto kind = a.isFloat() ? vector::CombiningKind::MAXIMUMF : vector::CombiningKind::MAXSI;
  return a.e->wrap(vector::ReductionOp::create(a.e->b, kind, a.value));
}

Val aligned::permute(Val a, Val b, ArrayRef<int64_t> lanes) {
  return a.e->wrap(vector::ShuffleOp::create(a.e->b, a.value, b.value, lanes));
}

Val aligned::slice(Val a, int64_t first, int64_t lanes) {
  if (first == 0 && lanes == a.lanes())
    return a;
  SmallVector<int64_t> numbers(lanes);
  std::iota(numbers.begin(), numbers.end(), first);
  return permute(a, a, numbers);
}

Val aligned::lane(Val a, int64_t number) { return a.e->wrap(vector::ExtractOp::create(a.e->b, a.value, ArrayRef<int64_t>{number})); }

/// Rows first, first + stride, ... folded into one vector in which runs of `stride` lanes belong to one row each.
static Vals foldRows(int64_t lanes, int64_t first, int64_t stride, function_ref<Vals(int64_t)> rows) {
  if (stride == lanes)
    return rows(first);
  Vals a = foldRows(lanes, first, 2 * stride, rows), b = foldRows(lanes, first + stride, 2 * stride, rows);
  SmallVector<int64_t> low, high; // each run of 2 * stride lanes halves, a's before b's
  for (int64_t run = 0; run < lanes; run += 2 * stride)
    for (int64_t source : {int64_t(0), lanes})
      for (int64_t lane = 0; lane < stride; ++lane) {
        low.push_back(source + run + lane);
        high.push_back(source + run + stride + lane);
      }
  Vals folded;
  for (auto [left, right] : llvm::zip(a, b))
    folded.push_back(permute(left, right, low) + permute(left, right, high));
  return folded;
}

Vals aligned::transposeAdd(int64_t lanes, function_ref<Vals(int64_t)> rows) { return foldRows(lanes, 0, 1, rows); }
