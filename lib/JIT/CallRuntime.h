// What compiled code calls: functions of lib/Runtime. Some have names of other libraries there, such as malloc, which the JIT gives to code that it links, and which object
// files (Ahead.h) replace by the functions' own names.
#ifndef ALIGNED_LIB_JIT_CALLRUNTIME_H
#define ALIGNED_LIB_JIT_CALLRUNTIME_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/ExecutionEngine/Orc/CoreContainers.h"
#include "llvm/ExecutionEngine/Orc/Mangling.h"

namespace aligned {

struct RuntimeFunction {
  llvm::StringLiteral called, name; ///< by compiled code; in lib/Runtime
  llvm::orc::ExecutorAddr address;
};

llvm::ArrayRef<RuntimeFunction> runtimeFunctions();
llvm::orc::SymbolMap runtimeSymbols(llvm::orc::MangleAndInterner intern);

} // namespace aligned

#endif // ALIGNED_LIB_JIT_CALLRUNTIME_H
