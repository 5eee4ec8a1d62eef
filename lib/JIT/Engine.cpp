// See the header.
#include "Engine.h"

#include "aligned/Conversion/AlignedToCPU/Isa.h"
#include "aligned/Conversion/AlignedToCPU/Kernels.h"
#include "aligned/JIT/Module.h"
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Target/LLVMIR/Export.h"
#include "llvm/Bitcode/BitcodeReader.h"
#include "llvm/Bitcode/BitcodeWriter.h"
#include "llvm/ExecutionEngine/Orc/CompileUtils.h"
#include "llvm/ExecutionEngine/Orc/LLJIT.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/TargetParser/Host.h"
#include "llvm/Transforms/Utils/Cloning.h"

#include <atomic>
#include <dlfcn.h>
#include <thread>

using namespace llvm;
using namespace aligned;

namespace {

constexpr StringRef kEntry = "aligned_entry";

/// What finds something in kernels: -O3 takes three times as long over them, and they run as fast.
constexpr StringRef kKernelPasses = "function(sroa,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,loop-mssa(loop-rotate,licm),loop-unroll<O3>,gvn,dse,instcombine<no-verify-fixpoint>,simplifycfg)";

Expected<orc::JITTargetMachineBuilder> hostMachine() {
  Expected<orc::JITTargetMachineBuilder> machine = orc::JITTargetMachineBuilder::detectHost();
  if (!machine)
    return machine;
  machine->setCodeGenOptLevel(CodeGenOptLevel::Default);
  machine->setRelocationModel(Reloc::PIC_);
  machine->setCodeModel(CodeModel::Small);
  machine->getOptions().AllowFPOpFusion = FPOpFusion::Fast;
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

/// The functions that `isMine` takes, with the constants, as bitcode.
SmallString<0> partOf(const Module &module, function_ref<bool(const Function &)> isMine, bool withVariables) {
  ValueToValueMapTy map;
  std::unique_ptr<Module> part = CloneModule(module, map, [&](const GlobalValue *global) {
    if (auto *function = dyn_cast<Function>(global))
      return isMine(*function);
    auto *variable = dyn_cast<GlobalVariable>(global);
    return withVariables || (variable && variable->isConstant());
  });
  for (Function &function : make_early_inc_range(*part))
    if (function.isDeclaration() && function.use_empty())
      function.eraseFromParent();
  for (GlobalVariable &variable : make_early_inc_range(part->globals()))
    if (variable.hasLocalLinkage() && variable.use_empty())
      variable.eraseFromParent();
  SmallString<0> bitcode;
  raw_svector_ostream os(bitcode);
  WriteBitcodeToFile(*part, os);
  return bitcode;
}

void optimise(Module &module, TargetMachine *machine, bool isKernel) {
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
  if (isKernel)
    cantFail(builder.parsePassPipeline(passes, kKernelPasses));
  else
    passes = builder.buildPerModuleDefaultPipeline(OptimizationLevel::O3);
  passes.run(module, modules);
}

Expected<std::string> compilePart(StringRef bitcode, bool isKernel, orc::JITTargetMachineBuilder builder) {
  LLVMContext context;
  Expected<std::unique_ptr<Module>> module = parseBitcodeFile(MemoryBufferRef(bitcode, "part"), context);
  if (!module)
    return module.takeError();
  Expected<std::unique_ptr<TargetMachine>> machine = builder.createTargetMachine();
  if (!machine)
    return machine.takeError();
  optimise(**module, machine->get(), isKernel);
  Expected<std::unique_ptr<MemoryBuffer>> object = orc::SimpleCompiler(**machine)(**module);
  if (!object)
    return object.takeError();
  return (*object)->getBuffer().str();
}

} // namespace

Expected<std::vector<std::string>> aligned::compileObjects(mlir::ModuleOp source, StringRef function) {
  LLVMContext context;
  std::unique_ptr<Module> module = mlir::translateModuleToLLVMIR(source, context);
  if (!module)
    return createStringError("expected a module that LLVM can translate");
  Expected<orc::JITTargetMachineBuilder> builder = hostMachine();
  if (!builder)
    return builder.takeError();
  Expected<std::unique_ptr<TargetMachine>> machine = builder->createTargetMachine();
  if (!machine)
    return machine.takeError();
  module->setDataLayout((*machine)->createDataLayout());
  module->setTargetTriple((*machine)->getTargetTriple());
  if (Error error = addEntry(*module, function))
    return std::move(error);

  auto isKernel = [](const Function &f) { return !f.isDeclaration() && f.hasFnAttribute(kKernelAttribute); };
  SmallVector<Function *> kernels;
  for (Function &f : *module)
    if (isKernel(f)) {
      f.setLinkage(GlobalValue::ExternalLinkage); // others' parts call it
      kernels.push_back(&f);
    }
  std::vector<SmallString<0>> parts;
  for (Function *kernel : kernels)
    parts.push_back(partOf(*module, [&](const Function &f) { return &f == kernel; }, false));
  parts.push_back(partOf(*module, [&](const Function &f) { return !isKernel(f); }, true));

  // The largest first, each worker one after the other.
  std::vector<size_t> order(parts.size());
  std::iota(order.begin(), order.end(), 0);
  sort(order, [&](size_t a, size_t b) { return parts[a].size() > parts[b].size(); });
  std::vector<std::string> objects(parts.size()), errors(parts.size());
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t i; (i = next++) < order.size();) {
      const size_t part = order[i];
      Expected<std::string> object = compilePart(parts[part], part < kernels.size(), *builder);
      if (object)
        objects[part] = std::move(*object);
      else
        errors[part] = toString(object.takeError());
    }
  };
  std::vector<std::thread> helpers;
  const size_t workers = std::min<size_t>(parts.size(), std::max(1u, std::thread::hardware_concurrency()));
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
