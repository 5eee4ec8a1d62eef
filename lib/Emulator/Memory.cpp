// Loads, stores, atomics, fences and asynchronous copies. All of them first locate what their lanes address, which is where
// bounds, alignment, order and traffic are looked at, and then move bytes.

#include "Decode.h"
#include "Lanes.h"
#include "Numbers.h"

#include <algorithm>

namespace aligned::emulator {

namespace {

constexpr unsigned spaceShift = 0, accessShift = 4; // in Step::flags
Space spaceOf(const Step &step) { return Space(step.flags >> spaceShift & 15); }
Access accessOf(const Step &step) { return Access(step.flags >> accessShift & 3); }
uint16_t flagsOf(Space space, Access access) { return uint16_t(unsigned(space) << spaceShift | unsigned(access) << accessShift); }

//===----------------------------------------------------------------------===//
// Locating
//===----------------------------------------------------------------------===//

/// What the lanes of one request address, and where that is on the host.
struct Request {
  Warp &warp;
  uint32_t code;
  Access access;
  unsigned bytes; // of a lane
  uint64_t address[warpSize];
  uint8_t *host[warpSize];
  bool onlyWrites = false; // an atomic that is a store

  bool reads() const { return access != Access::Write && !onlyWrites; }
  bool writes() const { return access == Access::Write || access == Access::Atomic; }
  const char *verb() const { return access == Access::Atomic ? "atomic on" : writes() ? "write to" : "read of"; }

  bool fail(unsigned lane, Fault fault, const std::string &what) {
    failAt(warp, code, lane, fault, what);
    return false;
  }
  bool aligned(Mask lanes) {
    uint64_t low = 0;
    for (unsigned i = 0; i < warpSize; ++i)
      low |= (lanes >> i & 1) ? address[i] & (bytes - 1) : 0;
    if (!low)
      return true;
    for (unsigned i = 0; i < warpSize; ++i)
      if ((lanes >> i & 1) && (address[i] & (bytes - 1)))
        return fail(i, Fault::Misaligned,
                    std::string("misaligned ") + verb() + " " + std::to_string(bytes) + " bytes at " + hexadecimal(address[i]));
    return true;
  }

  bool initialised(unsigned lane, Region &region, uint64_t offset) {
    if (region.written.empty())
      return true;
    for (unsigned b = 0; b < bytes; ++b) {
      if (reads() && !region.written.test(offset + b))
        return fail(lane, Fault::Uninitialised,
                    std::string("uninitialised: ") + verb() + " " + std::to_string(bytes) + " bytes at " +
                        hexadecimal(address[lane]) +
                        (region.name.empty() ? "" : " ('" + region.name + "' + " + std::to_string(offset) + ")") +
                        ", of which byte " + std::to_string(b) + " was never written");
      if (writes())
        region.written.set(offset + b);
    }
    return true;
  }

  bool global(Mask lanes, bool counted) {
    Launch &launch = *warp.launch;
    if (Mask early = lanes & ~warp.waited; launch.options->chained && early)
      return fail(unsigned(__builtin_ctz(early)), Fault::Race,
                  std::string("race: ") + verb() + " global memory before griddepcontrol.wait");
    Counters &counters = launch.counters[code];
    Region *region = counters.last;
    Region *of[warpSize];
    bool several = false;
    for (unsigned i = 0; i < warpSize; ++i) {
      if (!(lanes >> i & 1))
        continue;
      if (!region || address[i] < region->begin || address[i] + bytes > region->end) {
        Region *next = launch.find(address[i], bytes, counters);
        if (!next)
          return fail(i, Fault::Address,
                      std::string("out of bounds: ") + verb() + " " + std::to_string(bytes) + " bytes of global memory at " +
                          hexadecimal(address[i]) + describeAllocation(launch, address[i]));
        several |= region != nullptr && next != region;
        region = next;
      }
      of[i] = region;
      host[i] = region->data + (address[i] - region->begin);
    }
    if (several) // the guess may just have been of another request
      several = [&] {
        Region *first = nullptr;
        for (unsigned i = 0; i < warpSize; ++i)
          if (lanes >> i & 1) {
            if (first && of[i] != first)
              return true;
            first = of[i];
          }
        return false;
      }();
    counters.last = region;
    if (!aligned(lanes))
      return false;
    if (counted && launch.options->counts) {
      if (!several)
        count(*region, lanes);
      else
        for (Mask rest = lanes; rest;) {
          Region *one = of[__builtin_ctz(rest)];
          Mask group = 0;
          for (unsigned i = 0; i < warpSize; ++i)
            if ((rest >> i & 1) && of[i] == one)
              group |= 1u << i;
          count(*one, group);
          rest &= ~group;
        }
    }
    for (unsigned i = 0; i < warpSize; ++i) {
      if (!(lanes >> i & 1))
        continue;
      if (launch.options->races)
        recordAccess(warp, code, i, *of[i], address[i] - of[i]->begin, bytes, access);
      if (launch.failed || (launch.options->uninitialised && !initialised(i, *of[i], address[i] - of[i]->begin)))
        return false;
    }
    return true;
  }

  /// Adds the traffic of a request to one allocation.
  void count(Region &region, Mask lanes) {
    Counters &counters = warp.launch->counters[code];
    uint64_t sectors[warpSize], number = 0;
    bool ascending = true;
    for (unsigned i = 0; i < warpSize; ++i) {
      if (!(lanes >> i & 1))
        continue;
      uint64_t sector = (address[i] - region.begin) / 32;
      if (number && sector == sectors[number - 1])
        continue;
      ascending &= !number || sector > sectors[number - 1];
      sectors[number++] = sector;
    }
    if (!ascending) {
      std::sort(sectors, sectors + number);
      number = uint64_t(std::unique(sectors, sectors + number) - sectors);
    }
    uint64_t bytesAsked = uint64_t(__builtin_popcount(lanes)) * bytes, all = (region.end - region.begin + 31) / 32;
    auto add = [&](Traffic &traffic, Bits &seen) {
      traffic.requests += 1, traffic.bytes += bytesAsked, traffic.sectors += number;
      if (seen.empty())
        seen.resize(all);
      for (uint64_t s = 0; s < number; ++s)
        traffic.distinct += seen.set(sectors[s]);
    };
    region.touched = true;
    if (reads())
      add(region.read, region.readSectors);
    if (writes())
      add(region.write, region.writtenSectors);
    if (counters.lastSectorsOf != &region) {
      counters.lastSectorsOf = &region;
      counters.lastSectors = &counters.sectors[&region];
    }
    add(counters.traffic, *counters.lastSectors);
  }

  /// `offset` within the window of shared memory: address without its window.
  bool shared(Mask lanes) {
    Launch &launch = *warp.launch;
    Counters &counters = launch.counters[code];
    const std::vector<Kernel::SharedVariable> &variables = launch.shared;
    Block &block = *warp.block;
    size_t guess = counters.lastShared;
    for (unsigned i = 0; i < warpSize; ++i) {
      if (!(lanes >> i & 1))
        continue;
      uint64_t offset = address[i] & ~windowMask;
      auto holds = [&](size_t v) {
        return v < variables.size() && offset >= variables[v].begin && offset + bytes <= variables[v].end;
      };
      if (!holds(guess)) {
        for (guess = 0; guess < variables.size() && !holds(guess);)
          ++guess;
        if (guess == variables.size())
          return fail(i, Fault::Address,
                      std::string("out of bounds: ") + verb() + " " + std::to_string(bytes) + " bytes of shared memory at " +
                          hexadecimal(offset) + describeShared(variables, offset));
      }
      host[i] = block.sharedData.data() + offset;
    }
    counters.lastShared = uint32_t(guess);
    if (!aligned(lanes))
      return false;
    if (launch.options->races || launch.options->uninitialised)
      for (unsigned i = 0; i < warpSize; ++i) {
        if (!(lanes >> i & 1))
          continue;
        uint64_t offset = address[i] & ~windowMask;
        if (launch.options->races)
          recordAccess(warp, code, i, block.shared, offset, bytes, access);
        if (launch.failed || (launch.options->uninitialised && !initialised(i, block.shared, offset)))
          return false;
      }
    return true;
  }

  static std::string describeShared(const std::vector<Kernel::SharedVariable> &variables, uint64_t offset) {
    for (const Kernel::SharedVariable &variable : variables)
      if (offset + 64 > variable.begin && offset < variable.end + 16)
        return ", near '" + variable.name + "' of " + std::to_string(variable.end - variable.begin) + " bytes at " +
               hexadecimal(variable.begin);
    return "";
  }

  bool local(Mask lanes) {
    uint64_t size = warp.launch->kernel->info.localBytes;
    for (unsigned i = 0; i < warpSize; ++i) {
      if (!(lanes >> i & 1))
        continue;
      uint64_t offset = address[i] & ~windowMask;
      if (offset > size || bytes > size - offset)
        return fail(i, Fault::Address,
                    std::string("out of bounds: ") + verb() + " " + std::to_string(bytes) + " bytes of local memory at " +
                        hexadecimal(offset) + ", of which there are " + std::to_string(size));
      host[i] = warp.block->local.data() + (warp.index * warpSize + i) * size + offset;
    }
    return aligned(lanes);
  }

  bool parameter(Mask lanes) {
    Launch &launch = *warp.launch;
    for (unsigned i = 0; i < warpSize; ++i) {
      if (!(lanes >> i & 1))
        continue;
      uint64_t offset = address[i] & ~windowMask, size = launch.parameters.size();
      if (writes() || offset > size || bytes > size - offset)
        return fail(i, Fault::Address,
                    std::string("out of bounds: ") + verb() + " " + std::to_string(bytes) + " bytes of the parameters at " +
                        hexadecimal(offset) + ", of which there are " + std::to_string(size));
      host[i] = launch.parameters.data() + offset;
    }
    return aligned(lanes);
  }

  bool locate(Space space, Mask lanes) {
    alignas(16) static uint8_t nowhere[64];
    if (lanes != allLanes)
      for (unsigned i = 0; i < warpSize; ++i)
        host[i] = nowhere;
    switch (space) {
    case Space::Global:
      return global(lanes, true);
    case Space::Constant:
      return global(lanes, false);
    case Space::Shared:
      return shared(lanes);
    case Space::Local:
      return local(lanes);
    case Space::Parameter:
      return parameter(lanes);
    case Space::Generic:
      break;
    }
    Mask inShared = 0, inLocal = 0, inParameters = 0;
    for (unsigned i = 0; i < warpSize; ++i) {
      uint64_t window = address[i] & windowMask;
      inShared |= Mask(window == sharedWindow) << i;
      inLocal |= Mask(window == localWindow) << i;
      inParameters |= Mask(window == parameterWindow) << i;
    }
    inShared &= lanes, inLocal &= lanes, inParameters &= lanes;
    Mask inGlobal = lanes & ~(inShared | inLocal | inParameters);
    return (!inShared || shared(inShared)) && (!inLocal || local(inLocal)) && (!inParameters || parameter(inParameters)) &&
           (!inGlobal || global(inGlobal, true));
  }
};

void setAddresses(Request &request, const Step &step) {
  const uint8_t *base = request.warp.file + step.a;
  for (unsigned i = 0; i < warpSize; ++i)
    request.address[i] = laneOf<uint64_t>(base, i) + uint64_t(step.number);
}

//===----------------------------------------------------------------------===//
// Loads and stores
//===----------------------------------------------------------------------===//

void acquireOrRelease(Warp &warp, const Request &request, Mask active, bool acquires, bool publishes, bool acquire) {
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1) {
      if (acquires)
        observe(warp, request.address[i], acquire);
      if (publishes)
        publish(warp, i, request.address[i]);
    }
}

enum : uint16_t { AcquireFlag = 1 << 8, ReleaseFlag = 1 << 9, DeviceFlag = 1 << 10 };

/// Loads of `count` elements of T a lane.
template <typename T> void load(Warp &warp, const Step &step, Mask active) {
  Request request{warp, step.code, accessOf(step), unsigned(sizeof(T) * step.count), {}, {}, false};
  setAddresses(request, step);
  if (!request.locate(spaceOf(step), active))
    return;
  if (request.access == Access::StrongRead && warp.launch->options->races)
    acquireOrRelease(warp, request, active, true, false, step.flags & AcquireFlag);
  const uint32_t *list = warp.launch->kernel->lists.data() + step.list;
  for (unsigned e = 0; e < step.count; ++e) {
    T values[warpSize];
    for (unsigned i = 0; i < warpSize; ++i)
      std::memcpy(&values[i], request.host[i] + e * sizeof(T), sizeof(T));
    put(warp, list[e], values, active);
  }
}

/// Parameters of a kernel are the same for all lanes.
template <typename T> void loadParameter(Warp &warp, const Step &step, Mask active) {
  const uint32_t *list = warp.launch->kernel->lists.data() + step.list;
  for (unsigned e = 0; e < step.count; ++e) {
    T value, values[warpSize];
    std::memcpy(&value, warp.launch->parameters.data() + step.number + e * sizeof(T), sizeof(T));
    std::fill(std::begin(values), std::end(values), value);
    put(warp, list[e], values, active);
  }
}

template <typename T> void store(Warp &warp, const Step &step, Mask active) {
  Request request{warp, step.code, accessOf(step), unsigned(sizeof(T) * step.count), {}, {}, true};
  setAddresses(request, step);
  if ((step.flags & ReleaseFlag) && warp.launch->options->races)
    fence(warp, active, step.flags & DeviceFlag);
  if (!request.locate(spaceOf(step), active))
    return;
  if (request.access == Access::Atomic && warp.launch->options->races)
    acquireOrRelease(warp, request, active, false, true, false);
  const uint32_t *list = warp.launch->kernel->lists.data() + step.list;
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1)
      for (unsigned e = 0; e < step.count; ++e)
        std::memcpy(request.host[i] + e * sizeof(T), warp.file + list[e] + i * sizeof(T), sizeof(T));
}

Handler loadHandler(unsigned bits) {
  return bits == 8 ? load<uint8_t> : bits == 16 ? load<uint16_t> : bits == 32 ? load<uint32_t> : load<uint64_t>;
}
Handler loadParameterHandler(unsigned bits) {
  return bits == 8    ? loadParameter<uint8_t>
         : bits == 16 ? loadParameter<uint16_t>
         : bits == 32 ? loadParameter<uint32_t>
                      : loadParameter<uint64_t>;
}
Handler storeHandler(unsigned bits) {
  return bits == 8 ? store<uint8_t> : bits == 16 ? store<uint16_t> : bits == 32 ? store<uint32_t> : store<uint64_t>;
}

/// State space; what follows "::" only says which part of it.
bool takeSpace(Modifiers &modifiers, Space &space) {
  static const std::pair<const char *, Space> names[] = {{"global", Space::Global},        {"shared", Space::Shared},
                                                         {"shared::cta", Space::Shared},   {"shared::cluster", Space::Shared},
                                                         {"local", Space::Local},          {"const", Space::Constant},
                                                         {"param", Space::Parameter},      {"param::entry", Space::Parameter},
                                                         {"param::func", Space::Parameter}};
  space = Space::Generic;
  for (auto [name, value] : names)
    if (modifiers.take(name)) {
      space = value;
      return true;
    }
  return false;
}

/// Hints to caches, which there are none of. Whether a policy is among the operands.
bool takeCacheHints(Modifiers &modifiers) {
  for (const char *name : {"ca",
                           "cg",
                           "cs",
                           "cv",
                           "lu",
                           "wb",
                           "wt",
                           "nc",
                           "L1::evict_normal",
                           "L1::evict_unchanged",
                           "L1::evict_first",
                           "L1::evict_last",
                           "L1::no_allocate",
                           "L2::64B",
                           "L2::128B",
                           "L2::256B",
                           "L2::evict_first",
                           "L2::evict_last",
                           "L2::evict_normal",
                           "unified"})
    modifiers.take(name);
  return modifiers.take("L2::cache_hint");
}

std::string_view takeScope(Modifiers &modifiers) { return modifiers.takeOneOf({"cta", "cluster", "gpu", "sys"}); }

bool decodeLoadOrStore(Decoder &d) {
  const std::string &opcode = d.instruction().opcode;
  bool loads = opcode != "st";
  Modifiers &modifiers = d.modifiers;
  std::string_view order = modifiers.takeOneOf({"weak", "relaxed", "acquire", "release", "volatile", "mmio"}, "weak");
  if (modifiers.take("relaxed")) // mmio.relaxed
    order = "relaxed";
  std::string_view scope = takeScope(modifiers);
  Space space;
  takeSpace(modifiers, space);
  if (opcode == "ldu")
    space = Space::Global;
  bool hint = takeCacheHints(modifiers);
  std::string_view vector = modifiers.takeOneOf({"v2", "v4", "v8"});
  Type type = modifiers.type();
  unsigned bits = bitsOf(type), elements = vector.empty() ? 1 : unsigned(vector[1] - '0');
  if (type == Type::Predicate || (bits != 8 && bits != 16 && bits != 32 && bits != 64) || bits * elements > 256)
    return d.unsupported();
  if (!d.expectOperands(2 + hint))
    return false;
  const Operand &registers = d.operands()[loads ? 0 : 1], &place = d.operands()[loads ? 1 : 0];
  if ((registers.kind == Operand::Vector ? registers.elements.size() : 1) != elements)
    return d.fail("expected " + std::to_string(elements) + " registers");
  bool strong = order != "weak";
  uint32_t base;
  int64_t offset;
  if (!d.address(place, space, base, offset))
    return false;
  if (!loads && space == Space::Parameter)
    return d.fail("expected a store to something other than a parameter of a kernel");
  std::vector<uint32_t> values = loads ? d.writeAll(registers, type) : d.readAll(registers, type);
  bool known = place.elements[0].kind == Operand::Name;
  if (loads && space == Space::Parameter && known) {
    // The place is known: [name + offset].
    uint64_t at = 0;
    for (const Kernel::Constant &constant : d.target().constants)
      if (constant.offset == base)
        at = constant.value + uint64_t(offset);
    if (at + bits / 8 * elements > d.target().parametersSize)
      return d.fail("expected an address within the parameters");
    uint32_t list = d.list(values);
    Step &step = d.emit(loadParameterHandler(bits));
    step.list = list, step.count = uint16_t(elements), step.number = int64_t(at);
    return true;
  }
  uint32_t list = d.list(values);
  Access access = loads ? (strong ? Access::StrongRead : Access::Read) : (strong ? Access::Atomic : Access::Write);
  Step &step = d.emit(loads ? loadHandler(bits) : storeHandler(bits), 0, base);
  step.list = list, step.count = uint16_t(elements), step.number = offset;
  step.flags = uint16_t(flagsOf(space, access) | (order == "acquire" ? AcquireFlag : 0) | (order == "release" ? ReleaseFlag : 0) |
                        (scope == "cta" ? 0 : DeviceFlag));
  return true;
}

//===----------------------------------------------------------------------===//
// Atomics
//===----------------------------------------------------------------------===//

enum class Atom : uint8_t { Add, Minimum, Maximum, And, Or, Xor, Exchange, Compare, Increment, Decrement };

template <typename T> T combine(Atom operation, T old, T b, T c) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    switch (operation) {
    case Atom::Add:
      return T(Unsigned(old) + Unsigned(b));
    case Atom::Minimum:
      return std::min(old, b);
    case Atom::Maximum:
      return std::max(old, b);
    case Atom::And:
      return old & b;
    case Atom::Or:
      return old | b;
    case Atom::Xor:
      return old ^ b;
    case Atom::Exchange:
      return b;
    case Atom::Compare:
      return old == b ? c : old;
    case Atom::Increment:
      return old >= b ? T(0) : T(old + 1);
    case Atom::Decrement:
      return old == 0 || old > b ? b : T(old - 1);
    }
  } else if constexpr (std::is_floating_point_v<T>) {
    T sum = canonical(old + b);
    return sum;
  } else { // Half, Brain
    float x = toFloat(old), y = toFloat(b);
    if (operation == Atom::Add)
      return fromFloat<T>(canonical(x + y));
    bool first = y != y || (operation == Atom::Minimum ? x < y : x > y);
    return first ? old : b;
  }
  return old;
}

template <typename T, unsigned parts> void atomic(Warp &warp, const Step &step, Mask active) {
  Launch &launch = *warp.launch;
  constexpr unsigned size = sizeof(T) * parts;
  Request request{warp, step.code, Access::Atomic, size, {}, {}, false};
  setAddresses(request, step);
  if ((step.flags & ReleaseFlag) && launch.options->races)
    fence(warp, active, step.flags & DeviceFlag);
  if (!request.locate(spaceOf(step), active))
    return;
  auto operation = Atom(step.count & 255);
  bool returns = step.count >> 8;
  unsigned start =
      launch.options->roundRobin ? 0 : unsigned(launch.random() % warpSize); // the order of lanes is nobody's to know
  for (unsigned n = 0; n < warpSize; ++n) {
    unsigned i = (start + n) % warpSize;
    if (!(active >> i & 1))
      continue;
    if (launch.options->races) {
      observe(warp, request.address[i], step.flags & AcquireFlag);
      publish(warp, i, request.address[i]);
    }
    T old[parts], fresh[parts];
    std::memcpy(old, request.host[i], size);
    for (unsigned p = 0; p < parts; ++p)
      fresh[p] = combine(operation, old[p], laneOf<T>(warp, step.b, i * parts + p), laneOf<T>(warp, step.c, i * parts + p));
    std::memcpy(request.host[i], fresh, size);
    if (returns)
      std::memcpy(warp.file + step.d + i * size, old, size);
  }
}

Handler atomicHandler(Type type, Atom operation) {
  bool adds = operation == Atom::Add, narrow = adds || operation == Atom::Minimum || operation == Atom::Maximum;
  bool bits = operation == Atom::Exchange || operation == Atom::Compare;
  switch (type) {
  case Type::S32:
    return bits ? nullptr : atomic<int32_t, 1>;
  case Type::U32:
  case Type::B32:
    return atomic<uint32_t, 1>;
  case Type::S64:
    return bits ? nullptr : atomic<int64_t, 1>;
  case Type::U64:
  case Type::B64:
    return operation == Atom::Increment || operation == Atom::Decrement ? nullptr : atomic<uint64_t, 1>;
  case Type::B16:
    return bits ? atomic<uint16_t, 1> : nullptr;
  case Type::F32:
    return adds ? atomic<float, 1> : nullptr;
  case Type::F64:
    return adds ? atomic<double, 1> : nullptr;
  case Type::F16:
    return narrow ? atomic<Half, 1> : nullptr;
  case Type::F16x2:
    return narrow ? atomic<Half, 2> : nullptr;
  case Type::BF16:
    return narrow ? atomic<Brain, 1> : nullptr;
  case Type::BF16x2:
    return narrow ? atomic<Brain, 2> : nullptr;
  default:
    return nullptr;
  }
}

bool decodeAtomic(Decoder &d) {
  bool returns = d.instruction().opcode == "atom";
  Modifiers &modifiers = d.modifiers;
  std::string_view order = modifiers.takeOneOf({"relaxed", "acquire", "release", "acq_rel"}, "relaxed");
  std::string_view scope = takeScope(modifiers);
  Space space;
  takeSpace(modifiers, space);
  static const std::pair<const char *, Atom> names[] = {
      {"add", Atom::Add}, {"min", Atom::Minimum},   {"max", Atom::Maximum}, {"and", Atom::And},       {"or", Atom::Or},
      {"xor", Atom::Xor}, {"exch", Atom::Exchange}, {"cas", Atom::Compare}, {"inc", Atom::Increment}, {"dec", Atom::Decrement}};
  bool known = false;
  Atom operation = Atom::Add;
  for (auto [name, value] : names)
    if (modifiers.take(name)) {
      operation = value, known = true;
      break;
    }
  modifiers.take("noftz");
  bool hint = takeCacheHints(modifiers);
  Type type = modifiers.type();
  Handler handler = known ? atomicHandler(type, operation) : nullptr;
  if (!handler)
    return d.unsupported();
  bool three = operation == Atom::Compare;
  if (!d.expectOperands(returns + 2u + three + hint))
    return false;
  uint32_t base;
  int64_t offset;
  if (!d.address(d.operands()[returns], space, base, offset))
    return false;
  if (space == Space::Parameter || space == Space::Constant)
    return d.unsupported();
  uint32_t b = d.read(returns + 1u, type), c = three ? d.read(returns + 2u, type) : b;
  uint32_t result = returns ? d.write(size_t(0), type) : 0;
  Step &step = d.emit(handler, result, base, b, c);
  step.number = offset;
  step.count = uint16_t(unsigned(operation) | (returns ? 256 : 0));
  bool acquires = order == "acquire" || order == "acq_rel", releases = order == "release" || order == "acq_rel";
  step.flags = uint16_t(flagsOf(space, Access::Atomic) | (acquires ? AcquireFlag : 0) | (releases ? ReleaseFlag : 0) |
                        (scope == "cta" ? 0 : DeviceFlag));
  return true;
}

//===----------------------------------------------------------------------===//
// Fences
//===----------------------------------------------------------------------===//

void runFence(Warp &warp, const Step &step, Mask active) {
  if (warp.launch->options->races)
    fence(warp, active, step.flags);
}
void nothing(Warp &, const Step &, Mask) {}

bool decodeFence(Decoder &d) {
  Modifiers &modifiers = d.modifiers;
  if (modifiers.take("proxy") || modifiers.take("mbarrier_init")) { // there is one proxy
    while (!modifiers.next().empty())
      ;
    d.emit(nothing);
    return true;
  }
  modifiers.takeOneOf({"sc", "acq_rel", "acquire", "release"});
  std::string_view scope = modifiers.takeOneOf({"cta", "cluster", "gpu", "gl", "sys"});
  if (scope.empty())
    return d.unsupported();
  if (!d.expectOperands(0))
    return false;
  d.emit(runFence).flags = scope != "cta";
  return true;
}

//===----------------------------------------------------------------------===//
// Asynchronous copies
//===----------------------------------------------------------------------===//

/// Notes what is to be copied; it happens at a wait, so that who does not wait reads what was there before.
void startCopy(Warp &warp, const Step &step, Mask active) {
  auto addend = int64_t(step.flags ? uint64_t(step.e) : 0);
  for (unsigned i = 0; i < warpSize; ++i) {
    if (!(active >> i & 1))
      continue;
    uint32_t bytes = step.count;
    if (step.c)
      bytes = std::min(bytes, laneOf<uint32_t>(warp, step.c, i));
    auto &groups = warp.copies[i];
    if (groups.empty())
      groups.emplace_back();
    groups.back().push_back({step.code, step.count, bytes, laneOf<uint64_t>(warp, step.a, i) + uint64_t(step.number),
                             laneOf<uint64_t>(warp, step.b, i) + uint64_t(addend)});
  }
}

void finishCopies(Warp &warp, unsigned lane, const std::vector<PendingCopy> &group) {
  for (const PendingCopy &copy : group) {
    uint8_t data[16] = {};
    Mask self = 1u << lane;
    if (copy.sourceBytes) {
      Request from{warp, copy.code, Access::Read, copy.bytes, {}, {}, false};
      from.address[lane] = copy.global;
      if (!from.locate(Space::Global, self))
        return;
      std::memcpy(data, from.host[lane], copy.sourceBytes);
    }
    Request to{warp, copy.code, Access::Write, copy.bytes, {}, {}, false};
    to.address[lane] = copy.shared;
    if (!to.locate(Space::Shared, self))
      return;
    std::memcpy(to.host[lane], data, copy.bytes);
  }
}

void commitCopies(Warp &warp, const Step &, Mask active) {
  for (unsigned i = 0; i < warpSize; ++i)
    if (active >> i & 1) {
      if (warp.copies[i].empty())
        warp.copies[i].emplace_back();
      warp.copies[i].emplace_back(); // the next group
    }
}

/// All but the `number` latest groups, and with flags those that are not committed, too.
void waitForCopies(Warp &warp, const Step &step, Mask active) {
  for (unsigned i = 0; i < warpSize; ++i) {
    if (!(active >> i & 1))
      continue;
    auto &groups = warp.copies[i];
    size_t keep = step.flags ? 0 : size_t(step.number) + 1; // the open one
    while (groups.size() > keep) {
      finishCopies(warp, i, groups.front());
      groups.erase(groups.begin());
      if (warp.launch->failed)
        return;
    }
  }
}

bool decodeCopy(Decoder &d) {
  Modifiers &modifiers = d.modifiers;
  if (!modifiers.take("async"))
    return d.unsupported();
  if (modifiers.take("commit_group")) {
    d.emit(commitCopies);
    return d.expectOperands(0);
  }
  if (modifiers.take("wait_all")) {
    d.emit(waitForCopies).flags = 1;
    return d.expectOperands(0);
  }
  if (modifiers.take("wait_group")) {
    int64_t groups;
    if (!d.expectOperands(1) || !d.immediate(d.operands()[0], groups))
      return false;
    d.emit(waitForCopies).number = groups;
    return true;
  }
  if (modifiers.takeOneOf({"ca", "cg"}).empty() || modifiers.takeOneOf({"shared", "shared::cta"}).empty() ||
      !modifiers.take("global"))
    return d.unsupported();
  bool hint = takeCacheHints(modifiers);
  int64_t bytes;
  if (!d.expectOperands(3, 4 + hint) || !d.immediate(d.operands()[2], bytes))
    return false;
  if (bytes != 4 && bytes != 8 && bytes != 16)
    return d.fail("expected a copy of 4, 8 or 16 bytes");
  Space to = Space::Shared, from = Space::Global;
  uint32_t shared, global;
  int64_t sharedOffset, globalOffset;
  if (!d.address(d.operands()[0], to, shared, sharedOffset) || !d.address(d.operands()[1], from, global, globalOffset))
    return false;
  uint32_t size = d.count() == 4u + hint ? d.read(3, Type::U32) : 0;
  if (globalOffset < 0 || globalOffset > 0x7fffffff)
    return d.fail("unsupported: this offset");
  Step &step = d.emit(startCopy, 0, shared, global, size);
  step.number = sharedOffset, step.count = uint16_t(bytes);
  step.e = uint32_t(globalOffset), step.flags = globalOffset != 0;
  return true;
}

//===----------------------------------------------------------------------===//
// Matrices
//===----------------------------------------------------------------------===//

enum : uint16_t { Transposed = 1, Stores = 2 };

/// ldmatrix and stmatrix: 8x8 matrices of 16 bits, whose rows are where eight lanes point to, spread over the warp as mma has
/// them.
void moveMatrices(Warp &warp, const Step &step, Mask active) {
  const uint32_t *list = warp.launch->kernel->lists.data() + step.list;
  bool stores = step.flags & Stores, transposed = step.flags & Transposed;
  Request request{warp, step.code, stores ? Access::Write : Access::Read, 16, {}, {}, false};
  setAddresses(request, step);
  Mask rows = step.count == 4 ? allLanes : (1u << (8 * step.count)) - 1;
  if (!request.locate(Space(step.e), active & rows))
    return;
  for (unsigned m = 0; m < step.count; ++m)
    for (unsigned i = 0; i < warpSize; ++i)
      for (unsigned part = 0; part < 2; ++part) {
        unsigned row = i / 4, column = i % 4 * 2 + part;
        if (transposed)
          std::swap(row, column);
        uint8_t *memory = request.host[8 * m + row] + 2 * column, *reg = warp.file + list[m] + 4 * i + 2 * part;
        std::memcpy(stores ? memory : reg, stores ? reg : memory, 2);
      }
}

bool decodeMatrices(Decoder &d) {
  bool stores = d.instruction().opcode == "stmatrix";
  Modifiers &modifiers = d.modifiers;
  Space space;
  if (!modifiers.take("sync") || !modifiers.take("aligned") || !modifiers.take("m8n8"))
    return d.unsupported();
  std::string_view number = modifiers.takeOneOf({"x1", "x2", "x4"});
  bool transposed = modifiers.take("trans");
  if (!takeSpace(modifiers, space))
    space = Space::Generic;
  if (modifiers.type() != Type::B16 || number.empty())
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  auto count = unsigned(number[1] - '0');
  const Operand &registers = d.operands()[stores ? 1 : 0];
  uint32_t base;
  int64_t offset;
  if (!d.address(d.operands()[stores ? 0 : 1], space, base, offset))
    return false;
  std::vector<uint32_t> values = stores ? d.readAll(registers, Type::B32) : d.writeAll(registers, Type::B32);
  if (values.size() != count)
    return d.fail("expected " + std::to_string(count) + " registers");
  makeAligned(d);
  uint32_t list = d.list(values);
  Step &step = d.emit(moveMatrices, 0, base);
  step.list = list, step.count = uint16_t(count), step.number = offset;
  step.e = uint32_t(space);
  step.flags = uint16_t((transposed ? Transposed : 0) | (stores ? Stores : 0));
  return true;
}

//===----------------------------------------------------------------------===//
// Addresses
//===----------------------------------------------------------------------===//

/// Into the generic space, or out of it.
void convertAddress(Warp &warp, const Step &step, Mask active) {
  auto window = uint64_t(step.number);
  bool out = step.flags;
  map<uint64_t, uint64_t>(warp, step, active, [=](uint64_t a) { return out ? a & ~windowMask : a | window; });
}

uint64_t windowOf(Space space) {
  return space == Space::Shared      ? sharedWindow
         : space == Space::Local     ? localWindow
         : space == Space::Parameter ? parameterWindow
                                     : 0;
}

bool decodeConvertAddress(Decoder &d) {
  bool out = d.modifiers.take("to");
  Space space;
  bool known = takeSpace(d.modifiers, space);
  Type type = d.modifiers.type();
  if (!known || (type != Type::U64 && type != Type::B64))
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  uint32_t a;
  int64_t offset = 0;
  if (d.operands()[1].kind == Operand::Address && !d.address(d.operands()[1], space, a, offset))
    return false;
  if (d.operands()[1].kind != Operand::Address)
    a = d.read(1, Type::B64);
  if (offset)
    return d.unsupported();
  Step &step = d.emit(convertAddress, d.write(size_t(0), Type::B64), a);
  step.number = int64_t(windowOf(space)), step.flags = out;
  return true;
}

void isInSpace(Warp &warp, const Step &step, Mask active) {
  Mask result = 0;
  for (unsigned i = 0; i < warpSize; ++i)
    result |= Mask((laneOf<uint64_t>(warp, step.a, i) & windowMask) == uint64_t(step.number)) << i;
  setPredicate(warp, step.d, result, active);
}
bool decodeIsInSpace(Decoder &d) {
  Space space;
  if (!takeSpace(d.modifiers, space))
    return d.unsupported();
  if (!d.expectOperands(2))
    return false;
  uint32_t a = d.read(1, Type::B64);
  d.emit(isInSpace, d.write(size_t(0), Type::Predicate), a).number = int64_t(windowOf(space));
  return true;
}

void zero(Warp &warp, const Step &step, Mask active) {
  uint64_t values[warpSize] = {};
  put(warp, step.d, values, active);
}
bool decodePolicy(Decoder &d) {
  while (!d.modifiers.next().empty())
    ;
  if (d.count() < 1)
    return d.fail("expected operands");
  d.emit(zero, d.write(size_t(0), Type::B64));
  return true;
}
/// Who lets the next kernel come need not do anything: kernels run one after another, and the next one's accesses are judged by its own wait.
void runGridWait(Warp &warp, const Step &, Mask active) { warp.waited |= active; }

bool decodeGridControl(Decoder &d) {
  std::string_view action = d.modifiers.takeOneOf({"wait", "launch_dependents"});
  if (action.empty())
    return d.unsupported();
  d.emit(action == "wait" ? runGridWait : nothing);
  return d.expectOperands(0);
}

bool decodeIgnored(Decoder &d) {
  while (!d.modifiers.next().empty())
    ;
  d.emit(nothing);
  return true;
}

} // namespace

void addMemoryOpcodes(OpcodeTable &table) {
  table["ld"] = table["st"] = table["ldu"] = decodeLoadOrStore;
  table["atom"] = table["red"] = decodeAtomic;
  table["membar"] = table["fence"] = decodeFence;
  table["cp"] = decodeCopy;
  table["ldmatrix"] = table["stmatrix"] = decodeMatrices;
  table["cvta"] = decodeConvertAddress;
  table["isspacep"] = decodeIsInSpace;
  table["createpolicy"] = decodePolicy;
  table["griddepcontrol"] = decodeGridControl;
  for (const char *name :
       {"prefetch", "prefetchu", "discard", "applypriority", "nanosleep", "pmevent", "setmaxnreg"})
    table[name] = decodeIgnored;
}

void finishAllCopies(Warp &warp, unsigned lane) {
  for (auto &group : warp.copies[lane])
    finishCopies(warp, lane, group);
  warp.copies[lane].clear();
}

} // namespace aligned::emulator
