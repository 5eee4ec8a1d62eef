// See the header.
#include "Session.h"

#include "aligned/Pipelines/Pipelines.h"
#include "aligned/Runtime/Error.h"

#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"
#include "llvm/Support/TargetSelect.h"

using namespace mlir;
using namespace aligned;

namespace {

const DialectRegistry &dialects() {
  static const DialectRegistry *registry = [] {
    llvm::InitializeNativeTarget();
    llvm::InitializeNativeTargetAsmPrinter();
    auto *registry = new DialectRegistry; // never destroyed: threads may outlive main
    registerEverything(*registry);
    return registry;
  }();
  return *registry;
}

aligned_severity severityOf(DiagnosticSeverity severity) {
  switch (severity) {
  case DiagnosticSeverity::Note:
    return ALIGNED_SEVERITY_NOTE;
  case DiagnosticSeverity::Warning:
    return ALIGNED_SEVERITY_WARNING;
  case DiagnosticSeverity::Error:
    return ALIGNED_SEVERITY_ERROR;
  case DiagnosticSeverity::Remark:
    return ALIGNED_SEVERITY_REMARK;
  }
  llvm_unreachable("no severity");
}

Message messageOf(const Diagnostic &diagnostic) {
  Message message{severityOf(diagnostic.getSeverity()), diagnostic.str(), {}};
  auto place = diagnostic.getLocation()->findInstanceOf<FileLineColLoc>();
  if (place && place.getLine()) {
    if (place.getFilename() != "-") // which upstream calls a text without a name
      message.file = place.getFilename().str();
    message.line = place.getLine();
    message.column = place.getColumn();
  }
  return message;
}

/// What is wrong with a pipeline, without the caret that upstream puts below it on a terminal.
StringRef firstOf(StringRef text) {
  text = text.trim();
  return text.consume_front("MLIR Textual PassPipeline Parser:") ? text.split("error: ").second.split('\n').first : text;
}

/// What the thread's last session said; `views` is of `messages`.
struct Last {
  std::vector<Message> messages;
  std::vector<aligned_diagnostic> views;
};
thread_local Last last;

} // namespace

Reading &aligned::reading() {
  thread_local Reading reading;
  return reading;
}

void aligned_allow_unregistered_dialects(int allow) { reading().allowsUnregistered = allow; }
void aligned_name_source(const char *name) { reading().name = name ? name : ""; }

int32_t aligned_last_diagnostics(const aligned_diagnostic **diagnostics) {
  *diagnostics = last.views.data();
  return last.views.size();
}

std::string aligned::linesOf(ArrayRef<Message> messages) {
  std::string text;
  llvm::raw_string_ostream os(text);
  for (const Message &message : messages) {
    if (message.severity == ALIGNED_SEVERITY_NOTE)
      os << "note: ";
    if (message.line) {
      if (!message.file.empty())
        os << message.file << ", ";
      os << "line " << message.line << ", column " << message.column << ": ";
    }
    os << message.text << "\n";
  }
  return text;
}

Session::Session() : context(dialects(), MLIRContext::Threading::DISABLED), handler(&context, [this](Diagnostic &diagnostic) {
    collect(diagnostic);
    return success();
  }) {
  context.printOpOnDiagnostic(false); // one line each
  context.allowUnregisteredDialects(reading().allowsUnregistered);
}

Session::~Session() {
  last.messages = std::move(errors);
  llvm::append_range(last.messages, remarks);
  last.views.clear();
  for (const Message &message : last.messages)
    last.views.push_back({message.severity, message.text.c_str(), message.file.empty() ? nullptr : message.file.c_str(), message.line, message.column});
}

void Session::collect(Diagnostic &diagnostic) {
  std::vector<Message> &messages = diagnostic.getSeverity() == DiagnosticSeverity::Error ? errors : remarks;
  messages.push_back(messageOf(diagnostic));
  for (Diagnostic &note : diagnostic.getNotes())
    messages.push_back(messageOf(note));
}

LogicalResult Session::refuse(const llvm::Twine &why) {
  errors.push_back({ALIGNED_SEVERITY_ERROR, why.str(), {}});
  return failure();
}

std::nullptr_t Session::fail(llvm::Error error) {
  (void)refuse(llvm::toString(std::move(error)));
  return fail();
}

std::nullptr_t Session::fail() {
  if (errors.empty())
    (void)refuse("compilation failed");
  // Remarks, too: such as why an op that has no lowering was not raised.
  aligned_set_last_error(StringRef(linesOf(errors) + linesOf(remarks)).rtrim().str().c_str());
  return nullptr;
}

OwningOpRef<ModuleOp> Session::parse(StringRef source) { return parseSourceString<ModuleOp>(source, ParserConfig(&context), reading().name); }

LogicalResult Session::run(ModuleOp module, StringRef pipeline) {
  PassManager passes(&context);
  std::string text;
  llvm::raw_string_ostream os(text);
  // "builtin.module(...)" given to the overload that takes a pass manager would nest a second module and do nothing.
  if (pipeline.starts_with("builtin.module")) {
    FailureOr<OpPassManager> parsed = parsePassPipeline(pipeline, os);
    if (failed(parsed))
      return refuse(firstOf(text));
    static_cast<OpPassManager &>(passes) = std::move(*parsed);
  } else if (failed(parsePassPipeline(pipeline, passes, os))) {
    return refuse(firstOf(text));
  }
  return passes.run(module);
}
