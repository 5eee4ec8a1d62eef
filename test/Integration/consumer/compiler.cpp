// A small compiler: reads a model, lets AlignedKV store its caches in planes and fuse its attention, and goes on with the ops that it gets.
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Parser/Parser.h"

int main(int argc, char **argv) {
  if (argc != 3) {
    llvm::errs() << "expected MODEL.mlir and a policy, got " << argc - 1 << " arguments\n";
    return 1;
  }
  mlir::DialectRegistry registry;
  aligned::registerDialects(registry);
  mlir::MLIRContext context(registry);
  auto module = mlir::parseSourceFile<mlir::ModuleOp>(argv[1], &context);
  if (!module)
    return 1;

  aligned::PipelineOptions options;
  options.policy = argv[2];
  options.to = "fuse";
  mlir::PassManager passes(&context);
  aligned::buildPipeline(passes, options);
  if (mlir::failed(passes.run(*module)))
    return 1;
  module->walk([](aligned::DecodeAttentionOp op) { llvm::outs() << "// reads keys of " << op.getKey().getType() << "\n"; });
  module->print(llvm::outs());
}
