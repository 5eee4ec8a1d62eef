// A device's context, memory in it, and the order of work on it.
//
// Work is queued on streams and nobody waits for it unless something has to come back. What two calls use, which may be on
// different streams, has an `Order`: a call waits, on the device, for the one before.
#ifndef ALIGNED_LIB_RUNTIME_CUDA_DEVICE_H
#define ALIGNED_LIB_RUNTIME_CUDA_DEVICE_H

#include "Driver.h"

#include <new>
#include <string>
#include <utility>

namespace aligned::cuda {

/// Sets the calling thread's message.
int fail(const std::string &message);
/// Of a driver call that failed: "expected X, got: out of memory".
int fail(const char *what, Result result);

/// Runs a function of the C interface: memory that is out on the host is an error like any other.
template <typename Result, typename Body> Result guarded(Result failed, Body body) {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    fail("out of memory on the host");
    return failed;
  }
}

/// The primary context of a device, which whoever else uses the device in this process shares. Never released.
struct Context {
  Device device = 0;
  ContextHandle handle = nullptr;
  int major = 0, minor = 0, multiprocessors = 0;
  std::string name;
};

/// Of the calling thread's current device, or of the first. Null, with a message, where there is none.
const Context *currentContext();

/// Makes a context the calling thread's while it lives.
class Scope {
public:
  explicit Scope(const Context &context) : entered(driver().ctxPushCurrent(context.handle) == 0) {}
  ~Scope() {
    ContextHandle popped;
    if (entered)
      driver().ctxPopCurrent(&popped);
  }
  Scope(const Scope &) = delete;

private:
  const bool entered;
};

/// What this thread queues its work on: its own stream, or the one that it was told. Null and a message on failure.
bool currentStream(const Context &context, Stream &stream);
/// The thread's own.
bool ownStream(const Context &context, Stream &stream);
void setStream(Stream stream);

/// Device memory. Freed at once: who frees what may be in use waits before.
class Memory {
public:
  Memory() = default;
  Memory(Memory &&other) noexcept { *this = std::move(other); }
  Memory &operator=(Memory &&other) noexcept {
    std::swap(context, other.context);
    std::swap(at, other.at);
    std::swap(size, other.size);
    return *this;
  }
  ~Memory() { reset(); }

  /// No bytes are no memory. Changes nothing and leaves a message on failure.
  bool allocate(const Context &context, int64_t bytes);
  void reset();

  Address address() const { return at; }
  int64_t bytes() const { return size; }
  explicit operator bool() const { return at != 0; }
  template <typename T> T *as() const { return reinterpret_cast<T *>(at); }

private:
  const Context *context = nullptr;
  Address at = 0;
  int64_t size = 0;
};

/// A number that the device writes and the host reads without waiting.
class HostWord {
public:
  HostWord() = default;
  HostWord(const HostWord &) = delete;
  ~HostWord();
  bool allocate(const Context &context);
  volatile int64_t *get() const { return word; }

private:
  const Context *context = nullptr;
  int64_t *word = nullptr;
};

class Order {
public:
  Order() = default;
  Order(const Order &) = delete;
  ~Order();
  /// What is queued on the stream from now on comes after what came last.
  bool enter(const Context &context, Stream stream);
  /// What is queued up to now is the last.
  bool leave(Stream stream);
  /// Waits on the host.
  bool wait();

private:
  const Context *context = nullptr;
  Event last = nullptr;
};

// Copies, queued. Host memory may be used again when they return.
bool copyToDevice(Address to, const void *from, int64_t bytes, Stream stream);
bool copyToHost(void *to, Address from, int64_t bytes, Stream stream); ///< there when the stream has been waited for
bool copyOnDevice(Address to, Address from, int64_t bytes, Stream stream);
bool clear(Address to, int64_t bytes, Stream stream);
bool wait(Stream stream);

} // namespace aligned::cuda

#endif
