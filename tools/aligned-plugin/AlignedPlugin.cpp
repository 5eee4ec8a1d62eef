// The compiler as a plugin, for mlir-opt and whatever else loads plugins: `--load-dialect-plugin` brings dialect, passes and pipelines, `--load-pass-plugin` passes and
// pipelines. Either names them in `--pass-pipeline` only, since options of their own have to be known before a plugin is loaded.
#include "aligned/Pipelines/Pipelines.h"

#include "mlir/Tools/Plugins/DialectPlugin.h"
#include "mlir/Tools/Plugins/PassPlugin.h"

extern "C" mlir::DialectPluginLibraryInfo mlirGetDialectPluginInfo() {
  return {MLIR_PLUGIN_API_VERSION, "AlignedKV", ALIGNED_VERSION, [](mlir::DialectRegistry *registry) { aligned::registerEverything(*registry); }};
}

extern "C" mlir::PassPluginLibraryInfo mlirGetPassPluginInfo() {
  return {MLIR_PLUGIN_API_VERSION, "AlignedKV", ALIGNED_VERSION, [] {
            mlir::DialectRegistry unused; // nobody asks a plugin of passes for dialects; passes load those that they need
            aligned::registerEverything(unused);
          }};
}
