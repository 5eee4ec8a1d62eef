// See the header.
#include "Ahead.h"
#include "CallRuntime.h"

#include "aligned/Conversion/AlignedToCPU/Isa.h"
#include "aligned/Runtime/Call.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/IR/IRBuilder.h"
#include "llvm/IR/InstIterator.h"
#include "llvm/MC/MCSubtargetInfo.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Target/TargetMachine.h"
#include "llvm/Transforms/IPO/Internalize.h"
#include "llvm/Transforms/Utils/ModuleUtils.h"

#include <mutex>

using namespace llvm;
using namespace aligned;

//===----------------------------------------------------------------------===//
// Machines
//===----------------------------------------------------------------------===//

/// What LLVM would print and ignore.
static Error checkNames(const Target &target, const Triple &triple, StringRef cpu, ArrayRef<std::string> features) {
  std::unique_ptr<MCSubtargetInfo> known(target.createMCSubtargetInfo(triple, "", ""));
  if (!cpu.empty() && !known->isCPUStringValid(cpu))
    return createStringError("expected a processor of " + triple.getArchName() + " that LLVM knows, got '" + cpu + "'");
  for (StringRef feature : features) {
    const bool isSigned = feature.starts_with("+") || feature.starts_with("-");
    if (!isSigned || none_of(known->getAllProcessorFeatures(), [&](const SubtargetFeatureKV &entry) { return feature.drop_front() == entry.Key; }))
      return createStringError("expected features of " + triple.getArchName() + " such as +name or -name, got '" + feature + "'");
  }
  return Error::success();
}

Expected<AheadMachine> AheadMachine::find(const aligned_machine &machine) {
  static std::once_flag once;
  std::call_once(once, [] {
    InitializeAllTargetInfos();
    InitializeAllTargets();
    InitializeAllTargetMCs();
    InitializeAllAsmPrinters();
  });
  auto textOf = [](const char *text) { return StringRef(text ? text : ""); };
  Expected<orc::JITTargetMachineBuilder> builder = orc::JITTargetMachineBuilder::detectHost();
  if (!builder)
    return builder.takeError();
  const StringRef cpu = textOf(machine.cpu);
  const bool isNamed = !textOf(machine.triple).empty();
  if (isNamed || !cpu.empty()) { // no more is known of it than is said
    Triple triple = isNamed ? Triple(Triple::normalize(machine.triple)) : builder->getTargetTriple();
    std::string why;
    if (!TargetRegistry::lookupTarget(triple, why))
      return createStringError("expected a triple of a machine that LLVM knows, got '" + textOf(machine.triple) + "'");
    if (!triple.isArch64Bit() || !triple.isLittleEndian() || !triple.isOSBinFormatELF())
      return createStringError("expected a triple of a machine of 64 bits, the lowest byte first, with ELF files, got '" + textOf(machine.triple) + "'");
    builder = orc::JITTargetMachineBuilder(triple);
    builder->setCPU(cpu.str());
  }
  std::vector<std::string> features;
  for (StringRef feature : split(textOf(machine.features), ','))
    if (!feature.trim().empty())
      features.push_back(feature.trim().str());
  const Triple &triple = builder->getTargetTriple();
  std::string why;
  if (Error error = checkNames(*TargetRegistry::lookupTarget(triple, why), triple, cpu, features))
    return std::move(error);
  builder->addFeatures(features);
  setCodeOptions(*builder);

  AheadMachine found(std::move(*builder));
  Expected<std::unique_ptr<TargetMachine>> target = found.create();
  if (!target)
    return target.takeError();
  found.sets = isasOf(triple.getArch(), [&](StringRef feature) { return (*target)->getMCSubtargetInfo()->checkFeatures(("+" + feature).str()); });
  return found;
}

Expected<std::unique_ptr<TargetMachine>> AheadMachine::create() const { return orc::JITTargetMachineBuilder(builder).createTargetMachine(); }

std::string AheadMachine::name() const {
  const std::string &cpu = builder.getCPU();
  return builder.getTargetTriple().str() + (cpu.empty() ? "" : ", " + cpu);
}

//===----------------------------------------------------------------------===//
// Objects
//===----------------------------------------------------------------------===//

static aligned_rt_type typeOf(const aligned_type &type) {
  aligned_rt_type result = {};
  result.is_cache = type.is_cache;
  result.bytes = byteWidth(type.dtype);
  result.rank = type.rank;
  result.resident = type.resident;
  static_assert(ALIGNED_RT_MAX_RANK == ALIGNED_MAX_RANK);
  std::copy_n(type.shape, type.rank, result.shape);
  result.format = type.format;
  return result;
}

static int64_t openSizes(const aligned_type &type) { return type.is_cache ? 0 : count(ArrayRef(type.shape, type.rank), int64_t(ALIGNED_DYNAMIC)); }

/// int name(...): its parameters as words, and aligned_rt_call.
static void addFunction(Module &module, const Interface &interface, StringRef name) {
  IRBuilder<> b(module.getContext());
  Type *pointer = b.getPtrTy(), *i64 = b.getInt64Ty(), *i32 = b.getInt32Ty();
  SmallVector<Type *> parameters;
  std::vector<aligned_rt_type> types;
  for (const aligned_type &argument : interface.arguments) {
    parameters.push_back(pointer);
    parameters.append(openSizes(argument), i64);
    types.push_back(typeOf(argument));
  }
  for (const aligned_type &result : interface.results) {
    parameters.append(openSizes(result) ? 2 : 1, pointer);
    types.push_back(typeOf(result));
  }
  auto *function = Function::Create(FunctionType::get(i32, parameters, false), GlobalValue::ExternalLinkage, name, module);
  b.SetInsertPoint(BasicBlock::Create(module.getContext(), "", function));
  AllocaInst *words = b.CreateAlloca(ArrayType::get(i64, parameters.size()));
  for (auto [number, parameter] : enumerate(function->args()))
    b.CreateStore(&parameter, b.CreateConstGEP1_64(i64, words, number));
  Constant *bytes = ConstantDataArray::getRaw(StringRef(reinterpret_cast<const char *>(types.data()), types.size() * sizeof(aligned_rt_type)),
                                              types.size() * sizeof(aligned_rt_type), b.getInt8Ty());
  auto *table = new GlobalVariable(module, bytes->getType(), /*isConstant=*/true, GlobalValue::InternalLinkage, bytes, "types");
  table->setAlignment(Align(alignof(aligned_rt_type)));
  FunctionCallee call = module.getOrInsertFunction("aligned_rt_call", FunctionType::get(i32, {pointer, pointer, i32, i32, pointer, pointer}, false));
  b.CreateRet(b.CreateCall(call, {b.CreateGlobalString(name), table, b.getInt32(interface.arguments.size()), b.getInt32(interface.results.size()),
                                  module.getFunction(kEntry), words}));
}

/// Code is selected with calls by these names, too late to replace them: so the object has functions of them.
static void addConversions(Module &module) {
  auto isBFloat = [](const Instruction &instruction) { return instruction.getType()->getScalarType()->isBFloatTy(); };
  if (none_of(module, [&](Function &function) { return any_of(instructions(function), isBFloat); }))
    return;
  IRBuilder<> b(module.getContext());
  for (auto [called, name, from] : {std::tuple("__truncsfbf2", "aligned_rt_truncsfbf2", b.getFloatTy()), std::tuple("__truncdfbf2", "aligned_rt_truncdfbf2", b.getDoubleTy())}) {
    auto *type = FunctionType::get(b.getFloatTy(), {from}, false);
    auto *function = Function::Create(type, GlobalValue::InternalLinkage, called, module);
    b.SetInsertPoint(BasicBlock::Create(module.getContext(), "", function));
    b.CreateRet(b.CreateCall(module.getOrInsertFunction(name, type), {function->getArg(0)}));
  }
}

/// The version of the runtime, in a form that whoever links or loads the object looks up.
static void addVersion(Module &module) {
  Type *pointer = PointerType::getUnqual(module.getContext());
  Constant *version = module.getOrInsertGlobal(("aligned_rt_abi_" + Twine(ALIGNED_RT_ABI)).str(), Type::getInt32Ty(module.getContext()));
  auto *reference = new GlobalVariable(module, pointer, /*isConstant=*/true, GlobalValue::InternalLinkage, version, "abi");
  appendToUsed(module, reference);
}

Expected<Code> aligned::compileAhead(mlir::ModuleOp module, StringRef function, const Interface &interface, const AheadMachine &machine, StringRef name) {
  Expected<std::unique_ptr<TargetMachine>> target = machine.create();
  if (!target)
    return target.takeError();
  LLVMContext context;
  Expected<std::unique_ptr<Module>> whole = translateWhole(module, function, **target, context);
  if (!whole)
    return whole.takeError();
  for (const RuntimeFunction &function : runtimeFunctions())
    if (Function *called = (*whole)->getFunction(function.called); called && called->isDeclaration())
      called->setName(function.name);
  for (GlobalValue &value : (*whole)->global_values()) // the model's functions, one of which may be called `name`
    if (!value.isDeclaration() && value.hasName() && value.getName() != kEntry && !value.getName().starts_with("llvm."))
      value.setName("model." + value.getName());
  addFunction(**whole, interface, name);
  addConversions(**whole);
  addVersion(**whole);
  internalizeModule(**whole, [&](const GlobalValue &value) { return value.getName() == name; });
  return codeOf(**whole, **target);
}
