// Tokens that a cache keeps aside (S7), as one row of it sees them.
#ifndef ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ASIDE_H
#define ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ASIDE_H

#include "aligned/Conversion/Common/Emitter.h"

namespace aligned {

class AsideTokens {
public:
  AsideTokens() = default;
  /// Of a row of `cache`, a pointer to an aligned_cache; `row` is an index.
  AsideTokens(Val cache, Val row, int64_t headDim);

  /// For every one: its number and where its values lie.
  void forEach(llvm::function_ref<void(Val token, Buffer values)> body) const;
  /// Whether any row of the cache has one.
  Val areThere() const { return count > 0; }
  /// The largest finite magnitude, 0 where there is none.
  Val largest() const;

private:
  Val row, list, values, count; ///< the list is of all rows
  int64_t headDim = 0;
};

} // namespace aligned

#endif // ALIGNED_LIB_CONVERSION_ALIGNEDTOCPU_ASIDE_H
