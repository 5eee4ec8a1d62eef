// Kernels for tests of the runtime, compiled to PTX by clang: what the compiler's kernels do, by definition and not fast. One
// warp a block.
#include "aligned/Runtime/Cache.h"

#define KERNEL __attribute__((nvptx_kernel)) void
#define BLOCK_X __nvvm_read_ptx_sreg_ctaid_x()
#define BLOCK_Y __nvvm_read_ptx_sreg_ctaid_y()
#define LANE __nvvm_read_ptx_sreg_tid_x()
#define LANES 32
#define BARRIER() __asm__ volatile("bar.sync 0;" ::: "memory")

enum { kHeads = 3, kUnit = 4 };

static float bitsToFloat(uint32_t bits) { return __builtin_bit_cast(float, bits); }
static uint32_t floatToBits(float value) { return __builtin_bit_cast(uint32_t, value); }
static float pow2(int exponent) { return bitsToFloat((uint32_t)(exponent + 127) << 23); }

static float widen(uint16_t bits, int element) {
  if (element == ALIGNED_ELEMENT_BF16)
    return bitsToFloat((uint32_t)bits << 16);
  return (float)__builtin_bit_cast(_Float16, bits);
}

typedef struct {
  const aligned_cache *cache;
  const char *data; // of the row
  int64_t had, total, tokenStride, channelStride, row;
} Row;

static Row rowOf(const aligned_cache *cache, const void *data, const int32_t *counts, const int64_t strides[4], int64_t row) {
  int64_t entry = row / cache->kv_heads, bytes = cache->format.element == ALIGNED_ELEMENT_F32 ? 4 : 2;
  int64_t had = cache->lengths ? cache->lengths[entry] : cache->tokens;
  Row r = {cache,      (const char *)data + (entry * strides[0] + row % cache->kv_heads * strides[1]) * bytes,
           had,        had + counts[entry],
           strides[2], strides[3],
           row};
  return r;
}

static uint32_t patternAt(Row r, int64_t token, int64_t channel) {
  const void *from = r.data;
  int64_t at = (token - r.had) * r.tokenStride + channel * r.channelStride;
  if (token < r.had) {
    from = r.cache->open;
    at = (r.row * ALIGNED_BLOCK + token % ALIGNED_BLOCK) * r.cache->head_dim + channel;
  }
  return r.cache->format.element == ALIGNED_ELEMENT_F32 ? ((const uint32_t *)from)[at] : ((const uint16_t *)from)[at];
}

static float valueOf(const aligned_cache *cache, uint32_t pattern) {
  return cache->format.element == ALIGNED_ELEMENT_F32 ? bitsToFloat(pattern) : widen((uint16_t)pattern, cache->format.element);
}

static float magnitude(float x) { return x < 0 ? -x : x; }
static int isFinite(float x) { return (floatToBits(x) & 0x7f800000) != 0x7f800000; }
// float formats round f32 to half, in which this much overflows
static int isKept(const aligned_cache *cache, float x) {
  return isFinite(x) &&
         (cache->format.kind == ALIGNED_FORMAT_FIXED || cache->format.element != ALIGNED_ELEMENT_F32 || magnitude(x) < 65520.0f);
}

static uint8_t exponentOf(float largest) {
  uint32_t least = floatToBits(pow2(-100)), bits = floatToBits(largest);
  return (uint8_t)(((bits < least ? least : bits) >> 23) - 14);
}

static void store(const aligned_cache *cache, int64_t place, int64_t t, int64_t c, uint16_t bits) {
  int64_t d = cache->head_dim, resident = cache->layers;
  int key = cache->format.role == ALIGNED_ROLE_KEY, fixed = cache->format.kind == ALIGNED_FORMAT_FIXED;
  int high = key ? t >= 32 : c >= d / 2;
  for (int p = 0, shift = 12; p < cache->format.planes && resident > 0; ++p) {
    int64_t layers = cache->format.width[p] / 4;
    resident -= layers;
    uint8_t *plane = (uint8_t *)cache->plane[p] + place * 8 * d * cache->format.width[p];
    for (int64_t layer = 0; layer < layers; ++layer, shift -= 4) {
      int64_t at = !key    ? (t * layers + layer) * (d / 2) + c % (d / 2)
                   : fixed ? ((c / 4 * layers + layer) * 32 + t % 32) * 4 + c % 4
                           : (c * layers + layer) * 32 + t % 32;
      uint8_t nibble = bits >> shift & 15;
      plane[at] = high ? plane[at] | nibble << 4 : nibble; // the low one comes first
    }
  }
}

static int64_t placeOf(const aligned_cache *cache, int64_t row, int64_t index) {
  int64_t blocks = cache->capacity / ALIGNED_BLOCK;
  if (!cache->pages)
    return row * blocks + index;
  return (int64_t)cache->pages[row / cache->kv_heads * blocks + index] * cache->kv_heads + row % cache->kv_heads;
}

// Block BLOCK_X of those that the append touches, of row BLOCK_Y, and whether it is full then. Lanes share what shares exponents,
// and no byte: channels of keys, tokens of values.
KERNEL append_split(const aligned_cache *cache, const void *data, const int32_t *counts, int64_t s0, int64_t s1, int64_t s2,
                    int64_t s3, uint32_t *isFull, int32_t touched) {
  int64_t strides[4] = {s0, s1, s2, s3};
  Row r = rowOf(cache, data, counts, strides, BLOCK_Y);
  int64_t index = r.had / ALIGNED_BLOCK + BLOCK_X, first = index * ALIGNED_BLOCK, d = cache->head_dim, place;
  int key = cache->format.role == ALIGNED_ROLE_KEY, fixed = cache->format.kind == ALIGNED_FORMAT_FIXED;
  int64_t groups = key ? d : ALIGNED_BLOCK, members = key ? ALIGNED_BLOCK : d;
  if (LANE == 0)
    isFull[BLOCK_Y * touched + BLOCK_X] = first + ALIGNED_BLOCK <= r.total;
  if (first + ALIGNED_BLOCK > r.total)
    return;
  place = placeOf(cache, r.row, index);
  for (int64_t group = LANE; group < groups; group += LANES) {
    float largest = 0;
    uint8_t exponent = 0;
    for (int64_t member = 0; fixed && member < members; ++member) {
      float x = magnitude(valueOf(cache, patternAt(r, first + (key ? member : group), key ? group : member)));
      if (isFinite(x) && x > largest)
        largest = x;
    }
    if (fixed)
      cache->exponent[place * groups + group] = exponent = exponentOf(largest);
    for (int64_t member = 0; member < members; ++member) {
      int64_t t = key ? member : group, c = key ? group : member;
      uint32_t pattern = patternAt(r, first + t, c);
      float x = valueOf(cache, pattern);
      if (!isKept(cache, x)) {
        int64_t number = __atomic_fetch_add((int64_t *)&cache->escapes, 1, __ATOMIC_RELAXED);
        if (number < cache->escape_capacity) {
          aligned_escape *to = cache->escape + number;
          to->row = r.row;
          to->token = first + t;
          to->channel = (int32_t)c;
          to->bits = pattern;
          to->value = x;
          to->reserved = 0;
        }
        pattern = 0;
        x = 0;
      }
      uint16_t bits = (uint16_t)pattern;
      if (fixed) {
        // Exact in float64 for all elements; adding the number leaves the nearest integer in the low bits.
        double scaled = (double)x * (15 * (double)bitsToFloat((uint32_t)(250 - exponent) << 23)) + 0x1.8p52;
        int rounded = (int16_t) __builtin_bit_cast(uint64_t, scaled);
        int dither = (int)(((first + t) % 4096 * 2531 + (key ? c % 4 * 1092 : 0)) % 4096) - 2048;
        bits = (uint16_t)(rounded + dither + 0x8000);
      } else if (cache->format.element == ALIGNED_ELEMENT_F32) {
        bits = __builtin_bit_cast(uint16_t, (_Float16)x);
      }
      store(cache, place, t, c, bits);
    }
  }
}

// One block: it alone says how many tokens there are, when all has been read.
KERNEL append_commit(aligned_cache *cache, const void *data, const int32_t *counts, int64_t s0, int64_t s1, int64_t s2,
                     int64_t s3, const uint32_t *isFull, int32_t touched) {
  int64_t strides[4] = {s0, s1, s2, s3}, d = cache->head_dim, longest = 0;
  for (int64_t row = 0; row < cache->rows; ++row) {
    Row r = rowOf(cache, data, counts, strides, row);
    int64_t kept = r.total / ALIGNED_BLOCK * ALIGNED_BLOCK;
    for (int64_t c = LANE; c < d; c += LANES) {
      for (int64_t t = r.had; t < r.total; ++t) {
        float x = magnitude(valueOf(cache, patternAt(r, t, c)));
        if (isFinite(x) && x > cache->channel_max[row * d + c])
          cache->channel_max[row * d + c] = x;
      }
      for (int64_t index = r.had / ALIGNED_BLOCK; isFull[row * touched + index - r.had / ALIGNED_BLOCK] && cache->channel_mean;
           ++index) {
        float share = 1.0f / (float)(index + 1), mean = 0;
        for (int64_t t = 0; t < ALIGNED_BLOCK; ++t) {
          float x = valueOf(cache, patternAt(r, index * ALIGNED_BLOCK + t, c));
          if (isFinite(x))
            mean += x * (1.0f / ALIGNED_BLOCK);
        }
        cache->channel_mean[row * d + c] = cache->channel_mean[row * d + c] * (1 - share) + mean * share;
      }
      for (int64_t t = r.had > kept ? r.had : kept; t < r.total; ++t) {
        int64_t at = (row * ALIGNED_BLOCK + t % ALIGNED_BLOCK) * d + c;
        uint32_t pattern = patternAt(r, t, c);
        if (cache->format.element == ALIGNED_ELEMENT_F32)
          ((uint32_t *)cache->open)[at] = pattern;
        else
          ((uint16_t *)cache->open)[at] = (uint16_t)pattern;
      }
    }
    longest = r.total > longest ? r.total : longest;
  }
  BARRIER();
  if (LANE)
    return;
  for (int64_t entry = 0; entry < cache->batch && cache->lengths; ++entry)
    cache->lengths[entry] += counts[entry];
  cache->tokens = longest;
}

//===-- Decode: fixed<4,4,4,4> of f16, every bit --------------------------===//

static float stored(const aligned_cache *cache, int64_t row, int64_t length, int64_t t, int64_t c) {
  int64_t d = cache->head_dim, index = t / ALIGNED_BLOCK, i = t % ALIGNED_BLOCK, place;
  int key = cache->format.role == ALIGNED_ROLE_KEY, bits = 0;
  if (index == length / ALIGNED_BLOCK)
    return widen(((const uint16_t *)cache->open)[(row * ALIGNED_BLOCK + i) * d + c], cache->format.element);
  place = placeOf(cache, row, index);
  for (int p = 0; p < 4; ++p) {
    const uint8_t *plane = (const uint8_t *)cache->plane[p] + place * 32 * d;
    uint8_t both = plane[key ? (c / 4 * 32 + i % 32) * 4 + c % 4 : i * (d / 2) + c % (d / 2)];
    bits = bits << 4 | ((key ? i >= 32 : c >= d / 2) ? both >> 4 : both & 15);
  }
  int dither = (int)((t % 4096 * 2531 + (key ? c % 4 * 1092 : 0)) % 4096) - 2048;
  uint8_t exponent = cache->exponent[place * (key ? d : ALIGNED_BLOCK) + (key ? c : i)];
  return (float)(bits - 0x8000 - dither) * (pow2(exponent - 112 - 15) * (16.0f / 15));
}

// Scores of a split's tokens, and what is recorded of K.
KERNEL decode_scores(const uint16_t *query, const aligned_cache *key, const aligned_cache *value, float *scores,
                     uint8_t *keyLayers, uint8_t *valueLayers, float *acc, float *max, float *sum, float scale, int32_t splits) {
  int64_t row = BLOCK_Y, d = key->head_dim, blocks = key->capacity / ALIGNED_BLOCK;
  int64_t length = key->lengths ? key->lengths[row / key->kv_heads] : key->tokens;
  for (int64_t t = BLOCK_X * LANES + LANE; t < length; t += splits * LANES)
    for (int h = 0; h < kHeads; ++h) {
      float s = 0;
      for (int64_t c = 0; c < d; ++c)
        s += widen(query[(row * kHeads + h) * d + c], ALIGNED_ELEMENT_F16) * stored(key, row, length, t, c);
      scores[(row * kHeads + h) * key->capacity + t] = s * scale;
    }
  for (int64_t b = BLOCK_X; b < length / ALIGNED_BLOCK && keyLayers; b += splits)
    for (int64_t u = LANE; u < d / kUnit; u += LANES)
      keyLayers[(row * blocks + b) * (d / kUnit) + u] = (uint8_t)((row + b + u) % 5);
}

KERNEL decode_values(const uint16_t *query, const aligned_cache *key, const aligned_cache *value, const float *scores,
                     uint8_t *keyLayers, uint8_t *valueLayers, float *acc, float *max, float *sum, float scale, int32_t splits) {
  int64_t row = BLOCK_Y, d = value->head_dim, capacity = key->capacity;
  int64_t length = key->lengths ? key->lengths[row / key->kv_heads] : key->tokens;
  for (int h = 0; h < kHeads; ++h) {
    const float *s = scores + (row * kHeads + h) * capacity;
    float largest = bitsToFloat(0xff800000);
    for (int64_t t = 0; t < length; ++t)
      largest = s[t] > largest ? s[t] : largest;
    for (int64_t c = LANE; c < d; c += LANES) {
      float out = 0, total = 0;
      for (int64_t t = 0; t < length; ++t) {
        float p = __nvvm_ex2_approx_f((s[t] - largest) * 1.44269504f);
        total += p;
        out += p * stored(value, row, length, t, c);
      }
      acc[(row * kHeads + h) * d + c] = out;
      if (c == 0) {
        max[row * kHeads + h] = largest;
        sum[row * kHeads + h] = total;
      }
    }
  }
  for (int64_t t = LANE; t < length / ALIGNED_BLOCK * ALIGNED_BLOCK && valueLayers; t += LANES)
    valueLayers[row * capacity + t] = (uint8_t)((row + t) % 5);
}

// A site whose kernel says what it was given.
KERNEL echo(const uint16_t *query, const aligned_cache *key, const aligned_cache *value, float *acc, float *max, float *sum,
            float *certificate, float scale, int32_t rows, int64_t capacity) {
  int64_t row = BLOCK_Y, d = value->head_dim;
  for (int h = LANE; h < kHeads; h += LANES) {
    int64_t at = row * kHeads + h;
    for (int64_t c = 0; c < d; ++c)
      acc[at * d + c] = widen(query[at * d + c], ALIGNED_ELEMENT_F16);
    max[at] = (float)h;
    sum[at] = (float)row;
    certificate[at * 6] = scale;
    certificate[at * 6 + 1] = (float)rows;
    certificate[at * 6 + 2] = (float)capacity;
    certificate[at * 6 + 3] = (float)key->tokens;
    certificate[at * 6 + 4] = (float)value->layers;
    certificate[at * 6 + 5] = (float)at;
  }
}
