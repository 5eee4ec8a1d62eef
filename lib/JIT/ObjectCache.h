// Compiled modules on disk, so that what was compiled once is not compiled by the next process.
//
// An entry is a file named by the hash of all that its content depends on. It is written beside its place and renamed to it: writers may race, and readers see
// a whole file or none. A file that is torn, by a full disk say, does not agree with its own checksum and counts as none. When entries take more than
// kMostBytes, those that were not used for longest go.
//
// The folder is $ALIGNED_CACHE_DIR, else `alignedkv` in the user's cache folder; ALIGNED_CACHE_DIR=off: nothing is kept.
#ifndef ALIGNED_LIB_JIT_OBJECTCACHE_H
#define ALIGNED_LIB_JIT_OBJECTCACHE_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <optional>
#include <string>

namespace aligned {

class ObjectCache {
public:
  static constexpr uint64_t kMostBytes = 256u << 20;

  /// An entry for what all of `source` together says.
  explicit ObjectCache(llvm::ArrayRef<llvm::StringRef> source);

  std::optional<std::string> load() const;
  /// What can't be written is not kept; that is no error.
  void store(llvm::StringRef content) const;

private:
  std::string folder, path; ///< empty: nothing is kept
};

} // namespace aligned

#endif // ALIGNED_LIB_JIT_OBJECTCACHE_H
