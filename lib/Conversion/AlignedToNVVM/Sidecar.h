// What stands beside the PTX: which kernels there are, what they take and how they are launched. An attribute of the module while it is compiled, JSON for those
// who run it; aligned/Runtime/ProgramFormat.h says what is in it.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_SIDECAR_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_SIDECAR_H

#include "aligned/Conversion/AlignedToNVVM/Tuning.h"
#include "aligned/Dialect/Aligned/IR/Aligned.h"
#include "aligned/Runtime/ProgramFormat.h"

#include "llvm/ADT/STLExtras.h"

namespace aligned {

class Sidecar {
public:
  explicit Sidecar(mlir::Builder &b) : b(b) {}

  /// A number, or the symbol of one that is known when kernels are launched.
  struct Extent {
    Extent(int64_t number) : number(number) {}
    Extent(const char *name) : name(name) { assert(isOneOf(program::kSymbols, name)); }
    int64_t number = 0;
    llvm::StringRef name;
  };

  static llvm::StringRef nameOf(mlir::Type element) {
    using namespace program;
    return element.isF16()          ? kElements[ALIGNED_ELEMENT_F16]
           : element.isBF16()       ? kElements[ALIGNED_ELEMENT_BF16]
           : element.isF32()        ? kElements[ALIGNED_ELEMENT_F32]
           : element.isInteger(1)   ? "i1"
           : element.isInteger(8)   ? "u8"
           : element.isInteger(32)  ? "i32"
                                    : "i64";
  }

  mlir::NamedAttribute version() { return field("version", program::kVersion); }
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
    assert(isOneOf(program::kKinds, kind) && (kind == program::nameOf(program::Kind::Scratch) || isOneOf(program::kNames, name)));
    return b.getDictionaryAttr({field("name", name), field("kind", kind), field("type", nameOf(element)), field("shape", extents(shape))});
  }
  mlir::Attribute cache(llvm::StringRef name) {
    assert(isOneOf(program::kNames, name));
    return b.getDictionaryAttr({field("name", name), field("kind", "cache")});
  }
  mlir::Attribute scalar(llvm::StringRef name, llvm::StringRef type) {
    assert(isOneOf(program::kNames, name) || isOneOf(program::kSymbols, name));
    return b.getDictionaryAttr({field("name", name), field("kind", "scalar"), field("type", type)});
  }
  mlir::Attribute launch(llvm::StringRef kernel, llvm::ArrayRef<Extent> grid) {
    return b.getDictionaryAttr({field("kernel", kernel), field("grid", extents(grid))});
  }
  mlir::Attribute tuning(const Tuning &t) {
    return b.getDictionaryAttr({field("blocks_per_multiprocessor", t.blocksPerMultiprocessor), field("tiles_per_split", t.tilesPerSplit), field("most_splits", t.mostSplits),
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
  template <size_t N> static bool isOneOf(const char *const (&names)[N], llvm::StringRef name) { return llvm::is_contained(names, name); }

  mlir::Builder &b;
};

/// The attribute of the top module that holds it.
constexpr llvm::StringLiteral kProgramName = "aligned.program";

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTONVVM_SIDECAR_H
