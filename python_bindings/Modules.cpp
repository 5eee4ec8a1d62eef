// The compiler as Python objects: modules that are called with arrays and caches.
#include "Caches.h"
#include "Modules.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

using namespace nb::literals;

namespace {

/// What a text may hold while this lives.
struct Unregistered {
  explicit Unregistered(bool allow) { aligned_allow_unregistered_dialects(allow); }
  ~Unregistered() { aligned_allow_unregistered_dialects(false); }
};

class Module {
public:
  Module(const std::string &source, const std::string &options, const std::optional<std::string> &function, bool allowUnregistered) {
    nb::gil_scoped_release release;
    Unregistered allowed(allowUnregistered);
    module = aligned_module_compile(source.c_str(), options.c_str(), function ? function->c_str() : nullptr);
    if (!module)
      throwLast();
    arguments.resize(aligned_module_arguments(module));
    results.resize(aligned_module_results(module));
    for (size_t index = 0; index < arguments.size(); ++index)
      aligned_module_argument(module, index, &arguments[index]);
    for (size_t index = 0; index < results.size(); ++index)
      aligned_module_result(module, index, &results[index]);
  }
  Module(const Module &) = delete;
  ~Module() { aligned_module_destroy(module); }

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
    return Cache::take(aligned_module_create_cache(module, index, 0));
  }

  nb::list reads() const { return listOf(lastTally); }

  static std::vector<std::string> describe(const std::vector<aligned_type> &types) {
    std::vector<std::string> texts;
    for (const aligned_type &type : types)
      texts.push_back(typeText(type));
    return texts;
  }

  aligned_module *module;
  std::vector<aligned_type> arguments, results;

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
    Tally tally(aligned_module_attentions(module), aligned_tally{});
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
    aligned_rt_record(tally.data(), tally.size());
    int failed = aligned_module_call(module, in.data(), out.data());
    aligned_rt_record(nullptr, 0);
    if (failed)
      throwLast();
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
    for (const aligned_tally &read : tally) {
      nb::dict entry;
      entry["key_bits"] = read.key_bits;
      entry["key_values"] = read.key_values;
      entry["value_bits"] = read.value_bits;
      entry["value_values"] = read.value_values;
      reads.append(entry);
    }
    return reads;
  }

  Tally lastTally;
};

std::string transform(const std::string &source, const std::string &pipeline, bool allowUnregistered) {
  nb::gil_scoped_release release;
  Unregistered allowed(allowUnregistered);
  std::unique_ptr<char, decltype(&aligned_text_free)> text(aligned_transform(source.c_str(), pipeline.c_str()), aligned_text_free);
  if (!text)
    throwLast();
  return text.get();
}

std::vector<std::string> lines(const char *text) {
  std::vector<std::string> result;
  std::string rest = text;
  for (size_t begin = 0, end; (end = rest.find('\n', begin)) != std::string::npos; begin = end + 1)
    result.push_back(rest.substr(begin, end - begin));
  return result;
}

} // namespace

void bindModules(nb::module_ &m) {
  m.def("transform", &transform, "text"_a, "pipeline"_a, "allow_unregistered_dialect"_a = false,
        R"(Runs an MLIR pass pipeline over a module's text and returns the text that it becomes.

pipeline: as on aligned-opt's command line, 'aligned-pipeline{to=store}' or 'builtin.module(aligned-raise-attention)'.
allow_unregistered_dialect: as in compile.
Raises Error with the diagnostics if the text, the pipeline or a pass fails.)");

  nb::class_<Module>(m, "Module", R"(A compiled function. Call it with one argument for each entry of `arguments`.

A tensor is any array in CPU memory with that dtype and shape; one that is contiguous is not copied. A cache tensor is a Cache.
Returns None, one result, or a tuple of them: NumPy arrays that own their memory, and caches. A cache that the function appends to
is appended to in place: the result is the Cache that was passed.

Raises Error for arguments that do not fit, before anything happens, and for what the function finds wrong while it runs; by then it may
have appended.)")
      .def("__init__", [](Module *self, const std::string &text, const std::string &options, const std::optional<std::string> &function, bool allowUnregistered) {
        new (self) Module(text, options, function, allowUnregistered);
      }, "text"_a, "options"_a, "function"_a = nb::none(), "allow_unregistered_dialect"_a = false)
      .def("__call__", &Module::call)
      .def("_call_with_reads", &Module::callWithReads)
      .def("new_cache", &Module::newCache, "index"_a, R"(An empty cache for the argument with this index: of its type, with the planes that it reads, and with the offset of keys that the model says,
if any (aligned.key_offset). Raises Error if the argument is no cache.)")
      .def_prop_ro("arguments", [](const Module &module) { return Module::describe(module.arguments); }, "Types of the arguments, as text.")
      .def_prop_ro("results", [](const Module &module) { return Module::describe(module.results); }, "Types of the results, as text.")
      .def_prop_ro("attentions", [](const Module &module) { return aligned_module_attentions(module.module); }, "How many attentions were found.")
      .def_prop_ro("dense_up_to", [](const Module &module) { return aligned_module_dense_up_to(module.module); },
                   "Tokens up to which some attention reads caches as they were appended, where these hold that, too; new_cache() makes such caches.")
      .def_prop_ro("remarks", [](const Module &module) { return lines(aligned_module_remarks(module.module)); },
                   "Remarks of the compiler, a list of lines: what was not recognised as attention, or stays dense, and why.")
      .def_prop_ro("reads", &Module::reads, R"(What the last call read, one dict for each attention, summed over batch and kv heads.

key_bits and value_bits were read; key_values and value_values are held, so that key_bits / key_values is the mean number of bits a value.)");
}
