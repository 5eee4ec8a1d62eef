// aligned-run: compile a model or a decode step, run it on this machine, and say what was read and how far the result is from exact.
#include "Calibrate.h"
#include "OutputFile.h"
#include "Page.h"
#include "Tune.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/raw_ostream.h"

#include <thread>

using namespace aligned;
namespace cl = llvm::cl;

namespace {

/// Made after LLVM's own options are forgotten, some of which have the same names.
struct CommandLine {
  cl::OptionCategory category{"aligned-run options"};
  cl::opt<std::string> model{cl::Positional, cl::desc("MODEL.mlir"), cl::cat(category)};
  cl::opt<std::string> npz{"npz", cl::value_desc("FILE"), cl::desc("Inputs arg0, arg1, ... of the model, and the expected outputs out0, ... where present"), cl::cat(category)};
  cl::opt<std::string> decode{"decode", cl::value_desc("DIR"), cl::desc("Run a captured cache instead: q.npy, k.npy, v.npy and meta.json in this folder"), cl::cat(category)};
  cl::list<std::string> policies{"policy", cl::CommaSeparated, cl::value_desc("NAME"),
                               cl::desc("exact, alignedkv, tight (2^-12), balanced (2^-9), fast (2^-7), draft (2^-6), or budget with --tolerance; several for --decode. "
                                        "Default: tight for a model, alignedkv,tight,balanced,fast for a cache. A model that comes fused has policies of its own; then this one says only "
                                        "how far outputs may be from out0, ..."),
                               cl::cat(category)};
  cl::opt<double> tolerance{"tolerance", cl::value_desc("T"), cl::desc("L2 error of an output row to aim at, relative to a usual row of V, above 0 and below 1; implies --policy=budget"), cl::cat(category)};
  cl::opt<std::string> budget{"budget", cl::value_desc("FILE.yaml"), cl::desc("How much error is acceptable where; the policy holds where it says nothing (default balanced)"), cl::cat(category)};
  cl::opt<bool> tune{"tune", cl::desc("Of a captured cache, search the budget of fewest bytes that keeps within --target-error, and write it to the file of -o"), cl::cat(category)};
  cl::opt<double> targetError{"target-error", cl::value_desc("E"), cl::desc("Mean relative L2 error of heads' outputs that --tune is to keep within"), cl::cat(category)};
  cl::list<std::string> calibrate{"calibrate", cl::value_desc("X.npz"), cl::desc("Write the model to the file of -o with the ranges that arg0, arg1, ... were seen to have, and the mean of keys; may be given several times"),
                                  cl::cat(category)};
  cl::opt<std::string> output{"o", cl::value_desc("FILE"), cl::desc("What to write; with --emit a folder"), cl::cat(category)};
  cl::opt<std::string> format{"format", cl::init("auto"), cl::desc("Storage: auto, dense, or planes such as fixed<4,4,8> and float<8,4,4>"), cl::cat(category)};
  cl::opt<std::string> target{"target", cl::init("cpu"), cl::desc("How a model is run: cpu (kernels), or reference: its ops in float64, whatever phase it is from; cuda: with --emit"), cl::cat(category)};
  cl::opt<std::string> emit{"emit", cl::value_desc("KIND"),
                            cl::desc("Write into the folder of -o, and run nothing: obj, an object file and its C header, or llvm, what it is compiled from; with --target=cuda ptx, kernels for NVIDIA GPUs"),
                            cl::cat(category)};
  cl::opt<std::string> triple{"triple", cl::value_desc("T"), cl::desc("With --emit=obj or llvm: machine to compile for, such as aarch64-linux-gnu (default this one, with all that it has)"), cl::cat(category)};
  cl::opt<std::string> cpu{"cpu", cl::value_desc("NAME"), cl::desc("Its processor, such as x86-64-v3 or neoverse-n1 (default any of the triple)"), cl::cat(category)};
  cl::opt<std::string> features{"features", cl::value_desc("+F,-G"), cl::desc("Features that it has besides, or hasn't"), cl::cat(category)};
  cl::opt<std::string> name{"name", cl::value_desc("NAME"), cl::desc("What C calls the function, and its files are called (default the function's name in the model)"), cl::cat(category)};
  cl::opt<std::string> chip{"chip", cl::init("sm_90"), cl::value_desc("sm_NN"), cl::desc("With --emit: architecture to compile for (default sm_90)"), cl::cat(category)};
  cl::opt<int> ptx{"ptx", cl::value_desc("N"), cl::desc("With --emit: version of PTX, such as 78 for 7.8 (default the first that knows the chip)"), cl::cat(category)};
  cl::opt<std::string> isa{"isa", cl::init("host"), cl::desc("Instructions of the kernels: host (the widest that the machine has), avx512, avxvnni, avx2, i8mm, dotprod or portable"), cl::cat(category)};
  cl::opt<int> threads{"threads", cl::init(1), cl::desc("Threads that share the kv heads of a step (default 1)"), cl::cat(category)};
  cl::opt<double> relative{"rtol", cl::desc("Allowed |got - want| is atol + rtol |want|. Default 2e-3, or 2^-7 for bf16 outputs"), cl::cat(category)};
  cl::opt<double> absolute{"atol", cl::desc("Default 2e-3 for exact and tight, 2e-2 for balanced, 6e-2 for fast and alignedkv, 0.12 for draft, max(2e-3, 8 T) for a tolerance, 6e-2 for a budget file; for bf16 outputs at least 2^-6"), cl::cat(category)};
  cl::opt<bool> lastStep{"last-step", cl::desc("Of a captured cache, run only the last step"), cl::cat(category)};
  cl::opt<std::string> denseUpTo{"dense-up-to", cl::init("0"), cl::value_desc("N"),
                               cl::desc("Tokens up to which caches hold their tokens as they came, too, and attention reads those; auto: as long as that is faster on this machine (default 0)"),
                               cl::cat(category)};
  cl::opt<bool> explain{"explain", cl::desc("Of a captured cache, also print what --dense-up-to auto chooses, and why: of policies over fixed planes"), cl::cat(category)};
  cl::opt<bool> profile{"profile", cl::desc("Of a captured cache, also print what each part of a step takes, by kernels that read a clock between parts: of policies over fixed planes"), cl::cat(category)};
  cl::opt<std::string> report{"report", cl::value_desc("FILE.html"), cl::desc("Of a captured cache, write a page with tables and pictures"), cl::cat(category)};
  cl::opt<int> layer{"report-layer", cl::value_desc("N"), cl::desc("Layer of the capture that the page pictures, from 0 (default the middle one)"), cl::cat(category)};
  cl::opt<int> head{"report-head", cl::value_desc("N"), cl::desc("Its kv head, from 0 (default 0)"), cl::cat(category)};
  cl::opt<int> step{"report-step", cl::value_desc("N"), cl::desc("Its decode step, from 0 (default the last)"), cl::cat(category)};
  cl::opt<bool> raise{"raise", cl::init(true), cl::desc("Find attention in the model; --raise=false runs its graph as it stands"), cl::cat(category)};
  cl::opt<bool> unregistered{"allow-unregistered-dialect", cl::desc("The model may hold ops of dialects that are not linked, in generic form: attention that they say by name is found"), cl::cat(category)};
  cl::opt<bool> json{"json", cl::desc("Print one JSON object for machines"), cl::cat(category)};
};

constexpr const char *overview = R"(aligned-run: attention that reads only the bits it needs, run on this machine

  aligned-run MODEL.mlir --npz X.npz --policy tight
      compiles the model with its K and V in bit planes, runs it on arg0, arg1, ..., compares with out0, ... and prints what each
      attention read and how far each output is from the same graph with attention in float64. A model may come as any phase of
      aligned-pipeline left it, up to stage; with --target reference its ops are evaluated in float64 as they stand

  aligned-run --decode DIR --policy balanced,fast
      runs every layer, head and step of a captured cache, measures bits, bytes and errors, and times each step against this project's
      dense kernel. meta.json: group (query heads per kv head), scale, first_position (of the first step); q.npy
      [layers, q_heads, steps, head_dim], k.npy and v.npy [layers, kv_heads, tokens, head_dim], float16, float32 or, with "dtype": "bfloat16", uint16

  aligned-run MODEL.mlir|--decode DIR --target=cuda --chip=sm_90 --emit=ptx -o FOLDER
      writes kernels.ptx and kernels.json, which says how to launch them: aligned-launch, or any program with NVIDIA's driver, needs no compiler

  aligned-run MODEL.mlir --emit=obj -o FOLDER
      writes NAME.o and NAME.h for a program in C that is linked with the runtime alone, for this machine or, with --triple, another

  aligned-run MODEL.mlir --calibrate X.npz -o calibrated.mlir
      writes the model with aligned.range on its arguments: what arg0, arg1, ... span, for aligned-opt --aligned-analyze-precision; and with
      aligned.key_offset on its caches of keys: their mean, which is taken off keys before they are stored

  aligned-run --decode DIR --budget FILE.yaml
      reads as closely as a file says for each layer, kv head and side; --budget serves a model too

  aligned-run --tune --decode DIR --target-error=0.002 -o FILE.yaml
      searches tolerances for K and V of each layer and kv head that together read the fewest bytes with a mean error of at most 0.002,
      writes them as a budget, and compares with one tolerance for all. meta.json's `layers`, where present, says which of the model's
      layers were captured, since budgets number those of the model

  aligned-run --decode DIR --report FILE.html
      writes a page too: bytes against error of the policies and of what others store, and which bits of K and V one step read

Exit status: 0 if everything compiled, ran and compared; 1 if not; 2 for a wrong command line.
)";

std::string text(double number) {
  char digits[32];
  snprintf(digits, sizeof(digits), "%g", number);
  return digits;
}

int usageError(const std::string &why) {
  llvm::errs() << "aligned-run: error: " << why << "; see aligned-run --help\n";
  return 2;
}

} // namespace

int main(int argc, char **argv) {
  cl::ResetCommandLineParser();
  CommandLine line;
  cl::HideUnrelatedOptions(line.category);
  cl::ParseCommandLineOptions(argc, argv, overview);

  bool isDecode = line.decode.getNumOccurrences() > 0;
  if (isDecode == (line.model.getNumOccurrences() > 0))
    return usageError("expected either MODEL.mlir or --decode DIR");
  bool calibrates = line.calibrate.getNumOccurrences() > 0;
  if (calibrates) {
    if (isDecode || line.npz.getNumOccurrences() || line.tune || line.unregistered)
      return usageError("expected --calibrate with MODEL.mlir and -o FILE alone");
    if (line.output.empty())
      return usageError("expected -o FILE with --calibrate");
    std::optional<OutputFile> file = OutputFile::create(line.output, "-o");
    return file && calibrate(line.model, line.calibrate, *file) ? 0 : 1;
  }
  if (line.target != "cpu" && line.target != "cuda" && line.target != "reference")
    return usageError("expected --target cpu, cuda or reference, got '" + line.target + "'");
  const bool emits = line.target == "cuda", isAhead = !emits && line.emit.getNumOccurrences();
  for (cl::Option *option : std::initializer_list<cl::Option *>{&line.triple, &line.cpu, &line.features, &line.name})
    if (!isAhead && option->getNumOccurrences())
      return usageError("expected --emit=obj or llvm with --" + option->ArgStr.str());
  if (isAhead) {
    if (line.emit == "ptx")
      return usageError("expected --target=cuda with --emit=ptx");
    if (line.emit != "obj" && line.emit != "llvm")
      return usageError("expected --emit=obj, llvm or, with --target=cuda, ptx, got '" + line.emit + "'");
    if (isDecode || line.target != "cpu")
      return usageError("expected MODEL.mlir and --target cpu with --emit=" + line.emit);
    if (line.output.empty())
      return usageError("expected -o FOLDER with --emit");
    if (line.denseUpTo == "auto")
      return usageError("expected --dense-up-to N with --emit, got auto, which measures the machine that it runs on");
    for (cl::Option *option : std::initializer_list<cl::Option *>{&line.npz, &line.tune, &line.report, &line.lastStep, &line.profile, &line.explain, &line.threads, &line.json})
      if (option->getNumOccurrences())
        return usageError("expected no --" + option->ArgStr.str() + " with --emit");
  }
  if (emits && !line.emit.getNumOccurrences())
    return usageError("expected --emit=ptx -o FOLDER with --target=cuda: kernels for GPUs are written here, and run by aligned-launch FOLDER --decode DIR");
  for (cl::Option *option : std::initializer_list<cl::Option *>{&line.chip, &line.ptx})
    if (!emits && option->getNumOccurrences())
      return usageError("expected --target=cuda with --" + option->ArgStr.str());
  if (emits) {
    if (line.emit != "ptx")
      return usageError("expected --emit=ptx, got '" + line.emit + "'");
    if (line.output.empty())
      return usageError("expected -o FOLDER with --emit");
    for (cl::Option *option : std::initializer_list<cl::Option *>{&line.npz, &line.tune, &line.report, &line.lastStep, &line.profile, &line.explain, &line.denseUpTo})
      if (option->getNumOccurrences())
        return usageError("expected no --" + option->ArgStr.str() + " with --emit");
    if (isDecode && line.budget.getNumOccurrences())
      return usageError("expected --budget with MODEL.mlir, got it with --emit of one attention for all layers of --decode");
  }
  if (line.unregistered && isDecode)
    return usageError("expected --allow-unregistered-dialect with MODEL.mlir, got it with --decode");
  if (!line.raise && isDecode)
    return usageError("expected --raise=false with MODEL.mlir, got it with --decode");
  aligned_allow_unregistered_dialects(line.unregistered);
  if (isDecode && line.target == "reference")
    return usageError("expected --target reference with MODEL.mlir, got it with --decode");
  if (!isDecode && !emits && !isAhead && !line.npz.getNumOccurrences())
    return usageError("expected --npz FILE with the model's inputs");
  if (line.threads < 1 || line.threads > 1024)
    return usageError("expected 1 to 1024 threads, got " + std::to_string(line.threads));
  for (auto [option, what] : {std::pair(&line.relative, "rtol"), std::pair(&line.absolute, "atol")})
    if (option->getNumOccurrences() && !(*option >= 0))
      return usageError(std::string("expected --") + what + " that is not negative, got " + text(*option));

  if (line.tune) {
    if (!isDecode)
      return usageError("expected --decode DIR with --tune");
    if (!(line.targetError > 0 && line.targetError < 1))
      return usageError(line.targetError.getNumOccurrences() ? "expected a target error above 0 and below 1, got " + text(line.targetError) : "expected --target-error E with --tune");
    if (line.output.empty())
      return usageError("expected -o FILE.yaml with --tune");
    for (cl::Option *option : std::initializer_list<cl::Option *>{std::addressof(line.policies), &line.tolerance, &line.budget, &line.format, &line.report, &line.lastStep, &line.profile, &line.explain, &line.denseUpTo})
      if (option->getNumOccurrences())
        return usageError("expected no --" + option->ArgStr.str() + " with --tune");
  } else {
    for (cl::Option *option : std::initializer_list<cl::Option *>{&line.targetError, &line.output})
      if (option->getNumOccurrences() && !((emits || isAhead) && option == &line.output))
        return usageError((option == &line.output ? "expected --tune, --calibrate or --emit with " : "expected --tune with ") + std::string(option == &line.output ? "-" : "--") + option->ArgStr.str());
  }

  RunOptions base;
  if (line.tolerance.getNumOccurrences()) {
    if (!(line.tolerance > 0 && line.tolerance < 1))
      return usageError("expected a tolerance above 0 and below 1, got " + text(line.tolerance));
    base.tolerance = line.tolerance;
  }
  base.target = line.target;
  base.chip = line.chip;
  base.ptx = line.ptx;
  base.budget = line.budget;
  base.format = line.format;
  base.isa = line.isa;
  base.raise = line.raise;
  base.threads = line.threads;
  base.lastStep = line.lastStep;
  base.denseUpTo = line.denseUpTo;
  base.explain = line.explain;
  base.profile = line.profile;
  base.json = line.json;
  if (line.relative.getNumOccurrences())
    base.rtol = line.relative;
  if (line.absolute.getNumOccurrences())
    base.atol = line.absolute;
  std::vector<std::string> names(line.policies.begin(), line.policies.end());
  if (names.empty())
    names = base.tolerance          ? std::vector<std::string>{"budget"}
            : !base.budget.empty() ? std::vector<std::string>{"balanced"}
            : isDecode && !emits ? std::vector<std::string>{"alignedkv", "tight", "balanced", "fast"} : std::vector<std::string>{"tight"};
  if (line.budget.getNumOccurrences() && base.budget.empty())
    return usageError("expected --budget FILE, got no name");
  if (!base.budget.empty() && names.size() != 1)
    return usageError("expected one policy with --budget, got " + std::to_string(names.size()));
  if (!isDecode && names.size() != 1)
    return usageError("expected one policy for a model, got " + std::to_string(names.size()));
  std::vector<RunOptions> runs(names.size(), base);
  for (size_t i = 0; i < names.size(); ++i) {
    runs[i].policy = names[i];
    if (names[i] == "budget" && !base.tolerance)
      return usageError("expected --tolerance with policy 'budget'");
    if (names[i] != "budget" && base.tolerance)
      return usageError("expected --tolerance only with policy 'budget', got it with '" + names[i] + "'");
  }
  PageOptions pictured;
  for (auto [option, place] : {std::pair(&line.layer, &pictured.layer), std::pair(&line.head, &pictured.head), std::pair(&line.step, &pictured.step)})
    if (option->getNumOccurrences()) {
      if (!line.report.getNumOccurrences())
        return usageError("expected --report FILE with --" + option->ArgStr.str());
      *place = *option;
    }
  if (line.report.getNumOccurrences() && !isDecode)
    return usageError("expected --report only with --decode DIR");
  for (cl::opt<bool> *option : {&line.profile, &line.explain})
    if (*option && (!isDecode || line.format == "dense"))
      return usageError("expected --" + option->ArgStr.str() + " only with --decode DIR" + (isDecode ? " and planes, got it with --format dense" : ""));
  if (line.explain && !base.budget.empty())
    return usageError("expected no --explain with --budget, whose tolerances are many");
  if (uint64_t tokens; line.denseUpTo != "auto" && llvm::StringRef(line.denseUpTo).getAsInteger(10, tokens))
    return usageError("expected --dense-up-to N, a number of tokens, or auto, got '" + line.denseUpTo + "'");
  if (isAhead)
    return emitObject(line.model, runs.front(), {line.triple, line.cpu, line.features, line.name, line.emit == "llvm"}, line.output) ? 0 : 1;
  if (emits) {
    if (runs.size() != 1)
      return usageError("expected one --policy with --emit, got " + std::to_string(runs.size()));
    return emitKernels(line.model, line.decode, runs.front(), line.output) ? 0 : 1;
  }
  aligned_rt_set_threads(line.threads);
  if ((line.explain || line.denseUpTo == "auto") && !machineCosts())
    return 1;

  bool ok = false;
  llvm::json::Object object;
  if (line.tune) {
    base.policy = "balanced"; // the op's own policies go ahead of it
    std::optional<OutputFile> file = OutputFile::create(line.output, "-o");
    std::optional<Tuned> tuned = file ? tune(line.decode, base, line.targetError) : std::nullopt;
    ok = tuned && file->write([&](llvm::raw_ostream &os) { writeBudget(*tuned, line.decode, os); });
    if (ok && !line.json)
      printTuned(*tuned, line.output);
    object = tunedJson(tuned, ok);
  } else if (isDecode) {
    DecodePage page;
    page.folder = line.decode;
    bool paged = line.report.getNumOccurrences() > 0;
    std::optional<OutputFile> file = paged ? OutputFile::create(line.report, "--report") : std::nullopt; // ahead of minutes of work
    std::optional<std::vector<DecodeReport>> reports;
    if (file || !paged)
      reports = runDecode(line.decode, runs, pictured, paged ? &page : nullptr);
    if (reports && !line.json)
      printDecode(*reports);
    ok = reports && (!file || file->write([&](llvm::raw_ostream &os) { writePage(page, os); }));
    for (const DecodeReport &report : reports.value_or(std::vector<DecodeReport>{}))
      if (std::optional<std::string> complaint = complaintAbout(report)) {
        refuse(*complaint);
        ok = false;
      }
    object = decodeJson(reports.value_or(std::vector<DecodeReport>{}), ok, page.alternatives);
  } else {
    auto report = runModel(line.model, line.npz, runs.front());
    ok = report.has_value();
    for (const OutputReport &output : report ? report->outputs : std::vector<OutputReport>{})
      ok &= output.matches;
    if (report && !line.json)
      printModel(*report, runs.front());
    object = modelJson(report.value_or(ModelReport{}), ok);
  }
  if (line.json)
    llvm::outs() << llvm::json::Value(std::move(object)) << "\n";
  return ok ? 0 : 1;
}
