/* Decodes some tokens through step.o, and holds what comes to attention in double. docs/Ahead.md says how it is built. With a file name as argument, writes all outputs there. */
#include "step.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BATCH = 2, HEADS = 9, KV_HEADS = 3, DIM = 48, PROMPT = 129, STEPS = 3, TOKENS = PROMPT + STEPS };

/* The history as it was, [batch, kv head, token, channel]. */
static float k[BATCH][KV_HEADS][TOKENS][DIM], v[BATCH][KV_HEADS][TOKENS][DIM];
static float q[BATCH][HEADS][DIM], out[BATCH][HEADS][DIM];
static const float gains[HEADS] = {1, 2, 3, 4, 5, 6, 7, 8, 9};

static float uniform(void) { /* the same numbers everywhere */
  static unsigned state = 1;
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / (1 << 23) - 1;
}

static void fill(float *to, size_t count, float largest) {
  for (size_t i = 0; i < count; ++i)
    to[i] = largest * uniform();
}

/* The error of a head's output beside attention in double, relative to that. */
static double error(int batch, int head, int tokens) {
  double weights[TOKENS], sum = 0, difference = 0, size = 0;
  const int kv = head / (HEADS / KV_HEADS);
  for (int t = 0; t < tokens; ++t) {
    double score = 0;
    for (int d = 0; d < DIM; ++d)
      score += (double)q[batch][head][d] * k[batch][kv][t][d];
    sum += weights[t] = exp(score / sqrt(DIM));
  }
  for (int d = 0; d < DIM; ++d) {
    double want = 0;
    for (int t = 0; t < tokens; ++t)
      want += weights[t] / sum * v[batch][kv][t][d];
    want *= gains[head];
    difference += (out[batch][head][d] - want) * (out[batch][head][d] - want);
    size += want * want;
  }
  return sqrt(difference / size);
}

static int fail(const char *what) {
  fprintf(stderr, "%s: %s\n", what, aligned_last_error());
  return 1;
}

int main(int argc, char **argv) {
  FILE *file = argc > 1 ? fopen(argv[1], "wb") : NULL;
  fill(&k[0][0][0][0], sizeof k / sizeof(float), 4);
  fill(&v[0][0][0][0], sizeof v / sizeof(float), 1);
  aligned_cache *keys = step_new_arg3(TOKENS), *values = step_new_arg4(TOKENS);
  if (!keys || !values)
    return fail("caches");
  const int64_t strides[4] = {KV_HEADS * TOKENS * DIM, TOKENS * DIM, DIM, 1};
  if (aligned_cache_append(keys, k, PROMPT, strides) || aligned_cache_append(values, v, PROMPT, strides))
    return fail("prompt");

  double worst = 0;
  for (int token = PROMPT; token < TOKENS; ++token) {
    static float newK[BATCH][KV_HEADS][DIM], newV[BATCH][KV_HEADS][DIM];
    fill(&q[0][0][0], sizeof q / sizeof(float), 2);
    for (int batch = 0; batch < BATCH; ++batch)
      for (int head = 0; head < KV_HEADS; ++head) {
        memcpy(newK[batch][head], k[batch][head][token], sizeof newK[batch][head]);
        memcpy(newV[batch][head], v[batch][head][token], sizeof newV[batch][head]);
      }
    if (step(&q[0][0][0], &newK[0][0][0], &newV[0][0][0], keys, values, gains, HEADS, &out[0][0][0], NULL, NULL))
      return fail("step");
    for (int head = 0; head < BATCH * HEADS; ++head)
      worst = fmax(worst, error(head / HEADS, head % HEADS, token + 1));
    if (file)
      fwrite(out, sizeof out, 1, file);
  }
  printf("%lld tokens, largest error %s\n", (long long)keys->tokens, worst > 0 && worst < 0x1p-9 ? "below 2^-9" : "too large");
  if (!(worst > 0 && worst < 0x1p-9))
    fprintf(stderr, "got an error of %g\n", worst);
  if (file)
    fclose(file);

  /* A model that asserts what sizes are says so, and the caches are as they were. */
  if (!step(&q[0][0][0], &q[0][0][0], &q[0][0][0], keys, values, gains, 8, &out[0][0][0], NULL, NULL) || keys->tokens != TOKENS)
    return fputs("expected 8 gains to be refused\n", stderr), 1;
  printf("refused: %s\n", aligned_last_error());
  aligned_cache_destroy(keys);
  aligned_cache_destroy(values);
  return 0;
}
