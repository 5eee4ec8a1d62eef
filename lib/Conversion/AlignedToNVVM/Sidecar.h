// What stands beside the PTX: which kernels there are, what they take and how they are launched. An attribute of the module while it is compiled, JSON for those
// who run it; docs/GPU.md describes it.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_SIDECAR_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_SIDECAR_H

#include "aligned/Conversion/AlignedToNVVM/Tuning.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"

namespace aligned {

class Sidecar {
public:
  explicit Sidecar(mlir::Builder &b) : b(b) {}

  /// A number, or the name of one that is known when kernels are launched.
  struct Extent {
    Extent(int64_t number) : number(number) {}
    Extent(const char *name) : name(name) {}
    int64_t number = 0;
    llvm::StringRef name;
  };

  static llvm::StringRef nameOf(mlir::Type element) {
    return element.isF16() ? "f16" : element.isBF16() ? "bf16" : element.isF32() ? "f32" : element.isInteger(8) ? "i8" : element.isInteger(32) ? "i32" : "i64";
  }

  mlir::NamedAttribute field(llvm::StringRef name, int64_t number) { return {b.getStringAttr(name), b.getI64IntegerAttr(number)}; }
  mlir::NamedAttribute field(llvm::StringRef name, llvm::StringRef text) { return {b.getStringAttr(name), b.getStringAttr(text)}; }
  mlir::NamedAttribute field(llvm::StringRef name, mlir::Attribute attribute) { return {b.getStringAttr(name), attribute}; }

  mlir::Attribute extents(llvm::ArrayRef<Extent> all) {
    llvm::SmallVector<mlir::Attribute> list;
    for (const Extent &extent : all)
      list.push_back(extent.name.empty() ? mlir::Attribute(b.getI64IntegerAttr(extent.number)) : b.getStringAttr(extent.name));
    return b.getArrayAttr(list);
  }
  mlir::Attribute array(llvm::StringRef name, llvm::StringRef kind, mlir::Type element, llvm::ArrayRef<Extent> shape) {
    return b.getDictionaryAttr({field("name", name), field("kind", kind), field("type", nameOf(element)), field("shape", extents(shape))});
  }
  mlir::Attribute cache(llvm::StringRef name) { return b.getDictionaryAttr({field("name", name), field("kind", "cache")}); }
  mlir::Attribute scalar(llvm::StringRef name, llvm::StringRef type) {
    return b.getDictionaryAttr({field("name", name), field("kind", "scalar"), field("type", type)});
  }
  mlir::Attribute launch(llvm::StringRef kernel, llvm::ArrayRef<Extent> grid) {
    return b.getDictionaryAttr({field("kernel", kernel), field("grid", extents(grid))});
  }
  mlir::Attribute tuning(const Tuning &t) {
    return b.getDictionaryAttr({field("blocks_per_multiprocessor", t.blocksPerMultiprocessor), field("blocks_per_split", t.blocksPerSplit), field("most_splits", t.mostSplits),
                                field("chained", int64_t(t.chained))});
  }
  /// Null: dense.
  mlir::Attribute format(PlanesAttr split, CacheRole role, mlir::Type element) {
    if (!split)
      return b.getDictionaryAttr({field("kind", "dense"), field("role", stringifyCacheRole(role)), field("element", nameOf(element))});
    return b.getDictionaryAttr({field("kind", stringifyFormatKind(split.getKind())), field("role", stringifyCacheRole(role)), field("element", nameOf(element)),
                                field("widths", b.getI64ArrayAttr(split.getWidths()))});
  }

private:
  mlir::Builder &b;
};

/// The attribute of the top module that holds it.
constexpr llvm::StringLiteral kProgramName = "aligned.program";

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_SIDECAR_H
