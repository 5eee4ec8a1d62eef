// See the header for the idea.
#include "GpuEmitter.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// Who this thread is
//===----------------------------------------------------------------------===//

Val GpuEmitter::thread() { return convert(wrap(gpu::ThreadIdOp::create(b, gpu::Dimension::x)), i32()); }
Val GpuEmitter::lane() { return thread() & (kWarp - 1); }
Val GpuEmitter::warp() { return shuffleFrom(shrLogical(thread(), number(5)), number(0)); }
Val GpuEmitter::block(gpu::Dimension axis) { return convert(wrap(gpu::BlockIdOp::create(b, axis)), i32()); }
Val GpuEmitter::blocks(gpu::Dimension axis) { return convert(wrap(gpu::GridDimOp::create(b, axis)), i32()); }

Val GpuEmitter::unused(Type type) { return wrap(LLVM::PoisonOp::create(b, type)); }

Val Variable::operator()() const { return pointer.e->wrap(LLVM::LoadOp::create(pointer.e->b, type, pointer.value)); }
void Variable::set(Val value) const { LLVM::StoreOp::create(pointer.e->b, value.value, pointer.value); }

Variable GpuEmitter::variable(Type type) {
  OpBuilder::InsertionGuard guard(b);
  Val one = number(1);
  b.setInsertionPointAfterValue(one.value);
  return {wrap(LLVM::AllocaOp::create(b, LLVM::LLVMPointerType::get(b.getContext()), type, one.value)), type};
}

Variable GpuEmitter::variable(Val initial) {
  Variable made = variable(initial.type());
  made.set(initial);
  return made;
}

void GpuEmitter::loopWhile(function_ref<Val()> condition, function_ref<void()> body) {
  repeat({}, [&](Vals) { return condition(); }, [&](Vals) -> Vals {
    body();
    return {};
  });
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

static int64_t bytesOf(Type type) {
  auto vector = dyn_cast<VectorType>(type);
  return getElementTypeOrSelf(type).getIntOrFloatBitWidth() / 8 * (vector ? vector.getNumElements() : 1);
}

Val GpuEmitter::at(Val pointer, Type element, Val offset) {
  return wrap(LLVM::GEPOp::create(b, pointer.type(), element, pointer.value, ValueRange{offset.value}));
}

Val GpuEmitter::loadGlobal(Val pointer, Type type, Val offset, bool constant) {
  Val address = at(pointer, getElementTypeOrSelf(type), offset);
  return wrap(LLVM::LoadOp::create(b, type, address.value, bytesOf(type), /*isVolatile=*/false, /*isNonTemporal=*/false, /*isInvariant=*/constant));
}

void GpuEmitter::storeGlobal(Val value, Val pointer, Val offset) {
  LLVM::StoreOp::create(b, value.value, at(pointer, value.element(), offset).value, bytesOf(value.type()));
}

Val GpuEmitter::vectorOf(ArrayRef<Val> scalars) {
  SmallVector<Value> values;
  for (Val scalar : scalars)
    values.push_back(scalar.value);
  return wrap(vector::FromElementsOp::create(b, VectorType::get(values.size(), scalars.front().type()), values));
}

Shared GpuEmitter::shared(gpu::GPUModuleOp module, StringRef name, Type element, int64_t count) {
  LLVM::GlobalOp global;
  {
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(module.getBody());
    // Whole vectors of 16 bytes: LLVM loads what is behind the last elements along with them.
    auto type = LLVM::LLVMArrayType::get(element, llvm::alignTo(count, std::max<int64_t>(16 / bytesOf(element), 1)));
    global = LLVM::GlobalOp::create(b, type, /*isConstant=*/false, LLVM::Linkage::Internal, name, Attribute(), /*alignment=*/16, /*addrSpace=*/3);
  }
  return {wrap(LLVM::AddressOfOp::create(b, LLVM::LLVMPointerType::get(b.getContext(), 3), global.getSymName())), element};
}

Val GpuEmitter::load(Shared array, Val offset, int64_t lanes) {
  Type type = lanes ? Type(VectorType::get(lanes, array.element)) : array.element;
  return wrap(LLVM::LoadOp::create(b, type, at(array.base, array.element, offset).value, bytesOf(type)));
}

Val GpuEmitter::loadHere(Shared array, Val offset, int64_t lanes) {
  Type type = lanes ? Type(VectorType::get(lanes, array.element)) : array.element;
  return wrap(LLVM::LoadOp::create(b, type, at(array.base, array.element, offset).value, bytesOf(type), /*isVolatile=*/true));
}

void GpuEmitter::store(Val value, Shared array, Val offset) {
  LLVM::StoreOp::create(b, value.value, at(array.base, array.element, offset).value, bytesOf(value.type()));
}

//===----------------------------------------------------------------------===//
// Together
//===----------------------------------------------------------------------===//

void GpuEmitter::barrier() { gpu::BarrierOp::create(b); }

void GpuEmitter::barrier(Val which, int64_t threads) { NVVM::BarrierOp::create(b, /*res=*/Type(), which.value, number(threads).value, /*reductionOp=*/{}, /*reductionPredicate=*/Value()); }

void GpuEmitter::warpBarrier() { NVVM::SyncWarpOp::create(b, number(-1).value); }

static Val shuffle(Val value, Val which, gpu::ShuffleMode mode) {
  GpuEmitter &e = static_cast<GpuEmitter &>(*value.e);
  return e.wrap(gpu::ShuffleOp::create(e.b, value.value, which.value, e.number(GpuEmitter::kWarp).value, mode).getResult(0));
}

Val GpuEmitter::shuffleXor(Val value, int64_t distance) { return shuffle(value, number(distance), gpu::ShuffleMode::XOR); }
Val GpuEmitter::shuffleFrom(Val value, Val lane) { return shuffle(value, lane, gpu::ShuffleMode::IDX); }
Val GpuEmitter::ballot(Val condition) { return intrinsic("llvm.nvvm.vote.ballot.sync", i32(), {number(-1), condition}); }
Val GpuEmitter::any(Val condition) { return intrinsic("llvm.nvvm.vote.any.sync", types.getI1Type(), {number(-1), condition}); }
Val GpuEmitter::countBits(Val bits) { return intrinsic("llvm.ctpop.i32", i32(), {bits}); }

Vals GpuEmitter::forEachLane(Val lanes, Vals initial, function_ref<Vals(Val, Vals)> body) {
  Vals state{lanes};
  state.append(initial);
  Vals done = repeat(state, [](Vals s) { return s[0] != 0; }, [&](Vals s) {
    Val others = s[0] & (s[0] - 1);
    Vals next{others};
    next.append(body(countBits((s[0] ^ others) - 1), Vals(llvm::drop_begin(s))));
    return next;
  });
  return Vals(llvm::drop_begin(done));
}

Val GpuEmitter::warpAdd(Val value, ArrayRef<int64_t> distances) {
  for (int64_t distance : distances)
    value = value + shuffleXor(value, distance);
  return value;
}

Val GpuEmitter::warpMax(Val value, ArrayRef<int64_t> distances) {
  for (int64_t distance : distances)
    value = value.isFloat() ? largest(value, shuffleXor(value, distance)) : max(value, shuffleXor(value, distance));
  return value;
}

Val GpuEmitter::warpMaxAll(Val value) { return intrinsic("llvm.nvvm.redux.sync.umax", i32(), {value, number(-1)}); }

//===----------------------------------------------------------------------===//
// Numbers
//===----------------------------------------------------------------------===//

Val GpuEmitter::permuteBytes(Val low, Val high, std::array<int, 4> selectors) {
  int64_t selector = selectors[0] | selectors[1] << 4 | selectors[2] << 8 | selectors[3] << 12;
  return permuteBytes(low, high, number(selector));
}

Val GpuEmitter::permuteBytes(Val low, Val high, Val selectors) { return intrinsic("llvm.nvvm.prmt", i32(), {low, high, selectors}); }

/// A product of the tensor cores, whose result is four registers of `result`.
static Vals multiplyTiles(GpuEmitter &e, StringRef intrinsic, Type result, ArrayRef<Val> a, ArrayRef<Val> b, ArrayRef<Val> c) {
  Vals operands(a.begin(), a.end());
  operands.append(b.begin(), b.end());
  operands.append(c.begin(), c.end());
  Val product = e.intrinsic(intrinsic, LLVM::LLVMStructType::getLiteral(e.b.getContext(), SmallVector<Type>(4, result)), operands);
  Vals results;
  for (int64_t i = 0; i < 4; ++i)
    results.push_back(e.wrap(LLVM::ExtractValueOp::create(e.b, product.value, i)));
  return results;
}

static Val assembly(GpuEmitter &e, StringRef text, StringRef constraints, Type result, ArrayRef<Value> operands) {
  return e.wrap(LLVM::InlineAsmOp::create(e.b, result, operands, text, constraints, /*has_side_effects=*/false, /*is_align_stack=*/false, LLVM::tailcallkind::TailCallKind::None,
                                          LLVM::AsmDialectAttr(), ArrayAttr())
                    .getResult(0));
}

Val GpuEmitter::selectBits(int64_t mask, Val set, Val clear) {
  return assembly(*this, "lop3.b32 $0, $1, $2, $3, 0xca;", "=r,r,r,r", i32(), {number(static_cast<int32_t>(mask)).value, set.value, clear.value});
}

Vals GpuEmitter::multiply(ArrayRef<Val> a, ArrayRef<Val> b, ArrayRef<Val> c) { return multiplyTiles(*this, "llvm.nvvm.mma.m16n8k32.row.col.u8.s8", i32(), a, b, c); }

Vals GpuEmitter::multiply(Type element, ArrayRef<Val> a, ArrayRef<Val> b, ArrayRef<Val> c) {
  if (element.isBF16())
    return multiplyTiles(*this, "llvm.nvvm.mma.m16n8k16.row.col.bf16", f32(), a, b, c);
  auto halves = [&](ArrayRef<Val> words) {
    Vals pairs;
    for (Val word : words)
      pairs.push_back(wrap(LLVM::BitcastOp::create(this->b, VectorType::get(2, element), word.value)));
    return pairs;
  };
  return multiplyTiles(*this, "llvm.nvvm.mma.m16n8k16.row.col.f32.f32", f32(), halves(a), halves(b), c);
}

Val GpuEmitter::pack(Type element, Val low, Val high) {
  Val pair = intrinsic(element.isBF16() ? "llvm.nvvm.ff2bf16x2.rn" : "llvm.nvvm.ff2f16x2.rn", VectorType::get(2, element), {high, low});
  return wrap(LLVM::BitcastOp::create(b, i32(), pair.value));
}

Vals GpuEmitter::multiplyUnsigned(ArrayRef<Val> a, ArrayRef<Val> b, ArrayRef<Val> c) { return multiplyTiles(*this, "llvm.nvvm.mma.m16n8k32.row.col.u8", i32(), a, b, c); }

Val GpuEmitter::multiplyHigh(Val a, Val b, Val c) { return assembly(*this, "mad.hi.s32 $0, $1, $2, $3;", "=r,r,r,r", i32(), {a.value, b.value, c.value}); }

Val GpuEmitter::halves(Val word) { return wrap(LLVM::BitcastOp::create(b, VectorType::get(2, types.getF16Type()), word.value)); }
Val GpuEmitter::word(Val halves) { return wrap(LLVM::BitcastOp::create(b, i32(), halves.value)); }
Val GpuEmitter::saturatingFma(Val x, Val y, Val z) { return intrinsic("llvm.nvvm.fma.rn.sat.f16x2", x.type(), {x, y, z}); }

Val GpuEmitter::byteAsFloat(Val word, int at) { return bitcast(permuteBytes(word, number(0x4b000000), {at, 4, 4, 7}), f32()); }
Val GpuEmitter::reciprocal(Val x) { return intrinsic("llvm.nvvm.rcp.approx.ftz.f", f32(), {x}); }
Val GpuEmitter::squareRoot(Val x) { return intrinsic("llvm.nvvm.sqrt.approx.ftz.f", f32(), {x}); }
void GpuEmitter::fence() { LLVM::CallIntrinsicOp::create(b, b.getStringAttr("llvm.nvvm.membar.gl"), ValueRange()); }

void GpuEmitter::atomicAdd(Val value, Shared array, Val offset) {
  LLVM::AtomicRMWOp::create(b, LLVM::AtomicBinOp::add, at(array.base, array.element, offset).value, value.value, LLVM::AtomicOrdering::monotonic);
}

Val GpuEmitter::atomicAdd(Val value, Val pointer, Val offset) {
  return wrap(LLVM::AtomicRMWOp::create(b, LLVM::AtomicBinOp::add, at(pointer, value.type(), offset).value, value.value, LLVM::AtomicOrdering::monotonic));
}

void GpuEmitter::atomicMax(Val value, Val pointer, Val offset) {
  LLVM::AtomicRMWOp::create(b, LLVM::AtomicBinOp::max, at(pointer, value.type(), offset).value, value.value, LLVM::AtomicOrdering::monotonic);
}

std::pair<Val, Val> GpuEmitter::nearest(Val x) {
  constexpr double kShift = 12582912.0; // 1.5 * 2^23: around it floats are the integers, and their patterns follow one another as those do
  constexpr int64_t kPattern = 0x4b400000;
  Val shifted = x + kShift;
  return {bitcast(shifted, i32()) - kPattern, shifted - kShift};
}

Val GpuEmitter::exp2(Val x) { return intrinsic("llvm.nvvm.ex2.approx.ftz.f", f32(), {x}); }
Val GpuEmitter::log2(Val x) { return intrinsic("llvm.nvvm.lg2.approx.ftz.f", f32(), {x}); }

Val GpuEmitter::largest(Val a, Val b) { return intrinsic("llvm.maxnum", a.type(), {a, b}); }
Val GpuEmitter::smallest(Val a, Val b) { return intrinsic("llvm.minnum", a.type(), {a, b}); }
Val GpuEmitter::addUnfused(Val a, Val b) { return intrinsic("llvm.nvvm.add.rn.f", f32(), {a, b}); }
Val GpuEmitter::multiplyUnfused(Val a, Val b) { return intrinsic("llvm.nvvm.mul.rn.f", f32(), {a, b}); }
