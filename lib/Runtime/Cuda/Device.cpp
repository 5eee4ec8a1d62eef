// See the header.
#include "Device.h"

#include "aligned/Runtime/Cuda.h"
#include "aligned/Runtime/Error.h"

#include <map>
#include <mutex>
#include <vector>

using namespace aligned::cuda;

int aligned::cuda::fail(const std::string &message) {
  aligned_set_last_error(message.c_str());
  return -1;
}

int aligned::cuda::fail(const char *what, Result result) {
  return fail(std::string("expected ") + what + ", got: " + driver().textOf(result));
}

//===----------------------------------------------------------------------===//
// Contexts and streams
//===----------------------------------------------------------------------===//

namespace {

/// The streams of a thread, destroyed with it; what is queued on them is still done.
struct Streams {
  std::map<const Context *, Stream> own;
  Stream chosen = nullptr;

  ~Streams() {
    for (auto [context, stream] : own) {
      Scope scope(*context);
      driver().streamDestroy(stream);
    }
  }
};
thread_local Streams streams;

bool open(Context &context) {
  const Driver &d = driver();
  if (Result result = d.devicePrimaryCtxRetain(&context.handle, context.device))
    return fail("a context on the CUDA device", result), false;
  char name[256] = "";
  d.deviceGetName(name, sizeof name, context.device);
  context.name = name;
  for (auto [attribute, value] : {std::pair(kComputeMajor, &context.major), std::pair(kComputeMinor, &context.minor),
                                  std::pair(kMultiprocessors, &context.multiprocessors)})
    if (Result result = d.deviceGetAttribute(value, attribute, context.device))
      return fail("attributes of the CUDA device", result), false;
  return true;
}

} // namespace

const Context *aligned::cuda::currentContext() {
  const Driver &d = driver();
  if (!d.why.empty())
    return fail(d.why), nullptr;
  ContextHandle current = nullptr;
  Device device = 0;
  if (d.ctxGetCurrent(&current) || !current || d.ctxGetDevice(&device))
    if (Result result = d.deviceGet(&device, 0))
      return fail("a first CUDA device", result), nullptr;
  static std::mutex mutex;
  static auto *contexts = new std::map<Device, Context>; // outlives whoever frees memory at exit
  std::lock_guard<std::mutex> lock(mutex);
  auto [found, isNew] = contexts->try_emplace(device);
  if (!isNew)
    return &found->second;
  found->second.device = device;
  if (open(found->second))
    return &found->second;
  contexts->erase(found);
  return nullptr;
}

bool aligned::cuda::ownStream(const Context &context, Stream &stream) {
  auto found = streams.own.find(&context);
  if (found != streams.own.end()) {
    stream = found->second;
    return true;
  }
  if (Result result = driver().streamCreate(&stream, kStreamNonBlocking))
    return fail("a CUDA stream", result), false;
  streams.own[&context] = stream;
  return true;
}

bool aligned::cuda::currentStream(const Context &context, Stream &stream) {
  stream = streams.chosen;
  return stream || ownStream(context, stream);
}

void aligned::cuda::setStream(Stream stream) { streams.chosen = stream; }

//===----------------------------------------------------------------------===//
// Memory and order
//===----------------------------------------------------------------------===//

bool Memory::allocate(const Context &context, int64_t bytes) {
  if (bytes < 0)
    return fail("expected device memory of some size, got sizes that overflow"), false;
  Address address = 0;
  if (bytes)
    if (Result result = driver().memAlloc(&address, bytes))
      return fail(("expected " + std::to_string(bytes) + " more bytes of device memory, got: " + driver().textOf(result))), false;
  reset();
  this->context = &context;
  at = address;
  size = bytes;
  return true;
}

void Memory::reset() {
  if (at) {
    Scope scope(*context);
    driver().memFree(at);
  }
  at = 0;
  size = 0;
}

bool HostWord::allocate(const Context &context) {
  void *memory = nullptr;
  if (Result result = driver().memHostAlloc(&memory, sizeof(int64_t), 0))
    return fail("memory that the device can write to", result), false;
  this->context = &context;
  word = static_cast<int64_t *>(memory);
  *word = 0;
  return true;
}

HostWord::~HostWord() {
  if (word) {
    Scope scope(*context);
    driver().memFreeHost(word);
  }
}

Order::~Order() {
  if (last) {
    Scope scope(*context);
    driver().eventDestroy(last);
  }
}

bool Order::enter(const Context &context, Stream stream) {
  if (!last) {
    this->context = &context;
    if (Result result = driver().eventCreate(&last, kEventDisableTiming))
      return fail("a CUDA event", result), false;
    return true;
  }
  if (Result result = driver().streamWaitEvent(stream, last, 0))
    return fail("a stream that waits for another", result), false;
  return true;
}

bool Order::leave(Stream stream) {
  if (Result result = driver().eventRecord(last, stream))
    return fail("an event on the CUDA stream", result), false;
  return true;
}

bool Order::wait() {
  if (!last)
    return true;
  Scope scope(*context);
  if (Result result = driver().eventSynchronize(last))
    return fail("the device to finish", result), false;
  return true;
}

bool aligned::cuda::copyToDevice(Address to, const void *from, int64_t bytes, Stream stream) {
  if (bytes)
    if (Result result = driver().memcpyHtoDAsync(to, from, bytes, stream))
      return fail("a copy to the device", result), false;
  return true;
}

bool aligned::cuda::copyToHost(void *to, Address from, int64_t bytes, Stream stream) {
  if (bytes)
    if (Result result = driver().memcpyDtoHAsync(to, from, bytes, stream))
      return fail("a copy from the device", result), false;
  return true;
}

bool aligned::cuda::copyOnDevice(Address to, Address from, int64_t bytes, Stream stream) {
  if (bytes)
    if (Result result = driver().memcpyDtoDAsync(to, from, bytes, stream))
      return fail("a copy on the device", result), false;
  return true;
}

bool aligned::cuda::clear(Address to, int64_t bytes, Stream stream) {
  if (bytes)
    if (Result result = driver().memsetD8Async(to, 0, bytes, stream))
      return fail("cleared device memory", result), false;
  return true;
}

bool aligned::cuda::wait(Stream stream) {
  if (Result result = driver().streamSynchronize(stream))
    return fail("the device to finish", result), false;
  return true;
}

//===----------------------------------------------------------------------===//
// C interface
//===----------------------------------------------------------------------===//

namespace {

/// Calls `body` with the current stream in the current context.
template <typename Body> int onStream(Body body) {
  return guarded(-1, [&] {
    const Context *context = currentContext();
    if (!context)
      return -1;
    Scope scope(*context);
    Stream stream;
    return currentStream(*context, stream) && body(*context, stream) ? 0 : -1;
  });
}

} // namespace

int aligned_cuda_available(void) {
  return guarded(0, [] { return currentContext() ? 1 : 0; });
}

const char *aligned_cuda_device_name(void) {
  return guarded(static_cast<const char *>(nullptr), []() -> const char * {
    const Context *context = currentContext();
    return context ? context->name.c_str() : nullptr;
  });
}

int aligned_cuda_compute_capability(void) {
  return guarded(-1, [] {
    const Context *context = currentContext();
    return context ? context->major * 10 + context->minor : -1;
  });
}

int aligned_cuda_device(void) {
  return guarded(-1, [] {
    const Context *context = currentContext();
    return context ? int(context->device) : -1;
  });
}

void aligned_cuda_set_stream(void *stream) { setStream(static_cast<Stream>(stream)); }

int aligned_cuda_synchronize(void) {
  return onStream([](const Context &, Stream stream) { return wait(stream); });
}

void *aligned_cuda_allocate(int64_t bytes) {
  return guarded(static_cast<void *>(nullptr), [&]() -> void * {
    const Context *context = currentContext();
    if (!context)
      return nullptr;
    if (bytes < 1)
      return fail("expected at least one byte of device memory, got " + std::to_string(bytes)), nullptr;
    Scope scope(*context);
    Address address = 0;
    if (Result result = driver().memAlloc(&address, bytes))
      return fail("expected " + std::to_string(bytes) + " bytes of device memory, got: " + driver().textOf(result)), nullptr;
    return reinterpret_cast<void *>(address);
  });
}

void aligned_cuda_free(void *memory) {
  if (!memory)
    return;
  onStream(
      [&](const Context &, Stream stream) { return wait(stream) && driver().memFree(reinterpret_cast<Address>(memory)) == 0; });
}

int aligned_cuda_copy_to_device(void *to, const void *from, int64_t bytes) {
  return onStream(
      [&](const Context &, Stream stream) { return copyToDevice(reinterpret_cast<Address>(to), from, bytes, stream); });
}

int aligned_cuda_copy_to_host(void *to, const void *from, int64_t bytes) {
  return onStream([&](const Context &, Stream stream) {
    return copyToHost(to, reinterpret_cast<Address>(from), bytes, stream) && wait(stream);
  });
}

void *aligned_cuda_event(void) {
  return guarded(static_cast<void *>(nullptr), []() -> void * {
    const Context *context = currentContext();
    if (!context)
      return nullptr;
    Scope scope(*context);
    Event event = nullptr;
    if (Result result = driver().eventCreate(&event, kEventDefault))
      return fail("a CUDA event", result), nullptr;
    return event;
  });
}

void aligned_cuda_event_destroy(void *event) {
  if (event)
    onStream([&](const Context &, Stream) { return driver().eventDestroy(static_cast<Event>(event)) == 0; });
}

int aligned_cuda_event_record(void *event) {
  return onStream([&](const Context &, Stream stream) {
    Result result = driver().eventRecord(static_cast<Event>(event), stream);
    return result ? fail("an event on the CUDA stream", result), false : true;
  });
}

double aligned_cuda_event_microseconds(void *from, void *to) {
  float milliseconds = -1;
  int failed = onStream([&](const Context &, Stream) {
    Result result = driver().eventSynchronize(static_cast<Event>(to));
    if (!result)
      result = driver().eventElapsedTime(&milliseconds, static_cast<Event>(from), static_cast<Event>(to));
    return result ? fail("a time between events", result), false : true;
  });
  return failed ? -1 : milliseconds * 1e3;
}
