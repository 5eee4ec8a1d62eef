// The kernels of a model as files, for machines without a compiler.
#include "Capture.h"
#include "OutputFile.h"

#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"

using namespace aligned;

bool aligned::emitKernels(const std::string &modelPath, const std::string &captureFolder, const RunOptions &options, const std::string &folder) {
  std::string source;
  if (modelPath.empty()) {
    auto capture = loadCapture(captureFolder);
    if (!capture)
      return false;
    source = moduleText(*capture);
  } else {
    auto file = llvm::MemoryBuffer::getFile(modelPath, /*IsText=*/true);
    if (!file)
      return refuse(modelPath + ": " + file.getError().message()), false;
    source = (*file)->getBuffer().str();
  }
  if (std::error_code error = llvm::sys::fs::create_directories(folder))
    return refuse("-o: " + folder + ": " + error.message()), false;
  auto inFolder = [&](const char *name) {
    llvm::SmallString<128> path(folder);
    llvm::sys::path::append(path, name);
    return OutputFile::create(path.str().str(), "-o");
  };
  std::optional<OutputFile> ptxFile = inFolder("kernels.ptx"), sidecarFile = inFolder("kernels.json");
  if (!ptxFile || !sidecarFile)
    return false;
  char *ptx = nullptr, *sidecar = nullptr;
  if (aligned_compile_kernels(source.c_str(), options.pipeline().c_str(), &ptx, &sidecar))
    return refuse(aligned_last_error()), false;
  bool written = ptxFile->write([&](llvm::raw_ostream &os) { os << ptx; }) && sidecarFile->write([&](llvm::raw_ostream &os) { os << sidecar; });
  aligned_text_free(ptx);
  aligned_text_free(sidecar);
  return written;
}
