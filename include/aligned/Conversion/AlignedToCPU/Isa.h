// The instruction sets that code is generated for.
#ifndef ALIGNED_CONVERSION_ALIGNEDTOCPU_ISA_H
#define ALIGNED_CONVERSION_ALIGNEDTOCPU_ISA_H

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/TargetParser/Triple.h"

#include <optional>

namespace aligned {

/// From any machine to the widest of x86-64, where those between have registers of 256 bits; then those of AArch64, whose NEON is what LLVM makes of portable code.
enum class Isa { Portable, AVX2, AVXVNNI, AVX512, DotProd, I8MM };

/// As options call them, in that order.
llvm::SmallVector<llvm::StringRef> isaNames();
std::optional<Isa> parseIsa(llvm::StringRef name);
/// Those that a machine has, the widest first; `portable` is always there. Features are called as LLVM calls them.
llvm::SmallVector<llvm::StringRef> isasOf(llvm::Triple::ArchType processor, llvm::function_ref<bool(llvm::StringRef feature)> hasFeature);
/// Those of this machine.
llvm::SmallVector<llvm::StringRef> hostIsas();

} // namespace aligned

#endif // ALIGNED_CONVERSION_ALIGNEDTOCPU_ISA_H
