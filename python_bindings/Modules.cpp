// The compiler as Python objects: modules that are called with arrays and caches, and what else a text is compiled to.
#include "Caches.h"
#include "Compiling.h"
#include "Modules.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

using namespace nb::literals;

nb::dict asDict(const aligned_tally &read) {
  nb::dict entry;
  entry["key_bits"] = read.key_bits;
  entry["key_values"] = read.key_values;
  entry["value_bits"] = read.value_bits;
  entry["value_values"] = read.value_values;
  return entry;
}

namespace {

SharedSource sourceOf(const std::string &text, const std::optional<std::string> &filename, bool allowUnregistered) {
  return std::make_shared<const Source>(Source{text, filename, allowUnregistered});
}

using ModuleHandle = std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)>;

/// Text that the C interface gave.
struct FreeText {
  void operator()(char *text) const { aligned_text_free(text); }
};
using Text = std::unique_ptr<char, FreeText>;

class Module {
public:
  Module(SharedSource given, const std::string &options, const std::optional<std::string> &function) : source(std::move(given)), options(options), function(function) {
    std::tie(module, remarks) = compiled(source, [options, function](const char *text) {
      return ModuleHandle(aligned_module_compile(text, options.c_str(), function ? function->c_str() : nullptr), aligned_module_destroy);
    });
    arguments.resize(aligned_module_arguments(get()));
    results.resize(aligned_module_results(get()));
    for (size_t index = 0; index < arguments.size(); ++index)
      aligned_module_argument(get(), index, &arguments[index]);
    for (size_t index = 0; index < results.size(); ++index)
      aligned_module_result(get(), index, &results[index]);
  }

  /// LLVM IR and object file. Who runs a module has no use for them: they are compiled when they are asked for.
  const std::pair<nb::str, nb::bytes> &code() {
    if (!asCode) {
      struct Code {
        Text llvmIR, object;
        int64_t bytes = 0;
        explicit operator bool() const { return bool(llvmIR); }
      };
      Code code = compiled(source, [options = options, function = function](const char *text) {
        char *llvmIR = nullptr, *object = nullptr;
        Code code;
        aligned_compile_object(text, options.c_str(), function ? function->c_str() : nullptr, &llvmIR, &object, &code.bytes);
        code.llvmIR.reset(llvmIR);
        code.object.reset(object);
        return code;
      }).first;
      asCode.emplace(nb::str(code.llvmIR.get()), nb::bytes(code.object.get(), code.bytes));
    }
    return *asCode;
  }

  nb::object call(const nb::args &given) {
    auto [value, tally] = callAndTally(given);
    lastTally = std::move(tally);
    return value;
  }

  /// For callers that share a module, each of whom wants to know what its own call read.
  nb::tuple callWithReads(const nb::args &given) {
    auto [value, tally] = callAndTally(given);
    return nb::make_tuple(value, listOf(tally));
  }

  std::unique_ptr<Cache> newCache(int32_t index) const {
    return Cache::take(aligned_module_create_cache(get(), index, 0));
  }

  nb::list reads() const { return listOf(lastTally); }

  static std::vector<std::string> describe(const std::vector<aligned_type> &types) {
    std::vector<std::string> texts;
    for (const aligned_type &type : types)
      texts.push_back(typeText(type));
    return texts;
  }

  const aligned_module *get() const { return module.get(); }

  std::vector<aligned_type> arguments, results;
  Diagnostics remarks;

private:
  using Tally = std::vector<aligned_tally>; // by the attention's number

  std::pair<nb::object, Tally> callAndTally(const nb::args &given) const {
    if (given.size() != arguments.size())
      throw Error("expected " + std::to_string(arguments.size()) + " arguments, got " + std::to_string(given.size()));
    std::vector<aligned_value> in(arguments.size()), out(results.size());
    std::vector<Input> inputs; // keeps the arrays alive
    std::vector<Cache *> caches;
    std::vector<size_t> places; // of the caches among the arguments
    for (size_t index = 0; index < arguments.size(); ++index) {
      const aligned_type &type = arguments[index];
      std::string what = "argument " + std::to_string(index);
      if (!type.is_cache) {
        inputs.push_back(readArray(given[index], dtypeOf(type.dtype), type.rank, what));
        in[index].array = inputs.back().array;
      } else if (Cache *cache = nullptr; nb::try_cast(given[index], cache) && cache) {
        caches.push_back(cache);
        places.push_back(index);
      } else {
        throw Error("expected an alignedkv.Cache as " + what + ", got " + nb::type_name(given[index].type()).c_str());
      }
    }
    Tally tally(aligned_module_attentions(get()), aligned_tally{});
    run(caches, places, in, out, tally);

    nb::list values;
    for (size_t index = 0; index < results.size(); ++index)
      values.append(results[index].is_cache ? takeCache(out[index].cache, given) : takeArray(results[index], out[index].array));
    nb::object value = values.size() == 0 ? nb::none() : values.size() == 1 ? nb::object(values[0]) : nb::object(nb::tuple(values));
    return {value, std::move(tally)};
  }

  void run(const std::vector<Cache *> &caches, const std::vector<size_t> &places, std::vector<aligned_value> &in, std::vector<aligned_value> &out, Tally &tally) const {
    nb::gil_scoped_release release;
    CacheLocks locks(caches);
    if (locks.hasTwins())
      throw Error("expected a cache to be passed once, got it twice");
    for (size_t index = 0; index < caches.size(); ++index)
      in[places[index]].cache = caches[index]->get();
    listen(tally);
    int failed = aligned_module_call(get(), in.data(), out.data());
    aligned_on_interrupt(nullptr, nullptr);
    aligned_rt_record(nullptr, 0);
    if (!failed)
      return;
    {
      nb::gil_scoped_acquire acquire;
      if (PyErr_Occurred()) // Ctrl-C
        throw nb::python_error();
    }
    throwLast();
  }

  /// Has kernels of this thread report what they read, and asks for signals while they run. A handler may call modules itself, which end with nobody listening.
  static void listen(Tally &tally) {
    aligned_rt_record(tally.data(), tally.size());
    aligned_on_interrupt([](void *tally) -> int {
      nb::gil_scoped_acquire acquire;
      const int interrupted = PyErr_CheckSignals();
      listen(*static_cast<Tally *>(tally));
      return interrupted;
    }, &tally);
  }

  /// The object of the argument that was appended to in place, or a new cache.
  static nb::object takeCache(aligned_cache *cache, const nb::args &given) {
    for (nb::handle argument : given)
      if (Cache *known = nullptr; nb::try_cast(argument, known) && known && known->holds(cache))
        return nb::borrow(argument);
    return nb::cast(Cache::take(cache));
  }

  static nb::list listOf(const Tally &tally) {
    nb::list reads;
    for (const aligned_tally &read : tally)
      reads.append(asDict(read));
    return reads;
  }

  SharedSource source;
  std::string options;
  std::optional<std::string> function;
  ModuleHandle module{nullptr, aligned_module_destroy};
  std::optional<std::pair<nb::str, nb::bytes>> asCode;
  Tally lastTally;
};

nb::tuple transform(const std::string &text, const std::string &pipeline, bool allowUnregistered, const std::optional<std::string> &filename, bool withPlaces) {
  auto [result, said] = compiled(sourceOf(text, filename, allowUnregistered), [pipeline, withPlaces](const char *source) {
    return Text((withPlaces ? aligned_transform_with_places : aligned_transform)(source, pipeline.c_str()));
  });
  return nb::make_tuple(nb::str(result.get()), listOf(said));
}

nb::tuple compileKernels(const std::string &text, const std::string &options, bool allowUnregistered, const std::optional<std::string> &filename) {
  using Texts = std::optional<std::pair<Text, Text>>;
  auto [texts, said] = compiled(sourceOf(text, filename, allowUnregistered), [options](const char *source) {
    char *ptx = nullptr, *sidecar = nullptr;
    return aligned_compile_kernels(source, options.c_str(), &ptx, &sidecar) ? Texts() : Texts(std::pair(Text(ptx), Text(sidecar)));
  });
  return nb::make_tuple(nb::str(texts->first.get()), nb::str(texts->second.get()), listOf(said));
}

/// [(name, meaning, kind)]
nb::list pipelineOptions() {
  const aligned_option *options;
  nb::list list;
  constexpr const char *kinds[] = {"text", "flag", "integer", "count", "number", "numbers"}; // by aligned_option_kind
  for (int32_t left = aligned_pipeline_options(&options); left > 0; --left, ++options)
    list.append(nb::make_tuple(options->name, options->help, kinds[options->kind]));
  return list;
}

} // namespace

void bindModules(nb::module_ &m) {
  m.def("_transform", &transform, "text"_a, "pipeline"_a, "allow_unregistered_dialect"_a = false, "filename"_a = nb::none(), "with_places"_a = false);
  m.def("_compile_kernels", &compileKernels, "text"_a, "options"_a, "allow_unregistered_dialect"_a = false, "filename"_a = nb::none());
  m.def("_pipeline_options", &pipelineOptions);

  nb::class_<Module>(m, "Module", R"(A compiled function. Call it with one argument for each entry of `arguments`.

A tensor is any array in CPU memory with that dtype and shape; one that is contiguous is not copied. A cache tensor is a Cache.
Returns None, one result, or a tuple of them: NumPy arrays that own their memory, and caches. A cache that the function appends to
is appended to in place: the result is the Cache that was passed.

Raises Error for arguments that do not fit, before anything happens, and for what the function finds wrong while it runs; by then it may
have appended. The same holds for Ctrl-C.)")
      .def("__init__", [](Module *self, const std::string &text, const std::string &options, const std::optional<std::string> &function, bool allowUnregistered,
                          const std::optional<std::string> &filename) {
        new (self) Module(sourceOf(text, filename, allowUnregistered), options, function);
      }, "text"_a, "options"_a = "", "function"_a = nb::none(), "allow_unregistered_dialect"_a = false, "filename"_a = nb::none())
      .def("__call__", &Module::call)
      .def("_call_with_reads", &Module::callWithReads)
      .def("new_cache", &Module::newCache, "index"_a, R"(An empty cache for the argument with this index: of its type, with the planes that it reads, and with the offset of keys that the model says,
if any (aligned.key_offset). Raises Error if the argument is no cache.)")
      .def_prop_ro("arguments", [](const Module &module) { return Module::describe(module.arguments); }, "Types of the arguments, as text.")
      .def_prop_ro("results", [](const Module &module) { return Module::describe(module.results); }, "Types of the results, as text.")
      .def_prop_ro("attentions", [](const Module &module) { return aligned_module_attentions(module.get()); }, "How many attentions were found.")
      .def_prop_ro("dense_up_to", [](const Module &module) { return aligned_module_dense_up_to(module.get()); },
                   "Tokens up to which some attention reads caches as they were appended, where these hold that, too; new_cache() makes such caches.")
      .def_prop_ro("remarks", [](const Module &module) { return listOf(module.remarks); },
                   "Remarks of the compiler, a list of Diagnostic: what was not recognised as attention, or stays dense, and why.")
      .def_prop_ro("llvm_ir", [](Module &module) { return module.code().first; }, R"(The code in LLVM's IR, as text.

It is compiled when this or `object` is first asked for, from the same text, options and files. Kernels, which run as objects of their own, are in it, too.
Raises CompileError if a file that an option names has changed so that it is refused.)")
      .def_prop_ro("object", [](Module &module) { return module.code().second; }, R"(The same as an object file of this machine, as bytes.

`void aligned_entry(void **)` calls the function (aligned/JIT/Module.h); what is undefined in it is libm, malloc, the runtime, libAlignedRuntime, and where a
processor can't round to bfloat16, __truncsfbf2 and __truncdfbf2 of compiler-rt.)")
      .def_prop_ro("reads", &Module::reads, R"(What the last call read, one dict for each attention, summed over batch and kv heads.

key_bits and value_bits were read; key_values and value_values are held, so that key_bits / key_values is the mean number of bits a value.)");
}
