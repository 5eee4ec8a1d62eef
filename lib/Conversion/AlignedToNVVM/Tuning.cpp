// See the header. No family has been measured yet, so that all rows hold the defaults.
#include "aligned/Conversion/AlignedToNVVM/Tuning.h"

#include "aligned/Conversion/AlignedToNVVM/Program.h"

using namespace mlir;
using namespace aligned;

namespace {

struct Family {
  int64_t capability; ///< of its first chip
  Tuning tuning;
};

constexpr Family kFamilies[] = {
    {0, {}},   // of none
    {80, {}},  // Ampere and Ada
    {90, {}},  // Hopper
    {100, {}}, // Blackwell of data centres
    {120, {}}, // and of workstations
};

} // namespace

const Tuning &aligned::tuningFor(StringRef chip) {
  const Family *found = kFamilies;
  for (const Family &family : kFamilies)
    if (family.capability <= capabilityOf(chip))
      found = &family;
  return found->tuning;
}
