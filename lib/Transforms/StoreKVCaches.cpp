// aligned-store-kv-caches: a plane encoding for every tensor that attention reads as key or value.
//
// A cache is more than one SSA value: it is appended to, passed to functions and returned from them, and all of these have one type.
// So the pass collects, from each key and value outwards, the set of values that must agree, decides on an encoding for the set, and
// only then rewrites: values of the set change type, a value that is computed by anything else is packed once where it is defined, and
// whoever else reads a cache gets it unpacked.
#include "aligned/Transforms/Passes.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Tensor/IR/Tensor.h"
#include "mlir/IR/SymbolTable.h"
#include "llvm/ADT/SetVector.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDSTOREKVCACHES
#include "aligned/Transforms/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

/// A function whose callers are all known and can follow a change of its signature.
class CallGraph {
public:
  explicit CallGraph(ModuleOp module) : users(tables, module) {}

  func::FuncOp callee(func::CallOp call) {
    auto function = tables.lookupNearestSymbolFrom<func::FuncOp>(call, call.getCalleeAttr());
    return function && isFollowed(function) ? function : func::FuncOp();
  }
  /// Not a declaration, whose body is elsewhere, and not one whose address is taken.
  bool isFollowed(func::FuncOp function) {
    return !function.isExternal() && llvm::all_of(users.getUsers(function), llvm::IsaPred<func::CallOp>);
  }
  auto calls(func::FuncOp function) { return llvm::map_range(users.getUsers(function), llvm::CastTo<func::CallOp>); }

private:
  SymbolTableCollection tables;
  SymbolUserMap users;
};

/// The values that must have the type of one cache.
struct Cache {
  llvm::SetVector<Value> values;
  llvm::SetVector<std::pair<func::FuncOp, unsigned>> results; ///< of functions that return it
  SmallVector<OpOperand *> reads[2];                          ///< by attention, per role
  std::optional<FormatKind> wanted;                           ///< by the policies of `wantedBy`
  AttentionOp wantedBy;
};

class Packer {
public:
  Packer(ModuleOp module, PlanesAttr format, bool preferFloat, uint64_t denseBelow)
      : module(module), calls(module), format(format), preferFloat(preferFloat), denseBelow(denseBelow) {}

  LogicalResult run() {
    bool ok = true;
    module.walk([&](AttentionOp attention) {
      FailureOr<bool> packs = canStore(attention);
      ok &= succeeded(packs);
      if (failed(packs) || !*packs)
        return;
      ok &= succeeded(addRead(attention, attention.getKeyMutable(), CacheRole::Key));
      ok &= succeeded(addRead(attention, attention.getValueMutable(), CacheRole::Value));
    });
    if (!ok)
      return failure();
    for (std::unique_ptr<Cache> &cache : caches)
      rewrite(*cache);
    return success();
  }

private:
  static RankedTensorType typeOf(Value value) { return cast<RankedTensorType>(value.getType()); }

  /// The format that an attention's own policies read, if they can't read every one.
  static std::optional<FormatKind> wantedBy(AttentionOp attention) {
    PolicyKind kind = attention.getPolicies() ? cast<PolicyAttr>((*attention.getPolicies())[0]).getKind() : PolicyKind::Exact;
    if (kind == PolicyKind::Exact)
      return std::nullopt;
    return kind == PolicyKind::AlignedKV ? FormatKind::Float : FormatKind::Fixed;
  }

  PlanesAttr encoding(Type element, CacheRole role, std::optional<FormatKind> wanted) const {
    if (format)
      return format.withRole(role);
    if (wanted.value_or(preferFloat ? FormatKind::Float : FormatKind::Fixed) == FormatKind::Fixed)
      return PlanesAttr::get(element.getContext(), FormatKind::Fixed, {4, 4, 8}, role);
    if (element.isBF16())
      return PlanesAttr::get(element.getContext(), FormatKind::Float, {12, 4}, role);
    return PlanesAttr::get(element.getContext(), FormatKind::Float, {8, 4, 4}, role);
  }

  /// Whether kernels and storage can hold this attention. Where they can't, it stays dense, unless the user asked for this format.
  FailureOr<bool> canStore(AttentionOp attention) {
    RankedTensorType query = typeOf(attention.getQuery()), key = typeOf(attention.getKey());
    if (key.getEncoding())
      return false; // as it should be
    if (takeLess({key, attention.getValue().getType()}, denseBelow)) {
      attention.emitRemark("attention stays dense: expected a key and a value of at least ") << denseBelow << " bytes together, got " << key << " and " << attention.getValue().getType();
      return false;
    }
    for (auto [name, value, role] : {std::tuple("key", attention.getKey(), CacheRole::Key), std::tuple("value", attention.getValue(), CacheRole::Value)}) {
      auto refuse = [&, &name = name, &value = value] {
        InFlightDiagnostic diagnostic = format ? attention.emitOpError() : attention.emitRemark("attention stays dense: ");
        diagnostic << name << ": ";
        diagnostic.attachNote(value.getLoc()) << "the " << name << " is defined here";
        return diagnostic;
      };
      RankedTensorType type = typeOf(value);
      if (failed(encoding(type.getElementType(), role, wantedBy(attention)).verifyEncoding(type.getShape(), type.getElementType(), refuse)))
        return format ? FailureOr<bool>(failure()) : FailureOr<bool>(false);
    }
    int64_t queryHeads = query.getDimSize(1), queries = query.getDimSize(2);
    if (ShapedType::isDynamic(queryHeads) || ShapedType::isDynamic(queries)) {
      attention.emitRemark("attention stays dense: expected static query heads and queries, got ") << query;
      return false;
    }
    int64_t rows = queryHeads / key.getDimSize(1) * queries;
    if (rows > kMaxQueryRows) {
      attention.emitRemark("attention stays dense: expected at most ") << kMaxQueryRows << " query rows per kv head, got " << rows;
      return false;
    }
    return true;
  }

  //===--------------------------------------------------------------------===//
  // Collecting
  //===--------------------------------------------------------------------===//

  LogicalResult addRead(AttentionOp attention, OpOperand &operand, CacheRole role) {
    if (!cacheOf.contains(operand.get()))
      collect(*caches.emplace_back(std::make_unique<Cache>()), operand.get());
    Cache &cache = *cacheOf[operand.get()];
    cache.reads[static_cast<int>(role)].push_back(&operand);
    reads.insert(&operand);
    std::optional<FormatKind> wanted = wantedBy(attention);
    if (format || !wanted)
      return success(); // whether the policies can read it is checked when they are fused
    if (cache.wanted && cache.wanted != wanted) {
      InFlightDiagnostic diagnostic = attention.emitOpError("expected policies that read '")
                                      << stringifyFormatKind(*cache.wanted) << "' as other attention over the same " << stringifyCacheRole(role) << " does, got '"
                                      << stringifyFormatKind(*wanted) << "'";
      diagnostic.attachNote(cache.wantedBy.getLoc()) << "the other attention is here";
      return failure();
    }
    cache.wanted = wanted;
    cache.wantedBy = attention;
    return success();
  }

  /// Follows `root` both ways, so that each value of the set would have found the same set.
  void collect(Cache &cache, Value root) {
    auto addResult = [&](func::FuncOp function, unsigned index) {
      if (!cache.results.insert({function, index}))
        return;
      for (auto ret : function.getOps<func::ReturnOp>())
        cache.values.insert(ret.getOperand(index));
      for (func::CallOp call : calls.calls(function))
        cache.values.insert(call.getResult(index));
    };
    cache.values.insert(root);
    for (size_t next = 0; next < cache.values.size(); ++next) { // grows on the way
      Value value = cache.values[next];
      if (AppendOp append = appendOf(value))
        cache.values.insert(append.getCache());
      else if (func::FuncOp callee = calleeOf(value))
        addResult(callee, cast<OpResult>(value).getResultNumber());
      else if (func::FuncOp function = functionOf(value))
        for (func::CallOp call : calls.calls(function))
          cache.values.insert(call.getOperand(cast<BlockArgument>(value).getArgNumber()));

      for (OpOperand &use : value.getUses()) {
        if (!passesOn(use))
          continue;
        if (auto append = dyn_cast<AppendOp>(use.getOwner()))
          cache.values.insert(append.getResult());
        else if (auto call = dyn_cast<func::CallOp>(use.getOwner()))
          cache.values.insert(calls.callee(call).getArgument(use.getOperandNumber()));
        else
          addResult(cast<func::FuncOp>(use.getOwner()->getParentOp()), use.getOperandNumber());
      }
    }
    for (Value value : cache.values)
      cacheOf[value] = &cache;
  }

  /// A cache keeps its batch, heads and head_dim when it is appended to; where the types disagree on what is static, only one may be packable.
  static bool keepsShape(AppendOp append) {
    ArrayRef<int64_t> before = typeOf(append.getCache()).getShape(), after = typeOf(append.getResult()).getShape();
    return before.take_front(2) == after.take_front(2) && before.back() == after.back();
  }

  /// The append whose cache has the type of `value`, its result.
  static AppendOp appendOf(Value value) {
    auto append = value.getDefiningOp<AppendOp>();
    return append && keepsShape(append) ? append : AppendOp();
  }

  /// The followed function whose result this is.
  func::FuncOp calleeOf(Value value) {
    auto call = value.getDefiningOp<func::CallOp>();
    return call ? calls.callee(call) : func::FuncOp();
  }

  /// The followed function whose argument this is.
  func::FuncOp functionOf(Value value) {
    auto argument = dyn_cast<BlockArgument>(value);
    if (!argument || !argument.getOwner()->isEntryBlock())
      return {};
    auto function = dyn_cast<func::FuncOp>(argument.getOwner()->getParentOp());
    return function && calls.isFollowed(function) ? function : func::FuncOp();
  }

  /// Whether a use hands the cache on, as it is, to another value of its set.
  bool passesOn(OpOperand &use) {
    if (auto append = dyn_cast<AppendOp>(use.getOwner()))
      return &use == &append.getCacheMutable() && keepsShape(append);
    if (auto call = dyn_cast<func::CallOp>(use.getOwner()))
      return calls.callee(call) != nullptr;
    auto ret = dyn_cast<func::ReturnOp>(use.getOwner());
    return ret && calls.isFollowed(cast<func::FuncOp>(ret->getParentOp()));
  }

  //===--------------------------------------------------------------------===//
  // Rewriting
  //===--------------------------------------------------------------------===//

  void rewrite(Cache &cache) {
    SmallVector<OpOperand *> &keys = cache.reads[0], &values = cache.reads[1];
    if (!keys.empty() && !values.empty())
      return packReads(cache);
    CacheRole role = values.empty() ? CacheRole::Key : CacheRole::Value;
    PlanesAttr planes = encoding(typeOf(cache.values.front()).getElementType(), role, cache.wanted);
    for (Value value : cache.values) {
      if (appendOf(value) || calleeOf(value) || functionOf(value)) {
        value.setType(typeOf(value).cloneWithEncoding(planes));
        serveOthers(value);
      } else {
        OpBuilder b(module.getContext());
        b.setInsertionPointAfterValue(value);
        Value packed = PackOp::create(b, value.getLoc(), typeOf(value).cloneWithEncoding(planes), value).getResult();
        value.replaceUsesWithIf(packed, [&](OpOperand &use) { return passesOn(use) || reads.contains(&use); });
      }
    }
    for (Value value : cache.values)
      if (func::FuncOp function = functionOf(value))
        updateSignature(function, cast<BlockArgument>(value).getArgNumber(), {}, planes);
    for (auto [function, index] : cache.results)
      updateSignature(function, {}, index, planes);
  }

  /// A tensor that is key here and value there stays dense.
  void packReads(Cache &cache) {
    for (CacheRole role : {CacheRole::Key, CacheRole::Value}) {
      llvm::MapVector<Value, Value> packed;
      for (OpOperand *read : cache.reads[static_cast<int>(role)]) {
        Value dense = read->get();
        Value &planes = packed[dense];
        if (!planes) {
          OpBuilder b(module.getContext());
          b.setInsertionPointAfterValue(dense);
          planes = PackOp::create(b, dense.getLoc(), typeOf(dense).cloneWithEncoding(encoding(typeOf(dense).getElementType(), role, cache.wanted)), dense).getResult();
        }
        read->set(planes);
      }
    }
    Operation *key = cache.reads[0].front()->getOwner(), *value = cache.reads[1].front()->getOwner();
    key->emitRemark("key is packed at every step: the same tensor also serves as value").attachNote(value->getLoc()) << "it is the value here";
  }

  /// Uses of a cache that are neither attention nor a cache's own. They are served where the cache is defined, because once it
  /// has been appended to, the old cache is gone.
  void serveOthers(Value cache) {
    OpBuilder b(module.getContext());
    b.setInsertionPointAfterValue(cache);
    Value joined;
    for (OpOperand &use : llvm::make_early_inc_range(cache.getUses())) {
      if (passesOn(use) || reads.contains(&use))
        continue;
      if (auto dim = dyn_cast<tensor::DimOp>(use.getOwner())) {
        if (!dim.getConstantIndex()) // which may not be known where the cache is
          continue;
        Value index = arith::ConstantIndexOp::create(b, dim.getLoc(), *dim.getConstantIndex());
        dim.replaceAllUsesWith(Value(tensor::DimOp::create(b, dim.getLoc(), cache, index)));
        dim.erase();
        continue;
      }
      if (!joined)
        joined = UnpackOp::create(b, cache.getLoc(), typeOf(cache).dropEncoding(), cache).getResult();
      use.set(joined);
    }
  }

  static void updateSignature(func::FuncOp function, std::optional<unsigned> input, std::optional<unsigned> result, PlanesAttr planes) {
    SmallVector<Type> inputs(function.getArgumentTypes()), results(function.getResultTypes());
    Type &type = input ? inputs[*input] : results[*result];
    type = cast<RankedTensorType>(type).cloneWithEncoding(planes);
    function.setFunctionType(FunctionType::get(function.getContext(), inputs, results));
  }

  ModuleOp module;
  CallGraph calls;
  PlanesAttr format; ///< null for auto
  bool preferFloat;
  uint64_t denseBelow;
  std::vector<std::unique_ptr<Cache>> caches; ///< in order of appearance
  DenseMap<Value, Cache *> cacheOf;
  SmallPtrSet<OpOperand *, 16> reads; ///< key and value operands that become packed
};

struct AlignedStoreKVCachesPass : aligned::impl::AlignedStoreKVCachesBase<AlignedStoreKVCachesPass> {
  using AlignedStoreKVCachesBase::AlignedStoreKVCachesBase;

  void runOnOperation() override {
    ModuleOp module = getOperation();
    PlanesAttr parsed;
    if (format != "auto") {
      parsed = parsePlaneFormat(format, CacheRole::Key, &getContext(), [&] { return module.emitError(); });
      if (!parsed)
        return signalPassFailure();
    }
    if (failed(Packer(module, parsed, preferFloat, denseBelow).run()))
      signalPassFailure();
  }
};

} // namespace
