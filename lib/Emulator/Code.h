// The form in which kernels run, and the state of a launch. A register is 32 lanes side by side at an offset in its warp's file;
// a predicate is 32 bits. Numbers and special registers live in the same file, so that an operand is nothing but an offset. A PTX
// instruction is one step or several: operands that are wider than the type of their instruction are narrowed before and widened
// after by steps of their own.

#pragma once

#include "Machine.h"
#include "Ptx.h"

#include <array>
#include <map>
#include <random>
#include <unordered_map>
#include <unordered_set>

namespace aligned::emulator {

constexpr unsigned warpSize = 32;
using Mask = uint32_t;
constexpr Mask allLanes = ~Mask(0);

struct Warp;
struct Step;
using Handler = void (*)(Warp &warp, const Step &step, Mask active);

struct Step {
  Handler run = nullptr;
  uint32_t d = 0, a = 0, b = 0, c = 0, e = 0; // offsets of registers: what is written, what is read
  uint32_t list = 0;                          // first in Kernel::lists: registers beyond these
  uint16_t count = 0;                         // of the list, or of elements
  uint16_t flags = 0;                         // the handler's own
  uint32_t code = 0;                          // the instruction it belongs to
  int64_t number = 0;                         // offset of an address, or what the handler likes
};

struct Code {
  enum Kind : uint8_t {
    Plain,
    Branch,      // to `target`
    BranchTable, // to lists[target + index]
    Exit,
    Barrier,   // of a block
    Collective // of the lanes in `members`
  };
  Kind kind = Plain;
  bool guardNegated = false;
  bool aligned = false; // all 32 lanes, or all threads' warps as a whole
  bool warpBarrier = false;
  bool synchronising = false, erased = false;
  int32_t guard = -1;
  uint32_t first = 0, count = 0; // steps
  uint32_t target = 0, tableSize = 0;
  uint32_t members = 0; // register of a collective's mask; of a barrier, its number
  int32_t threads = -1; // register of a barrier's count
  const Instruction *source = nullptr;
};

/// What Code::Barrier does besides waiting: Step::flags of its only step, if there is one.
enum BarrierFlags : uint16_t { BarrierArrive = 1, BarrierPopc = 2, BarrierAnd = 3, BarrierOr = 4, BarrierNegated = 8 };

constexpr uint64_t sharedWindow = uint64_t(1) << 56, localWindow = uint64_t(2) << 56, parameterWindow = uint64_t(3) << 56;
constexpr uint64_t windowMask = ~((uint64_t(1) << 56) - 1);
constexpr uint64_t sharedStart = 1024; // what is below belongs to the system, as on hardware

enum class Special : uint8_t {
  TidX,
  TidY,
  TidZ,
  NtidX,
  NtidY,
  NtidZ,
  CtaidX,
  CtaidY,
  CtaidZ,
  NctaidX,
  NctaidY,
  NctaidZ,
  Laneid,
  Warpid,
  Nwarpid,
  LanemaskEq,
  LanemaskLe,
  LanemaskLt,
  LanemaskGe,
  LanemaskGt,
  Smid,
  Nsmid,
  Gridid,
  DynamicShared,
  TotalShared,
  One,
  Zero
};

constexpr uint64_t dynamicSharedStart = 128 << 10; // above all static variables

struct Kernel {
  struct Constant {
    uint32_t offset;
    uint8_t bytes;
    uint64_t value;
  };
  struct SharedVariable {
    std::string name;
    uint64_t begin, end;
    uint64_t align = 1;
    bool dynamic = false, used = true;
  };
  std::string name;
  KernelInfo info;
  uint32_t parametersSize = 0;
  std::vector<Code> code;
  std::vector<Step> steps;
  std::vector<uint32_t> lists;
  uint32_t fileBytes = 0;
  std::vector<Constant> constants;
  std::vector<std::pair<uint32_t, Special>> specials;
  std::vector<SharedVariable> shared; // ascending, with gaps between them
  uint64_t sharedEnd = sharedStart;   // of the static ones
};

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

/// The last write to four bytes, or to one, and the reads since; see Races.cpp.
struct Cell {
  uint32_t writer, writeClock, reader, readClock; // threads and their clocks
  uint32_t writeCode, readCode;
};

class Bits {
public:
  bool test(uint64_t i) const { return words[i / 64] >> (i % 64) & 1; }
  /// Whether it was not set before.
  bool set(uint64_t i) {
    uint64_t bit = uint64_t(1) << (i % 64), &word = words[i / 64];
    bool fresh = !(word & bit);
    word |= bit;
    return fresh;
  }
  void resize(uint64_t size) { words.assign((size + 63) / 64, 0); }
  void clear() { words.clear(); }
  bool empty() const { return words.empty(); }

private:
  std::vector<uint64_t> words;
};

/// An allocation of device memory, or the shared memory of a block.
struct Region {
  uint64_t begin = 0, end = 0; // addresses
  uint8_t *data = nullptr;
  Cell *cells = nullptr; // one per four bytes, made when first needed
  std::string name;
  uint32_t firstThread = 0;                // accesses by threads before it are of the past
  std::vector<std::array<Cell, 4>> splits; // cells of single bytes
  Bits written;                            // bytes, if options.uninitialised
  bool hidden = false;                     // variables of modules
  // Of the present launch:
  Traffic read, write;
  Bits readSectors, writtenSectors;
  bool touched = false;
};

//===----------------------------------------------------------------------===//
// Order
//===----------------------------------------------------------------------===//

/// What is known to be over: accesses of warp w at clocks below at(w), and of single threads likewise.
struct Knowledge {
  std::unordered_map<uint64_t, uint32_t> clocks; // key: the warp's number, or thread's number | threadKey
  static constexpr uint64_t threadKey = uint64_t(1) << 40;

  bool empty() const { return clocks.empty(); }
  uint32_t at(uint64_t key) const {
    auto it = clocks.find(key);
    return it == clocks.end() ? 0 : it->second;
  }
  void raise(uint64_t key, uint32_t clock) {
    uint32_t &known = clocks[key];
    known = known < clock ? clock : known;
  }
  void join(const Knowledge &other) {
    for (auto [key, clock] : other.clocks)
      raise(key, clock);
  }
};

/// The side of a warp that tells which accesses are ordered before which.
struct WarpOrder {
  uint32_t counter = 1, base = 1; // accesses of this warp below `base` are before all that its lanes do now
  uint32_t lane[warpSize] = {};   // clock of each lane
  std::vector<uint32_t> block;    // the same for the warps of its block
  Knowledge foreign;              // and for other blocks
  Knowledge pending;              // seen by an atomic; becomes `foreign` at a fence
  // What an atomic of this warp publishes, and of a lane's own accesses: in shared memory, in global memory.
  Knowledge fenced[2];
  uint32_t fencedLane[2][warpSize] = {};
  std::vector<uint32_t> partial; // [32][32], made by the first warp barrier of some lanes
};

//===----------------------------------------------------------------------===//
// Threads
//===----------------------------------------------------------------------===//

struct Launch;
struct Block;

struct PendingCopy { // cp.async
  uint32_t code, bytes, sourceBytes;
  uint64_t shared, global;
};

struct Warp {
  Launch *launch = nullptr;
  Block *block = nullptr;
  uint32_t index = 0, number = 0; // in the block; among all warps of the machine
  uint8_t *file = nullptr;
  Mask exists = 0, running = 0, atCollective = 0, atBarrier = 0, exited = 0;
  uint32_t pc[warpSize] = {};
  Mask waited = 0;     // lanes that have executed griddepcontrol.wait
  bool unfair = false; // the next turn need not begin with the lowest pc
  std::vector<uint8_t> storage;
  WarpOrder order;
  std::vector<std::vector<PendingCopy>> copies[warpSize]; // groups; the last one is open
};

struct BarrierState {
  uint32_t arrived = 0, expected = 0;                       // threads
  std::vector<std::pair<uint32_t, Mask>> waiting, arrivals; // warps and lanes
  uint32_t votes = 0, voters = 0;                           // of bar.red
};

struct Block {
  uint64_t linear = 0;
  Dim position;
  std::vector<std::unique_ptr<Warp>> warps;
  Region shared;
  std::vector<uint8_t> sharedData, local;
  std::map<uint32_t, BarrierState> barriers;
  uint32_t generation = 1;               // barriers that were completed
  std::unordered_set<uint64_t> observed; // where its threads have executed atomics
  uint32_t firstWarp = 0;
  uint32_t live = 0; // threads that have not exited
};

struct Counters {
  uint64_t warps = 0, lanes = 0;
  Traffic traffic;
  Region *last = nullptr; // the allocation of the last access, a guess for the next
  uint32_t lastShared = 0;
  std::map<Region *, Bits> sectors; // that it has touched
  Region *lastSectorsOf = nullptr;
  Bits *lastSectors = nullptr;
};

struct Launch {
  Machine::State *machine = nullptr;
  const Options *options = nullptr;
  const Kernel *kernel = nullptr;
  const Program *program = nullptr;
  Dim grid, block;
  uint32_t dynamicShared = 0;
  std::vector<Kernel::SharedVariable> shared;
  std::vector<uint8_t> parameters;
  std::vector<Counters> counters; // per code
  std::vector<uint64_t> order;    // in which the blocks start
  uint32_t firstWarp = 0;
  std::vector<std::unique_ptr<Block>> resident;
  std::mt19937_64 random;
  uint64_t executed = 0, laneInstructions = 0;
  std::unordered_map<uint64_t, Knowledge> signals; // by the address of an atomic
  std::vector<std::unique_ptr<Block>> spare;       // to be used again
  bool failed = false;
  Fault fault = Fault::None;
  std::string message;

  /// Region of global memory that holds [address, address + bytes), or null.
  Region *find(uint64_t address, uint64_t bytes, Counters &counters);
};

//===----------------------------------------------------------------------===//
// Machine
//===----------------------------------------------------------------------===//

struct Machine::State {
  std::vector<std::unique_ptr<Region>> regions; // ascending
  uint64_t allocated = 0;
  uint32_t nextWarp = 1;
  std::string error;
  Fault fault = Fault::None;
  Report report;

  ~State();
  Region *find(uint64_t address, uint64_t bytes) const;
  Region *allocate(uint64_t bytes, const Options &options);
  void release(Region *region);
};

struct Program::State {
  Module module;
  std::vector<std::unique_ptr<Kernel>> kernels;
  std::map<std::string, Region *> variables;
  std::weak_ptr<Machine::State> machine;
  std::vector<std::pair<const Kernel *, const Instruction *>> synchronising;
};

/// Runs `launch`, which has been set up, to its end or its first fault.
void execute(Launch &launch);

/// Stops the launch with a message about what `lane` did.
void failAt(Warp &warp, uint32_t code, unsigned lane, Fault fault, const std::string &what);
/// "thread (3,0,0) of block (1,0,0)"
std::string describeThread(const Launch &launch, const Block &block, const Warp &warp, unsigned lane);
std::string describeThread(const Launch &launch, uint32_t thread);
std::string hexadecimal(uint64_t value);
/// ", ... bytes behind 'name' ..." if there is an allocation near.
std::string describeAllocation(const Launch &launch, uint64_t address);
/// What cp.async of a lane that exits has left to do; see Memory.cpp.
void finishAllCopies(Warp &warp, unsigned lane);

//===----------------------------------------------------------------------===//
// Races.cpp
//===----------------------------------------------------------------------===//

enum class Access : uint8_t { Read, Write, StrongRead, Atomic };

/// Records an access and reports it if it is not ordered with an earlier one. `offset` is that within the region.
void recordAccess(Warp &warp, uint32_t code, unsigned lane, Region &region, uint64_t offset, unsigned bytes, Access access);
/// The active lanes' accesses of one instruction.
void orderWarp(Warp &warp, Mask lanes);
/// `device`: it is seen beyond the block.
void fence(Warp &warp, Mask lanes, bool device);
void publish(Warp &warp, unsigned lane, uint64_t location);
void observe(Warp &warp, uint64_t location, bool acquire);
void orderBarrier(Block &block, const std::vector<std::pair<uint32_t, Mask>> &arrivals);

} // namespace aligned::emulator
