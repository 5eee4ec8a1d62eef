// What kernels on a GPU say beyond arithmetic: who a thread is, what it shares with its warp and its block, and the tensor cores.
//
// Kernels are written as one thread sees them, with scalars and, for loads, short vectors. Offsets are in bytes or elements as i32 from a base that
// is as wide as an address.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_GPUEMITTER_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_GPUEMITTER_H

#include "aligned/Conversion/Common/Emitter.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/LLVMTypes.h"

namespace aligned {

/// Memory that the threads of a block share.
struct Shared {
  Val base; ///< !llvm.ptr<3>
  mlir::Type element;
};

/// A number that changes as the kernel runs, for state machines that loops over values would hide. LLVM keeps it in a register.
class Variable {
public:
  Variable() = default;
  Variable(Val pointer, mlir::Type type) : pointer(pointer), type(type) {}
  Val operator()() const;
  void set(Val value) const;

private:
  Val pointer;
  mlir::Type type;
};

class GpuEmitter : public Emitter {
public:
  GpuEmitter(mlir::OpBuilder &builder, mlir::Location loc) : Emitter(builder, loc) { machine = Machine::GPU; }

  static constexpr int64_t kWarp = 32;
  mlir::Type globalPointer() { return mlir::LLVM::LLVMPointerType::get(b.getContext(), 1); }

  Val number(int64_t n) { return constant(i32(), static_cast<double>(n)); }
  Val real(double x) { return constant(f32(), x); }
  Val flag(bool value) { return constant(types.getI1Type(), value); }
  Val unused(mlir::Type type); ///< what nobody will look at, so that no instruction makes it
  Variable variable(Val initial);
  Variable variable(mlir::Type type); ///< what it holds is whatever
  /// Repeats `body`, whose state lies in variables, while `condition` holds.
  void loopWhile(llvm::function_ref<Val()> condition, llvm::function_ref<void()> body);

  // Who this thread is; i32.
  Val thread();
  Val lane();
  Val warp(); ///< of the block, known to be the same in all lanes
  Val block(mlir::gpu::Dimension axis);
  Val blocks(mlir::gpu::Dimension axis);

  // Global memory, at `offset` elements of `type` (a vector counts as its elements) from a pointer.
  Val at(Val pointer, mlir::Type element, Val offset);
  /// `constant`: nobody writes there while the kernel runs, nor in the launches that it is chained to, which may end meanwhile. Vectors are aligned to their size.
  Val loadGlobal(Val pointer, mlir::Type type, Val offset, bool constant = true);
  void storeGlobal(Val value, Val pointer, Val offset);
  Val vectorOf(llvm::ArrayRef<Val> scalars);

  // Shared memory, in elements.
  Shared shared(mlir::gpu::GPUModuleOp module, llvm::StringRef name, mlir::Type element, int64_t count);
  Val load(Shared array, Val offset, int64_t lanes = 0);
  /// Loads where it is said to, and again each time: what never changes would take registers all along.
  Val loadHere(Shared array, Val offset, int64_t lanes = 0);
  void store(Val value, Shared array, Val offset);
  using Emitter::load;
  using Emitter::store;

  void barrier();     ///< of the block; orders memory
  void barrier(Val which, int64_t threads); ///< of some of its warps
  void warpBarrier(); ///< of the warp; orders memory

  Val shuffleXor(Val value, int64_t distance);
  Val shuffleFrom(Val value, Val lane);
  Val ballot(Val condition);
  Val any(Val condition); ///< whether it holds in any lane
  Val countBits(Val bits);
  /// Runs `body` for each lane whose bit is set in a ballot, from the lowest on.
  Vals forEachLane(Val lanes, Vals initial, llvm::function_ref<Vals(Val lane, Vals state)> body);
  /// Over the lanes that differ in the bits of `distances` only.
  Val warpAdd(Val value, llvm::ArrayRef<int64_t> distances);
  Val warpMax(Val value, llvm::ArrayRef<int64_t> distances);
  Val warpMaxAll(Val value); ///< of i32 that are not negative, over all lanes: one instruction

  /// Bytes of two words in the order of four selectors (0 .. 3 of low, 4 .. 7 of high), the first lowest.
  Val permuteBytes(Val low, Val high, std::array<int, 4> selectors);
  Val permuteBytes(Val low, Val high, Val selectors); ///< four bits each, from the lowest
  /// The bits of `set` where a bit of the mask is, else those of `clear`: one instruction, which LLVM and ptxas make two of.
  Val selectBits(int64_t mask, Val set, Val clear);
  /// c + a b for unsigned bytes a [16 rows][32] and signed bytes b [32][8 columns], spread over the warp: lane 4 g + t holds a[g], a[g + 8] at 4 t .. 4 t + 3,
  /// then both at 16 + 4 t ..; b at the same places of column g; and c[g], c[g + 8] of columns 2 t, 2 t + 1.
  Vals multiply(llvm::ArrayRef<Val> a, llvm::ArrayRef<Val> b, llvm::ArrayRef<Val> c);
  /// The same of `element`, f16 or bf16, two to a register, with f32 sums: a [16 rows][16], b [16][8 columns]; lane 4 g + t holds a[g], a[g + 8] at 2 t, 2 t + 1, then both
  /// at 8 + 2 t ..; the rest alike.
  Vals multiply(mlir::Type element, llvm::ArrayRef<Val> a, llvm::ArrayRef<Val> b, llvm::ArrayRef<Val> c);
  /// Two f32 as a register of two `element`, f16 or bf16, rounded to the nearest.
  Val pack(mlir::Type element, Val low, Val high);

  void atomicAdd(Val value, Shared array, Val offset);
  Val atomicAdd(Val value, Val pointer, Val offset); ///< what was there
  void atomicMax(Val value, Val pointer, Val offset);

  /// The upper half of the 64-bit product, and an addend: one instruction.
  Val multiplyHigh(Val a, Val b, Val c);
  /// As multiply, with unsigned bytes b.
  Vals multiplyUnsigned(llvm::ArrayRef<Val> a, llvm::ArrayRef<Val> b, llvm::ArrayRef<Val> c);

  // Two f16 in a register, vector<2xf16>.
  Val halves(Val word);
  Val word(Val halves);
  Val bothHalves(double number) { return constant(mlir::VectorType::get(2, types.getF16Type()), number); }
  Val saturatingFma(Val a, Val b, Val c); ///< of two f16, to [0, 1]

  /// 2^23 + byte `at` of a word, as f32.
  Val byteAsFloat(Val word, int at);
  Val reciprocal(Val x);  ///< 1 ulp, flushes denormals
  Val squareRoot(Val x);  ///< approximate
  /// Orders what this thread wrote before what it writes next, for all of the device.
  void fence();

  /// The nearest integer of a float up to 2^22 in magnitude, as i32 and as f32.
  std::pair<Val, Val> nearest(Val x);
  Val exp2(Val x); ///< 2 ulp, flushes denormals
  Val log2(Val x); ///< an absolute error of 2^-22, flushes denormals
  /// The larger of two floats, the other where one is NaN: one instruction.
  Val largest(Val a, Val b);
  Val smallest(Val a, Val b);
  /// f32, as the host does it: rounded by itself, never part of a fused product and sum.
  Val addUnfused(Val a, Val b);
  Val multiplyUnfused(Val a, Val b);
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_GPUEMITTER_H
