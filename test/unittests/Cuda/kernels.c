// Kernels for tests of the runtime, compiled to PTX by clang: by definition and not fast, one warp a block, for caches of fixed<4,4,8> of f16 with 16 channels.
#include "aligned/Runtime/Cache.h"

#define KERNEL __attribute__((nvptx_kernel)) void
#define BLOCK_X __nvvm_read_ptx_sreg_ctaid_x()
#define BLOCK_Y __nvvm_read_ptx_sreg_ctaid_y()
#define BLOCK_Z __nvvm_read_ptx_sreg_ctaid_z()
#define LANE __nvvm_read_ptx_sreg_tid_x()
#define LANES 32

enum { kHeads = 3, kDim = 16, kNumbers = 8 };

static float widen(uint16_t bits) { return (float)__builtin_bit_cast(_Float16, bits); }
static float magnitude(float x) { return x < 0 ? -x : x; }
static float scaleOf(int code, int64_t bias) { return __nvvm_ex2_approx_f((float)(code - bias) / 8); }

static int64_t lengthOf(const aligned_cache *cache, int64_t row) { return cache->lengths ? cache->lengths[row / cache->kv_heads] : cache->tokens; }
static int64_t placeOf(const aligned_cache *cache, int64_t row, int64_t tile) {
  int64_t tiles = cache->capacity / ALIGNED_TILE;
  if (!cache->pages)
    return row * tiles + tile;
  return (int64_t)cache->pages[row / cache->kv_heads * tiles + tile] * cache->kv_heads + row % cache->kv_heads;
}

static int ditherOf(const aligned_cache *cache, int64_t t) { return (int)(t * (cache->format.role == ALIGNED_ROLE_KEY ? 3091 : 2333) % 4096) - 2048; }

static float signOf(int c) {
  uint32_t x = (uint32_t)(c + 1) * 0x9E3779B9u;
  x = (x ^ x >> 15) * 0x85EBCA6Bu;
  return x >> 31 ? -1 : 1;
}
static void butterflies(float *x) {
  for (int half = 1; half < kDim; half *= 2)
    for (int c = 0; c < kDim; ++c)
      if (!(c & half)) {
        float a = x[c], b = x[c + half];
        x[c] = a + b;
        x[c + half] = a - b;
      }
  for (int c = 0; c < kDim; ++c)
    x[c] /= 4;
}

// Byte of channel c of token t, within a tile of plane p, and how far up in it.
static int byteOf(int role, int p, int t, int c, int *shift) {
  *shift = 0;
  if (p == 2)
    return t * kDim + c;
  *shift = role == ALIGNED_ROLE_KEY && p == 0 ? (c % 8 < 4 ? 0 : 4) : c % 2 * 4;
  return role == ALIGNED_ROLE_KEY && p == 0 ? (c / 8 * ALIGNED_TILE + t) * 4 + c % 4 : t * (kDim / 2) + c / 2;
}
static uint8_t *tileOf(const aligned_cache *cache, int p, int64_t place) { return (uint8_t *)cache->plane[p] + place * ALIGNED_TILE * kDim * cache->format.width[p] / 8; }

//===-- Append ------------------------------------------------------------===//

// What decode reads of tokens: planes and codes. Row BLOCK_Y, lane 0: tokens share bytes with nobody, channels do.
KERNEL append_pack(aligned_cache *cache, const uint16_t *data, const int32_t *counts, int64_t s0, int64_t s1, int64_t s2, int64_t s3) {
  int64_t row = BLOCK_Y, entry = row / cache->kv_heads, had = lengthOf(cache, row);
  int isKey = cache->format.role == ALIGNED_ROLE_KEY;
  if (LANE)
    return;
  for (int64_t i = 0; i < counts[entry]; ++i) {
    int64_t token = had + i, place = placeOf(cache, row, token / ALIGNED_TILE);
    int t = (int)(token % ALIGNED_TILE), code = 1;
    float x[kDim], largest = 0;
    for (int c = 0; c < kDim; ++c) {
      x[c] = widen(data[entry * s0 + row % cache->kv_heads * s1 + i * s2 + c * s3]);
      if (isKey)
        x[c] = (x[c] - cache->offset[row * kDim + c]) * signOf(c);
    }
    if (isKey)
      butterflies(x);
    for (int c = 0; c < kDim; ++c)
      largest = magnitude(x[c]) > largest ? magnitude(x[c]) : largest;
    while (scaleOf(code, cache->bias) < largest * 16 / 15)
      ++code;
    cache->code[place * ALIGNED_TILE + t] = (uint8_t)code;
    for (int c = 0; c < kDim; ++c) {
      float scaled = x[c] / scaleOf(code, cache->bias) * 32768;
      int n = (int)(scaled + (scaled < 0 ? -0.5f : 0.5f)) + ditherOf(cache, token), cut = isKey ? n + 0x8000 : n & 0xffff, shift;
      for (int p = 0, above = 0; p < cache->planes; ++p) {
        int width = cache->format.width[p], mask = (1 << width) - 1;
        above += width;
        uint8_t *byte = tileOf(cache, p, place) + byteOf(cache->format.role, p, t, c, &shift);
        *byte = (uint8_t)((*byte & ~(mask << shift)) | (cut >> (16 - above) & mask) << shift);
      }
    }
  }
}

// It alone says how many tokens there are, when all has been read. Counts are negative where tokens are taken back.
KERNEL append_advance(aligned_cache *cache, const uint16_t *data, const int32_t *counts, int64_t s0, int64_t s1, int64_t s2, int64_t s3) {
  int64_t longest = 0;
  if (LANE)
    return;
  for (int64_t entry = 0; entry < cache->batch; ++entry) {
    int64_t now = lengthOf(cache, entry * cache->kv_heads) + counts[entry];
    if (cache->lengths)
      cache->lengths[entry] = now;
    longest = now > longest ? now : longest;
  }
  cache->tokens = longest;
}

//===-- Decode, every bit -------------------------------------------------===//

static void load(const aligned_cache *cache, int64_t row, int64_t token, float *x) {
  int64_t place = placeOf(cache, row, token / ALIGNED_TILE);
  int t = (int)(token % ALIGNED_TILE), code = cache->code[place * ALIGNED_TILE + t], isKey = cache->format.role == ALIGNED_ROLE_KEY;
  if (code) {
    for (int c = 0; c < kDim; ++c) {
      int cut = 0, missing = 16, shift;
      for (int p = 0; p < cache->planes; ++p) {
        int width = cache->format.width[p], byte = tileOf(cache, p, place)[byteOf(cache->format.role, p, t, c, &shift)];
        missing -= width;
        cut |= (byte >> shift & ((1 << width) - 1)) << missing;
      }
      cut |= missing ? 1 << (missing - 1) : 0;
      x[c] = (float)((isKey ? cut - 0x8000 : (int16_t)cut) - ditherOf(cache, token)) * scaleOf(code, cache->bias) / 32768;
    }
    if (isKey)
      butterflies(x);
    for (int c = 0; c < kDim && isKey; ++c)
      x[c] *= signOf(c);
  } else {
    for (int64_t i = 0; i < cache->asides; ++i)
      for (int c = 0; c < kDim && cache->aside[i].row == row && cache->aside[i].token == token; ++c)
        x[c] = cache->aside_values[i * kDim + c];
  }
  for (int c = 0; c < kDim && isKey; ++c)
    x[c] += cache->offset[row * kDim + c];
}

// Scores of a split's tokens, and what is recorded of K: not what was read, but what a test can tell.
KERNEL decode_scores(const uint16_t *query, const aligned_cache *key, const aligned_cache *value, float *scores, uint8_t *keyBits, uint8_t *valueBits, float *acc,
                     float *max, float *sum, float scale, int32_t splits) {
  int64_t row = BLOCK_Y, length = lengthOf(key, row);
  for (int64_t t = BLOCK_X * LANES + LANE; t < length; t += splits * LANES) {
    float k[kDim];
    load(key, row, t, k);
    for (int h = 0; h < kHeads; ++h) {
      float s = 0;
      for (int c = 0; c < kDim; ++c)
        s += widen(query[(row * kHeads + h) * kDim + c]) * k[c];
      scores[(row * kHeads + h) * key->capacity + t] = s * scale;
    }
    if (keyBits)
      keyBits[row * key->capacity + t] = (uint8_t)((row + t) % 5 * 4);
  }
}

// What float planes tell: bits of each channel of a tile, and here nothing of the first.
KERNEL decode_channels(const uint16_t *query, const aligned_cache *key, const aligned_cache *value, float *scores, uint8_t *keyBits, uint8_t *valueBits, float *acc,
                       float *max, float *sum, float scale, int32_t splits) {
  int64_t row = BLOCK_Y, tiles = key->capacity / ALIGNED_TILE;
  for (int64_t i = BLOCK_X * LANES + LANE; i < tiles * kDim && keyBits; i += splits * LANES)
    keyBits[row * tiles * kDim + i] = i < kDim ? 0 : (uint8_t)(row + i % kDim + 1);
  for (int64_t i = BLOCK_X * LANES + LANE; i < kHeads * key->capacity; i += splits * LANES)
    scores[row * kHeads * key->capacity + i] = 0;
}

KERNEL decode_values(const uint16_t *query, const aligned_cache *key, const aligned_cache *value, const float *scores, uint8_t *keyBits, uint8_t *valueBits, float *acc,
                     float *max, float *sum, float scale, int32_t splits) {
  int64_t row = BLOCK_Y, length = lengthOf(key, row);
  int h = (int)LANE;
  for (int64_t t = LANE; t < length && valueBits; t += LANES)
    valueBits[row * key->capacity + t] = (uint8_t)((row + t) % 3 * 8);
  if (h >= kHeads)
    return;
  const float *s = scores + (row * kHeads + h) * key->capacity;
  float largest = -__builtin_inff(), total = 0, out[kDim] = {0};
  for (int64_t t = 0; t < length; ++t)
    largest = s[t] > largest ? s[t] : largest;
  for (int64_t t = 0; t < length; ++t) {
    float p = __nvvm_ex2_approx_f((s[t] - largest) * 1.44269504f), v[kDim];
    load(value, row, t, v);
    total += p;
    for (int c = 0; c < kDim; ++c)
      out[c] += p * v[c];
  }
  for (int c = 0; c < kDim; ++c)
    acc[(row * kHeads + h) * kDim + c] = out[c];
  max[row * kHeads + h] = largest;
  sum[row * kHeads + h] = total;
}

//===-- Dense arrays -------------------------------------------------------===//

KERNEL dense(const float *query, const uint16_t *key, const uint16_t *value, const int64_t *lengths, float *acc, float *max, float *sum, float scale, int32_t kvHeads,
             int32_t capacity) {
  int64_t row = BLOCK_Y, length = lengths[row / kvHeads];
  int h = (int)LANE;
  if (h >= kHeads)
    return;
  float total = 0, out[kDim] = {0};
  for (int64_t t = 0; t < length; ++t) {
    float s = 0;
    for (int c = 0; c < kDim; ++c)
      s += query[(row * kHeads + h) * kDim + c] * widen(key[(row * capacity + t) * kDim + c]);
    float p = __nvvm_ex2_approx_f(s * scale * 1.44269504f);
    total += p;
    for (int c = 0; c < kDim; ++c)
      out[c] += p * __builtin_bit_cast(float, (uint32_t)value[(row * capacity + t) * kDim + c] << 16);
  }
  for (int c = 0; c < kDim; ++c)
    acc[(row * kHeads + h) * kDim + c] = out[c];
  max[row * kHeads + h] = 0;
  sum[row * kHeads + h] = total;
}

//===-- A site whose kernel says what it was given --------------------------===//

extern __attribute__((address_space(3))) float dynamic[]; // as much as the sidecar says

KERNEL echo(const uint16_t *query, const aligned_cache *key, const aligned_cache *value, const float *sinks, const uint8_t *mask, float *acc, float *max, float *sum,
            float *certificate, float scale, int32_t rows, int64_t capacity) {
  int64_t entry = BLOCK_Z, row = entry * key->kv_heads + BLOCK_Y, last = 16383 - (int64_t)LANE; // of 64 KiB
  for (int h = LANE; h < kHeads; h += LANES) {
    int64_t at = row * kHeads + h, seen = 0;
    for (int64_t c = 0; c < kDim; ++c)
      acc[at * kDim + c] = widen(query[at * kDim + c]);
    for (int64_t t = 0; t < key->tokens; ++t) // [batch, 1, queries, tokens]
      seen += mask[(entry * kHeads + h) * key->tokens + t];
    dynamic[last] = scale;
    max[at] = (float)h;
    sum[at] = (float)row;
    float *numbers = certificate + at * kNumbers;
    numbers[0] = dynamic[last];
    numbers[1] = (float)rows;
    numbers[2] = (float)capacity;
    numbers[3] = (float)key->tokens;
    numbers[4] = (float)value->planes;
    numbers[5] = (float)at;
    numbers[6] = sinks[BLOCK_Y];
    numbers[7] = (float)seen;
  }
}
