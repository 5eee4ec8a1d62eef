// A program of nothing but the kernels that append to one kind of cache, as the compiler writes them.
#ifndef ALIGNED_TEST_GPUCACHES_KERNELS_H
#define ALIGNED_TEST_GPUCACHES_KERNELS_H

#include "Conversion/AlignedToNVVM/AppendKernel.h"
#include "Conversion/AlignedToNVVM/Sidecar.h"

#include "aligned/Conversion/AlignedToNVVM/Program.h"
#include "aligned/Pipelines/Pipelines.h"
#include "aligned/Runtime/Cache.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

namespace aligned::test {

inline Program compileAppend(const aligned_format &format, int64_t headDim) {
  using namespace mlir;
  static MLIRContext *context = [] {
    DialectRegistry registry;
    registerDialects(registry);
    auto *context = new MLIRContext(registry, MLIRContext::Threading::DISABLED);
    context->loadDialect<AlignedDialect, arith::ArithDialect, gpu::GPUDialect, LLVM::LLVMDialect, NVVM::NVVMDialect, scf::SCFDialect, vector::VectorDialect>();
    return context;
  }();
  OpBuilder b(context);
  Sidecar s(b);
  OwningOpRef<ModuleOp> module = ModuleOp::create(b.getUnknownLoc());
  const Type elements[] = {b.getF16Type(), b.getBF16Type(), b.getF32Type()};
  SmallVector<int64_t> widths(format.width, format.width + format.planes);
  PlanesAttr planes = PlanesAttr::get(context, FormatKind(format.kind), widths, CacheRole(format.role));
  Attribute append = emitAppend(*module, "append", {planes, elements[format.element], headDim});
  SmallVector<Attribute> kernels;
  module->walk([&](gpu::GPUFuncOp kernel) {
    kernels.push_back(b.getDictionaryAttr({s.field("name", kernel.getName()), s.field("threads", kernel.getKnownBlockSizeAttr().asArrayRef()[0])}));
  });
  module->getOperation()->setAttr(gpu::GPUDialect::getContainerModuleAttrName(), b.getUnitAttr());
  module->getOperation()->setAttr(kProgramName, b.getDictionaryAttr({s.version(), s.field("kernels", b.getArrayAttr(kernels)), s.field("decode", b.getArrayAttr({})),
                                                                     s.field("append", b.getArrayAttr(append))}));
  PassManager passes(context);
  buildKernelPipeline(passes, "sm_90");
  FailureOr<Program> program = failed(passes.run(*module)) ? FailureOr<Program>() : programOf(*module);
  return succeeded(program) ? *program : Program();
}

} // namespace aligned::test

#endif // ALIGNED_TEST_GPUCACHES_KERNELS_H
