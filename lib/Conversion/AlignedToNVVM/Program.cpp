// See the header.
#include "aligned/Conversion/AlignedToNVVM/Program.h"

#include "Sidecar.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"

using namespace mlir;
using namespace aligned;

static llvm::json::Value jsonOf(Attribute attribute) {
  if (auto number = dyn_cast<IntegerAttr>(attribute))
    return number.getInt();
  if (auto text = dyn_cast<StringAttr>(attribute))
    return text.getValue();
  if (auto list = dyn_cast<ArrayAttr>(attribute)) {
    llvm::json::Array array;
    for (Attribute element : list)
      array.push_back(jsonOf(element));
    return array;
  }
  llvm::json::Object object;
  for (NamedAttribute field : cast<DictionaryAttr>(attribute))
    object[field.getName().getValue()] = jsonOf(field.getValue());
  return object;
}

FailureOr<Program> aligned::programOf(ModuleOp module) {
  auto binaries = module.getOps<gpu::BinaryOp>();
  auto program = module->getAttrOfType<DictionaryAttr>(kProgramName);
  if (binaries.empty() || !program)
    return module.emitError("expected kernels that aligned-pipeline{target=nvptx} compiled, got none");
  auto object = cast<gpu::ObjectAttr>((*binaries.begin()).getObjects()[0]);
  return Program{object.getObject().getValue().rtrim('\0').str(), llvm::formatv("{0:2}\n", jsonOf(program)).str()};
}
