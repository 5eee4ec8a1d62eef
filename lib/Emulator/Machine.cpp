// Device memory, programs and what a launch starts from and leaves behind.

#include "Machine.h"

#include "Decode.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <tuple>

namespace aligned::emulator {

std::string hexadecimal(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

namespace {

constexpr uint64_t page = 4096;
uint64_t pages(uint64_t bytes) { return (bytes + page - 1) / page * page + page; } // the last one is never touched

auto firstBehind(const std::vector<std::unique_ptr<Region>> &regions, uint64_t address) {
  return std::upper_bound(regions.begin(), regions.end(), address,
                          [](uint64_t a, const std::unique_ptr<Region> &region) { return a < region->begin; });
}

} // namespace

Machine::State::~State() {
  while (!regions.empty())
    release(regions.back().get());
}

Region *Machine::State::find(uint64_t address, uint64_t bytes) const {
  auto it = firstBehind(regions, address);
  if (it == regions.begin())
    return nullptr;
  Region *region = std::prev(it)->get();
  return address <= region->end && bytes <= region->end - address ? region : nullptr;
}

/// Every allocation has pages of its own, so that what is behind it is never another one.
Region *Machine::State::allocate(uint64_t bytes, const Options &options) {
  if (!bytes || bytes > options.memory || allocated > options.memory - bytes)
    return nullptr;
  void *memory = mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    return nullptr;
  if (bytes <= 64 << 20)
    std::memset(memory, 0xff, bytes); // not a number in any format, where somebody reads what nobody wrote
  auto region = std::make_unique<Region>();
  region->data = static_cast<uint8_t *>(memory);
  region->begin = reinterpret_cast<uint64_t>(memory);
  region->end = region->begin + bytes;
  if (options.uninitialised)
    region->written.resize(bytes);
  allocated += bytes;
  return regions.insert(firstBehind(regions, region->begin), std::move(region))->get();
}

void Machine::State::release(Region *region) {
  allocated -= region->end - region->begin;
  munmap(region->data, pages(region->end - region->begin));
  std::free(region->cells);
  regions.erase(std::find_if(regions.begin(), regions.end(), [&](const auto &entry) { return entry.get() == region; }));
}

Machine::Machine(Options options) : options(options), state(std::make_shared<State>()) {}
Machine::~Machine() = default;

uint64_t Machine::allocate(uint64_t bytes, std::string name) {
  Region *region = state->allocate(bytes, options);
  if (!region)
    return 0;
  region->name = std::move(name);
  return region->begin;
}

bool Machine::release(uint64_t address) {
  Region *region = state->find(address, 0);
  if (!region || region->begin != address || region->hidden)
    return false;
  state->release(region);
  return true;
}

bool Machine::setName(uint64_t address, std::string name) {
  Region *region = state->find(address, 1);
  if (region)
    region->name = std::move(name);
  return region;
}

uint64_t Machine::allocated() const { return state->allocated; }

bool Machine::contains(uint64_t address, uint64_t bytes) const { return !bytes || state->find(address, bytes); }

namespace {

void setWritten(Region *region, uint64_t address, uint64_t bytes) {
  if (!region->written.empty())
    for (uint64_t i = 0; i < bytes; ++i)
      region->written.set(address - region->begin + i);
}

} // namespace

bool Machine::write(uint64_t address, const void *data, uint64_t bytes) {
  if (!bytes)
    return true;
  Region *region = state->find(address, bytes);
  if (!region)
    return false;
  std::memcpy(reinterpret_cast<void *>(address), data, bytes);
  setWritten(region, address, bytes);
  return true;
}

bool Machine::read(void *data, uint64_t address, uint64_t bytes) {
  if (!contains(address, bytes))
    return false;
  if (bytes)
    std::memcpy(data, reinterpret_cast<const void *>(address), bytes);
  return true;
}

bool Machine::fill(uint64_t address, const void *pattern, uint64_t patternBytes, uint64_t count) {
  if (!count)
    return true;
  if (count > options.memory / patternBytes)
    return false;
  Region *region = state->find(address, patternBytes * count);
  if (!region || address % patternBytes)
    return false;
  for (uint64_t i = 0; i < count; ++i)
    std::memcpy(reinterpret_cast<uint8_t *>(address) + i * patternBytes, pattern, patternBytes);
  setWritten(region, address, patternBytes * count);
  return true;
}

bool Machine::copy(uint64_t to, uint64_t from, uint64_t bytes) {
  if (!bytes)
    return true;
  Region *target = state->find(to, bytes), *source = state->find(from, bytes);
  if (!target || !source)
    return false;
  std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
  if (!target->written.empty() && !source->written.empty())
    for (uint64_t i = 0; i < bytes; ++i)
      if (source->written.test(from - source->begin + i))
        target->written.set(to - target->begin + i);
  return true;
}

std::string describeAllocation(const Launch &launch, uint64_t address) {
  const auto &regions = launch.machine->regions;
  auto it = firstBehind(regions, address);
  const Region *nearest = nullptr;
  if (it != regions.begin() && address - (*std::prev(it))->begin < uint64_t(1) << 40)
    nearest = std::prev(it)->get();
  if (it != regions.end() && (!nearest || (*it)->begin - address < address - nearest->end))
    nearest = it->get();
  if (!nearest)
    return "";
  std::string what = "the allocation " + (nearest->name.empty() ? "" : "'" + nearest->name + "' ") + "of " +
                     std::to_string(nearest->end - nearest->begin) + " bytes at " + hexadecimal(nearest->begin);
  if (address < nearest->begin)
    return ", " + std::to_string(nearest->begin - address) + " bytes before " + what;
  return address < nearest->end ? ", which crosses the end of " + what
                                : ", " + std::to_string(address - nearest->end) + " bytes behind " + what;
}

//===----------------------------------------------------------------------===//
// Programs
//===----------------------------------------------------------------------===//

Program::Program(std::unique_ptr<State> state) : state(std::move(state)) {}

Program::~Program() {
  if (auto machine = state->machine.lock())
    for (auto &[name, region] : state->variables)
      machine->release(region);
}

const Module &Program::module() const { return state->module; }

std::vector<std::string> Program::kernels() const {
  std::vector<std::string> names;
  for (const auto &kernel : state->kernels)
    names.push_back(kernel->name);
  return names;
}

const Kernel *Program::find(std::string_view name) const {
  for (const auto &kernel : state->kernels)
    if (kernel->name == name)
      return kernel.get();
  return nullptr;
}

uint64_t Program::variable(std::string_view name, uint64_t *bytes) const {
  auto it = state->variables.find(std::string(name));
  if (it == state->variables.end())
    return 0;
  if (bytes)
    *bytes = it->second->end - it->second->begin;
  return it->second->begin;
}

std::vector<Program::Synchronisation> Program::synchronising() const {
  std::vector<Synchronisation> list;
  for (auto [kernel, instruction] : state->synchronising)
    list.push_back({kernel->name, instruction->line, instruction->text});
  return list;
}

void Program::erase(int n) {
  for (auto &kernel : state->kernels)
    for (Code &code : kernel->code)
      code.erased = n >= 0 && size_t(n) < state->synchronising.size() && code.synchronising &&
                    code.source == state->synchronising[size_t(n)].second;
}

const KernelInfo &info(const Kernel &kernel) { return kernel.info; }
const std::string &nameOf(const Kernel &kernel) { return kernel.name; }

namespace {

std::string checkTarget(const Module &module, const Options &options) {
  const std::string &target = module.target;
  if (target.compare(0, 3, "sm_") != 0)
    return "expected .target sm_.., got '" + target + "'";
  auto capability = unsigned(std::atoi(target.c_str() + 3));
  char suffix = target.back();
  if (capability > options.capability || (suffix == 'a' && capability != options.capability))
    return "target " + target + " does not run on a device of capability " + std::to_string(options.capability / 10) + "." +
           std::to_string(options.capability % 10);
  if (options.ptxVersion && module.version > options.ptxVersion)
    return "PTX " + std::to_string(module.version / 10) + "." + std::to_string(module.version % 10) +
           " is later than what the driver understands, " + std::to_string(options.ptxVersion / 10) + "." +
           std::to_string(options.ptxVersion % 10);
  return "";
}

constexpr uint32_t staticSharedLimit = 48 << 10;

} // namespace

std::unique_ptr<Program> Machine::load(std::string_view text, std::string &error) {
  auto program = std::make_unique<Program::State>();
  program->machine = state;
  Module &module = program->module;
  if (!parse(text, module, error))
    return nullptr;
  error = checkTarget(module, options);
  if (!error.empty())
    return nullptr;
  for (const Function &function : module.functions)
    if (function.external) {
      error = "line " + std::to_string(function.line) + ": external function '" + function.name + "'";
      return nullptr;
    }
  std::unique_ptr<Program> result(new Program(std::move(program))); // releases the variables if something fails
  Program::State &loaded = *result->state;

  std::map<std::string, Place> places;
  std::vector<Kernel::SharedVariable> shared;
  uint64_t sharedEnd = sharedStart;
  for (const Variable &variable : module.variables) {
    auto fail = [&](const std::string &what) {
      error = "line " + std::to_string(variable.line) + ": '" + variable.name + "' " + what;
      return nullptr;
    };
    if (places.count(variable.name))
      return fail("is defined twice");
    if (variable.space == Space::Shared) {
      uint64_t align = std::max<uint64_t>(variable.align, 16), begin = (sharedEnd + align - 1) / align * align;
      if (variable.external) {
        shared.push_back({variable.name, dynamicSharedStart, dynamicSharedStart, variable.align, true, false});
        places[variable.name] = {Space::Shared, dynamicSharedStart};
        continue;
      }
      if (variable.bytes > staticSharedLimit)
        return fail("is larger than shared memory");
      shared.push_back({variable.name, begin, begin + variable.bytes, variable.align, false, false});
      places[variable.name] = {Space::Shared, begin};
      sharedEnd = begin + variable.bytes + 16;
      continue;
    }
    if (variable.external)
      return fail("is external");
    if (variable.initial.size() > variable.bytes)
      return fail("has more initial values than elements");
    Region *region = state->allocate(std::max<uint64_t>(variable.bytes, 1), options);
    if (!region)
      return fail("does not fit in device memory");
    region->name = variable.name;
    region->hidden = true;
    std::memset(region->data, 0, variable.bytes);
    std::copy(variable.initial.begin(), variable.initial.end(), region->data);
    setWritten(region, region->begin, variable.bytes);
    loaded.variables[variable.name] = region;
    places[variable.name] = {variable.space, region->begin};
  }
  for (const Variable &variable : module.variables)
    for (const Variable::Pointer &pointer : variable.pointers) {
      auto it = loaded.variables.find(pointer.name);
      if (it == loaded.variables.end()) {
        error = "line " + std::to_string(variable.line) + ": unknown name '" + pointer.name + "'";
        return nullptr;
      }
      uint64_t address = it->second->begin + uint64_t(pointer.addend);
      std::memcpy(loaded.variables[variable.name]->data + pointer.offset, &address, sizeof address);
    }

  for (const Function &function : module.functions) {
    if (!function.entry)
      continue;
    auto kernel = std::make_unique<Kernel>();
    kernel->shared = shared;
    kernel->sharedEnd = sharedEnd;
    if (!Decoder(module, places, *kernel, error).decode(function))
      return nullptr;
    if (kernel->info.sharedBytes > staticSharedLimit || kernel->sharedEnd > dynamicSharedStart) {
      error = "line " + std::to_string(function.line) + ": '" + function.name + "' uses " +
              std::to_string(kernel->info.sharedBytes) + " bytes of shared memory, of which there are " +
              std::to_string(staticSharedLimit);
      return nullptr;
    }
    kernel->shared.erase(std::remove_if(kernel->shared.begin(), kernel->shared.end(),
                                        [](const Kernel::SharedVariable &variable) { return !variable.used; }),
                         kernel->shared.end());
    for (const Code &code : kernel->code)
      if (code.synchronising) {
        bool known = std::any_of(loaded.synchronising.begin(), loaded.synchronising.end(),
                                 [&](const auto &entry) { return entry.second == code.source; });
        if (!known)
          loaded.synchronising.push_back({kernel.get(), code.source});
      }
    loaded.kernels.push_back(std::move(kernel));
  }
  return result;
}

//===----------------------------------------------------------------------===//
// Launches
//===----------------------------------------------------------------------===//

Region *Launch::find(uint64_t address, uint64_t bytes, Counters &) { return machine->find(address, bytes); }

namespace {

Dim positionOf(Dim extents, uint64_t linear) {
  return {uint32_t(linear % extents.x), uint32_t(linear / extents.x % extents.y), uint32_t(linear / extents.x / extents.y)};
}
std::string describe(Dim dim) {
  return "(" + std::to_string(dim.x) + "," + std::to_string(dim.y) + "," + std::to_string(dim.z) + ")";
}

uint32_t warpsPerBlock(const Launch &launch) { return uint32_t((launch.block.count() + warpSize - 1) / warpSize); }

} // namespace

std::string describeThread(const Launch &launch, const Block &block, const Warp &warp, unsigned lane) {
  return "thread " + describe(positionOf(launch.block, warp.index * warpSize + lane)) + " of block " + describe(block.position);
}

std::string describeThread(const Launch &launch, uint32_t thread) {
  uint32_t warp = thread / warpSize - launch.firstWarp;
  uint64_t block = launch.order[warp / warpsPerBlock(launch)];
  return "thread " + describe(positionOf(launch.block, warp % warpsPerBlock(launch) * warpSize + thread % warpSize)) +
         " of block " + describe(positionOf(launch.grid, block));
}

void failAt(Warp &warp, uint32_t code, unsigned lane, Fault fault, const std::string &what) {
  Launch &launch = *warp.launch;
  if (launch.failed)
    return;
  launch.failed = true;
  launch.fault = fault;
  const Instruction *source = launch.kernel->code[code].source;
  launch.message = launch.kernel->name + ": line " + std::to_string(source ? source->line : 0) + ": '" +
                   (source ? source->text : "") + "': " + describeThread(launch, *warp.block, warp, lane) + ": " + what;
}

namespace {

uint32_t sharedLimit(uint32_t capability) {
  switch (capability) {
  case 80:
  case 87:
    return 163 << 10;
  case 90:
  case 100:
  case 103:
    return 227 << 10;
  default:
    return capability >= 110 && capability < 120 ? 227 << 10 : 99 << 10;
  }
}

std::string checkLaunch(const Launch &launch, const Kernel *kernel, std::string_view name) {
  if (!kernel)
    return "unknown kernel '" + std::string(name) + "'";
  const KernelInfo &info = kernel->info;
  Dim grid = launch.grid, block = launch.block;
  if (!grid.count() || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return kernel->name + ": expected a grid of at least one block and at most (2147483647,65535,65535), got " + describe(grid);
  if (!block.count() || block.x > 1024 || block.y > 1024 || block.z > 64 || block.count() > 1024)
    return kernel->name + ": expected a block of 1 to 1024 threads, got " + describe(block);
  if (block.count() > info.maxThreads || (info.exactThreads && block.count() != info.maxThreads))
    return kernel->name + ": expected " + (info.exactThreads ? "" : "at most ") + std::to_string(info.maxThreads) +
           " threads, got " + std::to_string(block.count());
  uint32_t limit = sharedLimit(launch.options->capability);
  if (uint64_t(info.sharedBytes) + launch.dynamicShared > limit)
    return kernel->name + ": expected at most " + std::to_string(limit) + " bytes of shared memory, got " +
           std::to_string(uint64_t(info.sharedBytes) + launch.dynamicShared);
  return "";
}

void makeReport(const Launch &launch, Report &report) {
  report = Report();
  report.kernel = launch.kernel->name;
  report.grid = launch.grid, report.block = launch.block;
  report.warpInstructions = launch.executed;
  struct InText { // instructions of a function lie in the order of the text
    bool operator()(const Instruction *a, const Instruction *b) const { return std::tie(a->line, a) < std::tie(b->line, b); }
  };
  std::map<const Instruction *, InstructionCount, InText> counts;
  for (size_t i = 0; i < launch.counters.size(); ++i) {
    const Instruction *source = launch.kernel->code[i].source;
    const Counters &counters = launch.counters[i];
    report.laneInstructions += counters.lanes;
    if (!source || i + 1 == launch.counters.size()) // the end, which is not in the text
      continue;
    InstructionCount &count = counts.try_emplace(source, InstructionCount{source->line, source->text, 0, 0, {}}).first->second;
    count.warps += counters.warps, count.lanes += counters.lanes;
    count.traffic += counters.traffic;
  }
  for (auto &[source, count] : counts)
    report.instructions.push_back(std::move(count));
  for (const auto &region : launch.machine->regions)
    if (region->touched) {
      report.allocations.push_back({region->begin, region->end - region->begin, region->name, region->read, region->write});
      report.read += region->read;
      report.written += region->write;
    }
}

} // namespace

bool Machine::launch(const Program &program, std::string_view name, Dim grid, Dim block, const void *const *arguments,
                     uint32_t dynamicShared) {
  const Kernel *kernel = program.find(name);
  Launch launch;
  launch.machine = state.get();
  launch.options = &options;
  launch.kernel = kernel;
  launch.program = &program;
  launch.grid = grid, launch.block = block;
  launch.dynamicShared = dynamicShared;
  state->report = Report();
  state->error = checkLaunch(launch, kernel, name);
  state->fault = state->error.empty() ? Fault::None : Fault::Argument;
  if (state->fault != Fault::None)
    return false;
  launch.parameters.resize(kernel->parametersSize);
  for (size_t i = 0; i < kernel->info.parameterBytes.size(); ++i) {
    if (!arguments || !arguments[i]) {
      state->error = kernel->name + ": argument " + std::to_string(i) + " is missing";
      state->fault = Fault::Argument;
      return false;
    }
    std::memcpy(launch.parameters.data() + kernel->info.parameterOffsets[i], arguments[i], kernel->info.parameterBytes[i]);
  }
  launch.counters.resize(kernel->code.size());
  launch.random.seed(options.seed);
  launch.shared = kernel->shared;
  for (Kernel::SharedVariable &variable : launch.shared)
    if (variable.dynamic)
      variable.end = variable.begin + dynamicShared;

  uint64_t warps = grid.count() * warpsPerBlock(launch);
  constexpr uint32_t mostWarps = 1u << 26; // numbers of threads have 31 bits
  if (warps >= mostWarps) {
    state->error = kernel->name + ": too large a grid for the emulator";
    state->fault = Fault::Argument;
    return false;
  }
  if (state->nextWarp + warps >= mostWarps) { // start over
    state->nextWarp = 1;
    for (const auto &region : state->regions) {
      std::free(region->cells);
      region->cells = nullptr;
    }
  }
  launch.firstWarp = state->nextWarp;
  state->nextWarp += uint32_t(warps);
  for (const auto &region : state->regions) {
    region->firstThread = launch.firstWarp * warpSize;
    region->splits.clear();
    region->read = region->write = Traffic();
    region->readSectors.clear(), region->writtenSectors.clear();
    region->touched = false;
  }
  execute(launch);
  makeReport(launch, state->report);
  state->error = launch.message;
  state->fault = launch.fault;
  return !launch.failed;
}

bool Machine::launch(const Program &program, std::string_view name, Dim grid, Dim block, const Arguments &arguments,
                     uint32_t dynamicShared) {
  const Kernel *kernel = program.find(name);
  std::vector<const void *> pointers;
  for (const auto &value : arguments.list())
    pointers.push_back(value.data());
  if (kernel) {
    const std::vector<uint32_t> &sizes = kernel->info.parameterBytes;
    bool fits = sizes.size() == pointers.size();
    for (size_t i = 0; fits && i < sizes.size(); ++i)
      fits = sizes[i] == arguments.list()[i].size();
    if (!fits) {
      state->error = kernel->name + ": expected arguments of the sizes of its parameters";
      state->fault = Fault::Argument;
      return false;
    }
  }
  return launch(program, name, grid, block, pointers.data(), dynamicShared);
}

const std::string &Machine::error() const { return state->error; }
Fault Machine::fault() const { return state->fault; }
const Report &Machine::report() const { return state->report; }

} // namespace aligned::emulator
