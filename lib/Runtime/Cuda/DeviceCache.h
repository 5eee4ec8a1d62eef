// A cache in device memory. The struct that callers hold is on the host and says what the copy of it that kernels read says, but
// for what kernels write: of tokens and lengths the host keeps its own account, of escapes a number that is as old as the last
// work that is done.
#ifndef ALIGNED_LIB_RUNTIME_CUDA_DEVICECACHE_H
#define ALIGNED_LIB_RUNTIME_CUDA_DEVICECACHE_H

#include "../BlockTable.h"
#include "Program.h"

#include "aligned/Runtime/Cache.h"

namespace aligned::cuda {

/// What an append does to the batch entries.
struct Growth {
  std::vector<int64_t> counts;
  int64_t most = 0;    ///< of counts
  int64_t longest = 0; ///< entry, afterwards
  int64_t newBlocks = 0;
};

class DeviceCache : public aligned_cache {
public:
  /// Empty; physical: blocks that entries share, or -1. Planes past `planes` are not made. Registers device caches.
  static std::unique_ptr<DeviceCache> create(std::shared_ptr<Program> program, const aligned_format &format, int64_t batch,
                                             int64_t kvHeads, int64_t headDim, int64_t capacity, int64_t physical,
                                             int planes = ALIGNED_MAX_PLANES, int64_t escapeRoom = 1024);
  ~DeviceCache() { order.wait(); }

  const std::shared_ptr<Program> program;
  const cuda::Append *const append; ///< kernels, or null
  Order order;

  const Context &context() const { return program->context; }
  Address structure() const { return structureMemory.address(); }
  int64_t length(int64_t entry) const { return entryLengths[entry]; }
  const std::vector<int64_t> &allLengths() const { return entryLengths; }
  int64_t elementBytes() const { return format.element == ALIGNED_ELEMENT_F32 ? 4 : 2; }
  int64_t bytes() const;
  int64_t freeBlocks() const { return table.freeBlocks(); }

  /// Appends from device memory, or from the host's.
  bool appendFrom(const void *data, bool onHost, const int64_t *counts, int64_t count, const int64_t strides[4]);
  bool release(int64_t entry);
  bool truncate(int64_t tokens);
  bool dropPlanes(int planes);
  std::unique_ptr<DeviceCache> clone();
  static std::unique_ptr<DeviceCache> upload(std::shared_ptr<Program> program, const aligned_cache &host);
  aligned_cache *download();

  /// Whether all values that are not finite had room, as far as is known without waiting.
  bool checkEscapes();

  // For captured steps, in which nothing may be allocated, waited for or decided by the host.
  /// What one more token for each entry does. Fails where there is no room for it.
  bool planStep(Growth &growth) const;
  /// Memory that the kernels of an append of up to `most` tokens to an entry work in. Negative where sizes overflow.
  int64_t scratchBytes(int64_t most) const;
  /// Queues the kernels of an append of counts that are in device memory.
  bool launchAppend(Address data, Address counts, int64_t most, const int64_t strides[4], Address scratch, Stream stream);
  bool checkGrids(int64_t most) const { return program->checkGrids(append->launches, symbols(most)); }
  /// Gives the new full blocks their pages, on the device.
  bool preparePages(const Growth &growth, Stream stream);
  /// The kernels are queued: what they do is so.
  void account(const Growth &growth);

private:
  DeviceCache(std::shared_ptr<Program> program, const aligned_format &format, int64_t headDim)
      : aligned_cache(), program(std::move(program)), append(this->program->appendTo(format, headDim)) {}
  bool plan(const int64_t *counts, int64_t count, Growth &growth) const;
  /// Bytes of a block of plane p, or of exponents.
  int64_t blockBytes(int p) const { return ALIGNED_BLOCK * head_dim * format.width[p] / 8; }
  int64_t exponentBlockBytes() const {
    return format.kind == ALIGNED_FORMAT_FLOAT ? 0 : format.role == ALIGNED_ROLE_KEY ? head_dim : ALIGNED_BLOCK;
  }
  int residentPlanes() const;
  int64_t summaryBytes() const { return rows * head_dim * int64_t(sizeof(float)); }
  bool hasMeans() const { return format.kind == ALIGNED_FORMAT_FIXED && format.role == ALIGNED_ROLE_VALUE; }
  Symbols symbols(int64_t most) const;

  struct Storage {
    Memory plane[ALIGNED_MAX_PLANES], exponent;
  };
  bool allocate(Storage &storage, int64_t tokens) const;
  void publish();
  /// Copies fields `first` up to, not including, `end` of the struct to the device.
  bool push(size_t first, size_t end, Stream stream);
  bool grow(int64_t tokens, Stream stream);
  bool growEscapes(int64_t room, Stream stream);
  /// Copies full blocks of every row to or from memory with `capacity` tokens a row.
  template <typename Copy> bool forBlocks(int64_t capacity, Copy copy) const;
  bool ownLengths(Stream stream);
  bool writeCounts(const std::vector<int64_t> &counts, Stream stream);
  bool waitForEscapes(Stream stream); ///< `escapes` is then exact
  /// Runs body(stream) in the context after what came before on the cache.
  template <typename Body> bool inOrder(Body body);

  Storage storage;
  Memory structureMemory, maxima, means, openTokens, escapeList, pageTable, lengthList, countList;
  BlockTable table;
  std::vector<int64_t> entryLengths;
  std::vector<int64_t> countsThere; ///< what is in countList
  HostWord escapesSeen;
  int64_t escapeBound = 0; ///< that there may be at most, of what the host has seen
};

/// The device cache behind the handle, or null and a message that says `what` was expected to be one.
DeviceCache *deviceCache(const char *what, aligned_cache *cache);

} // namespace aligned::cuda

#endif
