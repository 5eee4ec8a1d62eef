// Random graphs of floats, and an interpreter that runs them as real numbers or as their types round them.
#ifndef ALIGNED_TEST_UNITTESTS_ANALYSIS_GRAPHS_H
#define ALIGNED_TEST_UNITTESTS_ANALYSIS_GRAPHS_H

#include "aligned/Analysis/Precision.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"

#include "llvm/ADT/TypeSwitch.h"

#include <cmath>
#include <functional>
#include <map>
#include <random>

namespace aligned::graphs {

using namespace mlir;

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  double uniform(double low, double high) { return std::uniform_real_distribution(low, high)(engine); }
  int below(int count) { return std::uniform_int_distribution(0, count - 1)(engine); }
  template <typename T>
  const T &of(const std::vector<T> &all) { return all[below(all.size())]; }
};

//===----------------------------------------------------------------------===//
// Graphs
//===----------------------------------------------------------------------===//

/// `top` takes scalars, vectors, tensors and conditions, and returns some floats; it may call `inner`.
class Builder {
public:
  Builder(MLIRContext *context, Random &random) : random(random), b(UnknownLoc::get(context), context) {}

  OwningOpRef<ModuleOp> build() {
    OwningOpRef<ModuleOp> module = ModuleOp::create(b.getLoc());
    b.setInsertionPointToEnd(module->getBody());
    if (random.below(3) == 0) {
      inner = function("inner", {b.getF32Type(), b.getF32Type()}, 4, /*results=*/1);
      inner.setPrivate();
    }
    b.setInsertionPointToEnd(module->getBody());
    std::vector<Type> types;
    for (int count = 2 + random.below(4); count > 0; --count)
      types.push_back(random.of(allTypes()));
    types.push_back(b.getI1Type());
    function("top", types, 3 + random.below(10), 1 + random.below(2));
    return module;
  }

private:
  std::vector<Type> allTypes() {
    std::vector<Type> types;
    for (Type element : {Type(b.getF16Type()), Type(b.getF32Type()), Type(b.getF64Type())})
      types.insert(types.end(), {element, VectorType::get({4}, element), RankedTensorType::get({2, 3}, element)});
    return types;
  }

  func::FuncOp function(StringRef name, ArrayRef<Type> types, int size, int results) {
    func::FuncOp op = func::FuncOp::create(b, name, b.getFunctionType(types, {}));
    OpBuilder::InsertionGuard guard(b);
    Block *body = op.addEntryBlock();
    b.setInsertionPointToEnd(body);
    values.clear();
    for (BlockArgument argument : body->getArguments()) {
      if (!FloatFormat::of(argument.getType())) {
        condition = argument;
        continue;
      }
      if (name == "top") {
        double center = random.below(2) ? 0 : random.uniform(-4, 4), width = std::ldexp(1.0, random.below(6) - 3);
        op.setArgAttr(argument.getArgNumber(), kRangeName, RangeAttr::get(b.getContext(), center - width, center + width, 0));
      }
      values.push_back(argument);
    }
    if (name == "inner")
      condition = arith::ConstantOp::create(b, b.getBoolAttr(true));
    for (int i = 0; i < size; ++i)
      grow(0);
    if (inner)
      values.push_back(arith::AddFOp::create(b, callInner(), callInner()));
    SmallVector<Value> returned;
    for (int i = 0; i < results; ++i)
      returned.push_back(name == "inner" ? as(values.back(), b.getF32Type()) : i ? random.of(values) : values.back());
    func::ReturnOp::create(b, returned);
    op.setFunctionType(b.getFunctionType(types, ValueRange(returned).getTypes()));
    for (int i = 0; i < results; ++i)
      if (name == "top" && random.below(2))
        op.setResultAttr(i, kToleranceName, b.getF64FloatAttr(std::exp2(-random.below(12))));
    return op;
  }

  /// A value of this type, from another one.
  Value as(Value value, Type type) {
    if (value.getType() == type)
      return value;
    auto element = cast<FloatType>(getElementTypeOrSelf(type));
    if (isa<RankedTensorType>(value.getType())) {
      Value zero = arith::ConstantOp::create(b, b.getIndexAttr(0));
      value = tensor::ExtractOp::create(b, value, ValueRange{zero, zero});
    } else if (auto vector = dyn_cast<VectorType>(value.getType()); vector && isa<VectorType>(type)) {
      return convert(value, type);
    } else if (vector) {
      value = vector::ReductionOp::create(b, vector::CombiningKind::ADD, value);
    }
    value = convert(value, element);
    if (isa<VectorType>(type))
      return vector::BroadcastOp::create(b, type, value);
    return isa<RankedTensorType>(type) ? Value(tensor::SplatOp::create(b, value, cast<RankedTensorType>(type))) : value;
  }

  Value convert(Value value, Type type) {
    unsigned from = getElementTypeOrSelf(value.getType()).getIntOrFloatBitWidth(), to = getElementTypeOrSelf(type).getIntOrFloatBitWidth();
    return from == to ? value : from < to ? Value(arith::ExtFOp::create(b, type, value)) : Value(arith::TruncFOp::create(b, type, value));
  }

  void grow(int depth) {
    Value a = random.of(values), c = as(random.of(values), a.getType()), result;
    bool isTensor = isa<RankedTensorType>(a.getType());
    switch (random.below(isTensor ? 8 : depth ? 17 : 20)) {
    case 0: case 8: result = arith::AddFOp::create(b, a, c); break;
    case 1: result = arith::SubFOp::create(b, a, c); break;
    case 2: case 9: result = arith::MulFOp::create(b, a, c); break;
    case 3: result = arith::MaximumFOp::create(b, a, c); break;
    case 4: result = arith::SelectOp::create(b, condition, a, c); break;
    case 5: result = isTensor ? reduce(a, c) : Value(math::TanhOp::create(b, a)); break;
    case 6: result = isTensor ? matmul(a, c) : Value(arith::NegFOp::create(b, a)); break;
    case 7: result = math::AbsFOp::create(b, a); break;
    case 10: result = math::FmaOp::create(b, a, c, as(random.of(values), a.getType())); break;
    case 11: result = arith::DivFOp::create(b, a, arith::AddFOp::create(b, math::AbsFOp::create(b, c), one(a.getType()))); break;
    case 12: result = math::SqrtOp::create(b, math::AbsFOp::create(b, a)); break;
    case 13: result = math::ExpOp::create(b, math::TanhOp::create(b, a)); break;
    case 14: result = arith::MinNumFOp::create(b, a, c); break;
    case 15: result = as(a, random.of(allTypes())); break;
    case 16: result = math::LogOp::create(b, arith::AddFOp::create(b, math::AbsFOp::create(b, a), one(a.getType()))); break;
    case 17: case 18: result = loop(a, depth); break;
    case 19: result = inner ? callInner() : a; break;
    }
    values.push_back(result);
  }

  Value callInner() {
    Value a = as(random.of(values), b.getF32Type()), c = as(random.of(values), b.getF32Type());
    return func::CallOp::create(b, inner, ValueRange{a, c}).getResult(0);
  }

  Value one(Type type) {
    Attribute value = b.getFloatAttr(getElementTypeOrSelf(type), 1);
    if (auto shaped = dyn_cast<ShapedType>(type))
      value = DenseElementsAttr::get(shaped, value);
    return arith::ConstantOp::create(b, cast<TypedAttr>(value));
  }

  Value loop(Value start, int depth) {
    auto index = [&](int64_t value) -> Value { return arith::ConstantOp::create(b, b.getIndexAttr(value)); };
    auto op = scf::ForOp::create(b, index(0), index(random.below(4)), index(1), ValueRange{start});
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(op.getBody());
    std::vector<Value> outside = values;
    values.push_back(op.getRegionIterArg(0));
    for (int count = random.below(3); count >= 0; --count)
      grow(depth + 1);
    Value next = as(values.back(), start.getType());
    if (random.below(2)) // what a sum is, mostly
      next = arith::AddFOp::create(b, op.getRegionIterArg(0), next);
    else if (random.below(2))
      next = math::TanhOp::create(b, next);
    scf::YieldOp::create(b, next);
    values = outside;
    return op.getResult(0);
  }

  /// Sums along rows, spread over them again by the body.
  Value reduce(Value a, Value c) {
    auto type = cast<RankedTensorType>(a.getType());
    AffineExpr i = b.getAffineDimExpr(0), j = b.getAffineDimExpr(1);
    auto map = [&](ArrayRef<AffineExpr> exprs) { return AffineMap::get(2, 0, exprs, b.getContext()); };
    Value start = tensor::SplatOp::create(b, as(c, type.getElementType()), RankedTensorType::get({2}, type.getElementType()));
    using utils::IteratorType;
    bool largest = random.below(3) == 0;
    Value sums = linalg::GenericOp::create(b, TypeRange{start.getType()}, ValueRange{a, c}, ValueRange{start}, ArrayRef<AffineMap>{map({i, j}), map({i, j}), map({i})},
                                           ArrayRef<IteratorType>{IteratorType::parallel, IteratorType::reduction},
                                           [&](OpBuilder &, Location, ValueRange in) {
                                             Value product = arith::MulFOp::create(b, in[0], in[1]);
                                             linalg::YieldOp::create(b, largest ? Value(arith::MaximumFOp::create(b, in[2], product))
                                                                                : Value(arith::AddFOp::create(b, product, in[2])));
                                           }).getResult(0);
    return linalg::GenericOp::create(b, TypeRange{type}, ValueRange{sums, a}, ValueRange{c}, ArrayRef<AffineMap>{map({i}), map({i, j}), map({i, j})},
                                     SmallVector<IteratorType>(2, IteratorType::parallel),
                                     [&](OpBuilder &, Location, ValueRange in) {
                                       linalg::YieldOp::create(b, Value(arith::SubFOp::create(b, arith::AddFOp::create(b, in[0], in[1]), in[2])));
                                     }).getResult(0);
  }

  Value matmul(Value a, Value c) {
    auto type = cast<RankedTensorType>(a.getType());
    Value right = tensor::ExtractSliceOp::create(b, c, SmallVector<OpFoldResult>(2, b.getIndexAttr(0)), {b.getIndexAttr(2), b.getIndexAttr(2)},
                                                 SmallVector<OpFoldResult>(2, b.getIndexAttr(1)));
    return linalg::MatmulOp::create(b, TypeRange{type}, ValueRange{right, a}, ValueRange{c}).getResult(0);
  }

  Random &random;
  ImplicitLocOpBuilder b;
  std::vector<Value> values;
  Value condition;
  func::FuncOp inner;
};

//===----------------------------------------------------------------------===//
// Running them
//===----------------------------------------------------------------------===//

using Elements = std::vector<double>;

class Interpreter {
public:
  bool rounded = false; ///< to each op's type
  /// Sees, and may change, each instance of each float.
  std::function<void(Value, Elements &)> watch = [](Value, Elements &) {};

  Elements run(func::FuncOp function, const std::vector<Elements> &arguments, unsigned result) { return call(function, arguments)[result]; }
  std::vector<Elements> call(func::FuncOp function, const std::vector<Elements> &arguments) { return block(function.getBody().front(), arguments); }

private:
  static int64_t count(Type type) { return isa<ShapedType>(type) ? cast<ShapedType>(type).getNumElements() : 1; }

  double round(double x, Type type) const {
    Type element = getElementTypeOrSelf(type);
    if (!rounded)
      return x;
    return element.isF16() ? static_cast<double>(static_cast<_Float16>(x)) : element.isF32() ? static_cast<double>(static_cast<float>(x)) : x;
  }

  void set(Value value, Elements elements) {
    if (FloatFormat::of(value.getType()))
      watch(value, elements);
    state[value.getAsOpaquePointer()] = std::move(elements);
  }
  const Elements &get(Value value) { return state.at(value.getAsOpaquePointer()); }

  std::vector<Elements> block(Block &block, const std::vector<Elements> &arguments) {
    for (auto [argument, elements] : llvm::zip_equal(block.getArguments(), arguments))
      set(argument, elements);
    for (Operation &op : block.without_terminator())
      run(op);
    std::vector<Elements> results;
    for (Value operand : block.getTerminator()->getOperands())
      results.push_back(get(operand));
    return results;
  }

  void run(Operation &op) {
    std::vector<Elements> in;
    for (Value operand : op.getOperands())
      in.push_back(get(operand));
    if (auto loop = dyn_cast<scf::ForOp>(op)) {
      std::vector<Elements> carried{in[3]};
      for (double i = in[0][0]; i < in[1][0]; i += in[2][0])
        carried = block(*loop.getBody(), {{i}, carried[0]});
      return set(op.getResult(0), carried[0]);
    }
    if (auto called = dyn_cast<func::CallOp>(op))
      return set(op.getResult(0), call(cast<func::FuncOp>(SymbolTable::lookupNearestSymbolFrom(&op, called.getCalleeAttr())), in)[0]);
    if (auto linalgOp = dyn_cast<linalg::LinalgOp>(op))
      return set(op.getResult(0), points(linalgOp, in));
    Type type = op.getResult(0).getType();
    Elements out(count(type));
    for (size_t i = 0; i < out.size(); ++i)
      out[i] = round(element(op, in, i), type);
    set(op.getResult(0), out);
  }

  double element(Operation &op, const std::vector<Elements> &in, size_t i) {
    auto at = [&](int operand) { return in[operand].size() == 1 ? in[operand][0] : in[operand][i]; };
    return llvm::TypeSwitch<Operation *, double>(&op)
        .Case([&](arith::ConstantOp constant) {
          if (auto value = dyn_cast<FloatAttr>(constant.getValue()))
            return value.getValueAsDouble();
          if (auto value = dyn_cast<DenseFPElementsAttr>(constant.getValue())) {
            llvm::APFloat splat = value.getSplatValue<APFloat>();
            bool lost;
            splat.convert(llvm::APFloat::IEEEdouble(), llvm::APFloat::rmNearestTiesToEven, &lost);
            return splat.convertToDouble();
          }
          return static_cast<double>(cast<IntegerAttr>(constant.getValue()).getValue().getZExtValue());
        })
        .Case([&](arith::AddFOp) { return at(0) + at(1); })
        .Case([&](arith::SubFOp) { return at(0) - at(1); })
        .Case([&](arith::MulFOp) { return at(0) * at(1); })
        .Case([&](arith::DivFOp) { return at(0) / at(1); })
        .Case([&](arith::NegFOp) { return -at(0); })
        .Case([&](arith::MaximumFOp) { return std::isnan(at(0)) || std::isnan(at(1)) ? NAN : std::max(at(0), at(1)); })
        .Case([&](arith::MinNumFOp) { return std::fmin(at(0), at(1)); })
        .Case([&](arith::SelectOp) { return in[0][0] != 0 ? at(1) : at(2); })
        .Case<arith::ExtFOp, arith::TruncFOp, vector::BroadcastOp, tensor::SplatOp>([&](auto) { return at(0); })
        .Case([&](math::FmaOp) { return std::fma(at(0), at(1), at(2)); })
        .Case([&](math::TanhOp) { return std::tanh(at(0)); })
        .Case([&](math::ExpOp) { return std::exp(at(0)); })
        .Case([&](math::LogOp) { return std::log(at(0)); })
        .Case([&](math::SqrtOp) { return std::sqrt(at(0)); })
        .Case([&](math::AbsFOp) { return std::fabs(at(0)); })
        .Case([&](vector::ReductionOp) {
          double sum = in[0][0];
          for (size_t k = 1; k < in[0].size(); ++k)
            sum = round(sum + in[0][k], op.getResult(0).getType());
          return sum;
        })
        .Case([&](tensor::ExtractOp) { return in[0][0]; })
        .Case([&](tensor::ExtractSliceOp) { return in[0][i / 2 * 3 + i % 2]; }) // [2, 2] of [2, 3]
        .Default([](Operation *) -> double { llvm::report_fatal_error("an op that the interpreter does not know"); });
  }

  /// A linalg op, point by point.
  Elements points(linalg::LinalgOp op, std::vector<Elements> in) {
    SmallVector<int64_t> extents = op.getStaticLoopRanges(), point(extents.size(), 0);
    Elements &out = in.back();
    auto place = [&](OpOperand &operand) {
      int64_t at = 0;
      SmallVector<int64_t> indices = op.getMatchingIndexingMap(&operand).compose(point);
      for (auto [index, extent] : llvm::zip_equal(indices, cast<ShapedType>(operand.get().getType()).getShape()))
        at = at * extent + index;
      return at;
    };
    for (;;) {
      std::vector<Elements> arguments;
      for (auto [operand, elements] : llvm::zip_equal(op->getOpOperands(), in))
        arguments.push_back({elements[place(operand)]});
      double result = block(*op.getBlock(), arguments)[0][0];
      out[place(op->getOpOperands().back())] = result;
      size_t dim = extents.size();
      while (dim-- > 0 && ++point[dim] == extents[dim])
        point[dim] = 0;
      if (dim == static_cast<size_t>(-1))
        return out;
    }
  }

  std::map<const void *, Elements> state;
};

} // namespace aligned::graphs

#endif // ALIGNED_TEST_UNITTESTS_ANALYSIS_GRAPHS_H
