// aligned-bench: decode attention over one captured cache by several kernels in turn, each beside the dense kernel of the same round.
//
// A turn is one step of every layer of every copy of the capture, one after another as in a model, so that copies take it out of the caches. Contestants take turns
// in every round: whatever else the machine does meets all of them, and ratios are taken within a round. Errors are against attention in float64.
//
//   dense        this project's kernel over the dense arrays
//   exact, ...   policies, over planes that all of them share
//   read         nothing but reading the dense arrays: what memory allows
//   ggml ...     llama.cpp's flash attention, where --ggml names the folder of its libraries
//   torch ...    torch's scaled_dot_product_attention, where --torch names a Python that has it
#include "Layers.h"
#include "Ggml.h"
#include "Torch.h"

#include "aligned/Runtime/Kernel.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/InitLLVM.h"
#include "llvm/Support/Path.h"
#include "llvm/TargetParser/Host.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

using namespace aligned;
namespace cl = llvm::cl;

namespace {

/// Made once LLVM's own options are gone.
struct CommandLine {
  cl::OptionCategory category{"aligned-bench options"};
  cl::opt<std::string> folder{cl::Positional, cl::Required, cl::desc("DIR"), cl::cat(category)};
  cl::opt<std::string> policies{"policies", cl::desc("Of this project, over planes (default exact,tight,balanced,fast,draft)"),
                                cl::init("exact,tight,balanced,fast,draft"), cl::cat(category)};
  cl::opt<int> copies{"copies", cl::desc("Of the capture, so that a turn reads more than caches hold (default 1)"), cl::init(1), cl::cat(category)};
  cl::opt<int> rounds{"rounds", cl::desc("Turns of each contestant (default 21)"), cl::init(21), cl::cat(category)};
  cl::opt<int> threads{"threads", cl::desc("Of every contestant (default 1)"), cl::init(1), cl::cat(category)};
  cl::opt<int> flush{"flush", cl::desc("MB of other memory that are read before each turn (default 0)"), cl::init(0), cl::value_desc("MB"), cl::cat(category)};
  cl::opt<std::string> ggml{"ggml", cl::desc("Folder of libggml-base.so and libggml-cpu.so"), cl::cat(category)};
  cl::opt<std::string> torch{"torch", cl::desc("Python that has torch"), cl::value_desc("PYTHON"), cl::cat(category)};
  cl::opt<int> patience{"torch-patience", cl::desc("Seconds that torch may take for an answer (default 120)"), cl::init(120), cl::value_desc("S"), cl::cat(category)};
};
const CommandLine *line;

/// What takes turns. A step writes the layer's output, [queryHeads, valueDim].
struct Contestant {
  std::string name;
  double bytes; ///< read, beside a dense cache of 16 bits; 0 where a tally says
  std::function<bool(size_t copy, int64_t layer, std::vector<double> *out)> step;
  std::function<double()> turn = {}; ///< its seconds by a clock of its own: of torch
  std::string note = "";
  double tallied = 0; ///< bytes beside dense, as kernels say
  std::vector<double> seconds = {}, errors = {}, usualErrors = {}; ///< of a step; of heads, relative to the output and to a usual row of V
};

class Bench {
public:
  explicit Bench(const Capture &capture) : c(capture), tokens(c.firstPosition + c.steps) {
    for (int64_t layer = 0; layer < c.layers; ++layer)
      queries.push_back(c.query(layer, c.steps - 1));
    for (int copy = 0; copy < line->copies; ++copy)
      for (int64_t layer = 0; layer < c.layers; ++layer) {
        keys.push_back(denseOf(c, c.k, layer, tokens));
        values.push_back(denseOf(c, c.v, layer, tokens));
      }
  }

  bool addDense();
  bool addPolicies();
  void addReading();
  bool addGgml();
  bool addTorch();
  bool measureErrors();
  bool measureTimes();
  llvm::json::Object json() const;

private:
  size_t at(size_t copy, int64_t layer) const { return copy * c.layers + layer; }
  bool call(const Module &module, int64_t layer, aligned_value key, aligned_value value, std::vector<double> *out) const;
  std::optional<double> turn(const Contestant &contestant) const;
  static double median(std::vector<double> numbers, double share = 0.5) {
    std::sort(numbers.begin(), numbers.end());
    return numbers.empty() ? NAN : numbers[size_t(share * double(numbers.size() - 1) + 0.5)];
  }

  const Capture &c;
  const int64_t tokens;
  std::vector<std::string> queries;
  std::vector<Bytes> keys, values; ///< [copy][layer]
  std::vector<std::array<Cache, 2>> planes;    ///< [copy][layer]
  std::vector<Module> modules;
  std::shared_ptr<Torch> torch;
  std::vector<Contestant> contestants;
};

bool Bench::call(const Module &module, int64_t layer, aligned_value key, aligned_value value, std::vector<double> *out) const {
  aligned_value arguments[3] = {contiguous(queries[layer].data(), {1, c.queryHeads, 1, c.keyDim}), key, value}, result = {};
  if (aligned_module_call(module.get(), arguments, &result))
    return refuse(aligned_last_error()), false;
  if (out)
    *out = toDouble(result.array.data, c.queryHeads * c.valueDim, ALIGNED_DTYPE_F32);
  aligned_array_free(&result.array);
  return true;
}

bool Bench::addDense() {
  modules.push_back(compile(moduleText(c), "policy=exact format=dense"));
  if (!modules.back())
    return false;
  const size_t module = modules.size() - 1;
  contestants.push_back({"dense", 1, [=, this](size_t copy, int64_t layer, std::vector<double> *out) {
                           return call(modules[module], layer, contiguous(keys[at(copy, layer)].data(), {1, c.kvHeads, tokens, c.keyDim}),
                                       contiguous(values[at(copy, layer)].data(), {1, c.kvHeads, tokens, c.valueDim}), out);
                         }});
  return true;
}

bool Bench::addPolicies() {
  llvm::SmallVector<llvm::StringRef> names;
  llvm::SplitString(line->policies, names, ",");
  std::vector<std::shared_ptr<Kernel>> kernels;
  int64_t denseUpTo = 0;
  for (llvm::StringRef name : names) {
    kernels.push_back(compileKernel(moduleText(c), "policy=" + name.str()));
    if (!kernels.back())
      return false;
    denseUpTo = std::max(denseUpTo, kernels.back()->denseUpTo);
  }
  if (kernels.empty())
    return true;
  kernels.front()->denseUpTo = denseUpTo; // caches are the same for all
  for (int copy = 0; copy < line->copies; ++copy)
    for (int64_t layer = 0; layer < c.layers; ++layer) {
      Caches caches;
      if (!caches.create(c, *kernels.front()) || !caches.extend(c, layer, tokens))
        return false;
      planes.push_back({std::move(caches.side[0]), std::move(caches.side[1])});
    }
  for (auto [name, kernel] : llvm::zip(names, kernels)) {
    modules.push_back(std::move(kernel->module));
    const size_t module = modules.size() - 1;
    contestants.push_back({name.str(), 0, [=, this](size_t copy, int64_t layer, std::vector<double> *out) {
                             aligned_value key, value;
                             key.cache = planes[at(copy, layer)][0].get();
                             value.cache = planes[at(copy, layer)][1].get();
                             return call(modules[module], layer, key, value, out);
                           }});
  }
  return true;
}

/// Reads and adds up whole words, a kv head's keys and values at a time.
void Bench::addReading() {
  struct Job {
    const Bytes *arrays[2];
    int64_t parts;
    static void run(void *self, int64_t begin, int64_t end) {
      auto *job = static_cast<Job *>(self);
      uint64_t sums[8] = {};
      for (const Bytes *array : job->arrays) {
        const size_t words = array->size() / 64, first = words * begin / job->parts, last = words * end / job->parts;
        for (size_t i = first; i < last; ++i) {
          uint64_t line[8];
          memcpy(line, array->data() + i * 64, 64);
          for (int w = 0; w < 8; ++w)
            sums[w] += line[w];
        }
      }
      volatile uint64_t sink = std::accumulate(std::begin(sums), std::end(sums), uint64_t(0));
      (void)sink;
    }
  };
  contestants.push_back({"read", 1, [this](size_t copy, int64_t layer, std::vector<double> *) {
                           Job job{{&keys[at(copy, layer)], &values[at(copy, layer)]}, c.kvHeads};
                           aligned_rt_parallel(c.kvHeads, &Job::run, &job);
                           return true;
                         }});
}

bool Bench::addGgml() {
  if (line->ggml.empty() || c.element != ALIGNED_ELEMENT_F16)
    return true;
  auto library = Ggml::open(line->ggml);
  if (!library)
    return false;
  for (auto [name, type, bytes] : {std::tuple("ggml f16", Ggml::F16, 1.0), {"ggml q8_0", Ggml::Q8, 34.0 / 64}}) {
    auto attentions = std::make_shared<std::vector<Ggml::Attention>>();
    for (size_t i = 0; i < keys.size(); ++i)
      attentions->push_back(library->attention(type, keys[i], values[i], c.queryHeads, c.kvHeads, tokens, c.keyDim, c.valueDim, float(c.scale)));
    contestants.push_back({name, bytes, [=, this](size_t copy, int64_t layer, std::vector<double> *out) {
                             const std::vector<double> query = widened(queries[layer].data(), c.queryHeads * c.keyDim, c.element);
                             const std::vector<float> got = library->run((*attentions)[at(copy, layer)], query, line->threads);
                             if (out)
                               out->assign(got.begin(), got.end());
                             return true;
                           }});
  }
  return true;
}

/// Its steps are for their numbers alone.
bool Bench::addTorch() {
  if (line->torch.empty())
    return true;
  torch = Torch::start(line->torch, line->folder, line->copies, line->threads, line->patience);
  if (!torch)
    return false;
  const std::vector<Torch::Contestant> kinds = torch->contestants();
  for (size_t i = 0; i < kinds.size(); ++i)
    contestants.push_back({kinds[i].name, kinds[i].bytes,
                           [=, this](size_t, int64_t layer, std::vector<double> *out) {
                             *out = torch->output(i, layer);
                             return true;
                           },
                           [=, this] { return torch->time(i); }, kinds[i].note});
  return true;
}

bool Bench::measureErrors() {
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::vector<double> want = c.exact(queries[layer], layer, tokens);
    std::vector<double> usual;
    for (int64_t head = 0; head < c.kvHeads; ++head)
      usual.push_back(c.usualRow(layer, head, tokens));
    for (Contestant &contestant : contestants) {
      std::vector<double> got;
      aligned_tally tally = {};
      aligned_rt_record(&tally, 1);
      const bool ok = contestant.step(0, layer, &got);
      aligned_rt_record(nullptr, 0);
      if (!ok)
        return false;
      contestant.tallied += tally.key_values ? double(tally.key_bits + tally.value_bits) / double(tally.key_values + tally.value_values) / 16 / double(c.layers) : 0;
      if (got.empty())
        continue;
      const std::vector<double> relative = relativeErrors(got, want, c.valueDim);
      contestant.errors.insert(contestant.errors.end(), relative.begin(), relative.end());
      for (int64_t head = 0; head < c.queryHeads; ++head) {
        auto first = want.begin() + head * c.valueDim;
        const double length = std::sqrt(std::inner_product(first, first + c.valueDim, first, 0.0));
        contestant.usualErrors.push_back(relative[head] * length / usual[head / (c.queryHeads / c.kvHeads)]);
      }
    }
  }
  return true;
}

/// Its seconds; nothing where a step fails.
std::optional<double> Bench::turn(const Contestant &contestant) const {
  if (contestant.turn)
    return contestant.turn();
  const double start = now();
  for (int copy = 0; copy < line->copies; ++copy)
    for (int64_t layer = 0; layer < c.layers; ++layer)
      if (!contestant.step(copy, layer, nullptr))
        return std::nullopt;
  return now() - start;
}

bool Bench::measureTimes() {
  std::vector<char> other(size_t(line->flush) << 20, 1);
  Progress progress("rounds");
  for (int round = 0; round < line->rounds; ++round) {
    for (Contestant &contestant : contestants) {
      volatile int sink = std::accumulate(other.begin(), other.end(), 0);
      (void)sink;
      const std::optional<double> seconds = turn(contestant);
      if (!seconds)
        return false;
      contestant.seconds.push_back(*seconds / double(line->copies * c.layers));
    }
    progress.show(round + 1, line->rounds);
  }
  return true;
}

llvm::json::Object Bench::json() const {
  auto quartiles = [](const std::vector<double> &numbers) { return llvm::json::Array{jsonNumber(median(numbers, 0.25)), jsonNumber(median(numbers)), jsonNumber(median(numbers, 0.75))}; };
  auto mean = [](const std::vector<double> &numbers) { return numbers.empty() ? NAN : std::accumulate(numbers.begin(), numbers.end(), 0.0) / double(numbers.size()); };
  llvm::json::Array all;
  for (const Contestant &contestant : contestants) {
    if (contestant.turn && torch->lost())
      continue;
    std::vector<double> microseconds, ratios, squares;
    for (size_t i = 0; i < contestant.seconds.size(); ++i) {
      microseconds.push_back(contestant.seconds[i] * 1e6);
      ratios.push_back(contestant.seconds[i] / contestants.front().seconds[i]);
    }
    for (double error : contestant.usualErrors)
      squares.push_back(error * error);
    llvm::json::Object one{{"name", contestant.name},
                           {"bytes", jsonNumber(contestant.bytes ? contestant.bytes : contestant.tallied)},
                           {"microseconds", quartiles(microseconds)},
                           {"beside_dense", quartiles(ratios)},
                           {"error_mean", jsonNumber(mean(contestant.errors))},
                           {"error_of_usual_row", jsonNumber(std::sqrt(mean(squares)))}};
    if (!contestant.note.empty())
      one["note"] = contestant.note;
    all.push_back(std::move(one));
  }
  return llvm::json::Object{{"capture", llvm::sys::path::filename(line->folder).str()},
          {"cpu", llvm::sys::getHostCPUName().str()},
          {"tokens", tokens},
          {"kv_heads", c.kvHeads},
          {"group", c.queryHeads / c.kvHeads},
          {"head_dim", c.keyDim},
          {"layers", c.layers},
          {"copies", int64_t(line->copies)},
          {"dense_megabytes", double(keys.size() * (keys.front().size() + values.front().size())) / 1e6},
          {"threads", int64_t(line->threads)},
          {"flush_megabytes", int64_t(line->flush)},
          {"rounds", int64_t(line->rounds)},
          {"contestants", std::move(all)}};
}

} // namespace

int main(int argc, char **argv) {
  llvm::InitLLVM init(argc, argv);
  cl::ResetCommandLineParser();
  const CommandLine given;
  line = &given;
  cl::ParseCommandLineOptions(argc, argv, "aligned-bench: decode attention over a captured cache by several kernels in turn; prints one JSON object\n");
  if (line->copies < 1 || line->rounds < 1 || line->threads < 1 || line->flush < 0 || line->patience < 1)
    return refuse("expected at least one copy, round, thread and second of patience, and no negative --flush"), 2;
  aligned_rt_set_threads(line->threads);
  const std::optional<Capture> capture = readCapture(line->folder);
  if (!capture)
    return 1;
  Bench bench(*capture);
  if (!bench.addDense() || !bench.addPolicies() || !bench.addGgml() || !bench.addTorch())
    return 1;
  bench.addReading();
  if (!bench.measureErrors() || !bench.measureTimes())
    return 1;
  llvm::outs() << llvm::formatv("{0:2}\n", llvm::json::Value(bench.json()));
  return 0;
}
