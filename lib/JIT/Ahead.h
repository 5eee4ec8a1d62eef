// Object files for programs in C (docs/Ahead.md).
//
//   machine   this one, or one that a triple names, with the instruction sets that kernels may take
//   object    the model's code with one function that is seen from outside, and calls into lib/Runtime instead of the functions that the JIT gives to compiled code
//   header    that function in C, and how to make its caches
#ifndef ALIGNED_LIB_JIT_AHEAD_H
#define ALIGNED_LIB_JIT_AHEAD_H

#include "Engine.h"

#include "aligned/JIT/Module.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/ExecutionEngine/Orc/JITTargetMachineBuilder.h"
#include "llvm/TargetParser/Triple.h"

namespace aligned {

/// What a model is to who calls it.
struct Interface {
  llvm::ArrayRef<aligned_type> arguments, results;
  llvm::ArrayRef<std::vector<float>> keyOffsets; ///< by argument, empty where there is none
  int64_t denseUpTo;
};

class AheadMachine {
public:
  /// An error where LLVM doesn't know the triple, the processor or a feature.
  static llvm::Expected<AheadMachine> find(const aligned_machine &machine);

  /// Of which kernels can be, the widest first.
  const llvm::SmallVector<llvm::StringRef> &isas() const { return sets; }
  /// As diagnostics and headers call it.
  std::string name() const;
  llvm::Expected<std::unique_ptr<llvm::TargetMachine>> create() const;

private:
  explicit AheadMachine(llvm::orc::JITTargetMachineBuilder builder) : builder(std::move(builder)) {}

  llvm::orc::JITTargetMachineBuilder builder;
  llvm::SmallVector<llvm::StringRef> sets;
};

/// Whether C can call a function so, or why not.
llvm::Error checkName(llvm::StringRef name);
/// `function` is the compiled one, `name` what C calls it.
llvm::Expected<Code> compileAhead(mlir::ModuleOp module, llvm::StringRef function, const Interface &interface, const AheadMachine &machine, llvm::StringRef name);
std::string headerOf(const Interface &interface, const AheadMachine &machine, llvm::StringRef name);

int64_t byteWidth(aligned_dtype dtype);

} // namespace aligned

#endif // ALIGNED_LIB_JIT_AHEAD_H
