/* Four objects in one program: what they refuse, and that calls leave nothing behind, whether they fail or not. */
#include "attn.h"
#include "offset.h"
#include "square.h"
#include "twice.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

enum { COUNT = 77 };
static float numbers[COUNT];
static uint16_t query[2 * 8 * 32], result[2 * 8 * 32], tokens[2 * 2 * 65 * 32];

static void refused(const char *what, int status) { printf("%s: %s\n", what, status ? aligned_last_error() : "expected to be refused"); }

static aligned_cache *filled(aligned_cache *cache, int64_t count) {
  const int64_t strides[4] = {2 * 65 * 32, 65 * 32, 32, 1};
  return aligned_cache_append(cache, tokens, count, strides) ? NULL : cache;
}

/* Calls that fit, and calls that fail in a parallel loop. */
static int twiceEach(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    float *doubled;
    int64_t shape[1];
    for (int i = 0; i < COUNT; ++i)
      numbers[i] = (float)i;
    if (twice(numbers, COUNT - round % 3, &doubled, shape) || shape[0] != COUNT - round % 3)
      return 1;
    for (int i = 0; i < shape[0]; ++i)
      if (doubled[i] != 2 * numbers[i])
        return 1;
    free(doubled);
    numbers[round % COUNT] = -1;
    if (!twice(numbers, COUNT, &doubled, shape))
      return 1;
  }
  return 0;
}

int main(void) {
  if (twiceEach(10))
    return fprintf(stderr, "expected twice of each number: %s\n", aligned_last_error()), 1;
  refused("negative", twice(numbers, COUNT, &(float *){NULL}, (int64_t[1]){0}));
  const size_t before = mallinfo2().uordblks;
  if (twiceEach(1000))
    return 1;
  const size_t after = mallinfo2().uordblks;
  printf("2000 calls later: %s\n", after <= before + 4096 ? "no more memory" : "more memory");

  aligned_cache *keys = filled(attn_new_arg1(0), 64), *values = filled(attn_new_arg2(0), 64), *longer = filled(attn_new_arg1(0), 65);
  if (!keys || !values || !longer || attn(query, keys, values, result))
    return fprintf(stderr, "expected attention: %s\n", aligned_last_error()), 1;
  refused("no cache", attn(query, NULL, values, result));
  refused("65 tokens", attn(query, longer, values, result));
  refused("values as keys", attn(query, values, values, result));
  refused("no query", attn(NULL, keys, values, result));
  refused("no result", attn(query, keys, values, NULL));
  refused("size", twice(numbers, -3, &(float *){NULL}, (int64_t[1]){0}));
  refused("no shape", twice(numbers, 3, &(float *){NULL}, NULL));
  if (aligned_cache_drop_planes(keys, 2))
    return 1;
  refused("two planes", attn(query, keys, values, result));

  /* Of 1, 1 + 2^-7, 1 + 2^-4 and 1 + 3 2^-4, the last two of which lie in a middle, and of what is too large. */
  const uint16_t sides[] = {0x3f80, 0x3f81, 0x3f88, 0x3f98, 0x7f00};
  uint16_t *squares;
  int64_t shape[1];
  if (square(sides, 5, &squares, shape))
    return fprintf(stderr, "expected five squares: %s\n", aligned_last_error()), 1;
  printf("squares %x %x %x %x %x\n", squares[0], squares[1], squares[2], squares[3], squares[4]);
  free(squares);

  aligned_cache *less = offset_new_arg1(0);
  printf("offset %g, dense up to %d\n", less ? less->offset[33] : 0, less ? (int)less->dense_limit : 0);
  aligned_cache_destroy(less);
  aligned_cache_destroy(keys);
  aligned_cache_destroy(values);
  aligned_cache_destroy(longer);
  return 0;
}
