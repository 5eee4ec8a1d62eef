/* What a plane encoding says about a cache, as C sees it. Layout.h says where its bits lie. */
#ifndef ALIGNED_STORAGE_FORMAT_H
#define ALIGNED_STORAGE_FORMAT_H

#include <stdint.h>

#define ALIGNED_TILE 64 /* tokens of a tile: what a page holds of one kv head */
#define ALIGNED_MAX_PLANES 4

typedef enum { ALIGNED_ELEMENT_F16 = 0, ALIGNED_ELEMENT_BF16 = 1, ALIGNED_ELEMENT_F32 = 2 } aligned_element;
typedef enum { ALIGNED_ROLE_KEY = 0, ALIGNED_ROLE_VALUE = 1 } aligned_role;
/* DENSE is no cache's: it says of attention that it reads plain arrays. */
typedef enum { ALIGNED_FORMAT_FIXED = 0, ALIGNED_FORMAT_FLOAT = 1, ALIGNED_FORMAT_DENSE = 2 } aligned_format_kind;

/* Widths sum to 16 and are multiples of 4; those of `fixed` formats are 4 or 8. */
typedef struct {
  int32_t kind;    /* aligned_format_kind */
  int32_t role;    /* aligned_role */
  int32_t element; /* aligned_element of the values that are appended */
  int32_t planes;  /* 1 .. ALIGNED_MAX_PLANES */
  int32_t width[ALIGNED_MAX_PLANES]; /* bits of each plane, most significant first; 0 past `planes` */
} aligned_format;

/* What is known of the scales of one kv head's tokens (M2, M3); `fixed` formats only. */
typedef struct {
  int32_t largest; /* code of the largest scale, 0 where there is no token */
  int32_t median;  /* least code such that at least half of the tokens have it or a smaller one; 0 where there is no token */
  int64_t below;   /* tokens with a smaller code than `median` */
  int64_t tokens;  /* tokens that are counted: those that are not kept aside */
  uint32_t count[256]; /* how many tokens have which code; count[0] is 0 */
} aligned_scales;

/* A token that is kept aside (S7): its values are in the cache's list, its bits in the planes mean nothing. */
typedef struct {
  int64_t row, token;
} aligned_aside;

#endif
