// The kernels of a model as files, for machines without a compiler.
#include "Capture.h"
#include "OutputFile.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

using namespace aligned;

static std::optional<std::string> sourceOf(const std::string &modelPath, const std::string &captureFolder) {
  if (!modelPath.empty())
    return readText(modelPath);
  std::optional<Capture> capture = loadCapture(captureFolder);
  return capture ? std::optional(moduleText(*capture)) : std::nullopt;
}

bool aligned::emitKernels(const std::string &modelPath, const std::string &captureFolder, const RunOptions &options, const std::string &folder) {
  std::optional<std::string> source = sourceOf(modelPath, captureFolder);
  if (!source)
    return false;
  llvm::sys::fs::create_directories(folder); // where that fails, files can't be created either
  auto inFolder = [&](const char *name) {
    llvm::SmallString<128> path(folder);
    llvm::sys::path::append(path, name);
    return OutputFile::create(path.str().str(), "-o");
  };
  std::optional<OutputFile> ptxFile = inFolder("kernels.ptx"), sidecarFile = ptxFile ? inFolder("kernels.json") : std::nullopt;
  if (!sidecarFile)
    return false;
  char *ptx = nullptr, *sidecar = nullptr;
  if (aligned_compile_kernels(source->c_str(), options.pipeline().c_str(), &ptx, &sidecar))
    return refuse(aligned_last_error()), false;
  bool written = ptxFile->write([&](llvm::raw_ostream &os) { os << ptx; }) && sidecarFile->write([&](llvm::raw_ostream &os) { os << sidecar; });
  aligned_text_free(ptx);
  aligned_text_free(sidecar);
  return written;
}
