// Executes PTX on the CPU: a machine holds device memory and launches kernels of loaded programs. It runs warps of 32 threads that
// share a program counter where they agree, interleaved by a seeded schedule, and stops at the first fault. What a kernel did is
// counted per instruction and per allocation. Driver.cpp makes a stand-in for libcuda.so.1 of it.
//
//   Machine machine;
//   std::string error;
//   auto program = machine.load(text, error);                  // null: error says why
//   uint64_t x = machine.allocate(bytes, "x");
//   machine.write(x, host, bytes);
//   if (!machine.launch(*program, "kernel", {8}, {128}, Arguments().add(x).add(3.0f)))
//     puts(machine.error().c_str());
//   machine.report().allocations, .instructions, ...
//
// What it executes, of PTX with 64-bit addresses. Which chip has an instruction it does not look at:
//
//   integers      add sub mul mad (lo hi wide, .cc) mul24 mad24 div rem min max abs neg sad dp4a dp2a; s16 to u64, s16x2 and u16x2
//   bits          and or xor not cnot lop3 shl shr shf popc clz bfind brev bfe bfi bmsk prmt; mov, selp, slct, set, setp
//   floats        add sub mul fma mad div min max abs neg rcp sqrt rsqrt ex2 lg2 sin cos tanh copysign testp, with roundings, .ftz,
//                 .sat, .relu, .NaN; f32 and f64, f16, bf16 and their x2, f32x2. Rounded correctly, .approx too
//   conversions   cvt between all of these, tf32, e4m3 and e5m2 pairs; cvt.pack
//   memory        ld st ldu, v2 v4 v8, weak, volatile, relaxed, acquire, release, caching hints; atom and red; fence and membar;
//                 cp.async; ldmatrix and stmatrix (b16); cvta, isspacep; spaces global, const, shared (static and .extern), local,
//                 param, generic
//   warps         shfl vote match activemask elect redux bar.warp; mma of f16, bf16, tf32, f64, 8-bit and 4-bit integers with f32,
//                 f16, f64 or s32 sums; movmatrix
//   blocks        bar and barrier: sync, arrive, red; griddepcontrol; clusters of one block
//   control       bra, brx, call of functions of the module, ret, exit, trap, predicates on all of them
//
// prefetch, discard, nanosleep, createpolicy, setmaxnreg and the like are read and do nothing. Sums of an mma are rounded once:
// hardware adds floats in an order and a width of its own.
//
// What it checks (Fault), each with the kernel, the line of PTX, the instruction, the thread and what lies near:
//
//   bounds        global memory by allocation, shared memory by variable, local memory, parameters; alignment
//   races         in shared and global memory: vector clocks for lanes, warps, barriers, fences and what atomics signal. By default
//                 warp collectives order memory as bar.warp does (Options::collectivesOrder)
//   deadlock      barriers and collectives whose threads never come; loops without end (Options::instructionLimit)
//   undefined     .aligned in a warp that is not full, shfl from a lane that takes no part, masks without the lane itself, barriers
//                 that wait for different numbers of threads
//   if asked      reads of memory that nothing wrote; global memory before griddepcontrol.wait
//
// What it refuses. `load` fails for what it does not execute: "line 10: 'frobnicate.u32 %r1, %r2;': unknown opcode 'frobnicate'",
// "unsupported form '.u8' of 'add'", external functions, recursion, indirect calls, textures, mbarrier, cp.async.bulk, wgmma,
// tcgen05, sparse mma, clocks; and a .target or .version that the device is too old for. `launch` fails for shapes and arguments
// that a device would not take. As a driver these are CUDA_ERROR_INVALID_PTX with the text in the log, or the error that CUDA has.

#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace aligned::emulator {

struct Options {
  uint64_t seed = 0;
  bool roundRobin = false;         // warps take turns in their order instead of by chance
  uint32_t slice = 200;            // instructions of a turn; by chance, the mean
  bool shuffleBlocks = false;      // start blocks in an order drawn from the seed
  uint32_t resident = 2;           // blocks that run at the same time
  bool races = true;               // report unordered accesses to shared and global memory
  bool collectivesOrder = true;    // shfl.sync, vote.sync, mma.sync, ... order memory within their warp, as bar.warp.sync does
  bool acquireNeedsFence = false;  // an atomic that reads another block's signal needs .acquire or a fence behind it
  bool exitedMissBarriers = false; // threads that have exited count as arrived at barriers
  bool uninitialised = false;      // report reads of memory that nothing has written
  bool chained = false;            // kernels before this one may still run: global memory is theirs up to griddepcontrol.wait
  bool counts = true;              // sectors and the distinct ones among them
  uint64_t instructionLimit = uint64_t(1) << 36; // warp instructions of a launch, against loops without end
  uint32_t processors = 4;                       // %nsmid
  uint64_t memory = uint64_t(8) << 30;           // bytes that can be allocated
  uint32_t capability = 90;                      // of .target: programs for later chips are refused
  uint32_t ptxVersion = 0;                       // of .version: programs of later ones are refused; 0: none are
};

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t(x) * y * z; }
};

/// Global memory traffic. A request is one instruction of one warp; sectors are 32 bytes.
struct Traffic {
  uint64_t requests = 0, bytes = 0, sectors = 0;
  uint64_t distinct = 0; // sectors, each counted once in a launch

  Traffic &operator+=(const Traffic &other) {
    requests += other.requests, bytes += other.bytes, sectors += other.sectors, distinct += other.distinct;
    return *this;
  }
};

struct InstructionCount {
  int line;
  std::string text;
  uint64_t warps, lanes; // warps that executed it, and their lanes that took part
  Traffic traffic;       // of global memory
};

struct AllocationCount {
  uint64_t base, bytes;
  std::string name;
  Traffic read, written; // atomics are both
};

struct Report {
  std::string kernel;
  Dim grid, block;
  uint64_t warpInstructions = 0, laneInstructions = 0;
  std::vector<InstructionCount> instructions; // in the order of the text
  std::vector<AllocationCount> allocations;   // those that were touched
  Traffic read, written;                      // sums of the allocations

  /// Null if the kernel did not touch an allocation of that name.
  const AllocationCount *find(std::string_view name) const {
    for (const AllocationCount &allocation : allocations)
      if (allocation.name == name)
        return &allocation;
    return nullptr;
  }
};

/// The arguments of a launch by their bytes.
class Arguments {
public:
  template <typename T> Arguments &add(T value) {
    values.emplace_back(sizeof value);
    std::memcpy(values.back().data(), &value, sizeof value);
    return *this;
  }
  const std::vector<std::vector<uint8_t>> &list() const { return values; }

private:
  std::vector<std::vector<uint8_t>> values;
};

struct Kernel;
struct Module;

/// A loaded module.
class Program {
public:
  struct Synchronisation {
    std::string kernel;
    int line;
    std::string text;
  };

  ~Program();
  std::vector<std::string> kernels() const;
  const Kernel *find(std::string_view name) const;
  const Module &module() const;
  /// Address and size of a variable of the module; zero if there is none.
  uint64_t variable(std::string_view name, uint64_t *bytes = nullptr) const;

  /// The barriers, warp barriers and fences, in the order of the text.
  std::vector<Synchronisation> synchronising() const;
  /// From now on runs as if number `n` were not there; -1: with all.
  void erase(int n);

private:
  friend class Machine;
  struct State;
  explicit Program(std::unique_ptr<State> state);
  std::unique_ptr<State> state;
};

enum class Fault : uint8_t { None, Argument, Address, Misaligned, Uninitialised, Race, Deadlock, Undefined, Trap, Limit };

class Machine {
public:
  explicit Machine(Options options = Options());
  ~Machine();

  Options options; // may change between launches

  /// Zero if there is no room. What is in the memory is undefined.
  uint64_t allocate(uint64_t bytes, std::string name = "");
  bool release(uint64_t address);
  bool setName(uint64_t address, std::string name);
  uint64_t allocated() const;
  /// All of these are false where the memory is not all in one allocation.
  bool write(uint64_t address, const void *data, uint64_t bytes);
  bool read(void *data, uint64_t address, uint64_t bytes);
  bool fill(uint64_t address, const void *pattern, uint64_t patternBytes, uint64_t count);
  bool copy(uint64_t to, uint64_t from, uint64_t bytes);
  bool contains(uint64_t address, uint64_t bytes) const;

  /// Null if the text is not a module that can be executed; `error` then names line and text.
  std::unique_ptr<Program> load(std::string_view text, std::string &error);

  /// Arguments are pointers to values of the sizes that the kernel declares, as in cuLaunchKernel.
  bool launch(const Program &program, std::string_view kernel, Dim grid, Dim block, const void *const *arguments,
              uint32_t dynamicShared = 0);
  bool launch(const Program &program, std::string_view kernel, Dim grid, Dim block, const Arguments &arguments,
              uint32_t dynamicShared = 0);
  /// Of the last launch.
  const std::string &error() const;
  Fault fault() const;
  const Report &report() const;

  struct State;
  State &internals() { return *state; }

private:
  std::shared_ptr<State> state; // that programs can tell when it is gone
};

/// What a launch needs to know of a kernel.
struct KernelInfo {
  std::vector<uint32_t> parameterBytes, parameterOffsets;
  uint32_t sharedBytes = 0, localBytes = 0;
  uint32_t maxThreads = 1024;
  bool exactThreads = false;
};
const KernelInfo &info(const Kernel &kernel);
const std::string &nameOf(const Kernel &kernel);

} // namespace aligned::emulator
