// Machine code of a module in the LLVM dialect.
//
//   split       each kernel (a function with the attribute kKernelAttribute) into a module by itself; what is left calls it. Constants go to all who use them
//   translate   to LLVM's IR, each part in a context of its own, one beside the other; what is left, with an entry that takes the arguments' addresses in one array
//   compile     by the few passes that find something: kernels are written as they are to be, with vectors and unrolled loops, and what surrounds them may be a model
//   link        the parts' objects, which may come from a cache (ObjectCache.h), with the runtime
#ifndef ALIGNED_LIB_JIT_ENGINE_H
#define ALIGNED_LIB_JIT_ENGINE_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ExecutionEngine/Orc/Core.h"
#include "llvm/ExecutionEngine/Orc/CoreContainers.h"
#include "llvm/ExecutionEngine/Orc/Mangling.h"
#include "llvm/Support/Error.h"

namespace llvm {
class LLVMContext;
class Module;
class TargetMachine;
} // namespace llvm
namespace llvm::orc {
class JITTargetMachineBuilder;
class LLJIT;
} // namespace llvm::orc

namespace aligned {

/// Object files for this machine. `function` is C's name of the one that is called.
llvm::Expected<std::vector<std::string>> compileObjects(mlir::ModuleOp module, llvm::StringRef function);

/// The same code in one piece, to be read or linked elsewhere.
struct Code {
  std::string llvmIR, object;
};
llvm::Expected<Code> compileWhole(mlir::ModuleOp module, llvm::StringRef function);

/// What these are made of, for any machine. The entry is the function kEntry.
constexpr llvm::StringLiteral kEntry = "aligned_entry";
void setCodeOptions(llvm::orc::JITTargetMachineBuilder &machine);
llvm::Expected<std::unique_ptr<llvm::Module>> translateWhole(mlir::ModuleOp module, llvm::StringRef function, llvm::TargetMachine &machine, llvm::LLVMContext &context);
llvm::Expected<Code> codeOf(llvm::Module &module, llvm::TargetMachine &machine);

/// What compiled code depends on besides its source: the processor and its features, LLVM, and the compiler's own libraries.
const std::string &machineIdentity();

class Engine {
public:
  using Symbols = llvm::function_ref<llvm::orc::SymbolMap(llvm::orc::MangleAndInterner)>;
  /// Called with the addresses of the arguments, and behind them of the result where the function returns one.
  using Entry = void (*)(void **);

  static llvm::Expected<std::unique_ptr<Engine>> link(llvm::ArrayRef<std::string> objects, Symbols runtime);
  ~Engine();

  Entry entry() const { return function; }

private:
  Engine(std::unique_ptr<llvm::orc::LLJIT> jit, Entry function);

  std::unique_ptr<llvm::orc::LLJIT> jit;
  Entry function;
};

} // namespace aligned

#endif // ALIGNED_LIB_JIT_ENGINE_H
