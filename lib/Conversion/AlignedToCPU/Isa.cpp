// See the header.
#include "aligned/Conversion/AlignedToCPU/Isa.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/TargetParser/Host.h"

using namespace llvm;
using namespace aligned;

namespace {

/// By Isa: the name, and what LLVM calls the features that it takes.
struct Entry {
  StringLiteral name;
  ArrayRef<StringLiteral> features;
};
constexpr StringLiteral kAVX2[] = {"avx2", "fma", "f16c"}, kAVXVNNI[] = {"avx2", "fma", "f16c", "avxvnni"}, kAVX512[] = {"avx512f", "avx512bw", "avx512vl", "avx512vnni"};
const Entry kIsas[] = {{"portable", {}}, {"avx2", kAVX2}, {"avxvnni", kAVXVNNI}, {"avx512", kAVX512}};

} // namespace

SmallVector<StringRef> aligned::isaNames() { return map_to_vector(kIsas, [](const Entry &isa) -> StringRef { return isa.name; }); }

std::optional<Isa> aligned::parseIsa(StringRef name) {
  const Entry *found = find_if(kIsas, [&](const Entry &isa) { return isa.name == name; });
  return found == std::end(kIsas) ? std::nullopt : std::optional(static_cast<Isa>(found - kIsas));
}

SmallVector<StringRef> aligned::hostIsas() {
  const StringMap<bool> features = sys::getHostCPUFeatures();
  SmallVector<StringRef> names;
  for (const Entry &isa : reverse(kIsas))
    if (all_of(isa.features, [&](StringRef feature) { return features.lookup(feature); }))
      names.push_back(isa.name);
  return names;
}
