// Writing kernels as arithmetic: a value that knows its builder, and the few statements kernels are made of.
//
//   Val p = exp(e.load(scores, t, 64) - max);            // vectors and scalars alike, constants take the other side's type
//   e.loop(zero, tokens, 64, {sum}, [&](Val t, Vals s) -> Vals { return {s[0] + reduceAdd(p)}; });
//
// Everything is arith, math, vector, scf and memref; only addresses of runtime structures and target intrinsics are llvm ops.
#ifndef ALIGNED_CONVERSION_COMMON_EMITTER_H
#define ALIGNED_CONVERSION_COMMON_EMITTER_H

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"

namespace aligned {

class Emitter;

/// An SSA value with arithmetic. Operands of one operation have one type; a C++ number becomes a constant (a splat for vectors) of it.
/// Integers are signless: `/`, `%`, `<`, `max` and `>>` come in the signed kind, `shrLogical` and `zext` are the unsigned ones.
struct Val {
  mlir::Value value;
  Emitter *e = nullptr;

  mlir::Type type() const { return value.getType(); }
  mlir::Type element() const { return mlir::getElementTypeOrSelf(type()); }
  /// 0 for scalars.
  int64_t lanes() const;
  bool isFloat() const { return mlir::isa<mlir::FloatType>(element()); }
};

using Vals = llvm::SmallVector<Val, 4>;

/// A flat buffer: elements of one type from an address on.
struct Buffer {
  mlir::Value memref; // memref<?xelement>
  mlir::Type element;
  Val pointer;
};

/// Whose code it is: what is one instruction or a library's function on a CPU may be a call to nowhere on a GPU.
enum class Machine { CPU, GPU };

class Emitter {
public:
  Emitter(mlir::OpBuilder &builder, mlir::Location loc) : b(loc, builder), types(builder) {}
  Machine machine = Machine::CPU;
  /// Where constants go, each once. Kernels that are unrolled by hand are full of them: without it they stand where they are used, and passes spend their time on merging them.
  mlir::Block *home = nullptr;
  mlir::ImplicitLocOpBuilder b;
  mlir::Builder types;

  Val wrap(mlir::Value value) { return {value, this}; }

  // Types and constants.
  mlir::Type f32() { return types.getF32Type(); }
  mlir::Type i32() { return types.getI32Type(); }
  mlir::Type i64() { return types.getI64Type(); }
  mlir::Type i8() { return types.getI8Type(); }
  mlir::Type i16() { return types.getIntegerType(16); }
  mlir::Type pointer();
  Val constant(mlir::Type type, double number);
  Val index(int64_t number) { return constant(types.getIndexType(), static_cast<double>(number)); }
  Val splat(Val scalar, int64_t lanes);
  /// 0, 1, 2, ...
  Val iota(mlir::Type integer, int64_t lanes);

  // Memory.
  Val field(Val pointer, int64_t byteOffset, mlir::Type type);        ///< a field of a C struct
  Val advance(Val pointer, Val bytes);                                ///< pointer + bytes
  Buffer buffer(Val pointer, mlir::Type element);                     ///< the memory from `pointer` on
  /// Memory of the function on its stack, aligned to cache lines, with room for one vector past its end.
  Buffer local(mlir::Type element, int64_t count);
  Val load(Buffer buffer, Val index);
  Val load(Buffer buffer, Val index, int64_t lanes);
  void store(Val value, Buffer buffer, Val index);

  // Statements.
  Vals loop(Val lower, Val upper, int64_t step, Vals initial, llvm::function_ref<Vals(Val, Vals)> body);
  void loop(Val lower, Val upper, int64_t step, llvm::function_ref<void(Val)> body);
  void when(Val condition, llvm::function_ref<void()> body);
  Vals choose(Val condition, llvm::function_ref<Vals()> yes, llvm::function_ref<Vals()> no);
  /// Repeats `body` while `condition` of the state holds.
  Vals repeat(Vals initial, llvm::function_ref<Val(Vals)> condition, llvm::function_ref<Vals(Vals)> body);
  /// `vector` with its lane `number` replaced.
  Val insert(Val vector, Val scalar, int64_t number);
  /// Asks for the cache line at buffer[index].
  void prefetch(Buffer buffer, Val index);
  /// A table of the module, made where it is first asked for under this name.
  Buffer table(llvm::StringRef name, llvm::ArrayRef<float> numbers);
  /// buffer[at + indices], lane by lane.
  Val gather(Buffer buffer, Val at, Val indices);
  /// Calls an LLVM intrinsic.
  Val intrinsic(llvm::StringRef name, mlir::Type result, Vals operands);

private:
  llvm::DenseMap<mlir::Attribute, mlir::Value> constants; // in `home`
};

Val operator+(Val a, Val b);
Val operator-(Val a, Val b);
Val operator*(Val a, Val b);
Val operator/(Val a, Val b);
Val operator%(Val a, Val b);
Val operator&(Val a, Val b);
Val operator|(Val a, Val b);
Val operator^(Val a, Val b);
Val operator<<(Val a, Val b);
Val operator>>(Val a, Val b);
Val operator<(Val a, Val b);
Val operator>(Val a, Val b);
Val operator<=(Val a, Val b);
Val operator>=(Val a, Val b);
Val operator==(Val a, Val b);
Val operator!=(Val a, Val b);
Val operator-(Val a);
Val shrLogical(Val a, Val b);
Val max(Val a, Val b); ///< of floats: NaN if either is
Val min(Val a, Val b);
/// The larger of two floats, b where either is NaN: one instruction, for where NaN shows elsewhere.
Val larger(Val a, Val b);

#define ALIGNED_WITH_NUMBER(op)                                                                                                   \
  inline Val operator op(Val a, double number) { return a op a.e->constant(a.type(), number); }
ALIGNED_WITH_NUMBER(+) ALIGNED_WITH_NUMBER(-) ALIGNED_WITH_NUMBER(*) ALIGNED_WITH_NUMBER(/) ALIGNED_WITH_NUMBER(%)
ALIGNED_WITH_NUMBER(&) ALIGNED_WITH_NUMBER(|) ALIGNED_WITH_NUMBER(<<) ALIGNED_WITH_NUMBER(>>) ALIGNED_WITH_NUMBER(<)
ALIGNED_WITH_NUMBER(>) ALIGNED_WITH_NUMBER(<=) ALIGNED_WITH_NUMBER(>=) ALIGNED_WITH_NUMBER(==) ALIGNED_WITH_NUMBER(!=)
#undef ALIGNED_WITH_NUMBER
inline Val max(Val a, double number) { return max(a, a.e->constant(a.type(), number)); }
inline Val min(Val a, double number) { return min(a, a.e->constant(a.type(), number)); }

Val select(Val condition, Val yes, Val no);
Val abs(Val a);
Val sqrt(Val a);
Val roundEven(Val a);
Val fma(Val a, Val b, Val c);

/// e^a in f32, relative error below 2e-7; 0 below -87.3; NaN for NaN. Vector code without calls.
Val exp(Val a);

/// log2 of positive normal floats, absolute error below 4e-7; of 0 some number below -126. Code without calls.
Val log2(Val a);
/// 2^a in f32 for a <= 127; 0 below -126. `degree` of the polynomial: 3 errs by 7.5e-5, 4 by 2.6e-6, 5 by 8e-8 and rounding. NaN for NaN.
Val exp2(Val a, int64_t degree);
/// Of its polynomial on [-1/2, 1/2].
Val exp2Polynomial(Val f, int64_t degree);

/// Conversions keep the lanes. Integer to wider integer and integer to float are signed unless zext; float to integer truncates.
Val convert(Val a, mlir::Type element);
Val zext(Val a, mlir::Type element);
Val bitcast(Val a, mlir::Type element); ///< lanes change with the element's width
/// An i1 vector as the low bits of an i64, lane 0 lowest, and back.
Val maskBits(Val a);
Val maskOf(Val bits, int64_t lanes);
/// The lanes (i1) that a mask leaves out.
Val invert(Val mask);

Val reduceAdd(Val a);
Val reduceMax(Val a);
/// One vector of both, in the order of `lanes`: lane i of a is i, of b is a.lanes() + i.
Val permute(Val a, Val b, llvm::ArrayRef<int64_t> lanes);
Val slice(Val a, int64_t first, int64_t lanes);
Val lane(Val a, int64_t number);
/// Many horizontal sums at once: `rows(i)` gives row i of several matrices of lanes x lanes, and lane i of each result is the sum of
/// that row. Rows are asked for in the order that keeps few of them alive. `lanes` is a power of two.
Vals transposeAdd(int64_t lanes, llvm::function_ref<Vals(int64_t)> rows);

} // namespace aligned

#endif // ALIGNED_CONVERSION_COMMON_EMITTER_H
