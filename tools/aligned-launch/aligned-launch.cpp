// aligned-launch: run an emitted program on the GPU at hand over a captured cache. Needs NVIDIA's driver and nothing of the
// compiler.
#include "Launch.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

using namespace aligned;

namespace {

constexpr const char *help = R"(aligned-launch: decode attention from PTX that the compiler wrote, run on this machine's GPU

  aligned-launch DIR --decode CAPTURE
      DIR holds kernels.ptx and kernels.json, CAPTURE a captured cache: q.npy [layers, q_heads, steps, head_dim], k.npy and v.npy
      [layers, kv_heads, tokens, head_dim], meta.json with group (query heads per kv head), scale and first_position (of the first step).
      Of each layer the tokens in front of the first step are appended, then one more for each step, which is decoded, compared with
      attention in float64, and timed. Bits are per value; bytes are a fraction of what a dense kernel reads; errors are relative L2 of a
      head's output. aligned-run --emit=ptx writes such a DIR.

  --layer N|all     layer of the capture, from 0 (default all)
  --steps N         only the first N steps
  --site N          number of the attention in the program (default the first whose shapes fit)
  --repeat N        timed runs of each step after one that is not; 0: none (default 10)
  --graph           time the step as a CUDA graph, too
  --splits N        blocks of threads that share a row's tokens; 0: chosen for the device (default 0)
  --tolerance T     largest L2 error that a head may have, relative to a usual row of V, or to its output where that is longer
                    (default 0.03 where the program gives no certificate)
  --json            print one JSON object
  --help            print this

The environment's ALIGNED_LIBCUDA names a driver library other than libcuda.so.1.

Exit status: 0 if everything ran, every head is within its certified bound, if the program gives one, and within the tolerance;
1 if not; 2 for a wrong command line.
)";

int usageError(const std::string &why) {
  std::fprintf(stderr, "aligned-launch: error: %s; see aligned-launch --help\n", why.c_str());
  return 2;
}

bool parse(const std::string &text, int64_t least, int64_t &value) {
  char *end = nullptr;
  errno = 0;
  value = std::strtoll(text.c_str(), &end, 10);
  return !text.empty() && !*end && !errno && value >= least;
}

} // namespace

int main(int argc, char **argv) {
  LaunchOptions options;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i], value;
    if (argument == "--help" || argument == "-h") {
      std::fputs(help, stdout);
      return 0;
    }
    if (argument.compare(0, 2, "--")) {
      if (!options.program.empty())
        return usageError("expected one folder of a program, got " + options.program + " and " + argument);
      options.program = argument;
      continue;
    }
    std::string name = argument.substr(2);
    size_t equals = name.find('=');
    bool has = equals != std::string::npos;
    if (has) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    if (name == "json" || name == "graph") {
      if (has)
        return usageError("expected no value for --" + name + ", got " + value);
      (name == "json" ? json : options.graph) = true;
      continue;
    }
    bool known = false;
    for (const char *option : {"decode", "layer", "steps", "site", "repeat", "splits", "tolerance"})
      known |= name == option;
    if (!known)
      return usageError("expected an option, got --" + name);
    if (!has) {
      if (i + 1 == argc)
        return usageError("expected a value behind --" + name);
      value = argv[++i];
    }
    int64_t number = 0;
    if (name == "decode") {
      options.capture = value;
    } else if (name == "layer") {
      if (value == "all")
        options.layer.reset();
      else if (parse(value, 0, number))
        options.layer = number;
      else
        return usageError("expected --layer all or a number from 0, got " + value);
    } else if (name == "steps") {
      if (!parse(value, 1, number))
        return usageError("expected --steps of at least 1, got " + value);
      options.steps = number;
    } else if (name == "site") {
      if (!parse(value, 0, number))
        return usageError("expected --site of at least 0, got " + value);
      options.site = number;
    } else if (name == "repeat") {
      if (!parse(value, 0, number) || number > 1000000)
        return usageError("expected --repeat from 0 to 1000000, got " + value);
      options.repeat = static_cast<int>(number);
    } else if (name == "splits") {
      if (!parse(value, 0, number) || number > 65535)
        return usageError("expected --splits from 0 to 65535, got " + value);
      options.splits = static_cast<int32_t>(number);
    } else {
      char *end = nullptr;
      double tolerance = std::strtod(value.c_str(), &end);
      if (value.empty() || *end || !(tolerance > 0))
        return usageError("expected --tolerance above 0, got " + value);
      options.tolerance = tolerance;
    }
  }
  if (options.program.empty())
    return usageError("expected the folder of a program");
  if (options.capture.empty())
    return usageError("expected --decode CAPTURE");

  std::optional<LaunchReport> report = launchCapture(options);
  if (!report)
    return 1;
  json ? printJson(*report) : printReport(*report);
  if (!report->ok())
    std::fprintf(stderr, "aligned-launch: error: expected every head within its %s, got %lld of %lld beyond\n",
                 report->tolerance > 0 ? "tolerance" : "bound", static_cast<long long>(report->all.violations),
                 static_cast<long long>(report->all.heads));
  return report->ok() ? 0 : 1;
}
