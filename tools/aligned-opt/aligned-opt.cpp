// mlir-opt with the aligned dialect: all of upstream's dialects and passes, and ours.
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/InitAllPasses.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"

int main(int argc, char **argv) {
  mlir::DialectRegistry registry;
  aligned::registerDialects(registry);
  mlir::registerAllPasses();
  aligned::registerPasses();
  aligned::registerPipelines();
  return mlir::asMainReturnCode(mlir::MlirOptMain(argc, argv, "AlignedKV optimizer driver\n", registry));
}
