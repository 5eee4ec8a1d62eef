// Which accesses are ordered. Every warp has a clock that its synchronising instructions advance, and knows for every other warp
// of its block the clock below which all is over: at a barrier the warps that take part learn what any of them knew. Within a
// warp a warp barrier of all its lanes orders everything before it; one of some lanes orders pairs of lanes. Between blocks
// knowledge travels through atomics: what a thread has written before a fence is published by its next atomic, and known to
// whoever executes an atomic there afterwards.
//
// For four bytes, a cell holds the last writer and the reads since then: of one thread, of several lanes of a warp, of several
// warps of a block, or of several blocks. An access of fewer bytes splits its cell.

#include "Code.h"

#include <algorithm>
#include <cstdlib>

namespace aligned::emulator {

namespace {

// In the high bits of a cell's clocks.
constexpr uint32_t clockMask = (1u << 28) - 1;
constexpr uint32_t weakFlag = 0, strongFlag = 1u << 28; // of a write: an atomic; of reads: all strong
constexpr uint32_t oneThread = 0, oneWarp = 1u << 29, oneBlock = 2u << 29, anyBlock = 3u << 29, readersMask = 3u << 29;
constexpr uint32_t splitFlag = 1u << 31; // of writeClock: the four bytes' cells are at splits[reader]

/// Whether an access of `thread` at `clock` is over for `lane` of `warp`.
bool ordered(const Warp &warp, unsigned lane, uint32_t thread, uint32_t clock) {
  uint32_t number = thread / warpSize;
  const WarpOrder &order = warp.order;
  if (number == warp.number) {
    if (thread % warpSize == lane || clock < order.base)
      return true;
    return !order.partial.empty() && clock < order.partial[lane * warpSize + thread % warpSize];
  }
  uint32_t index = number - warp.block->firstWarp;
  if (index < warp.block->warps.size() && clock < order.block[index])
    return true;
  return !order.foreign.empty() && (clock < order.foreign.at(number) || clock < order.foreign.at(thread | Knowledge::threadKey));
}

bool sameBlock(const Warp &warp, uint32_t thread) { return thread / warpSize - warp.block->firstWarp < warp.block->warps.size(); }

/// Whether all reads of a cell are over.
bool readsOrdered(const Warp &warp, unsigned lane, const Cell &cell) {
  uint32_t clock = cell.readClock & clockMask, number = cell.reader / warpSize;
  switch (cell.readClock & readersMask) {
  case oneThread:
    return ordered(warp, lane, cell.reader, clock);
  case oneWarp:
    if (number == warp.number)
      return clock < warp.order.base;
    return ordered(warp, lane, cell.reader, clock);
  case oneBlock: // the clock counts barriers
    if (sameBlock(warp, cell.reader))
      return clock < warp.block->generation;
    return warp.order.foreign.at(number) != 0;
  default: // more than can be told: whoever has synchronised with another block may
    return !warp.order.foreign.empty();
  }
}

std::string describeOther(const Launch &launch, uint32_t thread, uint32_t code) {
  const Instruction *source = launch.kernel->code[code].source;
  return describeThread(launch, thread) + " at line " + std::to_string(source->line) + " '" + source->text + "'";
}

class Recorder {
public:
  Recorder(Warp &warp, uint32_t code, unsigned lane, Region &region, Access access)
      : warp(warp), launch(*warp.launch), code(code), lane(lane), region(region), access(access),
        thread(warp.number * warpSize + lane), clock(warp.order.lane[lane]) {}

  bool touch(Cell &cell, uint64_t offset) {
    bool reads = access == Access::Read || access == Access::StrongRead;
    bool strong = access == Access::StrongRead || access == Access::Atomic;
    bool hasWriter = cell.writer >= region.firstThread, hasReader = cell.reader >= region.firstThread;
    if (hasWriter && cell.writer != thread && !(strong && (cell.writeClock & strongFlag)) &&
        !ordered(warp, lane, cell.writer, cell.writeClock & clockMask)) {
      // The atomic of another block is over for who has come to the same place by an atomic since.
      bool seen = (cell.writeClock & strongFlag) && !sameBlock(warp, cell.writer) &&
                  warp.block->observed.count(region.begin + offset / 4 * 4);
      if (!seen)
        return conflict(offset, reads ? "read" : "write", "write by ", cell.writer, oneThread, cell.writeCode);
    }
    if (reads) {
      addReader(cell, strong);
      return true;
    }
    if (hasReader && (cell.reader != thread || (cell.readClock & readersMask)) && !(strong && (cell.readClock & strongFlag)) &&
        !readsOrdered(warp, lane, cell))
      return conflict(offset, "write", "read by ", cell.reader, cell.readClock & readersMask, cell.readCode);
    if (strong && hasWriter && cell.writer == thread && cell.writeClock == (clock | weakFlag))
      return true; // what is unordered with the weaker one is so with both
    cell.writer = thread;
    cell.writeClock = clock | (strong ? strongFlag : weakFlag);
    cell.writeCode = code;
    cell.reader = 0;
    return true;
  }

private:
  void addReader(Cell &cell, bool strong) {
    uint32_t old = cell.readClock & clockMask, readers = cell.readClock & readersMask;
    uint32_t flag = strong ? strongFlag : 0;
    auto set = [&](uint32_t who, uint32_t clock) {
      cell.reader = thread, cell.readCode = code, cell.readClock = clock | who | flag;
    };
    if (cell.reader < region.firstThread || (cell.reader == thread && readers == oneThread))
      return set(oneThread, clock);
    if (readers == anyBlock)
      return;
    flag &= cell.readClock;
    bool same = cell.reader / warpSize == warp.number;
    if (!sameBlock(warp, cell.reader))
      return set(anyBlock, 0);
    if (readers == oneBlock) {
      if (old < warp.block->generation)
        set(oneThread, clock);
      return;
    }
    if (same && old < warp.order.base)
      return set(oneThread, clock);
    if (same)
      return set(oneWarp, std::max(old, clock));
    if (ordered(warp, lane, cell.reader, old))
      return set(oneThread, clock);
    set(oneBlock, warp.block->generation);
  }

  bool conflict(uint64_t offset, const char *mine, std::string its, uint32_t other, uint32_t others, uint32_t otherCode) {
    std::string where =
        region.begin == 0 ? "shared memory at " + hexadecimal(offset) : "global memory at " + hexadecimal(region.begin + offset);
    if (!region.name.empty())
      where += " ('" + region.name + "' + " + std::to_string(offset) + ")";
    const char *kind = !sameBlock(warp, other) || others == anyBlock           ? "between blocks"
                       : other / warpSize != warp.number || others == oneBlock ? "within a block"
                                                                               : "within a warp";
    if (others != oneThread)
      its += "several threads, one of them ";
    failAt(warp, code, lane, Fault::Race,
           std::string("race ") + kind + ": this " + mine + " of " + where + " is not ordered with a " + its +
               describeOther(launch, other, otherCode));
    return false;
  }

  Warp &warp;
  Launch &launch;
  uint32_t code;
  unsigned lane;
  Region &region;
  Access access;
  uint32_t thread, clock;
};

} // namespace

void recordAccess(Warp &warp, uint32_t code, unsigned lane, Region &region, uint64_t offset, unsigned bytes, Access access) {
  if (!region.cells)
    region.cells = static_cast<Cell *>(std::calloc((region.end - region.begin + 3) / 4, sizeof(Cell)));
  if (!region.cells)
    return; // no memory, no checks
  Recorder recorder(warp, code, lane, region, access);
  for (uint64_t at = offset, end = offset + bytes; at < end;) {
    uint64_t word = at / 4 * 4, stop = std::min(word + 4, end);
    Cell &cell = region.cells[word / 4];
    bool whole = at == word && stop == word + 4;
    bool split = cell.writeClock & splitFlag;
    if (split && cell.writer < region.firstThread) { // of the past, and so are the cells it stands for
      cell = Cell();
      split = false;
    }
    if (whole && !split) {
      if (!recorder.touch(cell, word))
        return;
    } else {
      if (!split) {
        auto index = uint32_t(region.splits.size());
        region.splits.push_back({cell, cell, cell, cell});
        cell.writeClock = splitFlag;
        cell.writer = region.firstThread;
        cell.reader = index;
      }
      for (uint64_t byte = at; byte < stop; ++byte)
        if (!recorder.touch(region.splits[region.cells[word / 4].reader][byte - word], byte))
          return;
      if (whole && (access == Access::Write || access == Access::Atomic)) // all bytes alike again
        cell = region.splits[cell.reader][0];
    }
    at = stop;
  }
}

//===----------------------------------------------------------------------===//
// Clocks
//===----------------------------------------------------------------------===//

void orderWarp(Warp &warp, Mask lanes) {
  WarpOrder &order = warp.order;
  auto shareFences = [&](Mask which) {
    for (unsigned side = 0; side < 2; ++side)
      for (unsigned i = 0; i < warpSize; ++i)
        if ((which >> i & 1) && order.fencedLane[side][i]) {
          order.fenced[side].raise((warp.number * warpSize + i) | Knowledge::threadKey, order.fencedLane[side][i]);
          order.fencedLane[side][i] = 0;
        }
  };
  Mask live = warp.exists & ~warp.exited;
  shareFences(lanes);
  uint32_t now = ++order.counter;
  if ((lanes & live) == live) {
    order.base = now;
    std::fill(std::begin(order.lane), std::end(order.lane), now);
    return;
  }
  if (order.partial.empty())
    order.partial.assign(warpSize * warpSize, 0);
  uint32_t merged[warpSize] = {};
  for (unsigned i = 0; i < warpSize; ++i)
    if (lanes >> i & 1)
      for (unsigned j = 0; j < warpSize; ++j)
        merged[j] = std::max(merged[j], (lanes >> j & 1) ? now : order.partial[i * warpSize + j]);
  for (unsigned i = 0; i < warpSize; ++i)
    if (lanes >> i & 1) {
      std::copy(std::begin(merged), std::end(merged), order.partial.begin() + i * warpSize);
      order.lane[i] = now;
    }
}

void fence(Warp &warp, Mask lanes, bool device) {
  WarpOrder &order = warp.order;
  for (unsigned side = 0; side < (device ? 2u : 1u); ++side) {
    Knowledge &fenced = order.fenced[side];
    fenced.raise(warp.number, order.base);
    for (size_t i = 0; i < order.block.size(); ++i)
      if (order.block[i])
        fenced.raise(warp.block->firstWarp + i, order.block[i]);
    if (!order.foreign.empty())
      fenced.join(order.foreign);
    for (unsigned i = 0; i < warpSize; ++i)
      if (lanes >> i & 1)
        order.fencedLane[side][i] = order.lane[i] + 1;
  }
  uint32_t now = ++order.counter;
  for (unsigned i = 0; i < warpSize; ++i)
    if (lanes >> i & 1)
      order.lane[i] = now;
  if (!order.pending.empty()) {
    order.foreign.join(order.pending);
    order.pending = Knowledge();
  }
}

void publish(Warp &warp, unsigned lane, uint64_t location) {
  unsigned side = location & windowMask ? 0 : 1;
  const WarpOrder &order = warp.order;
  uint32_t own = order.fencedLane[side][lane];
  if (order.fenced[side].empty() && !own)
    return;
  Knowledge &signal = warp.launch->signals[location];
  signal.join(order.fenced[side]);
  if (own)
    signal.raise((warp.number * warpSize + lane) | Knowledge::threadKey, own);
}

void observe(Warp &warp, uint64_t location, bool acquire) {
  warp.block->observed.insert(location & ~uint64_t(3) & ~windowMask);
  auto it = warp.launch->signals.find(location);
  if (it == warp.launch->signals.end())
    return;
  WarpOrder &order = warp.order;
  (acquire || !warp.launch->options->acquireNeedsFence ? order.foreign : order.pending).join(it->second);
}

void orderBarrier(Block &block, const std::vector<std::pair<uint32_t, Mask>> &arrivals) {
  Mask lanes[warpSize] = {}; // of each warp
  for (auto [index, mask] : arrivals)
    lanes[index] |= mask;
  std::vector<uint32_t> known(block.warps.size());
  Knowledge foreign, fenced[2];
  std::vector<Warp *> parties;
  for (size_t w = 0; w < block.warps.size(); ++w) {
    if (!lanes[w])
      continue;
    Warp &warp = *block.warps[w];
    parties.push_back(&warp);
    orderWarp(warp, lanes[w]);
    for (size_t i = 0; i < known.size(); ++i)
      known[i] = std::max(known[i], warp.order.block[i]);
    known[w] = std::max(known[w], warp.order.counter); // orderWarp has advanced it past all accesses
    if (!warp.order.foreign.empty())
      foreign.join(warp.order.foreign);
    for (unsigned side = 0; side < 2; ++side)
      if (!warp.order.fenced[side].empty())
        fenced[side].join(warp.order.fenced[side]);
  }
  for (Warp *warp : parties) {
    warp->order.block = known;
    if (!foreign.empty())
      warp->order.foreign = foreign;
    for (unsigned side = 0; side < 2; ++side)
      if (!fenced[side].empty())
        warp->order.fenced[side] = fenced[side];
  }
  ++block.generation;
}

} // namespace aligned::emulator
