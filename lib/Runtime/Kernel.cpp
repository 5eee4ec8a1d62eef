// What compiled kernels call. The thread pool is made for calls of some ten microseconds that follow one another closely: workers
// spin for a moment before they sleep, ranges are handed out by an atomic counter, and the caller works along. Its state is never
// destroyed and its threads are detached, so that a process may exit at any time; a child of fork starts a pool of its own.
//
// Loops nest: rows outside, splits of a row's tokens inside. As many rows as go evenly into the threads run side by side, each with its inner loop on its own
// thread, where nothing has to be shared. A row that is left over would keep one thread busy and the others waiting, so it runs alone, its inner loop on all.

#include "aligned/Runtime/Kernel.h"

#include "Numbers.h"
#include "aligned/Reference/Attention.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <pthread.h>
#include <thread>
#include <vector>

using namespace aligned;

namespace {

/// Where the kernels started from a thread report; travels with a parallel call to the threads that run it.
struct Record {
  aligned_tally *list = nullptr;
  int32_t attentions = 0;
  aligned_bits_listener *listener = nullptr;
  void *context = nullptr;
};
thread_local Record record;

/// A clock that costs some ten nanoseconds.
int64_t ticks() {
#if defined(__x86_64__)
  return static_cast<int64_t>(__builtin_ia32_rdtsc());
#else
  return std::chrono::steady_clock::now().time_since_epoch().count();
#endif
}

const int64_t firstTicks = ticks();
const auto firstTime = std::chrono::steady_clock::now();
std::atomic<int64_t> partTicks[ALIGNED_PARTS]; // of a profile
thread_local int64_t lastLap = ticks();

//===----------------------------------------------------------------------===//
// Thread pool
//===----------------------------------------------------------------------===//

thread_local bool insideParallel = false;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits a moment for `condition`, and says whether it came true. To sleep and to be woken takes as long as a decode step.
template <typename Condition> bool spin(Condition condition) {
  constexpr std::chrono::microseconds moment(40);
  auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; ++i) { // the clock costs more than a look
      if (condition())
        return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() - start < moment);
  return false;
}

/// One call of aligned_rt_parallel; lives on its caller's stack.
struct Job {
  void (*const body)(void *, int64_t, int64_t);
  void *const args;
  const int64_t count, grain;
  const Record record;
  int32_t seats;                   // workers that may still join, guarded by the pool's mutex
  std::atomic<int64_t> next{0};    // first item that nobody has claimed
  std::atomic<int32_t> running{0}; // workers inside; changed under the pool's mutex
  Job *following = nullptr;        // in the pool's list

  bool open() const { return seats > 0 && next.load(std::memory_order_relaxed) < count; }

  /// Claims ranges until none is left.
  void work() {
    Record outer = ::record;
    ::record = record;
    insideParallel = true;
    for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;)
      body(args, begin, std::min(begin + grain, count));
    insideParallel = false;
    ::record = outer;
  }
};

class Pool {
public:
  static Pool &get();

  void run(Job &job) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      while (workers < wanted && spawn())
        ++workers;
      job.seats = wanted;
      job.following = jobs;
      jobs = &job;
      arrivals.fetch_add(1, std::memory_order_release);
    }
    arrived.notify_all();
    job.work();
    {
      std::lock_guard<std::mutex> lock(mutex);
      Job **place = &jobs;
      while (*place != &job)
        place = &(*place)->following;
      *place = job.following;
    }
    const int64_t begin = ticks();
    auto done = [&] { return job.running.load(std::memory_order_acquire) == 0; };
    if (!spin(done)) {
      std::unique_lock<std::mutex> lock(mutex);
      left.wait(lock, done);
    }
    lastLap += ticks() - begin; // no part of a step took what the caller waited
  }

  int32_t threads() { return wanted.load(std::memory_order_relaxed) + 1; }

  void setThreads(int32_t threads) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      wanted = std::max(threads, 1) - 1;
    }
    arrived.notify_all(); // those that are too many leave
  }

private:
  bool spawn() {
    pthread_t thread;
    auto main = [](void *pool) -> void * {
      static_cast<Pool *>(pool)->serve();
      return nullptr;
    };
    if (pthread_create(&thread, nullptr, main, this))
      return false; // the caller and the workers that there are do the work
    pthread_detach(thread);
    return true;
  }

  Job *openJob() {
    Job *job = jobs;
    while (job && !job->open())
      job = job->following;
    return job;
  }

  /// The life of a worker.
  void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    while (workers <= wanted) {
      if (Job *job = openJob()) {
        --job->seats;
        job->running.fetch_add(1, std::memory_order_relaxed);
        lock.unlock();
        lastLap = ticks(); // nor what a worker waited
        job->work();
        lock.lock();
        // The last touch of the job: its caller may go on at once. Under the mutex, or a caller about to sleep would miss it.
        if (job->running.fetch_sub(1, std::memory_order_release) == 1)
          left.notify_all();
        continue;
      }
      uint64_t seen = arrivals.load(std::memory_order_relaxed);
      lock.unlock();
      spin([&] { return arrivals.load(std::memory_order_acquire) != seen; });
      lock.lock();
      arrived.wait(lock, [&] { return arrivals.load(std::memory_order_relaxed) != seen || workers > wanted; });
    }
    --workers;
  }

  std::mutex mutex; // guards what is not atomic
  std::condition_variable arrived, left;
  std::atomic<uint64_t> arrivals{0};
  Job *jobs = nullptr;
  int32_t workers = 0;
  std::atomic<int32_t> wanted{std::max(1, int(std::thread::hardware_concurrency())) - 1}; // changed under the mutex
};

std::atomic<Pool *> pool{nullptr};

Pool &Pool::get() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    // Only the thread that forked lives on in the child, and the mutex may have been anyone's.
    pthread_atfork(nullptr, nullptr, [] {
      pool = new Pool;
      insideParallel = false;
    });
  });
  return *pool;
}

} // namespace

void aligned_rt_parallel(int64_t count, void (*body)(void *args, int64_t begin, int64_t end), void *args) {
  if (count <= 0)
    return;
  if (insideParallel)
    return body(args, 0, count);
  Pool &pool = Pool::get();
  int64_t threads = pool.threads(), even = count / threads * threads;
  if (threads == 1)
    return body(args, 0, count);
  if (even) {
    // Single items while they are few, else some ranges for each thread, so that a slow one holds nobody up.
    Job job{body, args, even, std::max<int64_t>(1, even / (threads * 16)), record, 0};
    pool.run(job);
  }
  for (int64_t item = even; item < count; ++item)
    body(args, item, item + 1);
}

void aligned_rt_set_threads(int32_t threads) { Pool::get().setThreads(threads); }

int32_t aligned_rt_threads(void) { return Pool::get().threads(); }

//===----------------------------------------------------------------------===//
// Scratch memory
//===----------------------------------------------------------------------===//

void *aligned_rt_scratch(int64_t bytes) {
  struct Scratch {
    void *memory = nullptr;
    int64_t size = 0;
    ~Scratch() { std::free(memory); }
  };
  thread_local Scratch scratch;
  constexpr int64_t step = 4096;
  if (bytes > scratch.size || !scratch.memory) {
    std::free(scratch.memory);
    scratch.size = (std::max(bytes, scratch.size + scratch.size / 2) / step + 1) * step;
    if (!(scratch.memory = std::aligned_alloc(64, scratch.size))) {
      std::fprintf(stderr, "aligned: out of memory: expected %lld bytes of scratch memory\n", static_cast<long long>(bytes));
      std::_Exit(EXIT_FAILURE); // other threads are at work: no destructors
    }
  }
  return scratch.memory;
}

//===----------------------------------------------------------------------===//
// What was read
//===----------------------------------------------------------------------===//

void aligned_rt_record(aligned_tally *list, int32_t attentions) {
  record.list = list;
  record.attentions = list ? attentions : 0;
}

void aligned_rt_tally(int32_t attention, int64_t keyBits, int64_t keyValues, int64_t valueBits, int64_t valueValues) {
  if (attention < 0 || attention >= record.attentions)
    return;
  aligned_tally &tally = record.list[attention];
  auto add = [](int64_t &sum, int64_t addend) { __atomic_fetch_add(&sum, addend, __ATOMIC_RELAXED); };
  add(tally.key_bits, keyBits);
  add(tally.value_bits, valueBits);
  add(tally.key_values, keyValues);
  add(tally.value_values, valueValues);
  add(tally.rows, 1);
}

void aligned_rt_record_bits(aligned_bits_listener *listener, void *context) {
  record.listener = listener;
  record.context = context;
}

void aligned_rt_bits(int32_t attention, int64_t row, int64_t first, int64_t tokens, int64_t channels, const uint8_t *keyBits, const uint8_t *valueBits) {
  if (record.listener)
    record.listener(record.context, attention, row, first, tokens, channels, keyBits, valueBits);
}

int aligned_rt_recording(void) { return (record.list ? ALIGNED_RECORD_TALLY : 0) | (record.listener ? ALIGNED_RECORD_BITS : 0); }

//===----------------------------------------------------------------------===//
// What parts of a step take
//===----------------------------------------------------------------------===//

void aligned_rt_lap(int32_t part) {
  int64_t now = ticks();
  partTicks[part].fetch_add(now - lastLap, std::memory_order_relaxed);
  lastLap = now;
}

void aligned_rt_take_laps(double *ns) {
  // How long a tick is, from all that has passed.
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - firstTime).count();
  int64_t passed = ticks() - firstTicks;
  for (int32_t part = 0; part < ALIGNED_PARTS; ++part)
    ns[part] = double(partTicks[part].exchange(0)) * (passed > 0 ? seconds * 1e9 / double(passed) : 0);
  lastLap = ticks();
}

//===----------------------------------------------------------------------===//
// Reference
//===----------------------------------------------------------------------===//

namespace {

/// The arguments of aligned_rt_reference_attention. What shares a kv head lies together in `q` and `out`: one job, since the oracle
/// takes float64 and keys and values are widened once.
template <typename Element> struct ReferenceAttention {
  using Bits = typename Element::Bits;
  const Bits *q, *k, *v;
  Bits *out;
  int64_t queryRows, tokens, keyDim, valueDim; // queryRows: of one kv head
  double scale;
  bool maskedZero;
  Mask mask;
  double softcap;
  int64_t kvHeads;
  const float *attnMask; // or null
  int32_t maskDims;
  const float *sinkLogits; // or null

  /// What a row's queries add to scores, and to the sum of the softmax; empty where nothing is added.
  void addMasks(int64_t row, std::vector<double> &additive, std::vector<double> &sinks) const {
    int64_t group = queryRows / mask.queries, entry = row / kvHeads, firstHead = row % kvHeads * group;
    for (int64_t h = 0; h < queryRows && attnMask; ++h) { // a dimension without numbers of its own is one long
      int64_t at = maskDims & 1 ? entry : 0;
      at = maskDims & 2 ? at * kvHeads * group + firstHead + h / mask.queries : at;
      at = maskDims & 4 ? at * mask.queries + h % mask.queries : at;
      additive.insert(additive.end(), attnMask + at * tokens, attnMask + (at + 1) * tokens);
    }
    for (int64_t h = 0; h < queryRows && sinkLogits; ++h)
      sinks.push_back(sinkLogits[firstHead + h / mask.queries]);
  }

  /// The state of a row, of floats; `out` is the accumulator.
  void stateRow(int64_t row, float *max, float *sum) const {
    auto widened = [&](const Bits *from, int64_t count) {
      std::vector<double> wide(count);
      std::transform(from + row * count, from + (row + 1) * count, wide.begin(), Element::toFloat);
      return wide;
    };
    HeadInputs in{queryRows, tokens, keyDim, valueDim, widened(q, queryRows * keyDim), widened(k, tokens * keyDim), widened(v, tokens * valueDim), scale};
    in.mask = mask;
    in.softcap = softcap;
    in.maskedZero = maskedZero;
    addMasks(row, in.additive, in.sinkLogits);
    std::vector<double> acc(queryRows * valueDim), maxima(queryRows), sums(queryRows);
    exactState(in, acc.data(), maxima.data(), sums.data());
    std::transform(acc.begin(), acc.end(), out + row * queryRows * valueDim, [](double x) { return Element::fromFloat(float(x)); });
    std::copy(maxima.begin(), maxima.end(), max + row * queryRows);
    std::copy(sums.begin(), sums.end(), sum + row * queryRows);
  }

  void kvRow(int64_t row) const {
    int64_t queries = queryRows * keyDim, keys = tokens * keyDim, values = tokens * valueDim, results = queryRows * valueDim;
    auto *wide = static_cast<double *>(aligned_rt_scratch((queries + keys + values + results) * int64_t(sizeof(double))));
    double *wideK = wide + queries, *wideV = wideK + keys, *wideOut = wideV + values;
    auto widen = [](const Bits *from, int64_t count, double *to) { std::transform(from, from + count, to, Element::toFloat); };
    widen(q + row * queries, queries, wide);
    widen(k + row * keys, keys, wideK);
    widen(v + row * values, values, wideV);
    std::vector<double> additive, sinks;
    addMasks(row, additive, sinks);
    exactAttention(wide, queryRows, wideK, wideV, tokens, keyDim, valueDim, scale, maskedZero, wideOut, mask, softcap, attnMask ? additive.data() : nullptr,
                   sinkLogits ? sinks.data() : nullptr);
    std::transform(wideOut, wideOut + results, out + row * results, [](double x) { return Element::fromFloat(float(x)); });
  }
};

} // namespace

void aligned_rt_reference_attention(const void *q, const void *k, const void *v, void *out, int32_t element, int64_t batch,
                                    int64_t qHeads, int64_t kvHeads, int64_t queries, int64_t tokens, int64_t keyDim,
                                    int64_t valueDim, float scale, int32_t maskedZero, int32_t causal, int64_t window, int64_t sinks, double softcap,
                                    const float *attnMask, int32_t maskDims, const float *sinkLogits) {
  withElement(element, [&](auto type) {
    using Attention = ReferenceAttention<decltype(type)>;
    using Bits = typename Attention::Bits;
    Attention attention{static_cast<const Bits *>(q),
                        static_cast<const Bits *>(k),
                        static_cast<const Bits *>(v),
                        static_cast<Bits *>(out),
                        qHeads / kvHeads * queries,
                        tokens,
                        keyDim,
                        valueDim,
                        scale,
                        maskedZero != 0,
                        Mask{queries, causal != 0, window, sinks},
                        softcap,
                        kvHeads,
                        attnMask,
                        maskDims,
                        sinkLogits};
    auto rows = [](void *args, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        static_cast<Attention *>(args)->kvRow(row);
    };
    aligned_rt_parallel(batch * kvHeads, rows, &attention);
  });
}

void aligned_rt_reference_state(const float *q, const float *k, const float *v, float *acc, float *max, float *sum, int64_t batch,
                                int64_t qHeads, int64_t kvHeads, int64_t queries, int64_t tokens, int64_t keyDim, int64_t valueDim, float scale,
                                int32_t maskedZero, int32_t causal, int64_t window, int64_t sinks, int64_t later, double softcap,
                                const float *attnMask, int32_t maskDims, const float *sinkLogits) {
  auto bits = [](auto *floats) { return reinterpret_cast<const Single::Bits *>(floats); };
  ReferenceAttention<Single> attention{bits(q), bits(k), bits(v), reinterpret_cast<Single::Bits *>(acc), qHeads / kvHeads * queries, tokens, keyDim, valueDim, scale, maskedZero != 0,
                                       Mask{queries, causal != 0, window, sinks, later}, softcap, kvHeads, attnMask, maskDims, sinkLogits};
  for (int64_t row = 0; row < batch * kvHeads; ++row)
    attention.stateRow(row, max, sum);
}

void aligned_rt_reference_prepare(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, float scale,
                                  int64_t row, int64_t later, float toleranceFactor, int8_t *digits, float *facts, float *mean) {
  aligned_reference_prepare(stage, query, key, value, scale, row, later, toleranceFactor, digits, facts, mean);
}

void aligned_rt_reference_scan(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, float scale,
                               int64_t row, int64_t split, int64_t later, const void *mask, const int8_t *digits, const float *facts, float *scores,
                               float *tops, float *part) {
  aligned_reference_scan(stage, query, key, value, scale, row, split, later, mask, digits, facts, scores, tops, part);
}

void aligned_rt_reference_attend(const aligned_stage *stage, const void *query, const aligned_cache *key, const aligned_cache *value, int64_t row,
                                 int64_t split, int64_t later, const void *mask, const float *sinkLogits, const int8_t *digits, const float *facts,
                                 const float *mean, const float *scores, const float *tops, const float *parts, float *acc, float *max, float *sum,
                                 float *certificate, int32_t attention) {
  constexpr int64_t kSplit = ALIGNED_SPLIT_TILES * ALIGNED_TILE, kCodeBits = 8;
  uint8_t keyBits[kSplit] = {}, valueBits[kSplit] = {};
  aligned_reference_attend(stage, query, key, value, row, split, later, mask, sinkLogits, digits, facts, mean, scores, tops, parts, acc, max, sum,
                           certificate, keyBits, valueBits);
  const int64_t tokens = aligned_cache_length(key, row / stage->kv_heads), first = split * kSplit, held = std::clamp<int64_t>(tokens - first, 0, kSplit);
  const Mask seen{stage->queries, stage->causal != 0, stage->window, stage->sinks, later};
  int64_t codes = 0, keys = 0, values = 0;
  for (int64_t t = 0; t < held; ++t) {
    codes += seen.isTileSeen((first + t) / ALIGNED_TILE, tokens);
    keys += keyBits[t];
    values += valueBits[t];
  }
  aligned_rt_tally(attention, codes * kCodeBits + keys * stage->key_dim, held * stage->key_dim, codes * kCodeBits + values * stage->value_dim,
                   held * stage->value_dim);
  aligned_rt_bits(attention, row, first, held, 1, keyBits, valueBits);
}
