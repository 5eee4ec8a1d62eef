/* Compile a module and run it: the C ABI over compiler and runtime that tools and Python share. */
#ifndef ALIGNED_JIT_MODULE_H
#define ALIGNED_JIT_MODULE_H

#include "aligned/Runtime/Cache.h"
#include "aligned/Runtime/Call.h"
#include "aligned/Runtime/Kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Failing calls return null or nonzero and leave every diagnostic, one a line, in aligned_last_error(). */

typedef enum { ALIGNED_SEVERITY_ERROR, ALIGNED_SEVERITY_WARNING, ALIGNED_SEVERITY_REMARK, ALIGNED_SEVERITY_NOTE } aligned_severity;

/* What the compiler said, and where. */
typedef struct {
  aligned_severity severity; /* a note is of the nearest one ahead of it that is none */
  const char *message;
  const char *filename; /* null: of a text without a name */
  int32_t line, column; /* from 1; line 0: of no place */
} aligned_diagnostic;

/* All that was said by the last call on this thread that takes a text: errors first, then what was not recognised and why. Returns how many; they are valid until the next such call. */
int32_t aligned_last_diagnostics(const aligned_diagnostic **diagnostics);

/* Element types of dense arguments and results. */
typedef enum {
  ALIGNED_DTYPE_F16, ALIGNED_DTYPE_BF16, ALIGNED_DTYPE_F32, ALIGNED_DTYPE_F64,
  ALIGNED_DTYPE_I1, ALIGNED_DTYPE_I8, ALIGNED_DTYPE_I16, ALIGNED_DTYPE_I32, ALIGNED_DTYPE_I64
} aligned_dtype;

#define ALIGNED_DYNAMIC (-1)
#define ALIGNED_MAX_RANK 8

/* One argument or result of the function: a dense tensor, or a cache (its tensor type has a plane encoding). */
typedef struct {
  int32_t is_cache;
  aligned_dtype dtype;
  int32_t rank;
  int64_t shape[ALIGNED_MAX_RANK]; /* ALIGNED_DYNAMIC where unknown */
  aligned_format format;           /* of a cache */
  int32_t resident;                /* of a cache: planes that are read, the most significant ones. One with fewer is refused (S9) */
} aligned_type;

/* A dense array. `strides` are in elements. */
typedef struct {
  void *data;
  int64_t shape[ALIGNED_MAX_RANK];
  int64_t strides[ALIGNED_MAX_RANK];
  void *owner; /* of a result: what aligned_array_free frees */
} aligned_array;

typedef union {
  aligned_array array;
  aligned_cache *cache;
} aligned_value;

typedef struct aligned_module aligned_module;

/* Whether texts that this thread gives from now on may hold ops of dialects that are not linked, in generic form: attention that such ops say by name is raised, all else of
 * them is refused behind that. At first they may not. */
void aligned_allow_unregistered_dialects(int allow);

/* What texts that this thread gives from now on are called in diagnostics; null: nothing, as at first. */
void aligned_name_source(const char *name);

/* Runs a pass pipeline, such as "aligned-pipeline{to=store}" or "builtin.module(...)", over a module's text. Returns text to free with aligned_text_free. */
char *aligned_transform(const char *source, const char *pipeline);
/* The same; the text says of each op where it came from, so that what is said of that text is of places in the first. */
char *aligned_transform_with_places(const char *source, const char *pipeline);
void aligned_text_free(char *text);

typedef enum {
  ALIGNED_OPTION_TEXT,
  ALIGNED_OPTION_FLAG,    /* true or false */
  ALIGNED_OPTION_INTEGER,
  ALIGNED_OPTION_COUNT,   /* an integer from 0 on */
  ALIGNED_OPTION_NUMBER,
  ALIGNED_OPTION_NUMBERS, /* separated by commas */
} aligned_option_kind;

/* An option of aligned-pipeline, and what it means. */
typedef struct {
  const char *name, *help;
  aligned_option_kind kind;
} aligned_option;

/* Returns how many there are. */
int32_t aligned_pipeline_options(const aligned_option **options);

/* Compiles the attentions of a module for a GPU: aligned-pipeline with target=nvptx and `options`. Returns 0 and two texts to free, PTX and the JSON that says how to
 * launch it (docs/GPU.md); aligned_program_load takes both. */
int aligned_compile_kernels(const char *source, const char *options, char **ptx, char **sidecar);
/* What to say as `chip` for devices of this compute capability, 90 for 9.0: the newest chip that is known and that they run programs of. */
const char *aligned_chip_for(int32_t capability);

/* Parses, runs aligned-pipeline with `options` ("policy=tight format=auto", may be empty) and compiles for this machine; `dense-up-to=auto` goes by aligned_machine_costs().
 * `function` may be null where the module has one public function with a body. */
aligned_module *aligned_module_compile(const char *source, const char *options, const char *function);
void aligned_module_destroy(aligned_module *module);

/* Compiles the same, and returns 0 and the code in one piece, its LLVM IR and an object file of `bytes` bytes, both to free with aligned_text_free. What is called is `aligned_entry`,
 * with an array of the addresses of what `_mlir_ciface_<function>` takes, and behind them, where that returns something, of the result. */
int aligned_compile_object(const char *source, const char *options, const char *function, char **llvm_ir, char **object, int64_t *bytes);

/* A machine that is compiled for, in LLVM's words. Without a triple and a cpu: this one. Any may be null. */
typedef struct {
  const char *triple;   /* such as aarch64-linux-gnu */
  const char *cpu;      /* such as neoverse-n1; null: any of that triple */
  const char *features; /* in addition, such as +dotprod,+fp16 */
} aligned_machine;

/* An object file for programs in C, which are linked with the runtime alone (docs/Ahead.md). */
typedef struct {
  char *name;    /* of its function */
  char *header;  /* that declares it */
  char *llvm_ir; /* what the object was compiled from */
  char *object;
  int64_t bytes; /* of the object */
} aligned_object;

/* Compiles a module's function as one that C can call. `isa=host` is the widest instruction set of the machine. `name` may be null: the function's own. Returns 0 and an object
 * to hand to aligned_object_free. */
int aligned_compile_ahead(const char *source, const char *options, const char *function, const char *name, const aligned_machine *machine, aligned_object *object);
void aligned_object_free(aligned_object *object);

int32_t aligned_module_arguments(const aligned_module *module);
int32_t aligned_module_results(const aligned_module *module);
int aligned_module_argument(const aligned_module *module, int32_t index, aligned_type *type);
int aligned_module_result(const aligned_module *module, int32_t index, aligned_type *type);
/* Of an argument that is a cache of keys: what the model says is to be taken off K (S2), `aligned.key_offset` of the argument, [kv_heads, head_dim]. Whoever makes
 * the cache hands it to aligned_cache_set_offset. Null where nothing is said. The module's. */
const float *aligned_module_key_offset(const aligned_module *module, int32_t argument);
/* An empty cache as an argument takes it: of its type, with the planes that are read, that offset, and dense copies as far as they are read. Null, with an error, where it
 * takes no cache. */
aligned_cache *aligned_module_create_cache(const aligned_module *module, int32_t argument, int64_t capacity);
/* Tokens up to which some attention of the module reads the dense copies of caches that hold some (option dense-up-to). Whoever makes the caches hands it to
 * aligned_cache_keep_dense. */
int64_t aligned_module_dense_up_to(const aligned_module *module);
/* What decode steps take on this machine, as `dense-up-to=auto` has it: the numbers of aligned/Analysis/Costs.h. The first call on a machine measures them, in a few seconds, and
 * keeps them beside compiled modules; `progress`, which may be null, is told meanwhile. Null, with an error, where that fails. */
const double *aligned_machine_costs(void (*progress)(void *context, int32_t done, int32_t total), void *context);
/* Number of attentions in the module, whose numbers are 0 .. this - 1: that were raised, or that came fused or in stages. */
int32_t aligned_module_attentions(const aligned_module *module);
/* With option probe=true: how many of the results behind the function's own are what the attentions give, in order; 0 where they can't
 * be returned. With certify=true, bound and estimate of each attention are the last results. */
int32_t aligned_module_probes(const aligned_module *module);
/* The tolerance that a policy's name stands for, 0 where it has none. */
double aligned_policy_tolerance(const char *policy);
/* Remarks of the compilation, one a line: what was not recognised and why. */
const char *aligned_module_remarks(const aligned_module *module);

/* Calls the function (aligned_on_interrupt says who may give it up). Shapes are checked against its types. Caches are appended to in place: a cache result is the argument that it came from
 * unless the module packed a dense tensor, then it is new and the caller's to destroy. Dense results belong to the caller (aligned_array_free). */
int aligned_module_call(const aligned_module *module, aligned_value *arguments, aligned_value *results);
void aligned_array_free(aligned_array *array);

#ifdef __cplusplus
}
#endif
#endif
