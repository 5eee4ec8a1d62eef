// Which physical pages hold the tiles of each batch entry, and which are free.
//
// A cache and its forks have a table each and one pool of pages. A page may be held by several tables; the pool counts its holders. Nobody writes to
// a page that others hold: an append that would takes a page of its own in its place first.
//
// An append changes the table in two steps, so that one that fails has changed nothing: `reserve` puts the pages that it will write to in the table,
// where nobody looks yet, and remembers those it replaced; `commit` or `undo` ends that. Forks may be used from several threads: the pool locks
// itself.
#ifndef ALIGNED_LIB_RUNTIME_PAGETABLE_H
#define ALIGNED_LIB_RUNTIME_PAGETABLE_H

#include "Memory.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

namespace aligned {

constexpr int64_t pagesFor(int64_t tokens) { return (tokens + ALIGNED_TILE - 1) / ALIGNED_TILE; }

class PageTable {
public:
  static constexpr int64_t mostPages = std::numeric_limits<int32_t>::max();

  PageTable() = default;
  PageTable(const PageTable &) = delete;
  PageTable &operator=(const PageTable &) = delete;
  ~PageTable() {
    for (int64_t entry = 0; entry < entries; ++entry)
      give(entry, 0);
  }

  /// For `entries` batch entries of up to `pages` pages each, out of a pool of `physical`, at most `mostPages`. False if memory is out.
  bool allocate(int64_t entries, int64_t pages, int64_t physical) {
    try {
      pool = std::make_shared<Pool>();
    } catch (const std::bad_alloc &) {
      return false;
    }
    return pool->allocate(physical) && allocateTable(entries, pages);
  }

  /// Becomes another holder of another table's pages: entry n, of those of entry entryOf(n). False if memory is out.
  template <typename EntryOf> bool share(const PageTable &other, int64_t entries, EntryOf entryOf) {
    pool = other.pool;
    if (!allocateTable(entries, other.entryPages))
      return false;
    std::lock_guard<std::mutex> lock(pool->mutex);
    for (int64_t entry = 0; entry < entries; ++entry)
      for (int64_t page = 0; page < entryPages; ++page)
        if (const int32_t own = table[entry * entryPages + page] = other.at(entryOf(entry), page); own >= 0)
          ++pool->holders[own];
    return true;
  }
  bool share(const PageTable &other) {
    return share(other, other.entries, [](int64_t entry) { return entry; });
  }

  const int32_t *data() const { return table; }
  int64_t bytes() const { return entries * entryPages * int64_t(sizeof(int32_t)); }
  int64_t physicalPages() const { return pool ? pool->physical : 0; }
  int64_t freePages() const {
    if (!pool)
      return 0;
    std::lock_guard<std::mutex> lock(pool->mutex);
    return pool->freeCount;
  }
  int32_t at(int64_t entry, int64_t page) const { return table[entry * entryPages + page]; }

  /// What a table needs and a pool has.
  struct Need {
    int64_t pages, free;
    bool met() const { return pages <= free; }
  };

  /// Takes the pages that let entry n grow from lengthOf(n) tokens by countOf(n). Takes none if they are too few.
  template <typename LengthOf, typename CountOf> Need reserve(LengthOf lengthOf, CountOf countOf) {
    std::lock_guard<std::mutex> lock(pool->mutex);
    /// The page that the first new token goes to, if tokens are there already; else -1.
    auto grownPage = [&](int64_t entry) {
      int64_t length = lengthOf(entry);
      return countOf(entry) > 0 && length % ALIGNED_TILE ? at(entry, length / ALIGNED_TILE) : -1;
    };
    /// Whether others hold it. Of entries that all grow and that nobody else shares it with, the last one keeps it: it is written to when the others have copied it.
    auto isShared = [&](int64_t entry) {
      const int32_t page = grownPage(entry);
      if (page < 0 || pool->holders[page] == 1)
        return false;
      int32_t before = 0, behind = 0;
      for (int64_t other = 0; other < entries; ++other)
        if (other != entry && grownPage(other) == page)
          ++(other < entry ? before : behind);
      return behind > 0 || before + 1 < pool->holders[page];
    };
    Need need = {0, pool->freeCount};
    for (int64_t entry = 0; entry < entries; ++entry) {
      replaced[entry] = isShared(entry) ? grownPage(entry) : -1;
      anyReplaced |= replaced[entry] >= 0;
      need.pages += pagesFor(lengthOf(entry) + countOf(entry)) - pagesFor(lengthOf(entry)) + (replaced[entry] >= 0);
    }
    if (!need.met()) {
      std::fill_n(replaced, entries, -1);
      anyReplaced = false;
    }
    if (need.pages == 0 || !need.met())
      return need;
    for (int64_t entry = 0; entry < entries; ++entry) {
      int32_t *pages = &table[entry * entryPages];
      const int64_t length = lengthOf(entry);
      if (replaced[entry] >= 0)
        pages[length / ALIGNED_TILE] = pool->take();
      for (int64_t page = pagesFor(length); page < pagesFor(length + countOf(entry)); ++page)
        pages[page] = pool->take();
    }
    return need;
  }

  /// Calls body(page of its own, page that it replaces, which is to be copied).
  template <typename LengthOf, typename Body> void forEachReplaced(LengthOf lengthOf, Body body) const {
    for (int64_t entry = 0; entry < entries && anyReplaced; ++entry)
      if (replaced[entry] >= 0)
        body(at(entry, lengthOf(entry) / ALIGNED_TILE), replaced[entry]);
  }

  void commit() {
    if (!anyReplaced)
      return;
    std::lock_guard<std::mutex> lock(pool->mutex);
    for (int64_t entry = 0; entry < entries; ++entry)
      if (replaced[entry] >= 0)
        pool->drop(std::exchange(replaced[entry], -1));
    anyReplaced = false;
  }

  template <typename LengthOf> void undo(LengthOf lengthOf) {
    for (int64_t entry = entries; entry-- > 0;) {
      give(entry, pagesFor(lengthOf(entry)));
      if (replaced[entry] < 0)
        continue;
      std::lock_guard<std::mutex> lock(pool->mutex);
      int32_t &page = table[entry * entryPages + lengthOf(entry) / ALIGNED_TILE];
      pool->drop(std::exchange(page, std::exchange(replaced[entry], -1)));
    }
    anyReplaced = false;
  }

  /// Lets go of the pages of `entry` from `first` on, so that those that are free then are taken again in the same order.
  void give(int64_t entry, int64_t first) {
    int64_t end = first;
    while (end < entryPages && at(entry, end) >= 0)
      ++end;
    if (first == end)
      return;
    std::lock_guard<std::mutex> lock(pool->mutex);
    for (int64_t page = end; page-- > first;)
      pool->drop(std::exchange(table[entry * entryPages + page], -1));
  }

private:
  /// Its functions are called with the lock held.
  struct Pool {
    std::mutex mutex;
    Array memory;
    int32_t *free, *holders; ///< the free pages, the next one last; how many tables hold a page
    int64_t physical = 0, freeCount = 0;

    bool allocate(int64_t pages) {
      if (!memory.allocate(product(2, pages, sizeof(int32_t))))
        return false;
      physical = freeCount = pages;
      free = memory.as<int32_t>();
      holders = free + pages;
      std::fill_n(holders, pages, 0);
      for (int64_t i = 0; i < pages; ++i) // the first is taken first
        free[i] = static_cast<int32_t>(pages - 1 - i);
      return true;
    }
    int32_t take() {
      const int32_t page = free[--freeCount];
      holders[page] = 1;
      return page;
    }
    void drop(int32_t page) {
      if (--holders[page] == 0)
        free[freeCount++] = page;
    }
  };

  bool allocateTable(int64_t entries, int64_t pages) {
    if (!tableMemory.allocate(product(entries, std::max<int64_t>(pages, 1), sizeof(int32_t))) ||
        !replacedMemory.allocate(product(entries, sizeof(int32_t))))
      return false;
    table = tableMemory.as<int32_t>();
    replaced = replacedMemory.as<int32_t>();
    std::fill_n(table, entries * pages, -1);
    std::fill_n(replaced, entries, -1);
    entryPages = pages;
    this->entries = entries;
    return true;
  }

  std::shared_ptr<Pool> pool;
  Array tableMemory, replacedMemory;
  int32_t *table = nullptr;
  int32_t *replaced = nullptr; ///< by an append in progress: an entry's page that others hold, or -1
  bool anyReplaced = false;
  int64_t entries = 0, entryPages = 0;
};

} // namespace aligned

#endif
