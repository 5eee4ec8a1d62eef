// aligned-lower-asserts: cf.assert as a call that gives up the function, not the process.
#include "aligned/Pipelines/Passes.h"

#include "mlir/Dialect/ControlFlow/IR/ControlFlowOps.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "mlir/IR/SymbolTable.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDLOWERASSERTS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;

namespace {

struct AlignedLowerAssertsPass : aligned::impl::AlignedLowerAssertsBase<AlignedLowerAssertsPass> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    SymbolTable symbols(module);
    Type pointer = LLVM::LLVMPointerType::get(&getContext());
    llvm::StringMap<LLVM::GlobalOp> messages;
    SmallVector<cf::AssertOp> asserts;
    module.walk([&](cf::AssertOp op) { asserts.push_back(op); });
    if (asserts.empty())
      return;

    StringRef fail = "aligned_rt_fail";
    if (!symbols.lookup(fail)) {
      OpBuilder b = OpBuilder::atBlockBegin(module.getBody());
      auto declaration = func::FuncOp::create(b, module.getLoc(), fail, b.getFunctionType(pointer, {}));
      declaration.setPrivate();
      symbols.insert(declaration);
    }
    for (cf::AssertOp op : asserts) {
      LLVM::GlobalOp &message = messages[op.getMsg()];
      ImplicitLocOpBuilder b(op.getLoc(), op);
      if (!message) {
        OpBuilder::InsertionGuard guard(b);
        b.setInsertionPointToStart(module.getBody());
        std::string text = op.getMsg().str();
        text.push_back('\0');
        auto type = LLVM::LLVMArrayType::get(b.getI8Type(), text.size());
        message = LLVM::GlobalOp::create(b, type, /*isConstant=*/true, LLVM::Linkage::Internal, "assert_message", b.getStringAttr(text));
        symbols.insert(message); // makes the name unique
      }
      Value no = arith::XOrIOp::create(b, op.getArg(), arith::ConstantOp::create(b, b.getBoolAttr(true)));
      auto guard = scf::IfOp::create(b, no, /*withElseRegion=*/false);
      b.setInsertionPointToStart(guard.thenBlock());
      func::CallOp::create(b, fail, TypeRange(), Value(LLVM::AddressOfOp::create(b, message)));
      op.erase();
    }
  }
};

} // namespace
