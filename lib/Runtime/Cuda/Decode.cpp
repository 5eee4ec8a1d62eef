// One step of one site: queries in, kernels, softmax states out, and a report of what was read; or several, captured to be run
// again.
#include "DeviceCache.h"

#include "aligned/Runtime/Cuda.h"
#include "aligned/Runtime/Kernel.h"
#include "aligned/Storage/Layout.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cstdio>
#include <numeric>

using namespace aligned;
using namespace aligned::cuda;

namespace {

/// Blocks of threads for each row: as few as leave multiprocessors idle about as little as any number would, where all take equal
/// times and run in waves of as many as fit, and few with less tokens than are worth one.
int64_t splitsOf(const Program &program, int64_t rows, int64_t capacity) {
  constexpr double worth = 0.95;
  const Tuning &tuning = program.sidecar.tuning;
  int64_t slots = std::max<int64_t>(1, program.context.multiprocessors * tuning.blocksPerMultiprocessor),
          limit = std::min((capacity / ALIGNED_TILE + tuning.tilesPerSplit - 1) / tuning.tilesPerSplit, tuning.mostSplits), best = 1;
  auto time = [&](int64_t splits) { return double((rows * splits + slots - 1) / slots) / splits; };
  for (int64_t splits = 2; splits <= limit; ++splits)
    if (time(splits) < worth * time(best))
      best = splits;
  return best;
}

class Decode {
public:
  Decode(Program &program, const Site &site, const aligned_decode_call &call, bool recording)
      : program(program), site(site), call(call), recording(recording), parameters(site.arguments.size()),
        offsets(site.arguments.size(), -1) {}

  bool check() {
    constexpr int32_t mostSplits = 65535;
    if (!(site.isDense() ? checkArrays() : checkCaches()))
      return false;
    if (!call.query)
      return fail("expected a query, got null"), false;
    if (call.location != ALIGNED_LOCATION_HOST && call.location != ALIGNED_LOCATION_CUDA)
      return fail("expected location 0 (host) or 1 (device), got " + std::to_string(call.location)), false;
    if (call.certificate && !site.certified)
      return fail("expected no certificate to be asked for, got a site that was compiled without"), false;
    for (auto [name, array] : {std::pair(Name::SinkLogits, static_cast<const void *>(call.sink_logits)), std::pair(Name::AttnMask, call.attn_mask)}) {
      const Argument *argument = site.find(name);
      if (array && !argument)
        return fail(std::string("expected no ") + nameOf(name) + " at site " + std::to_string(site.number) + ", got some"), false;
      if (!array && argument && argument->bytes(symbols))
        return fail(std::string("expected ") + nameOf(name) + " at site " + std::to_string(site.number) + ", got null"), false;
    }
    if (call.finished && !site.find(Name::Finished))
      return fail("expected 0 for finished at site " + std::to_string(site.number) + ", which gives softmax states, got " + std::to_string(call.finished)), false;
    if (!checkNumbers())
      return false;
    if (call.splits < 0 || call.splits > mostSplits)
      return fail("expected from 1 to " + std::to_string(mostSplits) + " splits, or 0, got " + std::to_string(call.splits)), false;
    symbols.splits = call.splits ? call.splits : splitsOf(program, symbols.batch * symbols.kvHeads, symbols.capacity);
    return program.checkGrids(site.launches, symbols);
  }

  /// What sites may leave to calls: what a call says of it, and from where to where that may be.
  struct Number {
    Name name;
    double given, least, most;
  };
  std::array<Number, 5> numbers() const {
    constexpr double mostTokens = int64_t(1) << 40; // as #aligned.mask has it; `later` is taken off others
    return {{{Name::Softcap, call.softcap, 1e-30f, 1e30f},
             {Name::ToleranceFactor, call.tolerance_factor, FLT_MIN, FLT_MAX},
             {Name::Window, double(call.window), 1, mostTokens},
             {Name::Sinks, double(call.sinks), 0, mostTokens},
             {Name::Later, double(call.later), 0, 1 << 29}}};
  }

  bool checkNumbers() const {
    auto text = [](double x) {
      char digits[32];
      std::snprintf(digits, sizeof digits, "%.13g", x);
      return std::string(digits);
    };
    for (const auto &[name, given, least, most] : numbers()) {
      const std::string what = std::string(nameOf(name)) + " at site " + std::to_string(site.number);
      if (site.find(name)) {
        if (!(given >= least && given <= most)) // also refuses NaN
          return fail("expected " + what + " from " + text(least) + " to " + text(most) + ", got " + text(given)), false;
      } else if (given != 0 && !(name == Name::ToleranceFactor && given == 1)) {
        return fail("expected no " + what + ", got " + text(given)), false;
      }
    }
    return true;
  }

  bool checkCaches() {
    key = deviceCache("keys", call.key);
    value = key ? deviceCache("values", call.value) : nullptr;
    if (!key || !value)
      return false;
    for (auto [name, cache, format, dim] :
         {std::tuple("keys", key, &site.key, site.keyDim), std::tuple("values", value, &site.value, site.valueDim)}) {
      std::string expected = std::string("expected ") + name + " of site " + std::to_string(site.number) + " ";
      if (&cache->context() != &program.context)
        return fail(expected + "on " + program.context.name + ", got a cache on " + cache->context().name), false;
      if (!sameFormat(cache->format, *format))
        return fail(expected + "to be a " + formatText(*format) + ", got a " + formatText(cache->format)), false;
      if (cache->head_dim != dim)
        return fail(expected + "to have head_dim " + std::to_string(dim) + ", got " + std::to_string(cache->head_dim)), false;
      if (cache->kv_heads != site.kvHeads)
        return fail(expected + "to have " + std::to_string(site.kvHeads) + " kv heads, got " + std::to_string(cache->kv_heads)),
               false;
      if (cache->batch != call.batch)
        return fail(expected + "to have the call's batch of " + std::to_string(call.batch) + ", got " +
                    std::to_string(cache->batch)),
               false;
      if (!cache->checkAsides())
        return false;
    }
    for (int64_t n = 0; n < call.batch; ++n)
      if (key->length(n) != value->length(n))
        return fail("expected as many values as keys, got " + std::to_string(key->length(n)) + " keys and " +
                    std::to_string(value->length(n)) + " values in batch entry " + std::to_string(n)),
               false;
    symbols = {key->batch, key->kv_heads, key->capacity};
    symbols.tokens = key->tokens;
    return true;
  }

  bool checkArrays() {
    constexpr uintptr_t alignment = 16;
    constexpr int64_t most = int64_t(1) << 30, mostBatch = 65535;
    if (call.batch < 0 || call.batch > mostBatch)
      return fail("expected a batch from 0 to " + std::to_string(mostBatch) + ", got " + std::to_string(call.batch)), false;
    if (call.capacity < 0 || call.capacity > most)
      return fail("expected a capacity from 0 to " + std::to_string(most) + " tokens, got " + std::to_string(call.capacity)),
             false;
    std::string ofSite = " of dense site " + std::to_string(site.number);
    if (!call.lengths)
      return fail("expected lengths" + ofSite + ", got null"), false;
    for (auto [name, array] : {std::pair("keys", call.dense_key), std::pair("values", call.dense_value)}) {
      if (!array && call.batch && call.capacity)
        return fail(std::string("expected ") + name + ofSite + ", got null"), false;
      if (auto address = reinterpret_cast<uintptr_t>(array); !onHost() && address % alignment)
        return fail(std::string("expected ") + name + ofSite + " to be aligned to " + std::to_string(alignment) +
                    " bytes, got address " + std::to_string(address)),
               false;
    }
    for (int64_t n = 0; onHost() && n < call.batch; ++n)
      if (call.lengths[n] < 0 || call.lengths[n] > call.capacity)
        return fail("expected a length from 0 to the capacity of " + std::to_string(call.capacity) + ", got " +
                    std::to_string(call.lengths[n]) + " in batch entry " + std::to_string(n)),
               false;
    symbols = {call.batch, site.kvHeads, call.capacity};
    symbols.tokens = call.capacity;
    return true;
  }

  /// Memory for all arguments that the caller does not bring. Negative where sizes overflow.
  int64_t workspaceBytes() {
    int64_t bytes = 0;
    for (size_t i = 0; i < site.arguments.size(); ++i) {
      const Argument &argument = site.arguments[i];
      bool ours = argument.kind == Kind::Scratch || (argument.kind == Kind::Record && recording) ||
                  (argument.kind == Kind::Input && onHost()) ||
                  (argument.kind == Kind::Output && (onHost() || !output(argument)));
      int64_t size = ours ? argument.bytes(symbols) : 0;
      if (size < 0 || size > (int64_t(1) << 48) - bytes)
        return -1;
      if (!size)
        continue;
      offsets[i] = bytes;
      bytes += paddedBytes(size);
    }
    return bytes;
  }

  bool launch(const Memory &workspace, Stream stream) {
    for (size_t i = 0; i < site.arguments.size(); ++i) {
      const Argument &argument = site.arguments[i];
      Address own = offsets[i] < 0 ? 0 : workspace.address() + offsets[i];
      switch (argument.kind) {
      case Kind::Input:
        if (own && !copyToDevice(own, input(argument), argument.bytes(symbols), stream))
          return false;
        parameters.set(i, own ? own : reinterpret_cast<Address>(input(argument)));
        break;
      case Kind::Cache:
        parameters.set(i, (argument.meaning == Name::Key ? key : value)->structure());
        break;
      case Kind::Scratch:
      case Kind::Record:
        parameters.set(i, own);
        break;
      case Kind::Output:
        parameters.set(i, own ? own : reinterpret_cast<Address>(output(argument)));
        break;
      case Kind::Scalar:
        setScalar(i, argument);
        break;
      }
    }
    return program.launch(site.launches, symbols, parameters, stream);
  }

  void setScalar(size_t at, const Argument &argument) {
    constexpr double mostCounted = 1 << 30; // more mean the same
    if (argument.meaning == Name::Scale)
      return parameters.set(at, call.scale);
    if (argument.meaning == Name::Finished)
      return parameters.set(at, int32_t(call.finished != 0));
    for (const Number &number : numbers())
      if (argument.meaning == number.name)
        return argument.type == "f32" ? parameters.set(at, static_cast<float>(number.given)) : parameters.set(at, static_cast<int32_t>(std::min(number.given, mostCounted)));
    parameters.setSize(at, argument, symbols);
  }

  /// Brings results and records to the host.
  bool fetch(const Memory &workspace, Stream stream) {
    for (size_t i = 0; i < site.arguments.size(); ++i) {
      const Argument &argument = site.arguments[i];
      void *to = nullptr;
      if (argument.kind == Kind::Output && onHost())
        to = output(argument);
      if (argument.records() && recording) {
        auto &bits = argument.meaning == Name::KeyBits ? keyBits : valueBits;
        bits.resize(argument.bytes(symbols));
        to = bits.data();
      }
      if (argument.meaning == Name::Lengths && recording) {
        lengths.resize(call.batch);
        if (!copyToHost(lengths.data(),
                        offsets[i] < 0 ? reinterpret_cast<Address>(call.lengths) : workspace.address() + offsets[i],
                        argument.bytes(symbols), stream))
          return false;
      }
      if (to && offsets[i] >= 0 && !copyToHost(to, workspace.address() + offsets[i], argument.bytes(symbols), stream))
        return false;
    }
    return true;
  }

  bool waits() const { return onHost() || recording; }

  /// What was read, row by row, as the CPU's kernels tell it.
  void report() const { site.isDense() ? reportArrays() : reportCaches(); }

  std::vector<DeviceCache *> caches() const { return site.isDense() ? std::vector<DeviceCache *>() : std::vector{key, value}; }

  DeviceCache *key = nullptr, *value = nullptr; ///< null at dense sites

private:
  void reportArrays() const {
    auto bits = [](const aligned_format &format) { return format.element == ALIGNED_ELEMENT_F32 ? 32 : 16; };
    for (int64_t row = 0; row < symbols.batch * symbols.kvHeads; ++row) {
      int64_t tokens = std::clamp<int64_t>(lengths[row / symbols.kvHeads], 0, call.capacity), keys = tokens * site.keyDim,
              values = tokens * site.valueDim;
      aligned_rt_tally(static_cast<int32_t>(site.number), keys * bits(site.key), keys, values * bits(site.value), values);
    }
  }

  void reportCaches() const {
    const auto number = static_cast<int32_t>(site.number);
    const Argument *perChannel = site.find(Name::KeyBits);
    const int64_t channels = perChannel && perChannel->shape.size() == 3 ? site.keyDim : 1;
    const int64_t capacity = symbols.capacity, keyRow = channels == 1 ? capacity : capacity / ALIGNED_TILE * channels;
    // Kernels that have nothing to tell read all that is resident.
    auto resident = [](const DeviceCache &cache) { return static_cast<uint8_t>(storage::bitsBefore(cache.format, static_cast<int32_t>(cache.planes))); };
    const std::vector<uint8_t> allKeys(keyBits.empty() ? keyRow : 0, resident(*key)), allValues(valueBits.empty() ? capacity : 0, resident(*value));
    for (int64_t row = 0; row < key->rows; ++row) {
      const int64_t tokens = key->length(row / key->kv_heads);
      const uint8_t *keys = keyBits.empty() ? allKeys.data() : keyBits.data() + row * keyRow;
      const uint8_t *values = valueBits.empty() ? allValues.data() : valueBits.data() + row * capacity;
      int64_t scanned = 0, ofKeys = 0, ofValues = 0; // tokens of which any bit of K is read, bits
      for (int64_t first = 0; first < tokens; first += ALIGNED_TILE) {
        const int64_t here = std::min<int64_t>(ALIGNED_TILE, tokens - first);
        if (channels == 1) {
          for (int64_t t = first; t < first + here; ++t) {
            scanned += keys[t] != 0;
            ofKeys += keys[t] * site.keyDim;
          }
        } else {
          const uint8_t *tile = keys + first / ALIGNED_TILE * channels;
          const int64_t bits = std::accumulate(tile, tile + channels, int64_t(0));
          scanned += bits ? here : 0;
          ofKeys += bits * here;
        }
        ofValues += std::accumulate(values + first, values + first + here, int64_t(0)) * site.valueDim;
      }
      constexpr int64_t codeBits = 8;
      if (site.key.kind == ALIGNED_FORMAT_FIXED)
        ofKeys += scanned * codeBits;
      if (site.value.kind == ALIGNED_FORMAT_FIXED)
        ofValues += scanned * codeBits;
      aligned_rt_tally(number, ofKeys, tokens * site.keyDim, ofValues, tokens * site.valueDim);
      aligned_rt_bits(number, row, 0, tokens, channels, keys, values);
    }
  }

  bool onHost() const { return call.location == ALIGNED_LOCATION_HOST; }
  const void *input(const Argument &argument) const {
    switch (*argument.meaning) {
    case Name::Key:
      return call.dense_key;
    case Name::Value:
      return call.dense_value;
    case Name::Lengths:
      return call.lengths;
    case Name::SinkLogits:
      return call.sink_logits;
    case Name::AttnMask:
      return call.attn_mask;
    default:
      return call.query;
    }
  }
  float *output(const Argument &argument) const {
    switch (*argument.meaning) {
    case Name::Acc:
      return call.acc;
    case Name::Max:
      return call.max;
    case Name::Sum:
      return call.sum;
    default:
      return call.certificate;
    }
  }

  Program &program;
  const Site &site;
  const aligned_decode_call call;
  const bool recording;
  Symbols symbols;
  Parameters parameters;
  std::vector<int64_t> offsets; ///< in the workspace, by argument; negative for what the caller brings
  std::vector<uint8_t> keyBits, valueBits; ///< what kernels recorded
  std::vector<int64_t> lengths; ///< of a dense site, where somebody records
};

bool decode(Program &program, int32_t number, const aligned_decode_call &call) {
  const Site *site = program.site(number);
  if (!site)
    return false;
  Decode step(program, *site, call, aligned_rt_recording() != 0);
  if (!step.check())
    return false;
  {
    std::lock_guard<std::mutex> lock(program.mutex);
    Scope scope(program.context);
    Workspace &workspace = program.workspace(*site);
    std::vector<Order *> orders{&workspace.order};
    for (DeviceCache *cache : step.caches())
      orders.push_back(&cache->order);
    Stream stream;
    if (!workspace.reserve(program.context, step.workspaceBytes()) || !currentStream(program.context, stream))
      return false;
    for (Order *order : orders)
      if (!order->enter(program.context, stream))
        return false;
    bool done = step.launch(workspace.memory, stream) && step.fetch(workspace.memory, stream);
    for (Order *order : orders)
      done &= order->leave(stream);
    if (!done || (step.waits() && !wait(stream)))
      return false;
  }
  // What has been waited for tells of tokens kept aside for certain.
  for (DeviceCache *cache : step.caches())
    if (step.waits() && !cache->checkAsides())
      return false;
  if (aligned_rt_recording())
    step.report();
  return true;
}

//===----------------------------------------------------------------------===//
// Captured steps
//===----------------------------------------------------------------------===//

/// A cache that a captured step appends to.
struct Appended {
  size_t step; ///< before which it is
  DeviceCache *cache;
  const void *data;
  Memory counts; ///< 1 for each batch entry: launches don't share the cache's own
};

} // namespace

struct aligned_graph {
  std::shared_ptr<Program> program;
  std::vector<Appended> appended;
  std::vector<std::unique_ptr<Decode>> steps;
  std::vector<std::pair<DeviceCache *, int64_t>> capacities; ///< as captured
  std::vector<Memory> workspaces;
  std::vector<DeviceCache *> caches; ///< once each
  Order order;
  GraphExec exec = nullptr;

  ~aligned_graph() {
    if (!program)
      return;
    order.wait();
    Scope scope(program->context);
    if (exec)
      driver().graphExecDestroy(exec);
  }

  bool prepare(const aligned_step *list, int32_t count);
  bool capture();
  bool launch();

private:
  bool record(Stream stream);
};

bool aligned_graph::prepare(const aligned_step *list, int32_t count) {
  auto use = [&](DeviceCache *cache) {
    if (std::find(caches.begin(), caches.end(), cache) == caches.end()) {
      caches.push_back(cache);
      capacities.push_back({cache, cache->capacity});
    }
  };
  for (int32_t i = 0; i < count; ++i) {
    const aligned_step &step = list[i];
    const Site *site = program->site(step.site);
    if (!site)
      return false;
    if (step.call.location != ALIGNED_LOCATION_CUDA)
      return fail("expected queries and outputs of a captured step on the device, got location " +
                  std::to_string(step.call.location)),
             false;
    if (!step.key_data != !step.value_data)
      return fail("expected tokens for both keys and values, or for neither"), false;
    auto decode = std::make_unique<Decode>(*program, *site, step.call, /*recording=*/false);
    if (!decode->check())
      return false;
    Memory workspace;
    if (!workspace.allocate(program->context, decode->workspaceBytes()))
      return false;
    if (site->isDense() && step.key_data)
      return fail("expected no tokens to append at dense site " + std::to_string(step.site) + ", got some"), false;
    for (auto [cache, data] : {std::pair(decode->key, step.key_data), std::pair(decode->value, step.value_data)}) {
      if (!cache)
        continue;
      use(cache);
      if (!data)
        continue;
      for (const Appended &other : appended)
        if (other.cache == cache)
          return fail("expected each cache to be appended to once in a step, got one twice"), false;
      Growth growth;
      if (!cache->append)
        return fail("expected kernels in the program that append to a " + formatText(cache->format) + ", got none"), false;
      if (!cache->planStep(growth) || !cache->checkGrids(1))
        return false;
      std::vector<int32_t> ones(cache->batch, 1);
      Appended append{steps.size(), cache, data, {}};
      if (!append.counts.allocate(program->context, cache->batch * int64_t(sizeof(int32_t))))
        return false;
      Stream stream;
      if (!ownStream(program->context, stream) ||
          !copyToDevice(append.counts.address(), ones.data(), append.counts.bytes(), stream) || !wait(stream))
        return false;
      appended.push_back(std::move(append));
    }
    steps.push_back(std::move(decode));
    workspaces.push_back(std::move(workspace));
  }
  return true;
}

bool aligned_graph::record(Stream stream) {
  for (size_t i = 0; i < steps.size(); ++i) {
    for (Appended &append : appended) {
      if (append.step != i)
        continue;
      DeviceCache &cache = *append.cache;
      int64_t strides[4] = {cache.kv_heads * cache.head_dim, cache.head_dim, cache.head_dim, 1};
      if (!cache.launchAppend(reinterpret_cast<Address>(append.data), append.counts.address(), 1, strides, stream))
        return false;
    }
    if (!steps[i]->launch(workspaces[i], stream))
      return false;
  }
  return true;
}

bool aligned_graph::capture() {
  Stream stream;
  if (!ownStream(program->context, stream)) // the caller's may be one that can't be captured
    return false;
  if (Result result = driver().streamBeginCapture(stream, kCaptureThreadLocal))
    return fail("a stream that can be captured", result), false;
  bool recorded = record(stream);
  Graph graph = nullptr;
  Result result = driver().streamEndCapture(stream, &graph);
  if (recorded && result)
    fail("a captured step", result);
  if (!recorded || result || !graph) {
    if (graph)
      driver().graphDestroy(graph);
    return false;
  }
  result = driver().graphInstantiate(&exec, graph, 0);
  driver().graphDestroy(graph);
  if (result)
    fail("a graph of the captured step", result);
  return result == 0;
}

bool aligned_graph::launch() {
  for (auto [cache, capacity] : capacities)
    if (cache->capacity != capacity)
      return fail("expected caches as they were captured, got one that has grown from " + std::to_string(capacity) + " to " +
                  std::to_string(cache->capacity) + " tokens"),
             false;
  std::vector<Growth> growths(appended.size());
  for (size_t i = 0; i < appended.size(); ++i)
    if (!appended[i].cache->planStep(growths[i]))
      return false;
  for (DeviceCache *cache : caches)
    if (!cache->checkAsides())
      return false;
  Scope scope(program->context);
  Stream stream;
  if (!currentStream(program->context, stream) || !order.enter(program->context, stream))
    return false;
  for (DeviceCache *cache : caches)
    if (!cache->order.enter(program->context, stream))
      return false;
  bool done = true;
  size_t prepared = 0;
  while (prepared < appended.size() && (done = appended[prepared].cache->preparePages(growths[prepared], stream)))
    ++prepared;
  if (done)
    if (Result result = driver().graphLaunch(exec, stream))
      done = (fail("the captured step to start", result), false);
  for (size_t i = 0; i < prepared; ++i)
    done ? appended[i].cache->account(growths[i]) : appended[i].cache->cancel(growths[i], stream);
  for (DeviceCache *cache : caches)
    done &= cache->order.leave(stream);
  return order.leave(stream) && done;
}

//===----------------------------------------------------------------------===//
// C interface
//===----------------------------------------------------------------------===//

int aligned_program_decode(aligned_program *program, int32_t site, const aligned_decode_call *call) {
  return guarded(-1, [&] { return decode(*program->program, site, *call) ? 0 : -1; });
}

aligned_graph *aligned_program_capture(aligned_program *program, const aligned_step *steps, int32_t count) {
  return guarded(static_cast<aligned_graph *>(nullptr), [&]() -> aligned_graph * {
    if (count < 1)
      return fail("expected at least one site in a captured step, got " + std::to_string(count)), nullptr;
    auto graph = std::make_unique<aligned_graph>();
    graph->program = program->program;
    Scope scope(program->program->context);
    std::lock_guard<std::mutex> lock(program->program->mutex);
    if (!graph->prepare(steps, count) || !graph->capture())
      return nullptr;
    return graph.release();
  });
}

int aligned_graph_launch(aligned_graph *graph) {
  return guarded(-1, [&] { return graph->launch() ? 0 : -1; });
}

void aligned_graph_destroy(aligned_graph *graph) { delete graph; }
