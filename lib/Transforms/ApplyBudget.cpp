// aligned-apply-budget: policies of attention from a file that says how much error is acceptable, and where.
//
//   default:                        # of all layers
//     tolerance: 2^-8
//     value: {max-bits: 12}
//   layers:
//     3:                            # the attention's number in the module, from 0
//       newest: 64
//       heads:
//         1: {policy: exact}        # kv heads
//
// An entry is an outer one with some fields replaced. What it says of itself it says of keys and of values, and `key` and `value` replace that on
// their side. Outermost are the policy and the tolerance that the options give.
#include "aligned/Transforms/Passes.h"

#include "aligned/Dialect/Aligned/IR/Aligned.h"

#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/YAMLTraits.h"

#include <cmath>
#include <map>

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDAPPLYBUDGET
#include "aligned/Transforms/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// The file
//===----------------------------------------------------------------------===//

namespace {

// Scalars know what they may be, so that a wrong one is reported where it stands.
struct Tolerance { double value; };
struct Bits { int64_t value; };
struct Count { int64_t value; };

/// What can be said of one side, or of both.
struct Fields {
  std::optional<std::string> policy;
  std::optional<Tolerance> tolerance;
  std::optional<Bits> leastBits, mostBits;
  std::optional<Count> newest, sinks;
  std::optional<std::vector<AgeBits>> ages;
  llvm::SMLoc place;
};

struct Entry : Fields {
  Fields key, value;
};

struct Layer : Entry {
  std::map<int64_t, Entry> heads;
};

struct Budget {
  Entry defaults;
  std::map<int64_t, Layer> layers;
};

template <typename T>
bool isNumber(StringRef text, T &number) {
  if constexpr (std::is_same_v<T, double>)
    return !text.getAsDouble(number);
  else
    return !text.getAsInteger(10, number);
}

} // namespace

LLVM_YAML_IS_SEQUENCE_VECTOR(aligned::AgeBits)

namespace llvm::yaml {

template <>
struct ScalarTraits<Tolerance> {
  static void output(const Tolerance &tolerance, void *, raw_ostream &os) { os << tolerance.value; }
  static StringRef input(StringRef text, void *, Tolerance &tolerance) {
    double exponent = 0;
    bool power = text.consume_front("2^");
    if (!isNumber(text, power ? exponent : tolerance.value))
      return "expected a tolerance that is a number or a power such as 2^-8";
    if (power)
      tolerance.value = std::exp2(exponent);
    return tolerance.value > 0 && tolerance.value < 1 ? StringRef() : "expected a tolerance above 0 and below 1";
  }
  static QuotingType mustQuote(StringRef) { return QuotingType::None; }
};

template <>
struct ScalarTraits<Bits> {
  static void output(const Bits &bits, void *, raw_ostream &os) { os << bits.value; }
  static StringRef input(StringRef text, void *, Bits &bits) {
    bool known = isNumber(text, bits.value) && bits.value >= 0 && bits.value <= 16 && bits.value % 4 == 0;
    return known ? StringRef() : "expected bits that are a multiple of 4 from 0 to 16";
  }
  static QuotingType mustQuote(StringRef) { return QuotingType::None; }
};

template <>
struct ScalarTraits<Count> {
  static void output(const Count &count, void *, raw_ostream &os) { os << count.value; }
  static StringRef input(StringRef text, void *, Count &count) {
    return isNumber(text, count.value) && count.value >= 0 ? StringRef() : "expected a number of tokens, 0 or more";
  }
  static QuotingType mustQuote(StringRef) { return QuotingType::None; }
};

/// A step of the staircase is a mapping of one key: `1024: 8`.
template <>
struct CustomMappingTraits<AgeBits> {
  static void inputOne(IO &io, StringRef key, AgeBits &step) {
    if (io.keys().size() != 1 || !isNumber(key, step.age) || step.age <= 0)
      return io.setError("expected a step such as '1024: 8', the most bits from an age above 0 on");
    Bits bits{0};
    io.mapRequired(key.str().c_str(), bits);
    step.bits = bits.value;
  }
  static void output(IO &, AgeBits &) {}
};

static void mapFields(IO &io, Fields &fields) {
  if (const Node *node = static_cast<Input &>(io).getCurrentNode())
    fields.place = node->getSourceRange().Start;
  io.mapOptional("policy", fields.policy);
  io.mapOptional("tolerance", fields.tolerance);
  io.mapOptional("min-bits", fields.leastBits);
  io.mapOptional("max-bits", fields.mostBits);
  io.mapOptional("newest", fields.newest);
  io.mapOptional("sinks", fields.sinks);
  io.mapOptional("ages", fields.ages);
}

template <>
struct MappingTraits<Fields> {
  static void mapping(IO &io, Fields &fields) { mapFields(io, fields); }
};

template <>
struct MappingTraits<Entry> {
  static void mapping(IO &io, Entry &entry) {
    mapFields(io, entry);
    io.mapOptional("key", entry.key);
    io.mapOptional("value", entry.value);
  }
};

template <>
struct MappingTraits<Layer> {
  static void mapping(IO &io, Layer &layer) {
    MappingTraits<Entry>::mapping(io, layer);
    io.mapOptional("heads", layer.heads);
  }
};

template <>
struct MappingTraits<Budget> {
  static void mapping(IO &io, Budget &budget) {
    io.mapOptional("default", budget.defaults);
    io.mapOptional("layers", budget.layers);
  }
};

template <typename T>
struct CustomMappingTraits<std::map<int64_t, T>> {
  static void inputOne(IO &io, StringRef key, std::map<int64_t, T> &entries) {
    int64_t number;
    if (!isNumber(key, number) || number < 0 || !entries.try_emplace(number).second)
      return io.setError("expected each number, from 0, once, got '" + key + "'");
    io.mapRequired(key.str().c_str(), entries[number]);
  }
  static void output(IO &, std::map<int64_t, T> &) {}
};

} // namespace llvm::yaml

namespace {

/// A budget and the text that it was read from, which says where its entries stand.
class BudgetFile {
public:
  static FailureOr<std::unique_ptr<BudgetFile>> read(StringRef path, MLIRContext *context, function_ref<InFlightDiagnostic()> emitError) {
    auto text = llvm::MemoryBuffer::getFile(path);
    if (!text)
      return emitError() << "expected a readable budget file, got '" << path << "': " << text.getError().message();
    auto file = std::make_unique<BudgetFile>();
    file->path = path;
    file->context = context;
    llvm::yaml::Input input((*text)->getMemBufferRef(), nullptr, [](const llvm::SMDiagnostic &diagnostic, void *context) {
      auto *file = static_cast<BudgetFile *>(context);
      if (!std::exchange(file->refused, true)) // what follows a first error is often its echo
        mlir::emitError(file->at(diagnostic.getLineNo(), diagnostic.getColumnNo() + 1)) << diagnostic.getMessage();
    }, file.get());
    file->sources.AddNewSourceBuffer(std::move(*text), llvm::SMLoc());
    input >> file->budget; // an empty file says nothing
    if (input.error() || file->refused)
      return failure();
    return file;
  }

  Location locate(const Fields &fields) {
    if (!fields.place.isValid())
      return at(1, 1);
    auto [line, column] = sources.getLineAndColumn(fields.place);
    return at(line, column);
  }

  Budget budget;

private:
  Location at(unsigned line, unsigned column) { return FileLineColLoc::get(context, path, line, column); }

  StringRef path;
  MLIRContext *context = nullptr;
  llvm::SourceMgr sources;
  bool refused = false;
};

//===----------------------------------------------------------------------===//
// What it comes to
//===----------------------------------------------------------------------===//

/// What a kv head may read of one side.
struct Side {
  PolicyKind kind = PolicyKind::Exact;
  std::optional<double> tolerance; ///< of its own
  BitRange bits;
  int64_t newest = 0, sinks = 0;
  std::vector<AgeBits> ages;
};

struct Head {
  Side side[2];
  std::optional<double> tolerance; ///< of a side that has none of its own
  Location place;                  ///< of the entry that spoke last
};

class Resolver {
public:
  Resolver(BudgetFile &file, MLIRContext *context) : file(file), context(context) {}

  LogicalResult apply(Head &head, const Entry &entry) const {
    if (!entry.place.isValid() && !entry.key.place.isValid() && !entry.value.place.isValid())
      return success();
    head.place = file.locate(entry);
    return success(succeeded(apply(head, entry, {0, 1})) && succeeded(apply(head, entry.key, {0})) && succeeded(apply(head, entry.value, {1})));
  }

  /// One policy for all heads where they agree, else one for each.
  FailureOr<ArrayAttr> policies(ArrayRef<Head> heads) const {
    PolicyKind kind = PolicyKind::Exact; // which goes with either of the others
    for (const Head &head : heads)
      for (const Side &side : head.side) {
        if (side.kind != kind && side.kind != PolicyKind::Exact && kind != PolicyKind::Exact)
          return mlir::emitError(head.place) << "expected policies of one kind in a layer, got '" << stringifyPolicyKind(kind) << "' and '"
                                             << stringifyPolicyKind(side.kind) << "'";
        kind = side.kind == PolicyKind::Exact ? kind : side.kind;
      }
    SmallVector<Attribute> all;
    for (const Head &head : heads) {
      PolicyAttr policy = policyOf(head, kind);
      if (!policy)
        return failure();
      all.push_back(policy);
    }
    return ArrayAttr::get(context, llvm::all_equal(all) ? ArrayRef(all).take_front() : ArrayRef(all));
  }

private:
  LogicalResult apply(Head &head, const Fields &fields, ArrayRef<int> sides) const {
    auto refuse = [&] { return mlir::emitError(file.locate(fields)); };
    std::optional<PolicyKind> kind;
    std::optional<double> tolerance;
    if (fields.tolerance) {
      kind = PolicyKind::Budget;
      tolerance = fields.tolerance->value;
    }
    if (fields.policy && (*fields.policy != "budget" || tolerance)) {
      PolicyAttr policy = parsePolicy(*fields.policy, tolerance.value_or(0.0), context, refuse);
      if (!policy)
        return failure();
      kind = policy.getKind();
      if (policy.getTolerance())
        tolerance = policy.getTolerance().getValueAsDouble();
    } else if (fields.policy) { // with a tolerance from further out
      kind = PolicyKind::Budget;
    }
    bool limited = fields.leastBits || fields.mostBits || fields.newest || fields.sinks || fields.ages;
    if (kind == PolicyKind::Exact && limited)
      return refuse() << "expected no limits with policy 'exact'";
    if (tolerance && sides.size() == 2)
      head.tolerance = tolerance;
    for (int number : sides) {
      Side &side = head.side[number];
      side.kind = kind.value_or(side.kind);
      if (tolerance)
        side.tolerance = sides.size() == 2 ? std::nullopt : tolerance;
      if (fields.leastBits)
        side.bits.least = fields.leastBits->value;
      if (fields.mostBits)
        side.bits.most = fields.mostBits->value;
      if (fields.newest)
        side.newest = fields.newest->value;
      if (fields.sinks)
        side.sinks = fields.sinks->value;
      if (fields.ages)
        side.ages = *fields.ages;
    }
    return success();
  }

  PolicyAttr policyOf(const Head &head, PolicyKind kind) const {
    auto refuse = [&] { return mlir::emitError(head.place); };
    auto number = [&](double value) { return FloatAttr::get(Float64Type::get(context), value); };
    if (kind == PolicyKind::Exact)
      return PolicyAttr::get(context, kind);
    LimitsAttr limits[2], none = LimitsAttr::get(context, FloatAttr(), BitRange(), 0, 0, {});
    for (int side : {0, 1}) {
      const Side &s = head.side[side];
      if (s.kind == PolicyKind::Exact)
        limits[side] = LimitsAttr::get(context, FloatAttr(), BitRange{16, 16}, 0, 0, {});
      else
        limits[side] = LimitsAttr::getChecked(refuse, context, s.tolerance && kind == PolicyKind::Budget ? number(*s.tolerance) : FloatAttr(), s.bits, s.newest, s.sinks,
                                              ArrayRef<AgeBits>(s.ages));
      if (!limits[side])
        return {};
      if (limits[side] == none)
        limits[side] = {};
    }
    FloatAttr tolerance;
    if (kind == PolicyKind::Budget) { // sides that have their own don't ask for it; one that is exact doesn't either
      double ofSides = std::max(head.side[0].tolerance.value_or(0), head.side[1].tolerance.value_or(0));
      tolerance = number(head.tolerance.value_or(ofSides));
    }
    return PolicyAttr::getChecked(refuse, context, kind, tolerance, limits[0], limits[1]);
  }

  BudgetFile &file;
  MLIRContext *context;
};

struct AlignedApplyBudgetPass : aligned::impl::AlignedApplyBudgetBase<AlignedApplyBudgetPass> {
  using AlignedApplyBudgetBase::AlignedApplyBudgetBase;

  void runOnOperation() override {
    if (failed(apply(getOperation())))
      signalPassFailure();
  }

  LogicalResult apply(ModuleOp module) {
    auto refuse = [&] { return module.emitError(); };
    PolicyAttr base = parsePolicy(policy, tolerance, &getContext(), refuse);
    if (!base)
      return failure();
    auto read = BudgetFile::read(file, &getContext(), refuse);
    if (failed(read))
      return failure();
    BudgetFile &file = **read;
    Resolver resolver(file, &getContext());
    SmallVector<AttentionOp> attentions;
    module.walk([&](AttentionOp op) { attentions.push_back(op); });
    int64_t count = attentions.size();
    if (auto beyond = file.budget.layers.lower_bound(count); layer < 0 && beyond != file.budget.layers.end()) {
      InFlightDiagnostic diagnostic = mlir::emitError(file.locate(beyond->second)) << "expected a layer below " << count << ", got " << beyond->first;
      if (count)
        diagnostic.attachNote(attentions.back().getLoc()) << "the last attention of the module is here";
      return diagnostic;
    }

    Head start{{}, std::nullopt, file.locate(file.budget.defaults)};
    for (Side &side : start.side)
      side.kind = base.getKind();
    if (base.getTolerance())
      start.tolerance = base.getTolerance().getValueAsDouble();
    if (failed(resolver.apply(start, file.budget.defaults)))
      return failure();
    for (auto [number, op] : llvm::enumerate(attentions)) {
      Head common = start;
      auto found = file.budget.layers.find(layer < 0 ? number : int64_t(layer));
      const std::map<int64_t, Entry> none, &entries = found == file.budget.layers.end() ? none : found->second.heads;
      if (found != file.budget.layers.end() && failed(resolver.apply(common, found->second)))
        return failure();
      int64_t kvHeads = cast<RankedTensorType>(op.getKey().getType()).getDimSize(1);
      if (!entries.empty() && (ShapedType::isDynamic(kvHeads) || entries.rbegin()->first >= kvHeads)) {
        InFlightDiagnostic diagnostic = mlir::emitError(file.locate(entries.rbegin()->second)) << "expected a kv head below " << (ShapedType::isDynamic(kvHeads) ? "?" : std::to_string(kvHeads))
                                                                                               << ", got " << entries.rbegin()->first;
        diagnostic.attachNote(op.getLoc()) << "the attention of this layer is here";
        return diagnostic;
      }
      SmallVector<Head> heads(entries.empty() ? 1 : kvHeads, common);
      for (auto &[head, entry] : entries)
        if (failed(resolver.apply(heads[head], entry)))
          return failure();
      FailureOr<ArrayAttr> policies = resolver.policies(heads);
      if (failed(policies))
        return failure();
      op.setPoliciesAttr(*policies);
    }
    return success();
  }
};

} // namespace
