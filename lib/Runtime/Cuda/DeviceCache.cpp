// An append is two kernels' work; the host sees to room, pages, and where tokens come from. Whatever can fail comes before the
// first launch.
#include "DeviceCache.h"

#include "../HostCache.h"
#include "aligned/Runtime/Cuda.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>

using namespace aligned;
using namespace aligned::cuda;

namespace {

constexpr int64_t block = ALIGNED_BLOCK;

int64_t roundedUp(int64_t tokens) { return (tokens + block - 1) / block * block; }

/// The product of sizes, or -1, which it absorbs.
template <typename... Sizes> int64_t product(int64_t first, Sizes... rest) {
  for (int64_t size : {int64_t(rest)...})
    if (first < 0 || size < 0 || __builtin_mul_overflow(first, size, &first))
      return -1;
  return first;
}

template <typename Bits> int64_t countFrom(const Bits *values, int64_t count, Bits magnitude, Bits limit) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i)
    found += (values[i] & magnitude) >= limit;
  return found;
}

/// Values that an append will list as escapes.
int64_t countEscapes(const aligned_format &format, const void *values, int64_t count) {
  if (format.element == ALIGNED_ELEMENT_F32) // those that are no half overflow in float formats
    return countFrom<uint32_t>(static_cast<const uint32_t *>(values), count, 0x7fffffff,
                               format.kind == ALIGNED_FORMAT_FLOAT ? 0x477ff000 : 0x7f800000);
  return countFrom<uint16_t>(static_cast<const uint16_t *>(values), count, 0x7fff,
                             format.element == ALIGNED_ELEMENT_BF16 ? 0x7f80 : 0x7c00);
}

DeviceCache *asDevice(aligned_cache *cache) { return static_cast<DeviceCache *>(cache); }
const DeviceCache *asDevice(const aligned_cache *cache) { return static_cast<const DeviceCache *>(cache); }
/// Reading a cache queues work, too.
DeviceCache *asReader(const aligned_cache *cache) { return const_cast<DeviceCache *>(asDevice(cache)); }

const aligned_device_caches functions = {
    [](aligned_cache *cache) { delete asDevice(cache); },
    [](const aligned_cache *cache) {
      return guarded(static_cast<aligned_cache *>(nullptr),
                     [&]() -> aligned_cache * { return asReader(cache)->clone().release(); });
    },
    [](aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t *strides) {
      return guarded(-1, [&] { return asDevice(cache)->appendFrom(data, /*onHost=*/true, counts, count, strides) ? 0 : -1; });
    },
    [](const aligned_cache *cache, int64_t entry) { return asDevice(cache)->length(entry); },
    [](aligned_cache *cache, int64_t entry) { return guarded(-1, [&] { return asDevice(cache)->release(entry) ? 0 : -1; }); },
    [](const aligned_cache *cache) { return asDevice(cache)->freeBlocks(); },
    [](const aligned_cache *cache, int bits, void *out) {
      return guarded(-1, [&] {
        aligned_cache *host = asReader(cache)->download();
        if (!host)
          return -1;
        int failed = aligned_cache_join(host, bits, out);
        aligned_cache_destroy(host);
        return failed;
      });
    },
    [](aligned_cache *cache, int64_t tokens) { return guarded(-1, [&] { return asDevice(cache)->truncate(tokens) ? 0 : -1; }); },
    [](aligned_cache *cache, int32_t planes) {
      return guarded(-1, [&] { return asDevice(cache)->dropPlanes(planes) ? 0 : -1; });
    },
    [](const aligned_cache *cache) { return asDevice(cache)->bytes(); },
};

} // namespace

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

int DeviceCache::residentPlanes() const {
  int planes = 0;
  for (int64_t left = layers; left > 0; ++planes)
    left -= format.width[planes] / 4;
  return planes;
}

bool DeviceCache::allocate(Storage &storage, int64_t tokens) const {
  int64_t blocks = pages ? product(kv_heads, table.physicalBlocks()) : product(rows, tokens / block);
  for (int p = 0; p < residentPlanes(); ++p)
    if (!storage.plane[p].allocate(context(), product(blocks, blockBytes(p))))
      return false;
  return storage.exponent.allocate(context(), product(blocks, exponentBlockBytes()));
}

void DeviceCache::publish() {
  for (int p = 0; p < ALIGNED_MAX_PLANES; ++p)
    plane[p] = storage.plane[p].as<void>();
  exponent = storage.exponent.as<uint8_t>();
  channel_max = maxima.as<float>();
  channel_mean = means.as<float>();
  open = openTokens.as<void>();
  escape = escapeList.as<aligned_escape>();
  escape_capacity = escapeList.bytes() / int64_t(sizeof(aligned_escape));
  pages = pageTable.as<const int32_t>();
  lengths = lengthList.as<int64_t>();
}

bool DeviceCache::push(size_t first, size_t end, Stream stream) {
  auto *bytes = reinterpret_cast<const char *>(static_cast<const aligned_cache *>(this));
  return copyToDevice(structure() + first, bytes + first, end - first, stream);
}
#define ALIGNED_PUSH(first, end, stream) push(offsetof(aligned_cache, first), offsetof(aligned_cache, end), stream)

template <typename Body> bool DeviceCache::inOrder(Body body) {
  Scope scope(context());
  Stream stream;
  if (!currentStream(context(), stream) || !order.enter(context(), stream))
    return false;
  bool done = body(stream);
  return order.leave(stream) && done; // what was queued before a failure has a place in the order, too
}

std::unique_ptr<DeviceCache> DeviceCache::create(std::shared_ptr<Program> program, const aligned_format &format, int64_t batch,
                                                 int64_t kvHeads, int64_t headDim, int64_t capacity, int64_t physical, int planes,
                                                 int64_t escapeRoom) {
  // A cache on the host refuses the same formats and sizes, in the same words.
  aligned_cache *model = aligned_cache_create(&format, 1, 1, headDim, 0);
  if (!model)
    return nullptr;
  aligned_cache_destroy(model);
  if (batch < 1 || kvHeads < 1 || product(batch, kvHeads, headDim, block, sizeof(float)) < 0)
    return fail("expected at least one batch and head, got " + std::to_string(batch) + " x " + std::to_string(kvHeads)), nullptr;
  if (capacity < 0 || capacity > std::numeric_limits<int64_t>::max() - block)
    return fail("expected a capacity of 0 or more tokens, got " + std::to_string(capacity)), nullptr;
  if (physical > BlockTable::mostBlocks)
    return fail("expected 0 to " + std::to_string(BlockTable::mostBlocks) + " pages, got " + std::to_string(physical)), nullptr;
  std::unique_ptr<DeviceCache> cache(new DeviceCache(std::move(program), format, headDim));
  DeviceCache &c = *cache;
  c.format = format;
  c.batch = batch;
  c.kv_heads = kvHeads;
  c.rows = batch * kvHeads;
  c.head_dim = headDim;
  c.capacity = roundedUp(capacity);
  c.location = ALIGNED_LOCATION_CUDA;
  for (int p = 0; p < format.planes && p < planes; ++p)
    c.layers += format.width[p] / 4;
  c.entryLengths.assign(batch, 0);
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, &functions);
  bool done = c.inOrder([&](Stream stream) {
    const Context &context = c.context();
    if (physical >= 0) {
      if (!c.table.allocate(batch, c.capacity / block, physical))
        return fail("out of memory on the host"), false;
      if (!c.pageTable.allocate(context, std::max<int64_t>(c.table.bytes(), sizeof(int32_t))) ||
          !copyToDevice(c.pageTable.address(), c.table.data(), c.table.bytes(), stream))
        return false;
      c.pages = c.pageTable.as<const int32_t>();
    }
    if (!c.allocate(c.storage, c.capacity) || !c.structureMemory.allocate(context, sizeof(aligned_cache)) ||
        !c.maxima.allocate(context, c.summaryBytes()) || !c.means.allocate(context, c.hasMeans() ? c.summaryBytes() : 0) ||
        !c.openTokens.allocate(context, product(c.rows, headDim, block, c.elementBytes())) ||
        !c.escapeList.allocate(context, product(escapeRoom, sizeof(aligned_escape))) ||
        !c.countList.allocate(context, product(batch, sizeof(int32_t))) || !c.escapesSeen.allocate(context))
      return false;
    c.publish();
    return clear(c.maxima.address(), c.maxima.bytes(), stream) && clear(c.means.address(), c.means.bytes(), stream) &&
           c.push(0, sizeof(aligned_cache), stream);
  });
  return done ? std::move(cache) : nullptr;
}

int64_t DeviceCache::bytes() const {
  int64_t sum = storage.exponent.bytes();
  for (const Memory &plane : storage.plane)
    sum += plane.bytes();
  for (const Memory *memory : {&structureMemory, &maxima, &means, &openTokens, &escapeList, &pageTable, &lengthList, &countList})
    sum += memory->bytes();
  return sum;
}

template <typename Copy> bool DeviceCache::forBlocks(int64_t otherCapacity, Copy copy) const {
  for (int p = -1; p < residentPlanes(); ++p) {
    const Memory &memory = p < 0 ? storage.exponent : storage.plane[p];
    int64_t bytes = p < 0 ? exponentBlockBytes() : blockBytes(p);
    if (pages || otherCapacity == capacity) {
      if (!copy(p, memory.address(), 0, memory.bytes()))
        return false;
      continue;
    }
    for (int64_t row = 0; row < rows; ++row)
      if (int64_t used = entryLengths[row / kv_heads] / block * bytes)
        if (!copy(p, memory.address() + row * (capacity / block) * bytes, row * (otherCapacity / block) * bytes, used))
          return false;
  }
  return true;
}

bool DeviceCache::grow(int64_t tokens, Stream stream) {
  Storage larger;
  if (!allocate(larger, tokens))
    return false;
  auto copy = [&](int p, Address from, int64_t offset, int64_t bytes) {
    return copyOnDevice((p < 0 ? larger.exponent : larger.plane[p]).address() + offset, from, bytes, stream);
  };
  if (!forBlocks(tokens, copy) || !wait(stream))
    return false;
  std::swap(storage, larger);
  capacity = tokens;
  publish();
  return ALIGNED_PUSH(capacity, channel_max, stream);
}

bool DeviceCache::growEscapes(int64_t room, Stream stream) {
  Memory larger;
  if (!larger.allocate(context(), product(room, sizeof(aligned_escape))) ||
      !copyOnDevice(larger.address(), escapeList.address(), escapeList.bytes(), stream) || !wait(stream))
    return false;
  std::swap(escapeList, larger);
  publish();
  return ALIGNED_PUSH(escape, escapes, stream) && ALIGNED_PUSH(escape_capacity, location, stream);
}

bool DeviceCache::ownLengths(Stream stream) {
  if (lengths)
    return true;
  Memory list;
  if (!list.allocate(context(), batch * int64_t(sizeof(int64_t))) ||
      !copyToDevice(list.address(), entryLengths.data(), list.bytes(), stream))
    return false;
  lengthList = std::move(list);
  publish();
  return ALIGNED_PUSH(lengths, escape_capacity, stream);
}

bool DeviceCache::writeCounts(const std::vector<int64_t> &counts, Stream stream) {
  if (counts == countsThere)
    return true;
  countsThere.clear();
  std::vector<int32_t> narrow(counts.begin(), counts.end());
  if (!copyToDevice(countList.address(), narrow.data(), countList.bytes(), stream))
    return false;
  countsThere = counts;
  return true;
}

//===----------------------------------------------------------------------===//
// Append
//===----------------------------------------------------------------------===//

bool DeviceCache::plan(const int64_t *counts, int64_t count, Growth &growth) const {
  growth = {};
  for (int64_t n = 0; n < batch; ++n) {
    int64_t each = counts ? counts[n] : count, length = entryLengths[n];
    if (each < 0 || each > std::numeric_limits<int32_t>::max() - block)
      return fail("expected 0 or more tokens to append, and less than 2^31, got " + std::to_string(each)), false;
    growth.counts.push_back(each);
    growth.most = std::max(growth.most, each);
    growth.longest = std::max(growth.longest, length + each);
    growth.newBlocks += (length + each) / block - length / block;
    if (pages && length + each > capacity)
      return fail("expected at most " + std::to_string(capacity) + " tokens in batch entry " + std::to_string(n) + ", got " +
                  std::to_string(length + each)),
             false;
  }
  if (pages && growth.newBlocks > table.freeBlocks())
    return fail("expected " + std::to_string(growth.newBlocks) + " free pages, got " + std::to_string(table.freeBlocks()) +
                " of " + std::to_string(table.physicalBlocks())),
           false;
  return true;
}

bool DeviceCache::planStep(Growth &growth) const {
  if (!plan(nullptr, 1, growth))
    return false;
  if (growth.longest > capacity)
    return fail("expected a cache with room for " + std::to_string(growth.longest) + " tokens, got a capacity of " +
                std::to_string(capacity)),
           false;
  return true;
}

bool DeviceCache::checkEscapes() {
  escapes = *escapesSeen.get();
  if (escapes <= escape_capacity)
    return true;
  return fail("expected at most " + std::to_string(escape_capacity) +
              " values that are not finite in a cache on the device, got " + std::to_string(escapes) +
              ": what is beyond is lost"),
         false;
}

Symbols DeviceCache::symbols(int64_t most) const { return {batch, kv_heads, capacity, 1, (most + block - 1) / block + 1}; }

int64_t DeviceCache::scratchBytes(int64_t most) const {
  int64_t sum = 0;
  for (const Argument &argument : append->arguments)
    if (argument.kind == Argument::Scratch) {
      int64_t bytes = argument.bytes(symbols(most));
      if (bytes < 0 || __builtin_add_overflow(sum, paddedBytes(bytes), &sum))
        return -1;
    }
  return sum;
}

bool DeviceCache::launchAppend(Address data, Address counts, int64_t most, const int64_t strides[4], Address scratch,
                               Stream stream) {
  Parameters parameters(append->arguments.size());
  for (size_t i = 0; i < append->arguments.size(); ++i) {
    const Argument &argument = append->arguments[i];
    switch (argument.meaning) {
    case Argument::Appended:
      parameters.set(i, structure());
      break;
    case Argument::Data:
      parameters.set(i, data);
      break;
    case Argument::Counts:
      parameters.set(i, counts);
      break;
    case Argument::Stride:
      parameters.set(i, strides[argument.stride]);
      break;
    case Argument::Size:
      parameters.setSize(i, argument, argument.size.at(symbols(most)));
      break;
    default: // scratch
      parameters.set(i, scratch);
      scratch += paddedBytes(argument.bytes(symbols(most)));
      break;
    }
  }
  return program->launch(append->launches, symbols(most), parameters, stream) &&
         copyToHost(const_cast<int64_t *>(escapesSeen.get()), structure() + offsetof(aligned_cache, escapes), sizeof(int64_t),
                    stream);
}

bool DeviceCache::preparePages(const Growth &growth, Stream stream) {
  if (!pages || !growth.newBlocks)
    return true;
  // What a table says of blocks that are not full yet is nobody's: it may be written before the append is certain.
  int64_t taken = 0;
  for (int64_t n = 0; n < batch; ++n) {
    int64_t first = entryLengths[n] / block, end = (entryLengths[n] + growth.counts[n]) / block;
    std::vector<int32_t> places;
    for (int64_t index = first; index < end; ++index)
      places.push_back(table.next(taken++));
    if (!copyToDevice(pageTable.address() + (n * table.blocksPerEntry() + first) * sizeof(int32_t), places.data(),
                      places.size() * sizeof(int32_t), stream))
      return false;
  }
  return true;
}

void DeviceCache::account(const Growth &growth) {
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t index = entryLengths[n] / block; pages && index < (entryLengths[n] + growth.counts[n]) / block; ++index)
      table.take(n, index);
    entryLengths[n] += growth.counts[n];
  }
  tokens = growth.longest;
}

bool DeviceCache::appendFrom(const void *data, bool onHost, const int64_t *counts, int64_t count, const int64_t strides[4]) {
  Growth growth;
  if (!plan(counts, count, growth))
    return false;
  if (growth.most == 0)
    return true;
  if (!data || !strides)
    return fail("expected " + std::to_string(growth.most) + " tokens to append, got null " + (data ? "strides" : "data")), false;
  if (!append)
    return fail("expected kernels in the program that append to a " + formatText(format) + ", head_dim " +
                std::to_string(head_dim) + ", got none"),
           false;
  if (!checkEscapes() || !checkGrids(growth.most))
    return false;

  // Tokens from the host are copied as they will lie on the device, contiguous.
  int64_t contiguous[4] = {kv_heads * growth.most * head_dim, growth.most * head_dim, head_dim, 1};
  std::vector<char> packed;
  int64_t values = product(rows, growth.most, head_dim), listed = 0;
  if (onHost) {
    if (product(values, elementBytes()) < 0)
      return fail("expected tokens that fit in memory, got sizes that overflow"), false;
    if (counts || !std::equal(strides, strides + 4, contiguous)) {
      packed.resize(values * elementBytes());
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t t = 0; t < growth.counts[row / kv_heads]; ++t) {
          const char *from = static_cast<const char *>(data) +
                             (row / kv_heads * strides[0] + row % kv_heads * strides[1] + t * strides[2]) * elementBytes();
          char *to = packed.data() + (row * growth.most + t) * head_dim * elementBytes();
          if (strides[3] == 1)
            std::memcpy(to, from, head_dim * elementBytes());
          else
            for (int64_t c = 0; c < head_dim; ++c)
              std::memcpy(to + c * elementBytes(), from + c * strides[3] * elementBytes(), elementBytes());
        }
      data = packed.data();
    }
    listed = countEscapes(format, data, values);
  }

  return inOrder([&](Stream stream) {
    if (growth.longest > capacity) {
      int64_t geometric = (capacity + capacity / 2) / block * block;
      if (!grow(std::max(roundedUp(growth.longest), geometric), stream))
        return false;
    }
    int64_t mayBe = escapeBound + listed + escapes; // of these the host has seen some twice
    if (mayBe > escape_capacity && listed && !growEscapes(2 * mayBe, stream))
      return false;
    if ((counts && !ownLengths(stream)) || !writeCounts(growth.counts, stream) || !preparePages(growth, stream))
      return false;
    // Work memory: the tokens, if they come from the host, then the kernels' own.
    int64_t dataBytes = onHost ? paddedBytes(values * elementBytes()) : 0, scratch = scratchBytes(growth.most);
    std::lock_guard<std::mutex> lock(program->mutex);
    Workspace &work = program->appendWork;
    if (!work.reserve(context(), scratch < 0 ? -1 : dataBytes + scratch) || !work.order.enter(context(), stream))
      return false;
    Address own = work.memory.address();
    bool queued = (!onHost || copyToDevice(own, data, values * elementBytes(), stream)) &&
                  launchAppend(onHost ? own : reinterpret_cast<Address>(data), countList.address(), growth.most,
                               onHost ? contiguous : strides, own + dataBytes, stream);
    if (!work.order.leave(stream) || !queued)
      return false;
    escapeBound += listed;
    account(growth);
    return true;
  });
}

//===----------------------------------------------------------------------===//
// Forgetting
//===----------------------------------------------------------------------===//

bool DeviceCache::waitForEscapes(Stream stream) {
  int64_t there = 0;
  if (!copyToHost(&there, structure() + offsetof(aligned_cache, escapes), sizeof there, stream) || !wait(stream))
    return false;
  *escapesSeen.get() = there;
  return checkEscapes();
}

bool DeviceCache::release(int64_t entry) {
  return inOrder([&](Stream stream) {
    if (!waitForEscapes(stream) || !ownLengths(stream))
      return false;
    std::vector<aligned_escape> list(escapes);
    if (!copyToHost(list.data(), escapeList.address(), escapes * int64_t(sizeof(aligned_escape)), stream) || !wait(stream))
      return false;
    list.erase(std::remove_if(list.begin(), list.end(), [&](const aligned_escape &e) { return e.row / kv_heads == entry; }),
               list.end());

    entryLengths[entry] = 0;
    tokens = *std::max_element(entryLengths.begin(), entryLengths.end());
    escapes = *escapesSeen.get() = list.size();
    if (pages)
      table.give(entry, 0);
    int64_t first = entry * kv_heads * head_dim * int64_t(sizeof(float)), bytes = kv_heads * head_dim * int64_t(sizeof(float));
    int64_t tableRow = table.blocksPerEntry() * int64_t(sizeof(int32_t));
    return copyToDevice(escapeList.address(), list.data(), list.size() * sizeof(aligned_escape), stream) &&
           ALIGNED_PUSH(escapes, layers, stream) &&
           copyToDevice(lengthList.address() + entry * sizeof(int64_t), &entryLengths[entry], sizeof(int64_t), stream) &&
           ALIGNED_PUSH(tokens, capacity, stream) && clear(maxima.address() + first, bytes, stream) &&
           (!channel_mean || clear(means.address() + first, bytes, stream)) &&
           (!pages || copyToDevice(pageTable.address() + entry * tableRow, table.data() + entry * table.blocksPerEntry(),
                                   tableRow, stream));
  });
}

bool DeviceCache::truncate(int64_t kept) {
  return inOrder([&](Stream stream) {
    tokens = kept;
    for (int64_t &length : entryLengths)
      length = std::min(length, kept);
    return ALIGNED_PUSH(tokens, capacity, stream) &&
           (!lengths || copyToDevice(lengthList.address(), entryLengths.data(), lengthList.bytes(), stream));
  });
}

bool DeviceCache::dropPlanes(int planes) {
  return inOrder([&](Stream stream) {
    if (!wait(stream))
      return false;
    for (int p = planes, resident = residentPlanes(); p < resident; ++p) {
      layers -= format.width[p] / 4;
      storage.plane[p].reset();
    }
    publish();
    return ALIGNED_PUSH(plane, exponent, stream) && ALIGNED_PUSH(layers, pages, stream);
  });
}

//===----------------------------------------------------------------------===//
// Copies
//===----------------------------------------------------------------------===//

std::unique_ptr<DeviceCache> DeviceCache::clone() {
  std::unique_ptr<DeviceCache> copy = create(program, format, batch, kv_heads, head_dim, capacity,
                                             pages ? table.physicalBlocks() : -1, residentPlanes(), escape_capacity);
  if (!copy)
    return nullptr;
  DeviceCache &to = *copy;
  if (pages)
    to.table.copyFrom(table);
  to.entryLengths = entryLengths;
  to.tokens = tokens;
  to.escapes = *to.escapesSeen.get() = *escapesSeen.get();
  to.escapeBound = escapeBound;
  bool done = inOrder([&](Stream stream) {
    auto same = [&](const Memory &target, const Memory &source) {
      return copyOnDevice(target.address(), source.address(), source.bytes(), stream);
    };
    for (int p = 0; p < residentPlanes(); ++p)
      if (!same(to.storage.plane[p], storage.plane[p]))
        return false;
    return to.order.enter(context(), stream) && same(to.storage.exponent, storage.exponent) && same(to.maxima, maxima) &&
           same(to.means, means) && same(to.openTokens, openTokens) && same(to.escapeList, escapeList) &&
           same(to.pageTable, pageTable) && to.push(0, sizeof(aligned_cache), stream) &&
           copyOnDevice(to.structure() + offsetof(aligned_cache, escapes), structure() + offsetof(aligned_cache, escapes),
                        sizeof(int64_t), stream) &&
           copyToHost(const_cast<int64_t *>(to.escapesSeen.get()), to.structure() + offsetof(aligned_cache, escapes),
                      sizeof(int64_t), stream) &&
           (!lengths || to.ownLengths(stream)) && to.order.leave(stream);
  });
  return done ? std::move(copy) : nullptr;
}

std::unique_ptr<DeviceCache> DeviceCache::upload(std::shared_ptr<Program> program, const aligned_cache &host) {
  if (host.location != ALIGNED_LOCATION_HOST)
    return fail("expected a cache on the host, got one in location " + std::to_string(host.location)), nullptr;
  int64_t physical = -1;
  int planes = 0;
  for (int64_t left = host.layers; left > 0; ++planes)
    left -= host.format.width[planes] / 4;
  if (host.pages) {
    physical = aligned_cache_free_blocks(&host);
    for (int64_t n = 0; n < host.batch; ++n)
      physical += aligned_cache_length(&host, n) / block;
  }
  std::unique_ptr<DeviceCache> cache =
      create(std::move(program), host.format, host.batch, host.kv_heads, host.head_dim,
             std::max(host.capacity, roundedUp(host.tokens)), physical, planes, std::max<int64_t>(1024, 2 * host.escapes));
  if (!cache)
    return nullptr;
  DeviceCache &c = *cache;
  for (int64_t n = 0; n < host.batch; ++n)
    c.entryLengths[n] = aligned_cache_length(&host, n);
  c.tokens = host.tokens;
  c.escapes = *c.escapesSeen.get() = host.escapes;
  c.escapeBound = countEscapes(host.format, host.open, host.rows * block * host.head_dim); // open tokens are not listed yet
  if (host.pages)
    c.table.restore(host.pages);
  bool done = c.inOrder([&](Stream stream) {
    auto copy = [&](int p, Address to, int64_t offset, int64_t bytes) {
      const void *from = p < 0 ? host.exponent : host.plane[p];
      return copyToDevice(to, static_cast<const char *>(from) + offset, bytes, stream);
    };
    auto whole = [&](const Memory &to, const void *from) { return copyToDevice(to.address(), from, to.bytes(), stream); };
    return c.forBlocks(host.capacity, copy) && whole(c.maxima, host.channel_max) && whole(c.means, host.channel_mean) &&
           whole(c.openTokens, host.open) &&
           copyToDevice(c.escapeList.address(), host.escape, host.escapes * int64_t(sizeof(aligned_escape)), stream) &&
           copyToDevice(c.pageTable.address(), host.pages, host.pages ? c.table.bytes() : 0, stream) &&
           c.push(0, sizeof(aligned_cache), stream) && (!host.lengths || c.ownLengths(stream));
  });
  return done ? std::move(cache) : nullptr;
}

aligned_cache *DeviceCache::download() {
  struct Destroy {
    void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
  };
  std::unique_ptr<aligned_cache, Destroy> host(
      pages ? aligned_cache_create_paged(&format, batch, kv_heads, head_dim, table.physicalBlocks(), capacity)
            : aligned_cache_create(&format, batch, kv_heads, head_dim, capacity));
  if (!host || aligned_cache_drop_planes(host.get(), residentPlanes()))
    return nullptr;
  bool done = inOrder([&](Stream stream) {
    auto copy = [&](int p, Address from, int64_t offset, int64_t bytes) {
      return copyToHost(static_cast<char *>(p < 0 ? static_cast<void *>(host->exponent) : host->plane[p]) + offset, from, bytes,
                        stream);
    };
    auto whole = [&](void *to, const Memory &from) { return copyToHost(to, from.address(), from.bytes(), stream); };
    if (!waitForEscapes(stream))
      return false;
    std::vector<aligned_escape> list(escapes);
    return forBlocks(capacity, copy) && whole(host->channel_max, maxima) && whole(host->channel_mean, means) &&
           whole(host->open, openTokens) &&
           copyToHost(list.data(), escapeList.address(), escapes * int64_t(sizeof(aligned_escape)), stream) && wait(stream) &&
           aligned_cache_restore(host.get(), tokens, lengths ? entryLengths.data() : nullptr, pages ? table.data() : nullptr,
                                 list.data(), escapes) == 0;
  });
  return done ? host.release() : nullptr;
}

//===----------------------------------------------------------------------===//
// C interface
//===----------------------------------------------------------------------===//

DeviceCache *cuda::deviceCache(const char *what, aligned_cache *cache) {
  if (!cache || cache->location != ALIGNED_LOCATION_CUDA) {
    fail(std::string("expected ") + what + " on the device, got " + (cache ? "a cache on the host" : "null"));
    return nullptr;
  }
  return asDevice(cache);
}

namespace {

aligned_cache *createCache(aligned_program *program, const aligned_format *format, int64_t batch, int64_t kvHeads,
                           int64_t headDim, int64_t capacity, int64_t physical) {
  return guarded(static_cast<aligned_cache *>(nullptr), [&]() -> aligned_cache * {
    if (!program || !format)
      return fail(std::string("expected a ") + (program ? "format" : "program") + ", got null"), nullptr;
    if (!program->program->appendTo(*format, headDim))
      return fail("expected kernels in the program that append to a " + formatText(*format) + ", head_dim " +
                  std::to_string(headDim) + ", got none"),
             nullptr;
    return DeviceCache::create(program->program, *format, batch, kvHeads, headDim, capacity, physical).release();
  });
}

} // namespace

aligned_cache *aligned_program_create_cache(aligned_program *program, const aligned_format *format, int64_t batch,
                                            int64_t kvHeads, int64_t headDim, int64_t capacity) {
  return createCache(program, format, batch, kvHeads, headDim, capacity, -1);
}

aligned_cache *aligned_program_create_paged_cache(aligned_program *program, const aligned_format *format, int64_t batch,
                                                  int64_t kvHeads, int64_t headDim, int64_t physicalBlocks, int64_t maxTokens) {
  if (physicalBlocks < 0)
    return fail("expected 0 to " + std::to_string(BlockTable::mostBlocks) + " pages, got " + std::to_string(physicalBlocks)),
           nullptr;
  return createCache(program, format, batch, kvHeads, headDim, maxTokens, physicalBlocks);
}

int aligned_cuda_cache_append_device(aligned_cache *cache, const void *data, const int64_t *counts, int64_t count,
                                     const int64_t strides[4]) {
  return guarded(-1, [&] {
    DeviceCache *device = deviceCache("a cache", cache);
    return device && device->appendFrom(data, /*onHost=*/false, counts, count, strides) ? 0 : -1;
  });
}

aligned_cache *aligned_cuda_cache_upload(aligned_program *program, const aligned_cache *host) {
  return guarded(static_cast<aligned_cache *>(nullptr),
                 [&]() -> aligned_cache * { return DeviceCache::upload(program->program, *host).release(); });
}

aligned_cache *aligned_cuda_cache_download(const aligned_cache *cache) {
  return guarded(static_cast<aligned_cache *>(nullptr), [&]() -> aligned_cache * {
    DeviceCache *device = deviceCache("a cache", const_cast<aligned_cache *>(cache));
    return device ? device->download() : nullptr;
  });
}
