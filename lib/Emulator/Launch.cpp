// Execution. A warp runs the group of its lanes with the lowest program counter, until it meets the next one, which brings lanes
// together again where their paths join. Warps take turns, by chance or in order; a turn ends after some instructions or where a
// warp has to wait.

#include "Lanes.h"

#include <algorithm>
#include <numeric>

namespace aligned::emulator {

namespace {

constexpr uint32_t never = ~0u;

class Runner {
public:
  explicit Runner(Launch &launch) : launch(launch), kernel(*launch.kernel), options(*launch.options) {}

  void run();

private:
  void start(Block &block, uint64_t linear, uint32_t firstWarp);
  void setSpecials(Warp &warp);
  void turn(Warp &warp, uint32_t instructions);
  void runSteps(Warp &warp, const Code &code, Mask active) {
    for (uint32_t s = code.first, end = code.first + code.count; s < end; ++s)
      kernel.steps[s].run(warp, kernel.steps[s], active);
  }
  bool arriveAtCollective(Warp &warp, uint32_t pc, Mask active, bool alone);
  void tryCollective(Warp &warp, uint32_t pc);
  void runCollective(Warp &warp, uint32_t pc, Mask lanes);
  void arriveAtBarrier(Warp &warp, uint32_t pc, Mask active);
  void tryBarrier(Block &block, uint32_t number);
  void exit(Warp &warp, Mask lanes);
  void reportDeadlock(Block &block);

  Launch &launch;
  const Kernel &kernel;
  const Options &options;
};

//===----------------------------------------------------------------------===//
// Blocks
//===----------------------------------------------------------------------===//

void Runner::start(Block &block, uint64_t linear, uint32_t firstWarp) {
  uint64_t threads = launch.block.count();
  uint64_t sharedSize = kernel.sharedEnd;
  for (const Kernel::SharedVariable &variable : launch.shared)
    sharedSize = std::max(sharedSize, variable.end);
  block.linear = linear;
  block.position = {uint32_t(linear % launch.grid.x), uint32_t(linear / launch.grid.x % launch.grid.y),
                    uint32_t(linear / launch.grid.x / launch.grid.y)};
  block.firstWarp = firstWarp;
  block.live = uint32_t(threads);
  block.generation = 1;
  block.barriers.clear();
  block.observed.clear();
  if (block.sharedData.size() != sharedSize)
    block.sharedData.resize(sharedSize);
  for (const Kernel::SharedVariable &variable : launch.shared)
    std::fill(block.sharedData.begin() + int64_t(variable.begin), block.sharedData.begin() + int64_t(variable.end), 0xff);
  block.shared.begin = 0, block.shared.end = sharedSize;
  block.shared.data = block.sharedData.data();
  block.shared.firstThread = firstWarp * warpSize;
  block.shared.splits.clear();
  if (options.uninitialised)
    block.shared.written.resize(sharedSize);
  size_t warps = (threads + warpSize - 1) / warpSize;
  block.local.assign(warps * warpSize * kernel.info.localBytes, 0xff);
  bool fresh = block.warps.empty();
  for (size_t w = 0; w < warps; ++w) {
    if (fresh)
      block.warps.push_back(std::make_unique<Warp>());
    Warp &warp = *block.warps[w];
    warp.launch = &launch;
    warp.block = &block;
    warp.index = uint32_t(w);
    warp.number = firstWarp + uint32_t(w);
    if (fresh) {
      warp.storage.assign(kernel.fileBytes + 64, 0);
      warp.file = warp.storage.data() + (64 - reinterpret_cast<uintptr_t>(warp.storage.data()) % 64) % 64;
      for (const Kernel::Constant &constant : kernel.constants)
        if (!constant.bytes)
          std::memcpy(warp.file + constant.offset, &constant.value, 4);
        else
          for (unsigned i = 0; i < warpSize; ++i)
            std::memcpy(warp.file + constant.offset + i * constant.bytes, &constant.value, constant.bytes);
    }
    uint64_t left = threads - w * warpSize;
    warp.exists = left >= warpSize ? allLanes : (1u << left) - 1;
    warp.running = warp.exists;
    warp.atCollective = warp.atBarrier = warp.exited = warp.waited = 0;
    std::fill(std::begin(warp.pc), std::end(warp.pc), 0);
    warp.unfair = false;
    warp.order = WarpOrder();
    warp.order.block.assign(warps, 0);
    std::fill(std::begin(warp.order.lane), std::end(warp.order.lane), warp.order.base);
    for (auto &copies : warp.copies)
      copies.clear();
    setSpecials(warp);
  }
}

void Runner::setSpecials(Warp &warp) {
  Dim position = warp.block->position, block = launch.block, grid = launch.grid;
  for (auto [offset, special] : kernel.specials)
    for (unsigned i = 0; i < warpSize; ++i) {
      uint32_t thread = warp.index * warpSize + i, bit = 1u << i, value = 0;
      switch (special) {
      case Special::TidX:
        value = thread % block.x;
        break;
      case Special::TidY:
        value = thread / block.x % block.y;
        break;
      case Special::TidZ:
        value = thread / block.x / block.y;
        break;
      case Special::NtidX:
        value = block.x;
        break;
      case Special::NtidY:
        value = block.y;
        break;
      case Special::NtidZ:
        value = block.z;
        break;
      case Special::CtaidX:
        value = position.x;
        break;
      case Special::CtaidY:
        value = position.y;
        break;
      case Special::CtaidZ:
        value = position.z;
        break;
      case Special::NctaidX:
        value = grid.x;
        break;
      case Special::NctaidY:
        value = grid.y;
        break;
      case Special::NctaidZ:
        value = grid.z;
        break;
      case Special::Laneid:
        value = i;
        break;
      case Special::Warpid:
        value = warp.index;
        break;
      case Special::Nwarpid:
        value = uint32_t((block.count() + warpSize - 1) / warpSize);
        break;
      case Special::LanemaskEq:
        value = bit;
        break;
      case Special::LanemaskLe:
        value = bit | (bit - 1);
        break;
      case Special::LanemaskLt:
        value = bit - 1;
        break;
      case Special::LanemaskGe:
        value = ~(bit - 1);
        break;
      case Special::LanemaskGt:
        value = ~(bit | (bit - 1));
        break;
      case Special::Smid:
        value = uint32_t(warp.block->linear % std::max(options.processors, 1u));
        break;
      case Special::Nsmid:
        value = options.processors;
        break;
      case Special::DynamicShared:
        value = launch.dynamicShared;
        break;
      case Special::TotalShared:
        value = launch.dynamicShared + kernel.info.sharedBytes;
        break;
      case Special::One:
        value = 1;
        break;
      case Special::Gridid:
      case Special::Zero:
        break;
      }
      setLane(warp, offset, i, value);
    }
}

//===----------------------------------------------------------------------===//
// Turns
//===----------------------------------------------------------------------===//

void Runner::turn(Warp &warp, uint32_t instructions) {
  const Code *code = kernel.code.data();
  Counters *counters = launch.counters.data();
  bool unfair = warp.unfair;
  warp.unfair = false;
  while (warp.running && !launch.failed) {
    // The group to run, and where it meets others.
    uint32_t pc = never, limit = never;
    if (unfair) { // some lane, that those behind cannot starve those ahead
      unsigned lane = unsigned(launch.random() % warpSize);
      while (!(warp.running >> lane & 1))
        lane = (lane + 1) % warpSize;
      pc = warp.pc[lane];
      unfair = false;
    } else
      for (unsigned i = 0; i < warpSize; ++i)
        if (warp.running >> i & 1)
          pc = std::min(pc, warp.pc[i]);
    Mask group = 0;
    for (unsigned i = 0; i < warpSize; ++i)
      if (warp.running >> i & 1) {
        if (warp.pc[i] == pc)
          group |= 1u << i;
        else if (warp.pc[i] > pc)
          limit = std::min(limit, warp.pc[i]);
      }
    auto leave = [&](Mask lanes, uint32_t at) {
      for (unsigned i = 0; i < warpSize; ++i)
        if (lanes >> i & 1)
          warp.pc[i] = at;
    };
    for (;;) {
      if (!instructions) {
        leave(group, pc);
        warp.unfair = group != warp.running && launch.random() % 16 == 0;
        return;
      }
      --instructions;
      const Code &c = code[pc];
      Mask active = group;
      if (c.guard >= 0) {
        Mask truth = predicate(warp, uint32_t(c.guard));
        active &= c.guardNegated ? ~truth : truth;
      }
      Counters &counter = counters[pc];
      ++counter.warps;
      counter.lanes += unsigned(__builtin_popcount(active));
      ++launch.executed;
      if (c.kind == Code::Plain) {
        if (active && !c.erased)
          runSteps(warp, c, active);
        if (launch.failed)
          return;
        ++pc;
      } else if (c.kind == Code::Branch) {
        Mask rest = group & ~active;
        if (!rest)
          pc = c.target;
        else if (!active)
          ++pc;
        else {
          leave(active, c.target);
          leave(rest, pc + 1);
          break;
        }
      } else if (c.kind == Code::BranchTable) {
        runSteps(warp, c, active);
        leave(group & ~active, pc + 1);
        for (unsigned i = 0; i < warpSize; ++i)
          if (active >> i & 1) {
            uint32_t index = laneOf<uint32_t>(warp, c.members, i);
            if (index >= c.tableSize) {
              failAt(warp, pc, i, Fault::Undefined,
                     "jumps to number " + std::to_string(index) + " of " + std::to_string(c.tableSize) + " targets");
              return;
            }
            warp.pc[i] = kernel.lists[c.target + index];
          }
        break;
      } else if (c.kind == Code::Exit) {
        leave(group & ~active, pc + 1);
        leave(active, pc);
        exit(warp, active);
        break;
      } else if (c.erased) {
        ++pc;
      } else if (c.kind == Code::Collective) {
        if (active && arriveAtCollective(warp, pc, active, active == group)) {
          if (launch.failed)
            return;
          ++pc; // at once, all of the group
        } else {
          leave(group & ~active, pc + 1);
          break;
        }
      } else {
        leave(group & ~active, pc + 1);
        if (active)
          arriveAtBarrier(warp, pc, active);
        break;
      }
      if (pc >= limit) {
        leave(group, pc);
        break;
      }
    }
  }
}

//===----------------------------------------------------------------------===//
// Waiting
//===----------------------------------------------------------------------===//

void Runner::runCollective(Warp &warp, uint32_t pc, Mask lanes) {
  const Code &code = kernel.code[pc];
  if (options.races && (code.warpBarrier || options.collectivesOrder))
    orderWarp(warp, lanes);
  runSteps(warp, code, lanes);
}

/// Whether it ran at once for all of the group. Otherwise the lanes wait, or have gone on, by themselves.
bool Runner::arriveAtCollective(Warp &warp, uint32_t pc, Mask active, bool alone) {
  const Code &code = kernel.code[pc];
  Mask live = warp.exists & ~warp.exited;
  unsigned first = unsigned(__builtin_ctz(active));
  if (code.aligned) {
    if (live != allLanes) {
      failAt(warp, pc, first, Fault::Undefined,
             "needs all 32 threads of a warp, of which " + std::to_string(__builtin_popcount(live)) + " are there");
      return true;
    }
    if (active == allLanes) {
      runCollective(warp, pc, active);
      return true;
    }
  } else {
    bool same = true;
    Mask members = laneOf<Mask>(warp, code.members, first);
    for (unsigned i = 0; i < warpSize; ++i)
      if (active >> i & 1) {
        Mask own = laneOf<Mask>(warp, code.members, i);
        same &= own == members;
        if (!(own >> i & 1)) {
          failAt(warp, pc, i, Fault::Undefined, "is not in its mask " + hexadecimal(own));
          return true;
        }
      }
    if (same && alone && (members & live) == active) {
      runCollective(warp, pc, active);
      return true;
    }
  }
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1)
      warp.pc[i] = pc;
  warp.running &= ~active;
  warp.atCollective |= active;
  tryCollective(warp, pc);
  return false;
}

/// Runs a collective for the lanes whose partners are all there.
void Runner::tryCollective(Warp &warp, uint32_t pc) {
  const Code &code = kernel.code[pc];
  Mask arrived = 0, live = warp.exists & ~warp.exited;
  for (unsigned i = 0; i < warpSize; ++i)
    if (warp.atCollective >> i & 1) {
      const Code &other = kernel.code[warp.pc[i]];
      if (warp.pc[i] == pc || (code.warpBarrier && other.warpBarrier))
        arrived |= 1u << i;
    }
  for (Mask rest = arrived; rest && !launch.failed;) {
    unsigned first = unsigned(__builtin_ctz(rest));
    auto membersOf = [&](unsigned lane) {
      return code.aligned ? live : laneOf<Mask>(warp, kernel.code[warp.pc[lane]].members, lane) & live;
    };
    Mask members = membersOf(first), agreeing = 0;
    for (unsigned i = 0; i < warpSize; ++i)
      if ((arrived >> i & 1) && membersOf(i) == members)
        agreeing |= 1u << i;
    rest &= ~agreeing;
    if (agreeing != members)
      continue;
    warp.atCollective &= ~members;
    warp.running |= members;
    runCollective(warp, pc, members);
    for (unsigned i = 0; i < warpSize; ++i)
      if (members >> i & 1)
        ++warp.pc[i];
  }
}

void Runner::arriveAtBarrier(Warp &warp, uint32_t pc, Mask active) {
  const Code &code = kernel.code[pc];
  const Step *step = code.count ? &kernel.steps[code.first + code.count - 1] : nullptr;
  // Steps that narrow or invert what bar.red reads.
  if (step && code.count > 1)
    for (uint32_t s = code.first; s + 1 < code.first + code.count; ++s)
      kernel.steps[s].run(warp, kernel.steps[s], active);
  unsigned first = unsigned(__builtin_ctz(active));
  uint32_t number = laneOf<uint32_t>(warp, code.members, first), whole = uint32_t(launch.block.count()), expected = whole;
  if (code.threads >= 0) {
    expected = laneOf<uint32_t>(warp, uint32_t(code.threads), first);
    if (!expected || expected % warpSize || expected > (whole + warpSize - 1) / warpSize * warpSize) {
      failAt(warp, pc, first, Fault::Undefined,
             "expected a multiple of 32 threads of the block at a barrier, got " + std::to_string(expected));
      return;
    }
  }
  if (number > 15 && number != 1u << 16) {
    failAt(warp, pc, first, Fault::Undefined, "expected a barrier of 0 to 15, got " + std::to_string(number));
    return;
  }
  BarrierState &barrier = warp.block->barriers[number];
  bool arrives = step && step->flags == BarrierArrive;
  if (barrier.arrived && barrier.expected != expected) {
    failAt(warp, pc, first, Fault::Undefined,
           "waits for " + std::to_string(expected) + " threads at barrier " + std::to_string(number) +
               ", where others wait for " + std::to_string(barrier.expected));
    return;
  }
  barrier.expected = expected;
  barrier.arrived += unsigned(__builtin_popcount(active));
  barrier.arrivals.push_back({warp.index, active});
  if (step && step->flags > BarrierArrive) {
    Mask votes = predicate(warp, step->a) & active;
    barrier.votes += unsigned(__builtin_popcount(votes));
    barrier.voters += unsigned(__builtin_popcount(active));
  }
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1)
      warp.pc[i] = pc + arrives;
  if (!arrives) {
    barrier.waiting.push_back({warp.index, active});
    warp.running &= ~active;
    warp.atBarrier |= active;
  }
  tryBarrier(*warp.block, number);
}

void Runner::tryBarrier(Block &block, uint32_t number) {
  BarrierState &barrier = block.barriers[number];
  uint32_t whole = uint32_t(launch.block.count()), expected = barrier.expected;
  if (expected == whole && options.exitedMissBarriers)
    expected = block.live;
  // A last warp that is not full counts as one that is.
  uint32_t missing = (whole + warpSize - 1) / warpSize * warpSize - whole;
  bool complete = barrier.arrived >= expected;
  if (!complete && missing && expected != whole) {
    const Warp &last = *block.warps.back();
    Mask there = 0;
    for (auto [index, lanes] : barrier.arrivals)
      there |= index == last.index ? lanes : 0;
    complete = there == last.exists && barrier.arrived + missing >= expected;
  }
  if (!barrier.arrived || !complete)
    return;
  BarrierState done;
  std::swap(done, barrier);
  if (options.races)
    orderBarrier(block, done.arrivals);
  Mask lanes[warpSize] = {};
  for (auto [index, mask] : done.waiting)
    lanes[index] |= mask;
  for (size_t w = 0; w < block.warps.size(); ++w) {
    Mask waiting = lanes[w];
    if (!waiting)
      continue;
    Warp &warp = *block.warps[w];
    unsigned first = unsigned(__builtin_ctz(waiting));
    uint32_t firstPc = warp.pc[first];
    for (unsigned i = 0; i < warpSize; ++i) {
      if (!(waiting >> i & 1))
        continue;
      const Code &code = kernel.code[warp.pc[i]];
      if (code.aligned && warp.pc[i] != firstPc) {
        failAt(warp, warp.pc[i], i, Fault::Undefined,
               "is at another barrier than " + describeThread(launch, block, warp, first) + " of its warp, which is at line " +
                   std::to_string(kernel.code[firstPc].source->line));
        return;
      }
      if (code.count) {
        const Step &step = kernel.steps[code.first + code.count - 1];
        if (step.flags == BarrierPopc)
          setLane(warp, step.d, i, done.votes);
        else if (step.flags == BarrierAnd)
          setPredicate(warp, step.d, done.votes == done.voters ? allLanes : 0, 1u << i);
        else if (step.flags == BarrierOr)
          setPredicate(warp, step.d, done.votes ? allLanes : 0, 1u << i);
      }
      ++warp.pc[i];
    }
    warp.atBarrier &= ~waiting;
    warp.running |= waiting;
  }
}

void Runner::exit(Warp &warp, Mask lanes) {
  for (unsigned i = 0; i < warpSize; ++i)
    if ((lanes >> i & 1) && !warp.copies[i].empty())
      finishAllCopies(warp, i);
  warp.running &= ~lanes;
  warp.exited |= lanes;
  Block &block = *warp.block;
  block.live -= unsigned(__builtin_popcount(lanes));
  // Those that waited for the rest of a mask need not any longer.
  for (unsigned i = 0; i < warpSize; ++i)
    if ((warp.atCollective >> i & 1) && !kernel.code[warp.pc[i]].aligned)
      tryCollective(warp, warp.pc[i]);
  if (options.exitedMissBarriers)
    for (auto &[number, barrier] : block.barriers)
      tryBarrier(block, number);
}

void Runner::reportDeadlock(Block &block) {
  // What most of those wait for that are furthest behind.
  std::map<uint32_t, uint32_t> waiting;
  uint32_t exited = 0;
  for (const auto &warp : block.warps) {
    exited += unsigned(__builtin_popcount(warp->exited));
    for (unsigned i = 0; i < warpSize; ++i)
      if ((warp->atBarrier | warp->atCollective) >> i & 1)
        ++waiting[warp->pc[i]];
  }
  std::string what = "deadlock: ";
  bool first = true;
  for (auto [pc, count] : waiting) {
    const Instruction *source = kernel.code[pc].source;
    what += (first ? "" : ", ") + std::to_string(count) + " of " + std::to_string(launch.block.count()) +
            " threads wait at line " + std::to_string(source->line) + " '" + source->text + "'";
    first = false;
  }
  if (exited)
    what += ", " + std::to_string(exited) + " have exited";
  for (const auto &warp : block.warps)
    for (unsigned i = 0; i < warpSize; ++i)
      if ((warp->atBarrier | warp->atCollective) >> i & 1) {
        failAt(*warp, warp->pc[i], i, Fault::Deadlock, what);
        return;
      }
}

//===----------------------------------------------------------------------===//
// Grids
//===----------------------------------------------------------------------===//

void Runner::run() {
  uint64_t blocks = launch.grid.count();
  auto warps = uint32_t((launch.block.count() + warpSize - 1) / warpSize);
  launch.order.resize(blocks);
  std::iota(launch.order.begin(), launch.order.end(), uint64_t(0));
  if (options.shuffleBlocks)
    std::shuffle(launch.order.begin(), launch.order.end(), launch.random);
  uint64_t next = 0;
  size_t resident = std::max<size_t>(options.resident, 1), position = 0;
  std::vector<Warp *> runnable;
  auto destroy = [](std::unique_ptr<Block> &block) { std::free(block->shared.cells); };
  while (!launch.failed) {
    while (launch.resident.size() < resident && next < blocks) {
      if (launch.spare.empty())
        launch.spare.push_back(std::make_unique<Block>());
      launch.resident.push_back(std::move(launch.spare.back()));
      launch.spare.pop_back();
      start(*launch.resident.back(), launch.order[next], launch.firstWarp + uint32_t(next) * warps);
      ++next;
    }
    if (launch.resident.empty())
      break;
    runnable.clear();
    for (const auto &block : launch.resident)
      for (const auto &warp : block->warps)
        if (warp->running)
          runnable.push_back(warp.get());
    if (!runnable.empty()) {
      Warp &warp = *runnable[options.roundRobin ? position++ % runnable.size() : launch.random() % runnable.size()];
      uint32_t slice = std::max(options.slice, 1u);
      turn(warp, options.roundRobin ? slice : uint32_t(launch.random() % (2 * slice)) + 1);
      if (launch.executed > options.instructionLimit && !launch.failed) {
        unsigned lane = warp.running ? unsigned(__builtin_ctz(warp.running)) : 0;
        failAt(warp, warp.pc[lane], lane, Fault::Limit, "still runs after " + std::to_string(launch.executed) + " instructions");
      }
    }
    for (size_t b = 0; b < launch.resident.size() && !launch.failed;) {
      Block &block = *launch.resident[b];
      bool finished = true, stuck = true;
      for (const auto &warp : block.warps) {
        finished &= warp->exited == warp->exists;
        stuck &= !warp->running;
      }
      if (finished) {
        launch.spare.push_back(std::move(launch.resident[b]));
        launch.resident.erase(launch.resident.begin() + int64_t(b));
      } else {
        if (stuck)
          reportDeadlock(block);
        ++b;
      }
    }
  }
  for (auto *list : {&launch.resident, &launch.spare})
    for (auto &block : *list)
      destroy(block);
}

} // namespace

void execute(Launch &launch) { Runner(launch).run(); }

} // namespace aligned::emulator
