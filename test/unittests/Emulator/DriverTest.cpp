// The stand-in for the CUDA driver, opened as a program would open the real one.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

using Result = int;
using Address = unsigned long long;
using Handle = struct Opaque *;

/// A function of the library by its name.
template <typename F> struct Entry;
template <typename... A> struct Entry<Result(A...)> {
  explicit Entry(const char *name) {
    static void *library = dlopen(ALIGNED_EMULATOR_DRIVER, RTLD_NOW | RTLD_LOCAL);
    EXPECT_TRUE(library) << dlerror();
    function = reinterpret_cast<Result (*)(A...)>(dlsym(library, name));
    EXPECT_TRUE(function) << name;
  }
  Result operator()(A... arguments) const { return function(arguments...); }
  Result (*function)(A...);
};
#define ENTRY(name, ...)                                                                                                         \
  const Entry<Result(__VA_ARGS__)> name { #name }

/// CUlaunchConfig and CUlaunchAttribute, by the offsets of their members in cuda.h.
struct Attribute {
  int id, padding, value[16];
};
struct Config {
  unsigned grid[3], block[3], shared;
  Handle stream;
  const Attribute *attributes;
  unsigned count;
};
static_assert(sizeof(Attribute) == 72 && offsetof(Attribute, value) == 8 && offsetof(Config, stream) == 32 && sizeof(Config) == 56);

struct Api {
  ENTRY(cuInit, unsigned);
  ENTRY(cuDriverGetVersion, int *);
  ENTRY(cuGetErrorString, int, const char **);
  ENTRY(cuGetErrorName, int, const char **);
  ENTRY(cuDeviceGetCount, int *);
  ENTRY(cuDeviceGet, int *, int);
  ENTRY(cuDeviceGetName, char *, int, int);
  ENTRY(cuDeviceGetAttribute, int *, int, int);
  ENTRY(cuDeviceTotalMem_v2, size_t *, int);
  ENTRY(cuDevicePrimaryCtxRetain, Handle *, int);
  ENTRY(cuDevicePrimaryCtxRelease_v2, int);
  ENTRY(cuCtxSetCurrent, Handle);
  ENTRY(cuCtxGetCurrent, Handle *);
  ENTRY(cuCtxPushCurrent_v2, Handle);
  ENTRY(cuCtxPopCurrent_v2, Handle *);
  ENTRY(cuMemAlloc_v2, Address *, size_t);
  ENTRY(cuMemFree_v2, Address);
  ENTRY(cuMemHostAlloc, void **, size_t, unsigned);
  ENTRY(cuMemFreeHost, void *);
  ENTRY(cuMemGetInfo_v2, size_t *, size_t *);
  ENTRY(cuMemcpyHtoD_v2, Address, const void *, size_t);
  ENTRY(cuMemcpyDtoH_v2, void *, Address, size_t);
  ENTRY(cuMemcpyDtoD_v2, Address, Address, size_t);
  ENTRY(cuMemcpyHtoDAsync_v2, Address, const void *, size_t, Handle);
  ENTRY(cuMemcpyDtoHAsync_v2, void *, Address, size_t, Handle);
  ENTRY(cuMemcpyDtoDAsync_v2, Address, Address, size_t, Handle);
  ENTRY(cuMemsetD8_v2, Address, unsigned char, size_t);
  ENTRY(cuMemsetD32_v2, Address, unsigned, size_t);
  ENTRY(cuMemsetD8Async, Address, unsigned char, size_t, Handle);
  ENTRY(cuModuleLoadData, Handle *, const void *);
  ENTRY(cuModuleLoadDataEx, Handle *, const void *, unsigned, int *, void **);
  ENTRY(cuModuleUnload, Handle);
  ENTRY(cuModuleGetFunction, Handle *, Handle, const char *);
  ENTRY(cuFuncGetAttribute, int *, int, Handle);
  ENTRY(cuFuncSetAttribute, Handle, int, int);
  ENTRY(cuLaunchKernel, Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **);
  ENTRY(cuLaunchKernelEx, const Config *, Handle, void **, void **);
  ENTRY(cuStreamCreate, Handle *, unsigned);
  ENTRY(cuStreamDestroy_v2, Handle);
  ENTRY(cuStreamSynchronize, Handle);
  ENTRY(cuStreamWaitEvent, Handle, Handle, unsigned);
  ENTRY(cuStreamBeginCapture_v2, Handle, int);
  ENTRY(cuStreamEndCapture, Handle, Handle *);
  ENTRY(cuEventCreate, Handle *, unsigned);
  ENTRY(cuEventRecord, Handle, Handle);
  ENTRY(cuEventQuery, Handle);
  ENTRY(cuEventSynchronize, Handle);
  ENTRY(cuEventElapsedTime, float *, Handle, Handle);
  ENTRY(cuEventDestroy_v2, Handle);
  ENTRY(cuGraphInstantiateWithFlags, Handle *, Handle, unsigned long long);
  ENTRY(cuGraphInstantiate_v2, Handle *, Handle, Handle *, char *, size_t);
  ENTRY(cuGraphLaunch, Handle, Handle);
  ENTRY(cuGraphExecDestroy, Handle);
  ENTRY(cuGraphDestroy, Handle);
  const Entry<Result()> cuCtxSynchronize{"cuCtxSynchronize"};
};
const Api &api() {
  static const Api instance;
  return instance;
}

/// x[i] = x[i] * factor + y, and a second kernel that writes where it is told, and one with a barrier that matters.
const char *const text =
    ".version 7.8\n.target sm_80\n.address_size 64\n"
    ".visible .entry scale(.param .u64 p, .param .u32 factor, .param .u32 n)\n{\n.reg .b32 %r<6>; .reg .b64 %w<3>; .reg .pred "
    "%q;\n"
    "ld.param.u64 %w1, [p];\nld.param.u32 %r1, [factor];\nld.param.u32 %r2, [n];\nmov.u32 %r3, %tid.x;\nmov.u32 %r4, "
    "%ctaid.x;\nmad.lo.u32 %r3, %r4, 32, %r3;\nsetp.ge.u32 %q, %r3, %r2;\n@%q ret;\n"
    "mad.wide.u32 %w1, %r3, 4, %w1;\nld.global.u32 %r5, [%w1];\nmad.lo.u32 %r5, %r5, %r1, 1;\nst.global.u32 [%w1], "
    "%r5;\nret;\n}\n"
    ".visible .entry poke(.param .u64 p)\n.maxntid 64\n{\n.reg .b64 %w;\nld.param.u64 %w, [p];\nst.global.u32 [%w], 1;\nret;\n}\n"
    ".extern .shared .align 4 .b8 dynamic[];\n"
    ".visible .entry swap(.param .u64 p)\n{\n.reg .b32 %r<6>; .reg .b64 %w<3>;\nld.param.u64 %w1, [p];\nmov.u32 %r1, "
    "%tid.x;\nmad.wide.u32 %w1, %r1, 4, %w1;\nmov.u32 %r2, dynamic;\n"
    "mad.lo.u32 %r3, %r1, 4, %r2;\nst.shared.u32 [%r3], %r1;\nbar.sync 0;\nxor.b32 %r4, %r1, 32;\nmad.lo.u32 %r3, %r4, 4, "
    "%r2;\nld.shared.u32 %r5, [%r3];\nst.global.u32 [%w1], %r5;\nret;\n}\n";

class Driver : public testing::Test {
protected:
  void SetUp() override {
    ASSERT_EQ(cu.cuInit(0), 0);
    ASSERT_EQ(cu.cuDevicePrimaryCtxRetain(&context, 0), 0);
    ASSERT_EQ(cu.cuCtxSetCurrent(context), 0);
    ASSERT_EQ(cu.cuModuleLoadData(&module, text), 0);
    ASSERT_EQ(cu.cuModuleGetFunction(&scale, module, "scale"), 0);
    ASSERT_EQ(cu.cuModuleGetFunction(&poke, module, "poke"), 0);
    ASSERT_EQ(cu.cuModuleGetFunction(&swap, module, "swap"), 0);
    ASSERT_EQ(cu.cuMemAlloc_v2(&memory, 64 * 4), 0);
  }
  void TearDown() override { EXPECT_EQ(cu.cuDevicePrimaryCtxRelease_v2(0), 0); } // also of what a fault has left

  Result launchScale(uint32_t factor, Handle stream = nullptr, uint32_t n = 64) {
    void *arguments[] = {&memory, &factor, &n};
    return cu.cuLaunchKernel(scale, 2, 1, 1, 32, 1, 1, 0, stream, arguments, nullptr);
  }
  std::vector<uint32_t> contents() {
    std::vector<uint32_t> values(64);
    EXPECT_EQ(cu.cuMemcpyDtoH_v2(values.data(), memory, 256), 0);
    return values;
  }

  const Api &cu = api();
  Handle context = nullptr, module = nullptr, scale = nullptr, poke = nullptr, swap = nullptr;
  Address memory = 0;
};

TEST_F(Driver, Device) {
  int value = 0, version = 0;
  EXPECT_EQ(cu.cuDriverGetVersion(&version), 0);
  EXPECT_GE(version, 12000);
  EXPECT_EQ(cu.cuDeviceGetCount(&value), 0);
  EXPECT_EQ(value, 1);
  EXPECT_EQ(cu.cuDeviceGet(&value, 0), 0);
  EXPECT_EQ(cu.cuDeviceGet(&value, 1), 101);
  char name[64];
  EXPECT_EQ(cu.cuDeviceGetName(name, sizeof name, 0), 0);
  EXPECT_STREQ(name, "PTX emulator 9.0");
  EXPECT_EQ(cu.cuDeviceGetAttribute(&value, 75, 0), 0);
  EXPECT_EQ(value, 9);
  EXPECT_EQ(cu.cuDeviceGetAttribute(&value, 16, 0), 0);
  EXPECT_EQ(value, 4);
  EXPECT_EQ(cu.cuDeviceGetAttribute(&value, 97, 0), 0);
  EXPECT_EQ(value, 227 << 10);
  size_t total = 0, free = 0, all = 0;
  EXPECT_EQ(cu.cuDeviceTotalMem_v2(&total, 0), 0);
  EXPECT_EQ(cu.cuMemGetInfo_v2(&free, &all), 0);
  EXPECT_EQ(all, total);
  EXPECT_LT(free, total);
  const char *message = nullptr;
  EXPECT_EQ(cu.cuGetErrorString(700, &message), 0);
  EXPECT_STREQ(message, "an illegal memory access was encountered");
  EXPECT_EQ(cu.cuGetErrorName(2, &message), 0);
  EXPECT_STREQ(message, "CUDA_ERROR_OUT_OF_MEMORY");
  EXPECT_NE(cu.cuGetErrorString(12345, &message), 0);
}

TEST_F(Driver, Contexts) {
  Handle current = nullptr;
  EXPECT_EQ(cu.cuCtxGetCurrent(&current), 0);
  EXPECT_EQ(current, context);
  EXPECT_EQ(cu.cuCtxSetCurrent(nullptr), 0);
  Address other;
  EXPECT_EQ(cu.cuMemAlloc_v2(&other, 4), 201);
  EXPECT_EQ(cu.cuCtxPushCurrent_v2(context), 0);
  EXPECT_EQ(cu.cuMemAlloc_v2(&other, 4), 0);
  EXPECT_EQ(cu.cuCtxPopCurrent_v2(&current), 0);
  EXPECT_EQ(current, context);
  EXPECT_EQ(cu.cuMemAlloc_v2(&other, 4), 201);
  EXPECT_EQ(cu.cuCtxSetCurrent(context), 0);
}

TEST_F(Driver, Memory) {
  std::vector<uint32_t> values(64);
  for (uint32_t i = 0; i < 64; ++i)
    values[i] = i;
  EXPECT_EQ(cu.cuMemcpyHtoD_v2(memory, values.data(), 256), 0);
  EXPECT_EQ(contents(), values);
  EXPECT_EQ(cu.cuMemcpyDtoD_v2(memory + 128, memory, 128), 0);
  EXPECT_EQ(contents()[40], 8u);
  EXPECT_EQ(cu.cuMemsetD32_v2(memory, 77, 2), 0);
  EXPECT_EQ(cu.cuMemsetD8_v2(memory + 8, 0x11, 3), 0);
  EXPECT_EQ(contents()[1], 77u);
  EXPECT_EQ(contents()[2], 0x111111u);
  EXPECT_EQ(cu.cuMemcpyHtoD_v2(memory + 4, values.data(), 256), 1) << "beyond the end";
  EXPECT_EQ(cu.cuMemcpyDtoH_v2(values.data(), reinterpret_cast<uint64_t>(values.data()), 4), 1) << "a host pointer";
  EXPECT_EQ(cu.cuMemFree_v2(memory + 4), 1);
  EXPECT_EQ(cu.cuMemFree_v2(memory), 0);
  EXPECT_EQ(cu.cuMemFree_v2(memory), 1);
  Address large;
  EXPECT_EQ(cu.cuMemAlloc_v2(&large, size_t(1) << 50), 2);
  EXPECT_EQ(cu.cuMemAlloc_v2(&large, 0), 1);
}

TEST_F(Driver, Kernels) {
  EXPECT_EQ(cu.cuMemsetD32_v2(memory, 3, 64), 0);
  EXPECT_EQ(launchScale(5, nullptr, 40), 0);
  EXPECT_EQ(contents()[39], 16u);
  EXPECT_EQ(contents()[40], 3u);
  // Parameters in one buffer.
  struct {
    Address p;
    uint32_t factor, n;
  } packed{memory, 2, 64};
  size_t size = sizeof packed;
  void *extra[] = {reinterpret_cast<void *>(1), &packed, reinterpret_cast<void *>(2), &size, nullptr};
  EXPECT_EQ(cu.cuLaunchKernel(scale, 2, 1, 1, 32, 1, 1, 0, nullptr, nullptr, extra), 0);
  EXPECT_EQ(contents()[39], 33u);
  Handle none;
  EXPECT_EQ(cu.cuModuleGetFunction(&none, module, "nothing"), 500);
  void *arguments[] = {&memory};
  EXPECT_EQ(cu.cuLaunchKernel(poke, 0, 1, 1, 32, 1, 1, 0, nullptr, arguments, nullptr), 1);
  EXPECT_EQ(cu.cuLaunchKernel(poke, 1, 1, 1, 1025, 1, 1, 0, nullptr, arguments, nullptr), 1);
  EXPECT_EQ(cu.cuLaunchKernel(poke, 1, 1, 1, 96, 1, 1, 0, nullptr, arguments, nullptr), 701);
  int value = 0;
  EXPECT_EQ(cu.cuFuncGetAttribute(&value, 0, poke), 0);
  EXPECT_EQ(value, 64);
}

TEST_F(Driver, ChainedLaunches) {
  constexpr const char *waits = ".version 7.8\n.target sm_90\n.address_size 64\n"
                                ".visible .entry add(.param .u64 p)\n{\n.reg .b64 %w;\n.reg .b32 %r;\nld.param.u64 %w, [p];\n"
                                "griddepcontrol.wait;\ngriddepcontrol.launch_dependents;\n"
                                "ld.global.u32 %r, [%w];\nadd.u32 %r, %r, 5;\nst.global.u32 [%w], %r;\nret;\n}\n";
  Handle own, add;
  ASSERT_EQ(cu.cuModuleLoadData(&own, waits), 0);
  ASSERT_EQ(cu.cuModuleGetFunction(&add, own, "add"), 0);
  Attribute serialization = {6, 0, {1}};
  Config config = {{1, 1, 1}, {1, 1, 1}, 0, nullptr, &serialization, 1};
  void *arguments[] = {&memory};
  EXPECT_EQ(cu.cuMemsetD32_v2(memory, 3, 64), 0);
  EXPECT_EQ(cu.cuLaunchKernelEx(&config, add, arguments, nullptr), 0);
  EXPECT_EQ(cu.cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 0, nullptr, arguments, nullptr), 0) << "to wait is allowed in any case";
  EXPECT_EQ(contents()[0], 13u);
  Handle stream, graph, executable;
  ASSERT_EQ(cu.cuStreamCreate(&stream, 1), 0);
  config.stream = stream;
  EXPECT_EQ(cu.cuStreamBeginCapture_v2(stream, 0), 0);
  EXPECT_EQ(cu.cuLaunchKernelEx(&config, add, arguments, nullptr), 0);
  EXPECT_EQ(cu.cuStreamEndCapture(stream, &graph), 0);
  EXPECT_EQ(contents()[0], 13u);
  EXPECT_EQ(cu.cuGraphInstantiateWithFlags(&executable, graph, 0), 0);
  EXPECT_EQ(cu.cuGraphLaunch(executable, stream), 0);
  EXPECT_EQ(cu.cuStreamSynchronize(stream), 0);
  EXPECT_EQ(contents()[0], 18u);

  Attribute cooperative = {2, 0, {1}};
  Config other = config;
  other.attributes = &cooperative;
  EXPECT_EQ(cu.cuLaunchKernelEx(&other, add, arguments, nullptr), 801);
  other.attributes = nullptr;
  EXPECT_EQ(cu.cuLaunchKernelEx(&other, add, arguments, nullptr), 1);
  other.count = 0;
  EXPECT_EQ(cu.cuLaunchKernelEx(&other, poke, arguments, nullptr), 0) << "not chained";
  EXPECT_EQ(cu.cuStreamSynchronize(stream), 0);
  EXPECT_EQ(contents()[0], 1u);
  testing::internal::CaptureStderr();
  EXPECT_EQ(cu.cuLaunchKernelEx(&config, poke, arguments, nullptr), 0);
  EXPECT_EQ(cu.cuStreamSynchronize(stream), 719);
  std::string message = testing::internal::GetCapturedStderr();
  EXPECT_NE(message.find("race: write to global memory before griddepcontrol.wait"), std::string::npos) << message;
}

TEST_F(Driver, DynamicSharedMemory) {
  void *arguments[] = {&memory};
  EXPECT_EQ(cu.cuLaunchKernel(swap, 1, 1, 1, 64, 1, 1, 256, nullptr, arguments, nullptr), 0);
  EXPECT_EQ(contents()[5], 37u);
  EXPECT_EQ(cu.cuLaunchKernel(swap, 1, 1, 1, 64, 1, 1, 100 << 10, nullptr, arguments, nullptr), 1);
  EXPECT_EQ(cu.cuFuncSetAttribute(swap, 8, 100 << 10), 0);
  EXPECT_EQ(cu.cuLaunchKernel(swap, 1, 1, 1, 64, 1, 1, 100 << 10, nullptr, arguments, nullptr), 0);
  EXPECT_EQ(cu.cuFuncSetAttribute(swap, 8, 300 << 10), 1);
  EXPECT_EQ(cu.cuLaunchKernel(swap, 1, 1, 1, 64, 1, 1, 128, nullptr, arguments, nullptr), 0);
  EXPECT_EQ(cu.cuCtxSynchronize(), 700) << "too little for its threads";
}

TEST_F(Driver, FaultsStick) {
  uint32_t host = 0;
  auto address = reinterpret_cast<Address>(&host);
  void *arguments[] = {&address};
  testing::internal::CaptureStderr();
  EXPECT_EQ(cu.cuLaunchKernel(poke, 1, 1, 1, 1, 1, 1, 0, nullptr, arguments, nullptr), 0);
  EXPECT_EQ(cu.cuCtxSynchronize(), 700);
  std::string message = testing::internal::GetCapturedStderr();
  EXPECT_NE(message.find("poke: line"), std::string::npos) << message;
  EXPECT_NE(message.find("out of bounds: write to 4 bytes of global memory at 0x"), std::string::npos) << message;
  EXPECT_EQ(host, 0u);
  EXPECT_EQ(cu.cuCtxSynchronize(), 700);
  EXPECT_EQ(launchScale(1), 700);
  Address other;
  EXPECT_EQ(cu.cuMemAlloc_v2(&other, 4), 700);
  std::vector<uint32_t> values(64);
  EXPECT_EQ(cu.cuMemcpyDtoH_v2(values.data(), memory, 256), 700);
}

TEST_F(Driver, Streams) {
  Handle stream, second, event;
  ASSERT_EQ(cu.cuStreamCreate(&stream, 1), 0);
  ASSERT_EQ(cu.cuStreamCreate(&second, 1), 0);
  ASSERT_EQ(cu.cuEventCreate(&event, 0), 0);
  void *pinned = nullptr;
  ASSERT_EQ(cu.cuMemHostAlloc(&pinned, 256, 0), 0);
  auto *host = static_cast<uint32_t *>(pinned);
  host[0] = 1234;
  // Nothing happens before somebody waits.
  EXPECT_EQ(cu.cuMemsetD8Async(memory, 0, 256, stream), 0);
  EXPECT_EQ(launchScale(5, stream), 0);
  EXPECT_EQ(cu.cuMemcpyDtoHAsync_v2(host, memory, 256, stream), 0);
  EXPECT_EQ(cu.cuEventRecord(event, stream), 0);
  EXPECT_EQ(host[0], 1234u);
  EXPECT_EQ(launchScale(5, stream), 0);
  EXPECT_EQ(cu.cuEventSynchronize(event), 0);
  EXPECT_EQ(host[0], 1u);
  // Another stream waits for the event, and so for what was before it.
  EXPECT_EQ(launchScale(2, stream), 0); // 6, then 13
  EXPECT_EQ(cu.cuEventRecord(event, stream), 0);
  EXPECT_EQ(cu.cuEventQuery(event), 600);
  EXPECT_EQ(cu.cuStreamWaitEvent(second, event, 0), 0);
  EXPECT_EQ(cu.cuMemcpyDtoHAsync_v2(host, memory, 256, second), 0);
  EXPECT_EQ(cu.cuStreamSynchronize(second), 0);
  EXPECT_EQ(host[63], 13u);
  // Ordinary memory is copied at once.
  uint32_t value = 0;
  EXPECT_EQ(launchScale(2, stream), 0);
  EXPECT_EQ(cu.cuMemcpyDtoHAsync_v2(&value, memory, 4, stream), 0);
  EXPECT_EQ(value, 27u);
  float milliseconds = -1;
  EXPECT_EQ(cu.cuEventElapsedTime(&milliseconds, event, event), 0);
  EXPECT_EQ(milliseconds, 0);
  EXPECT_EQ(cu.cuEventDestroy_v2(event), 0);
  EXPECT_EQ(cu.cuMemFreeHost(pinned), 0);
  EXPECT_EQ(cu.cuStreamDestroy_v2(stream), 0);
  EXPECT_EQ(cu.cuStreamDestroy_v2(second), 0);
  EXPECT_EQ(cu.cuStreamSynchronize(stream), 400);
}

TEST_F(Driver, Graphs) {
  Handle stream, other, fork, join, graph, executable, again;
  ASSERT_EQ(cu.cuStreamCreate(&stream, 1), 0);
  ASSERT_EQ(cu.cuStreamCreate(&other, 1), 0);
  ASSERT_EQ(cu.cuEventCreate(&fork, 2), 0);
  ASSERT_EQ(cu.cuEventCreate(&join, 2), 0);
  EXPECT_EQ(cu.cuMemsetD32_v2(memory, 1, 64), 0);
  EXPECT_EQ(cu.cuStreamBeginCapture_v2(nullptr, 0), 900) << "the default stream cannot be captured";
  EXPECT_EQ(cu.cuStreamBeginCapture_v2(stream, 0), 0);
  EXPECT_EQ(launchScale(2, stream), 0);
  // A second stream takes part.
  EXPECT_EQ(cu.cuEventRecord(fork, stream), 0);
  EXPECT_EQ(cu.cuStreamWaitEvent(other, fork, 0), 0);
  EXPECT_EQ(cu.cuMemcpyDtoDAsync_v2(memory + 128, memory, 4, other), 0);
  EXPECT_EQ(cu.cuEventRecord(join, other), 0);
  EXPECT_EQ(cu.cuStreamWaitEvent(stream, join, 0), 0);
  EXPECT_EQ(cu.cuStreamEndCapture(stream, &graph), 0);
  EXPECT_EQ(contents(), std::vector<uint32_t>(64, 1)) << "nothing runs while it is captured";
  EXPECT_EQ(cu.cuGraphInstantiateWithFlags(&executable, graph, 0), 0);
  EXPECT_EQ(cu.cuGraphInstantiate_v2(&again, graph, nullptr, nullptr, 0), 0);
  EXPECT_EQ(cu.cuGraphDestroy(graph), 0);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(cu.cuGraphLaunch(i == 1 ? again : executable, stream), 0);
  EXPECT_EQ(cu.cuStreamSynchronize(stream), 0);
  EXPECT_EQ(contents(), std::vector<uint32_t>(64, 15));
  EXPECT_EQ(cu.cuGraphExecDestroy(executable), 0);
  EXPECT_EQ(cu.cuGraphExecDestroy(again), 0);
  EXPECT_EQ(cu.cuGraphLaunch(executable, stream), 1);

  // What is forbidden in between ends the capture.
  EXPECT_EQ(cu.cuStreamBeginCapture_v2(stream, 0), 0);
  Address forbidden;
  EXPECT_EQ(cu.cuMemAlloc_v2(&forbidden, 4), 900);
  EXPECT_EQ(cu.cuStreamEndCapture(stream, &graph), 901);
  EXPECT_EQ(graph, nullptr);
  EXPECT_EQ(cu.cuStreamBeginCapture_v2(stream, 0), 0);
  EXPECT_EQ(cu.cuStreamSynchronize(stream), 900);
  EXPECT_EQ(launchScale(2, stream), 901);
  EXPECT_EQ(cu.cuStreamEndCapture(stream, &graph), 901);
  EXPECT_EQ(cu.cuStreamBeginCapture_v2(stream, 2), 0);
  EXPECT_EQ(cu.cuMemAlloc_v2(&forbidden, 4), 0) << "a relaxed capture does not mind";
  EXPECT_EQ(cu.cuStreamEndCapture(stream, &graph), 0);
  EXPECT_EQ(cu.cuGraphDestroy(graph), 0);
  EXPECT_EQ(cu.cuStreamEndCapture(stream, &graph), 401);
}

TEST_F(Driver, BadPtx) {
  Handle bad = nullptr;
  char log[300] = "";
  int options[] = {5, 6};
  void *values[] = {log, reinterpret_cast<void *>(sizeof log)};
  testing::internal::CaptureStderr();
  EXPECT_EQ(cu.cuModuleLoadDataEx(&bad, ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k() { strange.u32 x; }\n",
                                  2, options, values),
            218);
  EXPECT_NE(std::strstr(log, "line 4: 'strange.u32 x;': unknown opcode 'strange'"), nullptr) << log;
  EXPECT_EQ(cu.cuModuleLoadDataEx(&bad, ".version 7.8\n.target sm_120\n.address_size 64\n", 2, options, values), 209);
  EXPECT_NE(std::strstr(log, "target sm_120 does not run on a device of capability 9.0"), nullptr) << log;
  EXPECT_EQ(cu.cuModuleLoadData(&bad, ".version 11.0\n.target sm_90\n.address_size 64\n"), 222);
  EXPECT_EQ(cu.cuModuleLoadData(&bad, "\177ELF"), 209);
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(cu.cuModuleUnload(module), 0);
  EXPECT_EQ(cu.cuModuleUnload(module), 400);
}

TEST_F(Driver, Names) {
  void *library = dlopen(ALIGNED_EMULATOR_DRIVER, RTLD_NOW);
  auto name = reinterpret_cast<void (*)(Address, const char *)>(dlsym(library, "aligned_emulator_name"));
  auto error = reinterpret_cast<const char *(*)()>(dlsym(library, "aligned_emulator_error"));
  auto reset = reinterpret_cast<void (*)()>(dlsym(library, "aligned_emulator_reset"));
  ASSERT_TRUE(name && error && reset);
  name(memory, "numbers");
  Address behind = memory + 256;
  void *arguments[] = {&behind};
  testing::internal::CaptureStderr();
  EXPECT_EQ(cu.cuLaunchKernel(poke, 1, 1, 1, 1, 1, 1, 0, nullptr, arguments, nullptr), 0);
  EXPECT_EQ(cu.cuCtxSynchronize(), 700);
  testing::internal::GetCapturedStderr();
  EXPECT_NE(std::string(error()).find("behind the allocation 'numbers' of 256 bytes"), std::string::npos);
  EXPECT_STREQ(error(), "");
  reset();
  EXPECT_EQ(cu.cuCtxSynchronize(), 0);
  dlclose(library);
}

/// What depends on the environment, in a process of its own: this test again, which then only runs `swap`.
TEST_F(Driver, Environment) {
  auto run = [&] {
    void *arguments[] = {&memory};
    cu.cuLaunchKernel(swap, 1, 1, 1, 64, 1, 1, 256, nullptr, arguments, nullptr);
    return cu.cuCtxSynchronize();
  };
  if (std::getenv("ALIGNED_EMULATOR_COUNTS")) {
    int value = 0;
    cu.cuDeviceGetAttribute(&value, 16, 0);
    std::_Exit(run() == 719 && value == 7 ? 0 : 1);
  }
  EXPECT_EQ(run(), 0);
  char path[4096];
  std::string file = testing::TempDir() + "countsXXXXXX";
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  ASSERT_GT(length, 0);
  path[length] = '\0';
  int descriptor = mkstemp(&file[0]);
  ASSERT_GE(descriptor, 0);
  close(descriptor);
  std::string command = std::string("ALIGNED_EMULATOR_SMS=7 ALIGNED_EMULATOR_DELETE=0 ALIGNED_EMULATOR_COUNTS=") + file + " '" +
                        path + "' --gtest_filter=Driver.Environment > /dev/null 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << "without its barrier, the kernel has a race";
  std::ifstream counts(file);
  std::string line;
  ASSERT_TRUE(std::getline(counts, line));
  EXPECT_EQ(line.find("{\"kernel\": \"swap\", \"grid\": [1, 1, 1], \"block\": [64, 1, 1], \"warp_instructions\": "), 0u) << line;
  EXPECT_NE(line.find("\"allocations\": ["), std::string::npos);
  std::remove(file.c_str());
}

} // namespace
