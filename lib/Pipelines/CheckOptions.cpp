// aligned-check-options: the pipeline's options, judged where there is somebody to tell.
#include "aligned/Pipelines/Passes.h"

#include "aligned/Conversion/AlignedToCPU/Isa.h"
#include "aligned/Conversion/AlignedToNVVM/Program.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDCHECKOPTIONS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

struct AlignedCheckOptionsPass : aligned::impl::AlignedCheckOptionsBase<AlignedCheckOptionsPass> {
  using AlignedCheckOptionsBase::AlignedCheckOptionsBase;

  /// The pipeline brings along what it relies on: who loads it as a plugin of passes has registered nothing.
  void getDependentDialects(DialectRegistry &registry) const override {
    AlignedCheckOptionsBase::getDependentDialects(registry);
    registerInterfaces(registry);
  }

  void runOnOperation() override {
    auto report = [&] { return getOperation().emitError(); };
    auto oneOf = [&](StringRef what, StringRef given, ArrayRef<StringRef> known) {
      if (llvm::is_contained(known, given))
        return true;
      report() << "expected " << what << " " << alternatives(known) << ", got '" << given << "'";
      return false;
    };
    bool ok = oneOf("target", target, {"cpu", "nvptx", "reference"});
    SmallVector<StringRef> isas = isaNames();
    isas.insert(isas.begin(), "host");
    ok &= oneOf("isa", isa, isas);
    if (target == "nvptx") {
      ok &= ptxVersionFor(chip, ptx, report) != 0;
      if (denseUpTo != "0") {
        report() << "expected no dense-up-to with target=nvptx, whose caches hold no dense copies, got '" << denseUpTo << "'";
        ok = false;
      }
    }
    ok &= oneOf("to", to, {"raise", "store", "fuse", "stage", "lower", "llvm"});
    ok &= parsePolicy(policy, tolerance, &getContext(), report) != nullptr;
    ok &= format == "auto" || format == "dense" || parsePlaneFormat(format, CacheRole::Key, &getContext(), report) != nullptr;
    uint64_t tokens;
    if (denseUpTo == "auto" ? !hasCosts : StringRef(denseUpTo).getAsInteger(10, tokens)) {
      report() << "expected dense-up-to to be a number of tokens, or auto with costs, got '" << denseUpTo << "'" << (denseUpTo == "auto" ? " without costs" : "");
      ok = false;
    }
    if (!ok)
      signalPassFailure();
  }
};

} // namespace
