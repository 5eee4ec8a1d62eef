// See the header.
#include "aligned/Conversion/AlignedToCPU/Isa.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/TargetParser/Host.h"

using namespace llvm;
using namespace aligned;

namespace {

/// By Isa: the name, and what LLVM calls the processor and the features that it takes.
struct Entry {
  StringLiteral name;
  Triple::ArchType processor;
  ArrayRef<StringLiteral> features;
};
constexpr StringLiteral kAVX2[] = {"avx2", "fma", "f16c"}, kAVXVNNI[] = {"avx2", "fma", "f16c", "avxvnni"}, kAVX512[] = {"avx512f", "avx512bw", "avx512vl", "avx512vnni"},
                        kDotProd[] = {"neon", "dotprod"}, kI8MM[] = {"neon", "i8mm"};
const Entry kIsas[] = {{"portable", Triple::UnknownArch, {}}, {"avx2", Triple::x86_64, kAVX2},        {"avxvnni", Triple::x86_64, kAVXVNNI},
                       {"avx512", Triple::x86_64, kAVX512},    {"dotprod", Triple::aarch64, kDotProd}, {"i8mm", Triple::aarch64, kI8MM}};

} // namespace

SmallVector<StringRef> aligned::isaNames() { return map_to_vector(kIsas, [](const Entry &isa) -> StringRef { return isa.name; }); }

std::optional<Isa> aligned::parseIsa(StringRef name) {
  const Entry *found = find_if(kIsas, [&](const Entry &isa) { return isa.name == name; });
  return found == std::end(kIsas) ? std::nullopt : std::optional(static_cast<Isa>(found - kIsas));
}

SmallVector<StringRef> aligned::isasOf(Triple::ArchType processor, function_ref<bool(StringRef)> hasFeature) {
  SmallVector<StringRef> names;
  for (const Entry &isa : reverse(kIsas))
    if ((isa.processor == Triple::UnknownArch || isa.processor == processor) && all_of(isa.features, hasFeature))
      names.push_back(isa.name);
  return names;
}

SmallVector<StringRef> aligned::hostIsas() {
  const StringMap<bool> features = sys::getHostCPUFeatures();
  return isasOf(Triple(sys::getProcessTriple()).getArch(), [&](StringRef feature) { return features.lookup(feature); });
}
