// aligned-attach-target: which chips there are, the first PTX that knows each, and what programs do differently on some.
#include "aligned/Conversion/AlignedToNVVM/Passes.h"
#include "aligned/Conversion/AlignedToNVVM/Program.h"
#include "aligned/Conversion/AlignedToNVVM/Tuning.h"

#include "Sidecar.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"
#include "mlir/Dialect/LLVMIR/NVVMDialect.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDATTACHTARGET
#include "aligned/Conversion/AlignedToNVVM/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

struct Chip {
  StringRef name;
  int64_t leastPTX;
};

/// The integer tensor cores' 16 x 8 x 32 products begin with sm_80.
constexpr Chip kChips[] = {{"sm_80", 70}, {"sm_86", 71}, {"sm_87", 74}, {"sm_89", 78}, {"sm_90", 78}, {"sm_90a", 80}, {"sm_100", 86},
                           {"sm_100a", 86}, {"sm_103", 88}, {"sm_103a", 88}, {"sm_120", 87}, {"sm_120a", 87}, {"sm_121", 88}, {"sm_121a", 88}};
constexpr int64_t kVersions[] = {70, 71, 72, 73, 74, 75, 76, 77, 78, 80, 81, 82, 83, 84, 85, 86, 87, 88, 90}; // of PTX, that LLVM 22 writes

} // namespace

int64_t aligned::ptxVersionFor(StringRef chip, int64_t wanted, function_ref<InFlightDiagnostic()> emitError) {
  const Chip *found = llvm::find_if(kChips, [&](const Chip &known) { return known.name == chip; });
  if (found == std::end(kChips)) {
    InFlightDiagnostic diagnostic = emitError() << "expected a chip of ";
    llvm::interleaveComma(kChips, diagnostic, [&](const Chip &known) { diagnostic << known.name; });
    diagnostic << "; got '" << chip << "'";
    return 0;
  }
  int64_t version = wanted ? wanted : found->leastPTX;
  if (!llvm::is_contained(kVersions, version) || version < found->leastPTX) {
    emitError() << "expected a version of PTX from " << found->leastPTX << " to " << kVersions[std::size(kVersions) - 1] << " for " << chip << ", got " << version;
    return 0;
  }
  return version;
}

int64_t aligned::capabilityOf(StringRef chip) {
  int64_t number;
  return chip.consume_front("sm_") && !chip.consumeInteger(10, number) ? number : 0;
}

StringRef aligned::chipFor(int64_t capability) {
  StringRef best = kChips[0].name;
  for (const Chip &chip : kChips)
    if (!chip.name.ends_with("a") && capabilityOf(chip.name) <= capability) // not those of one architecture alone
      best = chip.name;
  return best;
}

namespace {

struct AlignedAttachTargetPass : aligned::impl::AlignedAttachTargetBase<AlignedAttachTargetPass> {
  using AlignedAttachTargetBase::AlignedAttachTargetBase;

  void runOnOperation() override {
    int64_t version = ptxVersionFor(chip, ptx, [&] { return getOperation().emitError(); });
    if (!version)
      return signalPassFailure();
    auto target = NVVM::NVVMTargetAttr::get(&getContext(), /*optLevel=*/1, "nvptx64-nvidia-cuda", chip, "+ptx" + std::to_string(version));
    if (auto program = getOperation()->getAttrOfType<DictionaryAttr>(kProgramName)) {
      Builder b(&getContext());
      NamedAttrList fields(program);
      fields.set("chip", b.getStringAttr(chip));
      fields.set("ptx", b.getI64IntegerAttr(version));
      fields.set("tuning", Sidecar(b).tuning(tuningFor(chip)));
      getOperation()->setAttr(kProgramName, fields.getDictionary(&getContext()));
    }
    getOperation().walk([&](gpu::GPUModuleOp module) { module.setTargetsAttr(ArrayAttr::get(&getContext(), target)); });
    if (capabilityOf(chip) >= kFirstChained)
      getOperation().walk(chain);
  }

private:
  static constexpr int64_t kFirstChained = 90;

  /// A kernel that is launched before the one ahead of it has ended (docs/GPU.md, Chained launches) waits for that one first, and lets the next one come to wait in turn. Where
  /// launches are not chained, neither instruction does anything.
  static void chain(gpu::GPUFuncOp kernel) {
    auto b = OpBuilder::atBlockBegin(&kernel.getBody().front());
    for (NVVM::GridDepActionKind kind : {NVVM::GridDepActionKind::wait, NVVM::GridDepActionKind::launch_dependents})
      NVVM::GriddepcontrolOp::create(b, kernel.getLoc(), kind);
  }
};

} // namespace
