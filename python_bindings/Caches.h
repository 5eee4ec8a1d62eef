// KV caches of the C interface as Python objects.
//
// Everything that takes time runs without the interpreter lock, so each cache has a lock of its own: a cache that one thread appends to must not be read by
// another. Whoever uses keys and values together takes both locks at once, so that nobody sees one of them changed and not the other. Attention in several pieces holds them from
// the first to the last (CacheHold).
#ifndef ALIGNED_PYTHON_CACHES_H
#define ALIGNED_PYTHON_CACHES_H

#include "Arrays.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <sys/types.h>
#include <unistd.h>

class Cache {
public:
  explicit Cache(aligned_cache *owned) : owned(owned) {}
  Cache(const Cache &) = delete;
  ~Cache() { aligned_cache_destroy(owned); }

  /// Takes over what a function of the C interface made, or says why it made nothing.
  static std::unique_ptr<Cache> take(aligned_cache *made) {
    if (!made)
      throwLast();
    return std::make_unique<Cache>(made);
  }

  /// For whoever holds the lock.
  aligned_cache *get() const {
    if (!owned)
      throw Error("expected an open cache, got one that was closed");
    return owned;
  }
  bool holds(const aligned_cache *cache) const { return owned == cache; }
  void swap(Cache &other) { std::swap(owned, other.owned); }
  void close() { aligned_cache_destroy(std::exchange(owned, nullptr)); }

private:
  friend class CacheLocks;
  void lock();

  aligned_cache *owned;
  std::mutex mutex;
  std::atomic<std::thread::id> holder{}; // of the mutex
  bool isHeld = false;                   // by a CacheHold of this thread, which may call on; for the holder
  bool isBusy = false;                   // in a call; for the holder
  std::atomic<pid_t> process{getpid()};
};

/// The locks of some caches, taken in one order by all threads. Held without the interpreter's. Throws where this thread has one of them in a call, which a handler of a signal
/// came into.
class CacheLocks {
public:
  explicit CacheLocks(std::vector<Cache *> caches, bool hold = false);
  CacheLocks(const CacheLocks &) = delete;
  ~CacheLocks();
  /// Whether some cache was given twice.
  bool hasTwins() const { return twins; }

private:
  struct Taken {
    Cache *cache;
    bool isNested; // in a hold
  };
  void release();

  std::vector<Taken> taken;
  bool twins = false;
};

/// Keys and values for several calls of one thread: `with` of Python.
class CacheHold {
public:
  CacheHold(Cache &key, Cache &value) : caches{&key, &value} {}
  /// Batch and planes, which stay until the end.
  std::pair<int64_t, int64_t> enter() {
    nb::gil_scoped_release release;
    locks.emplace(caches, true);
    return {caches[0]->get()->batch, caches[0]->get()->planes};
  }
  void exit() { locks.reset(); }

private:
  const std::vector<Cache *> caches;
  std::optional<CacheLocks> locks;
};

/// Runs `body` while this thread holds the caches and not the interpreter.
template <typename Body> auto locked(std::vector<Cache *> caches, Body body) {
  nb::gil_scoped_release release;
  CacheLocks locks(std::move(caches));
  return body();
}

/// Adds Cache and what works on pairs of them to the module.
void bindCaches(nb::module_ &m);

#endif
