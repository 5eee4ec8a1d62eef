// Which physical blocks hold the full blocks of each batch entry (S5), and which are free.
//
// Blocks are taken in two steps, so that an append that fails has changed nothing: `next` says which blocks would come, they are
// written while nobody looks at them, and `take` hands them over.
#ifndef ALIGNED_LIB_RUNTIME_BLOCKTABLE_H
#define ALIGNED_LIB_RUNTIME_BLOCKTABLE_H

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>

namespace aligned {

class BlockTable {
public:
  static constexpr int64_t mostBlocks = std::numeric_limits<int32_t>::max();

  /// For `entries` batch entries of up to `blocks` blocks each, out of `physical`, at most `mostBlocks`. False if memory is out.
  bool allocate(int64_t entries, int64_t blocks, int64_t physical) {
    int64_t places = 0;
    if (__builtin_mul_overflow(entries, blocks, &places) || places > std::numeric_limits<int64_t>::max() / 8)
      return false;
    table = list(places);
    free = list(physical);
    if (!table || !free)
      return false;
    entryBlocks = blocks;
    this->entries = entries;
    this->physical = freeCount = physical;
    std::fill_n(table.get(), places, -1);
    for (int64_t i = 0; i < physical; ++i) // the first is taken first
      free[i] = static_cast<int32_t>(physical - 1 - i);
    return true;
  }

  /// Becomes what a table of the same sizes is.
  void copyFrom(const BlockTable &other) {
    std::copy_n(other.table.get(), entries * entryBlocks, table.get());
    std::copy_n(other.free.get(), physical, free.get());
    freeCount = other.freeCount;
  }

  /// Becomes this table: the blocks that are not in it are free.
  void restore(const int32_t *places) {
    std::copy_n(places, entries * entryBlocks, table.get());
    // The free list has room for all blocks: mark those that are held, then close the gaps.
    for (int64_t block = 0; block < physical; ++block)
      free[block] = static_cast<int32_t>(physical - 1 - block);
    for (int64_t i = 0; i < entries * entryBlocks; ++i)
      if (table[i] >= 0)
        free[physical - 1 - table[i]] = -1;
    freeCount = std::remove(free.get(), free.get() + physical, -1) - free.get();
  }

  const int32_t *data() const { return table.get(); }
  int64_t bytes() const { return entries * entryBlocks * int64_t(sizeof(int32_t)); }
  int64_t blocksPerEntry() const { return entryBlocks; }
  int64_t physicalBlocks() const { return physical; }
  int64_t freeBlocks() const { return freeCount; }
  int32_t at(int64_t entry, int64_t block) const { return table[entry * entryBlocks + block]; }

  /// The physical block that is taken after `ahead` others.
  int32_t next(int64_t ahead) const { return free[freeCount - 1 - ahead]; }
  void take(int64_t entry, int64_t block) { table[entry * entryBlocks + block] = free[--freeCount]; }
  /// Frees the blocks of `entry` from `first` on, so that they are taken again in the same order.
  void give(int64_t entry, int64_t first) {
    for (int64_t block = entryBlocks; block-- > first;) {
      int32_t &place = table[entry * entryBlocks + block];
      if (place >= 0)
        free[freeCount++] = place;
      place = -1;
    }
  }

private:
  struct Free {
    void operator()(int32_t *memory) const { std::free(memory); }
  };
  using List = std::unique_ptr<int32_t[], Free>;
  static List list(int64_t count) {
    return List(
        static_cast<int32_t *>(std::aligned_alloc(64, (std::max<int64_t>(count, 1) * int64_t(sizeof(int32_t)) + 63) / 64 * 64)));
  }

  List table, free;
  int64_t entries = 0, entryBlocks = 0, physical = 0, freeCount = 0;
};

} // namespace aligned

#endif
