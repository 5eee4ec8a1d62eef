// An append is the kernels' work; the host sees to room, pages, and where tokens come from. Whatever can fail comes before the first launch.
#include "DeviceCache.h"

#include "../HostCache.h"
#include "aligned/Runtime/Cuda.h"
#include "aligned/Storage/Layout.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>

using namespace aligned;
using namespace aligned::cuda;

namespace {

constexpr int64_t kTile = ALIGNED_TILE;

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
};
using HostCache = std::unique_ptr<aligned_cache, Destroy>;

template <typename Bits> int64_t countTokens(const Bits *values, int64_t tokens, int64_t channels, Bits magnitude, Bits limit) {
  int64_t found = 0;
  for (int64_t t = 0; t < tokens; ++t, values += channels)
    found += std::any_of(values, values + channels, [=](Bits x) { return (x & magnitude) >= limit; });
  return found;
}

/// Tokens that hold a value which no planes of the format can hold. (A scale beyond the largest code can't be told from the token alone.)
int64_t countAsides(const aligned_format &format, const void *values, int64_t tokens, int64_t channels) {
  if (format.element == ALIGNED_ELEMENT_F32) // what is no half overflows in float formats
    return countTokens<uint32_t>(static_cast<const uint32_t *>(values), tokens, channels, 0x7fffffff,
                                 format.kind == ALIGNED_FORMAT_FLOAT ? 0x477ff000 : 0x7f800000);
  return countTokens<uint16_t>(static_cast<const uint16_t *>(values), tokens, channels, 0x7fff, format.element == ALIGNED_ELEMENT_BF16 ? 0x7f80 : 0x7c00);
}

bool failWithoutKernels(const aligned_format &format, int64_t headDim) {
  return fail("expected kernels in the program that append to a " + formatText(format) + ", head_dim " + std::to_string(headDim) + ", got none"), false;
}

DeviceCache *asDevice(aligned_cache *cache) { return static_cast<DeviceCache *>(cache); }
const DeviceCache *asDevice(const aligned_cache *cache) { return static_cast<const DeviceCache *>(cache); }
/// Reading a cache queues work, too.
DeviceCache *asReader(const aligned_cache *cache) { return const_cast<DeviceCache *>(asDevice(cache)); }

template <typename Body> int status(Body body) {
  return guarded(-1, [&] { return body() ? 0 : -1; });
}

const aligned_device_caches functions = {
    [](aligned_cache *cache) { delete asDevice(cache); },
    [](const aligned_cache *cache) { return guarded(static_cast<aligned_cache *>(nullptr), [&]() -> aligned_cache * { return asReader(cache)->fork().release(); }); },
    [](aligned_cache *cache, const float *offset) { return status([&] { return asDevice(cache)->setOffset(offset); }); },
    [](aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t *strides) {
      return status([&] { return asDevice(cache)->appendFrom(data, /*onHost=*/true, counts, count, strides); });
    },
    [](const aligned_cache *cache, int64_t entry) { return asDevice(cache)->length(entry); },
    [](aligned_cache *cache, int64_t entry) { return status([&] { return asDevice(cache)->release(entry); }); },
    [](const aligned_cache *cache) { return asDevice(cache)->freePages(); },
    [](const aligned_cache *cache) { return aligned_cuda_cache_download(cache); },
    [](const aligned_cache *like, const aligned_cache *host) {
      return guarded(static_cast<aligned_cache *>(nullptr), [&]() -> aligned_cache * { return DeviceCache::upload(asDevice(like)->program, *host).release(); });
    },
    [](aligned_cache *cache, int64_t entry, int64_t tokens) { return status([&] { return asDevice(cache)->truncate(entry, tokens); }); },
    [](aligned_cache *cache, int32_t planes) { return status([&] { return asDevice(cache)->dropPlanes(planes); }); },
    [](const aligned_cache *cache) { return asDevice(cache)->bytes(); },
};

} // namespace

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

int64_t DeviceCache::tileBytes(int array) const {
  if (array < kCodes)
    return storage::bytesPerTile(format.width[array], head_dim);
  return isFixed() ? kTile : 0;
}

int64_t DeviceCache::summaryBytes(int which) const {
  const bool isKey = format.role == ALIGNED_ROLE_KEY;
  const int64_t values = rows * head_dim, floats = values * int64_t(sizeof(float));
  switch (which) {
  case Scales:
    return isFixed() ? rows * int64_t(sizeof(aligned_scales)) : 0;
  case Sum:
    return isFixed() && !isKey ? values * int64_t(sizeof(int64_t)) : 0;
  case Offset:
    return isFixed() && isKey ? floats : 0;
  default:
    return floats;
  }
}

void *DeviceCache::summaryOf(const aligned_cache &host, int which) {
  void *const summaries[] = {host.scales, host.sum, host.offset, host.channel_max};
  return summaries[which];
}

bool DeviceCache::allocate(Tiles &tiles, int64_t tokens, int64_t physical, Stream stream) const {
  const int64_t count = physical < 0 ? product(rows, tokens / kTile) : product(kv_heads, physical);
  for (int array = 0; array <= kCodes; ++array) {
    if (array < kCodes && array >= planes)
      continue;
    tiles[array] = std::make_shared<Memory>();
    const int64_t bytes = product(count, tileBytes(array)), all = bytes > 0 ? bytes + storage::kSlack : bytes;
    if (!tiles[array]->allocate(context(), all) || !clear(tiles[array]->address(), all, stream))
      return false;
  }
  return true;
}

bool DeviceCache::Asides::allocate(const DeviceCache &cache, int64_t room) {
  capacity = room;
  const int64_t values = product(room, cache.head_dim);
  return list.allocate(cache.context(), product(room, sizeof(aligned_aside))) && this->values.allocate(cache.context(), product(values, sizeof(float))) &&
         patterns.allocate(cache.context(), product(values, cache.elementBytes()));
}

bool DeviceCache::Asides::copyFrom(const Asides &other, Stream stream) {
  return copyOnDevice(list.address(), other.list.address(), other.list.bytes(), stream) &&
         copyOnDevice(values.address(), other.values.address(), other.values.bytes(), stream) &&
         copyOnDevice(patterns.address(), other.patterns.address(), other.patterns.bytes(), stream);
}

bool DeviceCache::allocateSummaries(int64_t asideRoom, Stream stream) {
  for (int which = 0; which < kSummaries; ++which)
    if (!summaries[which].allocate(context(), summaryBytes(which)) || !clear(summaries[which].address(), summaries[which].bytes(), stream))
      return false;
  return structureMemory.allocate(context(), sizeof(aligned_device_cache)) && asideLists.allocate(*this, asideRoom) &&
         countList.allocate(context(), product(batch, sizeof(int32_t))) && asidesSeen.allocate(context());
}

void DeviceCache::publish() {
  auto at = [&](int array) { return tiles[array] ? tiles[array]->as<void>() : nullptr; };
  for (int p = 0; p < ALIGNED_MAX_PLANES; ++p)
    plane[p] = at(p);
  code = static_cast<uint8_t *>(at(kCodes));
  scales = summaries[Scales].as<aligned_scales>();
  sum = summaries[Sum].as<int64_t>();
  offset = summaries[Offset].as<float>();
  channel_max = summaries[Maxima].as<float>();
  pages = pageTable.as<const int32_t>();
  lengths = lengthList.as<int64_t>();
  aside = asideLists.list.as<aligned_aside>();
  aside_values = asideLists.values.as<float>();
}

bool DeviceCache::push(Stream stream, const aligned_cache_state *state) {
  publish();
  aligned_device_cache there = {};
  there.cache = *this;
  there.aside_capacity = asideLists.capacity;
  there.aside_patterns = asideLists.patterns.as<void>();
  there.offset_is_set = offsetIsSet;
  auto copy = [&](size_t first, size_t end) {
    return copyToDevice(structure() + first, reinterpret_cast<const char *>(&there) + first, int64_t(end - first), stream);
  };
  if (state) {
    there.cache.bias = state->bias;
    there.cache.asides = state->asides;
    there.bias_is_settled = state->bias_is_settled;
    return copy(0, sizeof there);
  }
  // Between these lies what kernels write.
  return copy(offsetof(aligned_cache, capacity), offsetof(aligned_cache, bias)) && copy(offsetof(aligned_cache, scales), offsetof(aligned_cache, asides)) &&
         copy(offsetof(aligned_device_cache, aside_capacity), offsetof(aligned_device_cache, bias_is_settled));
}

template <typename Body> bool DeviceCache::inOrder(Body body) {
  Scope scope(context());
  Stream stream;
  if (!currentStream(context(), stream) || !order.enter(context(), stream))
    return false;
  bool done = body(stream);
  return order.leave(stream) && done; // what was queued before a failure has a place in the order, too
}

std::unique_ptr<DeviceCache> DeviceCache::create(std::shared_ptr<Program> program, const aligned_format &format, int64_t batch, int64_t kvHeads,
                                                 int64_t headDim, int64_t capacity, std::shared_ptr<Order> order) {
  // A cache on the host refuses the same formats and sizes, in the same words.
  if (!HostCache(aligned_cache_create(&format, 1, 1, headDim, 0)))
    return nullptr;
  if (batch < 1 || kvHeads < 1 || product(batch, kvHeads, headDim, kTile, sizeof(int64_t)) == kTooLarge)
    return fail("expected at least one batch and head, got " + std::to_string(batch) + " x " + std::to_string(kvHeads)), nullptr;
  if (capacity < 0 || capacity > std::numeric_limits<int64_t>::max() - kTile)
    return fail("expected a capacity of 0 or more tokens, got " + std::to_string(capacity)), nullptr;
  std::unique_ptr<DeviceCache> cache(new DeviceCache(std::move(program), format, headDim, std::move(order)));
  cache->format = format;
  cache->batch = batch;
  cache->kv_heads = kvHeads;
  cache->rows = batch * kvHeads;
  cache->head_dim = headDim;
  cache->capacity = pagesFor(capacity) * kTile;
  cache->planes = format.planes;
  cache->location = ALIGNED_LOCATION_CUDA;
  cache->entryLengths.assign(batch, 0);
  aligned_register_device_caches(ALIGNED_LOCATION_CUDA, &functions);
  return cache;
}

bool DeviceCache::allocate(int64_t physical, const aligned_cache_state &state, Stream stream) {
  if (physical >= 0) {
    if (!table.allocate(batch, capacity / kTile, physical))
      return fail("out of memory on the host"), false;
    if (!pageTable.allocate(context(), std::max<int64_t>(table.bytes(), sizeof(int32_t))) ||
        !copyToDevice(pageTable.address(), table.data(), table.bytes(), stream))
      return false;
  }
  return allocate(tiles, capacity, physical, stream) && allocateSummaries(std::max({kAsideRoom, rows, 2 * state.asides}), stream) && push(stream, &state);
}

std::unique_ptr<DeviceCache> DeviceCache::create(std::shared_ptr<Program> program, const aligned_format &format, int64_t batch, int64_t kvHeads,
                                                 int64_t headDim, int64_t capacity, int64_t physical) {
  if (physical > PageTable::mostPages)
    return fail("expected 0 to " + std::to_string(PageTable::mostPages) + " pages, got " + std::to_string(physical)), nullptr;
  std::unique_ptr<DeviceCache> cache = create(std::move(program), format, batch, kvHeads, headDim, capacity, std::make_shared<Order>());
  aligned_cache_state state = {};
  state.bias = format.kind == ALIGNED_FORMAT_FIXED ? storage::kHalfBias : 0;
  state.bias_is_settled = format.kind != ALIGNED_FORMAT_FIXED || format.element == ALIGNED_ELEMENT_F16;
  return cache && cache->inOrder([&](Stream stream) { return cache->allocate(physical, state, stream); }) ? std::move(cache) : nullptr;
}

int64_t DeviceCache::bytes() const {
  int64_t sum = 0;
  for (const std::shared_ptr<Memory> &memory : tiles)
    sum += memory ? memory->bytes() : 0;
  for (const Memory &memory : summaries)
    sum += memory.bytes();
  for (const Memory *memory : {&structureMemory, &asideLists.list, &asideLists.values, &asideLists.patterns, &pageTable, &lengthList, &countList})
    sum += memory->bytes();
  return sum;
}

bool DeviceCache::grow(int64_t tokens, Stream stream) {
  Tiles larger;
  if (!allocate(larger, tokens, -1, stream))
    return false;
  for (int array = 0; array <= kCodes; ++array)
    for (int64_t row = 0; row < rows && tiles[array]; ++row)
      if (!copyOnDevice(larger[array]->address() + row * (tokens / kTile) * tileBytes(array), tiles[array]->address() + row * (capacity / kTile) * tileBytes(array),
                        pagesFor(length(row / kv_heads)) * tileBytes(array), stream))
        return false;
  if (!wait(stream))
    return false;
  tiles.swap(larger);
  capacity = tokens;
  return push(stream);
}

bool DeviceCache::growAsides(int64_t room, Stream stream) {
  Asides larger;
  if (!larger.allocate(*this, room) || !larger.copyFrom(asideLists, stream) || !wait(stream))
    return false;
  std::swap(asideLists, larger);
  return push(stream);
}

bool DeviceCache::ownLengths(Stream stream) {
  if (lengths)
    return true;
  Memory list;
  if (!list.allocate(context(), batch * int64_t(sizeof(int64_t))) || !copyToDevice(list.address(), entryLengths.data(), list.bytes(), stream))
    return false;
  lengthList = std::move(list);
  return push(stream);
}

bool DeviceCache::pushTable(int64_t entry, Stream stream) {
  const int64_t tiles = capacity / kTile, bytes = tiles * int64_t(sizeof(int32_t));
  return copyToDevice(pageTable.address() + entry * bytes, table.data() + entry * tiles, bytes, stream);
}

//===----------------------------------------------------------------------===//
// Append
//===----------------------------------------------------------------------===//

bool DeviceCache::checkKernels() const { return append || failWithoutKernels(format, head_dim); }

bool DeviceCache::plan(const int64_t *counts, int64_t count, Growth &growth) const {
  growth = {};
  for (int64_t n = 0; n < batch; ++n) {
    const int64_t each = counts ? counts[n] : count, longer = length(n) + each;
    if (each < 0 || each > std::numeric_limits<int32_t>::max() - kTile - length(n))
      return fail("expected 0 or more tokens to append, and less than 2^31 in all, got " + std::to_string(each)), false;
    growth.counts.push_back(each);
    growth.most = std::max(growth.most, each);
    growth.longest = std::max(growth.longest, longer);
    if (pages && longer > capacity)
      return fail("expected at most " + std::to_string(capacity) + " tokens in batch entry " + std::to_string(n) + ", got " + std::to_string(longer)), false;
  }
  return true;
}

bool DeviceCache::planStep(Growth &growth) const {
  if (!plan(nullptr, 1, growth))
    return false;
  if (growth.longest > capacity)
    return fail("expected a cache with room for " + std::to_string(growth.longest) + " tokens, got a capacity of " + std::to_string(capacity)), false;
  return true;
}

bool DeviceCache::checkAsides() {
  asides = *asidesSeen.get();
  if (asides <= asideLists.capacity)
    return true;
  return fail("expected at most " + std::to_string(asideLists.capacity) + " tokens with values that planes can't hold in a cache on the device, got " +
              std::to_string(asides) + ": those beyond are lost"),
         false;
}

bool DeviceCache::seeAsides(Stream stream) {
  return copyToHost(const_cast<int64_t *>(asidesSeen.get()), structure() + offsetof(aligned_cache, asides), sizeof(int64_t), stream);
}

bool DeviceCache::makeRoomAside(int64_t most, int64_t listed, Stream stream) {
  constexpr int64_t few = 8; // tokens, all of which have room
  if (listed && !(seeAsides(stream) && wait(stream)))
    return false;
  if (!checkAsides())
    return false;
  const int64_t wanted = std::max(2 * asides + rows * std::min(most, few), asides + listed);
  return wanted <= asideLists.capacity || growAsides(2 * wanted, stream);
}

bool DeviceCache::launch(const std::vector<Launch> &launches, Address data, Address counts, int64_t most, const int64_t *strides, Stream stream) {
  Parameters parameters(append->arguments.size());
  for (size_t i = 0; i < append->arguments.size(); ++i) {
    const Argument &argument = append->arguments[i];
    if (!argument.meaning && argument.kind == Kind::Scalar) {
      parameters.setSize(i, argument, symbols(most));
    } else if (argument.meaning == Name::Appended) {
      parameters.set(i, structure());
    } else if (argument.meaning == Name::Data) {
      parameters.set(i, data);
    } else if (argument.meaning == Name::Counts) {
      parameters.set(i, counts);
    } else if (argument.meaning >= Name::Stride0 && argument.meaning <= Name::Stride3) {
      parameters.set(i, strides ? strides[int(*argument.meaning) - int(Name::Stride0)] : int64_t(0));
    } else {
      return fail("expected no scratch memory for kernels that append, got an argument " + argument.name), false;
    }
  }
  return program->launch(launches, symbols(most), parameters, stream) && seeAsides(stream);
}

bool DeviceCache::launchAppend(Address data, Address counts, int64_t most, const int64_t strides[4], Stream stream) {
  return launch(append->launches, data, counts, most, strides, stream);
}

bool DeviceCache::preparePages(const Growth &growth, Stream stream) {
  if (!pages)
    return true;
  const PageTable::Need need = table.reserve([&](int64_t n) { return length(n); }, [&](int64_t n) { return growth.counts[n]; });
  if (!need.met())
    return fail("expected " + std::to_string(need.pages) + " free pages, got " + std::to_string(need.free) + " of " + std::to_string(table.physicalPages())), false;
  bool done = true;
  table.forEachReplaced([&](int64_t n) { return length(n); }, [&](int32_t own, int32_t shared) {
    for (int array = 0; array <= kCodes; ++array)
      if (const int64_t bytes = kv_heads * tileBytes(array); tiles[array])
        done = done && copyOnDevice(tiles[array]->address() + own * bytes, tiles[array]->address() + shared * bytes, bytes, stream);
  });
  for (int64_t n = 0; n < batch && need.pages; ++n)
    done = done && (!growth.counts[n] || pushTable(n, stream));
  if (!done)
    cancel(growth, stream);
  return done;
}

void DeviceCache::account(const Growth &growth) {
  table.commit();
  for (int64_t n = 0; n < batch; ++n)
    entryLengths[n] += growth.counts[n];
  tokens = growth.longest;
}

void DeviceCache::cancel(const Growth &growth, Stream stream) {
  if (!pages)
    return;
  table.undo([&](int64_t n) { return length(n); });
  for (int64_t n = 0; n < batch; ++n)
    if (growth.counts[n])
      pushTable(n, stream);
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

bool DeviceCache::appendFrom(const void *data, bool onHost, const int64_t *counts, int64_t count, const int64_t strides[4]) {
  Growth growth;
  if (!plan(counts, count, growth))
    return false;
  if (growth.most == 0)
    return true;
  if (!data || !strides)
    return fail("expected " + std::to_string(growth.most) + " tokens to append, got null " + (data ? "strides" : "data")), false;
  if (!checkKernels() || !checkAsides() || !checkGrids(growth.most))
    return false;

  // Tokens from the host are copied as they will lie on the device, contiguous.
  const int64_t contiguous[4] = {kv_heads * growth.most * head_dim, growth.most * head_dim, head_dim, 1};
  std::vector<char> packed;
  const int64_t bytes = onHost ? product(rows, growth.most, head_dim, elementBytes()) : 0;
  int64_t listed = 0;
  if (onHost) {
    if (bytes == kTooLarge)
      return fail("expected tokens that fit in memory, got sizes that overflow"), false;
    if (counts || !std::equal(strides, strides + 4, contiguous)) {
      packed.resize(bytes);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t t = 0; t < growth.counts[row / kv_heads]; ++t) {
          const char *from = static_cast<const char *>(data) + (row / kv_heads * strides[0] + row % kv_heads * strides[1] + t * strides[2]) * elementBytes();
          char *to = packed.data() + (row * growth.most + t) * head_dim * elementBytes();
          for (int64_t c = 0; c < head_dim; ++c)
            std::memcpy(to + c * elementBytes(), from + c * strides[3] * elementBytes(), elementBytes());
        }
      data = packed.data();
    }
    listed = countAsides(format, data, rows * growth.most, head_dim);
  }

  return inOrder([&](Stream stream) {
    const int64_t geometric = (capacity + capacity / 2) / kTile * kTile;
    if (growth.longest > capacity && !grow(std::max(pagesFor(growth.longest) * kTile, geometric), stream))
      return false;
    if (!makeRoomAside(growth.most, listed, stream) || (counts && !ownLengths(stream)) || !writeCounts(growth.counts, stream))
      return false;
    std::lock_guard<std::mutex> lock(program->mutex);
    Workspace &work = program->appendWork;
    if (onHost && (!work.reserve(context(), bytes) || !work.order.enter(context(), stream) || !copyToDevice(work.memory.address(), data, bytes, stream)))
      return false;
    const Address from = onHost ? work.memory.address() : reinterpret_cast<Address>(data);
    if (!preparePages(growth, stream))
      return false;
    const bool queued = launchAppend(from, countList.address(), growth.most, onHost ? contiguous : strides, stream);
    queued ? account(growth) : cancel(growth, stream);
    return (!onHost || work.order.leave(stream)) && queued;
  });
}

bool DeviceCache::setOffset(const float *values) {
  if (tokens)
    return fail("expected an empty cache, got one of " + std::to_string(tokens) + " tokens"), false;
  return inOrder([&](Stream stream) {
    std::vector<float> all(rows * head_dim);
    for (size_t i = 0; i < all.size() && values; ++i)
      all[i] = values[i % (kv_heads * head_dim)];
    offsetIsSet = values;
    return copyToDevice(summaries[Offset].address(), all.data(), summaries[Offset].bytes(), stream) && push(stream);
  });
}

//===----------------------------------------------------------------------===//
// Forgetting
//===----------------------------------------------------------------------===//

bool DeviceCache::drop(const std::vector<int64_t> &left, Stream stream) {
  std::vector<int64_t> counts;
  for (int64_t n = 0; n < batch; ++n)
    counts.push_back(left[n] - length(n));
  const int64_t most = -*std::min_element(counts.begin(), counts.end());
  if (most == 0)
    return true;
  if (!checkKernels() || !checkAsides() || !program->checkGrids(append->drops, symbols(most)) || !writeCounts(counts, stream) ||
      !launch(append->drops, /*data=*/0, countList.address(), most, /*strides=*/nullptr, stream))
    return false;
  bool done = true;
  for (int64_t n = 0; n < batch; ++n) {
    if (pages && pagesFor(left[n]) < pagesFor(length(n))) {
      table.give(n, pagesFor(left[n]));
      done = pushTable(n, stream) && done;
    }
    entryLengths[n] = left[n];
  }
  tokens = *std::max_element(entryLengths.begin(), entryLengths.end());
  return done;
}

bool DeviceCache::release(int64_t entry) {
  std::vector<int64_t> left = entryLengths;
  left[entry] = 0;
  const int64_t bytes = kv_heads * head_dim * int64_t(sizeof(float));
  return inOrder([&](Stream stream) { return ownLengths(stream) && drop(left, stream) && clear(summaries[Maxima].address() + entry * bytes, bytes, stream); });
}

bool DeviceCache::truncate(int64_t entry, int64_t kept) {
  const int64_t most = entry < 0 ? tokens : length(entry);
  if (kept > most)
    return fail("expected to keep 0 to " + std::to_string(most) + " tokens" + (entry < 0 ? "" : " of batch entry " + std::to_string(entry)) + ", got " +
                std::to_string(kept)),
           false;
  std::vector<int64_t> left = entryLengths;
  for (int64_t n = 0; n < batch; ++n)
    if (entry < 0 || n == entry)
      left[n] = std::min(left[n], kept);
  return inOrder([&](Stream stream) { return (entry < 0 || ownLengths(stream)) && drop(left, stream); });
}

bool DeviceCache::dropPlanes(int64_t left) {
  if (left == planes)
    return true;
  // Sums are of the bits that are left: the host makes them again.
  HostCache host(sum ? download() : nullptr);
  if (sum && (!host || aligned_cache_drop_planes(host.get(), int32_t(left))))
    return false;
  return inOrder([&](Stream stream) {
    if (!wait(stream))
      return false;
    for (int64_t p = left; p < planes; ++p)
      tiles[p].reset();
    planes = left;
    return push(stream) && (!host || copyToDevice(summaries[Sum].address(), host->sum, summaries[Sum].bytes(), stream));
  });
}

//===----------------------------------------------------------------------===//
// Copies
//===----------------------------------------------------------------------===//

std::unique_ptr<DeviceCache> DeviceCache::fork() {
  std::unique_ptr<DeviceCache> copy = create(program, format, batch, kv_heads, head_dim, capacity, pages ? sharedOrder : std::make_shared<Order>());
  if (!copy)
    return nullptr;
  DeviceCache &to = *copy;
  to.planes = planes;
  to.entryLengths = entryLengths;
  to.tokens = tokens;
  to.offsetIsSet = offsetIsSet;
  auto same = [](const Memory &to, const Memory &from, Stream stream) { return copyOnDevice(to.address(), from.address(), from.bytes(), stream); };
  const bool done = inOrder([&](Stream stream) {
    if (!pages && (!to.order.enter(context(), stream) || !to.allocate(to.tiles, capacity, -1, stream)))
      return false;
    if (pages) {
      to.tiles = tiles;
      if (!to.table.share(table))
        return fail("out of memory on the host"), false;
      if (!to.pageTable.allocate(context(), pageTable.bytes()) || !same(to.pageTable, pageTable, stream))
        return false;
    }
    for (int array = 0; array <= kCodes && !pages; ++array)
      if (tiles[array] && !same(*to.tiles[array], *tiles[array], stream))
        return false;
    if (!to.allocateSummaries(asideLists.capacity, stream) || !to.asideLists.copyFrom(asideLists, stream))
      return false;
    for (int which = 0; which < kSummaries; ++which)
      if (!same(to.summaries[which], summaries[which], stream))
        return false;
    return same(to.structureMemory, structureMemory, stream) && (!lengths || to.ownLengths(stream)) && to.push(stream) && to.seeAsides(stream) &&
           (pages || to.order.leave(stream));
  });
  return done ? std::move(copy) : nullptr;
}

template <typename Copy> bool DeviceCache::forArrays(const aligned_cache &host, Copy copy) const {
  for (int which = 0; which < kSummaries; ++which)
    if (!copy(summaries[which].address(), summaryOf(host, which), summaryBytes(which)))
      return false;
  for (int array = 0; array <= kCodes; ++array) {
    auto *there = static_cast<char *>(array == kCodes ? host.code : host.plane[array]);
    if (!there)
      continue;
    const int64_t bytes = tileBytes(array);
    if (!pages && !copy(tiles[array]->address(), there, rows * (capacity / kTile) * bytes))
      return false;
    for (int64_t n = 0; n < batch && pages; ++n)
      for (int64_t i = 0; i < pagesFor(length(n)); ++i)
        if (!copy(tiles[array]->address() + table.at(n, i) * kv_heads * bytes, there + host.pages[n * (capacity / kTile) + i] * kv_heads * bytes, kv_heads * bytes))
          return false;
  }
  return true;
}

std::unique_ptr<DeviceCache> DeviceCache::upload(std::shared_ptr<Program> program, const aligned_cache &host) {
  if (host.location != ALIGNED_LOCATION_HOST)
    return fail("expected a cache on the host, got one in location " + std::to_string(host.location)), nullptr;
  aligned_cache_state state = {};
  aligned_cache_get_state(&host, &state);
  std::unique_ptr<DeviceCache> cache =
      create(std::move(program), host.format, host.batch, host.kv_heads, host.head_dim, host.capacity, std::make_shared<Order>());
  if (!cache)
    return nullptr;
  DeviceCache &c = *cache;
  c.planes = host.planes;
  c.offsetIsSet = state.offset_is_set;
  Growth growth = {{}, 0, host.tokens};
  for (int64_t n = 0; n < host.batch; ++n)
    growth.counts.push_back(aligned_cache_length(&host, n));
  c.tokens = host.tokens;
  const bool done = c.inOrder([&](Stream stream) {
    auto copy = [&](Address to, const void *from, int64_t bytes) { return copyToDevice(to, from, bytes, stream); };
    if (!c.allocate(host.pages ? state.physical_pages : -1, state, stream) || !c.preparePages(growth, stream))
      return false;
    c.account(growth);
    return c.forArrays(host, copy) && copy(c.asideLists.list.address(), state.aside, state.asides * int64_t(sizeof(aligned_aside))) &&
           copy(c.asideLists.values.address(), state.aside_values, state.asides * c.head_dim * int64_t(sizeof(float))) &&
           copy(c.asideLists.patterns.address(), state.aside_patterns, state.asides * c.head_dim * c.elementBytes()) &&
           (!host.lengths || c.ownLengths(stream)) && c.seeAsides(stream);
  });
  return done ? std::move(cache) : nullptr;
}

aligned_cache *DeviceCache::download() {
  HostCache host(pages ? aligned_cache_create_paged(&format, batch, kv_heads, head_dim, table.physicalPages(), capacity)
                       : aligned_cache_create(&format, batch, kv_heads, head_dim, capacity));
  if (!host || aligned_cache_drop_planes(host.get(), int32_t(planes)))
    return nullptr;
  const bool done = inOrder([&](Stream stream) {
    auto copy = [&](Address from, void *to, int64_t bytes) { return copyToHost(to, from, bytes, stream); };
    aligned_device_cache there;
    if (!copy(structure(), &there, sizeof there) || !seeAsides(stream) || !wait(stream) || !checkAsides())
      return false;
    std::vector<aligned_aside> list(asides);
    std::vector<float> values(asides * head_dim);
    std::vector<char> patterns(asides * head_dim * elementBytes());
    if (!copy(asideLists.list.address(), list.data(), asides * int64_t(sizeof(aligned_aside))) ||
        !copy(asideLists.values.address(), values.data(), int64_t(values.size() * sizeof(float))) ||
        !copy(asideLists.patterns.address(), patterns.data(), int64_t(patterns.size())) || !wait(stream))
      return false;
    const aligned_cache_state state = {entryLengths.data(), lengths != nullptr, offsetIsSet,   there.bias_is_settled, there.cache.bias,
                                       0,                   asides,             list.data(), values.data(),         patterns.data()};
    return aligned_cache_set_state(host.get(), &state) == 0 && forArrays(*host, copy) && wait(stream);
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

aligned_cache *createCache(aligned_program *program, const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim, int64_t capacity,
                           int64_t physical) {
  return guarded(static_cast<aligned_cache *>(nullptr), [&]() -> aligned_cache * {
    if (!program || !format)
      return fail(std::string("expected a ") + (program ? "format" : "program") + ", got null"), nullptr;
    if (!program->program->appendTo(*format, headDim))
      return failWithoutKernels(*format, headDim), nullptr;
    return DeviceCache::create(program->program, *format, batch, kvHeads, headDim, capacity, physical).release();
  });
}

} // namespace

aligned_cache *aligned_program_create_cache(aligned_program *program, const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim,
                                            int64_t capacity) {
  return createCache(program, format, batch, kvHeads, headDim, capacity, -1);
}

aligned_cache *aligned_program_create_paged_cache(aligned_program *program, const aligned_format *format, int64_t batch, int64_t kvHeads, int64_t headDim,
                                                  int64_t physicalPages, int64_t maxTokens) {
  if (physicalPages < 0)
    return fail("expected 0 to " + std::to_string(PageTable::mostPages) + " pages, got " + std::to_string(physicalPages)), nullptr;
  return createCache(program, format, batch, kvHeads, headDim, maxTokens, physicalPages);
}

int aligned_cuda_cache_append_device(aligned_cache *cache, const void *data, const int64_t *counts, int64_t count, const int64_t strides[4]) {
  return status([&] {
    DeviceCache *device = deviceCache("a cache", cache);
    return device && device->appendFrom(data, /*onHost=*/false, counts, count, strides);
  });
}

aligned_cache *aligned_cuda_cache_upload(aligned_program *program, const aligned_cache *host) {
  return guarded(static_cast<aligned_cache *>(nullptr), [&]() -> aligned_cache * {
    if (!program || !host)
      return fail(std::string("expected a ") + (program ? "cache" : "program") + ", got null"), nullptr;
    return DeviceCache::upload(program->program, *host).release();
  });
}

aligned_cache *aligned_cuda_cache_download(const aligned_cache *cache) {
  return guarded(static_cast<aligned_cache *>(nullptr), [&]() -> aligned_cache * {
    DeviceCache *device = deviceCache("a cache", const_cast<aligned_cache *>(cache));
    return device ? device->download() : nullptr;
  });
}
