// Compile and call. A module is compiled in a context of its own; its function is called through the packed C interface, with a memref descriptor for
// each dense tensor and the cache's address for each packed one.
#include "aligned/JIT/Module.h"

#include "Ahead.h"
#include "CallRuntime.h"
#include "Engine.h"
#include "ObjectCache.h"
#include "Session.h"

#include "aligned/Analysis/Costs.h"
#include "aligned/Conversion/AlignedToCPU/Isa.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"
#include "aligned/Runtime/Error.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Pass/PassManager.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/MemoryBuffer.h"

#include <cstring>

using namespace mlir;
using namespace aligned;

//===----------------------------------------------------------------------===//
// Compilation
//===----------------------------------------------------------------------===//

struct aligned_module {
  std::vector<aligned_type> arguments, results;
  std::vector<std::vector<float>> keyOffsets; ///< by argument, empty where there is none
  int32_t attentions = 0, probes = 0;
  int64_t denseUpTo = 0;
  std::vector<Message> remarks;
  std::string remarkLines;
  std::unique_ptr<Engine> engine;
};

int64_t aligned::byteWidth(aligned_dtype dtype) {
  switch (dtype) {
  case ALIGNED_DTYPE_I1:
  case ALIGNED_DTYPE_I8:
    return 1;
  case ALIGNED_DTYPE_F16:
  case ALIGNED_DTYPE_BF16:
  case ALIGNED_DTYPE_I16:
    return 2;
  case ALIGNED_DTYPE_F32:
  case ALIGNED_DTYPE_I32:
    return 4;
  case ALIGNED_DTYPE_F64:
  case ALIGNED_DTYPE_I64:
    return 8;
  }
  return 0;
}

namespace {

std::optional<aligned_dtype> dtypeOf(Type type) {
  if (type.isF16())
    return ALIGNED_DTYPE_F16;
  if (type.isBF16())
    return ALIGNED_DTYPE_BF16;
  if (type.isF32())
    return ALIGNED_DTYPE_F32;
  if (type.isF64())
    return ALIGNED_DTYPE_F64;
  if (auto integer = dyn_cast<IntegerType>(type))
    switch (integer.getWidth()) {
    case 1:
      return ALIGNED_DTYPE_I1;
    case 8:
      return ALIGNED_DTYPE_I8;
    case 16:
      return ALIGNED_DTYPE_I16;
    case 32:
      return ALIGNED_DTYPE_I32;
    case 64:
      return ALIGNED_DTYPE_I64;
    }
  return std::nullopt;
}

/// A tensor type as callers see it; a diagnostic at the function for what can't cross the interface.
FailureOr<aligned_type> describe(func::FuncOp function, StringRef what, Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  std::optional<aligned_dtype> dtype = tensor ? dtypeOf(tensor.getElementType()) : std::nullopt;
  if (!dtype || tensor.getRank() > ALIGNED_MAX_RANK)
    return function.emitError("expected each ") << what << " to be a tensor of numbers of rank " << ALIGNED_MAX_RANK << " at most, got " << type;
  aligned_type result = {};
  result.dtype = *dtype;
  result.rank = tensor.getRank();
  for (auto [dim, size] : llvm::enumerate(tensor.getShape()))
    result.shape[dim] = ShapedType::isDynamic(size) ? ALIGNED_DYNAMIC : size;
  if (PlanesAttr planes = getPlanes(tensor)) {
    result.is_cache = 1;
    result.format.kind = static_cast<int32_t>(planes.getKind());
    result.format.role = static_cast<int32_t>(planes.getRole());
    result.format.element = *dtype == ALIGNED_DTYPE_F16 ? ALIGNED_ELEMENT_F16 : *dtype == ALIGNED_DTYPE_BF16 ? ALIGNED_ELEMENT_BF16 : ALIGNED_ELEMENT_F32;
    result.format.planes = planes.getNumPlanes();
    for (auto [plane, width] : llvm::enumerate(planes.getWidths()))
      result.format.width[plane] = width;
    result.resident = planes.getResident();
  }
  return result;
}

/// Caches that something is taken off (S2).
bool isKeyCache(const aligned_type &type) {
  return type.is_cache && type.format.kind == ALIGNED_FORMAT_FIXED && type.format.role == ALIGNED_ROLE_KEY;
}

/// `dense-up-to=auto` goes by this machine. `isas` are those of the machine that is compiled for.
LogicalResult parseOptions(Session &session, StringRef text, PipelineOptions &options, ArrayRef<StringRef> isas = hostIsas(), const llvm::Twine &machine = "this machine") {
  std::string why;
  llvm::raw_string_ostream os(why);
  if (failed(options.parseFromString(text, os)))
    return session.refuse(why.empty() ? ("expected options of aligned-pipeline, got '" + text + "'").str() : StringRef(why).rtrim().str()); // upstream prints what is no number
  if (options.target == "nvptx")
    return session.refuse("expected a target that is run here, cpu or reference, got 'nvptx', whose kernels aligned_compile_kernels() gives");
  if (parseIsa(options.isa) && !llvm::is_contained(isas, options.isa.getValue()))
    return session.refuse("expected an instruction set of " + machine + " (" + llvm::join(isas, ", ") + "), got '" + options.isa.getValue() + "'");
  if (options.denseUpTo == "auto" && options.costs.empty()) {
    const double *numbers = aligned_machine_costs(nullptr, nullptr);
    if (!numbers)
      return session.refuse(aligned_last_error());
    options.costs = llvm::ArrayRef(numbers, Costs::kNumbers);
  }
  return success();
}

/// What callers see of a function whose caches have their types: behind the phase `store`.
LogicalResult describe(ModuleOp module, func::FuncOp function, int64_t ownResults, aligned_module &compiled) {
  module.walk([&](Operation *op) {
    auto numbered = [&](auto step) { compiled.attentions = std::max<int32_t>(compiled.attentions, step.getAttentionId() + 1); };
    llvm::TypeSwitch<Operation *>(op).Case<AttentionOp>([&](auto) { ++compiled.attentions; }).Case<DecodeAttentionOp, AttendOp>(numbered);
  });
  // Behind the function's own results come probes, and behind these certificates.
  if (function.getNumResults() > ownResults)
    compiled.probes = llvm::count_if(function.front().getTerminator()->getOperands().drop_front(ownResults), [](Value value) {
      auto attention = value.getDefiningOp<AttentionOp>();
      return attention && value == attention.getResult();
    });
  for (Type type : function.getArgumentTypes()) {
    FailureOr<aligned_type> argument = describe(function, "argument", type);
    if (failed(argument))
      return failure();
    compiled.arguments.push_back(*argument);
    std::vector<float> &offset = compiled.keyOffsets.emplace_back();
    if (auto said = function.getArgAttrOfType<DenseElementsAttr>(compiled.arguments.size() - 1, kKeyOffsetName); said && isKeyCache(*argument))
      offset.assign(said.value_begin<float>(), said.value_end<float>());
  }
  for (Type type : function.getResultTypes()) {
    FailureOr<aligned_type> result = describe(function, "result", type);
    if (failed(result))
      return failure();
    compiled.results.push_back(*result);
  }
  return success();
}

//===-- On disk ------------------------------------------------------------===//
// Arrays one after the other, each behind its length.

class Writer {
public:
  template <typename T> void write(const std::vector<T> &items) {
    static_assert(std::is_trivially_copyable_v<T>);
    number(items.size());
    text.append(reinterpret_cast<const char *>(items.data()), items.size() * sizeof(T));
  }
  void write(const std::string &item) { write(std::vector<char>(item.begin(), item.end())); }
  void write(const Message &message) {
    number(message.severity);
    write(message.text);
    write(message.file);
    number(message.line);
    number(message.column);
  }
  template <typename T> void writeEach(const std::vector<T> &items) {
    number(items.size());
    for (const T &item : items)
      write(item);
  }
  void number(int64_t value) { text.append(reinterpret_cast<const char *>(&value), sizeof value); }
  std::string text;
};

/// Of an entry whose checksum holds: what was written can be read.
class Reader {
public:
  explicit Reader(StringRef text) : text(text) {}
  template <typename T> void read(std::vector<T> &items) {
    items.resize(number());
    memcpy(items.data(), take(items.size() * sizeof(T)), items.size() * sizeof(T));
  }
  void read(std::string &item) {
    int64_t size = number();
    item.assign(take(size), size);
  }
  void read(Message &message) {
    message.severity = static_cast<aligned_severity>(number());
    read(message.text);
    read(message.file);
    message.line = number();
    message.column = number();
  }
  template <typename T> void readEach(std::vector<T> &items) {
    items.resize(number());
    for (T &item : items)
      read(item);
  }
  int64_t number() {
    int64_t value;
    memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }

private:
  const char *take(size_t bytes) {
    const char *data = text.data();
    text = text.drop_front(bytes);
    return data;
  }
  StringRef text;
};

std::string serialize(const aligned_module &module, const std::vector<std::string> &objects) {
  Writer to;
  to.write(module.arguments);
  to.write(module.results);
  to.writeEach(module.keyOffsets);
  to.number(module.attentions);
  to.number(module.probes);
  to.number(module.denseUpTo);
  to.writeEach(module.remarks);
  to.writeEach(objects);
  return std::move(to.text);
}

std::vector<std::string> deserialize(StringRef text, aligned_module &module) {
  Reader from(text);
  from.read(module.arguments);
  from.read(module.results);
  from.readEach(module.keyOffsets);
  module.attentions = from.number();
  module.probes = from.number();
  module.denseUpTo = from.number();
  from.readEach(module.remarks);
  std::vector<std::string> objects;
  from.readEach(objects);
  return objects;
}

/// A budget's text is part of what is compiled.
std::string contentOf(const std::string &path) {
  if (path.empty())
    return "";
  auto file = llvm::MemoryBuffer::getFile(path);
  return file ? (*file)->getBuffer().str() : "";
}

} // namespace

/// From a text to the LLVM dialect; on the way `compiled` learns what callers see. C's name of the function, none where it was refused.
static FailureOr<std::string> lower(Session &session, ModuleOp module, PipelineOptions &options, const char *name, aligned_module &compiled) {
  // Caches get their types first: those are what callers see.
  auto run = [&](bool isBehindStore) {
    PassManager passes(&session.context);
    passes.enableVerifier(!isBehindStore); // what callers wrote; aligned-opt verifies after each pass
    buildPipeline(passes, options, isBehindStore);
    return passes.run(module);
  };
  const std::string last = options.to;
  llvm::StringMap<int64_t> ownResults;
  for (auto function : module.getOps<func::FuncOp>())
    ownResults[function.getSymName()] = function.getNumResults();
  options.to = "store";
  if (failed(run(false)))
    return failure();
  FailureOr<func::FuncOp> function = findFunction(module, name);
  if (failed(function) || failed(describe(module, *function, ownResults.lookup(function->getSymName()), compiled)))
    return failure();
  std::string symbol = ("_mlir_ciface_" + function->getSymName()).str();
  options.to = last;
  if (failed(run(true)))
    return failure();
  compiled.remarks = session.remarks;
  if (auto tokens = module->getAttrOfType<IntegerAttr>(kDenseUpToName))
    compiled.denseUpTo = tokens.getInt();
  return symbol;
}

aligned_module *aligned_module_compile(const char *source, const char *text, const char *name) {
  Session session;
  PipelineOptions options;
  if (failed(parseOptions(session, text ? text : "", options)))
    return session.fail();
  auto compiled = std::make_unique<aligned_module>();
  auto link = [&](const std::vector<std::string> &objects) -> aligned_module * {
    llvm::Expected<std::unique_ptr<Engine>> engine = Engine::link(objects, runtimeSymbols);
    if (!engine)
      return session.fail(engine.takeError());
    compiled->engine = std::move(*engine);
    compiled->remarkLines = linesOf(compiled->remarks);
    return compiled.release();
  };
  llvm::ArrayRef<double> numbers = *options.costs;
  StringRef costs(reinterpret_cast<const char *>(numbers.data()), numbers.size() * sizeof(double)); // a part of what is compiled
  ObjectCache cache({machineIdentity(), text ? text : "", costs, contentOf(options.budget), name ? name : "", reading().allowsUnregistered ? "unregistered" : "", reading().name, source});
  if (std::optional<std::string> entry = cache.load()) {
    const std::vector<std::string> objects = deserialize(*entry, *compiled);
    session.remarks = compiled->remarks;
    return link(objects);
  }

  OwningOpRef<ModuleOp> module = session.parse(source);
  FailureOr<std::string> symbol = module ? lower(session, *module, options, name, *compiled) : FailureOr<std::string>();
  if (failed(symbol))
    return session.fail();
  llvm::Expected<std::vector<std::string>> objects = compileObjects(*module, *symbol);
  if (!objects)
    return session.fail(objects.takeError());
  cache.store(serialize(*compiled, *objects));
  return link(*objects);
}

int aligned_compile_object(const char *source, const char *text, const char *name, char **llvmIR, char **object, int64_t *bytes) {
  Session session;
  PipelineOptions options;
  aligned_module unused;
  OwningOpRef<ModuleOp> module = succeeded(parseOptions(session, text ? text : "", options)) ? session.parse(source) : nullptr;
  FailureOr<std::string> symbol = module ? lower(session, *module, options, name, unused) : FailureOr<std::string>();
  if (failed(symbol)) {
    session.fail();
    return -1;
  }
  llvm::Expected<Code> code = compileWhole(*module, *symbol);
  if (!code) {
    session.fail(code.takeError());
    return -1;
  }
  *llvmIR = strdup(code->llvmIR.c_str());
  *bytes = code->object.size();
  *object = static_cast<char *>(malloc(*bytes));
  memcpy(*object, code->object.data(), *bytes);
  return 0;
}

int aligned_compile_ahead(const char *source, const char *text, const char *function, const char *name, const aligned_machine *machine, aligned_object *object) {
  Session session;
  auto fail = [&](auto... error) {
    session.fail(std::move(error)...);
    return -1;
  };
  llvm::Expected<AheadMachine> target = AheadMachine::find(*machine);
  if (!target)
    return fail(target.takeError());
  PipelineOptions options;
  if (failed(parseOptions(session, text ? text : "", options, target->isas(), target->name())))
    return fail();
  if (options.isa == "host")
    options.isa = target->isas().front().str();
  aligned_module compiled;
  OwningOpRef<ModuleOp> module = session.parse(source);
  FailureOr<std::string> symbol = module ? lower(session, *module, options, function, compiled) : FailureOr<std::string>();
  if (failed(symbol))
    return fail();
  const std::string called = name ? name : symbol->substr(strlen("_mlir_ciface_"));
  if (llvm::Error error = checkName(called))
    return fail(std::move(error));
  const Interface interface{compiled.arguments, compiled.results, compiled.keyOffsets, compiled.denseUpTo};
  llvm::Expected<Code> code = compileAhead(*module, *symbol, interface, *target, called);
  if (!code)
    return fail(code.takeError());
  *object = {strdup(called.c_str()), strdup(headerOf(interface, *target, called).c_str()), strdup(code->llvmIR.c_str()), static_cast<char *>(malloc(code->object.size())),
             static_cast<int64_t>(code->object.size())};
  memcpy(object->object, code->object.data(), code->object.size());
  return 0;
}

void aligned_object_free(aligned_object *object) {
  for (char *text : {object->name, object->header, object->llvm_ir, object->object})
    free(text);
  *object = {};
}

void aligned_module_destroy(aligned_module *module) { delete module; }

int32_t aligned_module_arguments(const aligned_module *module) { return module->arguments.size(); }
int32_t aligned_module_results(const aligned_module *module) { return module->results.size(); }

static int copyType(const std::vector<aligned_type> &types, int32_t index, const char *what, aligned_type *type) {
  if (index < 0 || index >= static_cast<int32_t>(types.size())) {
    aligned_set_last_error((llvm::Twine("expected ") + what + " 0 to " + llvm::Twine(int64_t(types.size()) - 1) + ", got " + llvm::Twine(index)).str().c_str());
    return -1;
  }
  *type = types[index];
  return 0;
}
int aligned_module_argument(const aligned_module *module, int32_t index, aligned_type *type) { return copyType(module->arguments, index, "argument", type); }
int aligned_module_result(const aligned_module *module, int32_t index, aligned_type *type) { return copyType(module->results, index, "result", type); }

const float *aligned_module_key_offset(const aligned_module *module, int32_t argument) {
  bool isSaid = argument >= 0 && argument < static_cast<int32_t>(module->keyOffsets.size()) && !module->keyOffsets[argument].empty();
  return isSaid ? module->keyOffsets[argument].data() : nullptr;
}

aligned_cache *aligned_module_create_cache(const aligned_module *module, int32_t argument, int64_t capacity) {
  if (argument < 0 || argument >= static_cast<int32_t>(module->arguments.size()) || !module->arguments[argument].is_cache) {
    aligned_set_last_error(("expected the index of an argument that is a cache, got " + llvm::Twine(argument)).str().c_str());
    return nullptr;
  }
  const aligned_type &type = module->arguments[argument];
  std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)> cache(aligned_cache_create(&type.format, type.shape[0], type.shape[1], type.shape[3], capacity),
                                                                         aligned_cache_destroy);
  const float *offset = aligned_module_key_offset(module, argument);
  const int64_t denseUpTo = type.format.kind == ALIGNED_FORMAT_FIXED && type.resident == type.format.planes ? module->denseUpTo : 0;
  if (!cache || aligned_cache_keep_dense(cache.get(), denseUpTo) || aligned_cache_drop_planes(cache.get(), type.resident) || (offset && aligned_cache_set_offset(cache.get(), offset)))
    return nullptr;
  return cache.release();
}

int64_t aligned_module_dense_up_to(const aligned_module *module) { return module->denseUpTo; }
int32_t aligned_module_attentions(const aligned_module *module) { return module->attentions; }
int32_t aligned_module_probes(const aligned_module *module) { return module->probes; }

double aligned_policy_tolerance(const char *policy) { return presetTolerance(policy); }

const char *aligned_module_remarks(const aligned_module *module) { return module->remarkLines.c_str(); }

//===----------------------------------------------------------------------===//
// Calls
//===----------------------------------------------------------------------===//

namespace {

/// A memref descriptor: allocated pointer, aligned pointer, offset, sizes, strides.
int64_t descriptorWords(int32_t rank) { return 3 + 2 * rank; }

int64_t elementCount(const aligned_type &type, const int64_t *shape) {
  int64_t count = 1;
  for (int32_t dim = 0; dim < type.rank; ++dim)
    count *= shape[dim];
  return count;
}

bool isContiguous(const aligned_type &type, const aligned_array &array) {
  int64_t stride = 1;
  for (int32_t dim = type.rank - 1; dim >= 0; --dim) {
    if (array.shape[dim] != 1 && array.strides[dim] != stride)
      return false;
    stride *= array.shape[dim];
  }
  return true;
}

void setContiguous(const aligned_type &type, aligned_array &array) {
  int64_t stride = 1;
  for (int32_t dim = type.rank - 1; dim >= 0; --dim) {
    array.strides[dim] = stride;
    stride *= array.shape[dim];
  }
}

/// A contiguous copy of any strided array.
void *compact(const aligned_type &type, const aligned_array &array) {
  int64_t width = byteWidth(type.dtype), count = elementCount(type, array.shape);
  char *copy = static_cast<char *>(malloc(std::max<int64_t>(1, count * width)));
  if (!copy)
    return nullptr;
  aligned_rt_copy(copy, array.data, width, type.rank, array.shape, array.strides);
  return copy;
}

std::string shapeText(int32_t rank, const int64_t *shape) {
  std::string text = "[";
  for (int32_t dim = 0; dim < rank; ++dim)
    text += (dim ? ", " : "") + (shape[dim] == ALIGNED_DYNAMIC ? std::string("?") : std::to_string(shape[dim]));
  return text + "]";
}

int refuseCall(const llvm::Twine &why) {
  aligned_set_last_error(why.str().c_str());
  return -1;
}

int checkArgument(int32_t number, const aligned_type &type, const aligned_value &value) {
  if (type.is_cache)
    return aligned_rt_check_cache(type.shape, &type.format, type.resident, value.cache, ("argument " + std::to_string(number)).c_str());
  for (int32_t dim = 0; dim < type.rank; ++dim)
    if (value.array.shape[dim] < 0 || (type.shape[dim] != ALIGNED_DYNAMIC && type.shape[dim] != value.array.shape[dim]))
      return refuseCall("expected shape " + llvm::Twine(shapeText(type.rank, type.shape)) + " of argument " + llvm::Twine(number) + ", got " +
                        shapeText(type.rank, value.array.shape));
  if (!value.array.data && elementCount(type, value.array.shape))
    return refuseCall("expected data for argument " + llvm::Twine(number) + ", got a null pointer");
  return 0;
}

/// Memory that lives as long as the call.
struct Copies {
  ~Copies() {
    for (void *copy : memory)
      free(copy);
  }
  SmallVector<void *> memory;
};

} // namespace

int aligned_module_call(const aligned_module *module, aligned_value *arguments, aligned_value *results) {
  SmallVector<const aligned_cache *, 8> caches; // null for arrays
  for (auto [number, type] : llvm::enumerate(module->arguments)) {
    if (int failed = checkArgument(number, type, arguments[number]))
      return failed;
    caches.push_back(type.is_cache ? arguments[number].cache : nullptr);
  }
  if (int failed = aligned_rt_check_lengths(caches.data(), caches.size()))
    return failed;

  // One descriptor per dense argument, contiguous as the compiled function expects; the results' lie one behind the other.
  Copies copies;
  SmallVector<SmallVector<int64_t, 11>, 4> descriptors; // room for what attention takes
  SmallVector<void *, 8> pointers; // what is passed: the address of a descriptor, or a cache
  int64_t resultWords = 0;
  for (const aligned_type &type : module->results)
    resultWords += type.is_cache ? 1 : descriptorWords(type.rank);
  SmallVector<int64_t, 11> resultMemory(resultWords, 0);
  // One cache alone is returned as it is; dense arrays and several results are written behind a pointer that goes ahead of the arguments.
  bool returned = module->results.size() == 1 && module->results.front().is_cache;
  if (resultWords && !returned)
    pointers.push_back(resultMemory.data());
  descriptors.reserve(module->arguments.size());
  for (auto [number, type] : llvm::enumerate(module->arguments)) {
    if (type.is_cache) {
      pointers.push_back(arguments[number].cache);
      continue;
    }
    aligned_array array = arguments[number].array;
    if (!isContiguous(type, array)) {
      array.data = compact(type, array);
      if (!array.data)
        return refuseCall("expected memory for a contiguous copy of argument " + llvm::Twine(number) + ", got none");
      copies.memory.push_back(array.data);
    }
    setContiguous(type, array);
    SmallVector<int64_t, 11> &descriptor = descriptors.emplace_back();
    descriptor.append({reinterpret_cast<int64_t>(array.data), reinterpret_cast<int64_t>(array.data), 0});
    descriptor.append(array.shape, array.shape + type.rank);
    descriptor.append(array.strides, array.strides + type.rank);
    pointers.push_back(descriptor.data());
  }
  SmallVector<void *, 8> packed;
  for (void *&pointer : pointers)
    packed.push_back(&pointer);
  if (returned)
    packed.push_back(resultMemory.data());

  if (int failed = aligned_rt_run("the model", module->engine->entry(), packed.data()))
    return failed;

  // Each dense result must be memory of its own: not an argument's, not another result's, not a constant's.
  SmallVector<void *, 8> taken;
  for (const auto &descriptor : descriptors)
    taken.push_back(reinterpret_cast<void *>(descriptor[0]));
  constexpr int64_t kConstantMemory = 0xdeadbeef; // what upstream puts into the descriptor of a global
  const int64_t *word = resultMemory.data();
  for (auto [number, type] : llvm::enumerate(module->results)) {
    if (type.is_cache) {
      results[number].cache = reinterpret_cast<aligned_cache *>(*word++);
      continue;
    }
    aligned_array array = {};
    void *owner = reinterpret_cast<void *>(word[0]);
    array.data = reinterpret_cast<char *>(word[1]) + word[2] * byteWidth(type.dtype);
    std::copy_n(word + 3, type.rank, array.shape);
    std::copy_n(word + 3 + type.rank, type.rank, array.strides);
    array.owner = owner;
    if (word[0] == kConstantMemory || llvm::is_contained(taken, owner)) {
      array.data = array.owner = compact(type, array);
      setContiguous(type, array);
    }
    taken.push_back(owner);
    results[number].array = array;
    word += descriptorWords(type.rank);
  }
  return 0;
}

void aligned_array_free(aligned_array *array) {
  free(array->owner);
  array->owner = array->data = nullptr;
}
