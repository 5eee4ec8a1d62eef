// mlir-opt with the aligned dialect: all of upstream's dialects and passes, and ours.
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Tools/mlir-opt/MlirOptMain.h"

int main(int argc, char **argv) {
  mlir::DialectRegistry registry;
  aligned::registerEverything(registry);
  auto [input, output] = mlir::registerAndParseCLIOptions(argc, argv, "AlignedKV optimizer driver\n", registry);
  bool reports = std::any_of(argv + 1, argv + argc, [](llvm::StringRef argument) { return argument.ltrim('-').starts_with("aligned-report-precision"); });
  if (reports && output == "-") // a report stands in the module's place
    output = "/dev/null";
  return mlir::asMainReturnCode(mlir::MlirOptMain(argc, argv, input, output, registry));
}
