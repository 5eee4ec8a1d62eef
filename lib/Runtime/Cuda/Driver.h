// The entry points of NVIDIA's driver, found at run time: neither its headers nor its library are needed to build, and machines
// without a driver can load what links this. Types and numbers are those of the driver API's documentation.
#ifndef ALIGNED_LIB_RUNTIME_CUDA_DRIVER_H
#define ALIGNED_LIB_RUNTIME_CUDA_DRIVER_H

#include <cstddef>
#include <cstdint>
#include <string>

namespace aligned::cuda {

using Result = int; ///< 0: success
using Device = int;
using Address = uint64_t; ///< of device memory
using ContextHandle = struct ContextRecord *;
using ModuleHandle = struct ModuleRecord *;
using Function = struct FunctionRecord *;
using Stream = struct StreamRecord *;
using Event = struct EventRecord *;
using Graph = struct GraphRecord *;
using GraphExec = struct GraphExecRecord *;

constexpr int kComputeMajor = 75, kComputeMinor = 76, kMultiprocessors = 16; // device attributes
constexpr int kJitErrorLog = 5, kJitErrorLogBytes = 6;                       // options of a module
constexpr unsigned kStreamNonBlocking = 1, kEventDefault = 0, kEventDisableTiming = 2;
constexpr int kCaptureThreadLocal = 1;
constexpr int kProgrammaticStreamSerialization = 6; // attribute of a launch
constexpr int kMaxDynamicSharedBytes = 8;           // of a function

struct LaunchAttribute {
  int id;
  alignas(8) int value; ///< the first of 64 bytes that hold values of all kinds
  char rest[60];
};
struct LaunchConfig {
  unsigned gridX, gridY, gridZ, blockX, blockY, blockZ, sharedBytes;
  Stream stream;
  LaunchAttribute *attributes;
  unsigned count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56);

// X(member, name in the library, parameters)
#define ALIGNED_CUDA_ENTRY_POINTS(X)                                                                                             \
  X(init, cuInit, (unsigned flags))                                                                                              \
  X(driverGetVersion, cuDriverGetVersion, (int *version))                                                                        \
  X(getErrorString, cuGetErrorString, (Result result, const char **text))                                                        \
  X(deviceGetCount, cuDeviceGetCount, (int *count))                                                                              \
  X(deviceGet, cuDeviceGet, (Device * device, int ordinal))                                                                      \
  X(deviceGetName, cuDeviceGetName, (char *name, int bytes, Device device))                                                      \
  X(deviceGetAttribute, cuDeviceGetAttribute, (int *value, int attribute, Device device))                                        \
  X(devicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (ContextHandle * context, Device device))                                  \
  X(ctxGetDevice, cuCtxGetDevice, (Device * device))                                                                             \
  X(ctxGetCurrent, cuCtxGetCurrent, (ContextHandle * context))                                                                   \
  X(ctxPushCurrent, cuCtxPushCurrent_v2, (ContextHandle context))                                                                \
  X(ctxPopCurrent, cuCtxPopCurrent_v2, (ContextHandle * context))                                                                \
  X(memAlloc, cuMemAlloc_v2, (Address * address, size_t bytes))                                                                  \
  X(memFree, cuMemFree_v2, (Address address))                                                                                    \
  X(memHostAlloc, cuMemHostAlloc, (void **memory, size_t bytes, unsigned flags))                                                 \
  X(memFreeHost, cuMemFreeHost, (void *memory))                                                                                  \
  X(memcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (Address to, const void *from, size_t bytes, Stream stream))                          \
  X(memcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void *to, Address from, size_t bytes, Stream stream))                                \
  X(memcpyDtoDAsync, cuMemcpyDtoDAsync_v2, (Address to, Address from, size_t bytes, Stream stream))                              \
  X(memsetD8Async, cuMemsetD8Async, (Address to, unsigned char value, size_t bytes, Stream stream))                              \
  X(moduleLoadDataEx, cuModuleLoadDataEx,                                                                                        \
    (ModuleHandle * module, const void *image, unsigned options, int *option, void **value))                                     \
  X(moduleUnload, cuModuleUnload, (ModuleHandle module))                                                                         \
  X(moduleGetFunction, cuModuleGetFunction, (Function * function, ModuleHandle module, const char *name))                        \
  X(funcSetAttribute, cuFuncSetAttribute, (Function function, int attribute, int value))                                         \
  X(launchKernel, cuLaunchKernel,                                                                                                \
    (Function function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX, unsigned blockY, unsigned blockZ,       \
     unsigned sharedBytes, Stream stream, void **arguments, void **extra))                                                       \
  X(streamCreate, cuStreamCreate, (Stream * stream, unsigned flags))                                                             \
  X(streamDestroy, cuStreamDestroy_v2, (Stream stream))                                                                          \
  X(streamSynchronize, cuStreamSynchronize, (Stream stream))                                                                     \
  X(streamWaitEvent, cuStreamWaitEvent, (Stream stream, Event event, unsigned flags))                                            \
  X(eventCreate, cuEventCreate, (Event * event, unsigned flags))                                                                 \
  X(eventDestroy, cuEventDestroy_v2, (Event event))                                                                              \
  X(eventRecord, cuEventRecord, (Event event, Stream stream))                                                                    \
  X(eventSynchronize, cuEventSynchronize, (Event event))                                                                         \
  X(eventElapsedTime, cuEventElapsedTime, (float *milliseconds, Event from, Event to))                                           \
  X(streamBeginCapture, cuStreamBeginCapture_v2, (Stream stream, int mode))                                                      \
  X(streamEndCapture, cuStreamEndCapture, (Stream stream, Graph * graph))                                                        \
  X(graphInstantiate, cuGraphInstantiateWithFlags, (GraphExec * exec, Graph graph, unsigned long long flags))                    \
  X(graphLaunch, cuGraphLaunch, (GraphExec exec, Stream stream))                                                                 \
  X(graphDestroy, cuGraphDestroy, (Graph graph))                                                                                 \
  X(graphExecDestroy, cuGraphExecDestroy, (GraphExec exec))

struct Driver {
#define ALIGNED_CUDA_MEMBER(member, name, parameters) Result(*member) parameters = nullptr;
  ALIGNED_CUDA_ENTRY_POINTS(ALIGNED_CUDA_MEMBER)
#undef ALIGNED_CUDA_MEMBER
  /// Null where the driver is older than CUDA 11.6.
  Result (*launchKernelEx)(const LaunchConfig *config, Function function, void **arguments, void **extra) = nullptr;
  std::string why; ///< it can't be used; empty when it can
  int devices = 0;

  /// What a result means, such as "out of memory".
  std::string textOf(Result result) const;
};

/// Looked for on first use, once. ALIGNED_LIBCUDA in the environment names another library than the system's.
const Driver &driver();

} // namespace aligned::cuda

#endif
