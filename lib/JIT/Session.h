// What each function that is given a text has for itself: a context, and what is said in it.
//
// Diagnostics are collected, not printed, errors apart from all else. When the session ends they are what aligned_last_diagnostics() gives on its thread.
#ifndef ALIGNED_LIB_JIT_SESSION_H
#define ALIGNED_LIB_JIT_SESSION_H

#include "aligned/JIT/Module.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"
#include "llvm/Support/Error.h"

#include <string>
#include <vector>

namespace aligned {

/// A diagnostic, or a note of the one before it.
struct Message {
  aligned_severity severity;
  std::string text, file; ///< no file: of a text without a name, or of none
  int32_t line = 0, column = 0;
};

/// One a line: "line 3, column 10: ..." where a text has no name, "budget.yaml, line ..." where it has, and nothing ahead for a place that is no line.
std::string linesOf(llvm::ArrayRef<Message> messages);

/// How texts are read that this thread gives.
struct Reading {
  bool allowsUnregistered = false;
  std::string name; ///< of a text, in diagnostics
};
Reading &reading();

class Session {
public:
  Session();
  ~Session();

  /// Null where the text is none, which was said then.
  mlir::OwningOpRef<mlir::ModuleOp> parse(llvm::StringRef source);
  mlir::LogicalResult run(mlir::ModuleOp module, llvm::StringRef pipeline);

  /// An error that has no place.
  llvm::LogicalResult refuse(const llvm::Twine &why);
  /// Leaves what was said as the thread's error.
  std::nullptr_t fail();
  std::nullptr_t fail(llvm::Error error);

  mlir::MLIRContext context;
  std::vector<Message> errors, remarks;

private:
  void collect(mlir::Diagnostic &diagnostic);

  mlir::ScopedDiagnosticHandler handler;
};

} // namespace aligned

#endif // ALIGNED_LIB_JIT_SESSION_H
