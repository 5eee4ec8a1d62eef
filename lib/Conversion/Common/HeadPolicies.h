// The policies of the kv heads as one kernel that serves them all sees them: numbers that depend on which head it works for, and what limits make of the
// layers that a plan asks for (P7). A number that is the same for all heads is a constant of the kernel.
#ifndef ALIGNED_LIB_CONVERSION_COMMON_HEADPOLICIES_H
#define ALIGNED_LIB_CONVERSION_COMMON_HEADPOLICIES_H

#include "DecodeShape.h"

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

/// Layers are fetched by whole planes, and only `resident` ones (a scalar).
Val wholePlanes(Val layers, Val resident, PlanesAttr split);

class HeadPolicies {
public:
  HeadPolicies(const DecodeShape &shape, Val head) : policies(shape.policies), keyPlanes(shape.keyPlanes), valuePlanes(shape.valuePlanes), head(head) {}

  /// A number that policies give, of this kv head.
  Val number(mlir::Type type, llvm::function_ref<double(PolicyAttr)> of) const;
  /// The tolerance of this side.
  Val tolerance(CacheRole side) const;
  /// Whether the policy of any kv head limits this side.
  static bool areLimited(llvm::ArrayRef<PolicyAttr> policies, CacheRole side);
  bool isLimited(CacheRole side) const { return areLimited(policies, side); }
  /// What limits make of `layers`, lane by lane or scalars, that are wanted of tokens first .. last, which are read alike; whole planes. `resident`
  /// layers of the cache may be read, which holds `tokens` tokens (i32 scalars).
  Val limit(Val layers, CacheRole side, Val resident, Val tokens, Val first, Val last) const;

private:
  llvm::ArrayRef<PolicyAttr> policies;
  PlanesAttr keyPlanes, valuePlanes;
  Val head; ///< of any integer type
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_COMMON_HEADPOLICIES_H
