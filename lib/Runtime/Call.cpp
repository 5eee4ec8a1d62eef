// Calls of compiled models. Compiled code frees what it allocates, or hands it over with the results. A call that fails ends where an assertion fails, by a jump that frees
// nothing: so the buffers and caches of a call are known, and are freed for it. Parallel loops carry the call to the threads that they run on.
#include "aligned/Runtime/Call.h"

#include "aligned/Runtime/Error.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

const int32_t aligned_rt_abi_1 = ALIGNED_RT_ABI;

namespace {

//===----------------------------------------------------------------------===//
// One call
//===----------------------------------------------------------------------===//

struct Call {
  std::mutex mutex; // guards both
  std::unordered_set<void *> buffers;
  std::unordered_set<aligned_cache *> caches;

  void release() {
    for (void *buffer : buffers)
      free(buffer);
    for (aligned_cache *cache : caches)
      aligned_cache_destroy(cache);
    buffers.clear();
    caches.clear();
  }
};

thread_local Call *current = nullptr;
thread_local std::jmp_buf *target = nullptr; ///< where a failed assertion goes
thread_local std::string message;            ///< what it said

/// What was allocated, or null.
template <typename T> T *known(T *allocated, std::unordered_set<T *> Call::*place) {
  if (current && allocated) {
    std::lock_guard<std::mutex> lock(current->mutex);
    (current->*place).insert(allocated);
  }
  return allocated;
}
template <typename T> T *forgotten(T *allocated, std::unordered_set<T *> Call::*place) {
  if (current && allocated) {
    std::lock_guard<std::mutex> lock(current->mutex);
    (current->*place).erase(allocated);
  }
  return allocated;
}

/// Runs compiled code as a part of a call. False where an assertion failed, which `message` tells.
template <typename Body> bool guarded(Call *call, Body body) {
  Call *const outerCall = current;
  std::jmp_buf *const outerTarget = target;
  auto leave = [&] {
    current = outerCall;
    target = outerTarget;
  };
  std::jmp_buf here;
  if (setjmp(here)) {
    leave();
    return false;
  }
  current = call;
  target = &here;
  body();
  leave();
  return true;
}

int refuse(const std::string &why) {
  aligned_set_last_error(why.c_str());
  return -1;
}

/// Where it fails, what it had allocated is freed.
int run(Call &call, const char *name, void (*entry)(void **), void **values) {
  aligned_set_last_error("");
  if (!guarded(&call, [&] { entry(values); })) {
    call.release();
    return refuse("assertion failed in " + std::string(name) + ": " + message);
  }
  if (!*aligned_last_error())
    return 0;
  call.release(); // a function of the runtime failed: results are nobody's
  return -1;
}

//===-- Interrupts ---------------------------------------------------------===//
// Who waits for a call is asked by the thread that he called on, where a parallel loop begins or hands out work; a call that he gives up ends as one whose assertion failed.

constexpr auto kPatience = std::chrono::milliseconds(50);
thread_local aligned_interrupt *interrupt = nullptr;
thread_local void *interruptContext = nullptr;
thread_local std::chrono::steady_clock::time_point asked;

bool isInterrupted() {
  if (!interrupt)
    return false;
  const auto now = std::chrono::steady_clock::now();
  if (now - asked < kPatience)
    return false;
  asked = now;
  return interrupt(interruptContext);
}

//===-- Parallel loops -----------------------------------------------------===//

/// What fails in an iteration ends its range, on whichever thread, and then the loop.
struct Loop {
  void (*const body)(void *, int64_t, int64_t);
  void *const args;
  Call *const call;
  std::mutex mutex{};
  std::optional<std::string> failure{};
  std::atomic<bool> isOver{false}; // before its end

  void fail(const std::string &why) {
    std::lock_guard<std::mutex> lock(mutex);
    failure = why;
    isOver = true;
  }

  static void run(void *self, int64_t begin, int64_t end) {
    auto &loop = *static_cast<Loop *>(self);
    if (!loop.isOver && isInterrupted())
      loop.fail("interrupted");
    if (!loop.isOver && !guarded(loop.call, [&] { loop.body(loop.args, begin, end); }))
      loop.fail(message);
  }
};

//===-- bfloat16 -----------------------------------------------------------===//

float asRegister(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
uint32_t bitsOf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

} // namespace

float aligned_rt_truncsfbf2(float value) { // to nearest even
  const uint32_t bits = bitsOf(value);
  return asRegister(value != value ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float aligned_rt_truncdfbf2(double value) {
  float between = static_cast<float>(value);
  if (value == value && between != value) { // rounded once only: between is the odd one of the two around it
    const uint32_t bits = bitsOf(between) - (std::fabs(between) > std::fabs(value));
    between = asRegister(bits | 1);
  }
  return aligned_rt_truncsfbf2(between);
}

void aligned_on_interrupt(aligned_interrupt *asks, void *context) {
  interrupt = asks;
  interruptContext = context;
  asked = std::chrono::steady_clock::now();
}

int aligned_rt_run(const char *name, void (*entry)(void **values), void **values) {
  Call call;
  return run(call, name, entry, values);
}

int aligned_rt_is_running(void) { return current != nullptr; }

void *aligned_rt_malloc(size_t bytes) { return known(malloc(bytes), &Call::buffers); }
void aligned_rt_free(void *memory) { free(forgotten(memory, &Call::buffers)); }
aligned_cache *aligned_rt_cache_create(const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t capacity) {
  return known(aligned_cache_create(format, batch, kvHeads, headDim, capacity), &Call::caches);
}
aligned_cache *aligned_rt_cache_fork(const aligned_cache *cache) { return known(aligned_cache_fork(cache), &Call::caches); }
void aligned_rt_cache_destroy(aligned_cache *cache) { aligned_cache_destroy(forgotten(cache, &Call::caches)); }

void aligned_rt_loop(int64_t count, void (*body)(void *, int64_t, int64_t), void *args) {
  bool failed;
  { // the jump runs no destructors
    Loop loop{body, args, current};
    aligned_rt_parallel(count, &Loop::run, &loop);
    if ((failed = loop.failure.has_value()))
      message = *loop.failure;
  }
  if (failed)
    aligned_rt_fail();
}

int aligned_rt_say(const char *text) {
  message = text;
  return 0;
}

void aligned_rt_fail(void) {
  if (target)
    std::longjmp(*target, 1);
  std::fprintf(stderr, "aligned: %s\n", message.c_str());
  std::abort();
}

//===----------------------------------------------------------------------===//
// Arguments
//===----------------------------------------------------------------------===//

namespace {

std::string shapeText(int32_t rank, const int64_t *shape) {
  std::string text = "[";
  for (int32_t dim = 0; dim < rank; ++dim)
    text += (dim ? ", " : "") + (shape[dim] < 0 ? std::string("?") : std::to_string(shape[dim]));
  return text + "]";
}

int64_t elements(int32_t rank, const int64_t *shape) {
  int64_t count = 1;
  for (int32_t dim = 0; dim < rank; ++dim)
    count *= shape[dim];
  return count;
}

} // namespace

int aligned_rt_check_cache(const int64_t shape[4], const aligned_format *format, int32_t resident, const aligned_cache *cache, const char *argument) {
  const std::string what = argument;
  if (!cache)
    return refuse("expected a cache as " + what + ", got none");
  if (cache->location != ALIGNED_LOCATION_HOST) // whose memory kernels can't reach
    return refuse("expected a cache on the host as " + what + ", got one in location " + std::to_string(cache->location));
  const int64_t got[4] = {cache->batch, cache->kv_heads, cache->tokens, cache->head_dim};
  for (int32_t dim = 0; dim < 4; ++dim)
    if (shape[dim] >= 0 && shape[dim] != got[dim])
      return refuse("expected a cache of shape " + shapeText(4, shape) + " as " + what + ", got " + shapeText(4, got));
  if (memcmp(&cache->format, format, sizeof(aligned_format)))
    return refuse("expected a cache of the format that " + what + " was compiled for");
  if (cache->planes < resident)
    return refuse("expected a cache with " + std::to_string(resident) + " resident planes as " + what + ", as many as were compiled for, got one with " +
                  std::to_string(cache->planes));
  if (format->kind == ALIGNED_FORMAT_FLOAT && (cache->pages || cache->lengths))
    return refuse("expected a cache without " + std::string(cache->pages ? "pages" : "lengths of its batch entries") + " as " + what +
                  ", which kernels over float planes don't follow, got one with them");
  return 0;
}

int aligned_rt_check_lengths(const aligned_cache *const *caches, int32_t count) {
  int32_t own = 0;
  while (own < count && !(caches[own] && caches[own]->lengths))
    ++own;
  for (int32_t number = 0; number < count && own < count; ++number) {
    if (!caches[number] || caches[number]->batch != caches[own]->batch)
      continue;
    for (int64_t entry = 0; entry < caches[own]->batch; ++entry)
      if (const int64_t expected = aligned_cache_length(caches[own], entry), got = aligned_cache_length(caches[number], entry); got != expected)
        return refuse("expected " + std::to_string(expected) + " tokens in batch entry " + std::to_string(entry) + " of argument " + std::to_string(number) +
                      ", as in argument " + std::to_string(own) + ", which has own lengths, got " + std::to_string(got));
  }
  return 0;
}

void aligned_rt_copy(void *to, const void *from, int32_t bytes, int32_t rank, const int64_t *shape, const int64_t *strides) {
  const int64_t count = elements(rank, shape);
  int64_t run = 1, inner = rank; // what lies together is copied together
  while (inner > 0 && (shape[inner - 1] == 1 || strides[inner - 1] == run))
    run *= shape[--inner];
  std::vector<int64_t> index(inner, 0);
  for (int64_t done = 0; done < count; done += run) {
    int64_t offset = 0;
    for (int64_t dim = 0; dim < inner; ++dim)
      offset += index[dim] * strides[dim];
    memcpy(static_cast<char *>(to) + done * bytes, static_cast<const char *>(from) + offset * bytes, run * bytes);
    for (int64_t dim = inner - 1; dim >= 0 && ++index[dim] == shape[dim]; --dim)
      index[dim] = 0;
  }
}

namespace {

/// A memref's descriptor: allocated and aligned pointer, offset, sizes, strides.
constexpr int32_t wordsOf(const aligned_rt_type &type) { return type.is_cache ? 1 : 3 + 2 * type.rank; }

/// Of a contiguous array.
std::vector<int64_t> descriptorOf(int32_t rank, int64_t address, const int64_t *shape) {
  std::vector<int64_t> words(3 + 2 * rank);
  words[0] = words[1] = address;
  int64_t stride = 1;
  for (int32_t dim = rank - 1; dim >= 0; --dim) {
    words[3 + dim] = shape[dim];
    words[3 + rank + dim] = stride;
    stride *= shape[dim];
  }
  return words;
}

bool isOpen(const aligned_rt_type &type) {
  for (int32_t dim = 0; dim < type.rank; ++dim)
    if (type.shape[dim] < 0)
      return true;
  return false;
}

} // namespace

//===----------------------------------------------------------------------===//
// The call
//===----------------------------------------------------------------------===//

int aligned_rt_call(const char *name, const aligned_rt_type *types, int32_t arguments, int32_t results, void (*entry)(void **), const int64_t *words) {
  std::vector<std::vector<int64_t>> descriptors(arguments);
  std::vector<const aligned_cache *> caches(arguments); // null for arrays
  std::vector<void *> pointers(1); // what the model takes, behind the address of its results
  for (int32_t number = 0; number < arguments; ++number) {
    const aligned_rt_type &type = types[number];
    const std::string what = "argument " + std::to_string(number) + " of " + name;
    const int64_t address = *words++;
    if (type.is_cache) {
      auto *cache = reinterpret_cast<aligned_cache *>(address);
      if (aligned_rt_check_cache(type.shape, &type.format, type.resident, cache, what.c_str()))
        return -1;
      caches[number] = cache;
      pointers.push_back(cache);
      continue;
    }
    int64_t shape[ALIGNED_RT_MAX_RANK];
    for (int32_t dim = 0; dim < type.rank; ++dim)
      if ((shape[dim] = type.shape[dim] < 0 ? *words++ : type.shape[dim]) < 0)
        return refuse("expected a size that is not negative for dimension " + std::to_string(dim) + " of " + what + ", got " + std::to_string(shape[dim]));
    if (!address && elements(type.rank, shape))
      return refuse("expected data for " + what + ", got a null pointer");
    descriptors[number] = descriptorOf(type.rank, address, shape);
    pointers.push_back(descriptors[number].data());
  }
  if (aligned_rt_check_lengths(caches.data(), arguments))
    return -1;
  const aligned_rt_type *const out = types + arguments;
  int32_t resultWords = 0;
  const int64_t *places = words;
  for (int32_t number = 0; number < results; ++number) {
    resultWords += wordsOf(out[number]);
    const int32_t parameters = !out[number].is_cache && isOpen(out[number]) ? 2 : 1;
    for (int32_t parameter = 0; parameter < parameters; ++parameter)
      if (!*places++ && !out[number].is_cache && (parameters == 2 || elements(out[number].rank, out[number].shape)))
        return refuse("expected a place for result " + std::to_string(number) + " of " + name + ", got a null pointer");
  }

  // A cache alone is returned; all else is written behind a pointer that goes ahead of the arguments.
  std::vector<int64_t> memory(resultWords);
  const bool isReturned = results == 1 && out->is_cache, isWritten = resultWords && !isReturned;
  pointers.front() = memory.data();
  std::vector<void *> values;
  for (size_t number = isWritten ? 0 : 1; number < pointers.size(); ++number)
    values.push_back(&pointers[number]);
  if (isReturned)
    values.push_back(memory.data());

  Call call;
  if (run(call, name, entry, values.data()))
    return -1;

  // What results lie in is theirs, an argument's, another result's or a constant's. They are copied out of it, and what was allocated for them is freed. Memory for all comes first.
  std::vector<void *> copies;
  const int64_t *result = memory.data();
  for (int32_t number = 0; number < results; result += wordsOf(out[number++])) {
    if (out[number].is_cache || !isOpen(out[number]))
      continue;
    const int64_t bytes = elements(out[number].rank, result + 3) * out[number].bytes;
    copies.push_back(malloc(bytes ? bytes : 1));
    if (!copies.back()) {
      for (void *copy : copies)
        free(copy);
      call.release();
      return refuse("expected " + std::to_string(bytes) + " bytes of memory for result " + std::to_string(number) + " of " + name + ", got none");
    }
  }
  size_t copy = 0;
  result = memory.data();
  for (int32_t number = 0; number < results; result += wordsOf(out[number++])) {
    const aligned_rt_type &type = out[number];
    const int64_t place = *words++;
    if (type.is_cache) {
      auto *cache = reinterpret_cast<aligned_cache *>(*result);
      if (place) {
        *reinterpret_cast<aligned_cache **>(place) = cache;
        call.caches.erase(cache);
      }
      continue;
    }
    char *to = reinterpret_cast<char *>(place);
    if (isOpen(type)) {
      *reinterpret_cast<void **>(place) = to = static_cast<char *>(copies[copy++]);
      std::copy_n(result + 3, type.rank, reinterpret_cast<int64_t *>(*words++));
    }
    aligned_rt_copy(to, reinterpret_cast<const char *>(result[1]) + result[2] * type.bytes, type.bytes, type.rank, result + 3, result + 3 + type.rank);
  }
  call.release();
  return 0;
}
