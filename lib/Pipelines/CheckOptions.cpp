// aligned-check-options: the pipeline's options, judged where there is somebody to tell.
#include "aligned/Pipelines/Passes.h"

#include "aligned/Conversion/AlignedToNVVM/Program.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Pipelines/Pipelines.h"

#include "llvm/ADT/StringExtras.h"

namespace aligned {
#define GEN_PASS_DEF_ALIGNEDCHECKOPTIONS
#include "aligned/Pipelines/Passes.h.inc"
} // namespace aligned

using namespace mlir;
using namespace aligned;

namespace {

struct AlignedCheckOptionsPass : aligned::impl::AlignedCheckOptionsBase<AlignedCheckOptionsPass> {
  using AlignedCheckOptionsBase::AlignedCheckOptionsBase;

  void runOnOperation() override {
    auto report = [&] { return getOperation().emitError(); };
    auto oneOf = [&](StringRef what, StringRef given, ArrayRef<StringRef> known) {
      if (llvm::is_contained(known, given))
        return true;
      report() << "expected " << what << " '" << llvm::join(known.drop_back(), "', '") << "' or '" << known.back() << "', got '" << given << "'";
      return false;
    };
    bool ok = oneOf("target", target, {"cpu", "cuda", "nvptx", "reference"});
    ok &= oneOf("isa", isa, {"host", "portable", "avx2", "avx512"});
    ok &= oneOf("to", to, {"raise", "split", "fuse", "lower", "llvm"});
    ok &= parsePolicy(policy, tolerance, &getContext(), report) != nullptr;
    ok &= format == "auto" || format == "dense" || parseSplitFormat(format, CacheRole::Key, &getContext(), report) != nullptr;
    ok &= target != "nvptx" || ptxVersionFor(chip, ptx, report) != 0;
    if (!ok)
      signalPassFailure();
  }
};

} // namespace
