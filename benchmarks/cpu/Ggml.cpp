// See the header. Types and functions are declared as far as they are used, as ggml.h has them.
#include "Ggml.h"

#include <cstring>
#include <dlfcn.h>

using namespace aligned;

namespace {

struct InitParams {
  size_t bytes;
  void *memory;
  bool noAlloc;
};

/// ggml_cplan, which is returned by value: its first fields, and room for what later versions add.
struct Plan {
  size_t workSize;
  uint8_t *work;
  int threads;
  char rest[100];
};

} // namespace

struct Ggml::Functions {
  void *(*init)(InitParams);
  void (*free)(void *);
  void *(*newTensor)(void *, int, int64_t, int64_t, int64_t, int64_t);
  void *(*flashAttention)(void *, void *, void *, void *, void *, float, float, float);
  void *(*newGraph)(void *);
  void (*buildForward)(void *, void *);
  void *(*data)(const void *);
  size_t (*bytes)(const void *);
  size_t (*quantize)(int, const float *, void *, int64_t, int64_t, int64_t, const float *);
  void (*cpuInit)();
  Plan (*plan)(const void *, int, void *);
  int (*compute)(void *, Plan *);
};

std::shared_ptr<Ggml> Ggml::open(const std::string &folder) {
  auto ggml = std::make_shared<Ggml>();
  ggml->f = std::make_shared<Functions>();
  void *libraries[2];
  for (int i = 0; i < 2; ++i)
    if (!(libraries[i] = dlopen((folder + (i ? "/libggml-cpu.so" : "/libggml-base.so")).c_str(), RTLD_NOW | RTLD_GLOBAL)))
      return refuse(std::string("--ggml: ") + dlerror()), nullptr;
  bool ok = true;
  auto find = [&](auto &function, const char *name) {
    void *symbol = nullptr;
    for (void *library : libraries)
      symbol = symbol ? symbol : dlsym(library, name);
    if (!symbol) {
      refuse(std::string("--ggml: expected a function ") + name + " in " + folder);
      ok = false;
    }
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  Functions &f = *ggml->f;
  find(f.init, "ggml_init");
  find(f.free, "ggml_free");
  find(f.newTensor, "ggml_new_tensor_4d");
  find(f.flashAttention, "ggml_flash_attn_ext");
  find(f.newGraph, "ggml_new_graph");
  find(f.buildForward, "ggml_build_forward_expand");
  find(f.data, "ggml_get_data");
  find(f.bytes, "ggml_nbytes");
  find(f.quantize, "ggml_quantize_chunk");
  find(f.cpuInit, "ggml_cpu_init");
  find(f.plan, "ggml_graph_plan");
  find(f.compute, "ggml_graph_compute");
  if (!ok)
    return nullptr;
  f.cpuInit();
  return ggml;
}

Ggml::Attention Ggml::attention(Type type, const Bytes &keys, const Bytes &values, int64_t queryHeads, int64_t kvHeads, int64_t tokens,
                                int64_t keyDim, int64_t valueDim, float scale) const {
  Attention a;
  std::shared_ptr<Functions> functions = f;
  a.memory = std::make_shared<Bytes>(keys.size() + values.size() + (1 << 20));
  a.context = std::shared_ptr<void>(f->init({a.memory->size(), a.memory->data(), false}), [functions](void *context) { functions->free(context); });
  void *context = a.context.get();
  a.query = f->newTensor(context, F32, keyDim, 1, queryHeads, 1);
  auto store = [&](const Bytes &from, int64_t dim) {
    void *tensor = f->newTensor(context, type, dim, tokens, kvHeads, 1);
    if (type == F16) {
      memcpy(f->data(tensor), from.data(), from.size());
    } else {
      std::vector<double> wide = toDouble(from.data(), tokens * kvHeads * dim, ALIGNED_DTYPE_F16);
      std::vector<float> numbers(wide.begin(), wide.end());
      f->quantize(type, numbers.data(), f->data(tensor), 0, tokens * kvHeads, dim, nullptr);
    }
    return tensor;
  };
  void *k = store(keys, keyDim), *v = store(values, valueDim);
  a.out = f->flashAttention(context, a.query, k, v, nullptr, scale, 0, 0);
  a.graph = f->newGraph(context);
  f->buildForward(a.graph, a.out);
  a.numbers = queryHeads * valueDim;
  return a;
}

std::vector<float> Ggml::run(const Attention &a, const std::vector<double> &query, int threads) {
  std::copy(query.begin(), query.end(), static_cast<float *>(f->data(a.query)));
  Plan plan = f->plan(a.graph, threads, nullptr);
  if (plan.workSize > work.size())
    work.resize(plan.workSize);
  plan.work = work.data();
  f->compute(a.graph, &plan);
  const float *out = static_cast<const float *>(f->data(a.out));
  return std::vector<float>(out, out + a.numbers);
}
