// Functions in torch's dialect over tensors: what surrounds `torch.aten.scaled_dot_product_attention` where nothing else is left of a step.
//
//   func.func @attn(%q: !torch.vtensor<[2,8,1,32],f16>, ...)      func.func @attn(%q: tensor<2x8x1x32xf16>, ...)
//     %c = torch.aten.cat [%cache, %new], 2                    ->   %c = tensor.concat dim(2) %cache, %new
//     %r = torch.aten.scaled_dot_product_attention ...              %r = aligned.attention ...
//
// A function is written anew beside the old one, op by op, and takes its place when all of it could be said. Where an op can't be, nothing has happened.
#include "NamedOps.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Utils/IndexingUtils.h"
#include "mlir/Dialect/Utils/StaticValueUtils.h"
#include "mlir/IR/IRMapping.h"
#include "mlir/IR/SymbolTable.h"
#include "llvm/ADT/StringSwitch.h"

using namespace mlir;
using namespace aligned;

namespace {

/// The text behind `!torch.`, empty for other types.
StringRef torchTextOf(Type type) {
  auto opaque = dyn_cast<OpaqueType>(type);
  return opaque && opaque.getDialectNamespace() == "torch" ? opaque.getTypeData() : StringRef();
}

/// tensor<2x?x32xf16> for !torch.vtensor<[2,?,32],f16>; null where the text says anything else.
RankedTensorType tensorOf(Type type) {
  StringRef text = torchTextOf(type);
  if (!text.consume_front("vtensor<[") || !text.consume_back(">"))
    return {};
  auto [dims, name] = text.split("],");
  SmallVector<int64_t> shape;
  while (!dims.empty()) {
    auto [dim, rest] = dims.split(',');
    int64_t size = ShapedType::kDynamic;
    if (dim != "?" && (dim.getAsInteger(10, size) || size < 0))
      return {};
    shape.push_back(size);
    dims = rest;
  }
  Builder b(type.getContext());
  Type element = llvm::StringSwitch<Type>(name)
                     .Case("f16", b.getF16Type())
                     .Case("bf16", b.getBF16Type())
                     .Case("f32", b.getF32Type())
                     .Case("f64", b.getF64Type())
                     .Case("i1", b.getI1Type())
                     .Cases({"si8", "ui8"}, b.getI8Type())
                     .Case("si16", b.getI16Type())
                     .Case("si32", b.getI32Type())
                     .Case("si64", b.getI64Type())
                     .Default(Type());
  return element ? RankedTensorType::get(shape, element) : RankedTensorType();
}

bool isTorchOp(Operation *op) {
  StringRef dialect = op->getName().getDialectNamespace();
  return dialect == "torch" || dialect == "torch_c";
}

bool isNone(Value value) { return torchTextOf(value.getType()) == "none"; }

/// The value of a torch.constant.
template <typename Attr>
Attr constantOf(Value value, StringRef kind) {
  Operation *op = value.getDefiningOp();
  return op && op->getName().getStringRef() == ("torch.constant." + kind).str() ? dyn_cast_or_null<Attr>(attributeOf(op, "value")) : Attr();
}
std::optional<int64_t> intOf(Value value) {
  auto attr = constantOf<IntegerAttr>(value, "int");
  return attr && attr.getValue().getSignificantBits() <= 64 ? std::optional(attr.getValue().getSExtValue()) : std::nullopt;
}
std::optional<bool> boolOf(Value value) {
  auto attr = constantOf<BoolAttr>(value, "bool");
  return attr ? std::optional(attr.getValue()) : std::nullopt;
}
std::optional<double> floatOf(Value value) {
  auto attr = constantOf<FloatAttr>(value, "float");
  return attr ? std::optional(attr.getValueAsDouble()) : std::nullopt;
}

/// What a torch.prim.ListConstruct lists.
std::optional<OperandRange> listOf(Value value) {
  Operation *op = value.getDefiningOp();
  if (!op || op->getName().getStringRef() != "torch.prim.ListConstruct")
    return std::nullopt;
  return op->getOperands();
}
std::optional<SmallVector<int64_t>> intsOf(Value value) {
  std::optional<OperandRange> list = listOf(value);
  if (!list)
    return std::nullopt;
  SmallVector<int64_t> numbers;
  for (Value item : *list) {
    std::optional<int64_t> number = intOf(item);
    if (!number)
      return std::nullopt;
    numbers.push_back(*number);
  }
  return numbers;
}

/// The new function, as far as it is written.
class Translation {
public:
  Translation(Draft &draft, IRMapping &values) : draft(draft), values(values), b(draft.b) {}

  /// False with a reason in the draft.
  bool translate(Operation *op);

private:
  Value attention(Operation *op);
  Value concat(Operation *op);
  Value sliceScatter(Operation *op);
  Value slice(Operation *op);
  Value transpose(Operation *op);
  Value permute(Operation *op);
  Value unsqueeze(Operation *op);
  Value view(Operation *op);

  /// The tensor that stands for an operand, which is one; else refuses.
  Value tensor(Operation *op, unsigned operand);
  bool hasOperands(Operation *op, unsigned count);
  /// A constant dimension of a tensor of this rank, counted from its end where it is negative; else refuses.
  std::optional<int64_t> dim(Value value, int64_t rank);
  /// Bounds of a slice of static extents with step 1: first and number of elements.
  std::optional<std::pair<int64_t, int64_t>> range(Value start, Value end, Value step, int64_t size);

  Draft &draft;
  IRMapping &values;
  ImplicitLocOpBuilder &b;
};

bool Translation::hasOperands(Operation *op, unsigned count) {
  if (op->getNumOperands() == count && op->getNumResults() == 1)
    return true;
  draft.refuse("expected '" + op->getName().getStringRef() + "' to have " + Twine(count) + " operands and one result, got " + Twine(op->getNumOperands()) +
               " and " + Twine(op->getNumResults()));
  return false;
}

Value Translation::tensor(Operation *op, unsigned operand) {
  Value value = values.lookupOrNull(op->getOperand(operand));
  if (value && isa<RankedTensorType>(value.getType()))
    return value;
  return draft.refuse("expected operand " + Twine(operand) + " of '" + op->getName().getStringRef() + "' to be a tensor of known rank, got " +
                      textOf(op->getOperand(operand).getType()));
}

std::optional<int64_t> Translation::dim(Value value, int64_t rank) {
  std::optional<int64_t> number = intOf(value);
  if (number && *number < 0)
    *number += rank;
  if (number && *number >= 0 && *number < rank)
    return number;
  draft.refuse("expected a constant dimension of a tensor of rank " + Twine(rank) + ", got another");
  return std::nullopt;
}

std::optional<std::pair<int64_t, int64_t>> Translation::range(Value start, Value end, Value step, int64_t size) {
  std::optional<int64_t> first = isNone(start) ? 0 : intOf(start), last = isNone(end) ? size : intOf(end), stride = intOf(step);
  if (!first || !last || !stride || *stride != 1 || ShapedType::isDynamic(size)) {
    draft.refuse("expected a slice of constant bounds and step 1 of a static dimension, got another");
    return std::nullopt;
  }
  auto within = [&](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size); };
  return std::pair(within(*first), std::max<int64_t>(0, within(*last) - within(*first)));
}

/// query, key, value, attn_mask, dropout_p, is_causal, scale and, of late, enable_gqa.
Value Translation::attention(Operation *op) {
  if ((op->getNumOperands() != 7 && op->getNumOperands() != 8) || op->getNumResults() != 1)
    return draft.refuse("expected 7 or 8 operands and one result, got " + Twine(op->getNumOperands()) + " and " + Twine(op->getNumResults()));
  NamedAttention found;
  found.query = tensor(op, 0), found.key = tensor(op, 1), found.value = tensor(op, 2);
  if (!found.query || !found.key || !found.value)
    return nullptr;
  int64_t rank = draft.typeOf(found.query).getRank();
  if (rank != 3 && rank != 4)
    return draft.refuse("expected a query of rank 3 or 4, got " + textOf(found.query.getType()));
  for (Value operand : {found.key, found.value})
    if (draft.typeOf(operand).getRank() != rank)
      return draft.refuse("expected key and value of the query's rank, got " + textOf(found.query.getType()) + " and " + textOf(operand.getType()));
  if (std::optional<double> dropout = floatOf(op->getOperand(4)); !dropout || *dropout != 0)
    return draft.refuse("expected a dropout of 0, got " + (dropout ? Twine(decimal(*dropout)) : Twine("one that is no constant")));
  std::optional<bool> causal = boolOf(op->getOperand(5)), grouped = op->getNumOperands() == 8 ? boolOf(op->getOperand(7)) : false;
  if (!causal || !grouped)
    return draft.refuse("expected a constant is_causal and enable_gqa, got one that is none");
  if (!isNone(op->getOperand(6))) {
    std::optional<double> scale = floatOf(op->getOperand(6));
    if (!scale)
      return draft.refuse("expected a scale that is none or constant, got another");
    found.scale = draft.number(*scale);
  }
  if (!isNone(op->getOperand(3))) {
    if (*causal)
      return draft.refuse("expected no attn_mask beside is_causal, got both");
    found.mask = tensor(op, 3);
    if (!found.mask)
      return nullptr;
    if (draft.typeOf(found.mask).getRank() > rank)
      return draft.refuse("expected an attn_mask that broadcasts to the scores of " + textOf(found.query.getType()) + ", got " + textOf(found.mask.getType()));
  }
  SmallVector<int64_t> counts = rank == 4 ? SmallVector<int64_t>{1, 1, 1, 1} : SmallVector<int64_t>{1, 0, 1, 1}; // rank 3 has a batch alone
  SmallVector<int64_t> shape(draft.typeOf(found.query).getShape());
  shape.back() = draft.typeOf(found.value).getShape().back();
  for (Value *operand : {&found.query, &found.key, &found.value})
    *operand = draft.group(*operand, counts);
  if (found.mask && rank == 3 && draft.typeOf(found.mask).getRank() == 3)
    found.mask = draft.group(found.mask, counts);
  RankedTensorType query = draft.typeOf(found.query), key = draft.typeOf(found.key), value = draft.typeOf(found.value);
  if (!*grouped && (query.getDimSize(1) != key.getDimSize(1) || query.getDimSize(1) != value.getDimSize(1)))
    return draft.refuse("expected as many query heads as kv heads without enable_gqa, got " + textOf(query) + " and " + textOf(key));
  found.positions.causal = *causal; // from the first token on, so that queries are the newest only where they are as many
  found.positions.newest = !query.isDynamicDim(2) && query.getDimSize(2) == key.getDimSize(2);
  found.maskedZero = true; // torch's softmax here gives zeros for a row of -inf
  found.element = query.getElementType();
  Value result = draft.attend(found);
  return result ? draft.ungroup(result, counts, shape) : Value();
}

Value Translation::concat(Operation *op) {
  if (!hasOperands(op, 2))
    return nullptr;
  std::optional<OperandRange> list = listOf(op->getOperand(0));
  if (!list || list->empty())
    return draft.refuse("expected a list of tensors that is made in this function, got another");
  SmallVector<Value> parts;
  for (Value item : *list) {
    Value part = values.lookupOrNull(item);
    if (!part || !isa<RankedTensorType>(part.getType()))
      return draft.refuse("expected a list of tensors, got " + textOf(item.getType()));
    parts.push_back(part);
  }
  RankedTensorType first = draft.typeOf(parts.front());
  std::optional<int64_t> along = dim(op->getOperand(1), first.getRank());
  if (!along)
    return nullptr;
  for (Value part : parts) {
    RankedTensorType type = draft.typeOf(part);
    bool fits = type.getRank() == first.getRank() && type.getElementType() == first.getElementType();
    for (int64_t d = 0; fits && d < first.getRank(); ++d)
      fits = d == *along || type.getDimSize(d) == first.getDimSize(d) || type.isDynamicDim(d) || first.isDynamicDim(d);
    if (!fits)
      return draft.refuse("expected tensors that differ in dimension " + Twine(*along) + " alone, got " + textOf(first) + " and " + textOf(type));
  }
  return tensor::ConcatOp::create(b, *along, parts);
}

Value Translation::sliceScatter(Operation *op) {
  Value into = hasOperands(op, 6) ? tensor(op, 0) : Value(), from = into ? tensor(op, 1) : Value();
  if (!from)
    return nullptr;
  RankedTensorType target = draft.typeOf(into), source = draft.typeOf(from);
  std::optional<int64_t> along = dim(op->getOperand(2), target.getRank());
  auto bounds = along ? range(op->getOperand(3), op->getOperand(4), op->getOperand(5), target.getDimSize(*along)) : std::nullopt;
  if (!bounds)
    return nullptr;
  SmallVector<int64_t> shape(target.getShape());
  shape[*along] = bounds->second;
  if (source != RankedTensorType::get(shape, target.getElementType()) || !source.hasStaticShape())
    return draft.refuse("expected " + textOf(RankedTensorType::get(shape, target.getElementType())) + " to be put in, got " + textOf(source));
  SmallVector<OpFoldResult> offsets(target.getRank(), b.getIndexAttr(0)), strides(target.getRank(), b.getIndexAttr(1)),
      sizes = getAsIndexOpFoldResult(b.getContext(), shape);
  offsets[*along] = b.getIndexAttr(bounds->first);
  return tensor::InsertSliceOp::create(b, from, into, offsets, sizes, strides);
}

Value Translation::slice(Operation *op) {
  Value from = hasOperands(op, 5) ? tensor(op, 0) : Value();
  if (!from)
    return nullptr;
  RankedTensorType type = draft.typeOf(from);
  std::optional<int64_t> along = dim(op->getOperand(1), type.getRank());
  auto bounds = along ? range(op->getOperand(2), op->getOperand(3), op->getOperand(4), type.getDimSize(*along)) : std::nullopt;
  if (!bounds)
    return nullptr;
  SmallVector<OpFoldResult> offsets(type.getRank(), b.getIndexAttr(0)), strides(type.getRank(), b.getIndexAttr(1)), sizes;
  for (int64_t d = 0; d < type.getRank(); ++d)
    sizes.push_back(draft.extent(from, d));
  offsets[*along] = b.getIndexAttr(bounds->first);
  sizes[*along] = b.getIndexAttr(bounds->second);
  return tensor::ExtractSliceOp::create(b, from, offsets, sizes, strides);
}

Value Translation::transpose(Operation *op) {
  Value from = hasOperands(op, 3) ? tensor(op, 0) : Value();
  int64_t rank = from ? draft.typeOf(from).getRank() : 0;
  std::optional<int64_t> one = from ? dim(op->getOperand(1), rank) : std::nullopt, other = one ? dim(op->getOperand(2), rank) : std::nullopt;
  if (!other)
    return nullptr;
  SmallVector<int64_t> permutation = llvm::to_vector(llvm::seq<int64_t>(0, rank));
  std::swap(permutation[*one], permutation[*other]);
  return draft.transpose(from, permutation);
}

Value Translation::permute(Operation *op) {
  Value from = hasOperands(op, 2) ? tensor(op, 0) : Value();
  if (!from)
    return nullptr;
  std::optional<SmallVector<int64_t>> order = intsOf(op->getOperand(1));
  for (int64_t &d : order ? MutableArrayRef<int64_t>(*order) : MutableArrayRef<int64_t>())
    d += d < 0 ? draft.typeOf(from).getRank() : 0;
  if (!order || static_cast<int64_t>(order->size()) != draft.typeOf(from).getRank() || !isPermutationVector(*order))
    return draft.refuse("expected a constant permutation of the dimensions of " + textOf(from.getType()) + ", got another list");
  return draft.transpose(from, *order);
}

Value Translation::unsqueeze(Operation *op) {
  Value from = hasOperands(op, 2) ? tensor(op, 0) : Value();
  int64_t rank = from ? draft.typeOf(from).getRank() : 0;
  std::optional<int64_t> at = from ? dim(op->getOperand(1), rank + 1) : std::nullopt;
  if (!at)
    return nullptr;
  if (*at == rank) // units go with what follows
    return draft.refuse("expected a dimension to be put in ahead of others, got it behind " + textOf(from.getType()));
  SmallVector<int64_t> counts(rank + 1, 1);
  counts[*at] = 0;
  return draft.group(from, counts);
}

/// The result's type says what -1 in the list stands for.
Value Translation::view(Operation *op) {
  Value from = hasOperands(op, 2) ? tensor(op, 0) : Value();
  if (!from)
    return nullptr;
  RankedTensorType to = tensorOf(op->getResult(0).getType());
  std::optional<SmallVector<int64_t>> shape = intsOf(op->getOperand(1));
  auto fits = [](int64_t listed, int64_t typed) { return listed == -1 || listed == typed; };
  if (!to || !shape || !llvm::all_of_zip(*shape, to.getShape(), fits) || shape->size() != to.getShape().size())
    return draft.refuse("expected a view of the constant shape that its type has, got " + textOf(op->getResult(0).getType()));
  return draft.reshape(from, to.getShape());
}

bool Translation::translate(Operation *op) {
  b.setLoc(op->getLoc());
  StringRef name = op->getName().getStringRef();
  auto refuse = [&](const Twine &why) {
    draft.refuse(why);
    return false;
  };
  if (!isTorchOp(op)) {
    auto isTorch = [](Type type) { return !torchTextOf(type).empty(); };
    bool inside = op->walk([](Operation *nested) { return isTorchOp(nested) ? WalkResult::interrupt() : WalkResult::advance(); }).wasInterrupted();
    if (inside || !op->isRegistered() || isa<func::CallOp>(op) || llvm::any_of(op->getOperandTypes(), isTorch) || llvm::any_of(op->getResultTypes(), isTorch))
      return refuse("expected ops that have a form over tensors, got '" + name + "'");
    b.clone(*op, values);
    return true;
  }
  if (name.starts_with("torch.constant.") || name == "torch.prim.ListConstruct") // read where they are used
    return true;
  using Method = Value (Translation::*)(Operation *);
  Method method = llvm::StringSwitch<Method>(name)
                      .Case("torch.aten.scaled_dot_product_attention", &Translation::attention)
                      .Case("torch.aten.cat", &Translation::concat)
                      .Case("torch.aten.slice_scatter", &Translation::sliceScatter)
                      .Case("torch.aten.slice.Tensor", &Translation::slice)
                      .Case("torch.aten.transpose.int", &Translation::transpose)
                      .Case("torch.aten.permute", &Translation::permute)
                      .Case("torch.aten.unsqueeze", &Translation::unsqueeze)
                      .Cases({"torch.aten.view", "torch.aten.reshape"}, &Translation::view)
                      .Default(nullptr);
  bool same = name == "torch_c.to_builtin_tensor" || name == "torch_c.from_builtin_tensor" || name == "torch.aten.contiguous" || name == "torch.aten.clone";
  if (!method && !same)
    return refuse("expected ops that have a form over tensors, got '" + name + "'");
  if (op->getNumRegions() || op->getNumSuccessors())
    return refuse("expected '" + name + "' without regions, got some");
  if (!expectAttributes(draft, op, {}))
    return false;
  if (same && (op->getNumOperands() < 1 || op->getNumResults() != 1))
    return refuse("expected '" + name + "' of one tensor, got " + Twine(op->getNumOperands()) + " operands");
  Value value = same ? tensor(op, 0) : (this->*method)(op);
  if (!value)
    return false;
  Type type = op->getResult(0).getType();
  if (!torchTextOf(type).empty())
    type = tensorOf(type);
  if (!type)
    return refuse("expected '" + name + "' to give a tensor of known rank, got " + textOf(op->getResult(0).getType()));
  value = draft.cast(value, type);
  if (!value)
    return false;
  values.map(op->getResult(0), value);
  return true;
}

/// Attributes that are not torch's.
SmallVector<NamedAttribute> withoutTorch(DictionaryAttr attributes) {
  SmallVector<NamedAttribute> kept;
  for (NamedAttribute attribute : attributes ? attributes.getValue() : ArrayRef<NamedAttribute>())
    if (!attribute.getName().getValue().starts_with("torch."))
      kept.push_back(attribute);
  return kept;
}

/// The types over tensors; the first that has none is left in `odd`.
SmallVector<Type> typesOf(TypeRange types, Type &odd) {
  SmallVector<Type> converted;
  for (Type type : types) {
    converted.push_back(torchTextOf(type).empty() ? type : Type(tensorOf(type)));
    if (!converted.back() && !odd)
      odd = type;
  }
  return converted;
}

} // namespace

bool aligned::raiseTorchFunction(func::FuncOp function, SmallVectorImpl<AttentionOp> &raised) {
  auto isTorch = [](Type type) { return !torchTextOf(type).empty(); };
  Operation *first = nullptr;
  function.walk([&](Operation *op) {
    if (isTorchOp(op) && !first)
      first = op;
  });
  if (!first && !llvm::any_of(function.getArgumentTypes(), isTorch) && !llvm::any_of(function.getResultTypes(), isTorch))
    return true;
  auto refuse = [](Operation *op, const Twine &why) {
    op->emitRemark("attention not raised: ") << why;
    return false;
  };
  if (function.isExternal() || !function.getBody().hasOneBlock())
    return refuse(function, "expected a function with a body of one block");
  auto uses = SymbolTable::getSymbolUses(function, function->getParentOp());
  if (!uses || !uses->empty())
    return refuse(function, "expected a function over torch's tensors that nothing refers to, got one that is called");
  Type odd;
  SmallVector<Type> arguments = typesOf(function.getArgumentTypes(), odd), results = typesOf(function.getResultTypes(), odd);
  if (odd)
    return refuse(function, "expected tensors of known rank and element type in the function's signature, got " + textOf(odd));

  auto type = FunctionType::get(function.getContext(), arguments, results);
  OwningOpRef<func::FuncOp> anew = func::FuncOp::create(function.getLoc(), function.getSymName(), type, withoutTorch(function->getDiscardableAttrDictionary()));
  if (StringAttr visibility = function.getSymVisibilityAttr())
    anew->setSymVisibilityAttr(visibility);
  for (unsigned number = 0; number < arguments.size(); ++number)
    anew->setArgAttrs(number, withoutTorch(function.getArgAttrDict(number)));
  for (unsigned number = 0; number < results.size(); ++number)
    anew->setResultAttrs(number, withoutTorch(function.getResultAttrDict(number)));
  Block *block = anew->addEntryBlock();
  IRMapping values;
  values.map(function.getArguments(), block->getArguments());
  Draft draft(function.getLoc(), block);
  Translation translation(draft, values);
  for (Operation &op : function.getBody().front().without_terminator())
    if (!translation.translate(&op))
      return refuse(&op, draft.reason);

  Operation *end = function.getBody().front().getTerminator();
  if (!isa<func::ReturnOp>(end))
    return refuse(end, "expected 'func.return' at the end, got '" + end->getName().getStringRef() + "'");
  SmallVector<Value> returned;
  for (auto [operand, result] : llvm::zip_equal(end->getOperands(), results)) {
    Value value = values.lookupOrNull(operand);
    value = value ? draft.cast(value, result) : draft.refuse("expected tensors to be returned, got " + textOf(operand.getType()));
    if (!value)
      return refuse(end, draft.reason);
    returned.push_back(value);
  }
  draft.b.setLoc(end->getLoc());
  func::ReturnOp::create(draft.b, returned);
  raised.append(draft.attentions);
  function->getBlock()->getOperations().insert(function->getIterator(), anew.release());
  function.erase();
  return true;
}
