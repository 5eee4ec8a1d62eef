// See the header.
#include "Engine.h"

#include "aligned/Conversion/AlignedToCPU/Isa.h"
#include "aligned/Conversion/AlignedToCPU/Kernels.h"
#include "aligned/JIT/Module.h"
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "llvm/ExecutionEngine/Orc/CompileUtils.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/Linker/Linker.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/TargetParser/Host.h"

#include <atomic>
#include <dlfcn.h>
#include <thread>

using namespace llvm;
using namespace aligned;

namespace {

/// Kernels are written as they are to be, with vectors and unrolled loops. What is left to find are addresses behind descriptors, and what is computed twice. Unrolling,
/// GVN and LICM take three times as long, and as much again in instruction selection, and kernels run no faster for it.
constexpr StringRef kKernelPasses = "function(instcombine<no-verify-fixpoint>,sroa,early-cse<memssa>,simplifycfg)";
/// But for those that are one loop over tokens: over float planes they run slower by a twentieth without.
constexpr StringRef kShortLoopsPasses = "function(sroa,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,loop-mssa(loop-rotate,licm),loop-unroll<O3>,gvn,dse,"
                                        "instcombine<no-verify-fixpoint>,simplifycfg)";
/// What surrounds them may be a model, with the loops that linalg becomes: what is found there of -O3 is mostly this.
constexpr StringRef kModelPasses = "globaldce,function(sroa,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,loop-mssa(loop-rotate,licm),loop(loop-idiom,indvars),"
                                   "loop-vectorize,loop-unroll<O3>,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg)";

Expected<orc::JITTargetMachineBuilder> hostMachine() {
  Expected<orc::JITTargetMachineBuilder> machine = orc::JITTargetMachineBuilder::detectHost();
  if (!machine)
    return machine;
  setCodeOptions(*machine);
  return machine;
}

/// void entry(void **values): calls `function` with what the values are, and stores what it returns behind them.
Error addEntry(Module &module, StringRef name) {
  Function *function = module.getFunction(name);
  if (!function)
    return createStringError("expected a function '" + name + "'");
  IRBuilder<> b(module.getContext());
  auto *entry = Function::Create(FunctionType::get(b.getVoidTy(), b.getPtrTy(), false), GlobalValue::ExternalLinkage, kEntry, module);
  b.SetInsertPoint(BasicBlock::Create(module.getContext(), "", entry));
  auto slot = [&](unsigned number) { return b.CreateLoad(b.getPtrTy(), b.CreateConstGEP1_64(b.getPtrTy(), entry->getArg(0), number)); };
  SmallVector<Value *> arguments;
  for (auto [number, argument] : enumerate(function->args()))
    arguments.push_back(b.CreateLoad(argument.getType(), slot(number)));
  Value *result = b.CreateCall(function, arguments);
  if (!result->getType()->isVoidTy())
    b.CreateStore(result, slot(arguments.size()));
  b.CreateRetVoid();
  return Error::success();
}

/// A module of `function` alone, with what it refers to: constants, and declarations of all else. A declaration stays in its place.
mlir::OwningOpRef<mlir::ModuleOp> takeOut(mlir::LLVM::LLVMFuncOp function, mlir::SymbolTable &symbols) {
  mlir::OwningOpRef<mlir::ModuleOp> part = mlir::ModuleOp::create(function.getLoc());
  auto b = mlir::OpBuilder::atBlockEnd(part->getBody());
  DenseSet<mlir::Operation *> seen;
  std::optional<mlir::SymbolTable::UseRange> uses = mlir::SymbolTable::getSymbolUses(function);
  for (const mlir::SymbolTable::SymbolUse &use : *uses)
    if (mlir::Operation *symbol = symbols.lookup(use.getSymbolRef().getRootReference()); seen.insert(symbol).second) {
      if (isa<mlir::LLVM::LLVMFuncOp>(symbol))
        b.insert(symbol->cloneWithoutRegions());
      else
        b.clone(*symbol);
    }
  mlir::OpBuilder(function).insert(function->cloneWithoutRegions());
  function->moveBefore(part->getBody(), part->getBody()->end());
  return part;
}

bool isKernel(mlir::LLVM::LLVMFuncOp function) {
  mlir::ArrayAttr attributes = function.getPassthroughAttr();
  return !function.isExternal() && attributes && is_contained(attributes.getAsValueRange<mlir::StringAttr>(), kKernelAttribute);
}

StringRef passesFor(const Module &module) {
  auto has = [&](StringRef attribute) { return any_of(module, [&](const Function &f) { return !f.isDeclaration() && f.hasFnAttribute(attribute); }); };
  return has(kShortLoopsAttribute) ? kShortLoopsPasses : has(kKernelAttribute) ? kKernelPasses : kModelPasses;
}

void optimise(Module &module, TargetMachine *machine) {
  LoopAnalysisManager loops;
  FunctionAnalysisManager functions;
  CGSCCAnalysisManager graphs;
  ModuleAnalysisManager modules;
  PassBuilder builder(machine);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(graphs);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, graphs, modules);
  ModulePassManager passes;
  cantFail(builder.parsePassPipeline(passes, passesFor(module)));
  passes.run(module, modules);
}

size_t opsOf(mlir::ModuleOp module) {
  size_t count = 0;
  module.walk([&](mlir::Operation *) { ++count; });
  return count;
}

/// One module in LLVM's IR as it is compiled, with the entry if it has `entry`.
Expected<std::unique_ptr<Module>> translate(mlir::ModuleOp part, StringRef entry, TargetMachine &machine, LLVMContext &context) {
  std::unique_ptr<Module> module = mlir::translateModuleToLLVMIR(part, context);
  if (!module)
    return createStringError("expected a module that LLVM can translate");
  module->setDataLayout(machine.createDataLayout());
  module->setTargetTriple(machine.getTargetTriple());
  if (!entry.empty())
    if (Error error = addEntry(*module, entry))
      return std::move(error);
  optimise(*module, &machine);
  return module;
}

Expected<std::string> objectOf(Module &module, TargetMachine &machine) {
  Expected<std::unique_ptr<MemoryBuffer>> object = orc::SimpleCompiler(machine)(module);
  if (!object)
    return object.takeError();
  return (*object)->getBuffer().str();
}

Expected<std::string> compilePart(mlir::ModuleOp part, StringRef entry, orc::JITTargetMachineBuilder builder) {
  LLVMContext context;
  Expected<std::unique_ptr<TargetMachine>> machine = builder.createTargetMachine();
  if (!machine)
    return machine.takeError();
  Expected<std::unique_ptr<Module>> module = translate(part, entry, **machine, context);
  if (!module)
    return module.takeError();
  return objectOf(**module, **machine);
}

/// Takes each kernel out of a module.
std::vector<mlir::OwningOpRef<mlir::ModuleOp>> takeOutKernels(mlir::ModuleOp module) {
  mlir::SymbolTable symbols(module);
  std::vector<mlir::OwningOpRef<mlir::ModuleOp>> kernels;
  for (auto f : make_early_inc_range(module.getOps<mlir::LLVM::LLVMFuncOp>()))
    if (isKernel(f))
      kernels.push_back(takeOut(f, symbols));
  return kernels;
}

} // namespace

void aligned::setCodeOptions(orc::JITTargetMachineBuilder &machine) {
  machine.setCodeGenOptLevel(CodeGenOptLevel::Default);
  machine.setRelocationModel(Reloc::PIC_);
  machine.setCodeModel(CodeModel::Small);
  machine.getOptions().AllowFPOpFusion = FPOpFusion::Fast;
}

Expected<Code> aligned::codeOf(Module &module, TargetMachine &machine) {
  Code code;
  raw_string_ostream(code.llvmIR) << module; // as it is compiled
  Expected<std::string> object = objectOf(module, machine);
  if (!object)
    return object.takeError();
  code.object = std::move(*object);
  return code;
}

Expected<std::unique_ptr<Module>> aligned::translateWhole(mlir::ModuleOp module, StringRef function, TargetMachine &machine, LLVMContext &context) {
  const std::vector<mlir::OwningOpRef<mlir::ModuleOp>> kernels = takeOutKernels(module);
  Expected<std::unique_ptr<Module>> whole = translate(module, function, machine, context);
  if (!whole)
    return whole;
  for (const mlir::OwningOpRef<mlir::ModuleOp> &kernel : kernels) {
    Expected<std::unique_ptr<Module>> part = translate(*kernel, "", machine, context);
    if (!part)
      return part;
    if (Linker::linkModules(**whole, std::move(*part)))
      return createStringError("expected parts that LLVM can link");
  }
  return whole;
}

Expected<Code> aligned::compileWhole(mlir::ModuleOp module, StringRef function) {
  Expected<orc::JITTargetMachineBuilder> builder = hostMachine();
  if (!builder)
    return builder.takeError();
  Expected<std::unique_ptr<TargetMachine>> machine = builder->createTargetMachine();
  if (!machine)
    return machine.takeError();
  LLVMContext context;
  Expected<std::unique_ptr<Module>> whole = translateWhole(module, function, **machine, context);
  if (!whole)
    return whole.takeError();
  return codeOf(**whole, **machine);
}

Expected<std::vector<std::string>> aligned::compileObjects(mlir::ModuleOp module, StringRef function) {
  Expected<orc::JITTargetMachineBuilder> builder = hostMachine();
  if (!builder)
    return builder.takeError();
  const std::vector<mlir::OwningOpRef<mlir::ModuleOp>> kernels = takeOutKernels(module);

  // The largest first, each worker one after the other.
  std::vector<std::pair<size_t, mlir::ModuleOp>> parts{{opsOf(module), module}};
  for (const mlir::OwningOpRef<mlir::ModuleOp> &kernel : kernels)
    parts.emplace_back(opsOf(*kernel), *kernel);
  sort(parts, [](const auto &a, const auto &b) { return a.first > b.first; });
  std::vector<std::string> objects(parts.size()), errors(parts.size());
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t i; (i = next++) < parts.size();) {
      mlir::ModuleOp part = parts[i].second;
      Expected<std::string> object = compilePart(part, part == module ? function : "", *builder);
      if (object)
        objects[i] = std::move(*object);
      else
        errors[i] = toString(object.takeError());
    }
  };
  std::vector<std::thread> helpers;
  const size_t workers = std::min<size_t>(parts.size(), std::max(1u, std::thread::hardware_concurrency()));
  module.getContext()->enableMultithreading();
  for (size_t i = 1; i < workers; ++i)
    helpers.emplace_back(work);
  work();
  for (std::thread &helper : helpers)
    helper.join();
  for (const std::string &error : errors)
    if (!error.empty())
      return createStringError(error);
  return objects;
}

static std::string describeMachine() {
  std::string text = (LLVM_VERSION_STRING + Twine(" ") + sys::getHostCPUName()).str();
  std::vector<std::string> features;
  for (const auto &feature : sys::getHostCPUFeatures())
    if (feature.second)
      features.push_back(feature.first().str());
  sort(features);
  for (const std::string &feature : features)
    text += "+" + feature;
  // A library that was built anew is another compiler.
  for (void *symbol : {reinterpret_cast<void *>(&hostIsas), reinterpret_cast<void *>(&aligned_module_compile), reinterpret_cast<void *>(&aligned_cache_create)}) {
    Dl_info library;
    sys::fs::file_status status;
    if (dladdr(symbol, &library) && !sys::fs::status(library.dli_fname, status))
      text += " " + std::to_string(status.getSize()) + "@" + std::to_string(status.getLastModificationTime().time_since_epoch().count());
  }
  return text;
}

const std::string &aligned::machineIdentity() {
  static const std::string identity = describeMachine();
  return identity;
}

Engine::Engine(std::unique_ptr<orc::LLJIT> jit, Entry function) : jit(std::move(jit)), function(function) {}
Engine::~Engine() = default;

Expected<std::unique_ptr<Engine>> Engine::link(ArrayRef<std::string> objects, Symbols runtime) {
  Expected<orc::JITTargetMachineBuilder> machine = hostMachine();
  if (!machine)
    return machine.takeError();
  Expected<std::unique_ptr<orc::LLJIT>> jit = orc::LLJITBuilder().setJITTargetMachineBuilder(std::move(*machine)).create();
  if (!jit)
    return jit.takeError();
  orc::JITDylib &library = (*jit)->getMainJITDylib();
  orc::MangleAndInterner intern(library.getExecutionSession(), (*jit)->getDataLayout());
  if (Error error = library.define(orc::absoluteSymbols(runtime(intern))))
    return std::move(error);
  for (const std::string &object : objects)
    if (Error error = (*jit)->addObjectFile(MemoryBuffer::getMemBufferCopy(object)))
      return std::move(error);
  Expected<orc::ExecutorAddr> entry = (*jit)->lookup(kEntry);
  if (!entry)
    return entry.takeError();
  return std::unique_ptr<Engine>(new Engine(std::move(*jit), entry->toPtr<Entry>()));
}
