// A cache in device memory, stored bit by bit as on the host. The struct that callers hold is on the host. Kernels read a copy of it, and write there what the
// host's leaves open: bias and tokens kept aside. Of tokens and lengths the host keeps its own account; of tokens kept aside it has a number that is as
// old as the last work that is done.
//
// Forks share pages, and the order of work on them, until one writes to a page (PageTable.h).
#ifndef ALIGNED_LIB_RUNTIME_CUDA_DEVICECACHE_H
#define ALIGNED_LIB_RUNTIME_CUDA_DEVICECACHE_H

#include "../HostCache.h"
#include "../PageTable.h"
#include "Program.h"

#include "aligned/Runtime/DeviceCache.h"

#include <array>

namespace aligned::cuda {

/// What an append does to the batch entries.
struct Growth {
  std::vector<int64_t> counts;
  int64_t most = 0;    ///< of counts
  int64_t longest = 0; ///< entry, afterwards
};

class DeviceCache : public aligned_cache {
public:
  /// Empty; physical: pages that entries share, or -1. Registers device caches.
  static std::unique_ptr<DeviceCache> create(std::shared_ptr<Program> program, const aligned_format &format, int64_t batch, int64_t kvHeads, int64_t headDim,
                                             int64_t capacity, int64_t physical);
  ~DeviceCache() { order.wait(); }

  const std::shared_ptr<Program> program;
  const cuda::Append *const append; ///< kernels, or null

private:
  const std::shared_ptr<Order> sharedOrder; ///< with forks of the same pages

public:
  Order &order;

  const Context &context() const { return program->context; }
  Address structure() const { return structureMemory.address(); }
  int64_t length(int64_t entry) const { return entryLengths[entry]; }
  int64_t elementBytes() const { return format.element == ALIGNED_ELEMENT_F32 ? 4 : 2; }
  int64_t bytes() const;
  int64_t freePages() const { return table.freePages(); }

  /// Appends from device memory, or from the host's.
  bool appendFrom(const void *data, bool onHost, const int64_t *counts, int64_t count, const int64_t strides[4]);
  bool setOffset(const float *values);
  bool release(int64_t entry);
  bool truncate(int64_t entry, int64_t kept); ///< of all entries: -1
  bool dropPlanes(int64_t left);
  std::unique_ptr<DeviceCache> fork();
  static std::unique_ptr<DeviceCache> upload(std::shared_ptr<Program> program, const aligned_cache &host);
  aligned_cache *download();

  /// Whether all tokens kept aside had room, as far as is known without waiting.
  bool checkAsides();

  // For captured steps, in which nothing may be allocated, waited for or decided by the host.
  /// What one more token for each entry does. Fails where there is no room for it.
  bool planStep(Growth &growth) const;
  bool checkGrids(int64_t most) const { return program->checkGrids(append->launches, symbols(most)); }
  /// Takes the pages that the tokens need, with what shared ones hold.
  bool preparePages(const Growth &growth, Stream stream);
  /// Queues the kernels of an append of counts that are in device memory.
  bool launchAppend(Address data, Address counts, int64_t most, const int64_t strides[4], Stream stream);
  /// The kernels are queued: what they do is so.
  void account(const Growth &growth);
  /// The kernels are not queued: gives back what preparePages took.
  void cancel(const Growth &growth, Stream stream);

private:
  static constexpr int64_t kAsideRoom = 64; ///< tokens kept aside that there is room for, at least
  static constexpr int kCodes = ALIGNED_MAX_PLANES; ///< scale codes, among arrays of tiles
  /// Planes and codes. Forks with pages hold the same.
  using Tiles = std::array<std::shared_ptr<Memory>, kCodes + 1>;
  /// What is known of rows.
  enum { Scales, Sum, Offset, Maxima, kSummaries };
  struct Asides {
    Memory list, values, patterns;
    int64_t capacity = 0;
    bool allocate(const DeviceCache &cache, int64_t room);
    bool copyFrom(const Asides &other, Stream stream); ///< that has no more room
  };

  DeviceCache(std::shared_ptr<Program> program, const aligned_format &format, int64_t headDim, std::shared_ptr<Order> order)
      : aligned_cache(), program(std::move(program)), append(this->program->appendTo(format, headDim)), sharedOrder(std::move(order)), order(*sharedOrder) {}
  /// Without memory.
  static std::unique_ptr<DeviceCache> create(std::shared_ptr<Program> program, const aligned_format &format, int64_t batch, int64_t kvHeads, int64_t headDim,
                                             int64_t capacity, std::shared_ptr<Order> order);

  bool isFixed() const { return format.kind == ALIGNED_FORMAT_FIXED; }
  int64_t tileBytes(int array) const;
  int64_t summaryBytes(int which) const;
  static void *summaryOf(const aligned_cache &host, int which);
  Symbols symbols(int64_t most) const {
    Symbols symbols = {batch, kv_heads, capacity};
    symbols.touched = pagesFor(most) + 1;
    return symbols;
  }

  bool allocate(int64_t physical, const aligned_cache_state &state, Stream stream);
  bool allocate(Tiles &tiles, int64_t tokens, int64_t physical, Stream stream) const;
  bool allocateSummaries(int64_t asideRoom, Stream stream);
  void publish();
  /// Copies the struct to the device: what the host alone writes, or all of it.
  bool push(Stream stream, const aligned_cache_state *state = nullptr);
  bool pushTable(int64_t entry, Stream stream);
  bool grow(int64_t tokens, Stream stream);
  bool growAsides(int64_t room, Stream stream);
  bool ownLengths(Stream stream);

  bool checkKernels() const;
  bool plan(const int64_t *counts, int64_t count, Growth &growth) const;
  bool seeAsides(Stream stream); ///< `asidesSeen` will be exact when the stream gets there
  /// Room for what an append keeps aside: `listed` tokens that the host has seen, and others as far as may be expected.
  bool makeRoomAside(int64_t most, int64_t listed, Stream stream);
  bool writeCounts(const std::vector<int64_t> &counts, Stream stream);
  bool launch(const std::vector<Launch> &launches, Address data, Address counts, int64_t most, const int64_t *strides, Stream stream);
  /// Takes back the tokens behind `left` of each entry.
  bool drop(const std::vector<int64_t> &left, Stream stream);
  /// Calls copy(address of an array of this cache, of the same of the host's, bytes) for all that both hold.
  template <typename Copy> bool forArrays(const aligned_cache &host, Copy copy) const;
  /// Runs body(stream) in the context after what came before on the cache.
  template <typename Body> bool inOrder(Body body);

  Tiles tiles;
  Memory structureMemory, summaries[kSummaries], pageTable, lengthList, countList;
  Asides asideLists;
  PageTable table;
  std::vector<int64_t> entryLengths;
  std::vector<int64_t> countsThere; ///< what is in countList
  HostWord asidesSeen;
  bool offsetIsSet = false;
};

/// The device cache behind the handle, or null and a message that says `what` was expected to be one.
DeviceCache *deviceCache(const char *what, aligned_cache *cache);

} // namespace aligned::cuda

#endif
