/* Appends values to a cache, reads them back to 4 and to 16 bits, and holds them to what planes promise: |x' - x| <= scale (2^-bits + 2^-16), where the scale is at most an
 * eighth of an octave above 16/15 of the token's largest value. */
#include "aligned/Runtime/Cache.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 3, TOKENS = 65, DIM = 48, COUNT = HEADS * TOKENS * DIM };

static int fail(const char *what) {
  fprintf(stderr, "%s: %s\n", what, aligned_last_error());
  return 1;
}

int main(void) {
  static float in[COUNT], out[COUNT];
  srand(1);
  for (int i = 0; i < COUNT; ++i)
    in[i] = ((float)(rand() % 1999) / 999 - 1) * (float)(1 + i / DIM % 7);

  aligned_format format = {ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_VALUE, ALIGNED_ELEMENT_F32, 3, {4, 4, 8}};
  aligned_cache *cache = aligned_cache_create(&format, 1, HEADS, DIM, 0);
  if (!cache)
    return fail("create");
  const int64_t strides[4] = {COUNT, TOKENS * DIM, DIM, 1};
  if (aligned_cache_append(cache, in, TOKENS, strides))
    return fail("append");

  for (int bits = 4; bits <= 16; bits += 12) {
    if (aligned_cache_unpack(cache, bits, out))
      return fail("unpack");
    double worst = 0;
    for (int token = 0; token < HEADS * TOKENS; ++token) {
      double largest = 0, error = 0;
      for (int i = token * DIM; i < (token + 1) * DIM; ++i) {
        largest = fmax(largest, fabs((double)in[i]));
        error = fmax(error, fabs((double)out[i] - in[i]));
      }
      worst = fmax(worst, error / (largest * 16 / 15 * exp2(1. / 8) * (exp2(-bits) + exp2(-16))));
    }
    printf("%d bits: %s\n", bits, worst > 0.1 && worst <= 1 ? "as close as planes promise" : "expected an error between a tenth of the bound and the bound");
    if (!(worst > 0.1 && worst <= 1)) {
      fprintf(stderr, "got %g of the bound\n", worst);
      return 1;
    }
  }
  format.width[0] = 5;
  if (aligned_cache_create(&format, 1, HEADS, DIM, 0))
    return fputs("expected planes of 5, 4 and 8 bits to be refused\n", stderr), 1;
  printf("refused: %s\n", aligned_last_error());
  aligned_cache_destroy(cache);
  return 0;
}
