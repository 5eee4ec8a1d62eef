// What aligned-run does, in three parts: run a model's file, run a captured cache, report either.
#ifndef ALIGNED_TOOLS_ALIGNED_RUN_RUN_H
#define ALIGNED_TOOLS_ALIGNED_RUN_RUN_H

#include "aligned/JIT/Module.h"
#include "aligned/Support/Npy.h"

#include "llvm/Support/JSON.h"

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace aligned {

struct RunOptions {
  std::string policy;                 ///< by name
  std::optional<double> tolerance;    ///< of policy `budget`
  std::string budget;                 ///< a file that goes ahead of the policy where it says something
  std::string target = "cpu", format = "auto", isa = "host";
  bool raise = true; ///< whether attention is found
  std::string chip = "sm_90";         ///< of kernels that are emitted
  int ptx = 0;                        ///< and the version of PTX; 0: the first that knows the chip
  int threads = 1;
  std::optional<double> rtol, atol;   ///< of the comparison with the expected outputs
  bool lastStep = false;              ///< of a captured cache
  std::string denseUpTo = "0";        ///< tokens up to which dense copies of caches are read, or auto
  bool explain = false;               ///< of a captured cache: why planes or dense
  bool profile = false;               ///< of a captured cache: times of a step's parts, too
  bool json = false;

  /// As options of aligned-pipeline.
  std::string pipeline() const;
  /// The budget's file name, or the policy.
  std::string name() const;
};

/// What one attention of a model read.
struct AttentionReport {
  bool counted = false;              ///< not where all of a graph's attention is evaluated as declared
  double keyBits = 0, valueBits = 0; ///< per value
  double bytesFraction = 0;          ///< of a dense kernel's bytes
  std::optional<double> errorMean, errorMax; ///< relative L2 of heads' outputs against attention in float64, where the model lets them be seen
};

/// One output of a model against the expected one, and against the graph with its attention in float64.
struct OutputReport {
  int index = 0;
  bool compared = false, matches = true;
  double maxAbs = 0, maxRel = 0;
  double errorMean = 0, errorMax = 0; ///< relative L2 of the innermost vectors
  bool measured = false;
};

struct ModelReport {
  int attentions = 0;
  bool staged = false; ///< what is measured against is not attention as declared, but stages that came with the model, under their policies
  std::vector<AttentionReport> reads;
  std::vector<OutputReport> outputs;
};

/// What a step of a kv head is expected to take on this machine, and what follows: aligned/Analysis/Costs.h.
struct Choice {
  int64_t tokens = 0, denseUpTo = 0;
  double keyBits = 0, valueBits = 0;
  double planesMicroseconds = 0, denseMicroseconds = 0; ///< in a near cache
  double planesReading = 0, denseReading = 0;           ///< microseconds that reading them from memory takes at least
};

/// One policy over a captured cache.
struct DecodeReport {
  std::string policy;
  double tolerance = 0;
  double keyBits = 0, valueBits = 0, bytesFraction = 0;
  double errorMean = 0, errorMedian = 0, errorMax = 0;
  double stepMicroseconds = 0, denseStepMicroseconds = 0;
  double certifiedStepMicroseconds = NAN; ///< of a step that returns its certificate too
  double boundRatioMax = NAN;             ///< largest error of a channel / bound, of a head
  std::optional<int64_t> boundViolations; ///< heads whose error exceeds their bound
  double toleranceMet = NAN, flagged = NAN; ///< fractions of heads: with an error within twice the tolerance, and with an estimate beyond that
  int threads = 1, attentions = 0;
  std::optional<Choice> choice;        ///< where asked for, of policies over fixed planes
  std::vector<double> partNanoseconds; ///< of a tile of 64 tokens of a kv head, by ALIGNED_PART_*, where asked for
};

/// Which step of a captured cache the pictures of a page show; by default the middle layer, its first head and the last step.
struct PageOptions {
  std::optional<int64_t> layer, head, step;
};
struct DecodePage;

/// Both print `aligned-run: error: ...` and return nothing where something is wrong. Fills `page` if there is one.
std::optional<ModelReport> runModel(const std::string &modelPath, const std::string &npzPath, const RunOptions &options);
std::optional<std::vector<DecodeReport>> runDecode(const std::string &folder, const std::vector<RunOptions> &policies, const PageOptions &pictured = {},
                                                   DecodePage *page = nullptr);

/// Compiles the kernels of a model's file, or of one attention over a captured cache, for a GPU and writes them into a folder: kernels.ptx and kernels.json. Prints what is wrong.
bool emitKernels(const std::string &modelPath, const std::string &captureFolder, const RunOptions &options, const std::string &folder);

/// An object file, or what it is compiled from, for a machine: as aligned_machine says, this one where all is empty.
struct ObjectOptions {
  std::string triple, cpu, features;
  std::string name; ///< of its function and its files; empty: the model's
  bool llvmIR = false;
};
/// Compiles a model's file and writes into a folder: NAME.o or NAME.ll, and NAME.h. Prints what is wrong.
bool emitObject(const std::string &modelPath, const RunOptions &options, const ObjectOptions &wanted, const std::string &folder);

/// What can't be right about what was measured: a bound that is broken, or errors beyond the tolerance that estimates do not announce.
std::optional<std::string> complaintAbout(const DecodeReport &report);

void printModel(const ModelReport &report, const RunOptions &options);
void printDecode(const std::vector<DecodeReport> &reports);
llvm::json::Object modelJson(const ModelReport &report, bool ok);
/// `alternatives` are told where there are any.
llvm::json::Object decodeJson(const std::vector<DecodeReport> &reports, bool ok, const std::vector<DecodeReport> &alternatives = {});
/// JSON has no NaN: null.
llvm::json::Value jsonNumber(double x);

/// Prints the error and returns nothing, for `return refuse(...)`.
std::nullopt_t refuse(const std::string &why);
/// What is in a file. Prints why it can't be read.
std::optional<std::string> readText(const std::string &path);

/// A progress bar on standard error, on a terminal; elsewhere one line when a run takes over two seconds.
class Progress {
public:
  explicit Progress(std::string what);
  ~Progress();
  void show(int64_t done, int64_t total);

private:
  std::string what;
  double start;
  bool terminal, shown = false;
};

//===-- Handles -----------------------------------------------------------===//

struct DestroyModule {
  void operator()(aligned_module *module) const { aligned_module_destroy(module); }
};
struct DestroyCache {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
};
using Module = std::unique_ptr<aligned_module, DestroyModule>;
using Cache = std::unique_ptr<aligned_cache, DestroyCache>;

/// What steps take on this machine (aligned/Analysis/Costs.h), with progress shown while it is measured. Null, with the error printed, where that fails.
const double *machineCosts();

/// Compiles, or prints the diagnostics.
Module compile(const std::string &source, const std::string &options);

/// Values of a float array as doubles; bf16 comes as uint16 where `bfloat16` says so.
std::vector<double> toDouble(const void *data, int64_t count, aligned_dtype dtype);
/// An array in C order, not owned, as an argument. Arguments are only read.
aligned_value contiguous(const void *data, const std::vector<int64_t> &shape);
double now(); ///< seconds of a steady clock

} // namespace aligned

#endif // ALIGNED_TOOLS_ALIGNED_RUN_RUN_H
