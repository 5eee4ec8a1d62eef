// A stand-in for libcuda.so.1 that runs PTX in the emulator. It keeps to what programs may rely on and to no more: work is done
// when something waits for it, copies from and to pinned memory included; a context has to be current; what CUDA forbids while a
// stream is captured fails; a fault sticks. What the emulator finds goes to stderr.
//
// It has what cuda.h calls init, version, errors, devices, primary contexts, memory (device, pinned, copies and sets, queued or not),
// modules and their variables, attributes of functions, occupancy, launches (with programmatic serialization), streams, events,
// captures and graphs. There is one device; whatever else a program looks for, dlsym does not find.
//
//   ALIGNED_EMULATOR_CC=90            compute capability
//   ALIGNED_EMULATOR_DRIVER=13000     what cuDriverGetVersion says; it bounds the PTX version
//   ALIGNED_EMULATOR_SMS=4            multiprocessors
//   ALIGNED_EMULATOR_MEMORY=BYTES     of the device
//   ALIGNED_EMULATOR_SEED=0           of the schedule
//   ALIGNED_EMULATOR_RESIDENT=2       blocks that run at the same time
//   ALIGNED_EMULATOR_SHUFFLE=1        start blocks in an order drawn from the seed
//   ALIGNED_EMULATOR_RACES=0          do not look for races
//   ALIGNED_EMULATOR_ACQUIRE=1        ask for fences behind atomics that read signals, too
//   ALIGNED_EMULATOR_COLLECTIVES=0    shfl.sync and the like do not order memory, only warp barriers do
//   ALIGNED_EMULATOR_UNINITIALISED=1  report reads of what was never written
//   ALIGNED_EMULATOR_DELETE=N         run the first module without its N-th synchronising instruction
//   ALIGNED_EMULATOR_COUNTS=FILE      append a line of JSON per launch

#include "Machine.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>

using namespace aligned::emulator;

// What of cuda.h is needed here.
using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st *;
using CUmodule = struct CUmod_st *;
using CUfunction = struct CUfunc_st *;
using CUstream = struct CUstream_st *;
using CUevent = struct CUevent_st *;
using CUgraph = struct CUgraph_st *;
using CUgraphExec = struct CUgraphExec_st *;
struct CUlaunchAttribute {
  int id;
  alignas(8) int value; // the first of 64 bytes
  char rest[60];
};
struct CUlaunchConfig {
  unsigned gridX, gridY, gridZ, blockX, blockY, blockZ, shared;
  CUstream stream;
  const CUlaunchAttribute *attributes;
  unsigned count;
};

namespace {

enum : CUresult {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NOT_INITIALIZED = 3,
  CUDA_ERROR_NO_DEVICE = 100,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_INVALID_IMAGE = 200,
  CUDA_ERROR_INVALID_CONTEXT = 201,
  CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
  CUDA_ERROR_INVALID_PTX = 218,
  CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
  CUDA_ERROR_INVALID_HANDLE = 400,
  CUDA_ERROR_NOT_FOUND = 500,
  CUDA_ERROR_NOT_READY = 600,
  CUDA_ERROR_ILLEGAL_ADDRESS = 700,
  CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
  CUDA_ERROR_LAUNCH_TIMEOUT = 702,
  CUDA_ERROR_MISALIGNED_ADDRESS = 716,
  CUDA_ERROR_LAUNCH_FAILED = 719,
  CUDA_ERROR_NOT_SUPPORTED = 801,
  CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
  CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
  CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
  CUDA_ERROR_ILLEGAL_STATE = 401,
  CUDA_ERROR_UNKNOWN = 999
};

struct ErrorRow {
  CUresult code;
  const char *name, *text;
};
constexpr ErrorRow errorTable[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {CUDA_ERROR_INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {CUDA_ERROR_LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {CUDA_ERROR_MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not begun in this stream"},
    {CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
const ErrorRow *errorRow(CUresult code) {
  for (const ErrorRow &row : errorTable)
    if (row.code == code)
      return &row;
  return nullptr;
}

uint64_t setting(const char *name, uint64_t otherwise) {
  const char *value = std::getenv(name);
  return value && *value ? std::strtoull(value, nullptr, 0) : otherwise;
}

std::string hexadecimalDigits(uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "%llx", static_cast<unsigned long long>(value));
  return text;
}

/// Something that a stream or a graph has to do.
using Work = std::function<CUresult()>;

struct Capture {
  std::vector<Work> work;
  int mode = 0;
  bool invalid = false;
  CUstream origin = nullptr;
};

} // namespace

struct CUctx_st {};
struct CUmod_st {
  std::unique_ptr<Program> program;
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};
struct CUfunc_st {
  std::shared_ptr<CUmod_st> module; // work that is queued keeps it
  const Kernel *kernel;
  int dynamicShared = 0; // that was allowed beyond what all may use
};
struct CUstream_st {
  bool blocking = true; // waits for the default stream, and that one for it
  std::deque<Work> work;
  uint64_t done = 0; // pieces of work since it was made
  std::shared_ptr<Capture> capture;
};
struct CUevent_st {
  CUstream stream = nullptr; // recorded in
  uint64_t position = 0;     // behind so many pieces of its work
  std::chrono::steady_clock::time_point time;
  bool recorded = false, timed = false;
  std::shared_ptr<Capture> capture;
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};

namespace {

constexpr uint64_t pinnedAlignment = 4096;

class Driver {
public:
  Driver() {
    Options &options = machine.options;
    options.seed = setting("ALIGNED_EMULATOR_SEED", 0);
    options.capability = uint32_t(setting("ALIGNED_EMULATOR_CC", 90));
    options.processors = uint32_t(setting("ALIGNED_EMULATOR_SMS", 4));
    options.memory = setting("ALIGNED_EMULATOR_MEMORY", options.memory);
    options.resident = uint32_t(setting("ALIGNED_EMULATOR_RESIDENT", options.resident));
    options.shuffleBlocks = setting("ALIGNED_EMULATOR_SHUFFLE", 0);
    options.races = setting("ALIGNED_EMULATOR_RACES", 1);
    options.acquireNeedsFence = setting("ALIGNED_EMULATOR_ACQUIRE", 0);
    options.collectivesOrder = setting("ALIGNED_EMULATOR_COLLECTIVES", 1);
    options.uninitialised = setting("ALIGNED_EMULATOR_UNINITIALISED", 0);
    version = int(setting("ALIGNED_EMULATOR_DRIVER", 13000));
    options.ptxVersion = ptxOfDriver(version);
    seed = options.seed;
    if (const char *file = std::getenv("ALIGNED_EMULATOR_COUNTS"))
      countsFile = file;
    if (const char *number = std::getenv("ALIGNED_EMULATOR_DELETE"))
      erased = *number ? std::atoi(number) : -1;
    streams.insert(&defaultStream);
  }

  /// CUDA 12.8 is PTX 8.7.
  static uint32_t ptxOfDriver(int version) {
    int major = version / 1000, minor = version % 1000 / 10;
    if (major < 12)
      return uint32_t(70 + minor);
    if (major == 12)
      return uint32_t(80 + minor - (minor > 5));
    return uint32_t(90 + minor + (major - 13) * 10);
  }

  Machine machine;
  int version, erased = -1;
  uint64_t seed, launches = 0;
  std::string countsFile, lastError;
  bool initialised = false;
  CUresult sticky = CUDA_SUCCESS;
  CUctx_st context;
  int retained = 0;
  CUstream_st defaultStream;
  std::set<CUstream> streams;
  std::set<CUevent> events;
  std::set<CUgraph> graphs;
  std::set<CUgraphExec> executables;
  std::map<CUmodule, std::shared_ptr<CUmod_st>> modules;
  std::map<uint64_t, uint64_t> pinned; // begin -> end
  std::set<uint64_t> allocations;
  std::set<std::shared_ptr<Capture>> captures;
  bool anyModule = false;
  std::recursive_mutex mutex;

  //===--------------------------------------------------------------------===//
  // Work
  //===--------------------------------------------------------------------===//

  CUresult fail(CUresult result) {
    if (sticky == CUDA_SUCCESS && (result == CUDA_ERROR_ILLEGAL_ADDRESS || result == CUDA_ERROR_MISALIGNED_ADDRESS ||
                                   result == CUDA_ERROR_LAUNCH_FAILED || result == CUDA_ERROR_LAUNCH_TIMEOUT))
      sticky = result;
    return result;
  }

  CUstream streamOf(CUstream stream) {
    // Null, the legacy and the per-thread default stream.
    return reinterpret_cast<uintptr_t>(stream) <= 2 ? &defaultStream : stream;
  }
  bool known(CUstream stream) { return streams.count(streamOf(stream)); }

  /// Does the first `position` pieces of work that `stream` was ever given.
  CUresult finish(CUstream stream, uint64_t position) {
    while (streams.count(stream) && stream->done < position && !stream->work.empty()) {
      Work work = std::move(stream->work.front());
      stream->work.pop_front();
      ++stream->done;
      if (CUresult result = sticky ? sticky : work())
        return fail(result);
    }
    return sticky;
  }
  CUresult finish(CUstream stream) { return finish(stream, stream->done + stream->work.size()); }
  CUresult finishAll(bool onlyBlocking = false) {
    std::vector<CUstream> list(streams.begin(), streams.end());
    for (CUstream stream : list)
      if (stream->blocking || !onlyBlocking)
        if (CUresult result = finish(stream))
          return result;
    return sticky;
  }

  CUresult submit(CUstream stream, Work work) {
    stream = streamOf(stream);
    if (!streams.count(stream))
      return CUDA_ERROR_INVALID_HANDLE;
    if (sticky)
      return sticky;
    if (stream->capture) {
      if (stream->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
      stream->capture->work.push_back(std::move(work));
      return CUDA_SUCCESS;
    }
    if (stream == &defaultStream) { // behind what the others have, and before what they get
      for (CUstream other : streams)
        if (other->capture && other->blocking) {
          other->capture->invalid = true;
          return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
      if (CUresult result = finishAll(true))
        return result;
    } else if (stream->blocking)
      if (CUresult result = finish(&defaultStream))
        return result;
    stream->work.push_back(std::move(work));
    return CUDA_SUCCESS;
  }

  /// For calls that must not be made while anything is captured.
  CUresult unsafe() {
    for (const auto &capture : captures)
      if (capture->mode != 2) {
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
      }
    return sticky;
  }

  /// A call that is done when it returns.
  CUresult synchronous(const Work &work) {
    if (CUresult result = unsafe())
      return result;
    if (CUresult result = finishAll(true))
      return result;
    return fail(work());
  }

  bool isPinned(const void *host, uint64_t bytes) {
    auto address = reinterpret_cast<uint64_t>(host);
    auto it = pinned.upper_bound(address);
    return it != pinned.begin() && address + bytes <= std::prev(it)->second;
  }

  /// A copy with ordinary memory on one side is done when its call returns.
  CUresult submitCopy(CUstream stream, const void *host, uint64_t bytes, Work work) {
    stream = streamOf(stream);
    CUresult result = submit(stream, std::move(work));
    if (result || stream->capture || isPinned(host, bytes))
      return result;
    return finish(stream);
  }

  CUresult badAddress(const char *what, CUdeviceptr address, uint64_t bytes) {
    std::fprintf(stderr, "emulator: %s: %llu bytes at 0x%llx are not in an allocation of the device\n", what,
                 static_cast<unsigned long long>(bytes), address);
    return CUDA_ERROR_INVALID_VALUE;
  }

  //===--------------------------------------------------------------------===//
  // Kernels
  //===--------------------------------------------------------------------===//

  CUresult runKernel(const CUfunc_st &function, Dim grid, Dim block, uint32_t shared,
                     const std::vector<std::vector<uint8_t>> &arguments, bool chained) {
    std::vector<const void *> pointers;
    for (const auto &argument : arguments)
      pointers.push_back(argument.data());
    machine.options.seed = seed * 0x9e3779b97f4a7c15 + launches++;
    machine.options.chained = chained;
    bool success = machine.launch(*function.module->program, nameOf(*function.kernel), grid, block, pointers.data(), shared);
    if (!countsFile.empty())
      writeCounts();
    if (success)
      return CUDA_SUCCESS;
    std::fprintf(stderr, "emulator: %s\n", machine.error().c_str());
    lastError = machine.error();
    switch (machine.fault()) {
    case Fault::Argument:
      return CUDA_ERROR_INVALID_VALUE;
    case Fault::Address:
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    case Fault::Misaligned:
      return CUDA_ERROR_MISALIGNED_ADDRESS;
    case Fault::Limit:
      return CUDA_ERROR_LAUNCH_TIMEOUT;
    default:
      return CUDA_ERROR_LAUNCH_FAILED;
    }
  }

  void writeCounts() {
    std::FILE *file = std::fopen(countsFile.c_str(), "a");
    if (!file)
      return;
    const Report &report = machine.report();
    auto number = [](uint64_t value) { return static_cast<unsigned long long>(value); };
    auto traffic = [&](const char *name, const Traffic &t) {
      std::fprintf(file, "\"%s\": {\"requests\": %llu, \"bytes\": %llu, \"sectors\": %llu, \"distinct\": %llu}", name,
                   number(t.requests), number(t.bytes), number(t.sectors), number(t.distinct));
    };
    std::fprintf(file,
                 "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"warp_instructions\": %llu, "
                 "\"lane_instructions\": %llu, ",
                 report.kernel.c_str(), report.grid.x, report.grid.y, report.grid.z, report.block.x, report.block.y,
                 report.block.z, number(report.warpInstructions), number(report.laneInstructions));
    traffic("read", report.read);
    std::fprintf(file, ", ");
    traffic("written", report.written);
    std::fprintf(file, ", \"allocations\": [");
    for (size_t i = 0; i < report.allocations.size(); ++i) {
      const AllocationCount &allocation = report.allocations[i];
      std::string name;
      for (char c : allocation.name)
        if (c == '"' || c == '\\')
          name += std::string("\\") + c;
        else if (static_cast<unsigned char>(c) >= ' ')
          name += c;
      std::fprintf(file, "%s{\"name\": \"%s\", \"base\": %llu, \"size\": %llu, ", i ? ", " : "", name.c_str(),
                   number(allocation.base), number(allocation.bytes));
      traffic("read", allocation.read);
      std::fprintf(file, ", ");
      traffic("written", allocation.written);
      std::fprintf(file, "}");
    }
    std::fprintf(file, "]}\n");
    std::fclose(file);
  }

  /// On failure a message in `log`.
  CUresult load(CUmodule *result, const char *image, std::string &log) {
    if (!result || !image)
      return CUDA_ERROR_INVALID_VALUE;
    if (!std::memcmp(image, "\177ELF", 4) || !std::memcmp(image, "\x50\xed\x55\xba", 4)) {
      log = "expected PTX, got a binary";
      return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    auto module = std::make_shared<CUmod_st>();
    module->program = machine.load(image, log);
    if (!module->program) {
      std::fprintf(stderr, "emulator: %s\n", log.c_str());
      return log.find(" is later than what the driver understands") != std::string::npos ? CUDA_ERROR_UNSUPPORTED_PTX_VERSION
             : log.find(" does not run on a device") != std::string::npos                ? CUDA_ERROR_NO_BINARY_FOR_GPU
                                                                                         : CUDA_ERROR_INVALID_PTX;
    }
    if (!anyModule && erased >= 0)
      module->program->erase(erased);
    anyModule = true;
    *result = module.get();
    modules[module.get()] = std::move(module);
    return CUDA_SUCCESS;
  }
  void unload(decltype(modules)::iterator it) {
    std::shared_ptr<CUmod_st> kept = it->second;
    modules.erase(it);
    kept->functions.clear(); // they hold the module
  }
};

Driver &driver() {
  static Driver *const instance = new Driver; // outlives whoever calls at the end
  return *instance;
}

thread_local std::vector<CUcontext> contexts; // the last one is current

/// What every call begins with.
struct Call {
  Driver &d = driver();
  std::lock_guard<std::recursive_mutex> lock{d.mutex};
  CUresult state = CUDA_SUCCESS;
  explicit Call(bool needsContext = true) {
    if (!d.initialised)
      state = CUDA_ERROR_NOT_INITIALIZED;
    else if (needsContext && (contexts.empty() || !contexts.back() || !d.retained))
      state = CUDA_ERROR_INVALID_CONTEXT;
  }
  explicit operator bool() const { return state == CUDA_SUCCESS; }
  Driver *operator->() { return &d; }
};

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

//===----------------------------------------------------------------------===//
// Device and context
//===----------------------------------------------------------------------===//

EXPORT CUresult cuInit(unsigned flags) {
  Driver &d = driver();
  std::lock_guard<std::recursive_mutex> lock(d.mutex);
  if (flags)
    return CUDA_ERROR_INVALID_VALUE;
  d.initialised = true;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int *version) {
  if (!version)
    return CUDA_ERROR_INVALID_VALUE;
  *version = driver().version;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
  const ErrorRow *row = errorRow(error);
  if (!text)
    return CUDA_ERROR_INVALID_VALUE;
  *text = row ? row->text : nullptr;
  return row ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
EXPORT CUresult cuGetErrorName(CUresult error, const char **text) {
  const ErrorRow *row = errorRow(error);
  if (!text)
    return CUDA_ERROR_INVALID_VALUE;
  *text = row ? row->name : nullptr;
  return row ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuDeviceGetCount(int *count) {
  Call call(false);
  if (!call)
    return call.state;
  if (!count)
    return CUDA_ERROR_INVALID_VALUE;
  *count = 1;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  Call call(false);
  if (!call)
    return call.state;
  if (!device)
    return CUDA_ERROR_INVALID_VALUE;
  if (ordinal)
    return CUDA_ERROR_INVALID_DEVICE;
  *device = 0;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  Call call(false);
  if (!call)
    return call.state;
  if (device)
    return CUDA_ERROR_INVALID_DEVICE;
  if (!name || length <= 0)
    return CUDA_ERROR_INVALID_VALUE;
  uint32_t capability = call->machine.options.capability;
  std::snprintf(name, size_t(length), "PTX emulator %u.%u", capability / 10, capability % 10);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  Call call(false);
  if (!call)
    return call.state;
  if (!bytes)
    return CUDA_ERROR_INVALID_VALUE;
  *bytes = call->machine.options.memory;
  return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
  Call call(false);
  if (!call)
    return call.state;
  if (device)
    return CUDA_ERROR_INVALID_DEVICE;
  if (!value)
    return CUDA_ERROR_INVALID_VALUE;
  int capability = int(call->machine.options.capability);
  int sharedPerProcessor = capability == 80 || capability == 87   ? 164 << 10
                           : capability >= 90 && capability < 120 ? 228 << 10
                                                                  : 100 << 10;
  switch (attribute) {
  case 1: // MAX_THREADS_PER_BLOCK
  case 2: // MAX_BLOCK_DIM_X
  case 3: // MAX_BLOCK_DIM_Y
    *value = 1024;
    break;
  case 4: // MAX_BLOCK_DIM_Z
    *value = 64;
    break;
  case 5: // MAX_GRID_DIM_X
    *value = 0x7fffffff;
    break;
  case 6: // MAX_GRID_DIM_Y
  case 7: // MAX_GRID_DIM_Z
    *value = 65535;
    break;
  case 8: // MAX_SHARED_MEMORY_PER_BLOCK
    *value = 48 << 10;
    break;
  case 9: // TOTAL_CONSTANT_MEMORY
    *value = 64 << 10;
    break;
  case 10: // WARP_SIZE
    *value = 32;
    break;
  case 12: // MAX_REGISTERS_PER_BLOCK
  case 82: // MAX_REGISTERS_PER_MULTIPROCESSOR
    *value = 65536;
    break;
  case 13: // CLOCK_RATE
  case 36: // MEMORY_CLOCK_RATE
    *value = 1000000;
    break;
  case 16: // MULTIPROCESSOR_COUNT
    *value = int(call->machine.options.processors);
    break;
  case 37: // GLOBAL_MEMORY_BUS_WIDTH
    *value = 5120;
    break;
  case 38: // L2_CACHE_SIZE
    *value = 50 << 20;
    break;
  case 39: // MAX_THREADS_PER_MULTIPROCESSOR
    *value = 2048;
    break;
  case 31: // CONCURRENT_KERNELS
  case 40: // ASYNC_ENGINE_COUNT
  case 41: // UNIFIED_ADDRESSING
  case 95: // COOPERATIVE_LAUNCH
    *value = 1;
    break;
  case 75: // COMPUTE_CAPABILITY_MAJOR
    *value = capability / 10;
    break;
  case 76: // COMPUTE_CAPABILITY_MINOR
    *value = capability % 10;
    break;
  case 81: // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    *value = sharedPerProcessor;
    break;
  case 97: // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    *value = sharedPerProcessor - 1024;
    break;
  case 106: // MAX_BLOCKS_PER_MULTIPROCESSOR
    *value = 32;
    break;
  case 111: // RESERVED_SHARED_MEMORY_PER_BLOCK
    *value = 1024;
    break;
  default:
    *value = 0;
    return attribute > 0 && attribute < 150 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  Call call(false);
  if (!call)
    return call.state;
  if (device)
    return CUDA_ERROR_INVALID_DEVICE;
  if (!context)
    return CUDA_ERROR_INVALID_VALUE;
  ++call->retained;
  *context = &call->context;
  return CUDA_SUCCESS;
}
/// The last release ends the context and all that is in it.
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  Call call(false);
  if (!call)
    return call.state;
  if (device)
    return CUDA_ERROR_INVALID_DEVICE;
  if (!call->retained)
    return CUDA_ERROR_INVALID_CONTEXT;
  if (--call->retained)
    return CUDA_SUCCESS;
  call->finishAll();
  for (CUstream stream : call->streams) {
    stream->done += stream->work.size();
    stream->work.clear();
  }
  while (!call->modules.empty())
    call->unload(call->modules.begin());
  for (uint64_t address : call->allocations)
    call->machine.release(address);
  call->allocations.clear();
  call->sticky = CUDA_SUCCESS;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  Call call(false);
  if (!call)
    return call.state;
  if (contexts.empty())
    contexts.push_back(context);
  else
    contexts.back() = context;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
  Call call(false);
  if (!call)
    return call.state;
  if (!context)
    return CUDA_ERROR_INVALID_VALUE;
  *context = contexts.empty() ? nullptr : contexts.back();
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
  Call call(false);
  if (!call)
    return call.state;
  contexts.push_back(context);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context) {
  Call call(false);
  if (!call)
    return call.state;
  if (contexts.empty())
    return CUDA_ERROR_INVALID_CONTEXT;
  if (context)
    *context = contexts.back();
  contexts.pop_back();
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
  Call call;
  if (!call)
    return call.state;
  if (!device)
    return CUDA_ERROR_INVALID_VALUE;
  *device = 0;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSynchronize() {
  Call call;
  if (!call)
    return call.state;
  if (CUresult result = call->unsafe())
    return result;
  return call->finishAll();
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
  Call call;
  if (!call)
    return call.state;
  if (!address || !bytes)
    return CUDA_ERROR_INVALID_VALUE;
  if (CUresult result = call->unsafe())
    return result;
  uint64_t result = call->machine.allocate(bytes);
  if (!result)
    return CUDA_ERROR_OUT_OF_MEMORY;
  call->machine.setName(result, "0x" + hexadecimalDigits(result) + "+" + std::to_string(bytes));
  call->allocations.insert(result);
  *address = result;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
  Call call;
  if (!call)
    return call.state;
  if (!address)
    return CUDA_SUCCESS;
  if (CUresult result = call->unsafe())
    return result;
  if (CUresult result = call->finishAll())
    return result;
  if (!call->allocations.erase(address))
    return call->badAddress("cuMemFree", address, 0);
  call->machine.release(address);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
  Call call;
  if (!call)
    return call.state;
  if (!free || !total)
    return CUDA_ERROR_INVALID_VALUE;
  *total = call->machine.options.memory;
  *free = *total - call->machine.allocated();
  return CUDA_SUCCESS;
}

EXPORT CUresult cuMemHostAlloc(void **host, size_t bytes, unsigned) {
  Call call;
  if (!call)
    return call.state;
  if (!host || !bytes)
    return CUDA_ERROR_INVALID_VALUE;
  if (CUresult result = call->unsafe())
    return result;
  *host = std::aligned_alloc(pinnedAlignment, (bytes + pinnedAlignment - 1) / pinnedAlignment * pinnedAlignment);
  if (!*host)
    return CUDA_ERROR_OUT_OF_MEMORY;
  auto begin = reinterpret_cast<uint64_t>(*host);
  call->pinned[begin] = begin + bytes;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemAllocHost_v2(void **host, size_t bytes) { return cuMemHostAlloc(host, bytes, 0); }
EXPORT CUresult cuMemFreeHost(void *host) {
  Call call;
  if (!call)
    return call.state;
  if (CUresult result = call->unsafe())
    return result;
  if (CUresult result = call->finishAll())
    return result;
  if (!call->pinned.erase(reinterpret_cast<uint64_t>(host)))
    return CUDA_ERROR_INVALID_VALUE;
  std::free(host);
  return CUDA_SUCCESS;
}

namespace {

Work copyIn(Driver &d, CUdeviceptr to, const void *from, size_t bytes) {
  return [&d, to, from, bytes] {
    return d.machine.write(to, from, bytes) ? CUDA_SUCCESS : d.badAddress("copy to the device", to, bytes);
  };
}
Work copyOut(Driver &d, void *to, CUdeviceptr from, size_t bytes) {
  return [&d, to, from, bytes] {
    return d.machine.read(to, from, bytes) ? CUDA_SUCCESS : d.badAddress("copy to the host", from, bytes);
  };
}
Work copyWithin(Driver &d, CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return [&d, to, from, bytes] {
    if (d.machine.copy(to, from, bytes))
      return CUresult(CUDA_SUCCESS);
    return d.badAddress("copy on the device", d.machine.contains(to, bytes) ? from : to, bytes);
  };
}
Work fill(Driver &d, CUdeviceptr to, uint32_t pattern, unsigned patternBytes, size_t count) {
  return [&d, to, pattern, patternBytes, count] {
    return d.machine.fill(to, &pattern, patternBytes, count) ? CUDA_SUCCESS : d.badAddress("memset", to, count * patternBytes);
  };
}

} // namespace

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
  Call call;
  return call ? call->synchronous(copyIn(call.d, to, from, bytes)) : call.state;
}
EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
  Call call;
  return call ? call->synchronous(copyOut(call.d, to, from, bytes)) : call.state;
}
EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  Call call;
  return call ? call->synchronous(copyWithin(call.d, to, from, bytes)) : call.state;
}
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->machine.contains(to, bytes))
    return call->badAddress("copy to the device", to, bytes);
  return call->submitCopy(stream, from, bytes, copyIn(call.d, to, from, bytes));
}
EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->machine.contains(from, bytes))
    return call->badAddress("copy to the host", from, bytes);
  return call->submitCopy(stream, to, bytes, copyOut(call.d, to, from, bytes));
}
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->machine.contains(from, bytes) || !call->machine.contains(to, bytes))
    return call->badAddress("copy on the device", call->machine.contains(to, bytes) ? from : to, bytes);
  return call->submit(stream, copyWithin(call.d, to, from, bytes));
}
EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
  Call call;
  return call ? call->synchronous(fill(call.d, to, value, 1, count)) : call.state;
}
EXPORT CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
  Call call;
  return call ? call->synchronous(fill(call.d, to, value, 4, count)) : call.state;
}
EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->machine.contains(to, count))
    return call->badAddress("memset", to, count);
  return call->submit(stream, fill(call.d, to, value, 1, count));
}
EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (to % 4 || count > SIZE_MAX / 4 || !call->machine.contains(to, count * 4))
    return call->badAddress("memset", to, count * 4);
  return call->submit(stream, fill(call.d, to, value, 4, count));
}

//===----------------------------------------------------------------------===//
// Modules and kernels
//===----------------------------------------------------------------------===//

EXPORT CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options, void **values) {
  Call call;
  if (!call)
    return call.state;
  if (CUresult result = call->unsafe())
    return result;
  char *buffer = nullptr;
  size_t room = 0;
  for (unsigned i = 0; i < count; ++i) {
    if (options[i] == 5) // ERROR_LOG_BUFFER
      buffer = static_cast<char *>(values[i]);
    else if (options[i] == 6) // ERROR_LOG_BUFFER_SIZE_BYTES
      room = static_cast<unsigned>(reinterpret_cast<uintptr_t>(values[i]));
    else if (options[i] == 3 && values[i]) // INFO_LOG_BUFFER
      *static_cast<char *>(values[i]) = '\0';
  }
  std::string log;
  CUresult result = call->load(module, static_cast<const char *>(image), log);
  if (buffer && room)
    std::snprintf(buffer, room, "%s", log.c_str());
  return result;
}
EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr);
}
EXPORT CUresult cuModuleUnload(CUmodule module) {
  Call call;
  if (!call)
    return call.state;
  if (CUresult result = call->finishAll())
    return result;
  auto it = call->modules.find(module);
  if (it == call->modules.end())
    return CUDA_ERROR_INVALID_HANDLE;
  call->unload(it);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  Call call;
  if (!call)
    return call.state;
  auto it = call->modules.find(module);
  if (!function || !name)
    return CUDA_ERROR_INVALID_VALUE;
  if (it == call->modules.end())
    return CUDA_ERROR_INVALID_HANDLE;
  const Kernel *kernel = module->program->find(name);
  if (!kernel)
    return CUDA_ERROR_NOT_FOUND;
  std::unique_ptr<CUfunc_st> &entry = module->functions[name];
  if (!entry)
    entry.reset(new CUfunc_st{it->second, kernel, 0});
  *function = entry.get();
  return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *bytes, CUmodule module, const char *name) {
  Call call;
  if (!call)
    return call.state;
  if (!call->modules.count(module) || !name)
    return CUDA_ERROR_INVALID_HANDLE;
  uint64_t size = 0, found = module->program->variable(name, &size);
  if (!found)
    return CUDA_ERROR_NOT_FOUND;
  if (address)
    *address = found;
  if (bytes)
    *bytes = size;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
  Call call;
  if (!call)
    return call.state;
  if (!value || !function)
    return CUDA_ERROR_INVALID_VALUE;
  const KernelInfo &known = info(*function->kernel);
  switch (attribute) {
  case 0: // MAX_THREADS_PER_BLOCK
    *value = int(known.maxThreads);
    return CUDA_SUCCESS;
  case 1: // SHARED_SIZE_BYTES
    *value = int(known.sharedBytes);
    return CUDA_SUCCESS;
  case 3: // LOCAL_SIZE_BYTES
    *value = int(known.localBytes);
    return CUDA_SUCCESS;
  case 4: // NUM_REGS
    *value = 64;
    return CUDA_SUCCESS;
  case 5: // PTX_VERSION
  case 6: // BINARY_VERSION
    *value = int(call->machine.options.capability);
    return CUDA_SUCCESS;
  case 8: // MAX_DYNAMIC_SHARED_SIZE_BYTES
    *value = std::max(function->dynamicShared, (48 << 10) - int(known.sharedBytes));
    return CUDA_SUCCESS;
  default:
    *value = 0;
    return attribute >= 0 && attribute < 32 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  }
}
EXPORT CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
  Call call;
  if (!call)
    return call.state;
  if (!function || value < 0)
    return CUDA_ERROR_INVALID_VALUE;
  if (attribute == 8) {
    int most = 0;
    cuDeviceGetAttribute(&most, 97, 0);
    if (value + int(info(*function->kernel).sharedBytes) > most)
      return CUDA_ERROR_INVALID_VALUE;
    function->dynamicShared = value;
  }
  return CUDA_SUCCESS;
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads, size_t dynamicShared) {
  Call call;
  if (!call)
    return call.state;
  if (!blocks || !function || threads < 1)
    return CUDA_ERROR_INVALID_VALUE;
  int shared = 0;
  cuDeviceGetAttribute(&shared, 81, 0);
  auto used = size_t(info(*function->kernel).sharedBytes) + dynamicShared + 1024;
  *blocks = int(std::min({size_t(2048 / threads), size_t(shared) / used, size_t(32)}));
  return CUDA_SUCCESS;
}

/// `chained`: before what is ahead of it has ended, where the kernel waits for that itself. Here it only has to: kernels run in order.
static CUresult launch(CUfunction function, Dim grid, Dim block, unsigned shared, CUstream stream, void **parameters, void **extra,
                       bool chained) {
  Call call;
  if (!call)
    return call.state;
  if (!function)
    return CUDA_ERROR_INVALID_HANDLE;
  const KernelInfo &known = info(*function->kernel);
  if (!grid.count() || !block.count() || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 || block.x > 1024 ||
      block.y > 1024 || block.z > 64 || block.count() > 1024)
    return CUDA_ERROR_INVALID_VALUE;
  if (block.count() > known.maxThreads || (known.exactThreads && block.count() != known.maxThreads))
    return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  if (int(shared) > std::max(function->dynamicShared, (48 << 10) - int(known.sharedBytes)))
    return CUDA_ERROR_INVALID_VALUE;
  std::vector<std::vector<uint8_t>> arguments(known.parameterBytes.size());
  const uint8_t *packed = nullptr;
  if (extra && !parameters)
    for (void **entry = extra; *entry; entry += 2)
      if (reinterpret_cast<uintptr_t>(*entry) == 1) // LAUNCH_PARAM_BUFFER_POINTER
        packed = static_cast<const uint8_t *>(entry[1]);
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto source = packed       ? packed + known.parameterOffsets[i]
                  : parameters ? static_cast<const uint8_t *>(parameters[i])
                               : nullptr;
    if (!source)
      return CUDA_ERROR_INVALID_VALUE;
    arguments[i].assign(source, source + known.parameterBytes[i]);
  }
  CUfunc_st kept = *function;
  return call->submit(stream, [&d = call.d, kept, grid, block, shared, arguments, chained] {
    return d.runKernel(kept, grid, block, shared, arguments, chained);
  });
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX,
                               unsigned blockY, unsigned blockZ, unsigned shared, CUstream stream, void **parameters,
                               void **extra) {
  return launch(function, {gridX, gridY, gridZ}, {blockX, blockY, blockZ}, shared, stream, parameters, extra, false);
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  constexpr int programmaticStreamSerialization = 6;
  if (!config || (config->count && !config->attributes))
    return CUDA_ERROR_INVALID_VALUE;
  bool chained = false;
  for (unsigned i = 0; i < config->count; ++i) {
    if (config->attributes[i].id != programmaticStreamSerialization)
      return CUDA_ERROR_NOT_SUPPORTED;
    chained = config->attributes[i].value != 0;
  }
  if (chained && driver().machine.options.capability < 90)
    return CUDA_ERROR_NOT_SUPPORTED;
  return launch(function, {config->gridX, config->gridY, config->gridZ}, {config->blockX, config->blockY, config->blockZ},
                config->shared, config->stream, parameters, extra, chained);
}

//===----------------------------------------------------------------------===//
// Streams and events
//===----------------------------------------------------------------------===//

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
  Call call;
  if (!call)
    return call.state;
  if (!stream || flags > 1)
    return CUDA_ERROR_INVALID_VALUE;
  *stream = new CUstream_st;
  (*stream)->blocking = !(flags & 1);
  call->streams.insert(*stream);
  return call->sticky;
}
EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (reinterpret_cast<uintptr_t>(stream) <= 2 || !call->known(stream))
    return CUDA_ERROR_INVALID_HANDLE;
  CUresult result = call->finish(stream);
  for (CUevent event : call->events)
    if (event->stream == stream)
      event->stream = nullptr;
  call->streams.erase(stream);
  delete stream;
  return result;
}
EXPORT CUresult cuStreamSynchronize(CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->known(stream))
    return CUDA_ERROR_INVALID_HANDLE;
  stream = call->streamOf(stream);
  if (stream->capture) {
    stream->capture->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  if (CUresult result = call->unsafe())
    return result;
  return stream == &call->defaultStream ? call->finishAll(true) : call->finish(stream);
}
EXPORT CUresult cuStreamQuery(CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->known(stream))
    return CUDA_ERROR_INVALID_HANDLE;
  stream = call->streamOf(stream);
  if (stream->work.empty())
    return call->sticky;
  call->finish(stream, stream->done + 1); // so that polling comes to an end
  return stream->work.empty() ? call->sticky : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned) {
  Call call;
  if (!call)
    return call.state;
  if (!event)
    return CUDA_ERROR_INVALID_VALUE;
  *event = new CUevent_st;
  call->events.insert(*event);
  return call->sticky;
}
EXPORT CUresult cuEventDestroy_v2(CUevent event) {
  Call call;
  if (!call)
    return call.state;
  if (!call->events.erase(event))
    return CUDA_ERROR_INVALID_HANDLE;
  delete event;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->events.count(event) || !call->known(stream))
    return CUDA_ERROR_INVALID_HANDLE;
  stream = call->streamOf(stream);
  if (stream->capture) {
    event->capture = stream->capture;
    return stream->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
  }
  event->capture = nullptr;
  CUresult result = call->submit(stream, [&d = call.d, event] {
    if (d.events.count(event)) {
      event->time = std::chrono::steady_clock::now();
      event->timed = true;
    }
    return CUDA_SUCCESS;
  });
  event->stream = stream;
  event->position = stream->done + stream->work.size();
  event->recorded = true;
  event->timed = false;
  return result;
}
EXPORT CUresult cuEventSynchronize(CUevent event) {
  Call call;
  if (!call)
    return call.state;
  if (!call->events.count(event))
    return CUDA_ERROR_INVALID_HANDLE;
  if (event->capture)
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return event->recorded && event->stream ? call->finish(event->stream, event->position) : call->sticky;
}
EXPORT CUresult cuEventQuery(CUevent event) {
  Call call;
  if (!call)
    return call.state;
  if (!call->events.count(event))
    return CUDA_ERROR_INVALID_HANDLE;
  if (event->capture)
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (!event->recorded || !event->stream || event->stream->done >= event->position)
    return call->sticky;
  call->finish(event->stream, event->stream->done + 1);
  return CUDA_ERROR_NOT_READY;
}
EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  Call call;
  if (!call)
    return call.state;
  if (!milliseconds)
    return CUDA_ERROR_INVALID_VALUE;
  if (!call->events.count(start) || !call->events.count(end) || !start->recorded || !end->recorded)
    return CUDA_ERROR_INVALID_HANDLE;
  if (!start->timed || !end->timed)
    return CUDA_ERROR_NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return call->sticky;
}
EXPORT CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
  return cuEventElapsedTime(milliseconds, start, end);
}
EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  Call call;
  if (!call)
    return call.state;
  if (!call->events.count(event) || !call->known(stream))
    return CUDA_ERROR_INVALID_HANDLE;
  stream = call->streamOf(stream);
  if (event->capture) { // the stream becomes part of the capture
    if (stream->capture && stream->capture != event->capture)
      return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream == &call->defaultStream)
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capture = event->capture;
    return CUDA_SUCCESS;
  }
  if (!event->recorded || !event->stream)
    return call->sticky;
  return call->submit(stream,
                      [&d = call.d, from = event->stream, position = event->position] { return d.finish(from, position); });
}

//===----------------------------------------------------------------------===//
// Graphs
//===----------------------------------------------------------------------===//

EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
  Call call;
  if (!call)
    return call.state;
  if (!call->known(stream))
    return CUDA_ERROR_INVALID_HANDLE;
  if (mode < 0 || mode > 2)
    return CUDA_ERROR_INVALID_VALUE;
  stream = call->streamOf(stream);
  if (stream == &call->defaultStream)
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture)
    return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = std::make_shared<Capture>();
  stream->capture->mode = mode;
  stream->capture->origin = stream;
  call->captures.insert(stream->capture);
  return call->sticky;
}
EXPORT CUresult cuStreamIsCapturing(CUstream stream, int *status) {
  Call call;
  if (!call)
    return call.state;
  if (!call->known(stream) || !status)
    return CUDA_ERROR_INVALID_VALUE;
  stream = call->streamOf(stream);
  *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  Call call;
  if (!call)
    return call.state;
  if (!graph)
    return CUDA_ERROR_INVALID_VALUE;
  *graph = nullptr;
  if (!call->known(stream))
    return CUDA_ERROR_INVALID_HANDLE;
  stream = call->streamOf(stream);
  if (!stream->capture)
    return CUDA_ERROR_ILLEGAL_STATE;
  if (stream->capture->origin != stream)
    return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  std::shared_ptr<Capture> capture = stream->capture;
  for (CUstream other : call->streams)
    if (other->capture == capture)
      other->capture = nullptr;
  for (CUevent event : call->events)
    if (event->capture == capture)
      event->capture = nullptr;
  call->captures.erase(capture);
  if (capture->invalid)
    return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *graph = new CUgraph_st{std::move(capture->work)};
  call->graphs.insert(*graph);
  return call->sticky;
}
EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long) {
  Call call;
  if (!call)
    return call.state;
  if (!executable || !call->graphs.count(graph))
    return CUDA_ERROR_INVALID_VALUE;
  *executable = new CUgraphExec_st{graph->work};
  call->executables.insert(*executable);
  return call->sticky;
}
EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *executable, CUgraph graph, void **, char *, size_t) {
  return cuGraphInstantiateWithFlags(executable, graph, 0);
}
EXPORT CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  Call call;
  if (!call)
    return call.state;
  if (!call->executables.count(executable))
    return CUDA_ERROR_INVALID_VALUE;
  return call->submit(stream, [work = executable->work]() -> CUresult {
    for (const Work &piece : work)
      if (CUresult result = piece())
        return result;
    return CUDA_SUCCESS;
  });
}
EXPORT CUresult cuGraphExecDestroy(CUgraphExec executable) {
  Call call;
  if (!call)
    return call.state;
  if (!call->executables.erase(executable))
    return CUDA_ERROR_INVALID_VALUE;
  delete executable;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphDestroy(CUgraph graph) {
  Call call;
  if (!call)
    return call.state;
  if (!call->graphs.erase(graph))
    return CUDA_ERROR_INVALID_VALUE;
  delete graph;
  return CUDA_SUCCESS;
}

//===----------------------------------------------------------------------===//
// For tests
//===----------------------------------------------------------------------===//

/// Names the allocation that `base` lies in, for messages and counts.
EXPORT void aligned_emulator_name(CUdeviceptr base, const char *name) {
  Driver &d = driver();
  std::lock_guard<std::recursive_mutex> lock(d.mutex);
  d.machine.setName(base, name ? name : "");
}
/// What the last launch that went wrong had to say; empty if none has since the last call. Valid until the next call.
EXPORT const char *aligned_emulator_error() {
  Driver &d = driver();
  std::lock_guard<std::recursive_mutex> lock(d.mutex);
  static std::string text;
  text = std::move(d.lastError);
  d.lastError.clear();
  return text.c_str();
}
/// Forgets a fault that sticks, and what is still queued.
EXPORT void aligned_emulator_reset() {
  Driver &d = driver();
  std::lock_guard<std::recursive_mutex> lock(d.mutex);
  d.sticky = CUDA_SUCCESS;
  for (CUstream stream : d.streams) {
    stream->done += stream->work.size();
    stream->work.clear();
  }
}
