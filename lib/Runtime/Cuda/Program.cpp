// See the header.
#include "Program.h"

#include "aligned/Runtime/Cuda.h"

#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>

using namespace aligned::cuda;
using aligned::program::kMostGridDimensions;

//===----------------------------------------------------------------------===//
// Modules
//===----------------------------------------------------------------------===//

namespace {

struct Loaded {
  const Context *context;
  std::string ptx;
  std::weak_ptr<Module> module;
};
using Cache = std::multimap<size_t, Loaded>; // by hash of the text

std::recursive_mutex modulesMutex; // a module may go while another is loaded
Cache &modules() {
  static auto *modules = new Cache; // outlives programs that are never destroyed
  return *modules;
}

std::string trimmed(const std::string &text) {
  size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

/// Whether the device can run what was made for `chip`: PTX for sm_90 runs on all that are as new, what ends in f on those of its
/// family (that is, of its generation), what ends in a on nothing else.
bool checkChip(const Context &context, const std::string &chip) {
  size_t digits = 3;
  while (digits < chip.size() && chip[digits] >= '0' && chip[digits] <= '9')
    ++digits;
  std::string number = chip.size() > 3 ? chip.substr(3, digits - 3) : "", suffix = chip.size() > 3 ? chip.substr(digits) : "";
  if (chip.compare(0, 3, "sm_") || number.size() < 2 || number.size() > 4 || (!suffix.empty() && suffix != "a" && suffix != "f"))
    return fail("kernels.json: expected a chip such as \"sm_90\" at chip, got \"" + chip + "\""), false;
  int wanted = std::stoi(number), has = context.major * 10 + context.minor;
  bool fits = suffix == "a" ? has == wanted : suffix == "f" ? has >= wanted && has / 10 == wanted / 10 : has >= wanted;
  if (!fits)
    fail("expected a device that runs PTX for " + chip + ", got " + context.name + ", which is sm_" + std::to_string(has));
  return fits;
}

/// Launches can be chained only of kernels that wait for the ones ahead of them.
bool checkChaining(const Sidecar &sidecar, const std::string &ptx) {
  const std::string wait = "griddepcontrol.wait;";
  size_t waits = 0;
  for (size_t at = ptx.find(wait); at != std::string::npos; at = ptx.find(wait, at + wait.size()))
    ++waits;
  if (!sidecar.tuning.chained || waits >= sidecar.kernels.size())
    return true;
  return fail("kernels.json: expected 0 at tuning.chained for PTX of " + sidecar.chip + " in which " + std::to_string(waits) + " of " +
              std::to_string(sidecar.kernels.size()) + " kernels wait for those ahead of them, got 1"),
         false;
}

bool readFile(const std::string &path, std::string &text) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream contents;
  contents << stream.rdbuf();
  if (!stream.is_open() || stream.bad()) {
    fail(path + ": expected a readable file, got: " + std::strerror(errno));
    return false;
  }
  text = contents.str();
  return true;
}

} // namespace

std::shared_ptr<Module> Module::load(const Context &context, const std::string &ptx) {
  std::lock_guard<std::recursive_mutex> lock(modulesMutex);
  size_t hash = std::hash<std::string>()(ptx);
  auto [first, last] = modules().equal_range(hash);
  for (auto known = first; known != last; ++known)
    if (known->second.context == &context && known->second.ptx == ptx)
      if (std::shared_ptr<Module> module = known->second.module.lock())
        return module;

  std::shared_ptr<Module> module(new Module(context));
  char log[8192] = "";
  int options[] = {kJitErrorLog, kJitErrorLogBytes};
  void *values[] = {log, reinterpret_cast<void *>(sizeof log - 1)};
  if (Result result = driver().moduleLoadDataEx(&module->handle, ptx.c_str(), 2, options, values)) {
    std::string text = trimmed(log);
    int version = 0;
    driver().driverGetVersion(&version);
    fail("expected PTX that the driver (CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) +
         ") compiles, got: " + driver().textOf(result) + (text.empty() ? "" : "\n" + text));
    return nullptr;
  }
  modules().emplace(hash, Loaded{&context, ptx, module});
  return module;
}

Module::~Module() {
  if (!handle)
    return;
  std::lock_guard<std::recursive_mutex> lock(modulesMutex);
  for (auto known = modules().begin(); known != modules().end();)
    known = known->second.module.expired() ? modules().erase(known) : std::next(known);
  Scope scope(context);
  driver().moduleUnload(handle);
}

//===----------------------------------------------------------------------===//
// Programs
//===----------------------------------------------------------------------===//

bool Workspace::reserve(const Context &context, int64_t bytes) {
  if (bytes < 0)
    return fail("expected scratch memory of some size, got sizes that overflow"), false;
  if (bytes <= memory.bytes())
    return true;
  // What is to be freed may be in use. It goes first where there is no room for both.
  Memory larger;
  if (!order.wait())
    return false;
  if (!larger.allocate(context, bytes)) {
    memory.reset();
    if (!larger.allocate(context, bytes))
      return false;
  }
  memory = std::move(larger);
  return true;
}

std::shared_ptr<Program> Program::load(const std::string &ptx, const std::string &json) {
  std::string error;
  std::optional<Sidecar> sidecar = parseSidecar(json, error);
  if (!sidecar)
    return fail(error), nullptr;
  if (!checkChaining(*sidecar, ptx))
    return nullptr;
  const Context *context = currentContext();
  if (!context || !checkChip(*context, sidecar->chip))
    return nullptr;
  Scope scope(*context);
  std::shared_ptr<Module> module = Module::load(*context, ptx);
  if (!module)
    return nullptr;
  std::shared_ptr<Program> program(new Program(*context, std::move(*sidecar), std::move(module)));
  for (const KernelEntry &kernel : program->sidecar.kernels) {
    Function function = nullptr;
    if (Result result = driver().moduleGetFunction(&function, program->module->handle, kernel.name.c_str()))
      return fail("expected a kernel " + kernel.name + " in the PTX, got: " + driver().textOf(result)), nullptr;
    if (constexpr int64_t always = 48 << 10; kernel.shared > always)
      if (Result result = driver().funcSetAttribute(function, kMaxDynamicSharedBytes, static_cast<int>(kernel.shared)))
        return fail("expected " + std::to_string(kernel.shared) + " bytes of shared memory for " + kernel.name + " on " + context->name +
                    ", got: " + driver().textOf(result)),
               nullptr;
    program->functions.push_back(function);
  }
  return program;
}

const Site *Program::site(int32_t number) const {
  for (const Site &site : sidecar.decode)
    if (site.number == number)
      return &site;
  fail("expected a site of the program, got number " + std::to_string(number));
  return nullptr;
}

const Append *Program::appendTo(const aligned_format &format, int64_t headDim) const {
  for (const Append &append : sidecar.append)
    if (append.headDim == headDim && sameFormat(append.format, format))
      return &append;
  return nullptr;
}

bool Program::checkGrids(const std::vector<Launch> &launches, const Symbols &symbols) const {
  constexpr int64_t most[kMostGridDimensions] = {INT32_MAX, 65535, 65535};
  constexpr const char *dimensions[kMostGridDimensions] = {" columns", " rows", " layers"};
  for (const Launch &launch : launches)
    for (int i = 0; i < kMostGridDimensions; ++i)
      if (int64_t extent = launch.grid[i].at(symbols); extent > most[i])
        return fail("expected a grid of at most " + std::to_string(most[i]) + dimensions[i] + " for " +
                    sidecar.kernels[launch.kernel].name + ", got " + std::to_string(extent)),
               false;
  return true;
}

bool Program::launch(const std::vector<Launch> &launches, const Symbols &symbols, Parameters &parameters, Stream stream) const {
  LaunchAttribute early = {kProgrammaticStreamSerialization, 1, {}};
  // The first waits for all that is ahead of it on the stream, which need not be ours; and it is only for the list's own kernels that
  // the compiler tells apart what is written meanwhile.
  bool chained = false;
  for (const Launch &launch : launches) {
    unsigned grid[kMostGridDimensions];
    for (int i = 0; i < kMostGridDimensions; ++i)
      grid[i] = static_cast<unsigned>(launch.grid[i].at(symbols));
    if (!grid[0] || !grid[1] || !grid[2])
      continue;
    const KernelEntry &kernel = sidecar.kernels[launch.kernel];
    auto threads = static_cast<unsigned>(kernel.threads), shared = static_cast<unsigned>(kernel.shared);
    LaunchConfig config = {grid[0], grid[1], grid[2], threads, 1, 1, shared, stream, &early, 1};
    if (Result result = chained ? driver().launchKernelEx(&config, functions[launch.kernel], parameters.data(), nullptr)
                                : driver().launchKernel(functions[launch.kernel], grid[0], grid[1], grid[2], threads, 1, 1, shared, stream,
                                                        parameters.data(), nullptr))
      return fail("expected " + kernel.name + " to start, got: " + driver().textOf(result)), false;
    chained = sidecar.tuning.chained && driver().launchKernelEx;
  }
  return true;
}

//===----------------------------------------------------------------------===//
// C interface
//===----------------------------------------------------------------------===//

aligned_program *aligned_program_load(const char *ptx, const char *json) {
  return guarded(static_cast<aligned_program *>(nullptr), [&]() -> aligned_program * {
    if (!ptx || !json)
      return fail("expected PTX and a sidecar, got null"), nullptr;
    std::shared_ptr<Program> program = Program::load(ptx, json);
    return program ? new aligned_program{std::move(program)} : nullptr;
  });
}

aligned_program *aligned_program_open(const char *folder) {
  return guarded(static_cast<aligned_program *>(nullptr), [&]() -> aligned_program * {
    std::string path = folder, ptx, json;
    if (!readFile(path + "/kernels.json", json) || !readFile(path + "/kernels.ptx", ptx))
      return nullptr;
    return aligned_program_load(ptx.c_str(), json.c_str());
  });
}

void aligned_program_destroy(aligned_program *program) { delete program; }

int32_t aligned_program_sites(const aligned_program *program) {
  return static_cast<int32_t>(program->program->sidecar.decode.size());
}

int aligned_program_site_info(const aligned_program *program, int32_t index, aligned_program_site *info) {
  return guarded(-1, [&] {
    const std::vector<Site> &sites = program->program->sidecar.decode;
    if (index < 0 || static_cast<size_t>(index) >= sites.size())
      return fail("expected a site from 0 to " + std::to_string(static_cast<int64_t>(sites.size()) - 1) + ", got " +
                  std::to_string(index));
    const Site &site = sites[index];
    *info = {static_cast<int32_t>(site.number),
             site.query,
             site.certified,
             site.find(Name::KeyBits) || site.find(Name::ValueBits),
             site.find(Name::SinkLogits) != nullptr,
             site.find(Name::AttnMask) != nullptr,
             site.find(Name::Softcap) != nullptr,
             site.find(Name::ToleranceFactor) != nullptr,
             site.find(Name::Window) != nullptr,
             site.find(Name::Sinks) != nullptr,
             site.find(Name::Later) != nullptr,
             site.kvHeads,
             site.heads,
             site.queries,
             site.keyDim,
             site.valueDim,
             site.key,
             site.value};
    return 0;
  });
}

int aligned_program_appends(const aligned_program *program, const aligned_format *format, int64_t headDim) {
  return program->program->appendTo(*format, headDim) != nullptr;
}
