// What a model's inputs were seen to be: ranges, as promises for the analysis of precision (P6), and the mean of keys, as what is taken off them (S2).
#include "Calibrate.h"

#include "aligned/Analysis/Range.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Support/FileUtilities.h"

#include "llvm/Support/SourceMgr.h"

using namespace mlir;
using namespace aligned;

namespace {

/// How an array of a float type comes; bfloat16 is uint16 to NumPy. Nothing for other types.
std::optional<std::pair<DType, aligned_dtype>> comesAs(Type type) {
  if (type.isF16())
    return std::pair(DType::F16, ALIGNED_DTYPE_F16);
  if (type.isBF16())
    return std::pair(DType::U16, ALIGNED_DTYPE_BF16);
  if (type.isF32())
    return std::pair(DType::F32, ALIGNED_DTYPE_F32);
  if (type.isF64())
    return std::pair(DType::F64, ALIGNED_DTYPE_F64);
  return std::nullopt;
}

/// What was seen of one argument.
struct Seen {
  double lower = INFINITY, upper = -INFINITY, nonzero = INFINITY;
  bool infinite = false, nan = false;

  void add(double x) {
    nan |= std::isnan(x);
    infinite |= std::isinf(x);
    if (!std::isfinite(x))
      return;
    lower = std::min(lower, x);
    upper = std::max(upper, x);
    if (x != 0)
      nonzero = std::min(nonzero, std::fabs(x));
  }
};

/// Sums over the tokens of keys [batch, kv_heads, tokens, head_dim] of what is finite, for each kv head and channel.
struct KeySums {
  std::vector<double> sum;
  std::vector<int64_t> count;

  void add(const std::vector<double> &keys, ArrayRef<int64_t> shape) {
    sum.resize(shape[1] * shape[3]);
    count.resize(sum.size());
    for (auto [i, x] : llvm::enumerate(keys)) {
      int64_t channel = i % shape[3], head = i / (shape[2] * shape[3]) % shape[1];
      if (!std::isfinite(x))
        continue;
      sum[head * shape[3] + channel] += x;
      ++count[head * shape[3] + channel];
    }
  }
  std::vector<float> mean() const {
    std::vector<float> mean;
    for (auto [total, n] : llvm::zip(sum, count))
      mean.push_back(n ? total / n : 0);
    return mean;
  }
};

/// `keys`: where the argument is a cache of them.
LogicalResult look(BlockArgument argument, const std::map<std::string, NpyArray> &archive, const std::string &path, Seen &seen, KeySums *keys) {
  auto [dtype, element] = *comesAs(getElementTypeOrSelf(argument.getType()));
  std::string name = "arg" + std::to_string(argument.getArgNumber());
  auto found = archive.find(name);
  if (found == archive.end())
    return emitError(argument.getLoc()) << path << ": expected " << name << ", " << argument.getType() << ", found no such array";
  const NpyArray &array = found->second;
  auto shaped = dyn_cast<ShapedType>(argument.getType());
  ArrayRef<int64_t> shape = shaped && shaped.hasRank() ? shaped.getShape() : ArrayRef<int64_t>();
  bool fits = array.dtype == dtype && (!shaped || shaped.hasRank()) && array.shape.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i)
    fits = ShapedType::isDynamic(shape[i]) || shape[i] == array.shape[i];
  if (!fits)
    return emitError(argument.getLoc()) << path << ": expected " << name << " to be " << argument.getType() << ", got " << aligned::name(array.dtype) << " "
                                        << shapeText(array.shape);
  std::vector<double> values = toDouble(array.bytes.data(), array.count(), element);
  for (double x : values)
    seen.add(x);
  if (keys)
    keys->add(values, array.shape);
  return success();
}

/// The arguments that are caches of keys in fixed planes, as the pipeline stores them.
llvm::SmallDenseSet<unsigned> findKeyCaches(ModuleOp module, StringRef function) {
  OwningOpRef<ModuleOp> stored = module.clone();
  PassManager passes(module.getContext());
  PipelineOptions options;
  options.to = "store";
  buildPipeline(passes, options);
  ScopedDiagnosticHandler quiet(module.getContext(), [](Diagnostic &) { return success(); }); // who compiles the model is told
  llvm::SmallDenseSet<unsigned> caches;
  if (failed(passes.run(*stored)))
    return caches;
  for (auto [number, type] : llvm::enumerate(stored->lookupSymbol<func::FuncOp>(function).getArgumentTypes()))
    if (PlanesAttr planes = getPlanes(type); planes && planes.getKind() == FormatKind::Fixed && planes.getRole() == CacheRole::Key)
      caches.insert(number);
  return caches;
}

LogicalResult declare(func::FuncOp function, BlockArgument argument, const Seen &seen) {
  bool any = seen.lower <= seen.upper; // else nothing is known of finite values: of none were any
  RangeAttr range = RangeAttr::get(function.getContext(), any ? seen.lower : 0, any ? seen.upper : 0, std::isfinite(seen.nonzero) ? seen.nonzero : 0, seen.infinite, seen.nan);
  auto declared = function.getArgAttrOfType<RangeAttr>(argument.getArgNumber(), kRangeName);
  if (declared && any && (seen.lower < declared.getLower().convertToDouble() || seen.upper > declared.getUpper().convertToDouble()))
    return emitError(argument.getLoc()) << "expected values within " << declared << ", which argument #" << argument.getArgNumber() << " is declared to have, got ["
                                        << decimal(seen.lower) << ", " << decimal(seen.upper) << "]";
  function.setArgAttr(argument.getArgNumber(), kRangeName, range);
  return success();
}

} // namespace

bool aligned::calibrate(const std::string &model, const std::vector<std::string> &archives, OutputFile &file) {
  DialectRegistry registry;
  registerDialects(registry);
  MLIRContext context(registry);
  context.loadDialect<AlignedDialect>();
  std::string error;
  auto buffer = openInputFile(model, &error);
  if (!buffer)
    return refuse(error), false;
  llvm::SourceMgr sources;
  sources.AddNewSourceBuffer(std::move(buffer), llvm::SMLoc());
  SourceMgrDiagnosticHandler handler(sources, &context);
  OwningOpRef<ModuleOp> module = parseSourceFile<ModuleOp>(sources, &context);
  if (!module)
    return false;
  FailureOr<func::FuncOp> function = findFunction(*module);
  if (failed(function))
    return false;

  std::map<unsigned, Seen> seen;
  std::map<unsigned, KeySums> keys;
  for (unsigned number : findKeyCaches(*module, function->getSymName()))
    keys[number];
  for (const std::string &path : archives) {
    auto archive = readNpz(path, error);
    if (!archive)
      return refuse(error), false;
    for (BlockArgument argument : function->getArguments())
      if (comesAs(getElementTypeOrSelf(argument.getType()))) {
        auto cache = keys.find(argument.getArgNumber());
        if (failed(look(argument, *archive, path, seen[argument.getArgNumber()], cache == keys.end() ? nullptr : &cache->second)))
          return false;
      }
  }
  for (auto &[number, what] : seen)
    if (failed(declare(*function, function->getArgument(number), what)))
      return false;
  for (auto &[number, sums] : keys) {
    auto shape = cast<RankedTensorType>(function->getArgument(number).getType()).getShape();
    auto type = RankedTensorType::get({shape[1], shape[3]}, Float32Type::get(&context));
    if (llvm::any_of(sums.count, [](int64_t n) { return n > 0; }))
      function->setArgAttr(number, kKeyOffsetName, DenseElementsAttr::get(type, ArrayRef(sums.mean())));
  }
  return file.write([&](llvm::raw_ostream &os) { os << *module << "\n"; });
}
